"""A small number for each living thread, so that what threads may not share exists a bounded number of times."""

from __future__ import annotations

import heapq
import threading
import weakref

from torchtrt_bridge.graph.fork_safety import in_each_child

# Execution contexts and CUDA graphs per engine at most; beyond that, threads take turns.
SLOTS = 8

_lock = threading.Lock()
_free = list(range(SLOTS))
_local = threading.local()
_shared = 0


def current_slot() -> int:
    """The slot of this thread: its own while there are no more than SLOTS threads, else one that it shares."""
    slot: int | None = getattr(_local, "slot", None)
    if slot is None:
        slot = _local.slot = _take()
    return slot


def _take() -> int:
    global _shared
    with _lock:
        if _free:
            slot = heapq.heappop(_free)
            weakref.finalize(threading.current_thread(), _give_back, slot).atexit = False
            return slot
        _shared += 1
        return _shared % SLOTS


def _give_back(slot: int) -> None:
    with _lock:
        heapq.heappush(_free, slot)


def _renew() -> None:
    """In a forked process: another thread may have held the lock."""
    global _lock
    _lock = threading.Lock()


in_each_child(_renew)
