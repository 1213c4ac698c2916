"""Causes for which `torch.export` captures nothing are told apart, and PyTorch's dumps of graphs are kept away."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchtrt_bridge as trtb
from torchtrt_bridge.capture.capture_errors import COMPILE, capture_failure


@dataclasses.dataclass
class Result:
    y: torch.Tensor


class Plain:
    """Class without fields that PyTorch could find."""


class ReturnsDataclass(nn.Module):
    def forward(self, x: torch.Tensor) -> Result:
        return Result(x * 2)


class TakesObject(nn.Module):
    def forward(self, x: torch.Tensor, other: Any) -> torch.Tensor:
        return x * 2


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class ReadsValues(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.numpy().sum())


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("only square images")


class Sizes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu().view(2, -1)


def failure_of(model: nn.Module, *args: Any, **options: Any) -> str:
    with pytest.raises(trtb.CaptureError) as raised:
        trtb.export(model.eval(), args, **options)
    return str(raised.value)


def test_a_class_that_pytorch_does_not_know_comes_with_the_call_that_registers_it() -> None:
    assert "torch.export.register_dataclass(Result)" in failure_of(ReturnsDataclass(), torch.ones(2))
    assert "torch.export.register_dataclass(Result)" in failure_of(TakesObject(), torch.ones(2), Result(torch.ones(2)))
    assert "register_pytree_node(Plain, flatten, unflatten)" in failure_of(TakesObject(), torch.ones(2), Plain())


def test_a_registered_dataclass_is_taken() -> None:
    torch.export.register_dataclass(Registered)
    program = trtb.export(TakesObject().eval(), (torch.ones(2), Registered(torch.ones(2))), targets=("sm_86",))
    assert program.report.engines


@dataclasses.dataclass
class Registered:
    y: torch.Tensor


def test_a_size_that_the_model_restricts_has_pytorchs_suggestion() -> None:
    message = failure_of(Sizes(), torch.randn(2, 4), dynamic_shapes=({0: Dim("b", min=2, max=8)},))
    assert "b = 2" in message
    assert "dynamic_shapes" in message


def test_example_inputs_outside_of_their_range_are_named() -> None:
    message = failure_of(Sizes(), torch.randn(2, 4), dynamic_shapes=({0: Dim("b", min=4, max=8)},))
    assert "2 not in range [4, 8]" in message


def test_wrong_sizes_are_pytorchs_own_words() -> None:
    assert failure_of(nn.Conv2d(3, 4, 3), torch.randn(2, 4, 8, 8)).endswith("but got 4 channels instead.")


def test_an_error_of_the_model_has_its_line() -> None:
    message = failure_of(Raises(), torch.ones(2))
    assert "ValueError: only square images" in message
    assert f"at '{__file__}:" in message
    assert 'raise ValueError("only square images")' in message


@pytest.mark.parametrize(
    ("model", "line", "reason"),
    [
        (Branch(), "if x.sum() > 0:", "depends on data"),
        (ReadsValues(), "return x * float(x.numpy().sum())", "outside of PyTorch's operators"),
    ],
    ids=["branch", "values"],
)
def test_only_what_torch_compile_can_take_is_advised_to_use_it(model: nn.Module, line: str, reason: str) -> None:
    message = failure_of(model, torch.ones(2))
    for part in (line, reason, COMPILE):
        assert part in message
    for other in (nn.Conv2d(3, 4, 3), Raises()):
        assert COMPILE not in failure_of(other, torch.ones(2, 4, 8, 8))


@pytest.mark.parametrize("model", [Branch(), ReadsValues(), Sizes(), ReturnsDataclass()])
def test_messages_are_short_and_without_pytorchs_notes(model: nn.Module) -> None:
    message = failure_of(model, torch.ones(2, 4), dynamic_shapes=({0: Dim("b", min=2, max=8)},))
    assert len(message.splitlines()) <= 5
    for part in ("The error above occurred", "TORCH_LOGS", "TORCHDYNAMO", "docs.google"):
        assert part not in message


@pytest.mark.parametrize("model", [Branch(), ReadsValues()])
def test_pytorch_prints_no_graph(model: nn.Module, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failure_of(model, torch.ones(2))
    captured = capfd.readouterr()
    assert "def forward" not in captured.err + captured.out


def test_a_graph_of_torch_compile_is_not_advised_to_use_it() -> None:
    graph = torch.fx.symbolic_trace(nn.Linear(2, 2))
    error = RuntimeError("Cannot access data pointer of Tensor")
    assert COMPILE not in capture_failure(graph, error)
    assert COMPILE in capture_failure(nn.Linear(2, 2), error)


def test_an_error_without_a_message_has_its_class() -> None:
    assert capture_failure(nn.Linear(2, 2), AssertionError()).endswith("as one graph: AssertionError.")
