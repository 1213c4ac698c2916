"""Slices: parts of a tensor at regular positions, windows over it, and its elements in another order."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.graph.torch_internals import statically_known_true
from torchtrt_bridge.lower.converters.sizes import arithmetic, computed, equal, fake, known, product, scalar
from torchtrt_bridge.lower.converters.view import expand_to
from torchtrt_bridge.lower.registry import converter
from torchtrt_bridge.trt.dtypes import trt_dtype_from_torch

aten = torch.ops.aten
END = torch.iinfo(torch.int64).max


def position(ctx, index, length, meaning):
    """Return a bound of a slice as Python means it: negative from the end, and never outside of 0 to `length`.

    meaning: the fake value of `index`.
    """
    if not ctx.is_size(index) and not ctx.is_size(length):
        return min(max(index + length if index < 0 else index, 0), length)
    if isinstance(index, int) and index in (0, END):
        return 0 if index == 0 else length
    if statically_known_true(meaning < 0):
        return computed(ctx, torch.sym_max, computed(ctx, operator.add, length, index), 0)
    if not statically_known_true(meaning >= 0):
        index = wrapped(ctx, index, length)
    return computed(ctx, torch.sym_min, index, length)


def wrapped(ctx, index, length):
    """Count an index of either sign from the start: `length` is added below zero."""
    sign = arithmetic(ctx, "MAX", arithmetic(ctx, "MIN", index, 0), -1)
    return computed(ctx, operator.sub, index, computed(ctx, operator.mul, sign, length))


def count(ctx, start, end, step):
    """Return the number of steps of a positive `step` in a range."""
    last = computed(ctx, operator.add, computed(ctx, operator.sub, end, start), step - 1)
    return computed(ctx, torch.sym_max, computed(ctx, operator.floordiv, last, step), 0)


@converter(aten.slice.Tensor, movement="view")
def slice_tensor(ctx, self, dim=0, start=None, end=None, step=1):
    """slice.Tensor(Tensor(a) self, int dim=0, SymInt? start=None, SymInt? end=None, SymInt step=1)
    -> Tensor(a)"""
    self, expected = ctx.tensor(self), ctx.node.meta["val"].shape
    if equal(fake(ctx, 0).shape, expected) and step == 1:
        return self
    dim %= len(self.shape)
    starts, shape, steps = [0] * len(self.shape), ctx.sizes(self), [1] * len(self.shape)
    length, steps[dim] = shape[dim], step
    starts[dim] = position(ctx, 0 if start is None else start, length, 0 if start is None else fake(ctx, 2))
    stop = position(ctx, END if end is None else end, length, END if end is None else fake(ctx, 3))
    shape[dim] = known(expected, [0] * dim + [-1] + [0] * (len(expected) - dim - 1))[dim]
    if shape[dim] == -1:
        shape[dim] = count(ctx, starts[dim], stop, step)
    return ctx.slice(self, starts, shape, steps)


@converter(aten.select.int, movement="view")
def select(ctx, self, dim, index):
    """select.int(Tensor(a) self, int dim, SymInt index) -> Tensor(a)"""
    self = ctx.tensor(self)
    dim %= len(self.shape)
    start, shape = [0] * len(self.shape), ctx.sizes(self)
    if ctx.is_size(index) and not statically_known_true(fake(ctx, 2) >= 0):
        index = wrapped(ctx, index, shape[dim])
    elif not ctx.is_size(index) and index < 0:
        index = computed(ctx, operator.add, shape[dim], index)
    start[dim], shape[dim] = index, 1
    return ctx.squeeze(ctx.slice(self, start, shape), [dim])


@converter(aten.flip.default, movement="gather")
def flip(ctx, self, dims):
    """flip(Tensor self, int[] dims) -> Tensor"""
    self = ctx.tensor(self)
    start, shape, stride = [0] * len(self.shape), ctx.sizes(self), [1] * len(self.shape)
    for dim in dims:
        start[dim], stride[dim] = computed(ctx, operator.sub, shape[dim], 1), -1
    return ctx.slice(self, start, shape, stride) if dims and shape else self


@converter(aten.roll.default)
def roll(ctx, self, shifts, dims=()):
    """roll(Tensor self, SymInt[1] shifts, int[1] dims=[]) -> Tensor"""
    self = ctx.tensor(self)
    sizes = ctx.sizes(self)
    if not dims:
        flat = ctx.reshape(self, [product(ctx, sizes)])
        return ctx.reshape(_rolled(ctx, flat, shifts, [0]), sizes)
    return _rolled(ctx, self, shifts, dims)


def _rolled(ctx, tensor, shifts, dims):
    """Roll elements over the end of a dimension to its start: positions wrap around."""
    start, shape = [0] * len(tensor.shape), ctx.sizes(tensor)
    for shift, dim in zip(shifts, dims, strict=True):
        start[dim] = computed(ctx, operator.sub, start[dim], shift)
    for dim in {dim % len(shape) for dim in dims}:
        quotient = computed(ctx, operator.floordiv, start[dim], shape[dim])
        whole = computed(ctx, operator.mul, quotient, shape[dim])
        start[dim] = computed(ctx, operator.sub, start[dim], whole)
    return ctx.slice(tensor, start, shape, mode="WRAP")


@converter(aten.diagonal.default)
def diagonal(ctx, self, offset=0, dim1=0, dim2=1):
    """diagonal(Tensor(a) self, int offset=0, int dim1=0, int dim2=1) -> Tensor(a)"""
    self = ctx.tensor(self)
    rank = len(self.shape)
    dim1, dim2 = dim1 % rank, dim2 % rank
    self = ctx.permute(self, [d for d in range(rank) if d not in (dim1, dim2)] + [dim1, dim2])
    *batch, rows, columns = ctx.sizes(self)
    flat = ctx.reshape(self, [*batch, product(ctx, [rows, columns])])
    length = computed(
        ctx,
        torch.sym_min,
        computed(ctx, operator.add, rows, min(offset, 0)),
        computed(ctx, operator.sub, columns, max(offset, 0)),
    )
    down = computed(ctx, operator.mul, columns, max(-offset, 0))
    first = computed(ctx, operator.add, down, max(offset, 0))
    start, stride = [0] * len(batch) + [first], [1] * len(batch) + [computed(ctx, operator.add, columns, 1)]
    return ctx.slice(flat, start, [*batch, length], stride)


@converter(aten.unfold.default)
def unfold(ctx, self, dimension, size, step):
    """unfold(Tensor(a) self, int dimension, int size, int step) -> Tensor(a)"""
    self = ctx.tensor(self)
    dim = dimension % len(self.shape)
    sizes = ctx.sizes(self)
    windows = count(ctx, size - 1, sizes[dim], step)
    if size == step:
        shape = [*sizes[:dim], computed(ctx, operator.mul, windows, size), *sizes[dim + 1 :]]
        used = ctx.slice(self, [0] * len(sizes), shape)
        parts = ctx.reshape(used, [*sizes[:dim], windows, size, *sizes[dim + 1 :]])
    else:
        first = ctx.unsqueeze(line(ctx, 0, windows, step), [1])
        index = ctx.elementwise("SUM", first, ctx.constant([list(range(size))], torch.int64))
        parts = ctx.network.add_gather(self, index, dim).get_output(0)
    order = list(range(len(sizes) + 1))
    order.append(order.pop(dim + 1))
    return parts if order == sorted(order) else ctx.permute(parts, order)


def line(ctx, start, length, step, dtype=torch.int64):
    """Return `length` numbers from `start` on, `step` apart; start and length may be run-time sizes."""
    if all(isinstance(value, (int, float)) for value in (start, length, step)):
        return ctx.constant(start + step * torch.arange(length), dtype)
    wide = dtype if dtype in (torch.int64, torch.int32) else torch.float32  # TensorRT fills no others
    layer = ctx.network.add_fill((0,), ctx.trt.FillOperation.LINSPACE, trt_dtype_from_torch(ctx.trt, wide))
    layer.set_input(0, ctx.shape_tensor([length]))
    layer.set_input(1, ctx.tensor(scalar(ctx, start), wide))
    layer.set_input(2, ctx.constant([step], wide))
    return ctx.cast(layer.get_output(0), dtype)


def along(ctx, numbers, dim, rank):
    """Put a line of numbers along `dim`, of size 1 in all other of `rank` dimensions."""
    return ctx.unsqueeze(numbers, [d for d in range(rank) if d != dim]) if rank > 1 else numbers


@converter(aten.slice_scatter.default)
def slice_scatter(ctx, self, src, dim=0, start=None, end=None, step=1):
    """slice_scatter(Tensor self, Tensor src, int dim=0, SymInt? start=None, SymInt? end=None,
    SymInt step=1) -> Tensor"""
    self, src = ctx.tensor(self), ctx.tensor(src, ctx.dtype(self))
    dim %= len(self.shape)
    if equal(fake(ctx, 0).shape, fake(ctx, 1).shape) and step == 1:
        return src
    first = position(ctx, 0 if start is None else start, ctx.size(self, dim), 0 if start is None else fake(ctx, 3))
    return _written(ctx, self, src, dim, first, step)


@converter(aten.select_scatter.default)
def select_scatter(ctx, self, src, dim, index):
    """select_scatter(Tensor self, Tensor src, int dim, SymInt index) -> Tensor"""
    self, src = ctx.tensor(self), ctx.tensor(src, ctx.dtype(self))
    dim %= len(self.shape)
    first = position(ctx, index, ctx.size(self, dim), fake(ctx, 3))
    return _written(ctx, self, ctx.unsqueeze(src, [dim]), dim, first, 1)


def _written(ctx, self, src, dim, first, step):
    """Write `src` over the elements of `self` at first, first + step, ... along `dim`."""
    sizes, length = ctx.sizes(src), ctx.size(self, dim)
    if isinstance(first, int) and isinstance(length, int) and isinstance(sizes[dim], int) and step == 1:
        return _between(ctx, self, src, dim, first)
    index = line(ctx, first, sizes[dim], step)
    index = ctx.unsqueeze(index, [d for d in range(len(sizes)) if d != dim])
    own = [2 if d == dim else 1 for d in range(len(sizes))]
    index = expand_to(ctx, index, own, [-1 if d == dim else size for d, size in enumerate(sizes)])
    layer = ctx.network.add_scatter(self, index, src, ctx.trt.ScatterMode.ELEMENT)
    layer.axis = dim
    return layer.get_output(0)


def _between(ctx, tensor, src, dim, first):
    """Return `src` between the elements before and after it in `tensor`."""
    sizes = ctx.sizes(tensor)
    end, parts = first + src.shape[dim], []
    for low, high in ((0, first), (end, sizes[dim])):
        start, shape = [0] * len(sizes), list(sizes)
        start[dim], shape[dim] = low, high - low
        parts.append(ctx.slice(tensor, start, shape) if high > low else None)
    layer = ctx.network.add_concatenation([part for part in (parts[0], src, parts[1]) if part is not None])
    layer.axis = dim
    return layer.get_output(0)
