"""Values in order, and those at a place in the order.

PyTorch leaves open which of several equal elements a position names, unless a sort is stable.
"""

from __future__ import annotations

import math
import operator

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower.converters.sizes import computed, fake, known, scalar
from torchtrt_bridge.lower.converters.slicing import along, line
from torchtrt_bridge.lower.converters.topk import (
    MAX_K,
    end_of,
    first,
    largest,
    many_values,
    more_than,
    numbers,
    ranked,
    taken,
)
from torchtrt_bridge.lower.registry import MAX_RANK, converter

aten = torch.ops.aten


def length(ctx, tensor, dim):
    """Return the size of a dimension of the node's first argument: an int if PyTorch knows it."""
    if not len(tensor.shape):
        return 1
    size = fake(ctx, 0).shape[dim]
    return ctx.size(tensor, dim) if is_symbolic(size) else int(size)


def all_in_order(self, dim):
    """Return the reason for which TensorRT cannot sort along `dim`: a sort is the TopK of all values."""
    return more_than(MAX_K, self.shape[dim] if self.dim() else 1, "sorting")


def many_to_sort(self, dim=-1, descending=False):
    return all_in_order(self, dim)


@converter(aten.sort.default, why_not=many_to_sort)
def sort(ctx, self, dim=-1, descending=False):
    """sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor, Tensor)"""
    tensor = ctx.tensor(self)
    return largest(ctx, "MAX" if descending else "MIN", tensor, length(ctx, tensor, dim), dim)


# The most values of which each is compared with each.
MAX_COMPARED = 1024


def many_comparisons(self, dim, what):
    """Return the reason for which the values along `dim` are not compared each with each."""
    if self.dim() == MAX_RANK:
        return f"{what} in {MAX_RANK} dimensions"
    return more_than(MAX_COMPARED, self.shape[dim] if self.dim() else 1, f"{what} of")


def pairs(ctx, tensor, dim):
    """Return each value along `dim`, and all values in the next dimension to compare it with."""
    return ctx.unsqueeze(tensor, [dim + 1]), ctx.unsqueeze(tensor, [dim])


def many_to_sort_stably(self, *, stable, dim=-1, descending=False):
    """TensorRT does not say in which order it leaves equal values, so each value is compared with all others."""
    return many_comparisons(self, dim, "a stable sort")


@converter(aten.sort.stable, why_not=many_to_sort_stably)
def sort_stable(ctx, self, *, stable, dim=-1, descending=False):
    """sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor, Tensor)"""
    tensor = ctx.tensor(self)
    rank = len(tensor.shape)
    if not rank:
        return tensor, ctx.constant(0, torch.int64)
    dim %= rank
    size = length(ctx, tensor, dim)
    _, positions = first(ctx, "MIN", _places(ctx, ranked(ctx, tensor, math.inf), size, dim, descending), size, dim)
    return taken(ctx, tensor, dim, positions), positions


def _places(ctx, tensor, size, dim, descending):
    """Return the place of each value in a stable order along `dim`: the number of those that come before."""
    own, other = pairs(ctx, tensor, dim)
    before = ctx.elementwise("GREATER" if descending else "LESS", other, own)
    index, other_index = pairs(ctx, counted(ctx, size, dim, len(tensor.shape)), dim)
    is_earlier = ctx.elementwise("LESS", other_index, index)
    equal = ctx.elementwise("AND", ctx.elementwise("EQUAL", other, own), is_earlier)
    return ctx.reduce("SUM", ctx.cast(ctx.elementwise("OR", before, equal), torch.int32), [dim + 1], False)


def counted(ctx, size, dim, rank, dtype=torch.int64):
    """Return the positions along `dim`, of size 1 in all other of `rank` dimensions."""
    return along(ctx, line(ctx, 0, size, 1, dtype), dim, rank)


def at_positions(ctx, tensor, positions, dim, keepdim):
    """Return the elements at `positions`, of which there is one along `dim`, with these."""
    results = taken(ctx, tensor, dim, positions), positions
    return results if keepdim else tuple(ctx.squeeze(result, [dim]) for result in results)


def kth_is_far(self, k, dim=-1, keepdim=False):
    return many_values(self, k)


@converter(aten.kthvalue.default, why_not=kth_is_far)
def kthvalue(ctx, self, k, dim=-1, keepdim=False):
    """kthvalue(Tensor self, SymInt k, int dim=-1, bool keepdim=False) -> (Tensor values, Tensor indices)"""
    tensor = ctx.tensor(self)
    if not len(tensor.shape):
        return tensor, ctx.constant(0, torch.int64)
    dim %= len(tensor.shape)
    _, positions = first(ctx, "MIN", ranked(ctx, tensor, math.inf), k, dim)
    last = ctx.shape_tensor([computed(ctx, operator.sub, k, 1)])
    return at_positions(ctx, tensor, ctx.network.add_gather(positions, last, dim).get_output(0), dim, keepdim)


