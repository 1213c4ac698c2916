"""Elementwise operators of one and two tensors."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


@converter(aten.relu.default)
def relu(ctx, self):
    """relu(Tensor self) -> Tensor"""
    return ctx.activation("RELU", ctx.tensor(self))


@converter(aten.neg.default)
def neg(ctx, self):
    """neg(Tensor self) -> Tensor"""
    return ctx.unary("NEG", ctx.tensor(self))


def not_of_integers(self):
    """TensorRT has no bitwise operations on integers."""
    return None if self.dtype == torch.bool else "bitwise not of integers"


@converter(aten.bitwise_not.default, why_not=not_of_integers)
def bitwise_not(ctx, self):
    """bitwise_not(Tensor self) -> Tensor"""
    return ctx.unary("NOT", ctx.tensor(self))
