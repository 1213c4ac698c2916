"""Graphs of Dynamo whose outputs share memory with their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.entry.reference import assert_same, compiled


def test_a_mutated_input_is_mutated() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x.sigmoid() * 2

    x = torch.randn(4)
    copy_of_x = x.clone()
    assert_same(compiled(model)(x), model(copy_of_x))
    assert_same(x, copy_of_x)


def test_an_output_that_is_a_view_of_a_mutated_input() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x.view(2, 2)

    x = torch.randn(4)
    result = compiled(model)(x)
    result.zero_()
    assert x.abs().sum() == 0


def test_an_output_that_is_a_view_of_an_input() -> None:
    def model(x: torch.Tensor) -> Any:
        return x.view(2, 2), x.sigmoid()

    x = torch.randn(4)
    view, _ = compiled(model)(x)
    x.zero_()
    assert view.abs().sum() == 0


def item_set(x: torch.Tensor, y: torch.Tensor) -> Any:
    x[1] = y[0]
    return x


def items_set(x: torch.Tensor, y: torch.Tensor) -> Any:
    x[torch.tensor([0, 2])] = y[:2]
    return x


def copied(x: torch.Tensor, y: torch.Tensor) -> Any:
    x.copy_(y)
    return x


def added(x: torch.Tensor, y: torch.Tensor) -> Any:
    x.add_(1)
    return x


def several(x: torch.Tensor, y: torch.Tensor) -> Any:
    x.copy_(y.sigmoid())
    return x * 2, x, y, x


@pytest.mark.parametrize("function", [item_set, items_set, copied, added, several])
def test_an_output_that_is_an_argument_is_that_argument(function: Callable[..., Any]) -> None:
    expected_args, args = ([torch.zeros(4), torch.arange(4.0) + 1] for _ in range(2))
    results = as_tuple(compiled(function)(*args))
    for result, expected in zip(results, as_tuple(function(*expected_args)), strict=True):
        torch.testing.assert_close(result, expected)
        assert [result is value for value in args] == [expected is value for value in expected_args]
    torch.testing.assert_close(args, expected_args)


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_an_output_that_is_a_changed_buffer_is_that_buffer() -> None:
    model = Counting().eval()
    calls, _ = trtb.compile(model, engine="reference", fallback="error")(torch.ones(3))
    assert calls is model.calls
    assert float(calls) == 1.0


class Counting(nn.Module):
    """Model that returns the buffer that it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
        self.calls.add_(1)
        return self.calls, x.sigmoid() * 2
