"""The cost of calibration beside the forward passes of the same images: time, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from torchtrt_bridge.quantize.calibration import Calibration
from torchtrt_bridge.quantize.config import Settings, settings_from
from torchtrt_bridge.report.progress import LoopProgress

BATCH, SIZE, MANY = 8, 224, 16

# Both are measured so many times, in turns.
TURNS = 3

QUIET = LoopProgress(False)


def network() -> nn.Module:
    """A ResNet-18."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18().eval()


def batches(count: int) -> Iterator[torch.Tensor]:
    """Yield batches made anew each time, so that they cost no memory."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)


def plain(method: str) -> Settings:
    """Return settings with which the batches are read and nothing is searched."""
    return settings_from(method, smooth=None, equalize=False, correct_bias=False)  # type: ignore[arg-type]


def cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def ratio(model: nn.Module, images: list[torch.Tensor], calibration: Calibration) -> float:
    """Return the CPU time of the calibration pass over that of the forward passes, each the least of its turns."""

    def forward() -> None:
        for batch in images:
            model(batch)

    def calibrate() -> None:
        calibration.read(images, QUIET)

    with torch.no_grad():
        turns = [(cpu_seconds(forward), cpu_seconds(calibrate)) for _ in range(TURNS)]
    return min(calibrated for _, calibrated in turns) / min(passed for passed, _ in turns)


# Peak memory is that of a process, in which the model and PyTorch have run before. The peaks are those after 2 batches
# and after all of them.
SCRIPT = """
import torch
from tests.quantize.cost import MANY, QUIET, batches, network, peak_mb, plain
from torchtrt_bridge.quantize.calibration import Calibration

def watched():
    for number, batch in enumerate(batches(MANY)):
        if number == 2:
            peaks.append(peak_mb())
        yield batch

model = network()
torch.export.export(torch.nn.Linear(2, 2), (torch.ones(3, 2),)).run_decompositions()  # imports
with torch.no_grad():
    for batch in batches(2):
        model(batch)
    peaks = [peak_mb()]
    Calibration(model, plain("entropy")).read(watched(), QUIET)
print(*peaks, peak_mb())
"""


def peak_mb() -> float:
    """Return the peak memory of this process so far, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def extra_mb() -> tuple[float, float]:
    """Return the MB that calibration adds to the peak: with 2 batches, and with `MANY`."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, check=True, cwd=root, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    before, few, many = map(float, result.stdout.splitlines()[-1].split())
    return few - before, many - before
