"""Memory of this process and of the device, in MiB.

Host: Linux counts the memory of a process (VmRSS) and its peak (VmHWM). Helper processes of compilers are not in it.

Device: `peak` is that of PyTorch's allocator. `held` is what the driver counts as in use on the device, of all
processes, once PyTorch's allocator has given back its reserve; engines, CUDA graphs and libraries show only there. So
`held` is right if nothing else uses the device, and rows that were compiled side by side have none.

In rows of speed the memory of a contender counts from before its copy of the weights; libraries that an earlier
contender loaded are not in it. In rows of start it counts from the loaded model.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import torch


def host_mib(field: str) -> float | None:
    """Return VmRSS or VmHWM of this process; None where the operating system is not Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((_mib(int(line.split()[1]) * 1024) for line in lines if line.startswith(f"{field}:")), None)


def reset_host_peak() -> None:
    """Count VmHWM from here on, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class DeviceMemory:
    """The memory taken on the device since this object was made; None for a CPU."""

    def __init__(self, device: str) -> None:
        self.is_cuda = device == "cuda"
        if self.is_cuda:
            self._used = self._used_bytes()
            self._allocated = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    @property
    def held(self) -> float | None:
        return _mib(self._used_bytes() - self._used) if self.is_cuda else None

    @property
    def peak(self) -> float | None:
        return _mib(torch.cuda.max_memory_allocated() - self._allocated) if self.is_cuda else None

    @staticmethod
    def _used_bytes() -> int:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free


def _mib(size: int) -> float:
    return round(size / 2**20, 1)
