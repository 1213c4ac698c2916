"""Inputs that share memory with one that a graph writes to: a captured graph reads each as it was before the call."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch.utils import _pytree as pytree

_shape = attrgetter("shape")


class MemoryGuard:
    """Guard of a graph that writes to some of its inputs: no other input may lie in their memory.

    written: positions of these inputs.
    """

    def __init__(self, written: Sequence[int]) -> None:
        self._written = frozenset(written)
        self._last: Any = None  # pointers, shapes and strides that were found apart

    def shared(self, inputs: Sequence[Any]) -> tuple[int, int] | None:
        """Return the position of an input that is written to, and of one that overlaps it; None if they are apart."""
        if not self._written:
            return None
        tensors = [value for value in inputs if is_in_memory(value)]
        key = [list(map(read, tensors)) for read in (torch.Tensor.data_ptr, _shape, torch.Tensor.stride)]
        if key == self._last:
            return None
        found = next((pair for pair in overlaps(inputs) if self._written & {*pair}), None)
        if found is None:
            self._last = key
            return None
        first, second = found
        return found if first in self._written else (second, first)


def overlaps(values: Sequence[Any]) -> list[tuple[int, int]]:
    """Return the positions of tensors that overlap in memory, in pairs; one tensor twice overlaps itself."""
    ranges = sorted((*_range(value), index) for index, value in enumerate(values) if is_in_memory(value))
    return [
        (min(index, other), max(index, other))
        for place, (_, end, index) in enumerate(ranges)
        for _, _, other in _until(ranges[place + 1 :], end)
    ]


def _until(ranges: Sequence[tuple[int, int, int]], end: int) -> Sequence[tuple[int, int, int]]:
    """Return the ranges that begin before `end`, of ranges in order."""
    count = next((place for place, (start, _, _) in enumerate(ranges) if start >= end), len(ranges))
    return ranges[:count]


def _range(value: torch.Tensor) -> tuple[int, int]:
    """Return the address of a tensor's first byte, and that behind its last; gaps between its elements count as its."""
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    start = value.data_ptr()
    return start, start + (last + 1) * value.element_size()


def is_in_memory(value: Any) -> bool:
    """Return whether a value is a tensor whose elements have addresses."""
    is_strided = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return is_strided and value.numel() > 0 and type(value) in (torch.Tensor, torch.nn.Parameter)


def apart(arguments: Any) -> Any:
    """Return nested arguments with a copy, of the same strides, of each tensor that overlaps one before it.

    `torch.export` does not capture a write to one of several tensors that share memory.
    """
    values, form = pytree.tree_flatten(arguments)
    for position in {second for _, second in overlaps(values)}:
        value = values[position]
        values[position] = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        ).copy_(value)
    return pytree.tree_unflatten(values, form)
