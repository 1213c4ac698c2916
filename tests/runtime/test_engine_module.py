"""The engine as a module: an engine is trusted only once it has been right, and PyTorch computes all other calls."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx

from tests.runtime.fakes import (
    SPEC,
    WRONG,
    Compute,
    FakeRunner,
    assert_right,
    clock,
    in_pytorch,
    module_of,
    raising,
    right,
    slow,
    static_inputs,
    wrong,
    x_of,
)
from torchtrt_bridge.errors import EngineLoadError, ShapeRangeError
from torchtrt_bridge.graph.shapes import TensorSpec
from torchtrt_bridge.options import Options
from torchtrt_bridge.report.model import EngineEntry
from torchtrt_bridge.runtime import EngineModule
from torchtrt_bridge.runtime.engine_module import MOST_ACCEPTED, EngineInputs


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchtrt_bridge.runtime.trial.time", clock)


def test_a_right_engine_serves_after_its_check() -> None:
    runner = FakeRunner()
    module = module_of(runner)
    assert module.state == "untried"
    assert_right(module, x_of())
    assert module.state == "serving"
    assert_right(module, x_of())
    assert_right(module, x_of(3))
    assert (runner.count, in_pytorch(module)) == (3, 1)
    assert module.entry.is_ready
    assert module.entry.error == 0.0


@pytest.mark.parametrize("name", WRONG)
def test_pytorch_serves_instead_of_a_wrong_engine(name: str, caplog: pytest.LogCaptureFixture) -> None:
    first, words = WRONG[name]
    runner = FakeRunner(first)
    module = module_of(runner)
    assert_right(module, x_of())
    assert_right(module, x_of())
    assert runner.count == 1, "an engine that was caught is not asked again"
    assert words in module.entry.state
    assert words in caplog.text
    assert module.state == "failed"


@pytest.mark.parametrize("name", WRONG)
def test_fallback_error_raises_instead(name: str) -> None:
    first, words = WRONG[name]
    module = module_of(FakeRunner(first), fallback="error")
    with pytest.raises(EngineLoadError, match=f"trt_0 is not trusted: .*{words}.*fallback='pytorch'"):
        module(x_of())
    assert words in module.entry.state


def test_without_a_trial_the_engine_is_trusted() -> None:
    runner = FakeRunner(wrong)
    module = module_of(runner, trial="off")
    torch.testing.assert_close(module(x := x_of())[0], wrong(x))
    assert in_pytorch(module) == 0
    assert module.entry.error is None


def test_a_slow_engine_is_replaced_by_pytorch() -> None:
    runner = FakeRunner(slow(right), slow(right))
    module = module_of(runner, engine="auto")
    assert_right(module, x_of())
    asked = runner.count
    assert_right(module, x_of())
    assert runner.count == asked
    assert module.entry.choice == "PyTorch"
    assert module.entry.is_ready
    assert not module.entry.serves
    assert module.entry.milliseconds == pytest.approx({"engine": 20, "PyTorch": 0})


def test_a_fast_engine_replaces_pytorch() -> None:
    module = module_of(FakeRunner(), engine="auto")
    module.pytorch.delay = 0.02  # type: ignore[assignment]
    assert_right(module, x_of())
    calls = in_pytorch(module)
    assert_right(module, x_of())
    assert in_pytorch(module) == calls
    assert module.entry.serves
    assert module.entry.milliseconds == pytest.approx({"engine": 0, "PyTorch": 20})


def test_the_check_alone_times_nothing() -> None:
    module = module_of(FakeRunner(), engine="auto", trial="check")
    assert_right(module, x_of())
    assert module.entry.milliseconds == {}
    assert in_pytorch(module) == 1


@pytest.mark.parametrize(("wanted", "tuned"), [("compete", False), ("max-autotune", True)])
def test_inductor_takes_part_when_it_may(wanted: str, tuned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def compiler(module: Any, inputs: Any, tuned: bool) -> Any:
        asked.append(tuned)
        return lambda x: (right(x),)

    monkeypatch.setattr("torchtrt_bridge.runtime.inductor.compiled_by_inductor", compiler)
    module = module_of(FakeRunner(slow(right), slow(right)), engine="auto", inductor=wanted)
    module.inputs = static_inputs()
    module.pytorch.delay = 0.02  # type: ignore[assignment]
    assert_right(module, x_of())
    assert set(module.entry.milliseconds) == {"engine", "PyTorch", "inductor"}
    assert module.entry.choice == "inductor"
    assert asked == [tuned]
    assert_right(module, x_of())


def test_what_inductor_compiled_is_freed_where_it_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = static_module(monkeypatch, FakeRunner(), engine="auto", inductor="compete")
    module.pytorch.delay = 0.02  # type: ignore[assignment]
    compiled = []

    def compiler(*_: Any) -> Any:
        def run(x: torch.Tensor) -> Any:
            return (slow(right)(x),)

        compiled.append(weakref.ref(run))
        return run

    monkeypatch.setattr("torchtrt_bridge.runtime.inductor.compiled_by_inductor", compiler)
    assert_right(module, x_of())
    assert set(module.entry.milliseconds) == {"engine", "PyTorch", "inductor"}
    assert module.entry.serves
    assert [run() for run in compiled] == [None]


@pytest.mark.parametrize(
    ("compiled", "words"), [(wrong, "its relative L2 distance"), (lambda x: x[:, 0, 0, 0], "IndexError")]
)
def test_an_inductor_that_is_wrong_never_serves(
    compiled: Any, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However fast it is; the engine stays."""
    module = static_module(monkeypatch, FakeRunner(), engine="auto", inductor="compete")
    monkeypatch.setattr("torchtrt_bridge.runtime.inductor.compiled_by_inductor", lambda *_: lambda x: (compiled(x),))
    module.pytorch.delay = 0.02  # type: ignore[assignment]
    for _ in range(2):
        assert_right(module, x_of())
    assert module.entry.choice == "engine"
    assert f"not compiled by inductor, which failed: {words}" in caplog.text


