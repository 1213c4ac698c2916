"""Inputs that a graph writes to, and when their new values are copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models import Called
from torchtrt_bridge.capture.export import export_program, graph_from_program
from torchtrt_bridge.runtime.write_back import append_write_back, write_back


def exchanged(x: Tensor, y: Tensor) -> Tensor:
    before = x.clone()
    x.copy_(y)
    y.copy_(before)
    return x + 1


def shifted(x: Tensor, y: Tensor) -> Tensor:
    y.add_(x)
    x.copy_(y.flip(0))
    return x * y


def filled_from_a_view(x: Tensor, y: Tensor) -> Tensor:
    x.copy_(y.view(3, 2).t().reshape(6))
    y.zero_()
    return x * 2


@pytest.mark.parametrize("call", [exchanged, shifted, filled_from_a_view])
def test_the_inputs_hold_what_the_model_writes(call: Callable[..., Tensor]) -> None:
    x, y = torch.arange(6.0), torch.arange(6.0) * 10
    captured = graph_from_program(export_program(Called(call), (x.clone(), y.clone())))
    append_write_back(captured.module, captured.outputs, captured.mutations)
    found, wanted = [x.clone(), y.clone()], [x.clone(), y.clone()]
    (result,) = captured.module(*found)
    torch.testing.assert_close(result, call(*wanted))
    torch.testing.assert_close(found, wanted)


def test_a_lazy_negative_of_the_target_is_written() -> None:
    x = torch.ones(3)
    write_back([x], [torch._neg_view(x)])
    assert x.tolist() == [-1.0] * 3


def test_nothing_is_added_where_nothing_is_written() -> None:
    captured = graph_from_program(export_program(Called(torch.add), (torch.ones(2), torch.ones(2))))
    count = len(captured.module.graph.nodes)
    append_write_back(captured.module, captured.outputs, captured.mutations)
    assert len(captured.module.graph.nodes) == count


def test_what_lies_there_already_is_not_copied() -> None:
    cache = torch.ones(3)
    version = cache._version
    write_back([cache], [cache.view(3)])
    assert cache._version == version


def test_the_same_memory_in_another_order_is_copied() -> None:
    square = torch.arange(4.0).reshape(2, 2)
    write_back([square], [square.t().clone().t()])
    torch.testing.assert_close(square, torch.arange(4.0).reshape(2, 2))


def test_dtypes_are_the_targets() -> None:
    count, half = torch.tensor(1), torch.zeros(2, dtype=torch.float16)
    write_back([count, half], [torch.tensor(2, dtype=torch.int32), torch.tensor([1.5, 2.5])])
    assert int(count) == 2
    assert half.tolist() == [1.5, 2.5]
