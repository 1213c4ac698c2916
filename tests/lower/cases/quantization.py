"""Quantization to 8 bits and back, and weights of 4 bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected
from tests.quantize.by_hand import own, quantized_weight
from torchtrt_bridge.graph.ops import pack_int4

quantize, dequantize, dequantize_int4 = own.quantize.default, own.dequantize.default, own.dequantize_int4.default
INT8, FP8 = torch.int8, torch.float8_e4m3fn
SCALE, ZERO, INFINITE = (torch.full((1,), value) for value in (0.01, 0.0, torch.inf))
SCALES_OF_BLOCKS = torch.ones(4, 1)


class RoundTrip(nn.Module):
    """Quantizes its input, and back to its dtype; the scale spreads it over more than the range."""

    def __init__(self, axis: int | None = None, size: int = 1, dtype: torch.dtype = INT8) -> None:
        super().__init__()
        self.axis, self.dtype = axis, dtype
        self.register_buffer("scale", torch.linspace(0.5, 2, size) / (64 if dtype == INT8 else 256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scale.float()
        return own.dequantize(own.quantize(x, scale, self.axis, self.dtype), scale, self.axis, x.dtype)


class Weight(nn.Module):
    """A product with a constant weight, of 8 bits by channel or of 4 bits by block."""

    def __init__(self, bits: int, block_size: int = 16) -> None:
        super().__init__()
        self.bits, self.block_size = bits, block_size
        if bits == 8:
            weight, scale = quantized_weight(torch.randn(12, 64), axis=0)
        else:
            weight = pack_int4(torch.randint(-8, 8, (12, 64), dtype=INT8))
            scale = torch.rand(12, 64 // block_size) + 0.01
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scale.float()
        if self.bits == 8:
            return F.linear(x, own.dequantize(self.weight, scale, 0, x.dtype))
        return F.linear(x, own.dequantize_int4(self.weight, scale, self.block_size, x.dtype))


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6),)


def image(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 4 + n, 5),)


def tokens(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(2, n, 64),)


def with_scale(scale: torch.Tensor, x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return own.dequantize(own.quantize(x, scale, None, INT8), scale, None, dtype)


def negative_factor(x: torch.Tensor) -> torch.Tensor:
    return with_scale(SCALE, (x * -2.0).transpose(0, 1), x.dtype)


def negative_later(x: torch.Tensor) -> torch.Tensor:
    return -with_scale(SCALE, x + 0.25, x.dtype)


def zero_minus(x: torch.Tensor) -> torch.Tensor:
    return with_scale(SCALE, 0.0 - x, x.dtype)


CASES: list[Case] = [
    Case(quantize, RoundTrip(), rows, name="tensor"),
    Case(quantize, negative_factor, rows, name="negative-factor"),
    Case(quantize, negative_later, rows, name="negative-later"),
    Case(quantize, zero_minus, rows, name="zero-minus"),
    Case(quantize, RoundTrip(axis=1, size=6), image, name="channel"),
    Case(quantize, RoundTrip(axis=-1, size=6), rows, name="last-dimension"),
    Case(quantize, RoundTrip(dtype=FP8), rows, name="fp8"),
    Case(dequantize, RoundTrip(), image, name="tensor"),
    Case(dequantize, RoundTrip(axis=1, size=6, dtype=FP8), image, name="fp8-channel"),
    Case(dequantize, Weight(8), tokens, name="weight"),
    Case(dequantize_int4, Weight(4), tokens, name="weight"),
    Case(dequantize_int4, Weight(4, block_size=32), tokens, name="longer-blocks"),
]

REJECTED: list[Rejected] = [
    Rejected(
        quantize,
        lambda x: with_scale(x.abs().amax().reshape(1) / 127, x),
        rows,
        "scales known only at run time",
        name="dynamic",
    ),
    Rejected(
        quantize,
        lambda x: with_scale(ZERO, x),
        rows,
        "a scale that is not above zero",
        name="scale-of-zero",
    ),
    Rejected(
        dequantize,
        lambda x: with_scale(INFINITE, x),
        rows,
        "not above zero and finite",
        name="infinite-scale",
    ),
    Rejected(
        dequantize_int4,
        lambda x: own.dequantize_int4((x > 0).to(torch.uint8), SCALES_OF_BLOCKS, 12, torch.float32),
        lambda n: (torch.randn(n, 6),),
        "4-bit values known only at run time",
    ),
]
