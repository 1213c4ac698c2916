"""What calibration costs, beside the forward passes of the same images: time, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from torchtrt_bridge.quantize.calibrate import Calibration
from torchtrt_bridge.quantize.progress import Progress
from torchtrt_bridge.quantize.settings import Settings

models = pytest.importorskip("torchvision.models")

BATCH, SIZE, MANY = 8, 224, 16
MOST_MB = 200

# How often both are measured, in turns, and how often that is tried on a machine that others use too.
TURNS, ROUNDS = 3, 3

QUIET = Progress(False)


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet18().eval()


def batches(count: int) -> Iterator[torch.Tensor]:
    """Made anew each time, so that they cost no memory."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)


def plain(method: str) -> Settings:
    """Nothing is searched: the batches are read, and that is all."""
    return Settings(method, smooth=None, equalize=False, correct_bias=False)  # type: ignore[arg-type]


def cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def ratio(model: nn.Module, images: list[torch.Tensor], calibration: Calibration) -> float:
    """CPU time of the calibration pass over that of the model's own forward passes, each the least of its turns."""

    def forward() -> None:
        for batch in images:
            model(batch)

    def calibrate() -> None:
        calibration.take(images, None, None, QUIET)

    with torch.no_grad():
        turns = [(cpu_seconds(forward), cpu_seconds(calibrate)) for _ in range(TURNS)]
    return min(calibrated for _, calibrated in turns) / min(passed for passed, _ in turns)


@pytest.fixture(scope="module")
def ratios() -> list[float]:
    """Of 32 images, traced before; measured again only where another load on the machine may be to blame."""
    model, images = resnet18(), list(batches(4))
    calibration = Calibration(model, plain("entropy"))
    with torch.no_grad():
        model(images[0])
        calibration.begin(((images[0],), {}))
    found: list[float] = []
    while len(found) < ROUNDS and (not found or min(found) > 2):
        found.append(ratio(model, images, calibration))
    return found


def test_a_histogram_method_takes_at_most_twice_the_forward_passes(ratios: list[float]) -> None:
    assert min(ratios) <= 2, ratios


def test_the_calibration_pass_really_computes_the_model(ratios: list[float]) -> None:
    """It contains the forward passes: a ratio far below one would be a mistake of the measurement."""
    assert min(ratios) > 0.7, ratios


# Peak memory is that of a process: what the model and PyTorch need by themselves is there before it begins. The peaks
# are those after 2 batches and after all of them.
SCRIPT = """
import torch
from tests.quantize.test_cost import MANY, QUIET, batches, peak_mb, plain, resnet18
from torchtrt_bridge.quantize.calibrate import Calibration

def watched():
    for number, batch in enumerate(batches(MANY)):
        if number == 2:
            peaks.append(peak_mb())
        yield batch

model = resnet18()
torch.export.export(torch.nn.Linear(2, 2), (torch.ones(3, 2),)).run_decompositions()  # imports
with torch.no_grad():
    for batch in batches(2):
        model(batch)
    peaks = [peak_mb()]
    Calibration(model, plain("entropy")).take(watched(), None, None, QUIET)
print(*peaks, peak_mb())
"""


def peak_mb() -> float:
    """The most memory that this process has had so far, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def extra_mb() -> tuple[float, float]:
    """What calibration adds to the peak: with 2 batches, and with `MANY`."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, check=True, cwd=root, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    before, few, many = map(float, result.stdout.splitlines()[-1].split())
    return few - before, many - before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read where Linux tells it")
def test_memory_does_not_grow_with_the_batches() -> None:
    few, many = extra_mb()
    assert 0 < many <= MOST_MB, (few, many)
    kept_images = (MANY - 2) * BATCH * 3 * SIZE * SIZE * 4 / 1e6
    assert many - few < 0.75 * kept_images, (few, many)  # the allocator's own growth is 0 to 45 MB
