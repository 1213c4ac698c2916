"""The op table on a GPU: the same cases as `test_ops`, computed by real engines."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence

import pytest
import torch

from tests.compare import assert_matches
from tests.lower.case import Point
from tests.lower.lowering import flat_tensors, in_float64, lower
from tests.lower.table import POINTS
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.options import Options
from torchtrt_bridge.runtime.runners import GpuRunner
from torchtrt_bridge.runtime.tolerance import compare
from torchtrt_bridge.trt import library as libraries

# The largest relative L2 distance that passes beyond the default bounds. TensorRT-RTX 1.6 rounds fp32 products to
# TF32 whatever its flag says, and in fp16 rounds sums and exponentials once or twice more than a CPU does.
NEAR = 2e-3

# TensorRT-RTX 1.6 builds these, and finds no kernel when it loads them on an H100. What a user has stays in PyTorch.
UNLOADABLE = {f"torchtrt_bridge.dequantize_int4.default-{name}-static-fp32" for name in ("weight", "longer-blocks")}

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _unharmed_gpu() -> Iterator[None]:
    """After an error that no later call recovers from, leave the process: pytest-xdist starts another."""
    yield
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        os._exit(1)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.id)
def test_case_on_gpu(point: Point) -> None:
    library = libraries.choose("auto")
    lowered = lower(point, library)
    runner = GpuRunner(engine_from_network(lowered.network, library, Options()), library)
    if point.id in UNLOADABLE:
        with pytest.raises(EngineLoadError, match="no execution context"):
            runner.prepare()
        return
    for inputs in map(point.make_inputs, point.sizes):
        with torch.no_grad():
            expected = flat_tensors(lowered.model(*inputs))
            for _ in range(4):  # the later ones replay a CUDA graph where the shapes are static
                results = lowered.outputs(functools.partial(_on_gpu, runner), inputs)
                if compare(results, expected, NEAR).problem is None:
                    continue
                tolerance = point.case.tolerance.get(point.dtype)
                assert_matches(results, expected, functools.partial(in_float64, lowered.model, inputs), tolerance)


def _on_gpu(runner: GpuRunner, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [result.cpu() for result in runner([tensor.cuda() for tensor in tensors])]
