"""The engine as a module: it trusts an engine only once it has been right, and PyTorch serves whatever it is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx

from torchtrt_bridge.compile_report import EngineEntry
from torchtrt_bridge.errors import EngineLoadError, ShapeRangeError
from torchtrt_bridge.options import Options
from torchtrt_bridge.runtime import EngineModule
from torchtrt_bridge.shapes import TensorSpec

SPEC = TensorSpec("x", torch.float32, ((1, 4), (3, 3)), (2, 3), ("s0", 3))
Compute = Callable[[torch.Tensor], torch.Tensor]


def right(x: torch.Tensor) -> torch.Tensor:
    return x.sin() * 2


def wrong(x: torch.Tensor) -> torch.Tensor:
    return x.sin() * 3


def nan(x: torch.Tensor) -> torch.Tensor:
    return right(x) * float("nan")


def of_other_shape(x: torch.Tensor) -> torch.Tensor:
    return right(x)[:, :2]


def raising(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("CUDA error: an illegal memory access")


class FakeRunner:
    """Computes `calls`; in rehearsal, one result of each of `rehearsals`."""

    device = torch.device("cpu")

    def __init__(self, *rehearsals: Compute, calls: Compute = right, device: str = "cpu") -> None:
        self.rehearsals = rehearsals or (right,)
        self.calls = calls
        self.device = torch.device(device)
        self.count = 0
        self.rehearsed = 0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.count += 1
        return [self.calls(inputs[0])]

    def rehearse(self, inputs: Sequence[torch.Tensor]) -> list[Sequence[torch.Tensor]]:
        self.rehearsed += 1
        return [[run(inputs[0])] for run in self.rehearsals]


class InPyTorch(torch.nn.Module):
    """The subgraph itself; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        self.count += 1
        return (right(x),)


def module_of(runner: Any, **options: Any) -> EngineModule:
    entry = EngineEntry("trt_0", {"aten.sin.default": 1}, [], [], {"float32": 1})
    pytorch: Any = InPyTorch()
    return EngineModule(pytorch, [SPEC], runner, entry, Options(engine="reference", **options))


def in_pytorch(module: EngineModule) -> int:
    return int(module.pytorch.count)


def x_of(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3)


def assert_right(module: EngineModule, x: torch.Tensor) -> None:
    torch.testing.assert_close(module(x)[0], right(x), rtol=0, atol=0)


def test_a_right_engine_serves_after_its_check() -> None:
    runner = FakeRunner()
    module = module_of(runner)
    assert_right(module, x_of())
    assert_right(module, x_of())
    assert_right(module, x_of(3))
    assert (runner.rehearsed, runner.count, in_pytorch(module)) == (1, 2, 1)
    assert module.entry.is_ready
    assert module.entry.error == 0.0


WRONG: dict[str, tuple[tuple[Compute, ...], str]] = {
    "wrong": ((wrong,), "relative L2 distance"),
    "wrong in a later run": ((right, right, wrong), "relative L2 distance"),
    "wrong in the first run": ((wrong, right), "relative L2 distance"),
    "nan": ((nan,), "not finite"),
    "nan in a later run": ((right, nan), "not finite"),
    "of another shape": ((of_other_shape,), "PyTorch gives"),
    "raising": ((raising,), "failed at run time: CUDA error"),
    "raising in a later run": ((right, raising), "failed at run time: CUDA error"),
}


@pytest.mark.parametrize("name", WRONG)
def test_pytorch_serves_instead_of_a_wrong_engine(name: str, caplog: pytest.LogCaptureFixture) -> None:
    rehearsals, words = WRONG[name]
    runner = FakeRunner(*rehearsals, calls=wrong)
    module = module_of(runner)
    assert_right(module, x_of())
    assert_right(module, x_of())
    assert runner.count == 0, "an engine that was caught is not asked again"
    assert runner.rehearsed == 1
    assert words in module.entry.state
    assert words in caplog.text


