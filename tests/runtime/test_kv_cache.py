"""An engine that writes to a cache in place: on trial it gets a copy, and in the end the caller's cache is right."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn

from torchtrt_bridge.graph.kv_cache import own, write_in_place
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.model import CompileReport, EngineEntry
from torchtrt_bridge.runtime import EngineModule, Execution

CACHE, NEW = (1, 2, 4, 3), (1, 2, 1, 3)


class InPlace:
    """Writes new values, `factor` times as large, to the cache of a call, as TensorRT's layer does."""

    device = torch.device("cpu")

    def __init__(self, factor: float = 1.0, fails: bool = False) -> None:
        self.factor = factor
        self.fails = fails
        self.count = 0

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        cache, new, start = inputs
        self.count += 1
        cache[:, :, int(start)] = new[:, :, 0] * self.factor
        if self.fails and self.count > 1:
            raise RuntimeError("CUDA error: an illegal memory access")
        return [cache, cache.sum(2)]


def module_of(runner: InPlace) -> fx.GraphModule:
    """Return a graph of one subgraph, which updates its first input, and returns that and a sum."""
    inner = fx.Graph()
    cache, new, start = (inner.placeholder(name) for name in ("cache", "new", "start"))
    after = inner.call_function(own.kv_cache_update.default, (cache, new, start))
    inner.output((after, inner.call_function(torch.ops.aten.sum.dim_IntList, (after, [2]))))
    subgraph = fx.GraphModule(nn.Module(), inner)
    write_in_place(subgraph)
    specs = [spec("cache", CACHE), spec("new", NEW), spec("start", (), torch.int64)]
    entry, options = EngineEntry("trt_0", {}, [], [], {}), Options(engine="reference", trial="check")
    engine = EngineModule(subgraph, specs, runner, [torch.float32], entry, options)
    outer = fx.Graph()
    inputs = [outer.placeholder(name) for name in ("cache", "new", "start")]
    root = nn.Module()
    root.trt_0 = engine
    call = outer.call_module("trt_0", tuple(inputs))
    after, total = (outer.call_function(lambda x, i: x[i], (call, index)) for index in (0, 1))
    outer.output((total, after))
    return fx.GraphModule(root, outer)


def spec(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> TensorSpec:
    return TensorSpec(name, dtype, tuple((size, size) for size in shape), shape, shape)


@pytest.mark.parametrize(
    ("runner", "state"),
    [(InPlace(), "serving"), (InPlace(2.0), "failed"), (InPlace(fails=True), "failed")],
    ids=["right", "wrong", "fails later"],
)
def test_the_callers_cache_is_right(runner: InPlace, state: str) -> None:
    module = module_of(runner)
    options = Options(engine="reference", trial="check")
    execution = Execution(module, 1, (0,), options, CompileReport(options))
    cache, expected = torch.zeros(CACHE), torch.zeros(CACHE)
    for start in range(4):
        new = torch.randn(NEW)
        expected[:, :, start] = new[:, :, 0]
        (total,) = execution((cache, new, torch.tensor(start)))
        torch.testing.assert_close(cache, expected)
        torch.testing.assert_close(total, expected.sum(2))
    (engine,) = execution.engines
    assert engine.state == state
    assert runner.count == {"serving": 4, "failed": 2 if runner.fails else 1}[state]
