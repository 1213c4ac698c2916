"""Convolution and its transpose, in one, two and three dimensions."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
conv = aten.convolution.default


def sequence(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 9 + n),)


def image(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 9 + n, 12),)


def photograph(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 21, 32),)


def tall_photograph(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 32, 21),)


def volume(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 6, 7, 8),)


def image_and_kernel(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 4, 9, 12), torch.randn(6, 4, 3, 3)


CASES: list[Case] = [
    Case(conv, nn.Conv1d(4, 6, 3), sequence, name="1d"),
    Case(conv, nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), sequence, name="1d-all"),
    Case(conv, nn.Conv1d(4, 6, 4, padding="same"), sequence, name="1d-same"),
    Case(conv, nn.Conv1d(4, 6, 3), lambda n: (torch.randn(4, 9 + n),), name="1d-unbatched"),
    Case(conv, nn.Conv2d(4, 6, 3), image, name="2d"),
    Case(conv, nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), image, name="2d-no-bias"),
    Case(conv, nn.Conv2d(4, 4, 3, groups=4, padding=1), image, name="2d-depthwise"),
    Case(conv, nn.Conv2d(4, 6, 3, groups=2, dilation=(2, 1)), image, name="2d-groups"),
    Case(conv, nn.Conv2d(4, 6, (3, 4), padding="same"), image, name="2d-same"),
    Case(conv, nn.Conv2d(4, 6, 3, padding="same", dilation=2), image, name="2d-same-dilated"),
    Case(conv, nn.Conv2d(4, 6, 3, padding="valid"), image, name="2d-valid"),
    Case(conv, nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), image, name="2d-reflect"),
    Case(conv, nn.Conv2d(4, 6, 3, padding=1), lambda n: (torch.randn(4, 9, 9 + n),), name="2d-unbatched"),
    Case(conv, nn.Conv2d(3, 6, 7, stride=2, padding=3), photograph, name="2d-folded"),
    Case(conv, nn.Conv2d(4, 6, (5, 8), stride=2, padding=(0, 1), bias=False), tall_photograph, name="2d-folded-even"),
    Case(conv, nn.Conv3d(4, 6, 3, padding=1, stride=2), volume, name="3d"),
    Case(conv, nn.Conv3d(4, 6, (1, 2, 3), dilation=(1, 2, 1), groups=2), volume, name="3d-groups"),
    Case(conv, nn.Conv3d(4, 6, (3, 2, 3), padding="same"), volume, name="3d-same"),
    Case(
        conv,
        nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1),
        sequence,
        name="transposed-1d",
    ),
    Case(conv, nn.ConvTranspose2d(4, 6, 3), image, name="transposed-2d"),
    Case(conv, nn.ConvTranspose2d(4, 6, (4, 3), (2, 3), (1, 0), (0, 2)), image, name="transposed-2d-longer"),
    Case(conv, nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, bias=False), image, name="transposed-2d-groups"),
    Case(conv, nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, dilation=2), image, name="transposed-2d-dilated"),
    Case(conv, nn.ConvTranspose2d(4, 6, 2, 3, 0, 2, dilation=2), image, name="transposed-2d-dilated-longer"),
    Case(
        conv,
        nn.ConvTranspose2d(4, 6, 3),
        lambda n: (torch.randn(4, 9, 9 + n),),
        name="transposed-2d-unbatched",
    ),
    Case(conv, nn.ConvTranspose3d(4, 6, 3, stride=2, padding=1, output_padding=1), volume, name="transposed-3d"),
    Case(conv, F.conv2d, image_and_kernel, name="kernel-at-run-time"),
    Case(
        conv,
        F.conv2d,
        lambda n: (*image_and_kernel(n), torch.randn(6)),
        name="kernel-and-bias-at-run-time",
    ),
    Case(conv, F.conv3d, lambda n: (*volume(n), torch.randn(6, 4, 3, 3, 3)), name="3d-kernel-at-run-time"),
    Case(conv, F.conv1d, lambda n: (*sequence(n), torch.randn(6, 4, 3)), name="1d-kernel-at-run-time"),
    Case(
        conv,
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
        lambda n: (torch.randn(n, 4, 9, 12), torch.randn(4, 6, 3, 3)),
        name="transposed-kernel-at-run-time",
    ),
    Case(
        conv,
        lambda x, w: F.conv_transpose2d(x, w, stride=2, dilation=2, output_padding=1),
        lambda n: (torch.randn(n, 4, 9, 12), torch.randn(4, 6, 3, 3)),
        name="transposed-dilated-kernel-at-run-time",
    ),
    Case(conv, nn.ConvTranspose2d(4, 6, 3, dilation=2), image, name="transposed-2d-dilated-only"),
    Case(conv, nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), image, name="2d-batch-norm"),
    Case(
        conv,
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        image,
        name="transposed-batch-norm",
    ),
]

REJECTED: list[Rejected] = [
    Rejected(
        conv,
        lambda x, w: F.conv2d(x, w),
        lambda n: (torch.randint(0, 9, (n, 4, 9, 9)), torch.randint(0, 9, (4, 4, 3, 3))),
        "int64",
        name="integers",
    ),
    Rejected(
        conv,
        F.conv2d,
        lambda n: (torch.randn(n, 4, 9, 9), torch.randn(6, 4, n, 3)),
        "known only at run time",
        name="dynamic-kernel",
        dynamic=True,
    ),
]
