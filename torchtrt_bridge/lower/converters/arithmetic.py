"""Arithmetic of two tensors, or of a tensor and a number, under PyTorch's type promotion."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower.converters.sizes import scalar
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten
NARROW = (torch.float16, torch.bfloat16)


def result_dtype(ctx):
    """Return the dtype that PyTorch gives the node."""
    return ctx.node.meta["val"].dtype


def widened(dtype):
    """Return the dtype in which PyTorch accumulates `dtype`."""
    return torch.float32 if dtype in NARROW else dtype


def calculate(ctx, op, left, right, dtype=None):
    """Compute an elementwise operation in `dtype`, by default the node's, and cast it to the node's.

    PyTorch keeps numbers in fp32 beside tensors of half precision. This computes in fp32 if half precision has no
    such number: 0 * -1e9 is 0, but 0 * -inf is not.
    """
    own = result_dtype(ctx)
    left, right = scalar(ctx, left), scalar(ctx, right)
    dtype = dtype or (own if all(_fits(value, own) for value in (left, right)) else torch.float32)
    return ctx.cast(ctx.elementwise(op, left, right, dtype), own)


def _fits(value, dtype):
    if isinstance(value, torch.Tensor) and value.dim() == 0 and dtype in NARROW:
        value = value.item()
    if dtype not in NARROW or not isinstance(value, (int, float)) or value == 0 or not math.isfinite(value):
        return True
    return torch.finfo(dtype).tiny <= abs(value) <= torch.finfo(dtype).max


def scaled(ctx, value, alpha):
    """Compute alpha * value in the node's dtype."""
    if isinstance(value, (int, float)):
        return value * alpha
    return value if alpha == 1 else ctx.elementwise("PROD", scalar(ctx, value), alpha, result_dtype(ctx))


@converter(aten.add.Tensor, aten.add.Scalar)
def add(ctx, self, other, alpha=1):
    """add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    if result_dtype(ctx) == torch.bool:
        return ctx.elementwise("OR", self, other if alpha else False, torch.bool)
    return calculate(ctx, "SUM", self, scaled(ctx, other, alpha))


@converter(aten.sub.Tensor, aten.sub.Scalar)
def sub(ctx, self, other, alpha=1):
    """sub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    return calculate(ctx, "SUB", self, scaled(ctx, other, alpha))


