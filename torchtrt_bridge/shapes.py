"""Shapes: what sizes a tensor may have, and how symbolic sizes are bounded and computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

# (smallest, largest) value of a size; equal for a static one.
Range = tuple[int, int]

# Stands for the upper end of a range that has none.
UNBOUNDED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor at the border of an engine.

    ranges: smallest and largest size of each dimension.
    example: the sizes it was traced with, for which the engine is tuned.
    sizes: each size as an int, or as a sympy expression in text over the symbols of the graph.
    """

    name: str
    dtype: torch.dtype
    ranges: tuple[Range, ...]
    example: tuple[int, ...]
    sizes: tuple[int | str, ...]

    def accepts(self, value: torch.Tensor) -> bool:
        return (
            value.dtype == self.dtype
            and value.dim() == len(self.ranges)
            and all(low <= size <= high for size, (low, high) in zip(value.shape, self.ranges, strict=True))
        )

    def __str__(self) -> str:
        ends = [(str(low), "" if high == UNBOUNDED else str(high)) for low, high in self.ranges]
        sizes = ", ".join(low if low == high else f"{low}..{high}" for low, high in ends)
        return f"{str(self.dtype).removeprefix('torch.')}[{sizes}]"


def spec_of(name: str, value: torch.Tensor, ranges: Mapping[Any, Range]) -> TensorSpec:
    """The spec of a fake tensor; `ranges` bounds its symbols."""
    sizes = [_expression(size) for size in value.shape]
    return TensorSpec(
        name,
        value.dtype,
        tuple(_range(size, ranges) for size in sizes),
        tuple(_hint(size) for size in value.shape),
        tuple(size if isinstance(size, int) else str(size) for size in sizes),
    )


def _expression(size: Any) -> Any:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


def _range(size: Any, ranges: Mapping[Any, Range]) -> Range:
    """Bounds of an expression from those of its symbols, as PyTorch's value ranges give them."""
    if isinstance(size, int):
        return size, size
    bounds = bound_sympy(size, {symbol: ValueRanges(*ranges[symbol]) for symbol in size.free_symbols})
    return max(_finite(bounds.lower, 0), 0), min(_finite(bounds.upper, UNBOUNDED), UNBOUNDED)


def _finite(value: Any, otherwise: int) -> int:
    return int(value) if value.is_Integer else otherwise


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else None
    if hint is None:
        hint = size.node.shape_env.size_hint(size.node.expr)
    return int(hint)


def is_symbolic(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and not isinstance(size.node.expr, (int, sympy.Integer))
