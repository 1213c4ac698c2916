"""Python numbers that `torch.compile(dynamic=True)` makes inputs: constants of the engines, checked in each call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

import torchtrt_bridge as trtb
from torchtrt_bridge.capture import dynamo
from torchtrt_bridge.entry import compiled_graph

Function = Callable[..., Any]


def last(x: torch.Tensor, keep: int) -> torch.Tensor:
    """Slice as `logits_to_keep` does in Hugging Face models."""
    return x.relu()[:, -keep:] * 2


def scaled(x: torch.Tensor, scale: float) -> torch.Tensor:
    return x.relu() * scale


def sized(x: torch.Tensor, count: int) -> torch.Tensor:
    """Return a size that derives from the number, and one that derives from the tensor."""
    return x.relu().new_ones(count * 2, x.shape[0]) @ x.sigmoid()


def returned(x: torch.Tensor, count: int) -> Any:
    return x.relu() * count, count + 1


def compiled(function: Function, fallback: str = "pytorch") -> Any:
    return trtb.compile(function, dynamic=True, engine="reference", fallback=fallback)


def engines(fast: Any) -> list[Any]:
    return trtb.report(fast).engines


def assert_same(fast: Any, function: Function, *args: Any) -> None:
    torch.testing.assert_close(fast(*args), function(*args))


X = torch.randn(4, 7)

functions = pytest.mark.parametrize(
    ("function", "number", "other"), [(last, 3, 2), (scaled, 1.5, 2.5), (sized, 3, 5), (returned, 3, 4)]
)


@functions
def test_a_number_is_a_constant_and_sizes_stay_dynamic(function: Function, number: float, other: float) -> None:
    fast = compiled(function, fallback="error")
    for x in (X, torch.randn(5, 9)):
        assert_same(fast, function, x, number)
    assert trtb.report(fast).is_whole
    (engine,) = engines(fast)
    assert len(engine.inputs) == 1
    assert ".." in engine.inputs[0]


@functions
def test_pytorch_runs_another_number_until_it_comes_twice(
    function: Function, number: float, other: float, caplog: pytest.LogCaptureFixture
) -> None:
    fast = compiled(function)
    assert_same(fast, function, X, number)
    built = engines(fast)
    assert_same(fast, function, X, other)
    assert "has changed since the engines were built" in caplog.text
    assert engines(fast)[0] is built[0]
    assert_same(fast, function, X, other)
    assert_same(fast, function, torch.randn(5, 9), other)
    (engine,) = engines(fast)
    assert engine is not built[0]
    assert engine.error is not None  # it has run


def test_the_message_names_the_number(caplog: pytest.LogCaptureFixture) -> None:
    fast = compiled(last)
    for keep in (3, 2, 5):
        fast(X, keep)
    (message,) = [record.message for record in caplog.records]
    assert "the value of L['keep'] has changed" in message


def test_alternating_numbers_build_nothing() -> None:
    fast = compiled(last)
    assert_same(fast, last, X, 3)
    built = engines(fast)
    for keep in (2, 3, 2, 3, 2):
        assert_same(fast, last, X, keep)
    assert engines(fast)[0] is built[0]


def test_fallback_error_builds_at_once() -> None:
    fast = compiled(last, fallback="error")
    assert_same(fast, last, X, 3)
    (first,) = engines(fast)
    assert_same(fast, last, X, 2)
    (second,) = engines(fast)
    assert first is not second
    assert second.error is not None


def divided(x: torch.Tensor, by: float) -> torch.Tensor:
    return x.relu() / by


def test_a_negative_zero_is_another_number() -> None:
    fast = compiled(divided)
    for number in (0.0, -0.0, -0.0, 0.0, -0.0):
        assert_same(fast, divided, X.abs() + 1, number)


def test_a_nan_is_the_same_number(caplog: pytest.LogCaptureFixture) -> None:
    fast = compiled(divided)
    for _ in range(3):
        assert fast(X, math.nan).isnan().all()
    assert "has changed" not in caplog.text
    assert trtb.report(fast).graphs == 1


def test_a_size_that_is_passed_as_a_number_is_not_a_constant() -> None:
    def model(x: torch.Tensor, length: int) -> torch.Tensor:
        return x.relu() + torch.arange(length)

    fast = compiled(model, fallback="error")
    assert_same(fast, model, X, 7)
    assert_same(fast, model, torch.randn(3, 9), 9)
    assert len(engines(fast)) == trtb.report(fast).graphs == 1


def test_a_size_of_a_tensor_whose_values_are_not_read() -> None:
    def model(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.relu() * like.shape[0]

    fast = compiled(model, fallback="error")
    assert_same(fast, model, X, torch.randn(5))
    assert_same(fast, model, X, torch.randn(6))


def test_arguments_that_nothing_reads_are_left_out() -> None:
    """Dynamo passes each float of a module, read or not, as a tensor on the CPU, wherever the model is."""
    graph = fx.Graph()
    x, _unread = graph.placeholder("x"), graph.placeholder("unread")
    graph.output((graph.call_function(torch.relu, (x,)),))
    module = fx.GraphModule({}, graph)
    args = [X, torch.tensor(0.5)]
    assert dynamo.number_positions(module, args) == []
    assert dynamo.input_positions(module, args, ()) == [0]
    assert dynamo.capture(module, args, (), ())[1] == [0]


class Counted:
    """Counts its calls, as a cache counts what it holds."""

    def __init__(self) -> None:
        self.calls = 0
        self.rest = 100

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.rest -= 2 * x.shape[0]
        return x.relu() * 2


def test_a_number_that_only_counts_is_no_constant(caplog: pytest.LogCaptureFixture) -> None:
    counted = Counted()
    fast = compiled(counted, fallback="error")
    for number in range(1, 7):
        torch.testing.assert_close(fast(X), X.relu() * 2)
        assert (counted.calls, counted.rest) == (number, 100 - 8 * number)
    assert len(engines(fast)) <= 2, "Dynamo takes a number for a constant at first"
    assert "has changed" not in caplog.text


class Shifted(Counted):
    """Computes with its count."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x.relu() * self.calls


def test_a_number_that_is_computed_with_is_one() -> None:
    shifted = Shifted()
    fast = compiled(shifted)
    for number in range(1, 7):
        torch.testing.assert_close(fast(X), X.relu() * number)
        assert shifted.calls == number


class Parts(torch.nn.Module):
    """Calls one graph several times in each call, with other numbers in turn."""

    def part(self, x: torch.Tensor, factor: float) -> torch.Tensor:
        torch._dynamo.graph_break()
        return (x * factor).relu() + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for factor in (1.0, 2.0, 2.0, 3.0, 3.0):
            x = self.part(x, factor)
        return x


def test_numbers_that_change_in_each_call_do_not_build_engines_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[int] = []

    def counting(*args: Any) -> Any:
        builds.append(1)
        return compile_graph(*args)

    compile_graph = compiled_graph.compile_graph
    monkeypatch.setattr(compiled_graph, "compile_graph", counting)
    model = Parts().eval()
    fast = compiled(model)
    with torch.inference_mode():
        for _ in range(30):
            torch.testing.assert_close(fast(X), model(X))
    assert len(builds) < 2 * compiled_graph.MOST_BUILDS_FOR_NUMBERS
    assert any("changes from call to call; pass it as a tensor" in note for note in trtb.report(fast).notes)
