"""Ranges: the largest value that each activation and weight represents, and the scale that follows from it.

A range method computes the threshold of an activation from its statistics. To add one: its name in `RangeMethod`, its
function in `_METHODS`, and, where method="auto" shall compare it too, its name in `compared_methods`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from torchtrt_bridge.graph.ops import LARGEST, dequantize, pack_int4, quantize
from torchtrt_bridge.quantize.statistics import BINS, Statistics

RangeMethod = Literal["absmax", "moving_average", "percentile", "mse", "entropy"]
RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)

# By the name that `quantize` takes; "int4" is of weights only, two values in a byte.
TORCH_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}

# Levels on one side of zero, of which a histogram is compared with its int8 version.
LEVELS = 128

# "entropy" tries one threshold in so many bins. A finer step changed no layer's choice by more than one scale step.
STRIDE = 32

# "mse" tries this many thresholds, each a part of the maximum, evenly spaced in their logarithm.
CANDIDATES = 96
SMALLEST_PART = 0.05

LARGEST_INT4 = 7.0
CLIPPED_INT4 = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # the parts of a block's peak that are tried for its range
SMALLEST_SCALE = 1e-12  # of a channel of zeros: TensorRT takes scales above zero only


# Thresholds of activations ----------------------------------------------------------------------------------------


def threshold(statistics: Statistics, method: RangeMethod, dtype: torch.dtype, percentile: float) -> float:
    """Return the threshold of a tensor, above zero; 1.0 where all values were zero and any scale is as good."""
    if statistics.absmax == 0:
        return 1.0
    found = _METHODS[method](statistics, dtype, percentile)
    return min(max(found, torch.finfo(torch.float32).tiny * 1e3), statistics.absmax)


def compared_methods(dtype: str) -> tuple[RangeMethod, ...]:
    """Return the methods that method="auto" compares, the plainest first.

    "entropy" compares histograms of evenly spaced levels, which float8 does not have.
    """
    return ("absmax", "percentile", "mse") + (("entropy",) if dtype == "int8" else ())


def _absmax(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    return statistics.absmax


def _moving_average(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    return statistics.moving


def _percentile(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    """Return the upper end of the bin in which `percentile` percent of all values are reached."""
    counts = _counts(statistics)
    reached = counts.cumsum(0) >= counts.sum() * (percentile / 100)
    return (int(reached.int().argmax()) + 1) / BINS * statistics.limit


def _mse(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    """Return the threshold with the least mean squared error."""
    counts = _counts(statistics)
    used = _used_bins(counts)
    centers = (torch.arange(used, device=counts.device, dtype=torch.float32) + 0.5) * (statistics.limit / BINS)
    parts = torch.logspace(0, 1, CANDIDATES, base=SMALLEST_PART, device=counts.device)
    thresholds = parts * statistics.absmax
    errors = (round_trip(centers, thresholds.unsqueeze(1), dtype) - centers).square().double() @ counts[:used]
    return float(thresholds[errors.argmin()])


def _entropy(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    """Return the threshold whose int8 histogram is nearest by Kullback-Leibler divergence.

    The algorithm of Szymon Migacz, "8-bit Inference with TensorRT" (2017). The bin of zeros, which are represented
    exactly under every threshold, counts as much as its neighbour.
    """
    counts = _counts(statistics).cpu().clone()
    counts[0] = counts[1]
    used = _used_bins(counts)
    ends = [*range(LEVELS, used, STRIDE), max(used, LEVELS)]
    divergences = torch.stack([_divergence(counts, end) for end in ends])
    end: int = ends[int(divergences.argmin())]
    return end / BINS * statistics.limit


def _divergence(counts: Tensor, end: int) -> Tensor:
    """Return KL(P || Q): P is the histogram clipped at the bin `end`, Q the same in `LEVELS` levels."""
    inside = counts[:end]
    clipped = inside.clone()
    clipped[-1] += counts[end:].sum()
    level = torch.arange(end) * LEVELS // end
    is_used = (inside > 0).double()
    totals = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, inside)
    sharers = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, is_used)
    spread = (totals / sharers.clamp(min=1))[level] * is_used
    clipped_sum, spread_sum = clipped.sum(), spread.sum()
    if clipped_sum == 0 or spread_sum == 0:
        return torch.tensor(float("inf"), dtype=torch.float64)
    p = clipped / clipped_sum
    q = (spread / spread_sum).clamp(min=1e-12)
    return torch.where(p > 0, p * (p.clamp(min=1e-300) / q).log(), 0.0).sum()


def _counts(statistics: Statistics) -> Tensor:
    assert statistics.counts is not None
    return statistics.counts


def _used_bins(counts: Tensor) -> int:
    """Return the number of bins up to the last one with a count."""
    return int(counts.nonzero().max()) + 1 if bool(counts.any()) else 1


_METHODS: dict[RangeMethod, Callable[[Statistics, torch.dtype, float], float]] = {
    "absmax": _absmax,
    "moving_average": _moving_average,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}


# Scales and rounding ----------------------------------------------------------------------------------------------


def scale_of(limit: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the scale of a whole tensor, of shape (1,), from its threshold."""
    return torch.tensor([max(limit / LARGEST[dtype], SMALLEST_SCALE)], dtype=torch.float32, device=device)


def round_trip(x: Tensor, limit: Tensor, dtype: torch.dtype) -> Tensor:
    """Quantize `x` with a threshold, and dequantize it again; the two are broadcast."""
    scale = limit / LARGEST[dtype]
    ratio = x / scale
    if dtype == torch.int8:
        return ratio.round().clamp(-128, 127) * scale
    return ratio.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype).float() * scale


def quantized_weight(weight: Tensor, axis: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the values and the scales of a weight, one scale for each index along `axis`."""
    scale = _channel_scale(weight, axis, dtype)
    return quantize(weight, scale, axis, dtype), scale


def rounded_weight(weight: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Return the weight that the quantized values stand for, in its own dtype."""
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
    """Return the packed 4-bit values of a linear layer's weight (outputs, inputs), and the scale of each block.

    A block is `block_size` inputs of one output, clipped where that leaves the least squared error.
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
