"""Layers that read or write by index."""

from __future__ import annotations

import torch
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer, tensor_dims
from torchtrt_bridge.reference.registry import Compute, reads


def _check_negative(layer: Layer, index: Tensor, axes_dynamic: bool) -> None:
    """Raise for a negative index into a dimension of dynamic length, which TensorRT leaves undefined."""
    if axes_dynamic and bool((index < 0).any()):
        raise LoweringError(f"{layer} has a negative index into a dynamic dimension: TensorRT leaves it undefined.")


def _fit(index: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return the index with negatives counted from the end, clamped, and a mask of where it was outside."""
    index = index.long()
    index = torch.where(index < 0, index + length, index)
    outside = (index < 0) | (index >= length)
    return index.clamp(0, max(length - 1, 0)), outside


@reads("GATHER")
def gather(layer: Layer) -> Compute:
    """Read by index, like ONNX Gather, GatherElements or GatherND.

    An index outside the data raises LoweringError, as it raises IndexError in PyTorch; an engine reads zero there.
    """
    mode, axis, batch = layer.raw.mode.name, int(layer.raw.axis), int(layer.raw.num_elementwise_dims)
    dynamic = [dim < 0 for dim in tensor_dims(layer.inputs[0])]

    def compute(data: Tensor, index: Tensor) -> Tensor:
        if mode == "ND":
            _check_negative(layer, index, any(dynamic[batch : batch + index.shape[-1]]))
            return _gather_nd(layer, data, index, batch)
        where = axis % data.dim()
        _check_negative(layer, index, dynamic[where])
        if mode == "ELEMENT":
            safe, outside = _fit(index, data.shape[where])
            _refuse_outside(layer, outside, index)
            return torch.gather(data, where, safe)
        if batch == 0:
            return _gather_axis(layer, data, index, where)
        rows = max(data.shape[0], index.shape[0])
        data, index = data.expand(rows, *data.shape[1:]), index.expand(rows, *index.shape[1:])
        return torch.stack([_gather_axis(layer, row, at, where - 1) for row, at in zip(data, index, strict=True)])

    return compute


def _gather_axis(layer: Layer, data: Tensor, index: Tensor, axis: int) -> Tensor:
    safe, outside = _fit(index, data.shape[axis])
    _refuse_outside(layer, outside, index)
    shape = [*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]]
    return data.index_select(axis, safe.reshape(-1)).reshape(shape)


def _coordinates(index: Tensor, dims: list[int]) -> tuple[list[Tensor], Tensor]:
    """Return the columns of an ND index, clamped, and a mask of where any of them was outside."""
    outside = torch.zeros(index.shape[:-1], dtype=torch.bool)
    columns = []
    for column, length in enumerate(dims):
        safe, away = _fit(index[..., column], length)
        columns.append(safe)
        outside |= away
    return columns, outside


def _gather_nd(layer: Layer, data: Tensor, index: Tensor, batch: int) -> Tensor:
    depth = index.shape[-1]
    columns, outside = _coordinates(index, list(data.shape[batch : batch + depth]))
    _refuse_outside(layer, outside, index)
    lead = []
    for axis in range(batch):
        shape = [1] * (index.dim() - 1)
        shape[axis] = data.shape[axis]
        lead.append(torch.arange(data.shape[axis]).reshape(shape))
    return data[tuple(lead + columns)]


@reads("SCATTER")
def scatter(layer: Layer) -> Compute:
    """Copy the data and write updates at the indices, like ONNX ScatterElements or ScatterND."""
    mode, axis = layer.raw.mode.name, int(layer.raw.axis)

    def compute(data: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        if mode == "ELEMENT":
            safe, outside = _fit(index, data.shape[axis])
            _refuse_outside(layer, outside, index)
            return data.scatter(axis, safe, updates)
        columns, outside = _coordinates(index, list(data.shape[: index.shape[-1]]))
        _refuse_outside(layer, outside, index)
        return data.index_put(tuple(columns), updates)

    return compute


def _refuse_outside(layer: Layer, outside: Tensor, index: Tensor) -> None:
    if bool(outside.any()):
        raise LoweringError(f"{layer} has indices outside the data: they range from {index.min()} to {index.max()}.")


@reads("ONE_HOT")
def one_hot(layer: Layer) -> Compute:
    """Put the on value at each index along a new axis, the off value elsewhere; values are [off, on].

    Negative indices count from the end, as in TensorRT's own evaluation of shapes.
    """
    axis = int(layer.raw.axis)

    def compute(index: Tensor, values: Tensor, depth: Tensor) -> Tensor:
        position = axis % (index.dim() + 1)
        count = int(depth)
        index = torch.where(index < 0, index + count, index)
        classes = torch.arange(count).reshape([-1] + [1] * (index.dim() - position))
        return torch.where(index.unsqueeze(position) == classes, values[1], values[0])

    return compute
