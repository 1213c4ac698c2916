"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.registry import Compute, in_float32, reads


@reads("MATRIX_MULTIPLY")
def matrix_multiply(layer: Layer) -> Compute:
    """Compute inner products of matrices or vectors; leading dimensions are collections, and broadcast."""
    left, right = layer.raw.op0.name, layer.raw.op1.name

    def compute(a: Tensor, b: Tensor) -> Tensor:
        product = torch.matmul(_matrix(a, left, vector_axis=-2), _matrix(b, right, vector_axis=-1))
        product = product.squeeze(-1) if right == "VECTOR" else product
        row = -1 if right == "VECTOR" else -2
        return product.squeeze(row) if left == "VECTOR" else product

    return in_float32(compute)


def _matrix(x: Tensor, operation: str, vector_axis: int) -> Tensor:
    """Return the operand as a matrix: a vector becomes a row on the left side, a column on the right."""
    if operation == "VECTOR":
        return x.unsqueeze(vector_axis)
    return x.mT if operation == "TRANSPOSE" else x


@reads("EINSUM")
def einsum(layer: Layer) -> Compute:
    equation = layer.raw.equation
    return in_float32(lambda *operands: torch.einsum(equation, *operands))
