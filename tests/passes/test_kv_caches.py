"""Writes to caches of keys and values: which become `kv_cache_update`, and which stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import torchtrt_bridge as trtb
from tests.models import Called
from tests.passes.case import calls
from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.graph.kv_cache import own, written_inputs
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import extract_subgraphs, propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.trt import library as libraries

UPDATE = own.kv_cache_update.default


class Step(nn.Module):
    """Writes a product to a cache, and reads the cache."""

    def __init__(self, write: Callable[..., Any]) -> None:
        super().__init__()
        self.write = write

    def forward(self, cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
        before = self.write(cache, new * 2, start)
        after: Tensor = cache.sum(dim=2)
        return after if before is None else after + before


def by_index(cache: Tensor, new: Tensor, start: Tensor) -> None:
    cache[:, :, torch.arange(new.shape[2]) + start] = new


def by_index_copy(cache: Tensor, new: Tensor, start: Tensor) -> None:
    cache.index_copy_(2, start + torch.arange(new.shape[2]), new)


def by_index_copy_from_behind(cache: Tensor, new: Tensor, start: Tensor) -> None:
    cache.index_copy_(-2, start + torch.arange(new.shape[2]), new)


def at_positions(cache: Tensor, new: Tensor, start: Tensor) -> None:
    """Take the positions from outside, as decoders with `cache_position` do."""
    cache.index_copy_(2, start.reshape(-1), new)


def inputs(length: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 4, 8, 16, dtype=dtype), torch.randn(2, 4, length, 16, dtype=dtype), torch.tensor(2)


def captured(write: Callable[..., Any], length: int = 3, dynamic_shapes: Any = None) -> CapturedGraph:
    return graph_from_program(export_program(Step(write), inputs(length), dynamic_shapes=dynamic_shapes))


def normalized(write: Callable[..., Any], length: int = 3, dynamic_shapes: Any = None) -> fx.GraphModule:
    found = captured(write, length, dynamic_shapes)
    return normalize(found.module, Options(), found.outputs, found.mutations)


MARKED = [(by_index, 3), (by_index, 1), (by_index_copy, 3), (by_index_copy_from_behind, 1), (at_positions, 1)]
marked = pytest.mark.parametrize(("write", "length"), MARKED, ids=[f"{w.__name__}-{n}" for w, n in MARKED])


@marked
def test_consecutive_positions(write: Callable[..., Any], length: int) -> None:
    module = normalized(write, length)
    assert calls(module).count(UPDATE) == 1
    assert written_inputs(module) == (0,)
    cache, new, start = inputs(length)
    result, cache_after = module(cache.clone(), new, start)
    expected = Step(write)(cache, new, start)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(cache_after, cache)


def test_any_length() -> None:
    length = torch.export.Dim("length", min=1, max=8)
    module = normalized(by_index, dynamic_shapes=({}, {2: length}, None))
    assert calls(module).count(UPDATE) == 1
    for size in (1, 2, 5):
        cache, new, start = inputs(size)
        _, cache_after = module(cache.clone(), new, start)
        by_index(cache, new * 2, start)
        torch.testing.assert_close(cache_after, cache)


def to_odd_positions(cache: Tensor, new: Tensor, start: Tensor) -> None:
    cache[:, :, 2 * torch.arange(new.shape[2]) + start] = new


def scaled_start(cache: Tensor, new: Tensor, start: Tensor) -> None:
    cache[:, :, torch.add(start, torch.arange(new.shape[2]), alpha=2)] = new


def along_the_heads(cache: Tensor, new: Tensor, start: Tensor) -> None:
    cache.index_copy_(1, torch.arange(3), new.transpose(1, 2).repeat(1, 1, 2, 1)[:, :, :8])


def added(cache: Tensor, new: Tensor, start: Tensor) -> None:
    cache.index_put_((torch.arange(2)[:, None, None], torch.arange(4)[:, None], torch.arange(3)), new, accumulate=True)


def one_value_for_all(cache: Tensor, new: Tensor, start: Tensor) -> None:
    cache[:, :, torch.arange(3) + start] = new[:, :, :1]


def read_before(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    before = cache.sum(dim=2)
    by_index(cache, new, start)
    return before


@pytest.mark.parametrize(
    "write", [to_odd_positions, scaled_start, along_the_heads, added, one_value_for_all, read_before]
)
def test_other_writes_stay(write: Callable[..., Any]) -> None:
    module = normalized(write)
    assert UPDATE not in calls(module)
    cache, new, start = inputs()
    result, cache_after = module(cache.clone(), new, start)
    torch.testing.assert_close(result, Step(write)(cache, new, start))
    torch.testing.assert_close(cache_after, cache)


def test_a_cache_of_the_graphs_own_stays() -> None:
    def forward(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
        cache = cache.clone()
        by_index(cache, new, start)
        return cache

    found = graph_from_program(export_program(Called(forward), inputs()))
    assert UPDATE not in calls(normalize(found.module, Options(), found.outputs, found.mutations))


@pytest.mark.parametrize("has_layer", [True, False])
def test_tensorrt_writes_in_place_where_it_can(has_layer: bool) -> None:
    library = libraries.load("tensorrt_rtx")
    module = normalized(by_index)
    subgraph = extract_subgraphs(module, propose(module, Options()).subgraphs)["trt_0"]
    network = network_from_graph(subgraph, library, supports=lambda capability: has_layer)
    kinds = [network.definition.get_layer(index).type.name for index in range(network.definition.num_layers)]
    assert kinds.count("KV_CACHE_UPDATE") == has_layer
    assert kinds.count("SCATTER") == (not has_layer)


@marked
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_compiled_step_writes_to_the_callers_cache(write: Callable[..., Any], length: int, precision: Any) -> None:
    step = Step(write)
    fast = trtb.compile(step, engine="reference", fallback="error", precision=precision)
    for start in (0, 3, 5):
        cache, new, _ = inputs(length)
        expected_cache = cache.clone()
        with torch.no_grad():
            result = fast(cache, new, torch.tensor(start))
            expected = step(expected_cache, new, torch.tensor(start))
        tolerance = 1e-5 if precision == "fp32" else 5e-3
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(cache, expected_cache, rtol=tolerance, atol=tolerance)
    assert trtb.report(fast).is_whole


def test_a_negative_start_counts_from_the_end() -> None:
    step = Step(by_index)
    fast = trtb.compile(step, engine="reference", fallback="error")
    cache, new, _ = inputs(1)
    expected = cache.clone()
    with torch.no_grad():
        fast(cache, new, torch.tensor(-1))
        step(expected, new, torch.tensor(-1))
    torch.testing.assert_close(cache, expected)


class Decoder(nn.Module):
    """A step with a cache of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(2, 4, 8, 16))

    def forward(self, new: Tensor, start: Tensor) -> Tensor:
        by_index(self.cache, new, start)
        return self.cache.sum(dim=2)


def test_a_saved_program_has_its_cache(tmp_path: Any) -> None:
    _, new, _ = inputs(1)
    program = trtb.export(Decoder().eval(), (new, torch.tensor(0)), engine="reference")
    trtb.save(program, tmp_path / "decoder.pt2")
    model = Decoder().eval()
    loaded = trtb.load(tmp_path / "decoder.pt2", device="cpu")
    for start in range(3):
        expected = model(new * start, torch.tensor(start))
        for each in (program, loaded):
            torch.testing.assert_close(each(new * start, torch.tensor(start)), expected)
