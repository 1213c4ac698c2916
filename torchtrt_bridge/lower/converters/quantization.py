"""Quantization to 8 bits and back, and weights of 4 bits."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from torchtrt_bridge.graph.nodes import constant_of
from torchtrt_bridge.graph.ops import LARGEST, own
from torchtrt_bridge.lower.registry import FLOATS, converter, only_moves_data
from torchtrt_bridge.trt.dtypes import trt_dtype_from_torch

aten = torch.ops.aten

DTYPES = (*FLOATS, *LARGEST)


@converter(own.quantize.default, dtypes=DTYPES)
def to_quantized(ctx, x, scale, axis, dtype):
    """quantize(Tensor x, Tensor scale, int? axis, ScalarType dtype) -> Tensor"""
    tensor = ctx.tensor(x)
    if dtype == torch.int8 and axis is None and _is_negated(ctx.node.args[0]):
        tensor = _in_range(ctx, tensor, float(scale))
    layer = ctx.network.add_quantize(tensor, _scale(ctx, scale), trt_dtype_from_torch(ctx.trt, dtype))
    return _along(layer, axis)


@converter(own.dequantize.default, dtypes=DTYPES)
def to_real(ctx, q, scale, axis, dtype):
    """dequantize(Tensor q, Tensor scale, int? axis, ScalarType dtype) -> Tensor"""
    tensor = ctx.tensor(q)
    layer = ctx.network.add_dequantize(tensor, _scale(ctx, scale), trt_dtype_from_torch(ctx.trt, dtype))
    real = _along(layer, axis)
    if axis is None and ctx.dtype(tensor) == torch.int8 and _is_negated_later(ctx.node):
        real = _in_range(ctx, real, float(scale))
    return real


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


# TensorRT-RTX 1.6 moves a change of sign across the rounding, to the 8-bit values: there -128 has no counterpart, and
# stays -128. A clamp between them, which changes nothing, keeps them apart. With scales by channel it moves nothing.


def _in_range(ctx, tensor, scale):
    """Clamp to the range of int8 times `scale`."""
    dtype = ctx.dtype(tensor)
    largest = torch.finfo(dtype).max
    low, high = max(-128 * scale, -largest), min(127 * scale, largest)
    return ctx.elementwise("MAX", ctx.elementwise("MIN", tensor, high, dtype), low, dtype)


def _is_negated(node):
    """Return whether the sign of a value was changed, and the value only moved or cast since."""
    while _leaves_signs(node):
        node = node.args[0]
    return _changes_sign(node)


def _is_negated_later(node):
    """Return whether a node that reads a value, perhaps moved or cast, changes its sign."""
    return any(_changes_sign(user) or (_leaves_signs(user) and _is_negated_later(user)) for user in node.users)


def _leaves_signs(node):
    """Return whether a node only moves or casts values."""
    return node.op == "call_function" and (node.target is operator.getitem or only_moves_data(node))


FACTORS = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}


def _changes_sign(node):
    if node.op != "call_function" or node.target not in FACTORS:
        return node.op == "call_function" and node.target is aten.neg.default
    factors = [constant_of(arg) if isinstance(arg, Node) else torch.as_tensor(arg) for arg in node.args[:2]]
    return any(factor is not None and bool((factor < 0).any()) for factor in factors)


def _scale(ctx, scale):
    """Return one constant for a quantization and its dequantization, which TensorRT then takes for a pair."""
    if scale.numel() == 1:
        return ctx.once("scale", None, lambda: ctx.constant(scale, torch.float32), float(scale))
    return ctx.once("scale", scale, lambda: ctx.constant(scale, torch.float32))


def _along(layer, axis):
    if axis is not None:
        layer.axis = axis % len(layer.get_input(0).shape)
    return layer.get_output(0)
