"""Limits on values."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.converters.arithmetic import result_dtype
from torchtrt_bridge.lower.converters.sizes import scalar
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def limited(ctx, value, low, high):
    """Limit `value` to `low` and `high`, each a tensor, a number or None; `high` wins if it is the lower one."""
    dtype = result_dtype(ctx)
    if dtype.is_floating_point and isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return ctx.activation("CLIP", ctx.tensor(value, dtype), alpha=float(min(low, high)), beta=float(high))
    tensor = ctx.tensor(value, dtype)
    for op, limit in (("MAX", low), ("MIN", high)):
        if limit is not None:
            tensor = ctx.elementwise(op, tensor, scalar(ctx, limit), dtype)
    return tensor


@converter(aten.clamp.default, aten.clamp.Tensor)
def clamp(ctx, self, min=None, max=None):
    """clamp(Tensor self, Scalar? min=None, Scalar? max=None) -> Tensor"""
    return limited(ctx, self, min, max)


@converter(aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp_min(ctx, self, min):
    """clamp_min(Tensor self, Scalar min) -> Tensor"""
    return limited(ctx, self, min, None)


@converter(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max(ctx, self, max):
    """clamp_max(Tensor self, Scalar max) -> Tensor"""
    return limited(ctx, self, None, max)


@converter(aten.hardtanh.default)
def hardtanh(ctx, self, min_val=-1, max_val=1):
    """hardtanh(Tensor self, Scalar min_val=-1, Scalar max_val=1) -> Tensor"""
    return limited(ctx, self, min_val, max_val)
