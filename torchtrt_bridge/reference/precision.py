"""At which precision the reference computes: sums in float32, rounded once to the tensor's own dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch

NARROW = (torch.float16, torch.bfloat16)


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Half-precision tensors as float32, others as they are."""
    return tensor.float() if tensor.dtype in NARROW else tensor


def in_float32(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`function` computed on widened tensors, its result rounded once to the first tensor's dtype."""

    def compute(first: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        wide = [None if other is None else widen(other) for other in others]
        result = function(widen(first), *wide)
        return result.to(first.dtype) if first.dtype in NARROW else result

    return compute