def middle(ctx, tensor, size, dim, skips_nan):
    """Return the position of the lower of the two middle values along `dim`, whose order has NaN at its end.

    skips_nan: take the middle of the numbers; otherwise one NaN is the median of all.
    """
    _, positions = first(ctx, "MIN", ranked(ctx, tensor, math.inf), size, dim)
    is_nan = ctx.unary("ISNAN", ctx.cast(tensor, torch.float32))
    nans = ctx.reduce("SUM", ctx.cast(is_nan, torch.int64), [dim], True)
    last = scalar(ctx, computed(ctx, operator.sub, size, 1))
    if skips_nan:
        place = _half(ctx, ctx.elementwise("MAX", ctx.elementwise("SUB", last, nans), 0))
    else:
        place = ctx.select(ctx.elementwise("GREATER", nans, 0), last, _half(ctx, last), torch.int64)
    return taken(ctx, positions, dim, place)


def _half(ctx, count):
    return count // 2 if isinstance(count, int) else ctx.elementwise("DIV", count, 2)


def many_around_median(self, dim, keepdim=False):
    return all_in_order(self, dim)


def _median_along(op, skips_nan):
    """Register the median along a dimension."""

    @converter(op, why_not=many_around_median)
    def lower(ctx, self, dim, keepdim=False):
        tensor = ctx.tensor(self)
        if not len(tensor.shape):
            return tensor, ctx.constant(0, torch.int64)
        dim %= len(tensor.shape)
        position = middle(ctx, tensor, length(ctx, tensor, dim), dim, skips_nan)
        return at_positions(ctx, tensor, position, dim, keepdim)

    lower.__doc__ = str(schema_of(op))


_median_along(aten.median.dim, skips_nan=False)
_median_along(aten.nanmedian.dim, skips_nan=True)


def many_elements(self):
    return more_than(MAX_K, self.numel(), "sorting")


def _median(op, skips_nan):
    """Register the median of all elements."""

    @converter(op, why_not=many_elements)
    def lower(ctx, self):
        tensor = ctx.tensor(self)
        if not len(tensor.shape):
            return tensor
        flat = ctx.reshape(tensor, [-1])
        (size,) = known([fake(ctx, 0).numel()], [ctx.size(flat, 0)])
        return at_positions(ctx, flat, middle(ctx, flat, size, 0, skips_nan), 0, keepdim=False)[0]

    lower.__doc__ = str(schema_of(op))


_median(aten.median.default, skips_nan=False)
_median(aten.nanmedian.default, skips_nan=True)


def many_to_count(self, dim=-1, keepdim=False):
    """Each value is compared with all others, to find how often it occurs."""
    return many_comparisons(self, dim, "the most frequent")


@converter(aten.mode.default, why_not=many_to_count)
def mode(ctx, self, dim=-1, keepdim=False):
    """mode(Tensor self, int dim=-1, bool keepdim=False) -> (Tensor values, Tensor indices)

    The smallest of the most frequent values. NaN, which equals nothing, is only found where there is nothing else.
    """
    tensor = ctx.tensor(self)
    if not len(tensor.shape):
        return tensor, ctx.constant(0, torch.int64)
    dim %= len(tensor.shape)
    values = numbers(ctx, tensor)
    values, positions = at_positions(ctx, values, _mode(ctx, values, dim), dim, keepdim)
    return ctx.cast(values, ctx.dtype(tensor)), positions


def _mode(ctx, tensor, dim):
    """Return the last position of the smallest of the most frequent numbers along `dim`."""
    same = ctx.cast(ctx.elementwise("EQUAL", *pairs(ctx, tensor, dim)), torch.int32)
    count = ctx.reduce("SUM", same, [dim + 1], False)
    is_frequent = ctx.elementwise("EQUAL", count, ctx.reduce("MAX", count, [dim], True))
    candidates = ctx.select(is_frequent, tensor, end_of(ctx.dtype(tensor), "MAX"))
    is_smallest = ctx.elementwise("EQUAL", candidates, ctx.reduce("MIN", candidates, [dim], True))
    positions = counted(ctx, length(ctx, tensor, dim), dim, len(tensor.shape))
    return ctx.reduce("MAX", ctx.select(ctx.elementwise("AND", is_smallest, is_frequent), positions, 0), [dim], True)
