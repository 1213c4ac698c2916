"""Normalization over the last dimensions, over groups of channels, and with stored statistics."""

from __future__ import annotations

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.variance import moments
from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten


def _unknown_shape(normalized_shape):
    """Ones and zeros go into the network as constants where there is no weight or bias."""
    if any(is_symbolic(size) for size in normalized_shape):
        return "a normalization over sizes known only at run time"
    return None


def of_unknown_shape(input, normalized_shape, weight=None, bias=None, eps=1e-05, cudnn_enable=True):
    return _unknown_shape(normalized_shape)


@converter(aten.layer_norm.default, why_not=of_unknown_shape, dtypes=FLOATS, precision="fp32")
def layer_norm(ctx, input, normalized_shape, weight=None, bias=None, eps=1e-05, cudnn_enable=True):
    """layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None,
    float eps=1e-05, bool cudnn_enable=True) -> Tensor"""
    x = ctx.tensor(input)
    shape = [1] * (len(x.shape) - len(normalized_shape)) + list(normalized_shape)
    dims = range(len(x.shape) - len(normalized_shape), len(x.shape))
    return _normalize(ctx, x, dims, weight, bias, shape, eps)


def unknown_channels(input, num_groups, weight=None, bias=None, eps=1e-05, cudnn_enabled=True):
    """Scale and bias of each channel go into the network as constants."""
    return "a number of channels known only at run time" if is_symbolic(input.shape[1]) else None


@converter(aten.group_norm.default, why_not=unknown_channels, dtypes=FLOATS, precision="fp32")
def group_norm(ctx, input, num_groups, weight=None, bias=None, eps=1e-05, cudnn_enabled=True):
    """group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05,
    bool cudnn_enabled=True) -> Tensor"""
    x = ctx.tensor(input)
    lacking = [2, 3] if len(x.shape) == 2 else []
    x = ctx.unsqueeze(x, lacking) if lacking else x
    shape = [1, x.shape[1]] + [1] * (len(x.shape) - 2)
    # To TensorRT, one group means none: the layer then normalizes over its axes.
    dims = range(1 if num_groups == 1 else 2, len(x.shape))
    result = _normalize(ctx, x, dims, weight, bias, shape, eps, num_groups)
    return ctx.squeeze(result, lacking) if lacking else result


def running_statistics_change(
    input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled
):
    """An engine computes from its inputs only, and changes none of them."""
    if use_input_stats and running_mean is not None:
        return "instance norm in training mode, which changes its running statistics"
    return unknown_channels(input, 1)


@converter(aten.instance_norm.default, why_not=running_statistics_change, dtypes=FLOATS, precision="fp32")
def instance_norm(ctx, input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled):
    """instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var,
    bool use_input_stats, float momentum, float eps, bool cudnn_enabled) -> Tensor"""
    x = ctx.tensor(input)
    if not use_input_stats:
        return _scale_and_shift(ctx, x, weight, bias, running_mean, running_var, eps)
    shape = [1, x.shape[1]] + [1] * (len(x.shape) - 2)
    return _normalize(ctx, x, range(2, len(x.shape)), weight, bias, shape, eps)


@converter(aten._native_batch_norm_legit_no_training.default, dtypes=FLOATS, precision="fp32")
def batch_norm(ctx, input, weight, bias, running_mean, running_var, momentum, eps):
    """_native_batch_norm_legit_no_training(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean,
    Tensor running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)

    Called only if the statistics are no constants: a pass folds all others. The other results are empty."""
    return _scale_and_shift(ctx, ctx.tensor(input), weight, bias, running_mean, running_var, eps), None, None


@converter(aten._native_batch_norm_legit.no_stats, dtypes=FLOATS, precision="fp32")
def batch_norm_of_batch(ctx, input, weight, bias, training, momentum, eps):
    """_native_batch_norm_legit.no_stats(Tensor input, Tensor? weight, Tensor? bias, bool training, float momentum,
    float eps) -> (Tensor, Tensor, Tensor)"""
    x = ctx.tensor(input)
    variance, mean = moments(ctx, x, [dim for dim in range(len(x.shape)) if dim != 1], 0, False)
    wide = ctx.cast(x, torch.float32)
    result = ctx.cast(_scale_and_shift(ctx, wide, weight, bias, mean, variance, eps), ctx.dtype(x))
    return result, *_statistics(ctx, variance, mean, eps)


def of_shape_unknown(input, normalized_shape, weight, bias, eps):
    return _unknown_shape(normalized_shape)


