"""Shapes: what sizes a tensor may have, and how symbolic sizes are bounded and computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch

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

    @property
    def is_static(self) -> bool:
        return all(isinstance(size, int) for size in self.sizes)

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
    """Bounds of an expression that grows or falls with each of its symbols, from those of the symbols."""
    if isinstance(size, int):
        return size, size
    symbols = sorted(size.free_symbols, key=str)
    values = [int(size.subs(dict(zip(symbols, corner, strict=True)))) for corner in _corners(symbols, ranges)]
    return min(values), max(values)


def _corners(symbols: Sequence[Any], ranges: Mapping[Any, Range]) -> list[tuple[int, ...]]:
    corners: list[tuple[int, ...]] = [()]
    for symbol in symbols:
        corners = [(*corner, value) for corner in corners for value in ranges[symbol]]
    return corners


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else None
    if hint is None:
        hint = size.node.shape_env.size_hint(size.node.expr)
    return int(hint)


def is_symbolic(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and not isinstance(size.node.expr, (int, sympy.Integer))
