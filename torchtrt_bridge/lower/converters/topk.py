"""Positions and order of values, all by TensorRT's TopK layer, and running sums and products."""

from __future__ import annotations

import math
import operator

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower.converters.arithmetic import result_dtype, widened
from torchtrt_bridge.lower.converters.reduce import extreme, log_of_sum
from torchtrt_bridge.lower.registry import FLOATS, MAX_RANK, converter

aten = torch.ops.aten


def largest(ctx, op, value, k, dim, nan=math.inf):
    """Return the `k` first values along `dim`, in order, and their int64 positions; of equal values the first.

    nan: the place of NaN: above all numbers, or below them.
    """
    tensor = ctx.tensor(value)
    values, positions = _first(ctx, op, ranked(ctx, tensor, nan), k, dim)
    if not ctx.dtype(tensor).is_floating_point:
        return ctx.cast(values, ctx.dtype(tensor)), positions
    return taken(ctx, tensor, dim, positions), positions


def ranked(ctx, tensor, nan):
    """Return numbers in the order of PyTorch: TensorRT orders no bools, and does not say where NaN stands."""
    dtype = ctx.dtype(tensor)
    if not dtype.is_floating_point:
        return ctx.cast(tensor, torch.int32) if dtype == torch.bool else tensor
    tensor = ctx.cast(tensor, widened(dtype))
    limit = math.copysign(torch.finfo(torch.float32).max, nan)
    return ctx.select(ctx.unary("ISNAN", tensor), nan, ctx.elementwise("MIN" if nan > 0 else "MAX", tensor, limit))


def taken(ctx, tensor, dim, positions):
    """Return the elements at `positions` along `dim`."""
    if not len(tensor.shape):
        return tensor
    layer = ctx.network.add_gather_v2(tensor, positions, ctx.trt.GatherMode.ELEMENT)
    layer.axis = dim % len(tensor.shape)
    return layer.get_output(0)


def _first(ctx, op, tensor, k, dim):
    """Add a TopK layer, which wants two dimensions."""
    rank = len(tensor.shape)
    missing = range(max(0, 2 - rank))
    if missing:
        tensor = ctx.unsqueeze(tensor, missing)
    axes = ctx.axes([dim % max(rank, 1) + len(missing) - (rank == 0)], len(tensor.shape))
    kind = getattr(ctx.trt.TopKOperation, op)
    layer = ctx.network.add_topk(tensor, kind, k if isinstance(k, int) else 1, axes, ctx.trt.int64)
    if not isinstance(k, int):
        layer.set_input(1, ctx.squeeze(ctx.shape_tensor([k]), [0]))
    outputs = [layer.get_output(index) for index in (0, 1)]
    return [ctx.squeeze(output, missing) for output in outputs] if missing else outputs


# The most values that TensorRT finds.
MAX_K = 3840


def many_values(self, k, dim=-1, largest=True, sorted=True):
    """TensorRT's TopK layer has a limit, whatever the number of values that it chooses from."""
    return f"the {k} largest values; TensorRT finds at most {MAX_K}" if not is_symbolic(k) and k > MAX_K else None


@converter(aten.topk.default, why_not=many_values)
def topk(ctx, self, k, dim=-1, largest_=True, sorted=True):
    """topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor, Tensor)"""
    return largest(ctx, "MAX" if largest_ else "MIN", self, k, dim)


def long_axis(self, dim=-1, descending=False):
    """A sort is the TopK of all values."""
    size = self.shape[dim] if self.dim() else 1
    if is_symbolic(size):
        return "sorting along a dimension whose size is not known"
    return f"sorting {size} values; TensorRT sorts at most {MAX_K}" if size > MAX_K else None


@converter(aten.sort.default, why_not=long_axis)
def sort(ctx, self, dim=-1, descending=False):
    """sort(Tensor self, int dim=-1, bool descending=False) -> (Tensor, Tensor)"""
    size = ctx.node.meta["val"][0].shape[dim] if len(self.shape) else 1
    return largest(ctx, "MAX" if descending else "MIN", self, int(size), dim)


# The most values that are put in order by comparing each with each.
MAX_COMPARED = 1024


def many_comparisons(self, *, stable, dim=-1, descending=False):
    """TensorRT does not say in which order it leaves equal values, so each value is compared with all others."""
    size = self.shape[dim] if self.dim() else 1
    if self.dim() == MAX_RANK:
        return f"a stable sort in {MAX_RANK} dimensions"
    if is_symbolic(size):
        return "sorting along a dimension whose size is not known"
    return f"a stable sort of {size} values; at most {MAX_COMPARED}" if size > MAX_COMPARED else None


@converter(aten.sort.stable, why_not=many_comparisons)
def sort_stable(ctx, self, *, stable, dim=-1, descending=False):
    """sort.stable(Tensor self, *, bool? stable, int dim=-1, bool descending=False) -> (Tensor, Tensor)"""
    tensor = ctx.tensor(self)
    rank = len(tensor.shape)
    if not rank:
        return tensor, ctx.constant(0, torch.int64)
    dim %= rank
    size = int(ctx.node.meta["val"][0].shape[dim])
    _, positions = _first(ctx, "MIN", _places(ctx, ranked(ctx, tensor, math.inf), size, dim, descending), size, dim)
    return taken(ctx, tensor, dim, positions), positions