@converter(aten.native_layer_norm.default, why_not=of_shape_unknown, dtypes=FLOATS, precision="fp32")
def native_layer_norm(ctx, input, normalized_shape, weight, bias, eps):
    """native_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps)
    -> (Tensor, Tensor, Tensor)"""
    x = ctx.tensor(input)
    rank = len(x.shape)
    statistics = moments(ctx, x, range(rank - len(normalized_shape), rank), 0, True)
    return layer_norm(ctx, x, normalized_shape, weight, bias, eps), *_statistics(ctx, *statistics, eps)


def channels_unknown(input, weight, bias, N, C, HxW, group, eps):
    return unknown_channels(input, group)


@converter(aten.native_group_norm.default, why_not=channels_unknown, dtypes=FLOATS, precision="fp32")
def native_group_norm(ctx, input, weight, bias, N, C, HxW, group, eps):
    """native_group_norm(Tensor input, Tensor? weight, Tensor? bias, SymInt N, SymInt C, SymInt HxW, int group,
    float eps) -> (Tensor, Tensor, Tensor)"""
    x = ctx.tensor(input)
    groups = ctx.reshape(x, [ctx.size(x, 0), group, -1])
    statistics = moments(ctx, groups, [2], 0, False)
    return group_norm(ctx, x, group, weight, bias, eps), *_statistics(ctx, *statistics, eps)


def _statistics(ctx, variance, mean, eps):
    """Return the second and third result of a normalization: mean and 1 / deviation, in the dtypes of the node."""
    deviation = ctx.unary("SQRT", ctx.elementwise("SUM", variance, eps))
    dtypes = [value.dtype for value in ctx.node.meta["val"][1:]]
    return ctx.cast(mean, dtypes[0]), ctx.cast(ctx.unary("RECIP", deviation), dtypes[1])


def without_a_known_shape(input, normalized_shape, weight=None, eps=None):
    return _unknown_shape(normalized_shape)


@converter(aten.rms_norm.default, why_not=without_a_known_shape, dtypes=FLOATS, precision="fp32")
def rms_norm(ctx, input, normalized_shape, weight=None, eps=None):
    """rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor"""
    x = ctx.tensor(input)
    dtype, rank = ctx.dtype(x), len(x.shape)
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    wide = ctx.cast(x, torch.float32)
    dims = range(rank - len(normalized_shape), rank)
    mean_square = ctx.reduce("AVG", ctx.elementwise("PROD", wide, wide), dims, True)
    root = ctx.unary("SQRT", ctx.elementwise("SUM", mean_square, eps, torch.float32))
    result = ctx.elementwise("DIV", wide, root)
    if weight is not None:
        result = ctx.elementwise("PROD", result, weight, torch.float32)
    return ctx.cast(result, dtype)


def _normalize(ctx, x, dims, weight, bias, shape, eps, groups=1):
    """Add a normalization layer; `weight` and `bias`, or ones and zeros, get the given shape."""
    dtype = ctx.dtype(x)
    scale = _shaped(ctx, torch.ones(shape) if weight is None else weight, shape, dtype)
    shift = _shaped(ctx, torch.zeros(shape) if bias is None else bias, shape, dtype)
    layer = ctx.network.add_normalization_v2(x, scale, shift, ctx.axes(dims, len(x.shape)))
    layer.epsilon, layer.num_groups = eps, groups
    return layer.get_output(0)


def _shaped(ctx, value, shape, dtype):
    if isinstance(value, torch.Tensor):
        return ctx.constant(value.reshape(shape), dtype)
    return ctx.cast(ctx.reshape(value, shape), dtype)


def _scale_and_shift(ctx, x, weight, bias, mean, variance, eps):
    """Compute (x - mean) / sqrt(variance + eps) * weight + bias; the factors per channel in float32."""
    shape = [1, -1] + [1] * (len(x.shape) - 2)
    mean, variance = (_shaped(ctx, value, shape, torch.float32) for value in (mean, variance))
    deviation = ctx.unary("SQRT", ctx.elementwise("SUM", variance, eps, torch.float32))
    one = ctx.constant([1.0]) if weight is None else _shaped(ctx, weight, shape, torch.float32)
    scale = ctx.elementwise("DIV", one, deviation)
    shift = ctx.elementwise("PROD", ctx.unary("NEG", mean), scale)
    if bias is not None:
        shift = ctx.elementwise("SUM", shift, _shaped(ctx, bias, shape, torch.float32))
    dtype = ctx.dtype(x)
    product = ctx.elementwise("PROD", x, ctx.cast(scale, dtype))
    return ctx.elementwise("SUM", product, ctx.cast(shift, dtype))
