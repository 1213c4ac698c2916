"""The cost of calibration beside the forward passes of the same images: operations, and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchtrt_bridge.quantize.config import Settings, settings_from
from torchtrt_bridge.report.progress import LoopProgress

BATCH, SIZE, MANY = 8, 224, 16

QUIET = LoopProgress(False)


def network() -> nn.Module:
    """A ResNet-18."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18().eval()


def batches(count: int, size: int = SIZE) -> Iterator[torch.Tensor]:
    """Yield batches made anew each time, so that they cost no memory."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(BATCH, 3, size, size, generator=generator)


def plain(method: str) -> Settings:
    """Return settings with which the batches are read and nothing is searched."""
    return settings_from(method, smooth=None, equalize=False, correct_bias=False)  # type: ignore[arg-type]


def operations(call: Callable[[], object]) -> int:
    """Return the floating point operations of all products and convolutions that a call computes."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


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
