"""Layers that reduce, sort or accumulate along dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer, axes_of
from torchtrt_bridge.reference.registry import Compute, in_float32, reads
from torchtrt_bridge.trt.dtypes import torch_dtype_from_trt


def _product(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True, dtype=x.dtype)
    return x


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=True)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(_sum(x, axes), count, rounding_mode="trunc")


def _sum(x: Tensor, axes: list[int]) -> Tensor:
    return x.sum(axes, keepdim=True, dtype=x.dtype)


def _extreme(x: Tensor, axes: list[int], largest: bool) -> Tensor:
    """Return the maximum or minimum; of no elements, the value that changes no other."""
    if all(x.shape[axis] for axis in axes):
        return x.amax(axes, keepdim=True) if largest else x.amin(axes, keepdim=True)
    limits = torch.finfo(x.dtype) if x.is_floating_point() else torch.iinfo(x.dtype)
    lowest, highest = (-math.inf, math.inf) if x.is_floating_point() else (limits.min, limits.max)
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return torch.full(shape, lowest if largest else highest, dtype=x.dtype)


_REDUCTIONS: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "SUM": _sum,
    "PROD": _product,
    "AVG": _mean,
    "MAX": lambda x, axes: _extreme(x, axes, largest=True),
    "MIN": lambda x, axes: _extreme(x, axes, largest=False),
}


@reads("REDUCE")
def reduce(layer: Layer) -> Compute:
    function = _REDUCTIONS[layer.raw.op.name]
    axes, keep = axes_of(layer.raw.axes), bool(layer.raw.keep_dims)

    def compute(x: Tensor) -> Tensor:
        result = function(x, axes)
        return result if keep else result.squeeze(axes)

    return in_float32(compute)


@reads("TOPK")
def topk(layer: Layer) -> Compute:
    """Return the k largest (or smallest) values in order, and their positions; of equals the first comes first.

    TensorRT's documentation gives NaN no place in the order, so NaN raises LoweringError.
    """
    largest, static_k = layer.raw.op.name == "MAX", int(layer.raw.k)
    (axis,) = axes_of(layer.raw.axes)
    index_dtype = torch_dtype_from_trt(layer.outputs[1].dtype)

    def compute(x: Tensor, wanted: Tensor | None = None) -> tuple[Tensor, Tensor]:
        k = static_k if wanted is None else int(wanted)
        if k > x.shape[axis]:
            raise LoweringError(f"{layer} wants {k} of {x.shape[axis]} values.")
        if x.is_floating_point() and bool(x.isnan().any()):
            raise LoweringError(f"{layer} orders NaN, whose place TensorRT leaves undefined.")
        values, index = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, k), index.narrow(axis, 0, k).to(index_dtype)

    return compute


@reads("CUMULATIVE")
def cumulative(layer: Layer) -> Compute:
    """Compute running sums; exclusive ones leave out the element itself, reverse ones run from the end."""
    exclusive, reverse = bool(layer.raw.exclusive), bool(layer.raw.reverse)

    def compute(x: Tensor, axis_input: Tensor) -> Tensor:
        axis = int(axis_input)
        x = x.flip(axis) if reverse else x
        sums = x.cumsum(axis, dtype=x.dtype)
        if exclusive:
            sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums], axis).narrow(axis, 0, x.shape[axis])
        return sums.flip(axis) if reverse else sums

    wide = in_float32(compute)
    return lambda x, axis: wide(x, axis) if x.numel() else x
