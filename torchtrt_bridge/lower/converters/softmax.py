"""Softmax and its logarithm."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.converters.arithmetic import result_dtype, widened
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


@converter(aten._softmax.default, precision="fp32")
def softmax(ctx, self, dim, half_to_float):
    """_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    tensor = ctx.tensor(self, result_dtype(ctx))
    rank = len(tensor.shape)
    missing = range(max(0, 2 - rank))  # the layer wants two dimensions
    layer = ctx.network.add_softmax(ctx.unsqueeze(tensor, missing) if missing else tensor)
    layer.axes = ctx.axes([dim % max(rank, 1) + max(0, 1 - rank) + (1 if rank == 1 else 0)], max(rank, 2))
    output = layer.get_output(0)
    return ctx.squeeze(output, missing) if missing else output


@converter(aten._log_softmax.default, precision="fp32")
def log_softmax(ctx, self, dim, half_to_float):
    """_log_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    dtype = result_dtype(ctx)
    tensor = ctx.tensor(self, widened(dtype))
    if not len(tensor.shape):
        return ctx.cast(ctx.elementwise("SUB", tensor, tensor), dtype)
    # The logarithm of a softmax would be -inf where the softmax vanishes.
    shifted = ctx.elementwise("SUB", tensor, ctx.reduce("MAX", tensor, [dim], True))
    total = ctx.reduce("SUM", ctx.unary("EXP", shifted), [dim], True)
    return ctx.cast(ctx.elementwise("SUB", shifted, ctx.unary("LOG", total)), dtype)
