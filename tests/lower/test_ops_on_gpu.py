"""The op table on a GPU: the same batches as in `test_ops`, computed by real engines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.lower.batch import Batch, parameters
from tests.lower.case import Point
from tests.lower.lowering import Results, assert_right, lower, lower_batch
from tests.lower.table import POINTS, batches_of_points
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.errors import EngineLoadError
from torchtrt_bridge.options import Options
from torchtrt_bridge.runtime.runners import GpuRunner
from torchtrt_bridge.trt import library as libraries

# The largest relative L2 distance that passes beyond the default bounds. TensorRT-RTX 1.6 rounds fp32 products to
# TF32 whatever its flag says, and in fp16 rounds sums and exponentials once or twice more than a CPU does.
NEAR = 2e-3

# TensorRT-RTX 1.6 builds these, and finds no kernel when it loads them on an H100. What a user has stays in PyTorch.
UNLOADABLE = {f"torchtrt_bridge.dequantize_int4.default-{name}-static-fp32" for name in ("weight", "longer-blocks")}

# How often each engine is called; the later calls replay a CUDA graph where the shapes are static.
CALLS = 4

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _unharmed_gpu() -> Iterator[None]:
    """After an error that no later call recovers from, leave the process: pytest-xdist starts another."""
    yield
    _leave_if_harmed()


def _leave_if_harmed() -> None:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        os._exit(1)


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that all processes of this run share, with a file for each batch that one is computing."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "begun"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.mark.parametrize(("batch", "index"), parameters(batches_of_points(lambda point: point.id not in UNLOADABLE)))
def test_case_on_gpu(batch: Batch[Point], index: int, begun: Path) -> None:
    """Compare each case with PyTorch.

    A process that the engine of a batch ends leaves its file in `begun`: the cases behind the first run alone then.
    """
    mark = begun / batch.name
    if not mark.exists():
        mark.touch()
        results = batch.compute(index, computed)
        mark.unlink()
    else:
        results = computed(batch.items[index : index + 1])[0]
    assert_right(batch.items[index], results, NEAR)


@pytest.mark.parametrize("point", [point for point in POINTS if point.id in UNLOADABLE], ids=lambda point: point.id)
def test_engine_that_does_not_load(point: Point) -> None:
    library = libraries.choose("auto")
    runner = GpuRunner(engine_from_network(lower(point, library).network, library, Options()), library)
    with pytest.raises(EngineLoadError, match="no execution context"):
        runner.prepare()


def computed(points: Sequence[Point]) -> list[Results]:
    """Return what one engine for all of `points` computes, for each of them."""
    library = libraries.choose("auto")
    try:
        lowered = lower_batch(points, library)
        runner = GpuRunner(engine_from_network(lowered.network, library, Options()), library)
        return lowered.results(points, lambda tensors: _on_gpu(runner, tensors), CALLS)
    finally:
        _leave_if_harmed()


def _on_gpu(runner: GpuRunner, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [result.cpu() for result in runner([tensor.cuda() for tensor in tensors])]
