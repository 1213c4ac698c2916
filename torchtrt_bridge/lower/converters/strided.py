"""Reading memory by strides. TensorRT lays out memory as it likes, so strides become positions among the elements."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import is_contiguous_or_false, statically_known_true
from torchtrt_bridge.lower.converters.sizes import computed, equal, fake, known, scalar
from torchtrt_bridge.lower.converters.slicing import along, line
from torchtrt_bridge.lower.converters.view import reshape
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def not_among_the_elements(self, size, stride, storage_offset=None):
    """Memory is known where it holds the tensor alone, in the order of its elements."""
    if not is_contiguous_or_false(self) or not statically_known_true(self.storage_offset() == 0):
        return "strides into memory that holds the elements in another order, or others before them"
    steps = ((length - 1) * step for length, step in zip(size, stride, strict=True))
    last = sum(steps, 0 if storage_offset is None else storage_offset)
    within = statically_known_true(last < self.numel())
    return None if within else "strides that may reach beyond the tensor"


@converter(aten.as_strided.default, aten.as_strided_copy.default, why_not=not_among_the_elements)
def as_strided(ctx, self, size, stride, storage_offset=None):
    """as_strided(Tensor(a) self, SymInt[] size, SymInt[] stride, SymInt? storage_offset=None) -> Tensor(a)"""
    offset = 0 if storage_offset is None else storage_offset
    sizes, strides = fake(ctx, 1), fake(ctx, 2)
    if _is_whole(fake(ctx, 0), sizes, strides):
        return reshape(ctx, self, size)
    size = known(sizes, size)
    stride = [0 if equal([length], [1]) else step for length, step in zip(sizes, known(strides, stride), strict=True)]
    side_by_side, row = _row(fake(ctx, 0).numel(), sizes, strides, 0 if storage_offset is None else fake(ctx, 3))
    outer = len(size) - side_by_side
    steps = [computed(ctx, operator.floordiv, step, row) for step in (offset, *stride[:outer])]
    rows = ctx.reshape(ctx.tensor(self), [-1] if side_by_side == 0 else [-1, row])
    picked = ctx.network.add_gather(rows, _positions(ctx, size[:outer], *steps), 0).get_output(0)
    return ctx.reshape(picked, size) if side_by_side > 1 else picked


def _is_whole(self, size, stride):
    """Return whether strides give all elements in their order."""
    dense = [_count(size[dim + 1 :]) for dim in range(len(size))]
    in_order = [equal([n], [1]) or equal([a], [b]) for n, a, b in zip(size, stride, dense, strict=True)]
    return all(in_order) and equal([_count(size)], [self.numel()])


def _count(sizes):
    result = 1
    for size in sizes:
        result = result * size
    return result


def _row(elements, size, stride, offset):
    """Return how many of the last dimensions can be read as rows of a table, and the elements of a row.

    They lie side by side in memory, and all else is a multiple of a row: windows over a sequence of vectors have such.
    """
    found, row = (0, 1), 1
    others = [offset, *(0 if equal([n], [1]) else step for n, step in zip(size, stride, strict=True))]
    for dim in reversed(range(len(size))):
        if is_symbolic(size[dim]) or not (size[dim] == 1 or equal([stride[dim]], [row])):
            break
        row *= size[dim]
        if all(statically_known_true(value % row == 0) for value in (elements, *others[: dim + 1])):
            found = len(size) - dim, row
    return found


def _positions(ctx, size, offset, *stride):
    """Return, in the shape `size`, an offset and the steps along each dimension, added up."""
    total = ctx.tensor(scalar(ctx, offset), torch.int64)
    for dim, (length, step) in enumerate(zip(size, stride, strict=True)):
        steps = line(ctx, 0, length, step if isinstance(step, int) else 1)
        if not isinstance(step, int):
            steps = ctx.elementwise("PROD", steps, scalar(ctx, step), torch.int64)
        total = ctx.elementwise("SUM", total, along(ctx, steps, dim, len(size)), torch.int64)
    return total
