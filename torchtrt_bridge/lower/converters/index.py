"""Reading and writing by index."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.lower.converters.sizes import computed, equal, fake, known, product, scalar
from torchtrt_bridge.lower.converters.view import expand_to
from torchtrt_bridge.lower.registry import converter
from torchtrt_bridge.shapes import is_symbolic

aten = torch.ops.aten


@converter(aten.gather.default)
def gather(ctx, self, dim, index, *, sparse_grad=False):
    """gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor"""
    self, index = ctx.tensor(self), ctx.tensor(index)
    if not len(self.shape):
        return self if not len(index.shape) else ctx.expand(self, ctx.sizes(index))
    dim %= len(self.shape)
    own, wanted = fake(ctx, 0).shape, fake(ctx, 2).shape
    same = [d == dim or equal([own[d]], [wanted[d]]) for d in range(len(own))]
    if not all(same):
        sizes = zip(ctx.sizes(self), ctx.sizes(index), strict=True)
        shape = [mine if d == dim else theirs for d, (mine, theirs) in enumerate(sizes)]
        self = ctx.slice(self, [0] * len(shape), shape)
    layer = ctx.network.add_gather_v2(self, index, ctx.trt.GatherMode.ELEMENT)
    layer.axis = dim
    return layer.get_output(0)


@converter(aten.index_select.default)
def index_select(ctx, self, dim, index):
    """index_select(Tensor self, int dim, Tensor index) -> Tensor"""
    self, index = ctx.tensor(self), ctx.tensor(index, rank=1)
    return ctx.network.add_gather(self, index, dim % len(self.shape)).get_output(0)


def has_masks(self, indices):
    """A mask picks as many elements as it has True ones, and TensorRT-RTX builds no NonZero."""
    masks = any(index is not None and index.dtype == torch.bool for index in indices)
    return "a boolean mask: the result's size depends on the data" if masks else None


@converter(aten.index.Tensor, why_not=has_masks)
def index_tensor(ctx, self, indices):
    """index.Tensor(Tensor self, Tensor?[] indices) -> Tensor"""
    self, dims = ctx.tensor(self), _indexed(indices)
    if not _adjacent(dims):
        self = _in_front(ctx, self, dims)
        dims = list(range(len(dims)))
    sizes = [ctx.size(self, dim) for dim in dims]
    index = flat_index(ctx, [index for index in indices if index is not None], sizes)
    return ctx.network.add_gather(_merged(ctx, self, dims), index, dims[0]).get_output(0)


def _indexed(indices):
    return [dim for dim, index in enumerate(indices) if index is not None]


def _adjacent(dims):
    """Whether the new dimensions stand in the place of `dims`; PyTorch puts them in front otherwise."""
    return dims == list(range(dims[0], dims[0] + len(dims)))


def _order(rank, dims):
    return [*dims, *(dim for dim in range(rank) if dim not in dims)]


def _in_front(ctx, tensor, dims):
    order = _order(len(tensor.shape), dims)
    return tensor if order == sorted(order) else ctx.permute(tensor, order)


def _merged(ctx, tensor, dims):
    """`tensor` with the adjacent dimensions `dims` as one."""
    if len(dims) == 1:
        return tensor
    sizes = ctx.sizes(tensor)
    return ctx.reshape(tensor, [*sizes[: dims[0]], product(ctx, [sizes[d] for d in dims]), *sizes[dims[-1] + 1 :]])


def flat_index(ctx, indices, sizes):
    """One index into dimensions `sizes` merged into one, from an index of either sign for each of them."""
    result, stride = None, 1
    for index, size in reversed(list(zip(indices, sizes, strict=True))):
        wrapped = _from_start(ctx, index, size)
        if len(indices) > 1:
            wrapped = wrapped.long() if isinstance(wrapped, torch.Tensor) else ctx.cast(wrapped, torch.int64)
        step = _numbers(ctx, operator.mul, "PROD", wrapped, stride) if result is not None else wrapped
        result = step if result is None else _numbers(ctx, operator.add, "SUM", step, result)
        stride = computed(ctx, operator.mul, stride, size)
    return ctx.tensor(result)


def _from_start(ctx, index, size):
    """An index of either sign as one from 0 on."""
    if isinstance(index, torch.Tensor):
        if not bool((index < 0).any()):
            return index
        if isinstance(size, int):
            return torch.where(index < 0, index + size, index)
    index = ctx.tensor(index)
    below = ctx.elementwise("LESS", index, 0)
    return ctx.select(below, ctx.elementwise("SUM", index, scalar(ctx, size), ctx.dtype(index)), index)


def _numbers(ctx, op, layer, left, right):
    """An integer operation, done here where both sides are constants."""
    if isinstance(left, torch.Tensor) and isinstance(right, (torch.Tensor, int)) and not ctx.is_size(right):
        return op(left, right)
    return ctx.elementwise(layer, left, scalar(ctx, right), torch.int64)


def adds_or_consumes(self, indices, values, accumulate=False):
    """TensorRT's scatter only writes; a mask can take values that are the same for each of its True ones."""
    if accumulate:
        return "accumulate=True: TensorRT has no scatter that adds"
    masks = [index for index in indices if index is not None and index.dtype == torch.bool]
    if not masks:
        return None
    if len(_indexed(indices)) > 1:
        return "a boolean mask among other indices: the number of values depends on the data"
    trailing = self.dim() - masks[0].dim() - _indexed(indices)[0]
    uniform = values.dim() <= trailing or all(equal([size], [1]) for size in values.shape[: values.dim() - trailing])
    return None if uniform else "a boolean mask with a value for each True: their number depends on the data"


