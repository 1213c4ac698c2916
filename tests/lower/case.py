"""A case of the op table: one call of one operator, from which every test of a converter is made."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

HALF = torch.float16
TRACED, OTHER = 4, 5


@dataclasses.dataclass(frozen=True)
class Case:
    """One call that TensorRT must run.

    op: the ATen operator whose converter this tests; it must be in the captured graph.
    call: a function of tensors, or an nn.Module.
    inputs: makes the tensors for a size n; a dimension that changes with n is dynamic in the dynamic tests.
    half: whether the case also runs in fp16.
    static: whether it also runs with all sizes known; where these are all it takes, nothing is left to lower.
    tolerance: (rtol, atol) per dtype where the defaults of `torch.testing` do not hold; `reason` says why.
    """

    op: Any
    call: Callable[..., Any]
    inputs: Callable[[int], tuple[Any, ...]]
    half: bool = True
    static: bool = True
    tolerance: dict[torch.dtype, tuple[float, float]] = dataclasses.field(default_factory=dict)
    reason: str = ""
    name: str = ""

    @property
    def id(self) -> str:
        return f"{str(self.op).removeprefix('aten.')}{'-' if self.name else ''}{self.name}"

    def make_inputs(self, n: int, dtype: torch.dtype) -> tuple[Any, ...]:
        torch.default_generator.manual_seed(n)  # not the GPU's, which would note the whole stack for later
        return tuple(_as(value, dtype) for value in self.inputs(n))

    def module(self, dtype: torch.dtype) -> nn.Module:
        module = Called(self.call).eval()
        return module.to(dtype) if dtype.is_floating_point else module

    def dynamic_shapes(self, dtype: torch.dtype) -> tuple[Any, ...]:
        traced, other = self.make_inputs(TRACED, dtype), self.make_inputs(OTHER, dtype)
        return tuple(_changing(a, b) for a, b in zip(traced, other, strict=True))


@dataclasses.dataclass(frozen=True)
class Rejected:
    """One call that its converter declines, with words that its reason must hold.

    dynamic: whether dimensions that change with n are dynamic.
    """

    op: Any
    call: Callable[..., Any]
    inputs: Callable[[int], tuple[Any, ...]]
    reason: str
    name: str = ""
    dynamic: bool = False

    @property
    def id(self) -> str:
        return f"{str(self.op).removeprefix('aten.')}{'-' if self.name else ''}{self.name}"


class Called(nn.Module):
    """Calls a function or module on values that were computed, so that views of inputs are part of the network."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = copy.deepcopy(call) if isinstance(call, nn.Module) else call

    def forward(self, *args: Any) -> Any:
        return self.call(*[_computed(arg) for arg in args])


def _computed(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.dtype == torch.uint8:  # TensorRT computes no uint8
        return value
    return ~value if value.dtype == torch.bool else -value


def _as(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return value.to(dtype)
    return value


def _changing(a: Any, b: Any) -> Any:
    if not isinstance(a, torch.Tensor):
        return None
    pairs = enumerate(zip(a.shape, b.shape, strict=True))
    return {dim: torch.export.Dim.AUTO for dim, (one, other) in pairs if one != other}


@dataclasses.dataclass(frozen=True)
class Point:
    """One test of a case: with known or with dynamic sizes, in fp32 or fp16."""

    case: Case
    dynamic: bool
    dtype: torch.dtype

    @property
    def id(self) -> str:
        return f"{self.case.id}-{'dynamic' if self.dynamic else 'static'}-{'fp16' if self.dtype == HALF else 'fp32'}"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the n of the inputs that are compared."""
        return (TRACED, OTHER) if self.dynamic else (TRACED,)

    def make_inputs(self, n: int) -> tuple[Any, ...]:
        return self.case.make_inputs(n, self.dtype)


def points_of(case: Case) -> list[Point]:
    """Return fp32 with known and with dynamic sizes, and fp16 with the more general of the two."""
    kinds = [False] * case.static + [True] * any(case.dynamic_shapes(torch.float32))
    half = [Point(case, kinds[-1], HALF)] if case.half else []
    return [Point(case, dynamic, torch.float32) for dynamic in kinds] + half
