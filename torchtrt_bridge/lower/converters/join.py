"""Join and split: tensors side by side, and parts of one."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.lower.converters.sizes import computed, known
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


@converter(aten.cat.default)
def cat(ctx, tensors, dim=0):
    """cat(Tensor[] tensors, int dim=0) -> Tensor"""
    expected = ctx.node.meta["val"]
    tensors = [ctx.tensor(tensor, expected.dtype) for tensor in tensors]
    if len(tensors) == 1:
        return tensors[0]
    layer = ctx.network.add_concatenation(tensors)
    layer.axis = dim % expected.dim()
    return layer.get_output(0)


@converter(aten.split_with_sizes.default, movement="view")
def split_with_sizes(ctx, self, split_sizes, dim=0):
    """split_with_sizes(Tensor(a -> *) self, SymInt[] split_sizes, int dim=0) -> Tensor(a)[]"""
    self, parts = ctx.tensor(self), ctx.node.meta["val"]
    dim %= len(self.shape)
    start, shape, results = [0] * len(self.shape), ctx.sizes(self), []
    for size in known([part.shape[dim] for part in parts], split_sizes):
        shape[dim] = size
        results.append(ctx.slice(self, list(start), list(shape)))
        start[dim] = computed(ctx, operator.add, start[dim], size)
    return results
