"""Turns on the GPU for processes that compile side by side: what times itself there has it alone meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from filelock import FileLock

from torchtrt_bridge.runtime.trial import Trial


def take_turns(path: str) -> None:
    """From now on the trials of torchtrt_bridge, and the timing of kernels by inductor, hold the lock at `path`."""
    from torch._inductor.runtime.benchmarking import benchmarker

    lock = FileLock(path)
    _hold(lock, Trial, "run")
    _hold(lock, type(benchmarker), "benchmark_gpu")


def _hold(lock: FileLock, owner: type, name: str) -> None:
    method: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(method)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with lock:  # reentrant
            return method(*args, **kwargs)

    setattr(owner, name, alone)
