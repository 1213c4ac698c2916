"""Padding with a constant, a mirror image, the border or the other end; negative widths crop."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.lower.converters.sizes import computed
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten

MODES = {"constant": "FILL", "reflect": "REFLECT", "replicate": "CLAMP", "circular": "WRAP"}


@converter(aten.pad.default)
def pad(ctx, self, pad, mode="constant", value=None):
    """pad(Tensor self, SymInt[] pad, str mode="constant", float? value=None) -> Tensor"""
    x = ctx.tensor(self)
    if mode == "circular" and not all(isinstance(width, int) and width >= 0 for width in pad):
        # PyTorch wraps what is left after the cropping; the other modes come to the same in one slice.
        x = padded(ctx, x, [computed(ctx, torch.sym_min, width, 0) for width in pad], "STRICT_BOUNDS")
        pad = [computed(ctx, torch.sym_max, width, 0) for width in pad]
    return padded(ctx, x, pad, MODES[mode], 0 if value is None else value)


@converter(aten.constant_pad_nd.default)
def constant_pad_nd(ctx, self, pad, value=0):
    """constant_pad_nd(Tensor self, SymInt[] pad, Scalar value=0) -> Tensor"""
    return padded(ctx, ctx.tensor(self), pad, "FILL", value)


def padded(ctx, x, widths, mode, value=0):
    """Add a slice that begins and ends outside of `x`; `widths` are PyTorch's, the last dimension first."""
    rank, sizes = len(x.shape), ctx.sizes(x)
    start, shape = [0] * rank, list(sizes)
    for i in range(len(widths) // 2):
        dim, before, after = rank - 1 - i, widths[2 * i], widths[2 * i + 1]
        start[dim] = -before if isinstance(before, int) else computed(ctx, operator.sub, 0, before)
        shape[dim] = computed(ctx, operator.add, computed(ctx, operator.add, sizes[dim], before), after)
    return ctx.slice(x, start, shape, mode=mode, fill=value)
