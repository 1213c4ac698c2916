"""Patch convolutions: a convolution whose windows do not overlap is a linear layer on the elements of each window."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, is_call
from torchtrt_bridge.graph.nodes import arguments_of
from torchtrt_bridge.options import Options
from torchtrt_bridge.passes.rearrangement import sizes_of

CONVOLUTION = torch.ops.aten.convolution.default

# Convolutions are fast with channels in multiples of this. With an image's three, ViT-B/16's took 128 us on an H100 in
# TensorRT-RTX 1.6 and 69 us in cuDNN; as a linear layer it made the whole model faster by about that difference.
ALIGNMENT = 8


@dataclasses.dataclass(frozen=True)
class Patches:
    """The patches that a convolution reads.

    grid: the number of patches along each dimension; size: the sizes of a patch.
    weight: one row for each result; bias: a node or None.
    """

    batch: Any
    channels: int
    grid: tuple[int, ...]
    size: tuple[int, ...]
    weight: torch.Tensor
    bias: fx.Node | None

    @property
    def shape(self) -> list[Any]:
        """Return the input's shape with each dimension divided into grid and patch."""
        divided = [part for pair in zip(self.grid, self.size, strict=True) for part in pair]
        return [self.batch, self.channels, *divided]


def patches_of(node: Any, options: Options) -> Patches | None:
    """Return the patches that a convolution reads, if a linear layer computes it faster, else None."""
    if not is_call(node, CONVOLUTION) or str(CONVOLUTION) in options.torch_ops:
        return None
    given = arguments_of(node)
    weight = constant_of(given["weight"])
    if weight is None or weight.dim() < 3 or given["transposed"] or given["groups"] != 1:
        return None
    batch, channels, *sizes = sizes_of(given["input"])
    window = tuple(weight.shape[2:])
    is_divided = len(sizes) == len(window) and all(
        isinstance(size, int) and size and size % width == 0 for size, width in zip(sizes, window, strict=True)
    )
    is_apart = _repeated(given["stride"], window) == window and not any(given["padding"])
    is_dense = all(step == 1 for step in given["dilation"])
    if not (is_divided and is_apart and is_dense):
        return None
    grid = tuple(size // width for size, width in zip(sizes, window, strict=True))
    if not _pays(channels, grid, window):
        return None
    return Patches(batch, channels, grid, window, weight.flatten(1), given["bias"])


def _pays(channels: int, grid: tuple[int, ...], window: tuple[int, ...]) -> bool:
    """Return whether a linear layer is faster: if channels are not aligned, or if the image has one pixel.

    Images of one pixel are those of the gates of EfficientNet-B0 (squeeze and excitation): in TensorRT-RTX 1.6 they
    took a third of its 505 us on an H100, and next to nothing as linear layers.
    """
    if max(window) == 1:
        return max(grid) == 1
    return channels % ALIGNMENT != 0


def _repeated(numbers: Any, dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(numbers) * (len(dims) if len(numbers) == 1 else 1)
