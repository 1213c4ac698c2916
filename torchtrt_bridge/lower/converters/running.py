"""Running results along a dimension: sums, products, and the extremes so far with their positions."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.graph.torch_internals import schema_of, statically_known_true
from torchtrt_bridge.lower.converters.arithmetic import result_dtype, widened
from torchtrt_bridge.lower.converters.order import counted, length
from torchtrt_bridge.lower.converters.sizes import fake
from torchtrt_bridge.lower.converters.topk import end_of, more_than, numbers, taken
from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten


@converter(aten.cumsum.default, precision="fp32")
def cumsum(ctx, self, dim, dtype=None):
    """cumsum(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    tensor = ctx.tensor(self, result_dtype(ctx))
    return running_sum(ctx, tensor, dim % len(tensor.shape)) if len(tensor.shape) else tensor


def running_sum(ctx, tensor, dim):
    """Add a running sum, the only operation of TensorRT's cumulative layer."""
    axis = ctx.constant(dim, torch.int64)
    kind = ctx.trt.CumulativeOperation.SUM
    return ctx.network.add_cumulative(tensor, axis, kind, False, False).get_output(0)


# The most values of a running result: each doubling of their number adds layers.
MAX_RUNNING = 2**16


def running(ctx, tensor, dim, combine, neutral):
    """Combine each value along `dim` of the node's first argument with all before it.

    Each step combines the results of two ranges that lie side by side, so that n values take log2(n) steps.
    """
    size, reach = fake(ctx, 0).shape[dim], 1
    while not statically_known_true(size <= reach):
        tensor = combine(tensor, _moved(ctx, tensor, dim, reach, neutral))
        reach *= 2
    return tensor


def _moved(ctx, tensor, dim, places, neutral):
    """Move values along `dim` to later places, behind as many `neutral` ones; the last values fall off the end."""
    start = [-places if d == dim else 0 for d in range(len(tensor.shape))]
    return ctx.slice(tensor, start, ctx.sizes(tensor), mode="FILL", fill=neutral)


def long_run(self, dim):
    """The steps of a running result are part of the network."""
    return more_than(MAX_RUNNING, self.shape[dim] if self.dim() else 1, "running results of")


def long_product(self, dim, dtype=None):
    return long_run(self, dim)


@converter(aten.cumprod.default, why_not=long_product, precision="fp32")
def cumprod(ctx, self, dim, dtype=None):
    """cumprod(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    dtype = result_dtype(ctx)
    tensor = ctx.tensor(self, widened(dtype))
    if len(tensor.shape):
        tensor = running(ctx, tensor, dim % len(tensor.shape), lambda a, b: ctx.elementwise("PROD", a, b), 1)
    return ctx.cast(tensor, dtype)


@converter(aten.logcumsumexp.default, why_not=long_run, dtypes=FLOATS, precision="fp32")
def logcumsumexp(ctx, self, dim):
    """logcumsumexp(Tensor self, int dim) -> Tensor"""
    dtype = result_dtype(ctx)
    tensor = ctx.tensor(self, widened(dtype))
    if len(tensor.shape):
        tensor = running(ctx, tensor, dim % len(tensor.shape), lambda a, b: log_add(ctx, a, b), -math.inf)
    return ctx.cast(tensor, dtype)


def log_add(ctx, left, right):
    """Compute the logarithm of exp(left) + exp(right), none of which overflows."""
    # Equal infinities cannot be taken from each other: inf - inf is NaN.
    distance = ctx.select(ctx.elementwise("EQUAL", left, right), 0.0, ctx.elementwise("SUB", left, right))
    rest = ctx.unary("EXP", ctx.unary("NEG", ctx.unary("ABS", distance)))
    more = ctx.unary("LOG", ctx.elementwise("SUM", rest, 1.0))
    return ctx.elementwise("SUM", ctx.elementwise("MAX", left, right), more)


def _extreme_so_far(op, kind):
    """Register the running extreme with its position: of equal values the last, and NaN as soon as there is one."""

    @converter(op, why_not=long_run)
    def lower(ctx, self, dim):
        tensor = ctx.tensor(self)
        if not len(tensor.shape):
            return tensor, ctx.constant(0, torch.int64)
        dim %= len(tensor.shape)
        values = numbers(ctx, tensor)
        positions = _last_extremes(ctx, values, dim, kind)
        return ctx.cast(taken(ctx, values, dim, positions), ctx.dtype(tensor)), positions

    lower.__doc__ = str(schema_of(op))


def _last_extremes(ctx, tensor, dim, kind):
    """Return, for each position along `dim`, that of the last extreme up to there.

    NaN counts from `MAX_RUNNING` on, beyond the positions of all numbers.
    """

    def furthest(values, op, neutral):
        return running(ctx, values, dim, lambda a, b: ctx.elementwise(op, a, b), neutral)

    worst = end_of(ctx.dtype(tensor), "MIN" if kind == "MAX" else "MAX")
    is_nan = ctx.unary("ISNAN", ctx.cast(tensor, torch.float32))
    tensor = ctx.select(is_nan, worst, tensor)
    is_extreme = ctx.elementwise("EQUAL", tensor, furthest(tensor, kind, worst))
    positions = counted(ctx, length(ctx, tensor, dim), dim, len(tensor.shape))
    places = ctx.select(is_nan, ctx.elementwise("SUM", positions, MAX_RUNNING), ctx.select(is_extreme, positions, 0))
    last = furthest(places, "MAX", 0)
    is_number = ctx.elementwise("LESS", last, MAX_RUNNING)
    return ctx.select(is_number, last, ctx.elementwise("SUB", last, MAX_RUNNING))


_extreme_so_far(aten.cummax.default, "MAX")
_extreme_so_far(aten.cummin.default, "MIN")
