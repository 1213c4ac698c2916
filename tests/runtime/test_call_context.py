"""Numbers of threads: few for any number of threads, one for each while they suffice, and new ones after a fork."""

from __future__ import annotations

import gc
import threading

import pytest

from tests.runtime.forks import in_child, with_fork
from torchtrt_bridge.runtime.call_context import MOST_THREADS, thread_number


def numbers_of_threads(count: int) -> list[int]:
    """The numbers of threads that all live at once."""
    barrier = threading.Barrier(count)
    found: list[int] = []

    def take() -> None:
        found.append(thread_number())
        barrier.wait(30)

    threads = [threading.Thread(target=take) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_a_thread_keeps_its_number() -> None:
    assert thread_number() == thread_number()


def test_threads_have_numbers_of_their_own() -> None:
    thread_number()
    found = numbers_of_threads(MOST_THREADS - 1)
    assert len({thread_number(), *found}) == MOST_THREADS


def test_more_threads_share() -> None:
    found = numbers_of_threads(3 * MOST_THREADS)
    assert set(found) <= set(range(MOST_THREADS))


def test_numbers_of_dead_threads_are_given_again() -> None:
    numbers_of_threads(MOST_THREADS - 1)
    gc.collect()
    assert len(set(numbers_of_threads(MOST_THREADS - 1))) == MOST_THREADS - 1


@with_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_numbers_of_its_own() -> None:
    own = {thread_number(), *numbers_of_threads(MOST_THREADS - 1)}
    found = in_child(lambda: [thread_number(), *numbers_of_threads(3 * MOST_THREADS)])
    assert not own & set(found)
    assert len(set(found)) == MOST_THREADS
