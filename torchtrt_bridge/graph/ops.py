"""The operators of a quantized graph: PyTorch computes them as TensorRT does, and `torch.export` keeps them whole.

Quantization is symmetric: a real value is its integer (or float8 number) times a scale. Importing this module
registers the operators as ``torch.ops.torchtrt_bridge.quantize``, ``dequantize`` and ``dequantize_int4``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAMESPACE = "torchtrt_bridge"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

# The largest value that each quantized type holds; a range's scale is its absolute maximum by this.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@torch.library.custom_op(
    f"{NAMESPACE}::quantize", mutates_args=(), schema="(Tensor x, Tensor scale, int? axis, ScalarType dtype) -> Tensor"
)
def quantize(x: Tensor, scale: Tensor, axis: int | None, dtype: torch.dtype) -> Tensor:
    """Compute ``round(x / scale)``, halves to even, clamped to the range of `dtype`.

    scale: float32, above zero; of shape (1,), or with `axis` one for each index along that dimension of `x`.
    dtype: int8, whose range is -128 to 127, or float8_e4m3fn.
    """
    _check(scale, x, axis, x.dtype, dtype)
    ratio = x.float() / _along(scale, x, axis)
    if dtype == torch.int8:
        return ratio.round_().clamp_(-128, 127).to(dtype)
    return ratio.clamp_(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, axis: int | None, dtype: torch.dtype) -> Tensor:
    _check(scale, x, axis, x.dtype, dtype)
    return torch.empty_like(x, dtype=dtype)


@torch.library.custom_op(
    f"{NAMESPACE}::dequantize",
    mutates_args=(),
    schema="(Tensor q, Tensor scale, int? axis, ScalarType dtype) -> Tensor",
)
def dequantize(q: Tensor, scale: Tensor, axis: int | None, dtype: torch.dtype) -> Tensor:
    """Compute ``q * scale``, rounded once to `dtype`: float32, float16 or bfloat16. `scale` is as for `quantize`."""
    _check(scale, q, axis, dtype, q.dtype)
    return (q.float() * _along(scale, q, axis)).to(dtype)


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, axis: int | None, dtype: torch.dtype) -> Tensor:
    _check(scale, q, axis, dtype, q.dtype)
    return torch.empty_like(q, dtype=dtype)


@torch.library.custom_op(
    f"{NAMESPACE}::dequantize_int4",
    mutates_args=(),
    schema="(Tensor packed, Tensor scale, int block_size, ScalarType dtype) -> Tensor",
)
def dequantize_int4(packed: Tensor, scale: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    """Compute a weight of a linear layer from 4-bit integers, each times the scale of its block.

    packed: uint8 of shape (outputs, inputs / 2); see `pack_int4`.
    scale: float32 of shape (outputs, inputs / block_size), rounded to `dtype` first, as TensorRT wants it.
    """
    _check_blocks(packed, scale, block_size, dtype)
    values = unpack_int4(packed)
    blocks = values.reshape(values.shape[0], -1, block_size).float() * scale.to(dtype).float().unsqueeze(-1)
    return blocks.reshape(values.shape).to(dtype)


@dequantize_int4.register_fake
def _(packed: Tensor, scale: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    _check_blocks(packed, scale, block_size, dtype)
    return packed.new_empty((packed.shape[0], packed.shape[1] * 2), dtype=dtype)


# The namespace of the operators: a module that takes them from here has them registered.
own: Any = torch.ops.torchtrt_bridge


def pack_int4(values: Tensor) -> Tensor:
    """Pack int8 values in -8 to 7, of shape (..., n) with n even, two to a uint8: the first in the lower half."""
    pairs: Tensor = values.view(torch.uint8).unflatten(-1, (-1, 2))
    return (pairs[..., 0] & 15) | (pairs[..., 1] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Return the int8 values that `pack_int4` packed."""
    halves = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).to(torch.int8)
    return torch.where(halves > 7, halves - 16, halves)


def _along(scale: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """Return `scale` in a shape that broadcasts with `x` along `axis`."""
    if axis is None:
        return scale.float()
    shape = [1] * x.dim()
    shape[axis] = -1
    return scale.float().reshape(shape)


def _check(scale: Tensor, x: Tensor, axis: int | None, real: torch.dtype, quantized: torch.dtype) -> None:
    wanted: tuple[Any, ...] = (1,) if axis is None else (x.shape[axis],)
    if tuple(scale.shape) != wanted:
        along = "of the whole tensor" if axis is None else f"along dimension {axis} of {tuple(x.shape)}"
        raise ValueError(f"A scale {along} has the shape {wanted}, not {tuple(scale.shape)}.")
    _check_dtype(real, FLOATS)
    _check_dtype(quantized, tuple(LARGEST))


def _check_blocks(packed: Tensor, scale: Tensor, block_size: int, dtype: torch.dtype) -> None:
    outputs, pairs = packed.shape
    wanted = (outputs, pairs * 2 // block_size)
    if packed.dtype != torch.uint8 or pairs * 2 % block_size or tuple(scale.shape) != wanted:
        raise ValueError(
            f"4-bit weights of shape {(outputs, pairs * 2)} in blocks of {block_size} take a scale of shape {wanted} "
            f"and uint8 pairs, not {tuple(scale.shape)} and {packed.dtype}."
        )
    _check_dtype(dtype, FLOATS)


def _check_dtype(dtype: torch.dtype, choices: tuple[torch.dtype, ...]) -> None:
    if dtype not in choices:
        raise ValueError(f"{dtype} is none of {', '.join(map(str, choices))}.")
