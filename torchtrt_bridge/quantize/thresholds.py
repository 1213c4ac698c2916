"""Thresholds: the absolute value up to which an activation is represented, from its statistics, by each method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchtrt_bridge.quantize.settings import Observer
from torchtrt_bridge.quantize.statistics import BINS, Statistics
from torchtrt_bridge.quantize.weights import round_trip

# Levels on one side of zero, of which a histogram is compared with its int8 version.
LEVELS = 128

# What `entropy` tries: every so many bins. A finer step changed no layer's choice by more than one scale step.
STRIDE = 32

# What `mse` tries: this many thresholds, each a part of the maximum, evenly spaced in their logarithm.
CANDIDATES = 96
SMALLEST_PART = 0.05


def threshold(statistics: Statistics, method: Observer, dtype: torch.dtype, percentile: float) -> float:
    """The threshold of a tensor, above zero; 1.0 where all values were zero, and any scale is as good."""
    if statistics.absmax == 0:
        return 1.0
    found = _METHODS[method](statistics, dtype, percentile)
    return min(max(found, torch.finfo(torch.float32).tiny * 1e3), statistics.absmax)


def _absmax(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    return statistics.absmax


def _moving_average(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    return statistics.moving


def _percentile(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    """The upper end of the bin in which `percentile` percent of all values are reached."""
    counts = _counts(statistics)
    reached = counts.cumsum(0) >= counts.sum() * (percentile / 100)
    return (int(reached.int().argmax()) + 1) / BINS * statistics.limit


def _mse(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    """The threshold with the least mean squared error."""
    counts = _counts(statistics)
    used = _used_bins(counts)
    centers = (torch.arange(used, device=counts.device, dtype=torch.float32) + 0.5) * (statistics.limit / BINS)
    parts = torch.logspace(0, 1, CANDIDATES, base=SMALLEST_PART, device=counts.device)
    thresholds = parts * statistics.absmax
    errors = (round_trip(centers, thresholds.unsqueeze(1), dtype) - centers).square().double() @ counts[:used]
    return float(thresholds[errors.argmin()])


def _entropy(statistics: Statistics, dtype: torch.dtype, percentile: float) -> float:
    """The threshold whose int8 histogram is nearest by Kullback-Leibler divergence.

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
    """KL(P || Q): P is the histogram clipped at the bin `end`, Q the same in `LEVELS` levels."""
    inside = counts[:end]
    clipped = inside.clone()
    clipped[-1] += counts[end:].sum()
    level = torch.arange(end) * LEVELS // end
    is_used = (inside > 0).double()
    totals = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, inside)
    sharers = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, is_used)
    spread = (totals / sharers.clamp(min=1))[level] * is_used
    total, kept = clipped.sum(), spread.sum()
    if total == 0 or kept == 0:
        return torch.tensor(float("inf"), dtype=torch.float64)
    p = clipped / total
    q = (spread / kept).clamp(min=1e-12)
    return torch.where(p > 0, p * (p.clamp(min=1e-300) / q).log(), 0.0).sum()


def _counts(statistics: Statistics) -> Tensor:
    assert statistics.counts is not None
    return statistics.counts


def _used_bins(counts: Tensor) -> int:
    """Bins up to the last one with a count."""
    return int(counts.nonzero().max()) + 1 if bool(counts.any()) else 1


_METHODS: dict[Observer, Callable[[Statistics, torch.dtype, float], float]] = {
    "absmax": _absmax,
    "moving_average": _moving_average,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
