"""Convolution and deconvolution in two or three dimensions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.layers.windows import Window, pad_widths
from torchtrt_bridge.reference.registry import Compute, in_float32, reads, widen

_CONVOLUTIONS = {2: F.conv2d, 3: F.conv3d}
_DECONVOLUTIONS = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _weights(layer: Layer, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Return kernel and bias, widened once; None for each that is an input."""
    kernel = None if layer.has_input(1) else layer.weights("kernel")
    if kernel is None and not layer.has_input(1):
        raise LoweringError(f"{layer} has no kernel.")
    bias = None if layer.has_input(2) else layer.weights("bias")
    kernel = None if kernel is None else widen(kernel.reshape(shape))
    return kernel, None if bias is None else widen(bias.reshape(-1))


@reads("CONVOLUTION")
def convolution(layer: Layer) -> Compute:
    window = Window.from_layer(layer, "kernel_size_nd")
    groups, maps = int(layer.raw.num_groups), int(layer.raw.num_output_maps)
    kernel, bias = _weights(layer, (maps, -1, *window.size))
    convolve = _CONVOLUTIONS[len(window.size)]

    def compute(x: Tensor, weight: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
        pads = [(before, after + more) for before, after, more in window.padding(x.shape[2:])]
        symmetric = all(before == after for before, after in pads)
        weight, offset = kernel if weight is None else weight, bias if offset is None else offset
        assert weight is not None
        return convolve(
            x if symmetric else F.pad(x, pad_widths(pads)),
            weight,
            None if offset is None else offset.reshape(-1),
            stride=window.stride,
            padding=[before for before, _ in pads] if symmetric else 0,
            dilation=window.dilation,
            groups=groups,
        )

    return in_float32(compute)


@reads("DECONVOLUTION")
def deconvolution(layer: Layer) -> Compute:
    """Compute the full transposed convolution, cut its ends by the padding, and add the bias."""
    window = Window.from_layer(layer, "kernel_size_nd")
    groups, maps = int(layer.raw.num_groups), int(layer.raw.num_output_maps)
    kernel, bias = _weights(layer, (-1, maps // groups, *window.size))
    crops = pad_widths([(-before, -after) for before, after in window.cropping()])
    deconvolve = _DECONVOLUTIONS[len(window.size)]

    def compute(x: Tensor, weight: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
        weight, offset = kernel if weight is None else weight, bias if offset is None else offset
        assert weight is not None
        full = deconvolve(x, weight, stride=window.stride, dilation=window.dilation, groups=groups)
        result = F.pad(full, crops)
        return result if offset is None else result + offset.reshape([-1] + [1] * len(window.size))

    return in_float32(compute)
