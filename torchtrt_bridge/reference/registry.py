"""The registry of layer readers, and the precision in which they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torchtrt_bridge.reference.layer import Layer

# From a layer's input tensors (None where an optional one is absent) to its output, or a tuple of them.
Compute = Callable[..., Any]
Reader = Callable[["Layer"], Compute]

READERS: dict[str, Reader] = {}

# Python classes whose names do not follow from the layer kind's.
_CLASS_NAMES = {
    "ELEMENTWISE": "IElementWiseLayer",
    "KV_CACHE_UPDATE": "IKVCacheUpdateLayer",
    "PARAMETRIC_RELU": "IParametricReLULayer",
    "SOFTMAX": "ISoftMaxLayer",
    "TOPK": "ITopKLayer",
}


def reads(kind: str) -> Callable[[Reader], Reader]:
    """Register a function that translates layers of this kind (a `trt.LayerType` name) to a computation."""

    def register(reader: Reader) -> Reader:
        if kind in READERS:
            raise ValueError(f"two readers for {kind} layers")
        READERS[kind] = reader
        return reader

    return register


def class_name(kind: str) -> str:
    """Return the name of the Python class of a layer kind: ``MATRIX_MULTIPLY`` is an ``IMatrixMultiplyLayer``."""
    return _CLASS_NAMES.get(kind) or f"I{kind.title().replace('_', '')}Layer"


# Sums are computed in float32, and rounded once to the tensor's own dtype.
_NARROW = (torch.float16, torch.bfloat16)


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Return half-precision tensors as float32, others as they are."""
    return tensor.float() if tensor.dtype in _NARROW else tensor


def in_float32(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Let `function` compute on widened tensors, and round its result once to the first tensor's dtype."""

    def compute(first: torch.Tensor, *others: torch.Tensor | None) -> torch.Tensor:
        wide = [None if other is None else widen(other) for other in others]
        result = function(widen(first), *wide)
        return result.to(first.dtype) if first.dtype in _NARROW else result

    return compute
