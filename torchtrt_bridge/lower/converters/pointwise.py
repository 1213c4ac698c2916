"""Elementwise functions of one tensor."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower.converters.arithmetic import has_sign, power, result_dtype, truncated, widened
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def _function(op, layer, precision=None):
    """Register a function that is one layer; PyTorch computes it of integers in float."""

    @converter(op, precision=precision)
    def lower(ctx, self):
        return ctx.unary(layer, ctx.tensor(self, result_dtype(ctx)))

    lower.__doc__ = str(schema_of(op))


_function(aten.acos.default, "ACOS", precision="fp32")
_function(aten.acosh.default, "ACOSH", precision="fp32")
_function(aten.asin.default, "ASIN", precision="fp32")
_function(aten.asinh.default, "ASINH", precision="fp32")
_function(aten.atan.default, "ATAN", precision="fp32")
_function(aten.atanh.default, "ATANH", precision="fp32")
_function(aten.cos.default, "COS")
_function(aten.cosh.default, "COSH", precision="fp32")
_function(aten.erf.default, "ERF")
_function(aten.exp.default, "EXP", precision="fp32")
_function(aten.log.default, "LOG", precision="fp32")
_function(aten.neg.default, "NEG")
_function(aten.reciprocal.default, "RECIP", precision="fp32")
_function(aten.sin.default, "SIN")
_function(aten.sinh.default, "SINH", precision="fp32")
_function(aten.sqrt.default, "SQRT", precision="fp32")
_function(aten.tan.default, "TAN", precision="fp32")


def _whole(op, layer, integers=None):
    """Register a function that is the identity on bools, and on integers where their layer is None."""

    @converter(op)
    def lower(ctx, self):
        tensor = ctx.tensor(self)
        dtype = result_dtype(ctx)
        kind = None if dtype == torch.bool else layer if dtype.is_floating_point else integers
        return tensor if kind is None else ctx.unary(kind, tensor)

    lower.__doc__ = str(schema_of(op))


_whole(aten.abs.default, "ABS", "ABS")
_whole(aten.sign.default, "SIGN", "SIGN")
_whole(aten.sgn.default, "SIGN", "SIGN")
_whole(aten.ceil.default, "CEIL")
_whole(aten.floor.default, "FLOOR")
_whole(aten.round.default, "ROUND")


@converter(aten.round.decimals)
def round_decimals(ctx, self, decimals):
    """round.decimals(Tensor self, *, int decimals) -> Tensor"""
    dtype = result_dtype(ctx)
    factor = 10.0 ** abs(decimals)
    there, back = ("PROD", "DIV") if decimals >= 0 else ("DIV", "PROD")
    rounded = ctx.unary("ROUND", ctx.elementwise(there, self, factor, widened(dtype)))
    return ctx.cast(ctx.elementwise(back, rounded, factor), dtype)


@converter(aten.trunc.default)
def trunc(ctx, self):
    """trunc(Tensor self) -> Tensor"""
    tensor = ctx.tensor(self)
    return truncated(ctx, tensor) if result_dtype(ctx).is_floating_point else tensor


@converter(aten.frac.default)
def frac(ctx, self):
    """frac(Tensor self) -> Tensor"""
    tensor = ctx.tensor(self)
    return ctx.elementwise("SUB", tensor, truncated(ctx, tensor))


@converter(aten.rsqrt.default, precision="fp32")
def rsqrt(ctx, self):
    """rsqrt(Tensor self) -> Tensor"""
    return ctx.unary("RECIP", ctx.unary("SQRT", ctx.tensor(self, result_dtype(ctx))))


@converter(aten.square.default)
def square(ctx, self):
    """square(Tensor self) -> Tensor"""
    return power(ctx, ctx.tensor(self, result_dtype(ctx)), 2)


def in_float32(op, function, precision="fp32"):
    """Register a composite that rounds to half precision only once, as PyTorch does."""

    @converter(op, precision=precision)
    def lower(ctx, self):
        dtype = result_dtype(ctx)
        return ctx.cast(function(ctx, ctx.tensor(self, widened(dtype))), dtype)

    lower.__module__ = function.__module__  # its family's
    lower.__doc__ = str(schema_of(op))


def polynomial(ctx, x, *coefficients):
    """Compute c0 + c1 * x + c2 * x**2 + ..."""
    result = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        result = ctx.elementwise("SUM", ctx.elementwise("PROD", x, result), coefficient)
    return result


def expm1(ctx, x):
    """Compute exp(x) - 1; near zero, where the difference loses its digits, as a series."""
    series = ctx.elementwise("PROD", x, polynomial(ctx, x, *(1 / math.factorial(n) for n in range(1, 10))))
    is_near = ctx.elementwise("LESS", ctx.unary("ABS", x), 0.5)
    return ctx.select(is_near, series, ctx.elementwise("SUB", ctx.unary("EXP", x), 1.0))


def log1p(ctx, x):
    """Compute log(1 + x); near zero, where the sum loses digits of x, as the series of 2 * atanh(x / (2 + x))."""
    s = ctx.elementwise("DIV", x, ctx.elementwise("SUM", x, 2.0))
    series = ctx.elementwise("PROD", s, polynomial(ctx, power(ctx, s, 2), *(2 / n for n in range(1, 11, 2))))
    is_near = ctx.elementwise("LESS", ctx.unary("ABS", x), 0.3)
    return ctx.select(is_near, series, ctx.unary("LOG", ctx.elementwise("SUM", x, 1.0)))


# The fit of erfc by Press et al., Numerical Recipes, section 6.2: its relative error is below 1.2e-7 everywhere.
_ERFC = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)


def erfc(ctx, x):
    """Compute 1 - erf(x), of which nothing would be left for a large x."""
    size = ctx.unary("ABS", x)
    size = ctx.select(ctx.elementwise("GREATER", size, 11.0), 11.0, size)
    t = ctx.unary("RECIP", ctx.elementwise("SUM", ctx.elementwise("PROD", size, 0.5), 1.0))
    # size**2 in two parts, so that its rounding does not grow in the exponential
    head = ctx.elementwise("PROD", ctx.unary("FLOOR", ctx.elementwise("PROD", size, 16.0)), 1 / 16)
    tail = ctx.elementwise("PROD", ctx.elementwise("SUB", size, head), ctx.elementwise("SUM", size, head))
    factors = [ctx.unary("NEG", power(ctx, head, 2)), ctx.elementwise("SUB", polynomial(ctx, t, *_ERFC), tail)]
    positive = ctx.elementwise("PROD", t, ctx.elementwise("PROD", *(ctx.unary("EXP", f) for f in factors)))
    return ctx.select(ctx.elementwise("LESS", x, 0.0), ctx.elementwise("SUB", 2.0, positive), positive)


in_float32(aten.expm1.default, expm1)
in_float32(aten.log1p.default, log1p)
in_float32(aten.erfc.default, erfc)
in_float32(aten.exp2.default, lambda ctx, x: ctx.elementwise("POW", 2.0, x))
in_float32(
    aten.log2.default, lambda ctx, x: ctx.elementwise("PROD", ctx.unary("LOG", x), 1 / math.log(2)), precision="fp32"
)
in_float32(
    aten.log10.default, lambda ctx, x: ctx.elementwise("PROD", ctx.unary("LOG", x), 1 / math.log(10)), precision="fp32"
)


@converter(aten.signbit.default)
def signbit(ctx, self):
    """signbit(Tensor self) -> Tensor"""
    return has_sign(ctx, ctx.tensor(self))
