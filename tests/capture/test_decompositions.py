"""Decompositions of PyTorch's fused operators: the same results, with nothing left in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.decompositions import DECOMPOSITIONS

BATCH, LENGTH, WIDTH, HEADS = 3, 5, 16, 2


def masks() -> dict[str, dict[str, Any]]:
    later = torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)
    padding = torch.arange(LENGTH) >= torch.tensor([[5], [3], [1]])
    both = (later | padding[:, None, None, :]).expand(BATCH, HEADS, LENGTH, LENGTH)
    return {
        "none": {},
        "of pairs": {"src_mask": later},
        "of pairs, as floats": {"src_mask": torch.zeros(LENGTH, LENGTH).masked_fill(later, -torch.inf)},
        "padding": {"src_key_padding_mask": padding},
        "both": {"src_mask": later, "src_key_padding_mask": padding},
        "of pairs, by batch and head": {"src_mask": both.reshape(-1, LENGTH, LENGTH)},
    }


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, **options).eval()


@pytest.mark.first(6)
@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_encoder_layer_without_gradients(activation: str, norm_first: bool, mask: str) -> None:
    model, x = layer(activation=activation, norm_first=norm_first), torch.randn(BATCH, LENGTH, WIDTH)
    fast = trtb.compile(model, engine="reference", trial="off", cache_dir="")
    with torch.no_grad():
        torch.testing.assert_close(fast(x, **masks()[mask]), model(x, **masks()[mask]))
    report = trtb.report(fast)
    assert report.trt_nodes > 0
    assert report.torch_nodes == 0


def test_a_stack_of_layers_with_is_causal() -> None:
    model = nn.TransformerEncoder(layer(), 2).eval()
    x, later = torch.randn(BATCH, LENGTH, WIDTH), nn.Transformer.generate_square_subsequent_mask(LENGTH)
    fast = trtb.compile(model, engine="reference", trial="off", cache_dir="")
    with torch.no_grad():
        torch.testing.assert_close(fast(x, mask=later, is_causal=True), model(x, mask=later, is_causal=True))
    assert trtb.report(fast).torch_nodes == 0


@pytest.mark.parametrize("op", DECOMPOSITIONS, ids=str)
def test_arguments_are_those_of_the_operator(op: Any) -> None:
    code = DECOMPOSITIONS[op].__code__
    assert code.co_varnames[: code.co_argcount] == tuple(argument.name for argument in op._schema.arguments)


def test_a_mask_that_pytorch_looks_at_leaves_nothing_to_compile_and_reports_say_so() -> None:
    """When this fails, PyTorch has fixed it, and the line on `is_causal` in docs/limits.md can go."""
    model, later = nn.TransformerEncoder(layer(), 2).eval(), torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    fast = trtb.compile(model, engine="reference", trial="off", cache_dir="")
    with torch.no_grad():
        fast(x, mask=later)
    assert trtb.report(fast).trt_nodes == 0
    assert trtb.report(fast).breaks
    assert trtb.explain(model, (x, later)).breaks


class Quantile(nn.Module):
    def __init__(self, q: float, **options: Any) -> None:
        super().__init__()
        self.q, self.options = q, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.quantile(-x, self.q, **self.options)


def with_infinities() -> torch.Tensor:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    x[1, [0, 4]], x[2] = torch.inf, -torch.inf
    return x


def with_nan() -> torch.Tensor:
    x = with_infinities()
    x[0, 3] = torch.nan
    return x


EXPORTS_QUANTILES = torch.torch_version.TorchVersion(torch.__version__) >= (2, 14)


@pytest.mark.first(10)
@pytest.mark.skipif(not EXPORTS_QUANTILES, reason="torch 2.11 does not export quantiles")
@pytest.mark.parametrize("options", [{}, {"dim": 1}, {"dim": -2, "keepdim": True}, {"keepdim": True}], ids=str)
@pytest.mark.parametrize("q", [0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("make", [with_infinities, with_nan])
def test_a_quantile_along_a_known_size(make: Callable[[], torch.Tensor], q: float, options: dict[str, Any]) -> None:
    model, x = Quantile(q, **options).eval(), make()
    fast = trtb.compile(model, engine="reference", trial="off", cache_dir="", fallback="error")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), equal_nan=True)


@pytest.mark.skipif(not EXPORTS_QUANTILES, reason="torch 2.11 does not export quantiles")
@pytest.mark.parametrize("option", [{"interpolation": "nearest"}, {}], ids=["interpolation", "dynamic"])
def test_pytorch_runs_other_quantiles(option: dict[str, Any]) -> None:
    model, shapes = Quantile(0.3, dim=0, **option).eval(), None if option else ({0: torch.export.Dim("n", max=9)},)
    program = trtb.export(model, (with_nan(),), dynamic_shapes=shapes, engine="reference")
    assert [entry.op for entry in program.report.in_torch] == ["aten.quantile.scalar"]
    torch.testing.assert_close(program(with_nan()), model(with_nan()), equal_nan=True)
