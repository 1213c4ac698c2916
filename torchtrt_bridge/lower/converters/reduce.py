"""Reductions over dimensions, and running sums."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.converters.arithmetic import result_dtype, widened
from torchtrt_bridge.lower.converters.compare import truth
from torchtrt_bridge.lower.converters.image_means import mean_of_images, pools
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def reduced(ctx, op, tensor, dims=None, keep_dims=False):
    """Reduce over `dims`, or over all dimensions if there are none; a tensor without dimensions stays as it is."""
    rank = len(tensor.shape)
    if rank == 0:
        return tensor
    dims = [dims] if isinstance(dims, int) else dims
    return ctx.reduce(op, tensor, dims or range(rank), keep_dims)


@converter(aten.sum.dim_IntList, precision="fp32")
def sum_dims(ctx, self, dim, keepdim=False, dtype=None):
    """sum.dim_IntList(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return reduced(ctx, "SUM", ctx.tensor(self, result_dtype(ctx)), dim, keepdim)


@converter(aten.sum.default, precision="fp32")
def sum_(ctx, self, dtype=None):
    """sum(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return reduced(ctx, "SUM", ctx.tensor(self, result_dtype(ctx)))


@converter(aten.mean.dim, precision="fp32")
def mean_dims(ctx, self, dim, keepdim=False, dtype=None):
    """mean.dim(Tensor self, int[1]? dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    tensor = ctx.tensor(self, result_dtype(ctx))
    if isinstance(dim, (list, tuple)) and pools(ctx, tensor, dim):
        means = mean_of_images(ctx, tensor)
        return means if keepdim else ctx.squeeze(means, [2, 3])
    return reduced(ctx, "AVG", tensor, dim, keepdim)


@converter(aten.mean.default, precision="fp32")
def mean(ctx, self, dtype=None):
    """mean(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return reduced(ctx, "AVG", ctx.tensor(self, result_dtype(ctx)))


@converter(aten.prod.dim_int, precision="fp32")
def prod_dim(ctx, self, dim, keepdim=False, dtype=None):
    """prod.dim_int(Tensor self, int dim, bool keepdim=False, *, ScalarType? dtype=None) -> Tensor"""
    return reduced(ctx, "PROD", ctx.tensor(self, result_dtype(ctx)), dim, keepdim)


@converter(aten.prod.default, precision="fp32")
def prod(ctx, self, dtype=None):
    """prod(Tensor self, *, ScalarType? dtype=None) -> Tensor"""
    return reduced(ctx, "PROD", ctx.tensor(self, result_dtype(ctx)))


def extreme(ctx, op, value, dims=None, keep_dims=False):
    """Return the largest or smallest value; TensorRT compares no bools."""
    tensor = ctx.tensor(value)
    if ctx.dtype(tensor) != torch.bool:
        return reduced(ctx, op, tensor, dims, keep_dims)
    return ctx.cast(reduced(ctx, op, ctx.cast(tensor, torch.int32), dims, keep_dims), torch.bool)


@converter(aten.amax.default)
def amax(ctx, self, dim=(), keepdim=False):
    """amax(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor"""
    return extreme(ctx, "MAX", self, dim, keepdim)


@converter(aten.amin.default)
def amin(ctx, self, dim=(), keepdim=False):
    """amin(Tensor self, int[1] dim=[], bool keepdim=False) -> Tensor"""
    return extreme(ctx, "MIN", self, dim, keepdim)


@converter(aten.max.default)
def max_(ctx, self):
    """max(Tensor self) -> Tensor"""
    return extreme(ctx, "MAX", self)


@converter(aten.min.default)
def min_(ctx, self):
    """min(Tensor self) -> Tensor"""
    return extreme(ctx, "MIN", self)


@converter(aten.any.default)
def any_(ctx, self):
    """any(Tensor self) -> Tensor"""
    return extreme(ctx, "MAX", truth(ctx, self))


@converter(aten.any.dim)
def any_dim(ctx, self, dim, keepdim=False):
    """any.dim(Tensor self, int dim, bool keepdim=False) -> Tensor"""
    return extreme(ctx, "MAX", truth(ctx, self), dim, keepdim)


@converter(aten.any.dims)
def any_dims(ctx, self, dim=None, keepdim=False):
    """any.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor"""
    return extreme(ctx, "MAX", truth(ctx, self), dim, keepdim)


@converter(aten.all.default)
def all_(ctx, self):
    """all(Tensor self) -> Tensor"""
    return extreme(ctx, "MIN", truth(ctx, self))


@converter(aten.all.dim)
def all_dim(ctx, self, dim, keepdim=False):
    """all.dim(Tensor self, int dim, bool keepdim=False) -> Tensor"""
    return extreme(ctx, "MIN", truth(ctx, self), dim, keepdim)


@converter(aten.all.dims)
def all_dims(ctx, self, dim=None, keepdim=False):
    """all.dims(Tensor self, int[]? dim=None, bool keepdim=False) -> Tensor"""
    return extreme(ctx, "MIN", truth(ctx, self), dim, keepdim)


@converter(aten.logsumexp.default, precision="fp32")
def logsumexp(ctx, self, dim, keepdim=False):
    """logsumexp(Tensor self, int[1] dim, bool keepdim=False) -> Tensor"""
    dtype = result_dtype(ctx)
    return ctx.cast(log_of_sum(ctx, ctx.tensor(self, widened(dtype)), dim, keepdim), dtype)


def log_of_sum(ctx, tensor, dims, keep_dims):
    """Compute the logarithm of a sum of exponentials, none of which overflows."""
    largest = reduced(ctx, "MAX", tensor, dims, True)
    # An infinite maximum cannot be taken off: inf - inf is NaN.
    largest = ctx.select(ctx.unary("ISINF", largest), 0.0, largest)
    total = reduced(ctx, "SUM", ctx.unary("EXP", ctx.elementwise("SUB", tensor, largest)), dims, True)
    result = ctx.elementwise("SUM", ctx.unary("LOG", total), largest)
    rank = len(tensor.shape)
    if keep_dims or not rank:
        return result
    return ctx.squeeze(result, sorted({d % rank for d in dims or range(rank)}))
