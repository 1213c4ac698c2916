"""Small networks that were quantized by hand, with the operators of `graph.ops` and no calibration."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from torchtrt_bridge.graph.ops import LARGEST, own

INT8, FP8 = torch.int8, torch.float8_e4m3fn


def quantized_weight(weight: torch.Tensor, axis: int, dtype: torch.dtype = INT8) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight in 8 bits, and its scales along `axis`."""
    others = [dim for dim in range(weight.dim()) if dim != axis]
    scale = weight.detach().abs().amax(others) / LARGEST[dtype]
    return own.quantize(weight.detach(), scale, axis, dtype), scale


class Quantized(nn.Module):
    """An activation, quantized and dequantized; `largest` is the largest value in range."""

    def __init__(self, largest: float, dtype: torch.dtype = INT8) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("scale", torch.tensor([largest / LARGEST[dtype]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return own.dequantize(own.quantize(x, self.scale, None, self.dtype), self.scale, None, x.dtype)


class QuantizedLayer(nn.Module):
    """A layer whose input and weight are quantized; its bias is not."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, axis: int, call: Callable[..., torch.Tensor], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.input = Quantized(4.0, dtype)
        self.axis, self.call = axis, call
        quantized, scale = quantized_weight(weight, axis, dtype)
        self.register_buffer("weight", quantized)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.input(x), own.dequantize(self.weight, self.scale, self.axis, x.dtype), self.bias)


def convolution(inputs: int, outputs: int, dtype: torch.dtype = INT8, groups: int = 1) -> QuantizedLayer:
    float_layer = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)
    call = _Convolution(groups)
    return QuantizedLayer(float_layer.weight, float_layer.bias, 0, call, dtype)


def transposed_convolution(inputs: int, outputs: int, dtype: torch.dtype = INT8) -> QuantizedLayer:
    float_layer = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    return QuantizedLayer(float_layer.weight, float_layer.bias, 1, _upsampled, dtype)


def linear(inputs: int, outputs: int, dtype: torch.dtype = INT8) -> QuantizedLayer:
    float_layer = nn.Linear(inputs, outputs)
    return QuantizedLayer(float_layer.weight, float_layer.bias, 0, F.linear, dtype)


class _Convolution:
    def __init__(self, groups: int) -> None:
        self.groups = groups

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, bias, padding=1, groups=self.groups)


def _upsampled(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.conv_transpose2d(x, weight, bias, stride=2)


class ConvNet(nn.Module):
    """Convolutions, a residual sum whose skipped input is quantized too, pooling, and a linear layer.

    Among the convolutions are a depthwise and a transposed one.
    """

    def __init__(self, dtype: torch.dtype = INT8) -> None:
        super().__init__()
        self.first = convolution(3, 16, dtype)
        self.second = convolution(16, 16, dtype)
        self.depthwise = convolution(16, 16, dtype, groups=16)
        self.up = transposed_convolution(16, 8, dtype)
        self.skipped = Quantized(4.0, dtype)
        self.head = linear(8, 5, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = (self.second(x) + self.skipped(x)).relu()
        x = self.up(F.max_pool2d(self.depthwise(x).relu(), 2)).relu()
        return self.head(x.mean((2, 3)))


class MLP(nn.Module):
    """Linear layers over tokens, with a layer norm and GELU between."""

    def __init__(self, dtype: torch.dtype = INT8) -> None:
        super().__init__()
        self.up, self.down = linear(32, 64, dtype), linear(64, 32, dtype)
        self.norm = nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.down(F.gelu(self.up(x))))


# Each network, with its input.
NETS: dict[str, tuple[Callable[..., nn.Module], Callable[[], torch.Tensor]]] = {
    "convolutions": (ConvNet, lambda: torch.randn(2, 3, 16, 16)),
    "linear layers": (MLP, lambda: torch.randn(2, 7, 32)),
}


def net(name: str, dtype: torch.dtype = INT8) -> tuple[nn.Module, torch.Tensor]:
    """A network and an input."""
    make, make_input = NETS[name]
    return make(dtype).eval(), make_input()
