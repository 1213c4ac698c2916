"""Pooling in two or three dimensions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.layers.windows import Window, pad_widths
from torchtrt_bridge.reference.registry import Compute, in_float32, reads

_MAXIMA = {2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGES = {2: F.avg_pool2d, 3: F.avg_pool3d}


@reads("POOLING")
def pooling(layer: Layer) -> Compute:
    """Compute the maximum or average of each window.

    The average's denominator counts the window's elements within the image, or all of them. Those that only round the
    output size up count too, as in real engines (seen on an H100 with TensorRT-RTX 1.6.1).
    """
    window = Window.from_layer(layer, "window_size_nd")
    kind, blend = layer.raw.type.name, float(layer.raw.blend_factor)
    excludes = bool(layer.raw.average_count_excludes_padding)

    def compute(x: Tensor) -> Tensor:
        if kind == "MAX":
            return _maximum(x, window)
        average = _average(x, window, excludes)
        return average if kind == "AVERAGE" else (1 - blend) * _maximum(x, window) + blend * average

    return in_float32(compute)


def _maximum(x: Tensor, window: Window) -> Tensor:
    rank = len(window.size)
    pads = [(before, after + more) for before, after, more in window.padding(x.shape[-rank:])]
    padded = F.pad(x, pad_widths(pads), value=-math.inf) if any(map(any, pads)) else x
    return _MAXIMA[rank](padded, window.size, window.stride)


def _average(x: Tensor, window: Window, excludes: bool) -> Tensor:
    rank = len(window.size)
    found = window.padding(x.shape[-rank:])
    pads = [(before, after) for before, after, _ in found]
    more = pad_widths([(0, extra) for _, _, extra in found])
    total = _sums(F.pad(F.pad(x, pad_widths(pads)), more), window)
    if not excludes:
        return total / math.prod(window.size)
    ones = torch.ones([1, 1, *x.shape[-rank:]])
    return total / _sums(F.pad(F.pad(ones, pad_widths(pads)), more), window)


def _sums(x: Tensor, window: Window) -> Tensor:
    return _AVERAGES[len(window.size)](x, window.size, window.stride, divisor_override=1)
