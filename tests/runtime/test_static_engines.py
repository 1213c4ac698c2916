"""Engines for sizes that come often: built in the background, tried like any engine, and left where they do not win."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.runtime.fakes import FakeRunner, assert_right, clock, module_of, raising, right, slow, static_inputs, x_of
from torchtrt_bridge.entry.torch_compile import backend_of
from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.runtime import EngineModule, Execution
from torchtrt_bridge.runtime import static_engines as module_under_test
from torchtrt_bridge.runtime.static_engines import CALLS_BEFORE_BUILD, FrequentSizes, StaticEngines
from torchtrt_bridge.runtime.trial import ENGINE, ENGINE_FOR_ALL_SIZES, PYTORCH

# In a trial: the engine for all sizes, PyTorch, and an engine for these sizes.
SLOW, SLOWER, FAST = 0.02, 0.03, 0.01


@pytest.fixture
def own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchtrt_bridge.runtime.trial.time", clock)


def for_two_rows(runner: Any) -> EngineModule:
    """Return the module of an engine for inputs of two rows, where PyTorch takes long."""
    module = module_of(runner, engine="auto", trial="check+time")
    module.pytorch.delay = SLOWER
    module.inputs = static_inputs()
    module.name = module.entry.name = "trt_0 for 2x3"
    return module


def beside(static: EngineModule) -> EngineModule:
    """Return an engine for all sizes, tried already, with one for two rows beside it."""
    dynamic = module_of(FakeRunner(slow(right, SLOW), slow(right, SLOW)), engine="auto", trial="check+time")
    dynamic.pytorch.delay = SLOWER
    dynamic(x_of())
    assert dynamic.has_won
    dynamic.static_engines = StaticEngines(lambda inputs: static)
    dynamic.static_engines.add(static, dynamic)
    return dynamic


@pytest.mark.usefixtures("own_clock")
class TestTrial:
    def test_a_faster_engine_computes_calls_of_its_sizes(self) -> None:
        runner = FakeRunner(slow(right, FAST), slow(right, FAST))
        static = for_two_rows(runner)
        dynamic = beside(static)
        assert_right(dynamic, x_of(2))
        assert static.choice == ENGINE
        assert static.entry.milliseconds == pytest.approx({ENGINE: 10, PYTORCH: 30, ENGINE_FOR_ALL_SIZES: 20})
        calls = dynamic.runner.count, runner.count  # type: ignore[union-attr]
        assert_right(dynamic, x_of(2))
        assert (dynamic.runner.count, runner.count) == (calls[0], calls[1] + 1)  # type: ignore[union-attr]
        assert_right(dynamic, x_of(3))
        assert (dynamic.runner.count, runner.count) == (calls[0] + 1, calls[1] + 1)  # type: ignore[union-attr]

    def test_a_slower_one_leaves_them_to_the_engine_for_all_sizes(self) -> None:
        static = for_two_rows(FakeRunner(slow(right, SLOWER), slow(right, SLOWER)))
        dynamic = beside(static)
        assert_right(dynamic, x_of(2))
        assert static.choice == ENGINE_FOR_ALL_SIZES
        assert static.runner is None  # its memory is free
        calls = dynamic.runner.count  # type: ignore[union-attr]
        assert_right(dynamic, x_of(2))
        assert dynamic.runner.count == calls + 1  # type: ignore[union-attr]
        assert dynamic.static_engines.runners == []  # type: ignore[union-attr]

    @pytest.mark.parametrize("first", [lambda x: right(x) + 1, raising], ids=["wrong", "raising"])
    def test_a_wrong_one_is_not_used(self, first: Callable[[Any], Any], caplog: pytest.LogCaptureFixture) -> None:
        static = for_two_rows(FakeRunner(first))
        dynamic = beside(static)
        generation = dynamic.generation.count
        assert_right(dynamic, x_of(2))
        assert static.state == "failed"
        assert "what runs other sizes runs this one from now on" in caplog.text
        assert dynamic.has_won
        assert dynamic.generation.count == generation + 1
        calls = dynamic.runner.count  # type: ignore[union-attr]
        assert_right(dynamic, x_of(2))
        assert dynamic.runner.count == calls + 1  # type: ignore[union-attr]

    def test_one_that_fails_later_leaves_calls_to_the_engine_for_all_sizes(self) -> None:
        runner = FakeRunner(slow(right, FAST), slow(right, FAST))
        static = for_two_rows(runner)
        dynamic = beside(static)
        dynamic(x_of(2))
        runner.calls = raising
        for _ in range(2):
            assert_right(dynamic, x_of(2))
        assert static.state == "failed"
        assert dynamic.has_won

    def test_it_takes_part_where_pytorch_had_won(self) -> None:
        static = for_two_rows(FakeRunner(slow(right, FAST), slow(right, FAST)))
        dynamic = module_of(FakeRunner(slow(right, SLOW), slow(right, SLOW)), engine="auto", trial="check+time")
        dynamic.pytorch.delay = FAST
        dynamic(x_of())
        assert dynamic.choice == PYTORCH
        dynamic.static_engines = StaticEngines(lambda inputs: static)
        dynamic.static_engines.add(static, dynamic)
        assert_right(dynamic, x_of(2))
        assert static.choice == ENGINE
        assert list(static.entry.milliseconds) == [ENGINE, PYTORCH]
        assert_right(dynamic, x_of(3))

    def test_a_dropped_engine_takes_those_beside_it_along(self) -> None:
        dynamic = beside(for_two_rows(FakeRunner()))
        dynamic.drop("a test")
        assert dynamic.static_engines is None
        assert_right(dynamic, x_of(2))


class Net(nn.Module):
    """A network with sizes in it that the engine for one size knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.inner(x + torch.arange(x.shape[1], dtype=x.dtype)[:, None]).relu()
        return hidden.reshape(x.shape[0], -1).softmax(-1)


