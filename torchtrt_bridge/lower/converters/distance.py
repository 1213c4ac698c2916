"""Distances between points: of each pair from two sets, and of the pairs within one."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.arithmetic import power
from torchtrt_bridge.lower.converters.sizes import fake
from torchtrt_bridge.lower.registry import MAX_RANK, converter

aten = torch.ops.aten

# PyTorch has no distances in half precision.
FP32 = (torch.float32,)

# The most coordinates of a point that are taken one after the other, without a tensor of all differences.
MAX_UNROLLED = 32

# The most elements that the tensor of all differences may have, for one element of the batch.
MAX_DIFFERENCES = 2**22


def many_differences(x1, x2, p, compute_mode):
    """Differences of many coordinates are one tensor, whose size is to be known."""
    if max(x1.dim(), x2.dim()) == MAX_RANK:
        return f"distances in {MAX_RANK} dimensions"
    sizes = x1.shape[-2], x2.shape[-2], x1.shape[-1]
    if _is_short(sizes[-1]):
        return None
    if any(map(is_symbolic, sizes)):
        return f"distances of points with more than {MAX_UNROLLED} coordinates, and a size known only at run time"
    return _too_many(math.prod(sizes))


def _too_many(count):
    return f"{count} differences; at most {MAX_DIFFERENCES}" if count > MAX_DIFFERENCES else None


def _is_short(size):
    return not is_symbolic(size) and size <= MAX_UNROLLED


@converter(aten._cdist_forward.default, why_not=many_differences, dtypes=FP32, precision="fp32")
def cdist(ctx, x1, x2, p, compute_mode):
    """_cdist_forward(Tensor x1, Tensor x2, float p, int? compute_mode) -> Tensor

    PyTorch takes apart what it computes from a product of matrices: Euclidean distances of more than 25 points."""
    size = fake(ctx, 0).shape[-1]
    x1, x2 = ctx.operands(x1, x2)
    rank = len(x1.shape)
    if _is_short(size):
        x1, x2 = ctx.unsqueeze(x1, [rank - 1]), ctx.unsqueeze(x2, [rank - 2])
        return _root(ctx, _sum_one_by_one(ctx, x1, x2, p, int(size)), p)
    # The coordinates come before the points: beside a product of matrices of a dynamic batch, TensorRT-RTX 1.7 built no
    # engine of a sum of squared differences over the last dimension.
    x1, x2 = (ctx.permute(x, [*range(rank - 2), rank - 1, rank - 2]) for x in (x1, x2))
    differences = ctx.elementwise("SUB", ctx.unsqueeze(x1, [rank]), ctx.unsqueeze(x2, [rank - 1]))
    return _norm(ctx, differences, p, rank - 2)


def _sum_one_by_one(ctx, x1, x2, p, size):
    """Sum up powers of the differences by coordinate, so that no tensor is larger than the sum."""
    total = None
    for index in range(size):
        parts = [_coordinate(ctx, x, index) for x in (x1, x2)]
        term = _term(ctx, ctx.elementwise("SUB", *parts), p)
        total = term if total is None else ctx.elementwise("MAX" if p == math.inf else "SUM", total, term)
    return total


def _coordinate(ctx, x, index):
    rank = len(x.shape)
    part = ctx.slice(x, [0] * (rank - 1) + [index], [*ctx.sizes(x)[:-1], 1])
    return ctx.squeeze(part, [rank - 1])


def _norm(ctx, differences, p, dim):
    """Return the p-norm along a dimension."""
    return _root(ctx, ctx.reduce("MAX" if p == math.inf else "SUM", _term(ctx, differences, p), [dim], False), p)


def _term(ctx, difference, p):
    """Return what a difference adds to a norm: 1 for p = 0, unless it is zero."""
    if p == 0:
        return ctx.cast(ctx.cast(difference, torch.bool), ctx.dtype(difference))
    if p == 2:
        return power(ctx, difference, 2)
    size = ctx.unary("ABS", difference)
    return size if p in (1, math.inf) else ctx.elementwise("POW", size, p)


def _root(ctx, total, p):
    if p == 2:
        return ctx.unary("SQRT", total)
    return total if p in (0, 1, math.inf) else ctx.elementwise("POW", total, 1 / p)


def pairs_too_many(self, p=2):
    """The pairs are a constant of two indices each."""
    points, size = self.shape
    if is_symbolic(points) or is_symbolic(size):
        return "distances within a set of points whose size is known only at run time"
    return _too_many(points * (points - 1) // 2 * size)


@converter(aten._pdist_forward.default, why_not=pairs_too_many, dtypes=FP32, precision="fp32")
def pdist(ctx, self, p=2):
    """_pdist_forward(Tensor self, float p=2) -> Tensor"""
    self = ctx.tensor(self)
    pairs = torch.triu_indices(self.shape[0], self.shape[0], 1)
    ends = [ctx.network.add_gather(self, ctx.constant(index), 0).get_output(0) for index in pairs]
    return _norm(ctx, ctx.elementwise("SUB", *ends), p, 1)
