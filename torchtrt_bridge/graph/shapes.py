"""Shapes: the sizes that a tensor may have, and the bounds of symbolic sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch

from torchtrt_bridge.graph.torch_internals import expression_bounds, is_unbacked_symbol

# (smallest, largest) value of a size; equal for a static one.
Range = tuple[int, int]

# The upper end of a range that has none.
UNBOUNDED = 2**31 - 1

# The size that an engine is tuned for where no example has it; the range of the size may leave it out.
UNKNOWN_EXAMPLE = 256


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
    def has_one_size(self) -> bool:
        """True if each dimension has one size."""
        return all(low == high for low, high in self.ranges)

    @property
    def example_in_range(self) -> tuple[int, ...]:
        """The sizes that the engine is tuned for: those of the example, as far as the ranges have them."""
        return tuple(min(max(size, low), high) for size, (low, high) in zip(self.example, self.ranges, strict=True))

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
    """Return the spec of a fake tensor; `ranges` bounds its symbols."""
    sizes = [expression_of(size) for size in value.shape]
    return TensorSpec(
        name,
        value.dtype,
        tuple(_range(size, ranges) for size in sizes),
        tuple(example_size(size) for size in value.shape),
        tuple(size if isinstance(size, int) else str(size) for size in sizes),
    )


class SharedSizes:
    """Sizes of several tensors that follow from one another, as n here and 2 * n there.

    inputs: names and fake tensors of the inputs of a graph, in their order; other inputs have no sizes.
    Only sizes that are linear in one symbol count, as `torch.export.Dim` derives them.
    """

    def __init__(self, inputs: Iterable[tuple[str, Any]]) -> None:
        places: dict[Any, list[_Place]] = {}
        for index, (name, value) in enumerate(inputs):
            for dim, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                if linear := _linear(expression := expression_of(size)):
                    symbol, factor, offset = linear
                    places.setdefault(symbol, []).append(_Place(name, index, dim, str(expression), factor, offset))
        self._groups = [found for found in places.values() if len(found) > 1 or found[0].factor > 1]

    def why_not(self, values: Sequence[Any]) -> str | None:
        """Return the reason for which the sizes of these inputs do not fit each other; None if they do."""
        for first, *others in self._groups:
            size = values[first.index].shape[first.dim]
            symbol, rest = divmod(size - first.offset, first.factor)
            if rest:
                return f"Dimension {first} has size {size}, which is no {first.expression}"
            for place in others:
                found, wanted = values[place.index].shape[place.dim], place.factor * symbol + place.offset
                if found != wanted:
                    return (
                        f"Dimension {first} has size {size}, so that dimension {place} must have {wanted}, not {found}"
                    )
        return None


@dataclasses.dataclass(frozen=True)
class _Place:
    """A dimension whose size is factor * symbol + offset."""

    name: str
    index: int
    dim: int
    expression: str
    factor: int
    offset: int

    def __str__(self) -> str:
        return f"{self.dim} of {self.name}"


def _linear(expression: Any) -> tuple[Any, int, int] | None:
    """Return the symbol, the factor and the offset of a size that is linear in one symbol."""
    if isinstance(expression, int) or len(expression.free_symbols) != 1:
        return None
    (symbol,) = expression.free_symbols
    factor, offset = expression.coeff(symbol), expression.subs(symbol, 0)
    is_linear = factor.is_Integer and factor > 0 and offset.is_Integer and expression - factor * symbol == offset
    return (symbol, int(factor), int(offset)) if is_linear else None


def expression_of(size: Any) -> Any:
    """Return a size as an int, or as a sympy expression if it is dynamic."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


def _range(size: Any, ranges: Mapping[Any, Range]) -> Range:
    """Return the bounds of an expression from those of its symbols, by PyTorch's value ranges."""
    if isinstance(size, int):
        return size, size
    lowest, highest = expression_bounds(size, ranges)
    return max(_finite(lowest, 0), 0), min(_finite(highest, UNBOUNDED), UNBOUNDED)


def _finite(value: Any, otherwise: int) -> int:
    return int(value) if value.is_Integer else otherwise


def example_size(size: Any) -> int:
    """Return the value of a size in the example that was traced; a guess for one that depends on data."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    unbacked = [symbol for symbol in expression.free_symbols if is_unbacked_symbol(symbol)]
    if unbacked:
        expression = expression.xreplace(dict.fromkeys(unbacked, sympy.Integer(UNKNOWN_EXAMPLE)))
        return int(expression) if expression.is_Integer else int(size.node.shape_env.size_hint(expression))
    hint = size.node.hint if size.node.has_hint() else None
    if hint is None:
        hint = size.node.shape_env.size_hint(expression)
    return int(hint)


def is_symbolic(size: Any) -> bool:
    """Return whether a size is known only at run time."""
    return isinstance(size, torch.SymInt) and not isinstance(size.node.expr, (int, sympy.Integer))
