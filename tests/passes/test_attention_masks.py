"""Attention masks: an attention gets the smallest mask that hides the same keys, or none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export import Dim

from tests.passes.case import aten, call, calls
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.passes.attention_masks import simplify_masks
from torchtrt_bridge.passes.constant_folding import fold_constants

SDPA = aten.scaled_dot_product_attention.default
QUERIES, KEYS = 5, 7

Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Attention(nn.Module):
    """Attention under the mask that a function makes of query, key and padding."""

    def __init__(self, mask: Mask, **more: Any) -> None:
        super().__init__()
        self.mask, self.more = mask, more

    def forward(self, q: torch.Tensor, k: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, k, attn_mask=self.mask(q, k, padding), **self.more)


def tensors(batch: int = 3, queries: int = QUERIES, keys: int = KEYS) -> tuple[torch.Tensor, ...]:
    padding = torch.arange(keys) < torch.arange(1, batch + 1)[:, None]
    return torch.randn(batch, 2, queries, 8), torch.randn(batch, 2, keys, 8), padding


def simplified(model: nn.Module, dynamic: bool = False) -> fx.GraphModule:
    batch, queries, keys = (Dim(name, min=2, max=64) for name in ("batch", "queries", "keys"))
    shapes = ({0: batch, 2: queries}, {0: batch, 2: keys}, {0: batch, 1: keys}) if dynamic else None
    module = graph_from_program(export_program(model, tensors(), dynamic_shapes=shapes)).module
    for run_pass in (fold_constants, simplify_masks):
        module = run_pass(module, Options())
    module.graph.lint()
    return module


def arguments(module: fx.GraphModule) -> tuple[Any, bool]:
    """Return the mask and `is_causal` of the one attention."""
    mask, _, causal = (*call(module, SDPA).args[3:], *(None, 0.0, False)[len(call(module, SDPA).args) - 3 :])
    return mask, causal


def assert_same(module: fx.GraphModule, model: nn.Module, *inputs: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(module(*inputs)[0], model(*inputs))


def rows(q: torch.Tensor) -> torch.Tensor:
    return torch.arange(q.shape[-2])[:, None]


def columns(k: torch.Tensor) -> torch.Tensor:
    return torch.arange(k.shape[-2])[None, :]


def tril(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()


NOTHING_HIDDEN: dict[str, Mask] = {
    "ones": lambda q, k, padding: torch.ones(QUERIES, KEYS, dtype=torch.bool),
    "zeros": lambda q, k, padding: torch.zeros(QUERIES, KEYS),
    "ones for each of the batch": lambda q, k, padding: torch.ones(QUERIES, KEYS, dtype=torch.bool).expand(
        q.shape[0], 1, QUERIES, KEYS
    ),
    "positions from zero": lambda q, k, padding: (rows(q) >= 0).expand(q.shape[0], 1, -1, k.shape[-2]),
    "padding or not": lambda q, k, padding: (padding | True)[:, None, None],
}


@pytest.mark.parametrize("name", NOTHING_HIDDEN)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_mask_that_hides_nothing_is_dropped(name: str, dynamic: bool) -> None:
    model = Attention(NOTHING_HIDDEN[name], scale=0.3)
    dynamic = dynamic and "ones" != name != "zeros" and "each" not in name
    module = simplified(model, dynamic)
    assert arguments(module) == (None, False)
    assert call(module, SDPA).kwargs == {"scale": 0.3}
    assert_same(module, model, *tensors())


CAUSAL: dict[str, Mask] = {
    "a triangle": lambda q, k, padding: tril(q, k),
    "a triangle of known size": lambda q, k, padding: torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(),
    "a triangle in four dimensions": lambda q, k, padding: tril(q, k).expand(q.shape[0], 1, -1, -1),
    "minus infinity above": lambda q, k, padding: torch.zeros(QUERIES, KEYS).masked_fill(~tril(q, k), -math.inf),
    "keys up to the query": lambda q, k, padding: columns(k) <= rows(q),
    "queries from the key on": lambda q, k, padding: rows(q) >= columns(k),
    "both moved": lambda q, k, padding: (columns(k) + 3) <= (rows(q) + 3),
    "in four dimensions": lambda q, k, padding: (columns(k)[None, None] <= rows(q)[None, None]).expand(
        q.shape[0], 1, -1, -1
    ),
    "and nothing more": lambda q, k, padding: (columns(k) <= rows(q)) & (columns(k) >= 0),
}
OF_KNOWN_SIZE = ("a triangle of known size", "minus infinity above")


@pytest.mark.first(6)
@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_causal_mask_is_named(name: str, dynamic: bool) -> None:
    model = Attention(CAUSAL[name])
    module = simplified(model, dynamic and name not in OF_KNOWN_SIZE)
    assert arguments(module) == (None, True)
    assert_same(module, model, *tensors())


SMALLER: dict[str, tuple[Mask, tuple[int, ...]]] = {
    "expanded": (lambda q, k, padding: padding[:, None, None].expand(-1, 1, QUERIES, KEYS), (3, 1, 1, KEYS)),
    "and ones": (
        lambda q, k, padding: torch.ones(1, 1, QUERIES, 1, dtype=torch.bool) & padding[:, None, None],
        (3, 1, 1, KEYS),
    ),
    "ones before": (
        lambda q, k, padding: torch.logical_and(padding[:, None, None], rows(q) >= 0).expand(-1, 2, -1, -1),
        (3, 1, 1, KEYS),
    ),
    "of one dimension": (
        lambda q, k, padding: padding[0].expand(QUERIES, KEYS),
        (QUERIES, KEYS),  # PyTorch takes no mask of fewer than two
    ),
}


@pytest.mark.parametrize("name", SMALLER)
def test_a_mask_is_taken_from_before_its_expansion(name: str) -> None:
    make, shape = SMALLER[name]
    model = Attention(make)
    module = simplified(model)
    mask, causal = arguments(module)
    assert (tuple(mask.meta["val"].shape), causal) == (shape, False)
    assert_same(module, model, *tensors())


KEPT: dict[str, Mask] = {
    "padding": lambda q, k, padding: padding[:, None, None],
    "a diagonal above": lambda q, k, padding: torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(1),
    "a diagonal below": lambda q, k, padding: torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(-1),
    "a causal mask of large numbers": lambda q, k, padding: torch.zeros(QUERIES, KEYS).masked_fill(~tril(q, k), -1e4),
    "a causal mask that adds more": lambda q, k, padding: torch.ones(QUERIES, KEYS).masked_fill(~tril(q, k), -math.inf),
    "keys before the query": lambda q, k, padding: columns(k) < rows(q),
    "keys from the query on": lambda q, k, padding: columns(k) >= rows(q),
    "keys moved": lambda q, k, padding: (columns(k) + 1) <= rows(q),
    "queries moved": lambda q, k, padding: columns(k) <= (rows(q) + 1),
    "every second key": lambda q, k, padding: torch.arange(0, 2 * KEYS, 2)[None, :] <= rows(q),
    "causal and padding": lambda q, k, padding: (columns(k) <= rows(q)) & padding[:, None, None],
    "ones but for one": lambda q, k, padding: columns(k) != 3,
    "a bias": lambda q, k, padding: torch.zeros(1, KEYS) + q.mean(),
    "one row for all": lambda q, k, padding: columns(k) <= torch.arange(1)[:, None],
}


@pytest.mark.first(8)
@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("with_fold", [True, False], ids=["constant", "computed"])
def test_any_other_mask_is_kept(name: str, with_fold: bool) -> None:
    model = Attention(KEPT[name])
    module = graph_from_program(export_program(model, tensors())).module
    module = fold_constants(module, Options()) if with_fold else module
    module = simplify_masks(module, Options())
    mask, causal = arguments(module)
    assert mask is not None
    assert not causal
    assert_same(module, model, *tensors())


@pytest.mark.parametrize(
    "mask",
    [
        lambda q, k, padding: columns(k).half() <= rows(q).half(),
        lambda q, k, padding: torch.arange(k.shape[-2], dtype=torch.float16) <= rows(q),
    ],
    ids=["rounded", "counted in fp16"],
)
def test_positions_in_floats_are_not_trusted(mask: Mask) -> None:
    """fp16 has not all integers above 2048."""
    given, causal = arguments(simplified(Attention(mask), dynamic=True))
    assert given is not None
    assert not causal


def test_what_made_the_mask_goes_with_it() -> None:
    module = simplified(Attention(CAUSAL["and nothing more"]), dynamic=True)
    assert set(calls(module)) == {SDPA}


def test_the_pass_is_one_of_the_passes() -> None:
    model = Attention(CAUSAL["keys up to the query"])
    module = normalize(graph_from_program(export_program(model, tensors())).module, Options(precision="fp16"))
    assert arguments(module) == (None, True)
