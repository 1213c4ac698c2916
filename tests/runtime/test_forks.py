"""Forked processes and workers of a DataLoader: what the parent compiled raises there, and no call hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from tests.runtime.forks import SECONDS, in_child, with_fork

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """In the parent too: Dynamo compiles anew where the number of threads is another than when it compiled."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def error_of(fast: Any, model: Any, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((fast(x) - model(x)).abs().max())


def assert_says_what_to_do(answer: Any) -> None:
    assert str(answer).startswith("EngineLoadError: ")
    for words in (f"compiled in process {os.getpid()}", "was forked", "'spawn'", "compile or load the model within it"):
        assert words in answer


@with_fork
@pytest.mark.usefixtures("_one_thread")
def test_a_model_that_was_compiled_before() -> None:
    model, x = trained(ConvNet()), image()
    fast = trtb.compile(model, engine="reference")
    assert error_of(fast, model, x) < 1e-5
    assert_says_what_to_do(in_child(lambda: error_of(fast, model, x)))
    assert error_of(fast, model, x) < 1e-5


@with_fork
def test_a_model_that_is_compiled_in_the_child() -> None:
    model, x = trained(ConvNet()), image()
    fast = trtb.compile(model, engine="reference")
    error, is_whole = in_child(lambda: (error_of(fast, model, x), trtb.report(fast).is_whole))
    assert error < 1e-5
    assert is_whole


@with_fork
@pytest.mark.parametrize("transform", [lambda call: call, torch.func.vmap], ids=["plain", "vmap"])
def test_a_program(transform: Any) -> None:
    model, x = trained(ConvNet()), image()
    program = trtb.export(model, x, engine="reference")
    assert_says_what_to_do(
        in_child(lambda: transform(program)(torch.stack([x]) if transform is torch.func.vmap else x))
    )


class Held:
    """Locks, all held by another thread."""

    def __init__(self, *locks: Any) -> None:
        self.locks = locks
        self.are_held, self.may_go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._hold, daemon=True)

    def _hold(self) -> None:
        for lock in self.locks:
            lock.acquire()
        self.are_held.set()
        self.may_go.wait(2 * SECONDS)
        for lock in self.locks:
            lock.release()

    def __enter__(self) -> None:
        self.thread.start()
        assert self.are_held.wait(SECONDS)

    def __exit__(self, *_: object) -> None:
        self.may_go.set()
        self.thread.join()


@with_fork
@pytest.mark.usefixtures("_one_thread")
def test_locks_that_another_thread_holds_are_not_waited_for() -> None:
    model, x = trained(ConvNet()), image()
    fast = trtb.compile(model, engine="reference", release_weights=True)
    error_of(fast, model, x)
    (graph,) = fast._torchtrt_bridge_backend.graphs
    run = graph.compiled.run
    (engine,) = run.engines
    with Held(run.thread_state.lock, engine._lock, engine.weights._lock, engine._inductor._lock):
        assert_says_what_to_do(in_child(lambda: error_of(fast, model, x)))


class Scored(Dataset[torch.Tensor]):
    """Images as a compiled model scores them, in whichever process asks."""

    def __init__(self, fast: Any, images: torch.Tensor) -> None:
        self.fast = fast
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            scores: torch.Tensor = self.fast(self.images[index : index + 1])[0]
        return scores


def scores_of(start: str, called_before: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores from the worker of a DataLoader, and those of the model itself."""
    model, images = trained(ConvNet()), image(4)
    fast = trtb.compile(model, engine="reference")
    if called_before:
        error_of(fast, model, images[:1])
    loader = DataLoader(Scored(fast, images), 2, num_workers=1, multiprocessing_context=start, timeout=SECONDS)
    with torch.no_grad():
        return torch.cat(list(loader)), model(images)


@pytest.mark.parametrize(
    ("start", "called_before"),
    [pytest.param("fork", False, marks=with_fork), pytest.param("spawn", True, marks=pytest.mark.full)],
)
def test_in_the_worker_of_a_data_loader(start: str, called_before: bool) -> None:
    scores, expected = scores_of(start, called_before)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@with_fork
@pytest.mark.usefixtures("_one_thread")
def test_a_forked_worker_raises_what_is_wrong() -> None:
    with pytest.raises(trtb.EngineLoadError, match="multiprocessing_context='spawn'"):
        scores_of("fork", called_before=True)