@converter(aten.index_put.default, why_not=adds_or_consumes)
def index_put(ctx, self, indices, values, accumulate=False):
    """index_put(Tensor self, Tensor?[] indices, Tensor values, bool accumulate=False) -> Tensor"""
    self, dims = ctx.tensor(self), _indexed(indices)
    first = indices[dims[0]]
    if ctx.dtype(first) == torch.bool:
        return _where_mask(ctx, self, ctx.tensor(first), dims[0], values)
    order = _order(len(self.shape), dims)
    data = _in_front(ctx, self, dims)
    sizes, count = ctx.sizes(data), len(dims)
    index = flat_index(ctx, [index for index in indices if index is not None], sizes[:count])
    updates = _updates(ctx, values, index, dims, sizes[count:])
    data = _merged(ctx, data, list(range(count)))
    index = ctx.unsqueeze(index, [len(index.shape)])
    written = ctx.network.add_scatter(data, index, updates, ctx.trt.ScatterMode.ND).get_output(0)
    written = written if count == 1 else ctx.reshape(written, sizes)
    back = [order.index(dim) for dim in range(len(order))]
    return written if back == sorted(back) else ctx.permute(written, back)


def _updates(ctx, values, index, dims, rest):
    """`values` broadcast to what the indices pick, the dimensions of the index in front."""
    picked = ctx.sizes(index)
    before = dims[0] if _adjacent(dims) else 0
    sizes = [*rest[:before], *picked, *rest[before:]]
    values = expand_to(ctx, values, fake(ctx, 2).shape, sizes)
    return _in_front(ctx, values, list(range(before, before + len(picked)))) if before else values


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


def unknown_classes(self, num_classes=-1):
    """Without the number of classes, the largest value decides the result's size."""
    return "num_classes=-1: the result's size depends on the data" if num_classes == -1 else None


@converter(aten.one_hot.default, why_not=unknown_classes)
def one_hot(ctx, self, num_classes=-1):
    """one_hot(Tensor self, int num_classes=-1) -> Tensor"""
    self = ctx.tensor(self)
    classes = ctx.constant(list(range(num_classes)), torch.int64)
    equal_ = ctx.elementwise("EQUAL", ctx.unsqueeze(self, [len(self.shape)]), classes)
    return ctx.cast(equal_, torch.int64)


MANY_BOUNDARIES = 1024


def many_boundaries(self, boundaries, **rest):
    """Each value is compared with each boundary."""
    count = boundaries.shape[0]
    return f"{count} boundaries" if is_symbolic(count) or count > MANY_BOUNDARIES else None


@converter(aten.bucketize.Tensor, why_not=many_boundaries)
def bucketize(ctx, self, boundaries, *, out_int32=False, right=False):
    """bucketize.Tensor(Tensor self, Tensor boundaries, *, bool out_int32=False, bool right=False) -> Tensor"""
    self = ctx.tensor(self)
    boundaries, values = ctx.operands(boundaries, ctx.unsqueeze(self, [len(self.shape)]))
    beyond = ctx.elementwise("GREATER", boundaries, values)
    if not right:
        beyond = ctx.elementwise("OR", beyond, ctx.elementwise("EQUAL", boundaries, values))
    passed = ctx.cast(ctx.unary("NOT", beyond), torch.int32 if out_int32 else torch.int64)
    return ctx.reduce("SUM", passed, [-1], keep_dims=False)
