"""Casts and copies."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.converters.compare import truth
from torchtrt_bridge.lower.dtypes import COMPUTE_DTYPES
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def device_move(self, dtype=None, layout=None, device=None, **rest):
    """An engine lives on one device."""
    wanted = self.device if device is None else torch.device(device)
    same = wanted.type == self.device.type and wanted.index in (None, self.device.index)
    return None if same else f"a move from {self.device} to {wanted}"


@converter(aten._to_copy.default, why_not=device_move, dtypes=(*COMPUTE_DTYPES, torch.uint8))
def to_copy(
    ctx,
    self,
    dtype=None,
    layout=None,
    device=None,
    pin_memory=None,
    non_blocking=False,
    memory_format=None,
):
    """_to_copy(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None,
    bool? pin_memory=None, bool non_blocking=False, MemoryFormat? memory_format=None) -> Tensor"""
    if dtype is None or isinstance(self, torch.Tensor):
        return ctx.tensor(self, dtype)
    if dtype == torch.bool and ctx.dtype(self) != torch.uint8:
        return truth(ctx, self)
    if dtype == torch.uint8 and not ctx.dtype(self).is_floating_point and ctx.dtype(self) != torch.bool:
        # PyTorch keeps the last eight bits; TensorRT does not say what it keeps.
        whole = ctx.elementwise("FLOOR_DIV", self, 256, ctx.dtype(self))
        self = ctx.elementwise("SUB", self, ctx.elementwise("PROD", whole, 256, ctx.dtype(self)))
    return ctx.cast(self, dtype)


@converter(aten.clone.default, dtypes=(*COMPUTE_DTYPES, torch.uint8))
def clone(ctx, self, memory_format=None):
    """clone(Tensor self, *, MemoryFormat? memory_format=None) -> Tensor"""
    return self


@converter(aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)
def alias(ctx, self):
    """alias(Tensor(a) self) -> Tensor(a)"""
    return self
