"""Seconds, GPU memory and files of results, of the benchmarks of `generate` and of diffusion."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import torchtrt_bridge as trtb
from torchtrt_bridge.report.model import EngineEntry

RESULTS = Path(__file__).parent / "results"
LONGEST_BUILD = 120.0  # seconds


def device_name() -> str:
    """Return the name of the GPU, or "host" where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "host"


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes, with the work that it queues on the GPU."""
    _wait()
    begun = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - begun


def wait_for_static_engines(call: Callable[[], Any], compiled: Any, part: str = "") -> list[EngineEntry]:
    """Call until an engine for these sizes, which is built in the background, has been tried; return those there are.

    part: what its name has. Gives up after LONGEST_BUILD, with a line on stderr.
    """
    deadline = time.monotonic() + LONGEST_BUILD
    statics: list[EngineEntry] = []
    while time.monotonic() < deadline:
        call()
        statics = [static for entry in trtb.report(compiled).engines for static in entry.static_engines]
        if any(part in each.name and each.error is not None for each in statics):
            return statics
    print(f"no engine {part} for these sizes was tried in {LONGEST_BUILD:.0f} s", file=sys.stderr)
    return statics


def memory_in_use() -> int:
    """Return the bytes of GPU memory that are in use, by PyTorch and by others; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    _wait()
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    return whole - free


def keep(folder: Path, name: str, device: str, result: dict[str, Any]) -> None:
    """Write a result as JSON into a folder, under a name with the device, and print it."""
    folder.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1)
    (folder / f"{name}_{device.replace(' ', '_').lower()}.json").write_text(text + "\n")
    print(text)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
