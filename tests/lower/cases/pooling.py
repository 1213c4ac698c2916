"""Pooling over windows of one, two and three dimensions."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
max1, max2, max3 = aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default
max2_with_indices, max3_with_indices = (
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
)
avg1, avg2, avg3 = aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default


def sequence(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 9 + n),)


def image(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 9 + n, 12),)


def batch_of_images(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 11, 13),)


def unbatched(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(4, 9 + n, 12),)


def volume(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 7, 8, 9),)


CASES: list[Case] = [
    # PyTorch itself makes the length static.
    Case(max1, nn.MaxPool1d(3), lambda n: (torch.randn(n, 4, 13),)),
    Case(max1, nn.MaxPool1d(3, 2, 1, ceil_mode=True), lambda n: (torch.randn(4, 13),), name="unbatched"),
    Case(max2, nn.MaxPool2d(2), image, name="2x2"),
    Case(max2, nn.MaxPool2d((3, 2), (2, 1), (1, 0)), image, name="sizes"),
    Case(max2, nn.MaxPool2d(3, 2, 1, ceil_mode=True), image, name="ceil"),
    Case(max2, nn.MaxPool2d(2, 3, 1, ceil_mode=True), batch_of_images, name="ceil-drops-window"),
    Case(max2, nn.MaxPool2d(3, stride=2), unbatched, name="unbatched"),
    Case(max3, nn.MaxPool3d(2), volume),
    Case(max3, nn.MaxPool3d((2, 3, 2), 2, (1, 1, 0), ceil_mode=True), volume, name="ceil"),
    Case(max2_with_indices, lambda x: max2_with_indices(x, [3, 3], [2, 2], [1, 1])[0], image),
    Case(max3_with_indices, lambda x: max3_with_indices(x, [2, 2, 2])[0], volume),
    Case(avg1, nn.AvgPool1d(3, 2, 1), sequence),
    Case(avg1, nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), sequence, name="ceil-no-pad"),
    Case(avg2, nn.AvgPool2d(2), image, name="2x2"),
    Case(avg2, nn.AvgPool2d((3, 2), (2, 1), (1, 0)), image, name="sizes"),
    Case(avg2, nn.AvgPool2d(3, 2, 1, count_include_pad=False), image, name="no-pad"),
    Case(avg2, nn.AvgPool2d(3, 2, 1, ceil_mode=True), image, name="ceil"),
    Case(avg2, nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), image, name="ceil-no-pad"),
    Case(avg2, nn.AvgPool2d(2, 3, 1, ceil_mode=True), batch_of_images, name="ceil-drops-window"),
    Case(avg2, nn.AvgPool2d((2, 4), 3, 1, ceil_mode=True), batch_of_images, name="ceil-drops-one-window"),
    Case(avg2, nn.AvgPool2d(3, 2, 1, divisor_override=5), image, name="divisor"),
    Case(avg2, nn.AvgPool2d(3, 2, 1, True, divisor_override=5), batch_of_images, name="divisor-ceil"),
    Case(avg2, nn.AvgPool2d(3, stride=1), unbatched, name="unbatched"),
    # PyTorch has no fp16 kernel of it on a CPU.
    Case(avg3, nn.AvgPool3d(2), volume, half=False),
    Case(
        avg3,
        nn.AvgPool3d(3, 2, 1, ceil_mode=True, divisor_override=4),
        volume,
        half=False,
        name="divisor-ceil",
    ),
    Case(avg2, nn.LPPool2d(2, 3, 2), lambda n: (torch.rand(n, 4, 9 + n, 12),), name="power"),
]

REJECTED: list[Rejected] = [
    Rejected(max1, nn.MaxPool1d(3, dilation=2), sequence, "dilation"),
    Rejected(max2, nn.MaxPool2d(3, dilation=2), image, "dilation"),
    Rejected(max3, nn.MaxPool3d(2, dilation=2), volume, "dilation"),
    Rejected(
        max2_with_indices,
        functools.partial(F.max_pool2d, kernel_size=3, return_indices=True),
        image,
        "int64",
        name="indices",
    ),
    Rejected(
        max3_with_indices,
        functools.partial(F.max_pool3d, kernel_size=3, return_indices=True),
        volume,
        "int64",
        name="indices",
    ),
    Rejected(avg1, nn.AvgPool1d(2, 3, ceil_mode=True), sequence, "ceil_mode", dynamic=True),
    Rejected(max2, nn.MaxPool2d(2, 3, ceil_mode=True), image, "ceil_mode", name="ceil", dynamic=True),
    Rejected(avg2, nn.AvgPool2d(2, 3, ceil_mode=True), image, "ceil_mode", name="ceil", dynamic=True),
    Rejected(avg2, nn.AvgPool2d(3, 3, 0, True, True, 5), image, "divisor_override", name="divisor", dynamic=True),
    Rejected(
        avg3,
        nn.AvgPool3d(2, 3, ceil_mode=True),
        lambda n: (torch.randn(n, 4, 9 + n, 8, 9),),
        "ceil_mode",
        name="ceil",
        dynamic=True,
    ),
]
