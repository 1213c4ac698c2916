"""Convolutions of images with stride 2, as convolutions of pixels that stand for 2 x 2 of them.

TensorRT-RTX 1.6 took 453 us on an H200 for the first convolution of ResNet-50 (32 images in fp16, 7 x 7, stride 2), of
1,570 for the whole engine; it takes 111 in this form, and 39 for the pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

# Channels of the folded image: kernels for fewer are slow, as the 212 us of 12 channels show.
CHANNELS = 16

# Smaller kernels are fast as they are: of 3 x 3 the fold would be a half zeros.
LEAST_KERNEL = 5

HALF = (torch.float16, torch.bfloat16)


def folds(ctx: Any, x: Any, weight: Any, stride: list[int], dilation: list[int], groups: int) -> bool:
    """Return whether a convolution is one of images with stride 2 and a large kernel, in half precision."""
    return (
        isinstance(weight, torch.Tensor)
        and tuple(stride) == (2, 2)
        and tuple(dilation) == (1, 1)
        and groups == 1
        and 2 < weight.shape[1] <= CHANNELS // 4
        and min(weight.shape[2:]) >= LEAST_KERNEL
        and min(x.shape[2:]) > 0  # known
        and ctx.dtype(x) in HALF
    )


def folded(ctx: Any, x: Any, weight: torch.Tensor, padding: list[int]) -> tuple[Any, torch.Tensor]:
    """Return an image and a kernel whose convolution, without stride or padding, gives the same results.

    x: (batch, channels, height, width), weight: (results, channels, kernel height, kernel width); with zeros around it,
    each becomes (..., 16, half of the height, half of the width).
    """
    results, channels, *kernel = weight.shape
    half = [-(-size // 2) for size in kernel]
    known = list(x.shape[2:])
    counts = [(n + 2 * p - k) // 2 + 1 for n, p, k in zip(known, padding, kernel, strict=True)]
    sizes = [count - 1 + size for count, size in zip(counts, half, strict=True)]
    batch = ctx.size(x, 0)
    start = [0, 0, *(-p for p in padding)]
    x = ctx.slice(x, start, [batch, CHANNELS // 4, *(2 * size for size in sizes)], mode="FILL")
    x = ctx.reshape(x, [batch, CHANNELS // 4, sizes[0], 2, sizes[1], 2])
    x = ctx.reshape(ctx.permute(x, [0, 1, 3, 5, 2, 4]), [batch, CHANNELS, *sizes])
    wide = F.pad(weight, (0, 2 * half[1] - kernel[1], 0, 2 * half[0] - kernel[0], 0, CHANNELS // 4 - channels))
    wide = wide.reshape(results, CHANNELS // 4, half[0], 2, half[1], 2).permute(0, 1, 3, 5, 2, 4)
    return x, wide.reshape(results, CHANNELS, *half)
