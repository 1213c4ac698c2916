"""Rearrangements: the result of views, permutations and copies of one tensor, one after the other."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import is_call
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.lower import CONVERTERS

aten = torch.ops.aten


@dataclasses.dataclass(eq=False)
class Atom:
    """A dimension that no view divides further; its size is an int or, if dynamic, a sympy expression."""

    size: Any


Dim = tuple[Atom, ...]  # the outermost first; empty if the size is one


@dataclasses.dataclass(frozen=True)
class Rearrangement:
    """A tensor that holds the elements of another in another order, or in another shape.

    source: the tensor whose elements they are; start: its dimensions; dims: those of the result, of the same atoms.
    is_moved: whether a permutation or a copy is part of it.
    """

    source: fx.Node
    start: tuple[Dim, ...]
    dims: tuple[Dim, ...]
    is_moved: bool = False

    @classmethod
    def of(cls, source: fx.Node) -> Rearrangement:
        """Return the rearrangement that leaves a tensor as it is."""
        dims = tuple(() if size == 1 else (Atom(size),) for size in sizes_of(source))
        return cls(source, dims, dims)

    def after(self, movement: fx.Node) -> Rearrangement | None:
        """Return the rearrangement behind a node that `is_movement`; None if it divides a dimension unevenly."""
        return _STEPS[movement.target](self, movement)

    def moved(self, dims: Sequence[Dim]) -> Rearrangement:
        return dataclasses.replace(self, dims=tuple(dims), is_moved=True)

    def viewed(self, shape: Sequence[Any]) -> Rearrangement | None:
        """Return the same elements in the same order, in dimensions of these sizes."""
        waiting, dims = list(flat(self.dims)), []
        start = self.start
        for size in shape:
            taken: list[Atom] = []
            while (rest := _quotient(size, _product(taken))) != 1:
                if rest is None or not waiting:
                    return None
                atom = waiting.pop(0)
                if _quotient(rest, atom.size) is None:
                    inner = _quotient(atom.size, rest)
                    if inner is None:
                        return None
                    parts = (Atom(rest), Atom(inner))
                    start = tuple(_with_parts(dim, atom, parts) for dim in start)
                    waiting.insert(0, parts[1])
                    atom = parts[0]
                taken.append(atom)
            dims.append(tuple(taken))
        return None if waiting else dataclasses.replace(self, start=start, dims=tuple(dims))

    def units(self, dims: Sequence[Dim]) -> list[Dim]:
        """Return the parts of the source's dimensions that stay together in `dims`, in the source's order."""
        after = {a: b for dim in dims for a, b in itertools.pairwise(dim)}
        units: list[Dim] = []
        for dim in self.start:
            for index, atom in enumerate(dim):
                if index and after.get(dim[index - 1]) is atom:
                    units[-1] = (*units[-1], atom)
                else:
                    units.append((atom,))
        return units


def is_movement(node: fx.Node) -> bool:
    """Return whether a node gives all elements of its first argument and no others."""
    if is_call(node, aten.clone.default):
        return node.kwargs.get("memory_format") in (None, torch.contiguous_format, torch.preserve_format)
    return node.op == "call_function" and node.target in _STEPS


def shape_of(dims: Sequence[Dim]) -> list[Any]:
    return [_product(dim) for dim in dims]


def sizes_of(node: fx.Node) -> list[Any]:
    """Return the shape of a node's tensor, as ints and expressions."""
    return plain(node.meta["val"].shape)


def plain(sizes: Iterable[Any]) -> list[Any]:
    """Return sizes as ints and expressions, whose comparison adds no guard on the symbols."""
    return [expression_of(size) for size in sizes]


def flat(dims: Sequence[Dim]) -> Dim:
    return tuple(atom for dim in dims for atom in dim)


def _product(dim: Sequence[Atom]) -> Any:
    return math.prod(atom.size for atom in dim)


def _quotient(size: Any, divisor: Any) -> Any:
    """Return the quotient of a size if it is known to be a multiple of `divisor`, else None."""
    if isinstance(size, int) and isinstance(divisor, int):
        return size // divisor if divisor and not size % divisor else None
    quotient = size / divisor
    if quotient.is_Integer:
        return int(quotient)
    return quotient if quotient.as_numer_denom()[1] == 1 else None


def _with_parts(dim: Dim, whole: Atom, parts: Dim) -> Dim:
    return tuple(part for atom in dim for part in (parts if atom is whole else (atom,)))


# Rules of operators ----------------------------------------------------------------------------------------------


def _viewed(value: Rearrangement, node: fx.Node) -> Rearrangement | None:
    return value.viewed(sizes_of(node))


def _permuted(value: Rearrangement, node: fx.Node) -> Rearrangement:
    dims: Any = node.args[1]
    return value.moved([value.dims[d] for d in dims])


def _copied(value: Rearrangement, node: fx.Node) -> Rearrangement:
    return value.moved(value.dims)


_RESHAPES = [op for op, converter in CONVERTERS.items() if converter.movement == "reshape"]

_STEPS: dict[Any, Callable[[Rearrangement, fx.Node], Rearrangement | None]] = {
    **dict.fromkeys(_RESHAPES, _viewed),
    aten.permute.default: _permuted,
    aten.clone.default: _copied,
}
