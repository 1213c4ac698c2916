"""The op table on a GPU: the same cases as `test_ops`, computed by real engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.compare import assert_matches
from tests.lower.case import (
    HALF,
    OTHER,
    TRACED,
    Case,
    captured,
    flat_tensors,
    in_float64,
    network_inputs,
    partitioned,
)
from tests.lower.table import CASES
from torchtrt_bridge.engine import flavour as flavours
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.runtime.check import difference
from torchtrt_bridge.runtime.gpu import GpuRunner

OPTIONS = Options(cache_dir="")

# The largest relative L2 distance for fp32 products: TensorRT-RTX 1.6 rounds them to TF32 whatever its flag says.
TF32 = 2e-3

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _unharmed_gpu() -> Iterator[None]:
    """After an error that no later call recovers from, leave the process: pytest-xdist starts another."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        os._exit(1)


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["fp32", "fp16"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case_on_gpu(case: Case, dynamic: bool, dtype: torch.dtype) -> None:
    if dtype == HALF and not case.half:
        pytest.skip("the operator has no floating point arguments, or none in fp16")
    shapes = case.dynamic_shapes(dtype) if dynamic else None
    if dynamic and not any(shapes or ()):
        pytest.skip("the case has no dynamic dimension")
    module, inputs = case.module(dtype), case.make_inputs(TRACED, dtype)
    graph = captured(inputs, module, shapes)
    subgraphs, rejections = partitioned(graph, OPTIONS)
    assert [f"{r.node.target}: {r.reason}" for r in rejections] == []
    flavour = flavours.choose("auto")
    network = network_from_graph(subgraphs["trt_0"], flavour, dict.fromkeys(graph.ranges, (1, 16)))
    run = GpuRunner(engine_from_network(network, flavour, OPTIONS), flavour)
    for n in (TRACED, OTHER) if dynamic else (TRACED,):
        _check(case, module, run, network_inputs(subgraphs["trt_0"], graph, case.make_inputs(n, dtype)), dtype, n)


def _check(case: Case, module: Any, run: GpuRunner, tensors: list[torch.Tensor], dtype: torch.dtype, n: int) -> None:
    """Compare several runs, of which the later replay a CUDA graph, with PyTorch on the CPU."""
    inputs = case.make_inputs(n, dtype)
    with torch.no_grad():
        expected = flat_tensors(module(*inputs))
        for results in run.rehearse([tensor.cuda() for tensor in tensors]):
            host = [result.cpu() for result in results]
            if dtype == torch.float32 and _is_near(host, expected):
                continue
            assert_matches(host, expected, lambda: in_float64(module, inputs), case.tolerance.get(dtype))


def _is_near(results: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return difference(results, expected, TF32).problem is None
