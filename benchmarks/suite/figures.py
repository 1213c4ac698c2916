"""Statistics: median, interquartile range, geometric mean, relative error."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CHUNK = 2**24  # elements compared at a time: a language model's logits in float64 would fill the memory


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def interquartile_range(values: Sequence[float]) -> float:
    """From the first to the third quartile, interpolated between the values; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios: a doubling and a halving give 1. Raises ValueError for none, or for one that is not > 0."""
    if not values or min(values) <= 0:
        raise ValueError(f"a geometric mean is of positive numbers, not of {list(values)}")
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def relative_error(results: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """||result - expected|| / ||expected|| in float64, the largest over the outputs; inf if a result is not finite.

    Raises ValueError where number or shapes of the outputs differ.
    """
    if [tuple(t.shape) for t in results] != [tuple(t.shape) for t in expected]:
        shapes = f"{[list(t.shape) for t in results]}, not {[list(t.shape) for t in expected]}"
        raise ValueError(f"the results have the shapes {shapes}")
    return max((_distance(mine, theirs) for mine, theirs in zip(results, expected, strict=True)), default=0.0)


def _distance(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    distance = norm = 0.0
    for found, wanted in zip(mine.reshape(-1).split(CHUNK), theirs.reshape(-1).split(CHUNK), strict=True):
        a, b = found.double(), wanted.to(found.device).double()
        distance += float((a - b).square().sum())
        norm += float(b.square().sum())
    if not math.isfinite(distance):
        return math.inf
    return 0.0 if distance == 0 else math.sqrt(distance / max(norm, 1e-300))
