"""Which function reads which kind of TensorRT layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
    """The name of the Python class of a layer kind: ``MATRIX_MULTIPLY`` is an ``IMatrixMultiplyLayer``."""
    return _CLASS_NAMES.get(kind) or f"I{kind.title().replace('_', '')}Layer"
