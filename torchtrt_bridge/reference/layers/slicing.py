"""The slice layer, which also pads, repeats and flips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.registry import Compute, reads


@reads("SLICE")
def slice_(layer: Layer) -> Compute:
    """Take, along each dimension, the elements start, start + stride, ... up to the size.

    Start, size, stride, fill value and axes are attributes, or inputs 1 to 5, which come first.
    """
    mode = layer.option("mode", "STRICT_BOUNDS")
    static = [layer.dims(attribute) for attribute in ("start", "shape", "stride", "axes")]

    def compute(x: Tensor, *inputs: Tensor | None) -> Tensor:
        given = [*inputs, *[None] * 5][:5]
        fill = given.pop(3)
        start, size, stride, axes = (
            fixed if value is None else value.reshape(-1).tolist() for value, fixed in zip(given, static, strict=True)
        )
        if start is None or size is None or stride is None:
            raise LoweringError(f"{layer} lacks a start, size or stride.")
        return _take(x, list(axes or range(x.dim())), list(zip(start, size, stride, strict=True)), mode, fill)

    return compute


def _take(x: Tensor, axes: list[int], ranges: Sequence[tuple[int, int, int]], mode: str, fill: Tensor | None) -> Tensor:
    outside: Tensor | None = None
    for axis, (start, size, stride) in zip(axes, ranges, strict=True):
        axis %= x.dim()
        length = x.shape[axis]
        last = start + (size - 1) * stride
        if size == 0 or (0 <= start < length and 0 <= last < length):
            x = _inside(x, axis, start, size, stride)
            continue
        index = start + stride * torch.arange(size)
        inside = (index >= 0) & (index < length)
        x = _pick(x, axis, _bring_inside(index, length, mode))
        if mode == "FILL":
            away = ~inside.reshape([-1] + [1] * (x.dim() - axis - 1))
            outside = away if outside is None else outside | away
    return x if outside is None else torch.where(outside, _fill_value(fill, x), x)


def _inside(x: Tensor, axis: int, start: int, size: int, stride: int) -> Tensor:
    if size == 0:
        return x.narrow(axis, 0, 0)
    if stride > 0:
        return x.narrow(axis, start, (size - 1) * stride + 1)[(slice(None),) * axis + (slice(None, None, stride),)]
    return x.index_select(axis, start + stride * torch.arange(size))


def _bring_inside(index: Tensor, length: int, mode: str) -> Tensor:
    """Return the positions within a dimension that replace positions outside of it."""
    if mode == "STRICT_BOUNDS":
        raise LoweringError(f"positions {index.min()} to {index.max()} leave a dimension of {length}.")
    if length == 0 and mode != "FILL":
        raise LoweringError(f"{mode} has nothing to repeat in an empty dimension.")
    if mode == "WRAP":
        return index % length
    if mode == "REFLECT":
        # The mirrors are the middles of the first and the last element.
        period = max(2 * (length - 1), 1)
        folded = index % period
        return torch.where(folded < length, folded, period - folded)
    return index.clamp(0, max(length - 1, 0))


def _pick(x: Tensor, axis: int, index: Tensor) -> Tensor:
    if x.shape[axis] == 0:
        shape = list(x.shape)
        shape[axis] = index.numel()
        return torch.zeros(shape, dtype=x.dtype)
    return x.index_select(axis, index)


def _fill_value(fill: Tensor | None, x: Tensor) -> Tensor:
    return torch.zeros((), dtype=x.dtype) if fill is None else fill.reshape(()).to(x.dtype)
