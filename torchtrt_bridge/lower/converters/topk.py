"""The largest and the smallest values, and their positions, by TensorRT's TopK layer."""

from __future__ import annotations

import math
import operator

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import schema_of, statically_known_true
from torchtrt_bridge.lower.converters.arithmetic import widened
from torchtrt_bridge.lower.converters.reduce import extreme
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def largest(ctx, op, value, k, dim, nan=math.inf):
    """Return the `k` first values along `dim`, in order, and their int64 positions; of equal values the first.

    nan: the place of NaN: above all numbers, or below them.
    """
    tensor = ctx.tensor(value)
    values, positions = first(ctx, op, ranked(ctx, tensor, nan), k, dim)
    if not ctx.dtype(tensor).is_floating_point:
        return ctx.cast(values, ctx.dtype(tensor)), positions
    return taken(ctx, tensor, dim, positions), positions


# NaN takes the place of infinity, infinity that of the largest number, and the largest that of the number before.
LARGEST = torch.finfo(torch.float32).max
NEXT_LARGEST = LARGEST - 2.0**104


def ranked(ctx, tensor, nan):
    """Return numbers in the order of PyTorch: TensorRT does not say where NaN stands."""
    tensor = numbers(ctx, tensor)
    if not ctx.dtype(tensor).is_floating_point:
        return tensor
    largest_, next_largest = (math.copysign(number, nan) for number in (LARGEST, NEXT_LARGEST))
    finite = ctx.elementwise("MIN" if nan > 0 else "MAX", tensor, next_largest)
    order = ctx.select(ctx.elementwise("EQUAL", tensor, nan), largest_, finite)
    return ctx.select(ctx.unary("ISNAN", tensor), nan, order)


def numbers(ctx, tensor):
    """Return a tensor in a dtype that has an order: TensorRT orders no bools."""
    dtype = ctx.dtype(tensor)
    return ctx.cast(tensor, torch.int32 if dtype == torch.bool else widened(dtype))


def end_of(dtype, op):
    """Return the largest ("MAX") or the smallest number of a dtype."""
    if dtype.is_floating_point:
        return math.inf if op == "MAX" else -math.inf
    return torch.iinfo(dtype).max if op == "MAX" else torch.iinfo(dtype).min


def taken(ctx, tensor, dim, positions):
    """Return the elements at `positions` along `dim`."""
    if not len(tensor.shape):
        return tensor
    layer = ctx.network.add_gather_v2(tensor, positions, ctx.trt.GatherMode.ELEMENT)
    layer.axis = dim % len(tensor.shape)
    return layer.get_output(0)


def first(ctx, op, tensor, k, dim):
    """Add a TopK layer, which wants two dimensions; `k` may be a run-time size."""
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


def more_than(most, count, what):
    """Return the reason for which `count`, a number or a size with a range, is too large; None if it never is."""
    if statically_known_true(count <= most):
        return None
    if is_symbolic(count):
        return f"{what} as many values as a size that may exceed {most}: its range needs an upper end"
    return f"{what} {count} values; at most {most}"


def many_values(self, k, dim=-1, largest=True, sorted=True):
    """TensorRT's TopK layer has a limit, whatever the number of values that it chooses from."""
    return more_than(MAX_K, k, "finding")


@converter(aten.topk.default, why_not=many_values)
def topk(ctx, self, k, dim=-1, largest_=True, sorted=True):
    """topk(Tensor self, SymInt k, int dim=-1, bool largest=True, bool sorted=True) -> (Tensor, Tensor)"""
    return largest(ctx, "MAX" if largest_ else "MIN", self, k, dim)


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
        _, positions = first(ctx, kind, ranked(ctx, line, nan), 1, 0 if dim is None else dim)
        if flat:
            return ctx.reshape(positions, [1] * rank if keepdim else [])
        return positions if keepdim or not rank else ctx.squeeze(positions, [(dim or 0) % rank])

    lower.__doc__ = str(schema_of(op))


_position(aten.argmax.default, "MAX", math.inf)
_position(aten.argmin.default, "MIN", -math.inf)
