"""The check that every engine passes before it is trusted: its first results against PyTorch's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

# Largest relative L2 distance that rounding explains, by the narrowest dtype at work. fp16 rounds at 5e-4 and
# bf16 at 4e-3; a network of some hundred layers was seen to add up to ten such steps. A wrong layer gives 1e-1 up.
BOUNDS = {torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 6e-2}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """error: relative L2 distance over all floating point outputs; problem: why the engine is wrong, or None."""

    error: float
    problem: str | None = None


def difference(results: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], narrowest: torch.dtype | None = None) -> Verdict:
    """Compare an engine's outputs with PyTorch's for the same inputs."""
    worst = 0.0
    for index, (mine, theirs) in enumerate(zip(results, expected, strict=True)):
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            return Verdict(worst, f"output {index} is {mine.dtype}{list(mine.shape)}, PyTorch gives {theirs.dtype}{list(theirs.shape)}")
        if not theirs.is_floating_point():
            differing = int((mine != theirs).sum())
            if differing > INTEGER_SHARE * max(theirs.numel(), 1):
                return Verdict(worst, f"output {index} differs in {differing} of {theirs.numel()} integers")
            continue
        if not torch.equal(mine.isfinite(), theirs.isfinite()):
            return Verdict(worst, f"output {index} is not finite where PyTorch's is, or the other way round")
        worst = max(worst, relative_distance(mine, theirs))
    bound = BOUNDS.get(narrowest or torch.float32, BOUNDS[torch.float32])
    return Verdict(worst, f"its relative L2 distance to PyTorch is {worst:.1e}, above {bound:.0e}" if worst > bound else None)


# Ties and rounding may move an index or a comparison now and then; more than this share is a wrong layer.
INTEGER_SHARE = 0.01


def relative_distance(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """||mine - theirs|| / ||theirs|| over the finite elements, in float64; 0 for two empty or zero tensors."""
    a, b = mine.double(), theirs.double()
    finite = b.isfinite()
    a, b = torch.where(finite, a, 0), torch.where(finite, b, 0)
    distance = float(torch.linalg.vector_norm(a - b))
    norm = float(torch.linalg.vector_norm(b))
    return 0.0 if distance == 0 else distance / max(norm, 1e-30)
