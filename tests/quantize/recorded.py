"""Graphs as torchao's PT2E and modelopt leave them, and the operators in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.quantize.by_hand import quantized_weight

# What these libraries define when they are imported; the tests need no more of them.
SCHEMAS = {
    "quantized_decomposed::quantize_per_tensor": (
        "(Tensor input, float scale, int zero_point, int quant_min, int quant_max, ScalarType dtype) -> Tensor"
    ),
    "quantized_decomposed::dequantize_per_tensor": (
        "(Tensor input, float scale, int zero_point, int quant_min, int quant_max, ScalarType dtype, *, "
        "ScalarType? out_dtype=None) -> Tensor"
    ),
    "quantized_decomposed::quantize_per_tensor.tensor": (
        "(Tensor input, Tensor scale, Tensor zero_point, int quant_min, int quant_max, ScalarType dtype) -> Tensor"
    ),
    "quantized_decomposed::dequantize_per_tensor.tensor": (
        "(Tensor input, Tensor scale, Tensor zero_point, int quant_min, int quant_max, ScalarType dtype, *, "
        "ScalarType? out_dtype=None) -> Tensor"
    ),
    "quantized_decomposed::dequantize_per_channel": (
        "(Tensor input, Tensor scales, Tensor? zero_points, int axis, int quant_min, int quant_max, ScalarType dtype, "
        "*, ScalarType? out_dtype=None) -> Tensor"
    ),
    "tensorrt::quantize_op": (
        "(Tensor input, Tensor amax, int num_bits, int exponent_bits, bool unsigned, bool narrow_range) -> Tensor"
    ),
}


def quantize_decomposed(input: Any, scale: Any, zero_point: Any, low: int, high: int, dtype: torch.dtype) -> Any:
    return (input.float() / scale + zero_point).round().clamp(low, high).to(dtype)


def dequantize_decomposed(
    input: Any, scale: Any, zero_point: Any, low: int, high: int, dtype: torch.dtype, *, out_dtype: Any = None
) -> Any:
    return ((input.float() - zero_point) * scale).to(out_dtype or torch.float32)


def dequantize_channels(
    input: Any, scales: Any, zeros: Any, axis: int, low: int, high: int, dtype: torch.dtype, *, out_dtype: Any = None
) -> Any:
    shape = [-1 if dim == axis else 1 for dim in range(input.dim())]
    zeros = 0 if zeros is None else zeros.reshape(shape)
    return ((input.float() - zeros) * scales.reshape(shape)).to(out_dtype or torch.float32)


def quantize_fused(input: Any, amax: Any, bits: int, exponent: int, unsigned: bool, narrow: bool) -> Any:
    if exponent:
        return (input * (448 / amax)).to(torch.float8_e4m3fn).to(input.dtype) * (amax / 448)
    return (input * (127 / amax)).round().clamp(-127, 127) * (amax / 127)


COMPUTED: dict[str, Callable[..., Any]] = {
    "quantized_decomposed::quantize_per_tensor": quantize_decomposed,
    "quantized_decomposed::quantize_per_tensor.tensor": quantize_decomposed,
    "quantized_decomposed::dequantize_per_tensor": dequantize_decomposed,
    "quantized_decomposed::dequantize_per_tensor.tensor": dequantize_decomposed,
    "quantized_decomposed::dequantize_per_channel": dequantize_channels,
    "tensorrt::quantize_op": quantize_fused,
}


class PT2E(nn.Module):
    """A convolution, a sum with its input and a linear layer, as `convert_pt2e` leaves them.

    limits: of activations; their zero point and dtype beside. real: the dtype that is computed with.
    """

    def __init__(
        self,
        zero_point: int = 0,
        limits: tuple[int, int] = (-127, 127),
        dtype: torch.dtype = torch.int8,
        real: torch.dtype = torch.float32,
        weight_zero_point: int = 0,
        by_tensor: bool = False,
    ) -> None:
        super().__init__()
        self.activation = (zero_point, *limits, dtype)
        self.real, self.by_tensor = real, by_tensor
        layers = {"conv": nn.Conv2d(8, 8, 3, padding=1), "linear": nn.Linear(8, 4)}
        for name, layer in layers.items():
            weight, scale = quantized_weight(layer.weight, 0)
            self.register_buffer(f"{name}_weight", weight)
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero", torch.full_like(scale, weight_zero_point, dtype=torch.int64))
            self.register_buffer(f"{name}_bias", layer.bias.detach().to(real))
        self.register_buffer("scale", torch.tensor(0.03))
        self.register_buffer("zero", torch.tensor(zero_point))

    def pair(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        decomposed = torch.ops.quantized_decomposed
        if self.by_tensor:
            rest = (self.scale, self.zero, *self.activation[1:])
            return decomposed.dequantize_per_tensor.tensor(decomposed.quantize_per_tensor.tensor(x, *rest), *rest)
        rest = (scale, *self.activation)
        out = {} if self.real == torch.float32 else {"out_dtype": self.real}
        return decomposed.dequantize_per_tensor(decomposed.quantize_per_tensor(x, *rest), *rest, **out)

    def weight(self, name: str) -> torch.Tensor:
        given = (self.get_buffer(f"{name}_{part}") for part in ("weight", "scale", "zero"))
        out = {} if self.real == torch.float32 else {"out_dtype": self.real}
        return torch.ops.quantized_decomposed.dequantize_per_channel(*given, 0, -127, 127, torch.int8, **out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pair(x, 0.03)
        y = F.conv2d(x, self.weight("conv"), self.conv_bias, padding=1)
        y = (y + x).relu().mean((2, 3))
        return F.linear(self.pair(y, 0.01), self.weight("linear"), self.linear_bias)


class ModelOpt(nn.Module):
    """A convolution, its batch norm and a linear layer as modelopt leaves them: fused, with ranges behind `detach`."""

    def __init__(self, bits: tuple[int, int] = (8, 0), unsigned: bool = False, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.bits, self.unsigned = bits, unsigned
        self.conv, self.norm, self.linear = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)
        with torch.no_grad():
            self.norm.weight.uniform_(-2, 2)  # a negative factor turns the sign of a channel
            self.norm.weight[3] = 0
            self.norm.running_var.uniform_(0.5, 2)
            self.conv.weight[5] = 0
        self.register_buffer("largest", torch.full(shape, 4.0))
        self.register_buffer("conv_largest", self.conv.weight.detach().abs().amax((1, 2, 3), keepdim=True))
        self.register_buffer("linear_largest", self.linear.weight.detach().abs().amax(1, keepdim=True))

    def quantized(self, x: torch.Tensor, largest: torch.Tensor, unsigned: bool = False) -> torch.Tensor:
        return torch.ops.tensorrt.quantize_op(x, largest.detach(), *self.bits, unsigned, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.quantized(x, self.largest, self.unsigned)
        y = self.norm(F.conv2d(x, self.quantized(self.conv.weight, self.conv_largest.clamp(min=1e-3)), padding=1))
        y = self.quantized(y.relu().mean((2, 3)), self.largest.mean())
        return F.linear(y, self.quantized(self.linear.weight, self.linear_largest), self.linear.bias)
