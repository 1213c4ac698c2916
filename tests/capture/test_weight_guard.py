"""The guard of weights sees each change of a tensor that Dynamo's own guard of a tensor sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

from torchtrt_bridge.capture import weight_guard
from torchtrt_bridge.capture.constant_guard import ConstantGuard
from torchtrt_bridge.capture.weight_guard import WeightGuard
from torchtrt_bridge.graph.dynamo_internals import check_of_tensors, compares_weights


class Marked(nn.Parameter):
    """A parameter of another class."""


@pytest.fixture(params=[True, False], ids=["in C++", "in Python"])
def compared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Dynamo leave weights to this package, which compares them by Dynamo's guards, or without them."""
    if not request.param:
        monkeypatch.setattr(weight_guard, "check_of_tensors", lambda *_: None)
    with torch._dynamo.config.patch(use_recursive_dict_tags_for_guards=True):
        yield


def arguments() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return torch.rand(3), nn.Parameter(torch.rand(4, 4), requires_grad=False), torch.rand(4), 5


def set_data(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[tuple[Any, ...]], None]:
    def change(args: tuple[Any, ...]) -> None:
        args[1].data = value(args[1].data)

    return change


def set_class(args: tuple[Any, ...]) -> None:
    args[1].__class__ = Marked


CHANGES: dict[str, Callable[[tuple[Any, ...]], None]] = {
    "strides": set_data(torch.Tensor.t),
    "sizes": set_data(lambda data: data[:2]),
    "sizes and strides": set_data(lambda data: data[:, :2]),
    "rank": set_data(torch.Tensor.flatten),
    "dtype": set_data(lambda data: data.view(torch.float16)[:, ::2]),
    "class": set_class,
    "gradients": lambda args: args[1].requires_grad_(True),
}


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_the_same_memory_is_seen(change: str) -> None:
    args = arguments()
    memory = args[1].data_ptr()
    guards = [WeightGuard(args, [1, 2]), ConstantGuard(args, [1, 2], [3])]
    assert all(guard.matches(args) for guard in guards for _ in range(2))
    CHANGES[change](args)
    assert args[1].data_ptr() == memory
    assert not any(guard.matches(args) for guard in guards for _ in range(2))


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_back_is_the_same_again(change: str) -> None:
    args = arguments()
    guard, data = WeightGuard(args, [1, 2]), args[1].data
    assert guard.matches(args)
    CHANGES[change](args)
    assert not guard.matches(args)
    args[1].__class__, args[1].data = nn.Parameter, data
    args[1].requires_grad_(False)
    assert guard.matches(args)
    assert guard.matches(args)


@pytest.mark.usefixtures("compared")
def test_another_tensor_is_seen_wherever_it_is() -> None:
    args = arguments()
    guard = WeightGuard(args, [1, 2])
    assert guard.matches(args)
    assert guard.matches((torch.rand(7), *args[1:]))  # an input
    assert not guard.matches((*args[:2], args[2].detach(), 5))  # the same memory
    assert not guard.matches((*args[:2], None, 5))
    assert not guard.matches((args[0], args[2], args[1], 5))
    assert guard.matches(list(args))


@pytest.mark.usefixtures("compared")
def test_gradients_matter_where_they_are_enabled() -> None:
    args = arguments()
    guard = WeightGuard(args, [1, 2])
    args[1].requires_grad_(True)
    for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            assert guard.matches(args)
    assert not guard.matches(args)
    with torch.no_grad():
        assert guard.matches(args)
    args[1].requires_grad_(False)
    assert guard.matches(args)


@pytest.mark.usefixtures("compared")
def test_calls_under_modes_and_of_one_weight_twice_match() -> None:
    args = arguments()
    args = (*args, args[1])
    guard = WeightGuard(args, [1, 2, 4])
    for mode in (torch.inference_mode, torch.enable_grad, lambda: torch.autocast("cpu"), torch.no_grad):
        with mode():
            assert guard.matches(args)
            assert guard.matches(args)


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize("sparse", ["to_sparse", "to_sparse_csr"])
def test_weights_that_are_not_strided_are_compared(sparse: str) -> None:
    args = (getattr(torch.eye(4), sparse)(), torch.rand(4))
    guard = WeightGuard(args, [0, 1])
    assert guard.matches(args)
    assert guard.matches(args)
    assert not guard.matches((getattr(torch.eye(4), sparse)(), args[1]))
    args[0].requires_grad_(True)
    assert not guard.matches(args)


@pytest.mark.usefixtures("compared")
def test_tensors_of_inference_mode_and_no_weights_match() -> None:
    with torch.inference_mode():
        args = (torch.rand(3), torch.rand(4))
    assert WeightGuard(args, [1]).matches(args)
    assert WeightGuard(args, []).matches(args)


def test_what_dynamo_compares_is_left_to_it() -> None:
    """Where Dynamo's guards compare each weight, only its identity is compared twice."""
    with torch._dynamo.config.patch(use_recursive_dict_tags_for_guards=False):
        assert compares_weights()
        args = arguments()
        guard = WeightGuard(args, [1, 2])
        assert guard.matches(args)
        args[1].requires_grad_(True)
        assert guard.matches(args)
        assert not guard.matches((*args[:2], args[2].detach(), 5))
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            assert not guard.matches(args)
        assert guard.matches(args)


def test_the_check_of_dynamo_is_there() -> None:
    args = arguments()
    check = check_of_tensors(args, [1, 2])
    assert check is not None
    assert check(args)
    assert not check((*args[:2], args[2].detach(), 5))
    assert not check(args[:1])
    args[1].requires_grad_(True)
    assert not check(args)
    assert check_of_tensors([torch.eye(2).to_sparse_csr()], [0]) is None
