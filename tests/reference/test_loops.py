"""Loops in the reference: trip limits, iterators, recurrences, and outputs of all steps or of the last."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.reference.network import Network
from torchtrt_bridge.errors import LoweringError


class Sum:
    """A network that adds up the rows of `x`, beginning with ones, and gives the sum after each of `steps` rows."""

    def __init__(self, x: torch.Tensor, steps: int = 4, axis: int = 0, reverse: bool = False) -> None:
        self.network = Network()
        self.trt, self.loop = self.network.trt, self.network.net.add_loop()
        self.length = self.network.constant(torch.tensor(steps, dtype=torch.int32))
        self.loop.add_trip_limit(self.length, self.trt.TripLimit.COUNT)
        iterator = self.loop.add_iterator(self.network.input(x), axis, reverse)
        start = torch.ones([size for dim, size in enumerate(x.shape) if dim != axis])
        self.state = self.loop.add_recurrence(self.network.input(start))
        self.sum = self.add(self.state.get_output(0), iterator.get_output(0))
        self.state.set_input(1, self.sum)

    def add(self, left: Any, right: Any) -> Any:
        return self.network.net.add_elementwise(left, right, self.trt.ElementWiseOperation.SUM).get_output(0)

    def output(self, kind: str, axis: int = 0, length: Any = None) -> Any:
        """Return an output of all steps."""
        layer = self.loop.add_loop_output(self.sum, getattr(self.trt.LoopOutput, kind), axis)
        layer.set_input(1, self.length if length is None else length)
        return layer.get_output(0)

    def last(self) -> Any:
        return self.loop.add_loop_output(self.state.get_output(0), self.trt.LoopOutput.LAST_VALUE, 0).get_output(0)


X = torch.arange(24.0).reshape(4, 6)


def test_outputs_of_all_steps_and_of_the_last() -> None:
    loop = Sum(X)
    results = loop.network.run(
        loop.output("CONCATENATE"), loop.output("REVERSE"), loop.output("CONCATENATE", 1), loop.last()
    )
    expected = X.cumsum(0) + 1
    for result, value in zip(results, (expected, expected.flip(0), expected.T, expected[-1]), strict=True):
        torch.testing.assert_close(result, value)


def test_an_iterator_goes_backwards_along_any_dimension() -> None:
    loop = Sum(X, steps=6, axis=1, reverse=True)
    (result,) = loop.network.run(loop.output("CONCATENATE"))
    torch.testing.assert_close(result, X.flip(1).cumsum(1).T + 1)


def test_fewer_steps_than_rows() -> None:
    loop = Sum(X, steps=2)
    (result,) = loop.network.run(loop.last())
    torch.testing.assert_close(result, X[:2].sum(0) + 1)


def test_a_length_known_at_run_time_and_two_loops_one_after_the_other() -> None:
    network = Network()
    x = network.input(X, dynamic=[0])
    shape = network.net.add_shape(x).get_output(0)
    length = network.net.add_shuffle(network.net.add_slice(shape, (0,), (1,), (1,)).get_output(0))
    length.reshape_dims = ()
    values = x
    for _ in range(2):
        loop = network.net.add_loop()
        loop.add_trip_limit(length.get_output(0), network.trt.TripLimit.COUNT)
        state = loop.add_recurrence(network.constant(torch.zeros(6)))
        part = loop.add_iterator(values, 0).get_output(0)
        total = network.net.add_elementwise(part, state.get_output(0), network.trt.ElementWiseOperation.SUM).get_output(
            0
        )
        state.set_input(1, total)
        output = loop.add_loop_output(total, network.trt.LoopOutput.CONCATENATE, 0)
        output.set_input(1, length.get_output(0))
        values = output.get_output(0)
    (result,) = network.run(values)
    torch.testing.assert_close(result, X.cumsum(0).cumsum(0))


def test_what_does_not_change_between_steps_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchtrt_bridge.reference.registry import READERS

    calls = []
    monkeypatch.setitem(READERS, "UNARY", lambda layer: lambda value: calls.append(value) or value.neg())
    loop = Sum(X)
    fixed = loop.network.net.add_unary(loop.network.input(torch.ones(6)), loop.trt.UnaryOperation.NEG).get_output(0)
    loop.sum = loop.add(loop.sum, fixed)
    (result,) = loop.network.run(loop.output("CONCATENATE"))
    torch.testing.assert_close(result, X.cumsum(0))
    assert len(calls) == 1


def test_an_output_of_another_length_is_refused() -> None:
    loop = Sum(X)
    output = loop.output("CONCATENATE", length=loop.network.constant(torch.tensor(3, dtype=torch.int32)))
    with pytest.raises(LoweringError, match="is to hold 3 steps, of a loop that has 4"):
        loop.network.run(output, build=False)


def test_a_loop_that_runs_while_something_holds_is_refused() -> None:
    network = Network()
    loop = network.net.add_loop()
    state = loop.add_recurrence(network.constant(torch.zeros(())))
    less = network.net.add_elementwise(
        state.get_output(0), network.constant(torch.ones(())), network.trt.ElementWiseOperation.LESS
    ).get_output(0)
    loop.add_trip_limit(less, network.trt.TripLimit.WHILE)
    state.set_input(1, network.net.add_unary(state.get_output(0), network.trt.UnaryOperation.EXP).get_output(0))
    last = loop.add_loop_output(state.get_output(0), network.trt.LoopOutput.LAST_VALUE, 0)
    with pytest.raises(LoweringError, match="in a loop that no count limits"):
        network.interpreter(last.get_output(0))


def test_a_recurrence_without_a_next_value_is_refused() -> None:
    loop = Sum(X)
    open_end = loop.loop.add_recurrence(loop.network.constant(torch.zeros(6)))
    loop.sum = loop.add(loop.sum, open_end.get_output(0))
    with pytest.raises(LoweringError, match="is given nothing for the next step"):
        loop.network.interpreter(loop.output("CONCATENATE"))


def test_a_loop_within_another_is_refused() -> None:
    loop = Sum(X)
    inner = loop.network.net.add_loop()
    inner.add_trip_limit(loop.length, loop.trt.TripLimit.COUNT)
    state = inner.add_recurrence(loop.sum)
    state.set_input(1, loop.add(state.get_output(0), state.get_output(0)))
    last = inner.add_loop_output(state.get_output(0), loop.trt.LoopOutput.LAST_VALUE, 0)
    loop.sum = last.get_output(0)
    with pytest.raises(LoweringError, match="in a loop within another"):
        loop.network.interpreter(loop.output("CONCATENATE"))


def test_an_error_in_a_step_names_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchtrt_bridge.reference.registry import READERS

    monkeypatch.setitem(READERS, "ELEMENTWISE", lambda layer: lambda *values: values[0][:1])
    loop = Sum(X)
    with pytest.raises(LoweringError, match=r"\(ELEMENTWISE\).*shape \(1,\) where TensorRT says \(6,\)"):
        loop.network.run(loop.output("CONCATENATE"), build=False)
