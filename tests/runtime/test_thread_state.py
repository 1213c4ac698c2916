"""Slots: few numbers for any number of threads, one thread each while they suffice."""

from __future__ import annotations

import gc
import threading

from torchtrt_bridge.runtime.thread_state import SLOTS, current_slot


def slots_of_threads(count: int) -> list[int]:
    """The slots of threads that all live at once."""
    barrier = threading.Barrier(count)
    found: list[int] = []

    def take() -> None:
        found.append(current_slot())
        barrier.wait(30)

    threads = [threading.Thread(target=take) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_a_thread_keeps_its_slot() -> None:
    assert current_slot() == current_slot()


def test_threads_have_slots_of_their_own() -> None:
    current_slot()
    found = slots_of_threads(SLOTS - 1)
    assert len({current_slot(), *found}) == SLOTS


def test_more_threads_share() -> None:
    found = slots_of_threads(3 * SLOTS)
    assert set(found) <= set(range(SLOTS))


def test_slots_of_dead_threads_are_given_again() -> None:
    slots_of_threads(SLOTS - 1)
    gc.collect()
    assert len(set(slots_of_threads(SLOTS - 1))) == SLOTS - 1
