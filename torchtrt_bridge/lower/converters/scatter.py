"""Writing by index."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.converters.index import adjacent, flat_index, in_front, indexed, merged, order_of
from torchtrt_bridge.lower.converters.sizes import equal, fake, scalar
from torchtrt_bridge.lower.converters.view import expand_to
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def adds_or_consumes(self, indices, values, accumulate=False):
    """TensorRT's scatter only writes; a mask can take values that are the same for each of its True ones."""
    if accumulate:
        return "accumulate=True: TensorRT has no scatter that adds"
    masks = [index for index in indices if index is not None and index.dtype == torch.bool]
    if not masks:
        return None
    if len(indexed(indices)) > 1:
        return "a boolean mask among other indices: the number of values depends on the data"
    trailing = self.dim() - masks[0].dim() - indexed(indices)[0]
    uniform = values.dim() <= trailing or all(equal([size], [1]) for size in values.shape[: values.dim() - trailing])
    return None if uniform else "a boolean mask with a value for each True: their number depends on the data"


@converter(aten.index_put.default, why_not=adds_or_consumes)
def index_put(ctx, self, indices, values, accumulate=False):
    """index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor"""
    self, dims = ctx.tensor(self), indexed(indices)
    first = indices[dims[0]]
    if ctx.dtype(first) == torch.bool:
        return _where_mask(ctx, self, ctx.tensor(first), dims[0], values)
    order = order_of(len(self.shape), dims)
    data = in_front(ctx, self, dims)
    sizes, count = ctx.sizes(data), len(dims)
    index = flat_index(ctx, [index for index in indices if index is not None], sizes[:count])
    updates = _updates(ctx, values, index, dims, sizes[count:])
    data = merged(ctx, data, list(range(count)))
    index = ctx.unsqueeze(index, [len(index.shape)])
    written = ctx.network.add_scatter(data, index, updates, ctx.trt.ScatterMode.ND).get_output(0)
    written = written if count == 1 else ctx.reshape(written, sizes)
    back = [order.index(dim) for dim in range(len(order))]
    return written if back == sorted(back) else ctx.permute(written, back)


def _updates(ctx, values, index, dims, rest):
    """`values` broadcast to what the indices pick, the dimensions of the index in front."""
    picked = ctx.sizes(index)
    before = dims[0] if adjacent(dims) else 0
    sizes = [*rest[:before], *picked, *rest[before:]]
    values = expand_to(ctx, values, fake(ctx, 2).shape, sizes)
    return in_front(ctx, values, list(range(before, before + len(picked)))) if before else values


def _where_mask(ctx, self, mask, first, values):
    """Values that do not depend on the number of True ones, where the mask is True."""
    rank = len(self.shape)
    after = range(first + len(mask.shape), rank)
    mask = ctx.tensor(ctx.unsqueeze(mask, [*range(first), *after]) if first or after else mask, rank=rank)
    values = ctx.tensor(values)
    extra = len(values.shape) - rank
    return ctx.select(mask, values if extra <= 0 else ctx.squeeze(values, range(extra)), self)


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
