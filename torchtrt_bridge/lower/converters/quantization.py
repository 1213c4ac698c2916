"""Quantization to 8 bits and back, and weights of 4 bits."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.dtypes import trt_dtype_from_torch
from torchtrt_bridge.lower.registry import converter
from torchtrt_bridge.quantize.ops import FLOATS, LARGEST, own

DTYPES = (*FLOATS, *LARGEST)


@converter(own.quantize.default, dtypes=DTYPES)
def to_quantized(ctx, x, scale, axis, dtype):
    """quantize(Tensor x, Tensor scale, int? axis, ScalarType dtype) -> Tensor"""
    layer = ctx.network.add_quantize(ctx.tensor(x), _scale(ctx, scale), trt_dtype_from_torch(ctx.trt, dtype))
    return _along(layer, axis)


@converter(own.dequantize.default, dtypes=DTYPES)
def to_real(ctx, q, scale, axis, dtype):
    """dequantize(Tensor q, Tensor scale, int? axis, ScalarType dtype) -> Tensor"""
    layer = ctx.network.add_dequantize(ctx.tensor(q), _scale(ctx, scale), trt_dtype_from_torch(ctx.trt, dtype))
    return _along(layer, axis)


@converter(own.dequantize_int4.default, dtypes=(*FLOATS, torch.uint8))
def weight_of_4_bits(ctx, packed, scale, block_size, dtype):
    """dequantize_int4(Tensor packed, Tensor scale, int block_size, ScalarType dtype) -> Tensor"""
    outputs, pairs = packed.shape
    host = packed.detach().to("cpu").contiguous()
    ctx.keep(host)
    weights = ctx.trt.Weights(ctx.trt.DataType.INT4, host.data_ptr(), outputs * pairs * 2)
    constant = ctx.network.add_constant((outputs, pairs * 2), weights)
    ctx.constants[constant.name] = host
    # TensorRT takes blocks only with scales in the type of the result.
    scales = ctx.constant(scale, dtype)
    layer = ctx.network.add_dequantize(constant.get_output(0), scales, trt_dtype_from_torch(ctx.trt, dtype))
    return _along(layer, 1)


def _scale(ctx, scale):
    """One constant for a quantization and its way back, which TensorRT then takes for a pair."""
    if scale.numel() == 1:
        return ctx.once("scale", None, lambda: ctx.constant(scale, torch.float32), float(scale))
    return ctx.once("scale", scale, lambda: ctx.constant(scale, torch.float32))


def _along(layer, axis):
    if axis is not None:
        layer.axis = axis % len(layer.get_input(0).shape)
    return layer.get_output(0)