def _places(ctx, tensor, size, dim, descending):
    """Return the place of each value in a stable order along `dim`: the number of those that come before."""
    own, other = ctx.unsqueeze(tensor, [dim + 1]), ctx.unsqueeze(tensor, [dim])
    before = ctx.elementwise("GREATER" if descending else "LESS", other, own)
    shape = [size if d in (dim, dim + 1) else 1 for d in range(len(tensor.shape) + 1)]
    earlier = ctx.constant(torch.ones(size, size, dtype=torch.bool).tril(-1).reshape(shape))
    equal = ctx.elementwise("AND", ctx.elementwise("EQUAL", other, own), earlier)
    return ctx.reduce("SUM", ctx.cast(ctx.elementwise("OR", before, equal), torch.int32), [dim + 1], False)


def _extreme_along(op, kind, nan):
    """Register values and positions of extremes along a dimension; a reduction if only values are used."""

    @converter(op)
    def lower(ctx, self, dim, keepdim=False):
        users = list(ctx.node.users)
        if users and all(user.target is operator.getitem and user.args[1] == 0 for user in users):
            return extreme(ctx, kind, self, dim, keepdim), None
        values, positions = largest(ctx, kind, self, 1, dim, nan)
        if keepdim or not len(self.shape):
            return values, positions
        dims = [dim % len(self.shape)]
        return ctx.squeeze(values, dims), ctx.squeeze(positions, dims)

    lower.__doc__ = str(schema_of(op))


_extreme_along(aten.max.dim, "MAX", math.inf)
_extreme_along(aten.min.dim, "MIN", -math.inf)


def _position(op, kind, nan):
    """Register the position of the extreme along a dimension, or in the flat tensor."""

    @converter(op)
    def lower(ctx, self, dim=None, keepdim=False):
        tensor = ctx.tensor(self)
        rank = len(tensor.shape)
        flat = dim is None and rank > 1
        line = ctx.reshape(tensor, [-1]) if flat else tensor
        _, positions = _first(ctx, kind, ranked(ctx, line, nan), 1, 0 if dim is None else dim)
        if flat:
            return ctx.reshape(positions, [1] * rank if keepdim else [])
        return positions if keepdim or not rank else ctx.squeeze(positions, [(dim or 0) % rank])

    lower.__doc__ = str(schema_of(op))


_position(aten.argmax.default, "MAX", math.inf)
_position(aten.argmin.default, "MIN", -math.inf)


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


MAX_RUNNING = 1024


def long_run(self, dim, **rest):
    """Each value is read once for every position behind it."""
    size = self.shape[dim] if self.dim() else 1
    if self.dim() == MAX_RANK:
        return f"running results in {MAX_RANK} dimensions"
    if is_symbolic(size):
        return "running results along a dimension whose size is not known"
    return f"running results of {size} values; at most {MAX_RUNNING}" if size > MAX_RUNNING else None


def product_too_long(self, dim, dtype=None):
    return long_run(self, dim)


@converter(aten.cumprod.default, why_not=product_too_long, precision="fp32")
def cumprod(ctx, self, dim, dtype=None):
    """cumprod(Tensor self, int dim, *, ScalarType? dtype=None) -> Tensor"""
    dtype = result_dtype(ctx)
    tensor = ctx.tensor(self, widened(dtype))
    if not len(tensor.shape):
        return ctx.cast(tensor, dtype)
    dim %= len(tensor.shape)
    return ctx.cast(ctx.reduce("PROD", _up_to_each(ctx, tensor, dim, 1), [dim + 1], False), dtype)


def logarithm_too_long(self, dim):
    return long_run(self, dim)


@converter(aten.logcumsumexp.default, why_not=logarithm_too_long, dtypes=FLOATS, precision="fp32")
def logcumsumexp(ctx, self, dim):
    """logcumsumexp(Tensor self, int dim) -> Tensor"""
    dtype = result_dtype(ctx)
    tensor = ctx.tensor(self, widened(dtype))
    if not len(tensor.shape):
        return ctx.cast(tensor, dtype)
    dim %= len(tensor.shape)
    return ctx.cast(log_of_sum(ctx, _up_to_each(ctx, tensor, dim, -math.inf), [dim + 1], False), dtype)


def _up_to_each(ctx, tensor, dim, neutral):
    """Return, for each position along `dim`, all values in the next dimension, with `neutral` for later ones."""
    rank, size = len(tensor.shape), int(ctx.node.meta["val"].shape[dim])
    shape = [size if d in (dim, dim + 1) else 1 for d in range(rank + 1)]
    mask = ctx.constant(torch.ones(size, size, dtype=torch.bool).tril().reshape(shape))
    return ctx.select(mask, ctx.unsqueeze(tensor, [dim]), neutral, ctx.dtype(tensor))
