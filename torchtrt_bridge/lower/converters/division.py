"""Divisions that round, and their remainders.

PyTorch computes them from C's fmod, which is exact. A rounded quotient cannot give it: 1 / 0.1 rounds up to 10, and
1 // 0.1 is 9.
"""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.lower.bounds import bounds_of
from torchtrt_bridge.lower.converters.arithmetic import calculate, div, result_dtype, truncated, widened
from torchtrt_bridge.lower.converters.sizes import fake, scalar
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


@converter(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(ctx, self, other, rounding_mode):
    """div.Tensor_mode(Tensor self, Tensor other, *, str? rounding_mode) -> Tensor"""
    if rounding_mode is None:
        return div(ctx, self, other)
    if rounding_mode == "floor":
        return floor_divide(ctx, self, other)
    dtype = result_dtype(ctx)
    # PyTorch rounds the quotient to half precision first, unless it divides by a number.
    wide = widened(dtype) if isinstance(other, (int, float)) else dtype
    quotient = ctx.elementwise("DIV", scalar(ctx, self), scalar(ctx, other), wide)
    return ctx.cast(truncated(ctx, quotient) if dtype.is_floating_point else quotient, dtype)


@converter(aten.floor_divide.default, aten.floor_divide.Scalar, precision="fp32")
def floor_divide(ctx, self, other):
    """floor_divide(Tensor self, Tensor other) -> Tensor"""
    dtype = result_dtype(ctx)
    if not dtype.is_floating_point:
        return calculate(ctx, "FLOOR_DIV", self, other, dtype)
    dividend, divisor = ctx.operands(scalar(ctx, self), scalar(ctx, other), dtype=torch.float32)
    rest = exact_fmod(ctx, dividend, divisor)
    quotient = ctx.elementwise("DIV", ctx.elementwise("SUB", dividend, rest), divisor)
    below = ctx.elementwise("SUB", quotient, 1.0)
    whole = ctx.unary("ROUND", ctx.select(_has_other_sign(ctx, rest, divisor), below, quotient))
    ratio = ctx.elementwise("DIV", dividend, divisor)
    whole = ctx.select(ctx.elementwise("EQUAL", divisor, 0.0), ratio, _signed_zero(ctx, whole, ratio))
    return ctx.cast(whole, dtype)


@converter(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor, precision="fp32")
def remainder(ctx, self, other):
    """remainder.Tensor(Tensor self, Tensor other) -> Tensor"""
    dtype = result_dtype(ctx)
    dividend, divisor = ctx.operands(scalar(ctx, self), scalar(ctx, other), dtype=dtype)
    if not dtype.is_floating_point:
        multiple = ctx.elementwise("PROD", ctx.elementwise("FLOOR_DIV", dividend, divisor), divisor)
        return ctx.elementwise("SUB", dividend, multiple)
    dividend, divisor = (ctx.cast(value, torch.float32) for value in (dividend, divisor))
    rest = balanced_remainder(ctx, dividend, divisor)
    shifted = ctx.elementwise("SUM", rest, divisor)
    return ctx.cast(ctx.select(_has_other_sign(ctx, rest, divisor), shifted, rest), dtype)


@converter(aten.fmod.Tensor, aten.fmod.Scalar, precision="fp32")
def fmod(ctx, self, other):
    """fmod.Tensor(Tensor self, Tensor other) -> Tensor"""
    dtype = result_dtype(ctx)
    dividend, divisor = ctx.operands(scalar(ctx, self), scalar(ctx, other), dtype=dtype)
    if not dtype.is_floating_point:  # TensorRT divides integers toward zero
        multiple = ctx.elementwise("PROD", ctx.elementwise("DIV", dividend, divisor), divisor)
        return ctx.elementwise("SUB", dividend, multiple)
    return ctx.cast(exact_fmod(ctx, *(ctx.cast(value, torch.float32) for value in (dividend, divisor))), dtype)


def exact_fmod(ctx, dividend, divisor):
    """Compute C's fmod of float32 tensors: the remainder that has the sign of the dividend."""
    rest = balanced_remainder(ctx, dividend, divisor)
    size = ctx.unary("ABS", divisor)
    step = ctx.select(ctx.elementwise("LESS", dividend, 0.0), ctx.unary("NEG", size), size)
    return ctx.select(_has_other_sign(ctx, rest, dividend), ctx.elementwise("SUM", rest, step), rest)


def _has_other_sign(ctx, value, other):
    """Return whether `value` is not zero and has another sign than `other`."""
    signs = [ctx.elementwise("LESS", each, 0.0) for each in (value, other)]
    is_zero = ctx.elementwise("EQUAL", value, 0.0)
    return ctx.elementwise("AND", ctx.elementwise("XOR", *signs), ctx.unary("NOT", is_zero))


# The quotients of float32 are below 2**128, and a digit has the 8 bits of bfloat16.
QUOTIENT_BITS = 128
DIGIT_BITS = 8


def balanced_remainder(ctx, dividend, divisor):
    """Compute a remainder of float32 tensors by long division: smaller than the divisor, and of either sign.

    Each step takes off a multiple of the divisor, in two products that are exact in float32. So neither the error of
    TensorRT's division matters nor whether its kernels fuse a product with a sum. A quotient above 3.39e38, the
    largest of bfloat16, gives NaN.
    """
    number = fake(ctx, 1)
    if isinstance(number, (int, float)) and abs(number) >= 1 and math.frexp(number)[0] in (0.5, -0.5):
        whole = truncated(ctx, ctx.elementwise("PROD", dividend, 1.0 / number))  # exact: a power of two
        rest = ctx.elementwise("SUB", dividend, ctx.elementwise("PROD", whole, divisor))
        return _signed_zero(ctx, rest, dividend)
    head = _leading(ctx, divisor)
    tail = ctx.elementwise("SUB", divisor, head)
    rest = dividend
    for _ in range(math.ceil((_quotient_bits(ctx) + 0.5) / DIGIT_BITS)):
        digit = _leading(ctx, ctx.unary("ROUND", ctx.elementwise("DIV", rest, divisor)))
        for part in (head, tail):
            rest = ctx.elementwise("SUB", rest, ctx.elementwise("PROD", digit, part))
    is_smaller = ctx.elementwise("LESS", ctx.unary("ABS", dividend), ctx.unary("ABS", divisor))
    rest = ctx.select(is_smaller, dividend, rest)
    return _signed_zero(ctx, rest, dividend)


def _signed_zero(ctx, value, like):
    """Give zeros of `value` the sign of a finite `like`."""
    return ctx.select(ctx.elementwise("EQUAL", value, 0.0), ctx.elementwise("PROD", like, 0.0), value)


def _leading(ctx, tensor):
    """Return the nearest numbers of 8 bits."""
    return ctx.cast(ctx.cast(tensor, torch.bfloat16), torch.float32)


def _quotient_bits(ctx):
    """Return the bits before the point of the node's largest quotient, as far as its arguments tell."""
    largest, smallest = _magnitudes(ctx, 0)[1], _magnitudes(ctx, 1)[0]
    if not 0 < smallest < math.inf or largest == 0:
        return 0
    return min(max(math.log2(largest) - math.log2(smallest), 0), QUOTIENT_BITS)


def _magnitudes(ctx, index):
    """Return the smallest magnitude but zero and the largest one that an argument of the node may have."""
    value = fake(ctx, index)
    if isinstance(value, (int, float)):
        return abs(value), abs(value)
    if not isinstance(value, torch.Tensor):
        return 1.0, 2.0**63
    largest = max(abs(end) for end in bounds_of(ctx.node.args[index]))
    if not value.is_floating_point():
        return 1.0, largest
    info = torch.finfo(value.dtype)
    return info.smallest_normal * (info.eps if value.dtype == torch.float16 else 1.0), min(largest, info.max)
