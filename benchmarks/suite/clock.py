"""Time per call, in milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], Any]
LEAST_CALLS = 3


def waiter(device: str) -> Call:
    """Return a function that waits until the device has done all that was queued."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def back_to_back(call: Call, calls: int, wait: Call) -> float:
    """Measure the time per call of `calls` calls that are queued without waiting, until the last is done."""
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - started) / calls * 1e3


def one_by_one(call: Call, calls: int, wait: Call) -> list[float]:
    """Measure each of `calls` calls, waiting for its results before the next one."""
    return [back_to_back(call, 1, wait) for _ in range(calls)]


def calls_within(seconds: float, call: Call, most: int, wait: Call) -> int:
    """Count the calls that fit in `seconds`: at most `most`, and enough that waiting once does not weigh."""
    one = back_to_back(call, LEAST_CALLS, wait) / 1e3
    return max(LEAST_CALLS, min(most, int(seconds / max(one, 1e-9))))


def interquartile_range(values: Sequence[float]) -> float:
    """Return the distance of the first and third quartile, interpolated between the values; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first