def test_a_wrong_inductor_leaves_a_failed_engine_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = static_module(monkeypatch, FakeRunner(wrong), inductor="fallback")
    monkeypatch.setattr("torchtrt_bridge.runtime.inductor.compiled_by_inductor", lambda *_: lambda x: (wrong(x),))
    for _ in range(3):
        assert_right(module, x_of())
    assert caplog.text.count("not compiled by inductor, which failed: its relative L2 distance") == 1


def test_fallback_error_raises_at_every_call() -> None:
    module = module_of(FakeRunner(wrong), fallback="error")
    with pytest.raises(EngineLoadError):
        module(x_of())
    with pytest.raises(EngineLoadError):
        module(x_of())


def test_an_engine_that_fails_later_is_given_up() -> None:
    runner = FakeRunner()
    module = module_of(runner)
    assert_right(module, x_of())
    runner.calls = raising
    assert_right(module, x_of())
    assert "illegal memory access" in module.entry.state
    assert_right(module, x_of())
    assert runner.count == 2


def test_the_error_is_reported() -> None:
    module = module_of(FakeRunner(lambda x: right(x) * (1 + 1e-5)))
    module(x_of())
    assert module.entry.error == pytest.approx(1e-5, rel=0.1)
    assert module.entry.is_ready


def test_without_an_engine_pytorch_serves() -> None:
    module = module_of(None)
    assert_right(module, x_of())
    assert in_pytorch(module) == 1


# Inputs ------------------------------------------------------------------------------------------------------------

OUTSIDE: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "batch above": (lambda: x_of(5), r"float32\[5, 3\]"),
    "batch below": (lambda: x_of(0), r"float32\[0, 3\]"),
    "another width": (lambda: torch.randn(2, 4), r"float32\[2, 4\]"),
    "another rank": (lambda: torch.randn(2, 3, 1), r"float32\[2, 3, 1\]"),
    "another dtype": (lambda: x_of().double(), r"float64\[2, 3\]"),
}


