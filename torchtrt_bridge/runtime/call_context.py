"""The context of a call: its GPU, the CUDA graph that it is captured in, and the thread and process that make it."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch

# Execution contexts and CUDA graphs of an engine are made for so many threads; further threads take turns.
MOST_THREADS = 8


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Let a GPU be the current one; nothing for the CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def is_capturing(values: Sequence[Any]) -> bool:
    """Return whether the caller captures a CUDA graph that a call with these values would be part of."""
    on_gpu = any(isinstance(value, torch.Tensor) and value.is_cuda for value in values)
    return on_gpu and torch.cuda.is_current_stream_capturing()


# Threads -----------------------------------------------------------------------------------------------------------

_local = threading.local()
_first = 0
_free = collections.deque(range(MOST_THREADS))
_turns = itertools.count()


def thread_number() -> int:
    """Return the number of this thread: its own among MOST_THREADS living ones, else one that it shares."""
    number: int | None = getattr(_local, "number", None)
    if number is None:
        number = _local.number = _take_number()
    return number


def _take_number() -> int:
    try:
        number = _free.popleft()  # a deque needs no lock, which another thread might hold while this process is forked
    except IndexError:
        return _first + next(_turns) % MOST_THREADS
    weakref.finalize(threading.current_thread(), _free.appendleft, number).atexit = False
    return number


def _renumber() -> None:
    """Give the threads of a forked process numbers that nothing made before the fork knows."""
    global _local, _first, _free
    _first += MOST_THREADS
    _local, _free = threading.local(), collections.deque(range(_first, _first + MOST_THREADS))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renumber)
