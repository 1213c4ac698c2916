"""Engines for sizes that come often, on a GPU: right, in CUDA graphs, and only where they are fastest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.gpu import assert_near, assert_serves_threads
from torchtrt_bridge.entry.torch_compile import backend_of
from torchtrt_bridge.runtime.static_engines import CALLS_BEFORE_BUILD
from torchtrt_bridge.runtime.trial import ENGINE_FOR_ALL_SIZES

pytestmark = pytest.mark.gpu


class Blocks(nn.Module):
    """Convolutions over images of any size, whose kernels depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(64, 64, 3, padding=1) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(nn.functional.silu(nn.functional.group_norm(x, 8)))
        return x


def compiled(**options: Any) -> tuple[Any, nn.Module, Any]:
    model = Blocks().eval().requires_grad_(False).cuda()
    fast = trtb.compile(model, dynamic=True, precision="fp16", static_engines=2, **options)
    fast(torch.randn(2, 3, 40, 48, device="cuda"))
    backend = backend_of(fast)
    assert backend is not None
    (graph,) = backend.graphs
    assert graph.compiled is not None
    return fast, model, graph.compiled.run


def call(fast: Any, model: nn.Module, times: int, size: int = 64) -> None:
    for _ in range(times):
        x = torch.randn(2, 3, size, size, device="cuda")
        assert_near(fast(x), model(x))


@torch.inference_mode()
def test_sizes_that_come_often_are_computed_by_what_is_fastest() -> None:
    fast, model, run = compiled()
    call(fast, model, CALLS_BEFORE_BUILD + 2)
    run.frequent_sizes.wait()
    call(fast, model, 8)
    (entry,) = trtb.report(fast).engines
    (static,) = entry.static_engines
    assert static.name == "trt_0 for 2x3x64x64"
    assert static.error is not None
    assert static.error < 5e-3
    assert {"engine", "PyTorch"} <= set(static.milliseconds)
    assert (ENGINE_FOR_ALL_SIZES in static.milliseconds) == entry.serves
    best = min(static.milliseconds, key=static.milliseconds.__getitem__)
    assert static.choice in (best, "engine")
    assert run.uses_graphs, trtb.report(fast).notes
    assert run.thread_state.graphs.captured()
    call(fast, model, 4, size=48)


@torch.inference_mode()
def test_threads_get_right_results_while_an_engine_is_built_and_tried() -> None:
    fast, model, run = compiled(trial="check")
    assert_serves_threads(fast, model, CALLS_BEFORE_BUILD)
    run.frequent_sizes.wait()
    assert_serves_threads(fast, model, CALLS_BEFORE_BUILD)
    (static,) = trtb.report(fast).engines[0].static_engines
    assert static.serves
    assert static.name == "trt_0 for 2x3x16x16"
    assert run.engines[0].static_engines.runners != [None]
