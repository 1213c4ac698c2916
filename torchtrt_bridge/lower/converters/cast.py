"""Casts and copies."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.registry import converter
from torchtrt_bridge.trt.dtypes import COMPUTE_DTYPES

aten = torch.ops.aten


def uint8_or_device_move(self, dtype=None, layout=None, device=None, **rest):
    """TensorRT knows uint8 only at the border of an engine, and an engine lives on one device."""
    if dtype == torch.uint8:
        return "a cast to uint8, which TensorRT does not compute with"
    wanted = self.device if device is None else torch.device(device)
    same = wanted.type == self.device.type and wanted.index in (None, self.device.index)
    return None if same else f"a move from {self.device} to {wanted}"


@converter(aten._to_copy.default, why_not=uint8_or_device_move, dtypes=(*COMPUTE_DTYPES, torch.uint8), movement="view")
def to_copy(
    ctx,
    self,
    *,
    dtype=None,
    layout=None,
    device=None,
    pin_memory=None,
    non_blocking=False,
    memory_format=None,
):
    """_to_copy(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None,
    bool? pin_memory=None, bool non_blocking=False, MemoryFormat? memory_format=None) -> Tensor"""
    return ctx.tensor(self, dtype)


@converter(aten.clone.default, movement="view")
def clone(ctx, self, *, memory_format=None):
    """clone(Tensor self, *, MemoryFormat? memory_format=None) -> Tensor"""
    return self


@converter(aten.alias.default, aten.detach.default, movement="view")
def alias(ctx, self):
    """alias(Tensor(a) self) -> Tensor(a)"""
    return self
