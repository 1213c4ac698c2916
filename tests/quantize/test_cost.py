"""Calibration costs one forward pass for each batch, and no memory that grows with the batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.quantize.cost import BATCH, MANY, QUIET, SIZE, batches, extra_mb, network, operations, plain
from torchtrt_bridge.quantize.calibration import Calibration

pytest.importorskip("torchvision.models")

MOST_MB = 200


@pytest.mark.parametrize("method", ["entropy", pytest.param("absmax", marks=pytest.mark.full)])
def test_each_batch_costs_one_forward_pass(method: str) -> None:
    model, images = network(), list(batches(4, size=32))
    calibration = Calibration(model, plain(method))
    calibration.read(images[:1], QUIET)  # the first batch is traced, and computed once more
    forward = operations(lambda: model(images[0]))
    assert forward > 0
    assert operations(lambda: calibration.read(images, QUIET)) == len(images) * forward


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read where Linux tells it")
def test_memory_does_not_grow_with_the_batches() -> None:
    few, many = extra_mb()
    assert 0 < many <= MOST_MB, (few, many)
    kept_images = (MANY - 2) * BATCH * 3 * SIZE * SIZE * 4 / 1e6
    assert many - few < 0.75 * kept_images, (few, many)  # the allocator's own growth is 0 to 45 MB