def compiled(model: nn.Module, **options: Any) -> Any:
    return trtb.compile(model, **{"dynamic": True, "engine": "reference", "static_engines": 2, **options})


def execution(fast: Any) -> Execution:
    backend = backend_of(fast)
    assert backend is not None
    (graph,) = backend.graphs
    assert graph.compiled is not None
    return graph.compiled.run


def frequent(fast: Any) -> FrequentSizes:
    found = execution(fast).frequent_sizes
    assert found is not None
    return found


def call_often(fast: Any, model: nn.Module, sizes: tuple[int, int], times: int = CALLS_BEFORE_BUILD) -> None:
    for _ in range(times):
        x = torch.randn(*sizes, 8)
        torch.testing.assert_close(fast(x), model(x))
    frequent(fast).wait()


def names(fast: Any) -> list[str]:
    return [static.name for entry in trtb.report(fast).engines for static in entry.static_engines]


@pytest.fixture
def model() -> nn.Module:
    return Net().eval().requires_grad_(False)


def test_sizes_that_come_often_get_an_engine(model: nn.Module) -> None:
    fast = compiled(model)
    fast(torch.randn(3, 5, 8))
    call_often(fast, model, (3, 5), CALLS_BEFORE_BUILD - 1)
    assert names(fast) == []
    call_often(fast, model, (3, 5), 1)
    assert names(fast) == ["trt_0 for 3x5x8"]
    assert "trt_0 for 3x5x8 runs in what runs other sizes, until a call tries the engine" in str(trtb.report(fast))
    call_often(fast, model, (3, 5), 2)
    assert "trt_0 for 3x5x8 runs in engine" in str(trtb.report(fast))
    assert "Engines for sizes that came often" in trtb.report(fast)._repr_html_()
    call_often(fast, model, (2, 7), 2)
    assert trtb.report(fast).is_whole


def test_they_compute_the_calls(model: nn.Module) -> None:
    fast = compiled(model)
    call_often(fast, model, (3, 5), CALLS_BEFORE_BUILD + 2)
    (engine,) = execution(fast).engines
    with patch.object(NetworkInterpreter, "__call__", side_effect=AssertionError("an engine computed")):
        with pytest.raises(AssertionError, match="an engine computed"):
            fast(torch.randn(3, 5, 8))
        engine.runner = None  # the engine for all sizes is not asked
        with pytest.raises(AssertionError, match="an engine computed"):
            fast(torch.randn(3, 5, 8))


def test_only_so_many_sizes_get_one(model: nn.Module) -> None:
    fast = compiled(model, static_engines=1)
    for sizes in ((3, 5), (2, 4), (4, 6)):
        call_often(fast, model, sizes, CALLS_BEFORE_BUILD + 1)
    assert names(fast) == ["trt_0 for 3x5x8"]
    twice = compiled(Net().eval().requires_grad_(False), static_engines=2)
    call_often(twice, twice._orig_mod, (3, 5), CALLS_BEFORE_BUILD + 1)
    call_often(twice, twice._orig_mod, (2, 4), CALLS_BEFORE_BUILD + 1)
    assert names(twice) == ["trt_0 for 3x5x8", "trt_0 for 2x4x8"]


@pytest.mark.parametrize("options", [{"static_engines": 0}, {"dynamic": False}, {"release_weights": True}], ids=str)
def test_none_are_wanted(model: nn.Module, options: dict[str, Any]) -> None:
    fast = compiled(model, **options)
    fast(torch.randn(3, 5, 8))
    assert execution(fast).frequent_sizes is None


def test_a_failed_build_changes_nothing(model: nn.Module) -> None:
    fast = compiled(model)
    fast(torch.randn(3, 5, 8))
    with patch("torchtrt_bridge.pipeline.with_static_sizes", side_effect=RuntimeError("no such size")):
        call_often(fast, model, (3, 5), CALLS_BEFORE_BUILD)
    call_often(fast, model, (3, 5), 2)
    assert names(fast) == []
    assert trtb.report(fast).is_whole


def test_new_weights_are_those_of_all_engines(model: nn.Module) -> None:
    fast = compiled(model)
    call_often(fast, model, (3, 5), CALLS_BEFORE_BUILD + 2)
    with torch.no_grad():
        model.inner.weight.mul_(2)  # type: ignore[operator, union-attr]
    call_often(fast, model, (3, 5), CALLS_BEFORE_BUILD + 3)
    assert names(fast) == ["trt_0 for 3x5x8"]


def test_inputs_that_are_changed_are_changed_once() -> None:
    def add_to(total: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        total += x
        return x.relu() * 2

    fast = compiled(add_to)  # type: ignore[arg-type]
    total = torch.zeros(3, 8)
    for _ in range(CALLS_BEFORE_BUILD + 4):
        fast(total, torch.ones(3, 8))
        for each in trtb.report(fast).engines:
            assert each.is_ready
    assert total.eq(CALLS_BEFORE_BUILD + 4).all()


def test_counts_are_bounded(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "MOST_COUNTED", 4)
    fast = compiled(model)
    for length in range(2, 12):
        fast(torch.randn(20, length, 8))
    assert len(frequent(fast)._calls) <= 4


def test_a_program_that_ends_does_not_wait_for_a_build() -> None:
    """A build asks after each step whether it may go on: not once the main thread has ended."""
    program = """
        import threading, time
        from torchtrt_bridge.engine.builder import _until_main_ends

        def build():
            while _until_main_ends(0.5):
                time.sleep(0.01)
            print("cancelled", flush=True)

        threading.Thread(target=build).start()
        print("ends", flush=True)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["ends", "cancelled"]
