"""Forked processes and workers of a DataLoader: what the parent compiled serves there too, and no call hangs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import torchtrt_bridge as trtb
from tests.models import ConvNet, image, trained
from tests.runtime.test_engine_module import FakeRunner, module_of, right, x_of
from torchtrt_bridge.runtime import thread_state as slots
from torchtrt_bridge.trt import probe

SECONDS = 60

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
with_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` gives in a forked process, which must end in time; an exception of its comes back as text."""
    context: Any = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()

    def work() -> None:
        torch.set_num_threads(1)  # the threads of OpenMP do not survive either; a DataLoader does the same
        try:
            answer = function()
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        theirs.send_bytes(pickle.dumps(answer))

    process = context.Process(target=work)
    process.start()
    try:
        assert mine.poll(SECONDS), "the child waits for something that no thread will do"
        return pickle.loads(mine.recv_bytes())
    finally:
        process.kill()
        process.join()


def difference(fast: Any, model: Any, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((fast(x) - model(x)).abs().max())


@with_fork
@pytest.mark.parametrize("called_before", [True, False])
def test_a_compiled_model(called_before: bool) -> None:
    model, x = trained(ConvNet()), image()
    fast = trtb.compile(model, engine="reference")
    if called_before:
        assert difference(fast, model, x) < 1e-5
    error, served = in_child(lambda: (difference(fast, model, x), trtb.report(fast).is_whole))
    assert error < 1e-5
    assert served
    assert difference(fast, model, x) < 1e-5


@with_fork
def test_a_program() -> None:
    model, x = trained(ConvNet()), image()
    program = trtb.export(model, x, engine="reference")
    assert in_child(lambda: difference(program, model, x)) < 1e-5


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
def test_locks_that_another_thread_held() -> None:
    model, x = trained(ConvNet()), image()
    fast = trtb.compile(model, engine="reference", release_weights=True)
    difference(fast, model, x)
    (graph,) = fast._torchtrt_bridge_backend.graphs
    run = graph.compiled.run
    (engine,) = run.engines

    def serve() -> float:
        with slots._lock, probe._lock, engine._lock, engine.weights._lock, engine._inductor._lock:
            return difference(fast, model, x)

    with Held(run.lane.lock, engine._lock, engine.weights._lock, engine._inductor._lock, slots._lock, probe._lock):
        assert in_child(serve) < 1e-5


@with_fork
@pytest.mark.parametrize("options", [{}, {"build": "background"}, {"fallback": "error"}], ids=str)
def test_an_engine_that_was_being_built(options: dict[str, Any]) -> None:
    """The thread that builds it is the parent's."""
    pending: Future[Any] = Future()
    module, x = module_of(pending, **options), x_of()

    def serve() -> Any:
        return [bool((module(x)[0] == right(x)).all()) for _ in range(2)], module.entry.state

    answer = in_child(serve)
    if "fallback" in options:
        assert answer.startswith("EngineLoadError: trt_0 is not trusted: it was being built")
    else:
        assert answer[0] == [True, True]
        assert "being built when this process was forked" in answer[1]
    pending.set_result(FakeRunner())
    torch.testing.assert_close(module(x)[0], right(x))
    assert module.entry.state == "ready", "the parent has its engine"


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


@pytest.mark.parametrize("start", [pytest.param("fork", marks=with_fork), "spawn"])
def test_in_the_worker_of_a_data_loader(start: str) -> None:
    model, images = trained(ConvNet()), image(4)
    fast = trtb.compile(model, engine="reference")
    difference(fast, model, images[:1])
    loader = DataLoader(Scored(fast, images), 2, num_workers=1, multiprocessing_context=start, timeout=SECONDS)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(list(loader)), model(images), rtol=1e-5, atol=1e-5)
