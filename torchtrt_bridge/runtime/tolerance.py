"""The check of results against PyTorch's: that of every engine before it is trusted, and of calibration's graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch

# Largest relative L2 distance that rounding explains, by the narrowest format at work. fp16 rounds at 5e-4, bf16 at
# 4e-3, TF32 as fp16; networks of some hundred layers were seen to add up to ten such steps. A wrong layer gives
# 1e-1 up. Of 8-bit values, such rounding moves some to the next step, which is up to 1 in 127, or 1 in 8 for float8.
# TensorRT-RTX 1.6 was seen to use TF32 on an H100 whatever its flag said (5e-4): fp32 does not pass for it.
BOUNDS = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 6e-2, torch.int8: 5e-2, torch.float8_e4m3fn: 8e-2}
TF32_BOUND = 5e-3

# Ties and rounding may move an index or a comparison now and then; more than this share is a wrong layer.
INTEGER_SHARE = 0.01

# Elements that are compared at once, in float64: logits of a large batch would fill the memory several times.
CHUNK = 2**24


def error_bound(dtypes: Iterable[torch.dtype], tf32: bool) -> float:
    """The bound for an engine that computes in `dtypes`."""
    widest = TF32_BOUND if tf32 else BOUNDS[torch.float32]
    return max([BOUNDS[dtype] for dtype in dtypes if dtype in BOUNDS and dtype != torch.float32], default=widest)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What an engine's outputs are compared with, and how far from it they may be.

    bound: the largest relative L2 distance. share: the largest part of an integer output that may differ.
    """

    expected: Sequence[torch.Tensor]
    bound: float
    share: float = INTEGER_SHARE


@dataclasses.dataclass(frozen=True)
class Comparison:
    """error: relative L2 distance, the largest of all floating point outputs; share: the largest part of an integer
    output that differs; problem: why the engine is wrong, or None."""

    error: float
    problem: str | None = None
    share: float = 0.0


def difference(
    results: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], bound: float, most: float = INTEGER_SHARE
) -> Comparison:
    """Compare an engine's outputs with PyTorch's for the same inputs; `most` is a reference's share."""
    worst = share = 0.0
    for index, (mine, theirs) in enumerate(zip(results, expected, strict=True)):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return Comparison(
                worst,
                f"output {index} is {mine.dtype}{list(mine.shape)}, PyTorch gives {theirs.dtype}{list(theirs.shape)}",
            )
        if not theirs.is_floating_point():
            differing = int((mine != theirs).sum())
            share = max(share, differing / max(theirs.numel(), 1))
            if share > most:
                return Comparison(worst, f"output {index} differs in {differing} of {theirs.numel()} integers")
            continue
        if not _same_beyond_numbers(mine, theirs):
            return Comparison(worst, f"output {index} is not finite where PyTorch's is, or the other way round")
        worst = max(worst, relative_distance(mine, theirs))
    if worst <= bound:
        return Comparison(worst, None, share)
    hint = "; that is the size of TF32 rounding, which tf32=True allows" if worst < TF32_BOUND else ""
    return Comparison(worst, f"its relative L2 distance to PyTorch is {worst:.1e}, above {bound:.0e}{hint}")


def _same_beyond_numbers(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether NaN and both infinities stand in the same places."""
    if not torch.equal(mine.isfinite(), theirs.isfinite()):
        return False
    beyond = ~theirs.isfinite()
    return torch.allclose(mine[beyond].float(), theirs[beyond].float(), equal_nan=True)


def holds_nan(values: Iterable[torch.Tensor]) -> bool:
    """Whether there is a NaN in any of the tensors: by such values nothing can be told right from wrong."""
    return any(bool(value.isnan().any()) for value in values if value.is_floating_point())


def relative_distance(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """||mine - theirs|| / ||theirs|| over the finite elements, in float64; 0 for two empty or zero tensors."""
    distance = norm = 0.0
    for a, b in zip(mine.flatten().split(CHUNK), theirs.flatten().split(CHUNK), strict=True):
        finite = b.isfinite()
        a, b = torch.where(finite, a, 0).double(), torch.where(finite, b, 0).double()
        distance = math.hypot(distance, float(torch.linalg.vector_norm(a - b)))
        norm = math.hypot(norm, float(torch.linalg.vector_norm(b)))
    return 0.0 if distance == 0 else distance / max(norm, 1e-30)
