"""Weights: their scales, one per output channel or per block, and their 8-bit and 4-bit values."""

from __future__ import annotations

import torch
from torch import Tensor

from torchtrt_bridge.graph.ops import LARGEST, dequantize, pack_int4, quantize

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST_INT4 = 7.0
CLIPPED_INT4 = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # the parts of a block's peak that are tried for its range
SMALLEST_SCALE = 1e-12  # of a channel of zeros: TensorRT takes scales above zero only


def scale_of(threshold: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The scale of a whole tensor, of shape (1,)."""
    return torch.tensor([max(threshold / LARGEST[dtype], SMALLEST_SCALE)], dtype=torch.float32, device=device)


def quantized_weight(weight: Tensor, axis: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The values and the scales of a weight, one scale for each index along `axis`."""
    scale = _channel_scale(weight, axis, dtype)
    return quantize(weight, scale, axis, dtype), scale


def rounded_weight(weight: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """The weight as its quantized values give it."""
    if dtype == torch.int8 and weight.dtype == torch.float32:  # the same in one pass
        scale = _channel_scale(weight, axis, dtype)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        rounded: Tensor = torch.fake_quantize_per_channel_affine(weight, scale, zeros, axis, -128, 127)
        return rounded
    values, scale = quantized_weight(weight, axis, dtype)
    result: Tensor = dequantize(values, scale, axis, weight.dtype)
    return result


def _channel_scale(weight: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    rows = weight.float().movedim(axis, 0).flatten(1)
    low, high = rows.aminmax(dim=1)
    return (torch.maximum(high, -low) / LARGEST[dtype]).clamp(min=SMALLEST_SCALE)


def quantized_blocks(weight: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The packed 4-bit values of a linear layer's weight (outputs, inputs), and the scale of each block of inputs.

    Each block is clipped where that leaves the least squared error.
    """
    blocks = weight.float().unflatten(1, (-1, block_size))
    whole = (blocks.abs().amax(-1) / LARGEST_INT4).clamp(min=SMALLEST_SCALE)
    scale, least = whole, torch.full_like(whole, torch.inf)
    for part in CLIPPED_INT4:
        tried = (whole * part).clamp(min=SMALLEST_SCALE)
        error = (_rounded_int4(blocks, tried) * tried.unsqueeze(-1) - blocks).square().sum(-1)
        scale, least = torch.where(error < least, tried, scale), torch.minimum(error, least)
    return pack_int4(_rounded_int4(blocks, scale).to(torch.int8).flatten(1)), scale


def _rounded_int4(blocks: Tensor, scale: Tensor) -> Tensor:
    return (blocks / scale.unsqueeze(-1)).round_().clamp_(-8, 7)


def round_trip(x: Tensor, threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` as it comes back from a quantization with `threshold`; the two are broadcast."""
    scale = threshold / LARGEST[dtype]
    ratio = x / scale
    if dtype == torch.int8:
        return ratio.round().clamp(-128, 127) * scale
    return ratio.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).float() * scale
