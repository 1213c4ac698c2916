"""Time per call, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]
LEAST_CALLS = 3


def waiter(device: str) -> Call:
    """What waits until the device has done all that was queued."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def back_to_back(call: Call, calls: int, wait: Call) -> float:
    """Time per call of `calls` calls that are queued without waiting, until the last is done."""
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - started) / calls * 1e3


def one_by_one(call: Call, calls: int, wait: Call) -> list[float]:
    """The time of each of `calls` calls, waiting for its results before the next one."""
    times = []
    for _ in range(calls):
        wait()
        started = time.perf_counter()
        call()
        wait()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def calls_within(seconds: float, call: Call, most: int, wait: Call) -> int:
    """How many calls fit in `seconds`: at most `most`, and never so few that waiting once would weigh."""
    one = back_to_back(call, LEAST_CALLS, wait) / 1e3
    return max(LEAST_CALLS, min(most, int(seconds / max(one, 1e-9))))