@pytest.mark.parametrize("name", WRONG)
def test_fallback_error_raises_instead(name: str) -> None:
    rehearsals, words = WRONG[name]
    module = module_of(FakeRunner(*rehearsals), fallback="error")
    with pytest.raises(EngineLoadError, match=f"trt_0 is not trusted: .*{words}.*fallback='pytorch'"):
        module(x_of())
    assert words in module.entry.state


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
    assert runner.count == 1


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
    before = runner.count, runner.rehearsed
    x = make()
    torch.testing.assert_close(module(x)[0], right(x))
    assert (runner.count, runner.rehearsed) == before
    assert module.entry.is_ready, "the engine serves the calls that it is for"
    assert "the engine serves float32[1..4, 3]" in caplog.text
    assert_right(module, x_of())
    assert (runner.count, runner.rehearsed) == ((1, 1) if is_checked else (0, 1))


@pytest.mark.parametrize("name", OUTSIDE)
def test_inputs_outside_the_ranges_raise_with_fallback_error(name: str) -> None:
    make, words = OUTSIDE[name]
    module = module_of(FakeRunner(), fallback="error")
    with pytest.raises(ShapeRangeError, match=words + r".*the engine serves float32\[1\.\.4, 3\]"):
        module(make())


def test_inputs_on_another_device_run_in_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    runner = FakeRunner(device="cuda")
    module = module_of(runner)
    assert_right(module, x_of())
    assert runner.rehearsed == 0
    assert "is on cpu, the engine runs on cuda" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_no_check(value: float) -> None:
    """NaN in, NaN out: even a wrong engine would seem right."""
    runner = FakeRunner(wrong)
    module = module_of(runner)
    first = x_of()
    first[0] = value
    torch.testing.assert_close(module(first)[0], right(first), equal_nan=True)
    assert runner.rehearsed == 0
    assert module.entry.is_ready
    assert_right(module, x_of())
    assert runner.rehearsed == 1
    assert not module.entry.is_ready


# Threads -----------------------------------------------------------------------------------------------------------


class SlowRunner(FakeRunner):
    """Its rehearsal lasts, so that other threads arrive during it; it tells whether two ran at once."""

    def __init__(self, *rehearsals: Compute, calls: Compute = right) -> None:
        super().__init__(*rehearsals, calls=calls)
        self.rehearsing = 0
        self.most = 0
        self.served_early = 0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.served_early += self.rehearsing > 0
        return super().__call__(inputs)

    def rehearse(self, inputs: Sequence[torch.Tensor]) -> list[Sequence[torch.Tensor]]:
        self.rehearsing += 1
        self.most = max(self.most, self.rehearsing)
        threading.Event().wait(0.2)
        self.rehearsing -= 1
        return super().rehearse(inputs)


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


@pytest.mark.parametrize(("rehearsal", "served"), [(right, 7), (wrong, 0)], ids=["right", "wrong"])
def test_the_first_call_of_eight_threads_is_checked_once(rehearsal: Compute, served: int) -> None:
    runner = SlowRunner(rehearsal)
    module = module_of(runner)
    inputs = [x_of() for _ in range(8)]
    results = called_from_threads(module, inputs)
    torch.testing.assert_close(results, [right(x) for x in inputs])
    assert (runner.rehearsed, runner.most, runner.served_early) == (1, 1, 0)
    assert runner.count == served
    assert module.entry.is_ready is (served > 0)


def test_a_subgraph_is_what_serves(caplog: pytest.LogCaptureFixture) -> None:
    """As the pipeline makes it: the subgraph is a graph module."""
    graph = fx.symbolic_trace(lambda x: (right(x),))
    entry = EngineEntry("trt_0", {}, [], [], {"float32": 1})
    module = EngineModule(graph, [SPEC], FakeRunner(wrong), entry, Options(engine="reference"))
    assert_right(module, x_of())
    assert "PyTorch runs this subgraph from now on" in caplog.text
