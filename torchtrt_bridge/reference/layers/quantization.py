"""Quantize and dequantize: symmetric, by tensor, by channel or by block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.registry import Compute, reads
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt

FP8_LARGEST = 448.0


def _to_integers(lowest: int, highest: int) -> Callable[[Tensor], Tensor]:
    """Return a function that rounds to nearest, ties to even, and clamps."""
    return lambda ratio: ratio.round().clamp(lowest, highest).to(torch.int8)


_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "INT8": _to_integers(-128, 127),
    "INT4": _to_integers(-8, 7),
    "FP8": lambda ratio: ratio.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn),
}


def _spread(scale: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return the scale as float32, in a shape that broadcasts with `x`."""
    scale = scale.float()
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1 and not (x.dim() == 1 and axis < 0):
        shape = [1] * x.dim()
        shape[axis] = -1
        return scale.reshape(shape)
    if scale.dim() != x.dim():
        raise LoweringError(f"a scale of shape {tuple(scale.shape)} does not fit {tuple(x.shape)}.")
    for dim, (blocks, size) in enumerate(zip(scale.shape, x.shape, strict=True)):
        if size % blocks:
            raise LoweringError(f"{blocks} blocks do not divide a dimension of {size}.")
        scale = scale.repeat_interleave(size // blocks, dim)
    return scale


@reads("QUANTIZE")
def quantize(layer: Layer) -> Compute:
    """Compute clamp(round(x / scale)). Float8 is rounded to nearest even and clamped to its largest finite value."""
    axis, rounded = int(layer.raw.axis), _ROUNDINGS[layer.outputs[0].dtype.name]

    def compute(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        _refuse(layer, zero_point)
        return rounded(x.float() / _spread(scale, x, axis))

    return compute


@reads("DEQUANTIZE")
def dequantize(layer: Layer) -> Compute:
    """Compute x * scale, rounded once to the output's dtype."""
    axis, dtype = int(layer.raw.axis), torch_dtype_from_trt(layer.outputs[0].dtype)

    def compute(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
        _refuse(layer, zero_point)
        return (x.float() * _spread(scale, x, axis)).to(dtype)

    return compute


def _refuse(layer: Layer, zero_point: Tensor | None) -> None:
    if zero_point is not None and bool(zero_point.any()):
        raise LoweringError(f"{layer} has a zero point, but TensorRT quantizes symmetrically.")
