"""Variances and norms: sums of squares and other powers."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.lower.converters.arithmetic import power, result_dtype, widened
from torchtrt_bridge.lower.converters.reduce import reduced
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def moments(ctx, value, dims, correction, keep_dims):
    """Compute variance and mean over `dims`, in the dtype in which PyTorch accumulates."""
    tensor = ctx.tensor(value, widened(ctx.dtype(value)))
    rank = len(tensor.shape)
    dims = sorted({dim % rank for dim in dims or range(rank)}) if rank else []
    mean = reduced(ctx, "AVG", tensor, dims, True)
    squares = power(ctx, ctx.elementwise("SUB", tensor, mean), 2)
    variance = reduced(ctx, "AVG", squares, dims, keep_dims)
    factor = _correction(ctx, [ctx.size(tensor, dim) for dim in dims], 1 if correction is None else correction)
    if factor is not None:
        variance = ctx.elementwise("PROD", variance, factor, ctx.dtype(variance))
    return variance, mean if keep_dims or not rank else ctx.squeeze(mean, dims)


def _correction(ctx, sizes, correction):
    """Return n / (n - correction) for n elements: a number if the sizes are known, None if it is 1."""
    if correction == 0:
        return None
    if all(isinstance(size, int) for size in sizes):
        count = math.prod(sizes)
        return count / (count - correction) if count > correction else math.inf
    known = math.prod(size for size in sizes if isinstance(size, int))
    count = ctx.constant([float(known)], torch.float32)
    for size in sizes:
        if not isinstance(size, int):
            count = ctx.elementwise("PROD", count, ctx.cast(size, torch.float32))
    left = ctx.elementwise("MAX", ctx.elementwise("SUB", count, float(correction)), 0.0)
    return ctx.squeeze(ctx.elementwise("DIV", count, left), [0])


@converter(aten.var.correction, precision="fp32")
def var(ctx, self, dim=None, correction=None, keepdim=False):
    """var.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False)
    -> Tensor"""
    return ctx.cast(moments(ctx, self, dim, correction, keepdim)[0], result_dtype(ctx))


@converter(aten.std.correction, precision="fp32")
def std(ctx, self, dim=None, correction=None, keepdim=False):
    """std.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False)
    -> Tensor"""
    variance, _ = moments(ctx, self, dim, correction, keepdim)
    return ctx.cast(ctx.unary("SQRT", variance), result_dtype(ctx))


@converter(aten.var_mean.correction, precision="fp32")
def var_mean(ctx, self, dim=None, correction=None, keepdim=False):
    """var_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False)
    -> (Tensor, Tensor)"""
    variance, mean = moments(ctx, self, dim, correction, keepdim)
    return ctx.cast(variance, ctx.dtype(self)), ctx.cast(mean, ctx.dtype(self))


@converter(aten.std_mean.correction, precision="fp32")
def std_mean(ctx, self, dim=None, correction=None, keepdim=False):
    """std_mean.correction(Tensor self, int[1]? dim=None, *, Scalar? correction=None, bool keepdim=False)
    -> (Tensor, Tensor)"""
    variance, mean = moments(ctx, self, dim, correction, keepdim)
    return ctx.cast(ctx.unary("SQRT", variance), ctx.dtype(self)), ctx.cast(mean, ctx.dtype(self))


@converter(aten.linalg_vector_norm.default, precision="fp32")
def vector_norm(ctx, self, ord=2, dim=None, keepdim=False, dtype=None):
    """linalg_vector_norm(Tensor self, Scalar ord=2, int[1]? dim=None, bool keepdim=False, *,
    ScalarType? dtype=None) -> Tensor"""
    own = result_dtype(ctx)
    tensor = ctx.tensor(self, widened(own))
    if ord == 2:
        result = ctx.unary("SQRT", reduced(ctx, "SUM", power(ctx, tensor, 2), dim, keepdim))
    elif ord == 0:
        nonzero = ctx.unary("NOT", ctx.elementwise("EQUAL", tensor, 0.0))
        result = reduced(ctx, "SUM", ctx.cast(nonzero, torch.float32), dim, keepdim)
    elif abs(ord) == math.inf:
        result = reduced(ctx, "MAX" if ord > 0 else "MIN", ctx.unary("ABS", tensor), dim, keepdim)
    elif ord == 1:
        result = reduced(ctx, "SUM", ctx.unary("ABS", tensor), dim, keepdim)
    else:
        powers = ctx.elementwise("POW", ctx.unary("ABS", tensor), float(ord))
        result = ctx.elementwise("POW", reduced(ctx, "SUM", powers, dim, keepdim), 1 / ord)
    return ctx.cast(result, own)
