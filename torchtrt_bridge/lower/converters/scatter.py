"""Writing by index."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.lower.converters.arithmetic import widened
from torchtrt_bridge.lower.converters.index import adjacent, flat_index, in_front, indexed, merged, order_of
from torchtrt_bridge.lower.converters.running import running_sum
from torchtrt_bridge.lower.converters.scatter_reduce import sent, too_many_comparisons
from torchtrt_bridge.lower.converters.sizes import equal, fake, product, scalar
from torchtrt_bridge.lower.converters.view import expand_to
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def depends_on_data(self, indices, values, accumulate=False):
    """A mask takes values that are the same for each True; a sum compares each position with each index."""
    masks = [index for index in indices if index is not None and index.dtype == torch.bool]
    if accumulate and self.dtype == torch.bool:
        return "sums of bools"
    if not masks:
        return _sums_too_much(self, indices) if accumulate else None
    if len(indexed(indices)) > 1:
        return "a boolean mask among other indices: the number of values depends on the data"
    trailing = self.dim() - masks[0].dim() - indexed(indices)[0]
    uniform = values.dim() <= trailing or all(equal([size], [1]) for size in values.shape[: values.dim() - trailing])
    return None if uniform else "a boolean mask with a value for each True: their number depends on the data"


def _sums_too_much(self, indices):
    dims = indexed(indices)
    picked = torch.broadcast_shapes(*[indices[dim].shape for dim in dims])
    rest = [size for dim, size in enumerate(self.shape) if dim not in dims]
    return too_many_comparisons(math.prod(self.shape[dim] for dim in dims), [math.prod(picked), *rest])


@converter(aten.index_put.default, why_not=depends_on_data)
def index_put(ctx, self, indices, values, accumulate=False):
    """index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor"""
    self, dims = ctx.tensor(self), indexed(indices)
    first = indices[dims[0]]
    if ctx.dtype(first) == torch.bool:
        return _where_mask(ctx, self, ctx.tensor(first), dims[0], values, accumulate)
    order = order_of(len(self.shape), dims)
    data = in_front(ctx, self, dims)
    sizes, count = ctx.sizes(data), len(dims)
    index = flat_index(ctx, [index for index in indices if index is not None], sizes[:count])
    updates = _updates(ctx, values, index, dims, sizes[count:])
    data = merged(ctx, data, list(range(count)))
    written = _added(ctx, data, index, updates, dims) if accumulate else _written(ctx, data, index, updates)
    written = written if count == 1 else ctx.reshape(written, sizes)
    back = [order.index(dim) for dim in range(len(order))]
    return written if back == sorted(back) else ctx.permute(written, back)


def _written(ctx, data, index, updates):
    """Replace the rows of `data` that `index` names by `updates`."""
    index = ctx.unsqueeze(index, [len(index.shape)])
    return ctx.network.add_scatter(data, index, updates, ctx.trt.ScatterMode.ND).get_output(0)


def _added(ctx, data, index, updates, dims):
    """Add `updates` to the rows of `data` that `index` names, some of them repeatedly.

    dims: the dimensions whose elements are the rows.
    """
    rank, wide = len(index.shape), widened(ctx.dtype(data))
    rest = ctx.sizes(updates)[rank:]
    number = product(ctx, ctx.sizes(index))
    updates = ctx.reshape(ctx.cast(updates, wide), [number, *rest])
    index = ctx.reshape(index, [number, *[1] * len(rest)])
    rows = math.prod(int(fake(ctx, 0).shape[dim]) for dim in dims)
    total, _ = sent(ctx, "sum", rows, index, updates, 0)
    return ctx.cast(ctx.elementwise("SUM", data, total, wide), ctx.dtype(data))


def _updates(ctx, values, index, dims, rest):
    """Broadcast `values` to the shape that the indices pick, with the dimensions of the index in front."""
    picked = ctx.sizes(index)
    before = dims[0] if adjacent(dims) else 0
    sizes = [*rest[:before], *picked, *rest[before:]]
    values = expand_to(ctx, values, fake(ctx, 2).shape, sizes)
    return in_front(ctx, values, list(range(before, before + len(picked)))) if before else values


def _where_mask(ctx, self, mask, first, values, accumulate):
    """Write or add values, which do not depend on the number of True ones, where the mask is True."""
    rank = len(self.shape)
    after = range(first + len(mask.shape), rank)
    mask = ctx.tensor(ctx.unsqueeze(mask, [*range(first), *after]) if first or after else mask, rank=rank)
    values = ctx.tensor(values)
    extra = len(values.shape) - rank
    values = values if extra <= 0 else ctx.squeeze(values, range(extra))
    return ctx.select(mask, ctx.elementwise("SUM", self, values) if accumulate else values, self)


@converter(aten.scatter.src)
def scatter(ctx, self, dim, index, src):
    """scatter.src(Tensor self, int dim, Tensor index, Tensor src) -> Tensor"""
    index, src = ctx.tensor(index), ctx.tensor(src)
    if not equal(fake(ctx, 2).shape, fake(ctx, 3).shape):
        src = ctx.slice(src, [0] * len(src.shape), ctx.sizes(index))
    return _scattered(ctx, ctx.tensor(self), dim, index, src)


@converter(aten.scatter.value)
def scatter_value(ctx, self, dim, index, value):
    """scatter.value(Tensor self, int dim, Tensor index, Scalar value) -> Tensor"""
    self, index = ctx.tensor(self), ctx.tensor(index)
    value = ctx.tensor(scalar(ctx, value), ctx.dtype(self))
    return _scattered(ctx, self, dim, index, expand_to(ctx, value, [], ctx.sizes(index)))


def _scattered(ctx, data, dim, index, updates):
    layer = ctx.network.add_scatter(data, index, updates, ctx.trt.ScatterMode.ELEMENT)
    layer.axis = dim % len(data.shape)
    return layer.get_output(0)


def mask_of_more(self, mask, source):
    """A result larger than the tensor is not lowered; few models have one."""
    larger = mask.dim() > self.dim() or any(
        equal([own], [1]) and not equal([other], [1])
        for own, other in zip(reversed(self.shape), reversed(mask.shape), strict=False)
    )
    return "a mask that is larger than the tensor" if larger else None


@converter(aten.masked_scatter.default, why_not=mask_of_more)
def masked_scatter(ctx, self, mask, source):
    """masked_scatter(Tensor self, Tensor mask, Tensor source) -> Tensor

    The n-th True takes the n-th element of the source; a running sum counts them.
    """
    self = ctx.tensor(self)
    sizes = ctx.sizes(self)
    mask = expand_to(ctx, mask, fake(ctx, 1).shape, sizes)
    number = running_sum(ctx, ctx.cast(ctx.reshape(mask, [-1]), torch.int64), 0)
    position = ctx.elementwise("MAX", ctx.elementwise("SUB", number, 1), 0)
    picked = ctx.network.add_gather(ctx.reshape(ctx.tensor(source), [-1]), position, 0).get_output(0)
    return ctx.select(mask, ctx.reshape(picked, sizes), self)
