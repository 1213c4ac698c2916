"""Memory of this process and of the device.

Host: Linux counts the memory that a process has (VmRSS) and the most that it had (VmHWM). Compilers' own helper
processes are not in it.

Device: `allocated` is what PyTorch's allocator has given out, and its peak is PyTorch's own. `used` is what the
driver says is in use on the device, of whatever process, once PyTorch's allocator has handed back what it kept in
store; engines, CUDA graphs and libraries show only there. So `used` is right where nothing else uses the device, and
rows that got ready side by side have none.

In rows of speed a contender's memory counts from before its copy of the weights, and libraries that an earlier
contender loaded are not in it. In rows of start the process has one contender, and counts from its loaded model.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import torch

MIB = 2**20


def host_bytes(field: str) -> int | None:
    """VmRSS or VmHWM of this process; None where the operating system is not Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def forget_host_peak() -> None:
    """Count VmHWM from here on, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def mib(size: int | None) -> float | None:
    return None if size is None else round(size / MIB, 1)


class DeviceMemory:
    """What a contender takes on the device, from here on; None for a CPU."""

    def __init__(self, device: str) -> None:
        self.is_cuda = device == "cuda"
        if self.is_cuda:
            self._used = self._used_bytes()
            self._allocated = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    @property
    def held(self) -> int | None:
        """Bytes in use on the device above those at the start."""
        return self._used_bytes() - self._used if self.is_cuda else None

    @property
    def peak(self) -> int | None:
        """The most bytes that PyTorch's allocator gave out, above those at the start."""
        return torch.cuda.max_memory_allocated() - self._allocated if self.is_cuda else None

    @staticmethod
    def _used_bytes() -> int:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free
