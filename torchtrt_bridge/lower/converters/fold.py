"""Columns of windows back to images, where overlapping windows add up."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.convolution import convolution
from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten


def of_unknown_size(self, output_size, kernel_size, dilation, padding, stride):
    """The sizes decide the paddings of a layer."""
    if any(is_symbolic(size) for size in (*output_size, *self.shape[-2:])):
        return "a fold whose sizes are known only at run time"
    return None


@converter(aten.col2im.default, why_not=of_unknown_size, dtypes=FLOATS)
def col2im(ctx, self, output_size, kernel_size, dilation, padding, stride):
    """col2im(Tensor self, SymInt[2] output_size, int[2] kernel_size, int[2] dilation, int[2] padding,
    int[2] stride) -> Tensor

    As a transposed convolution, each column of a window into its own place."""
    x = ctx.tensor(self)
    is_batch = len(x.shape) == 3
    x = x if is_batch else ctx.unsqueeze(x, [0])
    area = math.prod(kernel_size)
    channels = x.shape[1] // area
    spans = [step * (k - 1) + 1 for k, step in zip(kernel_size, dilation, strict=True)]
    room = [n + 2 * p - span for n, p, span in zip(output_size, padding, spans, strict=True)]
    counts = [r // s + 1 for r, s in zip(room, stride, strict=True)]
    rest = [r % s for r, s in zip(room, stride, strict=True)]
    windows = ctx.reshape(x, [ctx.size(x, 0), x.shape[1], *counts])
    places = torch.eye(area, dtype=ctx.dtype(x)).reshape(area, 1, *kernel_size).repeat(channels, 1, 1, 1)
    image = convolution(ctx, windows, places, None, stride, padding, dilation, True, rest, channels)
    return image if is_batch else ctx.squeeze(image, [0])
