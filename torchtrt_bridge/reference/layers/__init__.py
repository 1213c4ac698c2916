"""The semantics of TensorRT's layers, by family. Importing this registers all readers."""

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

__all__ = [
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