@converter(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(ctx, self, other, alpha=1):
    """rsub.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor"""
    return calculate(ctx, "SUB", other, scaled(ctx, self, alpha))


@converter(aten.mul.Tensor, aten.mul.Scalar)
def mul(ctx, self, other):
    """mul.Tensor(Tensor self, Tensor other) -> Tensor"""
    if result_dtype(ctx) == torch.bool:
        return ctx.elementwise("AND", self, other, torch.bool)
    return calculate(ctx, "PROD", self, other)


@converter(aten.div.Tensor, aten.div.Scalar)
def div(ctx, self, other):
    """div.Tensor(Tensor self, Tensor other) -> Tensor"""
    return calculate(ctx, "DIV", self, other)


def truncated(ctx, tensor):
    """Round `tensor` toward zero, for which TensorRT has no layer."""
    return ctx.select(ctx.elementwise("LESS", tensor, 0.0), ctx.unary("CEIL", tensor), ctx.unary("FLOOR", tensor))


def has_sign(ctx, tensor):
    """Return whether each number is negative or -0.0; NaN is neither."""
    is_negative = ctx.elementwise("LESS", tensor, 0)
    if not ctx.dtype(tensor).is_floating_point:
        return is_negative
    return ctx.elementwise("OR", is_negative, ctx.elementwise("LESS", ctx.unary("RECIP", tensor), 0.0))


@converter(aten.pow.Tensor_Scalar, precision="fp32")
def pow_scalar(ctx, self, exponent):
    """pow.Tensor_Scalar(Tensor self, Scalar exponent) -> Tensor"""
    dtype = result_dtype(ctx)
    base = ctx.tensor(self, dtype)
    if exponent in (1, 2, 3, 4):
        return power(ctx, base, int(exponent))
    if dtype.is_floating_point and exponent in (0.5, -0.5, -1, -2):
        root = ctx.unary("SQRT", base) if exponent in (0.5, -0.5) else power(ctx, base, max(1, int(-exponent)))
        return root if exponent == 0.5 else ctx.unary("RECIP", root)
    return calculate(ctx, "POW", base, exponent)


def power(ctx, base, exponent):
    """Compute the power 1, 2, 3 or 4 by multiplication, which is exact for negative bases and fuses."""
    square = ctx.elementwise("PROD", base, base) if exponent > 1 else base
    if exponent < 3:
        return square
    return ctx.elementwise("PROD", square, base if exponent == 3 else square)


@converter(aten.pow.Tensor_Tensor, aten.pow.Scalar, precision="fp32")
def pow_(ctx, self, exponent):
    """pow.Tensor_Tensor(Tensor self, Tensor exponent) -> Tensor"""
    return calculate(ctx, "POW", self, exponent)


@converter(aten.maximum.default)
def maximum(ctx, self, other):
    """maximum(Tensor self, Tensor other) -> Tensor"""
    return calculate(ctx, "OR" if result_dtype(ctx) == torch.bool else "MAX", self, other)


@converter(aten.minimum.default)
def minimum(ctx, self, other):
    """minimum(Tensor self, Tensor other) -> Tensor"""
    return calculate(ctx, "AND" if result_dtype(ctx) == torch.bool else "MIN", self, other)


def _ignoring_nan(op, layer):
    """Register an extreme of two numbers, of which a NaN gives way to the other."""

    @converter(op)
    def lower(ctx, self, other):
        dtype = result_dtype(ctx)
        self, other = ctx.operands(self, other, dtype=dtype)
        if not dtype.is_floating_point:
            return calculate(ctx, {"MAX": "OR", "MIN": "AND"}[layer] if dtype == torch.bool else layer, self, other)
        first, second = (ctx.unary("ISNAN", value) for value in (self, other))
        self, other = ctx.select(first, other, self), ctx.select(second, self, other)
        return ctx.elementwise(layer, self, other)

    lower.__doc__ = str(schema_of(op))


_ignoring_nan(aten.fmax.default, "MAX")
_ignoring_nan(aten.fmin.default, "MIN")


@converter(aten.hypot.default)
def hypot(ctx, self, other):
    """hypot(Tensor self, Tensor other) -> Tensor"""
    dtype = result_dtype(ctx)
    sides = [ctx.unary("ABS", side) for side in ctx.operands(self, other, dtype=widened(dtype))]
    larger = ctx.elementwise("MAX", *sides)
    unit = ctx.select(ctx.elementwise("EQUAL", larger, 0.0), 1.0, larger)  # the squares of 1e30 are beyond fp32
    squares = [power(ctx, ctx.elementwise("DIV", side, unit), 2) for side in sides]
    length = ctx.elementwise("PROD", unit, ctx.unary("SQRT", ctx.elementwise("SUM", *squares)))
    is_infinite = ctx.elementwise("OR", *(ctx.unary("ISINF", side) for side in sides))  # beside NaN too
    return ctx.cast(ctx.select(is_infinite, math.inf, length), dtype)


@converter(aten.atan2.default, precision="fp32")
def atan2(ctx, self, other):
    """atan2(Tensor self, Tensor other) -> Tensor"""
    dtype = result_dtype(ctx)
    y, x = ctx.operands(self, other, dtype=widened(dtype))
    both = ctx.elementwise("AND", *(ctx.unary("ISINF", side) for side in (y, x)))  # inf / inf is NaN
    y, x = (ctx.select(both, ctx.unary("SIGN", side), side) for side in (y, x))
    angle = ctx.unary("ATAN", ctx.elementwise("DIV", y, x))
    zeros = ctx.elementwise("AND", *(ctx.elementwise("EQUAL", side, 0.0) for side in (y, x)))
    angle = ctx.select(zeros, y, angle)
    half_turn = ctx.select(has_sign(ctx, y), -math.pi, math.pi, widened(dtype))
    return ctx.cast(ctx.select(has_sign(ctx, x), ctx.elementwise("SUM", angle, half_turn), angle), dtype)


@converter(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(ctx, self, other):
    """copysign.Tensor(Tensor self, Tensor other) -> Tensor"""
    dtype = result_dtype(ctx)
    size = ctx.unary("ABS", ctx.tensor(self, dtype))
    return ctx.select(has_sign(ctx, ctx.tensor(other)), ctx.unary("NEG", size), size)
