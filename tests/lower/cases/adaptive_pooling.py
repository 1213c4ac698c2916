"""Pooling to a given size."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
avg1, avg2, avg3 = (
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
)
private2, private3 = aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default
max1, max2, max3 = (
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
)


def sequence(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 12),)


def image(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 13, 12),)


def growing(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 9 + n, 12),)


def volume(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 6, 7, 8),)


CASES: list[Case] = [
    Case(avg1, nn.AdaptiveAvgPool1d(1), lambda n: (torch.randn(n, 4, 9 + n),), name="to-one"),
    Case(avg1, nn.AdaptiveAvgPool1d(4), sequence, name="divisible"),
    Case(avg1, nn.AdaptiveAvgPool1d(5), lambda n: (torch.randn(4, 12),), name="unbatched"),
    Case(avg2, nn.AdaptiveAvgPool2d(1), growing, name="to-one"),
    Case(avg2, nn.AdaptiveAvgPool2d((None, 1)), growing, name="to-row"),
    Case(avg2, nn.AdaptiveAvgPool2d((None, 4)), growing, name="keeps-height"),
    Case(avg2, nn.AdaptiveAvgPool2d((1, 4)), growing, name="to-one-and-divisible"),
    Case(avg2, nn.AdaptiveAvgPool2d((7, 7)), image, name="13-to-7"),
    Case(avg2, nn.AdaptiveAvgPool2d((13, 6)), image, name="divisible"),
    Case(avg2, nn.AdaptiveAvgPool2d((16, 5)), image, name="larger"),
    Case(avg2, nn.AdaptiveAvgPool2d((4, 5)), lambda n: (torch.randn(4, 8, 12),), name="unbatched"),
    Case(private2, functools.partial(private2, output_size=[7, 6]), image),
    Case(avg3, nn.AdaptiveAvgPool3d((3, 7, 1)), volume),
    Case(avg3, nn.AdaptiveAvgPool3d((4, 3, 5)), volume, name="uneven"),
    Case(private3, functools.partial(private3, output_size=[3, 7, 4]), volume),
    Case(max1, nn.AdaptiveMaxPool1d(1), lambda n: (torch.randn(n, 4, 9 + n),), name="to-one"),
    Case(max1, nn.AdaptiveMaxPool1d(5), sequence, name="uneven"),
    Case(max2, nn.AdaptiveMaxPool2d(1), growing, name="to-one"),
    Case(max2, nn.AdaptiveMaxPool2d((7, 6)), image, name="13-to-7"),
    Case(max2, nn.AdaptiveMaxPool2d((13, 3)), lambda n: (torch.randn(4, 13, 12),), name="unbatched"),
    Case(max3, nn.AdaptiveMaxPool3d((3, 5, 4)), volume),
]


def growing_volume(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 6, 9 + n, 8),)


REJECTED: list[Rejected] = [
    Rejected(
        max1,
        functools.partial(F.adaptive_max_pool1d, output_size=3, return_indices=True),
        sequence,
        "int64",
        name="indices",
    ),
    Rejected(
        max2,
        functools.partial(F.adaptive_max_pool2d, output_size=3, return_indices=True),
        image,
        "int64",
        name="indices",
    ),
    Rejected(
        max3,
        functools.partial(F.adaptive_max_pool3d, output_size=3, return_indices=True),
        volume,
        "int64",
        name="indices",
    ),
    Rejected(avg1, nn.AdaptiveAvgPool1d(4), lambda n: (torch.randn(n, 4, 9 + n),), "run time", dynamic=True),
    Rejected(avg2, nn.AdaptiveAvgPool2d(4), growing, "run time", dynamic=True),
    Rejected(private2, functools.partial(private2, output_size=[7, 6]), growing, "run time", dynamic=True),
    Rejected(avg3, nn.AdaptiveAvgPool3d(4), growing_volume, "run time", dynamic=True),
    Rejected(private3, functools.partial(private3, output_size=[3, 4, 4]), growing_volume, "run time", dynamic=True),
]
