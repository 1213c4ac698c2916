"""Columns of windows back to images, and images to columns."""

import torch
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
fold = aten.col2im.default


def image(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 9, 8),)


CASES: list[Case] = [
    Case(fold, nn.Fold((6, 8), 3, padding=1), lambda n: (torch.randn(n, 36, 48),)),
    Case(fold, nn.Fold((9, 8), (3, 2), (2, 1), (1, 0), (2, 3)), lambda n: (torch.randn(n, 12, 12),), name="all"),
    Case(fold, nn.Fold((8, 8), 4, stride=4), lambda n: (torch.randn(n, 32, 4),), name="patches"),
    Case(fold, nn.Fold((6, 8), 3, padding=1), lambda n: (torch.randn(36, 48),), name="unbatched"),
    Case(aten.index.Tensor, nn.Unfold(3, dilation=2, padding=1, stride=2), image, name="unfold"),
    Case(aten.index.Tensor, nn.Unfold(2, stride=2), lambda n: (torch.randn(3, 6, 8),), name="unfold-unbatched"),
]

REJECTED: list[Rejected] = [
    Rejected(
        fold,
        lambda x: torch.nn.functional.fold(x, (1, x.shape[2]), 1),
        lambda n: (torch.randn(2, 3, n),),
        "known only at run time",
        dynamic=True,
    ),
]
