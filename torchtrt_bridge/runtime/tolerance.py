"""Every tolerance of the package, with its reason, and the comparison of results with PyTorch's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch

# One engine --------------------------------------------------------------------------------------------------------

# Largest relative L2 distance that rounding explains, by the format that rounds. fp16 rounds at 5e-4, bf16 at 4e-3,
# TF32 as fp16; networks of some hundred layers were seen to add up to ten such steps. A wrong layer gives 1e-1 up. Of
# 8-bit values, such rounding moves some to the next step, which is up to 1 in 127, or 1 in 8 for float8.
# TensorRT-RTX 1.6 was seen to use TF32 on an H100 whatever its flag said (5e-4): fp32 does not pass for it.
BOUNDS = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 6e-2, torch.int8: 5e-2, torch.float8_e4m3fn: 8e-2}
TF32_BOUND = 5e-3

# Ties and rounding may move an index or a comparison now and then; more than this share is a wrong layer.
INTEGER_SHARE = 0.01

# Two ways to round a quantized network, by a hair here and there, give results that differ as much as each does from
# floats: MobileNetV3's were seen 28 % from floats, and 24 % from each other. So an engine may be this much further from
# floats than PyTorch's own rounding is.
QUANTIZED_SLACK = 1.5

# A replay of a CUDA graph ----------------------------------------------------------------------------------------

# A replay and a plain call differ by the order of a few sums at most.
REPLAY_BOUND = 1e-2

# A whole graph -----------------------------------------------------------------------------------------------------

# Rounding adds up over subgraphs, and normalization rounds otherwise (a folded batch norm): the bound of one engine in
# fp32, times this. In half precision five times that bound would be what wrong results are (3e-1 of bf16), so it needs
# a proof that rounding does it: results may be ROUNDING_SLACK times as far from the model's as the model itself is when
# autocast rounds it, up to this many bounds.
GRAPH_FACTOR = 5
ROUNDING_SLACK = 3

# Elements that are compared at once, in float64: logits of a large batch would fill the memory several times.
CHUNK = 2**24


def error_bound(dtypes: Iterable[torch.dtype], tf32: bool) -> float:
    """Return the bound for an engine that computes in `dtypes`: the largest of their bounds, as it rounds to each.

    tf32: whether fp32 is computed in TF32.
    """
    bounds = BOUNDS | ({torch.float32: TF32_BOUND} if tf32 else {})
    return max([bounds[dtype] for dtype in (torch.float32, *dtypes) if dtype in bounds])


def graph_tolerance(dtypes: set[torch.dtype], tf32: bool) -> tuple[float, float]:
    """Return the bound and the share of integers for the results of a whole graph that computes in `dtypes`.

    Where values are rounded to half precision or 8 bits, any share of integers may differ: near ties, an argmax may be
    another.
    """
    bound = error_bound(dtypes, tf32)
    is_narrow = bool(dtypes & (BOUNDS.keys() - {torch.float32}))
    return (bound, 1.0) if is_narrow else (GRAPH_FACTOR * bound, INTEGER_SHARE)


def rounded_bound(bound: float, rounding: float) -> float:
    """Return the bound for a graph in half precision; rounding: how far autocast moves the model's own results."""
    return max(bound, min(GRAPH_FACTOR * bound, ROUNDING_SLACK * rounding))


@dataclasses.dataclass(frozen=True)
class Reference:
    """Results that an engine's outputs are compared with, and how far from them those may be.

    bound: the largest relative L2 distance. share: the largest part of an integer output that may differ.
    """

    expected: Sequence[torch.Tensor]
    bound: float
    share: float = INTEGER_SHARE


def quantized_reference(usual: Reference, floats: Sequence[torch.Tensor], rounded: Sequence[torch.Tensor]) -> Reference:
    """Return the reference of a quantized engine: results without rounding of activations to 8 bits.

    usual: the reference of an engine that is not quantized, which stays where `floats` or `rounded` are not finite.
    rounded: PyTorch's results with that rounding; the engine may be QUANTIZED_SLACK times as far from `floats`.
    """
    rounding = compare(rounded, floats, math.inf, 1.0)
    if rounding.problem is not None:
        return usual
    bound, share = QUANTIZED_SLACK * rounding.error, QUANTIZED_SLACK * rounding.share
    return Reference(floats, max(usual.bound, bound), max(usual.share, share))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison.

    error: relative L2 distance, the largest of all floating point outputs.
    problem: why the results are wrong; None if they are right.
    share: the largest part of an integer output that differs.
    """

    error: float
    problem: str | None = None
    share: float = 0.0


def compare(
    actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], bound: float, most: float = INTEGER_SHARE
) -> Comparison:
    """Compare an engine's outputs with PyTorch's for the same inputs; `most` is a reference's share."""
    worst = share = 0.0
    for index, (result, wanted) in enumerate(zip(in_reals(actual), in_reals(expected), strict=True)):
        if result.shape != wanted.shape or result.dtype != wanted.dtype:
            return Comparison(worst, f"output {index} is {_kind(result)}, PyTorch gives {_kind(wanted)}")
        if not wanted.is_floating_point():
            differing = int((result != wanted).sum())
            share = max(share, differing / max(wanted.numel(), 1))
            if share > most:
                return Comparison(worst, f"output {index} differs in {differing} of {wanted.numel()} integers")
            continue
        if not _agree_beyond_numbers(result, wanted):
            return Comparison(worst, f"output {index} is not finite where PyTorch's is, or the other way round")
        worst = max(worst, relative_distance(result, wanted))
    if worst <= bound:
        return Comparison(worst, None, share)
    hint = "; that is the size of TF32 rounding, which tf32=True allows" if worst < TF32_BOUND else ""
    return Comparison(worst, f"its relative L2 distance to PyTorch is {worst:.1e}, above {bound:.0e}{hint}")


def _kind(value: torch.Tensor) -> str:
    return f"{value.dtype}{list(value.shape)}"


def _agree_beyond_numbers(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Return whether NaN and both infinities stand in the same places."""
    if not torch.equal(actual.isfinite(), expected.isfinite()):
        return False
    beyond = ~expected.isfinite()
    return torch.allclose(actual[beyond].float(), expected[beyond].float(), equal_nan=True)


def in_reals(values: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors with complex ones as their real and imaginary parts."""
    return [torch.view_as_real(value.resolve_conj()) if value.is_complex() else value for value in values]


def holds_nan(values: Iterable[torch.Tensor]) -> bool:
    """Return whether there is a NaN in any of the tensors: such results show nothing about an engine."""
    return any(bool(value.isnan().any()) for value in in_reals(values) if value.is_floating_point())


def relative_distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ||actual - expected|| / ||expected|| over the finite elements, in float64; 0 for two zero tensors."""
    distance = norm = 0.0
    for a, b in zip(actual.flatten().split(CHUNK), expected.flatten().split(CHUNK), strict=True):
        finite = b.isfinite()
        a, b = torch.where(finite, a, 0).double(), torch.where(finite, b, 0).double()
        distance = math.hypot(distance, float(torch.linalg.vector_norm(a - b)))
        norm = math.hypot(norm, float(torch.linalg.vector_norm(b)))
    return 0.0 if distance == 0 else distance / max(norm, 1e-30)
