"""Layers that compute each element by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.registry import Compute, in_float32, reads
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt


def _elu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.where(x >= 0, x, alpha * torch.expm1(x))


def _selu(x: Tensor, alpha: float, beta: float) -> Tensor:
    return beta * torch.where(x > 0, x, alpha * torch.expm1(x))


def _softplus(x: Tensor, alpha: float, beta: float) -> Tensor:
    # log(exp(y) + 1), in the form that does not overflow.
    return alpha * torch.logaddexp(beta * x, torch.zeros_like(x))


def _gelu_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (0.044715 * x**3 + x)))


_ACTIVATIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "RELU": lambda x, alpha, beta: torch.relu(x),
    "SIGMOID": lambda x, alpha, beta: torch.sigmoid(x),
    "TANH": lambda x, alpha, beta: torch.tanh(x),
    "LEAKY_RELU": lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x),
    "ELU": _elu,
    "SELU": _selu,
    "SOFTSIGN": lambda x, alpha, beta: x / (1 + x.abs()),
    "SOFTPLUS": _softplus,
    "CLIP": lambda x, alpha, beta: x.clamp(max=beta).clamp(min=alpha),
    "HARD_SIGMOID": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "SCALED_TANH": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "THRESHOLDED_RELU": lambda x, alpha, beta: torch.where(x > alpha, x, torch.zeros_like(x)),
    "GELU_ERF": lambda x, alpha, beta: F.gelu(x),
    "GELU_TANH": _gelu_tanh,
}

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "EXP": torch.exp,
    "LOG": torch.log,
    "SQRT": torch.sqrt,
    "RECIP": torch.reciprocal,
    "ABS": torch.abs,
    "NEG": torch.neg,
    "SIN": torch.sin,
    "COS": torch.cos,
    "TAN": torch.tan,
    "SINH": torch.sinh,
    "COSH": torch.cosh,
    "ASIN": torch.asin,
    "ACOS": torch.acos,
    "ATAN": torch.atan,
    "ASINH": torch.asinh,
    "ACOSH": torch.acosh,
    "ATANH": torch.atanh,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ERF": torch.erf,
    "NOT": torch.logical_not,
    "SIGN": torch.sign,
    "ROUND": torch.round,
    "ISINF": torch.isinf,
    "ISNAN": torch.isnan,
}

# Exact in every dtype, or with a result of another dtype: never widened.
_EXACT = ("RELU", "ABS", "NEG", "CEIL", "FLOOR", "NOT", "SIGN", "ROUND", "ISINF", "ISNAN")


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """Divide as C++ does: integers toward zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.floor(a / b) if a.is_floating_point() else torch.div(a, b, rounding_mode="floor")


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "SUB": torch.sub,
    "DIV": _divide,
    "POW": in_float32(torch.pow),
    "FLOOR_DIV": in_float32(_floor_divide),
    "AND": torch.logical_and,
    "OR": torch.logical_or,
    "XOR": torch.logical_xor,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}


@reads("ACTIVATION")
def activation(layer: Layer) -> Compute:
    name = layer.raw.type.name
    alpha, beta = float(layer.raw.alpha), float(layer.raw.beta)
    function = _ACTIVATIONS[name]

    def compute(x: Tensor) -> Tensor:
        return function(x, alpha, beta)

    return compute if name in _EXACT else in_float32(compute)


@reads("UNARY")
def unary(layer: Layer) -> Compute:
    name = layer.raw.op.name
    return _UNARY[name] if name in _EXACT else in_float32(_UNARY[name])


@reads("ELEMENTWISE")
def elementwise(layer: Layer) -> Compute:
    function = _BINARY[layer.raw.op.name]

    def compute(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype != b.dtype or a.dim() != b.dim():
            raise LoweringError(f"{layer} mixes {a.dtype}, rank {a.dim()}, with {b.dtype}, rank {b.dim()}.")
        return function(a, b)

    return compute


@reads("SELECT")
def select(layer: Layer) -> Compute:
    return torch.where


@reads("CAST")
def cast(layer: Layer) -> Compute:
    dtype = torch_dtype_from_trt(layer.raw.to_type)
    return lambda x: x.to(dtype)


@reads("IDENTITY")
def identity(layer: Layer) -> Compute:
    """Return the input: under strong typing the output has its dtype."""
    return lambda x: x


@reads("PARAMETRIC_RELU")
def parametric_relu(layer: Layer) -> Compute:
    return in_float32(lambda x, slopes: torch.where(x < 0, slopes * x, x))


@reads("SCALE")
def scale(layer: Layer) -> Compute:
    """Compute (x * scale + shift) ^ power; absent weights are 1, 0 and 1."""
    mode, axis = layer.raw.mode.name, int(layer.raw.channel_axis)
    factor, shift, power = (layer.weights(attribute) for attribute in ("scale", "shift", "power"))

    def fit(weights: Tensor, x: Tensor) -> Tensor:
        if mode == "ELEMENTWISE":
            # One coefficient for every element of one item of the batch.
            return weights.to(x.dtype).reshape(x.shape[-_rank_of(weights, x) :])
        shape = [1] * x.dim()
        shape[axis] = weights.numel()
        return weights.to(x.dtype).reshape(shape)

    def compute(x: Tensor) -> Tensor:
        y = x if factor is None else x * fit(factor, x)
        y = y if shift is None else y + fit(shift, x)
        return y if power is None else y ** fit(power, x)

    return in_float32(compute)


def _rank_of(weights: Tensor, x: Tensor) -> int:
    """Return the number of trailing dimensions of `x` that the elementwise weights cover."""
    for rank in range(1, x.dim() + 1):
        if math.prod(x.shape[-rank:]) == weights.numel():
            return rank
    raise LoweringError(f"{weights.numel()} elementwise weights do not fit shape {tuple(x.shape)}.")
