"""Readers of TensorRT's layers, by family. READERS has all of them once this package is imported."""

from torchtrt_bridge.reference.layers import (
    attention,
    convolution,
    gather,
    matmul,
    normalization,
    pointwise,
    pooling,
    quantization,
    reduce,
    resize,
    shape,
    slicing,
)
from torchtrt_bridge.reference.registry import READERS

__all__ = [
    "READERS",
    "attention",
    "convolution",
    "gather",
    "matmul",
    "normalization",
    "pointwise",
    "pooling",
    "quantization",
    "reduce",
    "resize",
    "shape",
    "slicing",
]
