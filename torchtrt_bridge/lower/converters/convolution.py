"""Convolution and its transpose, in one, two and three dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.folded_strides import folded, folds
from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten


def window_of_unknown_size(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """Kernel sizes, strides and paddings are attributes of TensorRT's layers, fixed when it builds."""
    if any(is_symbolic(v) for v in (*weight.shape, *stride, *padding, *dilation, *output_padding, groups)):
        return "a kernel, stride or padding whose size is known only at run time"
    return None


@converter(aten.convolution.default, why_not=window_of_unknown_size, dtypes=FLOATS, precision="half")
def convolution(ctx, input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding,
    SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor"""
    spatial = len(weight.shape) - 2
    windows = [
        list(values) * (spatial if len(values) == 1 else 1) for values in (stride, padding, dilation, output_padding)
    ]
    x = ctx.tensor(input)
    if spatial == 1:  # TensorRT convolves images and volumes
        x, weight = ctx.unsqueeze(x, [2]), _with_height(ctx, weight)
        windows = [[flat, *values] for flat, values in zip((1, 0, 1, 0), windows, strict=True)]
    result = (_transposed if transposed else _plain)(ctx, x, weight, bias, *windows, groups)
    if isinstance(bias, ctx.trt.ITensor):
        result = ctx.elementwise("SUM", result, ctx.reshape(bias, [1, -1] + [1] * (len(x.shape) - 2)))
    return ctx.squeeze(result, [2]) if spatial == 1 else result


def _plain(ctx, x, weight, bias, stride, padding, dilation, output_padding, groups):
    if folds(ctx, x, weight, stride, dilation, groups):
        x, weight = folded(ctx, x, weight, padding)
        stride, padding = [1, 1], [0, 0]
    layer = _layer(ctx, "add_convolution_nd", x, weight, bias, weight.shape[0])
    return _slid(layer, stride, padding, padding, dilation, groups)


def _transposed(ctx, x, weight, bias, stride, padding, dilation, output_padding, groups):
    weight, dilation, cut = _kernel_and_cut(ctx, weight, stride, padding, dilation, output_padding)
    dtype = ctx.dtype(x)
    if dtype == torch.bfloat16:  # TensorRT-RTX 1.7 builds no transposed convolution of bfloat16
        x, weight, bias = (_in_float32(ctx, value) for value in (x, weight, bias))
    layer = _layer(ctx, "add_deconvolution_nd", x, weight, bias, weight.shape[1] * groups)
    return ctx.cast(_slid(layer, stride, padding, cut, dilation, groups), dtype)


def _slid(layer, stride, before, behind, dilation, groups):
    layer.stride_nd, layer.dilation_nd, layer.num_groups = tuple(stride), tuple(dilation), groups
    layer.pre_padding, layer.post_padding = tuple(before), tuple(behind)
    return layer.get_output(0)


def _in_float32(ctx, value):
    if isinstance(value, ctx.trt.ITensor):
        return ctx.cast(value, torch.float32)
    return None if value is None else value.float()


def _with_height(ctx, weight):
    return weight.unsqueeze(2) if isinstance(weight, torch.Tensor) else ctx.unsqueeze(weight, [2])


def _layer(ctx, method, x, weight, bias, maps):
    """Add the layer, with constants as its weights and tensors as its inputs."""
    kernel = weight if isinstance(weight, torch.Tensor) else None
    offset = bias if isinstance(bias, torch.Tensor) else None
    size = tuple(weight.shape[2:])
    layer = getattr(ctx.network, method)(x, maps, size, ctx.weights(kernel), ctx.weights(offset))
    for name, value in (("kernel", kernel), ("bias", offset)):
        if value is not None:
            ctx.constants[f"{layer.name}.{name}"] = value.detach().to("cpu").contiguous()
    if kernel is None:
        layer.set_input(1, weight)
    return layer


def _kernel_and_cut(ctx, weight, stride, padding, dilation, output_padding):
    """Return kernel and dilation of a transposed convolution, and the widths cut off behind its result.

    Zeros behind the kernel make the result longer where the output padding asks for more than there is.
    TensorRT has no transposed convolution with both stride and dilation: zeros within the kernel dilate it.
    """
    cut = [before - more for before, more in zip(padding, output_padding, strict=True)]
    if max(stride) > 1 and max(dilation) > 1:
        spaced = [size for length in weight.shape[2:] for size in (length, 1)]
        dense = [length * step for length, step in zip(weight.shape[2:], dilation, strict=True)]
        weight = _reshaped(ctx, weight, [*weight.shape[:2], *spaced])
        weight = _with_zeros(ctx, weight, [more for step in dilation for more in (0, step - 1)])
        weight = _reshaped(ctx, weight, [*weight.shape[:2], *dense])
        cut = [rest + step - 1 for rest, step in zip(cut, dilation, strict=True)]
        dilation = [1] * len(dilation)
    zeros = [-(min(rest, 0) // step) for rest, step in zip(cut, dilation, strict=True)]
    weight = _with_zeros(ctx, weight, zeros) if any(zeros) else weight
    cut = [rest + more * step for rest, more, step in zip(cut, zeros, dilation, strict=True)]
    return weight, dilation, cut


def _reshaped(ctx, weight, shape):
    return weight.reshape(shape) if isinstance(weight, torch.Tensor) else ctx.reshape(weight, shape)


def _with_zeros(ctx, weight, behind):
    """Pad a kernel with zeros behind the elements of its last dimensions."""
    if isinstance(weight, torch.Tensor):
        return F.pad(weight, [width for more in reversed(behind) for width in (0, more)])
    sizes = zip(weight.shape, [0, 0, *behind], strict=True)
    return ctx.slice(weight, [0] * len(weight.shape), [size + more for size, more in sizes], mode="FILL")
