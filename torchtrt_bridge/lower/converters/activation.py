"""Activations of neural networks, softmax among them."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.lower.converters.arithmetic import result_dtype, widened
from torchtrt_bridge.lower.converters.pointwise import expm1, log1p
from torchtrt_bridge.lower.quantizers import quantizer_of
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten

# Elements from which a GELU is a kernel of its own. TensorRT-RTX 1.6 took on an H200, for a linear layer with it in
# fp16: 92 us in one kernel and 70 in two for 12.6 million elements, 35 and 24 for 1.6 million; for 0.4 million one
# kernel is as fast.
GELU_APART = 1_000_000


@converter(aten.relu.default)
def relu(ctx, self):
    """relu(Tensor self) -> Tensor"""
    return ctx.activation("RELU", ctx.tensor(self))


@converter(aten.sigmoid.default)
def sigmoid(ctx, self):
    """sigmoid(Tensor self) -> Tensor"""
    return ctx.activation("SIGMOID", ctx.tensor(self, result_dtype(ctx)))


@converter(aten.tanh.default)
def tanh(ctx, self):
    """tanh(Tensor self) -> Tensor"""
    return ctx.activation("TANH", ctx.tensor(self, result_dtype(ctx)))


@converter(aten.leaky_relu.default)
def leaky_relu(ctx, self, negative_slope=0.01):
    """leaky_relu(Tensor self, Scalar negative_slope=0.01) -> Tensor"""
    return ctx.activation("LEAKY_RELU", ctx.tensor(self), alpha=float(negative_slope))


def random_slopes(self, lower=0.125, upper=0.3333333333333333, training=False, generator=None):
    """TensorRT draws other random numbers than PyTorch."""
    return "random slopes (rrelu in training)" if training else None


@converter(aten.rrelu.default, why_not=random_slopes)
def rrelu(ctx, self, lower=0.125, upper=0.3333333333333333, training=False, generator=None):
    """rrelu(Tensor self, Scalar lower=0.125, Scalar upper=0.3333333333333333, bool training=False,
    Generator? generator=None) -> Tensor"""
    return leaky_relu(ctx, self, (lower + upper) / 2)


@converter(aten._prelu_kernel.default)
def prelu(ctx, self, weight):
    """_prelu_kernel(Tensor self, Tensor weight) -> Tensor"""
    self, weight = ctx.operands(self, weight)
    return ctx.network.add_parametric_relu(self, weight).get_output(0)


@converter(aten.gelu.default)
def gelu(ctx, self, approximate="none"):
    """gelu(Tensor self, *, str approximate='none') -> Tensor"""
    op, tensor = "GELU_TANH" if approximate == "tanh" else "GELU_ERF", ctx.tensor(self)
    if not _is_slow_within_product(ctx, tensor):
        return ctx.activation(op, tensor)
    # TensorRT computes layers of another rank in a kernel of their own.
    return ctx.squeeze(ctx.activation(op, ctx.unsqueeze(tensor, [1])), [1])


def _is_slow_within_product(ctx, tensor):
    """Return whether a GELU is faster in a kernel of its own than in that of the linear layer before it."""
    source = ctx.node.args[0]
    return (
        source.target in (aten.linear.default, aten.addmm.default)
        and not any(map(quantizer_of, source.all_input_nodes))
        and len(tensor.shape) in (2, 3)
        and min(tensor.shape) > 0
        and math.prod(tensor.shape) >= GELU_APART
        and ctx.dtype(tensor) in (torch.float16, torch.bfloat16)
    )


@converter(aten.silu.default)
def silu(ctx, self):
    """silu(Tensor self) -> Tensor"""
    tensor = ctx.tensor(self)
    return ctx.elementwise("PROD", tensor, ctx.activation("SIGMOID", tensor))


@converter(aten.mish.default)
def mish(ctx, self):
    """mish(Tensor self) -> Tensor"""
    tensor = ctx.tensor(self)
    gate = ctx.activation("TANH", ctx.activation("SOFTPLUS", tensor, alpha=1.0, beta=1.0))
    return ctx.elementwise("PROD", tensor, gate)


@converter(aten.hardsigmoid.default)
def hardsigmoid(ctx, self):
    """hardsigmoid(Tensor self) -> Tensor"""
    return ctx.activation("HARD_SIGMOID", ctx.tensor(self), alpha=1 / 6, beta=0.5)


@converter(aten.hardswish.default)
def hardswish(ctx, self):
    """hardswish(Tensor self) -> Tensor"""
    tensor = ctx.tensor(self)
    return ctx.elementwise("PROD", tensor, hardsigmoid(ctx, tensor))


@converter(aten.elu.default)
def elu(ctx, self, alpha=1, scale=1, input_scale=1):
    """elu(Tensor self, Scalar alpha=1, Scalar scale=1, Scalar input_scale=1) -> Tensor"""
    tensor, dtype = ctx.tensor(self), result_dtype(ctx)
    if input_scale == 1:
        return ctx.activation("SELU", tensor, alpha=float(alpha), beta=float(scale))
    tensor = ctx.cast(tensor, widened(dtype))
    bent = ctx.elementwise("PROD", tensor, input_scale)
    bent = ctx.activation("ELU", bent, alpha=1.0) if input_scale > 0 else expm1(ctx, bent)
    above = tensor if scale == 1 else ctx.elementwise("PROD", tensor, scale)
    is_above = ctx.elementwise("GREATER", tensor, 0.0)
    return ctx.cast(ctx.select(is_above, above, ctx.elementwise("PROD", bent, scale * alpha)), dtype)


@converter(aten.celu.default)
def celu(ctx, self, alpha=1.0):
    """celu(Tensor self, Scalar alpha=1.0) -> Tensor"""
    return elu(ctx, self, alpha, 1, 1 / alpha)


@converter(aten.softplus.default, precision="fp32")
def softplus(ctx, self, beta=1, threshold=20):
    """softplus(Tensor self, Scalar beta=1, Scalar threshold=20) -> Tensor"""
    tensor = ctx.tensor(self)
    dtype = ctx.dtype(tensor)
    soft = ctx.activation("SOFTPLUS", tensor, alpha=1 / beta, beta=float(beta))
    # Above 10, fp16 cannot tell the function from its argument, and above 11 it has no exponential.
    limit = min(threshold, 10) if dtype == torch.float16 else threshold
    is_linear = ctx.elementwise("GREATER" if beta > 0 else "LESS", tensor, limit / beta, dtype)
    return ctx.select(is_linear, tensor, soft)


@converter(aten.log_sigmoid.default, precision="fp32")
def log_sigmoid(ctx, self):
    """log_sigmoid(Tensor self) -> Tensor"""
    dtype = result_dtype(ctx)
    tensor = ctx.tensor(self, widened(dtype))
    # min(x, 0) - log(1 + exp(-|x|)) never overflows, and keeps a small exp.
    tail = log1p(ctx, ctx.unary("EXP", ctx.unary("NEG", ctx.unary("ABS", tensor))))
    return ctx.cast(ctx.elementwise("SUB", ctx.elementwise("MIN", tensor, 0.0), tail), dtype)


@converter(aten._softmax.default, precision="fp32")
def softmax(ctx, self, dim, half_to_float):
    """_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    tensor = ctx.tensor(self, result_dtype(ctx))
    rank = len(tensor.shape)
    missing = range(max(0, 2 - rank))  # the layer wants two dimensions
    layer = ctx.network.add_softmax(ctx.unsqueeze(tensor, missing) if missing else tensor)
    layer.axes = ctx.axes([dim % max(rank, 1) + max(0, 1 - rank) + (1 if rank == 1 else 0)], max(rank, 2))
    output = layer.get_output(0)
    return ctx.squeeze(output, missing) if missing else output


@converter(aten._log_softmax.default, precision="fp32")
def log_softmax(ctx, self, dim, half_to_float):
    """_log_softmax(Tensor self, int dim, bool half_to_float) -> Tensor"""
    dtype = result_dtype(ctx)
    tensor = ctx.tensor(self, widened(dtype))
    if not len(tensor.shape):
        return ctx.cast(ctx.elementwise("SUB", tensor, tensor), dtype)
    # The logarithm of a softmax would be -inf where the softmax vanishes.
    shifted = ctx.elementwise("SUB", tensor, ctx.reduce("MAX", tensor, [dim], True))
    total = ctx.reduce("SUM", ctx.unary("EXP", shifted), [dim], True)
    return ctx.cast(ctx.elementwise("SUB", shifted, ctx.unary("LOG", total)), dtype)