@pytest.mark.parametrize("is_checked", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_inputs_outside_the_ranges_run_in_pytorch(
    name: str, is_checked: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make, _ = OUTSIDE[name]
    runner = FakeRunner()
    module = module_of(runner)
    if is_checked:
        module(x_of())
    before = runner.count
    x = make()
    torch.testing.assert_close(module(x)[0], right(x))
    assert runner.count == before
    assert module.entry.is_ready, "the engine serves the calls that it is for"
    assert "the engine serves float32[1..4, 3]" in caplog.text
    assert_right(module, x_of())
    assert runner.count == before + 1


@pytest.mark.parametrize("name", OUTSIDE)
def test_inputs_outside_the_ranges_raise_with_fallback_error(name: str) -> None:
    make, words = OUTSIDE[name]
    module = module_of(FakeRunner(), fallback="error")
    with pytest.raises(ShapeRangeError, match=words + r".*the engine serves float32\[1\.\.4, 3\]"):
        module(make())


def test_few_shapes_are_remembered() -> None:
    """A server meets any number of sizes."""
    spec = TensorSpec("x", torch.float32, ((1, 500), (3, 3)), (2, 3), ("s0", 3))
    module = module_of(FakeRunner())
    module.inputs = EngineInputs([spec])
    for batch in range(1, 3 * MOST_ACCEPTED):
        assert_right(module, x_of(batch))
        assert len(module.inputs.accepted) <= MOST_ACCEPTED


def test_inputs_on_another_device_run_in_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner(device="cuda")
    module = module_of(runner)
    assert_right(module, x_of())
    assert runner.count == 0
    assert "is on cpu, the engine runs on cuda" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_give_nan_are_no_check(value: float) -> None:
    """NaN out: even a wrong engine would seem right."""
    runner = FakeRunner(wrong)
    module = module_of(runner)
    first = x_of()
    first[0] = value
    torch.testing.assert_close(module(first)[0], right(first), equal_nan=True)
    assert runner.count == 0
    assert module.entry.is_ready
    assert_right(module, x_of())
    assert runner.count == 1
    assert not module.entry.is_ready


# Threads -----------------------------------------------------------------------------------------------------------


class SlowRunner(FakeRunner):
    """Its first call lasts, so that other threads arrive during it; it tells whether two ran at once."""

    def __init__(self, first: Compute) -> None:
        super().__init__(first)
        self.in_trial = False
        self.served_early = 0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.served_early += self.in_trial
        self.in_trial = self.count == 0
        if self.in_trial:
            time.sleep(0.2)
        self.in_trial = False
        return super().__call__(inputs)


def called_from_threads(module: EngineModule, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The result of one call per thread, all begun at once."""
    barrier = threading.Barrier(len(inputs))
    results: list[Any] = [None] * len(inputs)

    def call(index: int) -> None:
        barrier.wait(30)
        results[index] = module(inputs[index])[0]

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize(("first", "calls"), [(right, 8), (wrong, 1)], ids=["right", "wrong"])
def test_the_first_call_of_eight_threads_is_checked_once(first: Compute, calls: int) -> None:
    runner = SlowRunner(first)
    module = module_of(runner)
    inputs = [x_of() for _ in range(8)]
    results = called_from_threads(module, inputs)
    torch.testing.assert_close(results, [right(x) for x in inputs])
    assert (runner.count, runner.served_early) == (calls, 0)
    assert in_pytorch(module) == (1 if calls == 8 else 8)
    assert module.entry.is_ready is (calls == 8)


def test_a_subgraph_is_what_serves(caplog: pytest.LogCaptureFixture) -> None:
    """As the pipeline makes it: the subgraph is a graph module."""
    graph = fx.symbolic_trace(lambda x: (right(x),))
    entry = EngineEntry("trt_0", {}, [], [], {"float32": 1})
    module = EngineModule(graph, [SPEC], FakeRunner(wrong), [torch.float32], entry, Options(engine="reference"))
    assert_right(module, x_of())
    assert "PyTorch runs this subgraph from now on" in caplog.text


# Inductor ----------------------------------------------------------------------------------------------------------


def broken_inductor(*_: Any) -> Any:
    raise NotImplementedError("planted")


def static_module(monkeypatch: pytest.MonkeyPatch, runner: Any, **options: Any) -> EngineModule:
    monkeypatch.setattr("torchtrt_bridge.runtime.inductor.compiled_by_inductor", broken_inductor)
    module = module_of(runner, **options)
    module.inputs = static_inputs()
    return module


def test_an_inductor_that_fails_is_no_contender(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = static_module(monkeypatch, FakeRunner(), engine="auto", inductor="compete")
    module.pytorch.delay = 0.02  # type: ignore[assignment]
    assert_right(module, x_of())
    assert module.entry.serves
    assert set(module.entry.milliseconds) == {"engine", "PyTorch"}
    assert "not compiled by inductor" in caplog.text


def test_an_inductor_that_fails_leaves_a_failed_engine_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = static_module(monkeypatch, FakeRunner(wrong), inductor="fallback")
    assert_right(module, x_of())
    assert_right(module, x_of())
    assert_right(module, x_of())
    assert caplog.text.count("not compiled by inductor") == 1
