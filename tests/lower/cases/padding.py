"""Padding with a constant, a mirror image, the border or the other end; negative widths crop."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
pad = aten.pad.default


def sequence(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5 + n),)


def image(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5 + n, 6),)


def volume(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 2, 4, 5, 3 + n),)


def padded(*widths: int, **how):
    return functools.partial(F.pad, pad=widths, **how)


CASES: list[Case] = [
    Case(pad, padded(1, 2), image, name="last"),
    Case(pad, padded(1, 0, 2, 3), image, name="zeros"),
    Case(pad, padded(1, 0, 2, 3, value=-1.5), image, name="value"),
    Case(pad, padded(1, 1, value=float("-inf")), image, name="infinity"),
    Case(pad, padded(0, 0, 0, 0, 0, 1, 1, 0), image, name="batch-and-channels"),
    Case(pad, padded(-1, -2), image, name="crop"),
    Case(pad, padded(2, -1, -1, 1, value=2.0), image, name="crop-and-value"),
    Case(pad, padded(1, 2, value=7), lambda n: (torch.randint(0, 9, (n, 4)),), name="int64", half=False),
    Case(pad, padded(1, 2, value=True), lambda n: (torch.randn(n, 4) > 0,), name="bool", half=False),
    Case(pad, padded(2, 1, mode="reflect"), sequence, name="reflect-1d"),
    Case(pad, nn.ReflectionPad2d((1, 2, 3, 0)), image, name="reflect-2d"),
    Case(pad, nn.ReflectionPad3d(1), volume, name="reflect-3d"),
    Case(pad, padded(2, 1, mode="replicate"), sequence, name="replicate-1d"),
    Case(pad, nn.ReplicationPad2d((1, 2, 7, 0)), image, name="replicate-2d"),
    Case(pad, nn.ReplicationPad3d(2), volume, name="replicate-3d"),
    Case(pad, padded(2, 1, mode="circular"), sequence, name="circular-1d"),
    Case(pad, nn.CircularPad2d((1, 2, 3, 0)), image, name="circular-2d"),
    Case(pad, padded(-1, 2, 0, 0, mode="circular"), image, name="circular-crop-before"),
    Case(pad, padded(2, -1, mode="circular"), sequence, name="circular-crop-behind"),
    Case(pad, padded(-1, 2, 1, -2, mode="circular"), image, name="circular-crop-both"),
    Case(pad, padded(-1, 2, 1, -2, mode="reflect"), image, name="reflect-crop"),
    Case(pad, padded(-1, 2, 1, -2, mode="replicate"), image, name="replicate-crop"),
    Case(pad, lambda x: F.pad(x, (0, 0, 0, x.shape[0])), image, name="size-at-run-time"),
    Case(aten.constant_pad_nd.default, lambda x: aten.constant_pad_nd(x, [1, 2, 0, 1], 3), image),
    Case(
        aten.permute.default,
        nn.PixelShuffle(2),
        lambda n: (torch.randn(n, 8, 3 + n, 4),),
        name="pixel-shuffle",
    ),
    Case(
        aten.permute.default,
        nn.PixelUnshuffle(2),
        lambda n: (torch.randn(n, 3, 6, 8),),
        name="pixel-unshuffle",
    ),
    Case(
        aten.permute.default,
        nn.ChannelShuffle(2),
        lambda n: (torch.randn(n, 4, 3 + n, 4),),
        name="channel-shuffle",
    ),
]

REJECTED: list[Rejected] = []
