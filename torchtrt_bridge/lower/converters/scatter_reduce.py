"""Scatters that reduce. TensorRT's only writes, so each position compares its number with every index."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.arithmetic import result_dtype, widened
from torchtrt_bridge.lower.converters.sizes import equal, fake
from torchtrt_bridge.lower.registry import MAX_RANK, NUMBERS, converter

aten = torch.ops.aten

# The most comparisons of known sizes; those of a matrix of masks for 2048 tokens.
MOST_COMPARISONS = 2**22

# The elementwise and the reducing layer of each reduction.
LAYERS = {
    "sum": ("SUM", "SUM"),
    "mean": ("SUM", "SUM"),
    "prod": ("PROD", "PROD"),
    "amax": ("MAX", "MAX"),
    "amin": ("MIN", "MIN"),
}


def too_many_comparisons(positions, sizes):
    """Return the reason not to compare `positions` numbers with indices of the given sizes; None if there is none."""
    if is_symbolic(positions):
        return "values that may meet, at a number of positions known only at run time"
    if len(sizes) == MAX_RANK:
        return f"values that may meet, in {MAX_RANK} dimensions"
    count = positions * math.prod(size for size in sizes if not is_symbolic(size))
    return (
        f"values that may meet: {count} comparisons, at most {MOST_COMPARISONS}" if count > MOST_COMPARISONS else None
    )


def sent(ctx, reduce, positions, index, values, dim):
    """Reduce the values that `index` sends to each of `positions` places along `dim`.

    index: of the values' rank.
    Also returns the mask of which value goes to which place, with the values' dimension behind that of the places.
    """
    dtype, rank = ctx.dtype(values), len(values.shape)
    index, values = ctx.unsqueeze(index, [dim]), ctx.unsqueeze(values, [dim])
    numbers = torch.arange(positions).reshape([-1 if d == dim else 1 for d in range(rank + 1)])
    mask = ctx.elementwise("EQUAL", index, ctx.constant(numbers))
    chosen = ctx.select(mask, values, neutral(reduce, dtype), dtype)
    return ctx.reduce(LAYERS[reduce][1], chosen, [dim + 1], keep_dims=False), mask


def neutral(reduce, dtype):
    """Return the number that changes no result of a reduction."""
    if reduce in ("amax", "amin"):
        lowest, highest = (-math.inf, math.inf)
        if not dtype.is_floating_point:
            lowest, highest = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        return lowest if reduce == "amax" else highest
    return 1 if reduce == "prod" else 0


def not_comparable(self, dim, index, src, reduce, **rest):
    """Each position is compared with each index, so their number must be known and small."""
    if not self.dim() or index.dim() != self.dim():
        return "a scatter of numbers without dimensions"
    return too_many_comparisons(self.shape[dim], index.shape)


def sums_too_much(self, dim, index, src):
    return not_comparable(self, dim, index, src, "sum")


@converter(aten.scatter_add.default, why_not=sums_too_much, dtypes=NUMBERS)
def scatter_add(ctx, self, dim, index, src):
    """scatter_add(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    return scatter_reduce(ctx, self, dim, index, src, "sum")


@converter(aten.scatter_reduce.two, why_not=not_comparable, dtypes=NUMBERS)
def scatter_reduce(ctx, self, dim, index, src, reduce, *, include_self=True):
    """scatter_reduce.two(Tensor self, int dim, Tensor index, Tensor src, str reduce, *, bool include_self=True)
    -> Tensor"""
    dtype = result_dtype(ctx)
    wide = widened(dtype)
    self, index, src = ctx.tensor(self, wide), ctx.tensor(index), ctx.tensor(src, wide)
    dim %= len(self.shape)
    if not equal(fake(ctx, 2).shape, fake(ctx, 3).shape):
        src = ctx.slice(src, [0] * len(src.shape), ctx.sizes(index))
    total, mask = sent(ctx, reduce, int(fake(ctx, 0).shape[dim]), index, src, dim)
    total = _grown(ctx, total, self, dim, neutral(reduce, wide))

    def count():
        return _grown(ctx, _count(ctx, mask, dim, wide), self, dim, 0)

    return ctx.cast(_with_self(ctx, reduce, self, total, count, include_self), dtype)


def _count(ctx, mask, dim, dtype):
    """Return how many values each place gets."""
    return ctx.reduce("SUM", ctx.cast(mask, dtype), [dim + 1], keep_dims=False)


def _with_self(ctx, reduce, self, total, count, include_self):
    """Reduce `self` with the values sent to it, or replace it by them where there are any.

    count: returns how many values each place gets; called where that matters.
    """
    dtype = ctx.dtype(self)
    if include_self:
        total = ctx.elementwise(LAYERS[reduce][0], self, total)
        return _mean(ctx, total, ctx.elementwise("SUM", count(), 1, dtype)) if reduce == "mean" else total
    number = count()
    if reduce == "mean":
        total = _mean(ctx, total, ctx.elementwise("MAX", number, 1, dtype))
    return ctx.select(ctx.elementwise("GREATER", number, 0, dtype), total, self)


def _mean(ctx, total, count):
    """Divide; a mean of integers is rounded down."""
    return ctx.elementwise("DIV" if ctx.dtype(total).is_floating_point else "FLOOR_DIV", total, count)


def _grown(ctx, tensor, like, dim, fill):
    """Pad `tensor` with `fill` to the sizes of `like`, of which an index may use a part."""
    own, index = fake(ctx, 0).shape, fake(ctx, 2).shape
    if all(d == dim or equal([own[d]], [index[d]]) for d in range(len(own))):
        return tensor
    return ctx.slice(tensor, [0] * len(own), ctx.sizes(like), mode="FILL", fill=fill)


def slices_not_comparable(self, dim, index, source, reduce, **rest):
    """Each position is compared with each number of a slice."""
    if not self.dim() or source.dim() != self.dim():
        return "a reduction of numbers without dimensions"
    return too_many_comparisons(self.shape[dim], source.shape)


@converter(aten.index_reduce.default, why_not=slices_not_comparable, dtypes=NUMBERS)
def index_reduce(ctx, self, dim, index, source, reduce, *, include_self=True):
    """index_reduce(Tensor self, int dim, Tensor index, Tensor source, str reduce, *, bool include_self=True)
    -> Tensor"""
    dtype = result_dtype(ctx)
    wide = widened(dtype)
    self, source = ctx.tensor(self, wide), ctx.tensor(source, wide)
    dim %= len(self.shape)
    index = ctx.reshape(ctx.tensor(index, rank=1), [-1 if d == dim else 1 for d in range(len(self.shape))])
    total, mask = sent(ctx, reduce, int(fake(ctx, 0).shape[dim]), index, source, dim)
    result = _with_self(ctx, reduce, self, total, lambda: _count(ctx, mask, dim, wide), include_self)
    return ctx.cast(result, dtype)
