"""An engine that is still being built: the first call waits for it, or PyTorch serves meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from tests.runtime.fakes import FakeRunner, assert_right, in_pytorch, module_of, x_of
from torchtrt_bridge.errors import BuildError
from torchtrt_bridge.runtime import EngineModule
from torchtrt_bridge.runtime.runners import NoEngine


@pytest.fixture
def pending() -> Future[Any]:
    return Future()


def called_aside(module: EngineModule) -> tuple[threading.Thread, list[torch.Tensor]]:
    """A call in a thread of its own, and where its result will be."""
    results: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: results.append(module(torch.ones(2, 3))[0]), daemon=True)
    thread.start()
    return thread, results


def test_the_first_call_waits_while_pytorch_warms_up(pending: Future[Any]) -> None:
    module = module_of(pending)
    thread, results = called_aside(module)
    thread.join(0.3)
    assert thread.is_alive()
    assert not module.is_settled
    assert in_pytorch(module) == 1
    runner = FakeRunner()
    pending.set_result(runner)
    thread.join(30)
    torch.testing.assert_close(results[0], torch.ones(2, 3).sin() * 2)
    assert (runner.count, in_pytorch(module)) == (1, 2)  # the trial's
    assert_right(module, x_of())
    assert (runner.count, in_pytorch(module)) == (2, 2)


def test_with_background_pytorch_serves_until_the_engine_is_there(pending: Future[Any]) -> None:
    module = module_of(pending, build="background")
    for count in (1, 2, 3):
        assert_right(module, x_of())
        assert in_pytorch(module) == count
    assert not module.is_settled
    runner = FakeRunner()
    pending.set_result(runner)
    assert_right(module, x_of())
    assert_right(module, x_of())
    assert module.is_settled
    assert (runner.count, in_pytorch(module)) == (2, 4)


def test_an_unseen_engine_is_waited_for_without_pytorch(pending: Future[Any]) -> None:
    module = module_of(pending, trial="off")
    thread, _ = called_aside(module)
    runner = FakeRunner()
    pending.set_result(runner)
    thread.join(30)
    assert (runner.count, in_pytorch(module)) == (1, 0)


@pytest.mark.parametrize("build", ["wait", "background"])
def test_a_failed_build_leaves_the_subgraph_to_pytorch(pending: Future[Any], build: str) -> None:
    module = module_of(pending, build=build)
    pending.set_result(NoEngine("it could not be built"))
    assert_right(module, x_of())
    assert module.is_settled
    assert (module.state, module.entry.state) == ("failed", "it could not be built")


def test_a_failed_build_is_raised_to_those_who_wait(pending: Future[Any]) -> None:
    module = module_of(pending, fallback="error")
    pending.set_exception(BuildError("TensorRT could not build the engine"))
    with pytest.raises(BuildError, match="could not build"):
        module.wait()


def test_many_threads_may_make_the_first_call(pending: Future[Any]) -> None:
    module = module_of(pending)
    calls = [called_aside(module) for _ in range(8)]
    runner = FakeRunner()
    pending.set_result(runner)
    for thread, _ in calls:
        thread.join(30)
    for _, results in calls:
        torch.testing.assert_close(results[0], torch.ones(2, 3).sin() * 2)
    assert runner.count == 8
