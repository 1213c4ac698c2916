"""Softmax and normalization."""

from __future__ import annotations

import torch
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer, axes_of
from torchtrt_bridge.reference.registry import Compute, in_float32, reads


@reads("SOFTMAX")
def softmax(layer: Layer) -> Compute:
    (axis,) = axes_of(layer.raw.axes)
    return in_float32(lambda x: torch.softmax(x, axis))


@reads("NORMALIZATION")
def normalization(layer: Layer) -> Compute:
    """Compute (x - mean) / sqrt(variance + epsilon) * scale + bias over the axes, and within channel groups if set.

    Scale and bias have x's rank. With groups, the first version of the layer has one of each for a group
    ([1, G, 1, 1]), the second version one for a channel ([1, C, 1, 1]); older TensorRT has only the first.
    """
    axes, epsilon, groups = axes_of(layer.raw.axes), float(layer.raw.epsilon), int(layer.raw.num_groups)
    by_group = groups > 1 and not getattr(layer.raw, "is_v2", False)

    def compute(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if groups == 1:
            return _standardize(x, axes, epsilon) * scale + bias
        if axes != list(range(2, x.dim())):
            raise LoweringError(f"{layer} has groups, so its axes must be all after the channels, not {axes}.")
        grouped = x.reshape(x.shape[0], groups, -1)
        result = _standardize(grouped, [2], epsilon)
        if by_group:
            return (result * scale.reshape(1, groups, 1) + bias.reshape(1, groups, 1)).reshape(x.shape)
        return result.reshape(x.shape) * scale + bias

    return in_float32(compute)


def _standardize(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    return centred / torch.sqrt(variance + epsilon)
