"""Lowering: writes a subgraph of ATen nodes into a TensorRT network, by one converter for each operator."""

from torchtrt_bridge.lower import converters as _converters
from torchtrt_bridge.lower.registry import (
    CONVERTERS,
    Converter,
    ConverterProvider,
    is_foreign,
    only_moves_data,
    precision_of,
    why_not,
)

__all__ = [
    "CONVERTERS",
    "Converter",
    "ConverterProvider",
    "is_foreign",
    "only_moves_data",
    "precision_of",
    "why_not",
]

assert _converters
