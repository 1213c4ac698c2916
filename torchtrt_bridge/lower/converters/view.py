"""Views: the same elements under other sizes, in another order, or repeated."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.lower.converters.sizes import computed, equal, fake, known
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


@converter(aten.reshape.default, movement="reshape")
def reshape(ctx, self, shape):
    """reshape(Tensor(a) self, SymInt[] shape) -> Tensor(a)"""
    expected = ctx.node.meta["val"].shape
    if equal(fake(ctx, 0).shape, expected):
        return ctx.tensor(self)
    return ctx.reshape(ctx.tensor(self), known(expected, shape))


@converter(aten.permute.default, movement="view")
def permute(ctx, self, dims):
    """permute(Tensor(a) self, int[] dims) -> Tensor(a)"""
    dims = [dim % len(dims) for dim in dims]
    self = ctx.tensor(self)
    return self if dims == sorted(dims) else ctx.permute(self, dims)


@converter(aten.squeeze.dims, movement="reshape")
def squeeze(ctx, self, dim):
    """squeeze.dims(Tensor(a) self, int[] dim) -> Tensor(a)"""
    sizes, self = fake(ctx, 0).shape, ctx.tensor(self)
    ones = sorted({d % len(sizes) for d in dim if sizes and equal([sizes[d]], [1])})
    return ctx.squeeze(self, ones) if ones else self


@converter(aten.unsqueeze.default, movement="reshape")
def unsqueeze(ctx, self, dim):
    """unsqueeze(Tensor(a) self, int dim) -> Tensor(a)"""
    self = ctx.tensor(self)
    return ctx.unsqueeze(self, [dim % (len(self.shape) + 1)])


@converter(aten.expand.default, movement="view")
def expand(ctx, self, size, *, implicit=False):
    """expand(Tensor(a) self, SymInt[] size, *, bool implicit=False) -> Tensor(a)"""
    return expand_to(ctx, self, fake(ctx, 0).shape, known(ctx.node.meta["val"].shape, size))


def expand_to(ctx, tensor, own, sizes):
    """Broadcast `tensor`, of the fake sizes `own`, to `sizes`; -1 keeps a size."""
    own = [1] * (len(sizes) - len(own)) + list(own)
    tensor = ctx.tensor(tensor, rank=len(sizes))
    pairs = zip(own, sizes, strict=True)
    grows = [equal([old], [1]) and (ctx.is_size(new) or new > 1) for old, new in pairs]
    if not any(grows):
        return tensor
    kept = ctx.sizes(tensor)
    shape = [sizes[dim] if grown else kept[dim] for dim, grown in enumerate(grows)]
    return ctx.slice(tensor, [0] * len(sizes), shape, [0 if grown else 1 for grown in grows])


@converter(aten.copy.default)
def copy(ctx, self, src, non_blocking=False):
    """copy(Tensor self, Tensor src, bool non_blocking=False) -> Tensor"""
    expected = ctx.node.meta["val"]
    sizes = known(expected.shape, ctx.sizes(ctx.tensor(self)))
    return expand_to(ctx, ctx.tensor(src, expected.dtype), fake(ctx, 1).shape, sizes)


@converter(aten.repeat.default, movement="gather")
def repeat(ctx, self, repeats):
    """repeat(Tensor self, SymInt[] repeats) -> Tensor"""
    own = fake(ctx, 0).shape
    own = [1] * (len(repeats) - len(own)) + list(own)
    once = [isinstance(times, int) and times == 1 for times in repeats]
    if all(equal([size], [1]) or only for size, only in zip(own, once, strict=True)):
        return expand_to(ctx, self, own, [-1 if only else n for n, only in zip(repeats, once, strict=True)])
    self = ctx.tensor(self, rank=len(repeats))
    sizes = [computed(ctx, operator.mul, *pair) for pair in zip(ctx.sizes(self), repeats, strict=True)]
    return ctx.slice(self, [0] * len(sizes), sizes, mode="WRAP")
