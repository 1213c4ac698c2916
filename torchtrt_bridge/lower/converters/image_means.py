"""Means over whole images by pooling, where TensorRT's reductions are slow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

# Elements from which pooling is faster. TensorRT-RTX 1.6 took on an H200 in fp16, for a block of squeeze and
# excitation: 190 us with a reduction and 114 with pooling for 9.6 million elements, 91 and 87 for 3 million, and 80 and
# 81 for 2.4 million; below that reductions are faster. Other layers around a reduction are slower too.
LEAST_ELEMENTS = 3_000_000

# Pooling is fast for windows up to this; what is left has windows of its own.
LARGEST_WINDOW = 8


def pools(ctx: Any, x: Any, dims: Sequence[int]) -> bool:
    """Return whether a mean of `x` over `dims` is one over large images of known sizes in half precision."""
    return (
        len(x.shape) == 4
        and sorted(dim % 4 for dim in dims) == [2, 3]
        and min(x.shape) > 0
        and math.prod(x.shape) >= LEAST_ELEMENTS
        and ctx.dtype(x) in (torch.float16, torch.bfloat16)
    )


def mean_of_images(ctx: Any, x: Any) -> Any:
    """Return the mean over height and width, (batch, channels, 1, 1); it is summed in fp32, as PyTorch's is."""
    first = [_divisor(size) for size in x.shape[2:]]
    for window in (first, [size // part for size, part in zip(x.shape[2:], first, strict=True)]):
        if max(window) > 1:
            layer = ctx.network.add_pooling_nd(x, ctx.trt.PoolingType.AVERAGE, tuple(window))
            layer.stride_nd = tuple(window)
            x = layer.get_output(0)
    return x


def _divisor(size: int) -> int:
    """Return the largest divisor that a window may have."""
    return max(part for part in range(1, LARGEST_WINDOW + 1) if size % part == 0)
