"""Reading by index: gathers, rows of a table, and the numbers of classes."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.lower.converters.sizes import computed, equal, fake, product, scalar
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


@converter(aten.gather.default, movement="gather")
def gather(ctx, self, dim, index, *, sparse_grad=False):
    """gather(Tensor self, int dim, Tensor index, *, bool sparse_grad=False) -> Tensor"""
    self, index = ctx.tensor(self), ctx.tensor(index)
    if not len(self.shape):
        return self if not len(index.shape) else ctx.expand(self, ctx.sizes(index))
    dim %= len(self.shape)
    old, wanted = fake(ctx, 0).shape, fake(ctx, 2).shape
    same = [d == dim or equal([old[d]], [wanted[d]]) for d in range(len(old))]
    if not all(same):
        sizes = zip(ctx.sizes(self), ctx.sizes(index), strict=True)
        shape = [whole if d == dim else part for d, (whole, part) in enumerate(sizes)]
        self = ctx.slice(self, [0] * len(shape), shape)
    layer = ctx.network.add_gather_v2(self, index, ctx.trt.GatherMode.ELEMENT)
    layer.axis = dim
    return layer.get_output(0)


@converter(aten.index_select.default, movement="gather")
def index_select(ctx, self, dim, index):
    """index_select(Tensor self, int dim, Tensor index) -> Tensor"""
    self, index = ctx.tensor(self), ctx.tensor(index, rank=1)
    return ctx.network.add_gather(self, index, dim % len(self.shape)).get_output(0)


def has_masks(self, indices):
    """A mask picks as many elements as it has True ones, and TensorRT-RTX builds no NonZero."""
    masks = any(index is not None and index.dtype == torch.bool for index in indices)
    return "a boolean mask: the result's size depends on the data" if masks else None


@converter(aten.index.Tensor, why_not=has_masks, movement="gather")
def index_tensor(ctx, self, indices):
    """index.Tensor(Tensor self, Tensor?[] indices) -> Tensor"""
    self, dims = ctx.tensor(self), indexed(indices)
    if not adjacent(dims):
        self = in_front(ctx, self, dims)
        dims = list(range(len(dims)))
    sizes = [ctx.size(self, dim) for dim in dims]
    index = flat_index(ctx, [index for index in indices if index is not None], sizes)
    return ctx.network.add_gather(merged(ctx, self, dims), index, dims[0]).get_output(0)


def indexed(indices):
    return [dim for dim, index in enumerate(indices) if index is not None]


def adjacent(dims):
    """Return whether the new dimensions replace `dims`; otherwise PyTorch puts them in front."""
    return dims == list(range(dims[0], dims[0] + len(dims)))


def order_of(rank, dims):
    return [*dims, *(dim for dim in range(rank) if dim not in dims)]


def in_front(ctx, tensor, dims):
    order = order_of(len(tensor.shape), dims)
    return tensor if order == sorted(order) else ctx.permute(tensor, order)


def merged(ctx, tensor, dims):
    """Merge the adjacent dimensions `dims` of `tensor`."""
    if len(dims) == 1:
        return tensor
    sizes = ctx.sizes(tensor)
    return ctx.reshape(tensor, [*sizes[: dims[0]], product(ctx, [sizes[d] for d in dims]), *sizes[dims[-1] + 1 :]])


def flat_index(ctx, indices, sizes):
    """Return one index into the merged dimensions `sizes`, from an index of either sign for each of them."""
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
    """Count an index of either sign from the start."""
    if isinstance(index, torch.Tensor):
        if not bool((index < 0).any()):
            return index
        if isinstance(size, int):
            return torch.where(index < 0, index + size, index)
    index = ctx.tensor(index)
    below = ctx.elementwise("LESS", index, 0)
    return ctx.select(below, ctx.elementwise("SUM", index, scalar(ctx, size), ctx.dtype(index)), index)


def _numbers(ctx, op, layer, left, right):
    """Compute an integer operation, here if both sides are constants."""
    if isinstance(left, torch.Tensor) and isinstance(right, (torch.Tensor, int)) and not ctx.is_size(right):
        return op(left, right)
    return ctx.elementwise(layer, left, scalar(ctx, right), torch.int64)


@converter(aten.one_hot.default)
def one_hot(ctx, self, num_classes=-1):
    """one_hot(Tensor self, int num_classes=-1) -> Tensor

    PyTorch captures no graph where the largest value decides the result's size (-1).
    """
    self = ctx.tensor(self)
    classes = ctx.constant(list(range(num_classes)), torch.int64)
    equal_ = ctx.elementwise("EQUAL", ctx.unsqueeze(self, [len(self.shape)]), classes)
    return ctx.cast(equal_, torch.int64)


@converter(aten.embedding.default, movement="gather")
def embedding(ctx, weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    """embedding(Tensor weight, Tensor indices, SymInt padding_idx=-1, bool scale_grad_by_freq=False,
    bool sparse=False) -> Tensor

    The other arguments are about gradients."""
    return ctx.network.add_gather(ctx.tensor(weight), ctx.tensor(indices), 0).get_output(0)
