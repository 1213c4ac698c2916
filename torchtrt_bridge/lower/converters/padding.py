"""Padding with a constant, a mirror image, the border or the other end; negative widths crop."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten

MODES = {"constant": "FILL", "reflect": "REFLECT", "replicate": "CLAMP", "circular": "WRAP"}


@converter(aten.pad.default)
def pad(ctx, self, pad, mode="constant", value=None):
    """pad(Tensor self, SymInt[] pad, str mode="constant", float? value=None) -> Tensor"""
    return padded(ctx, ctx.tensor(self), pad, MODES[mode], 0 if value is None else value)


@converter(aten.constant_pad_nd.default)
def constant_pad_nd(ctx, self, pad, value=0):
    """constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor"""
    return padded(ctx, ctx.tensor(self), pad, "FILL", value)


def padded(ctx, x, widths, mode, value=0):
    """A slice that begins and ends outside of `x`; `widths` are PyTorch's, the last dimension first."""
    rank, sizes = len(x.shape), ctx.sizes(x)
    start, shape = [0] * rank, list(sizes)
    for i in range(len(widths) // 2):
        dim, before, after = rank - 1 - i, widths[2 * i], widths[2 * i + 1]
        start[dim] = -before if isinstance(before, int) else _arithmetic(ctx, "SUB", 0, before)
        shape[dim] = _arithmetic(ctx, "SUM", _arithmetic(ctx, "SUM", sizes[dim], before), after)
    index = ctx.network.num_layers
    result = ctx.slice(x, start, shape, mode=mode)
    if mode == "FILL" and value != 0:
        ctx.network.get_layer(index).set_input(4, ctx.constant(value, ctx.dtype(x)))
    return result


def _arithmetic(ctx, op, left, right):
    """A sum or difference of sizes, of which any may be known only at run time."""
    if isinstance(left, int) and isinstance(right, int):
        return left + right if op == "SUM" else left - right
    tensors = [ctx.shape_tensor([size]) for size in (left, right)]
    kind = getattr(ctx.trt.ElementWiseOperation, op)
    return ctx.as_size(ctx.network.add_elementwise(*tensors, kind).get_output(0))
