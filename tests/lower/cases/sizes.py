"""Sizes that are known only at run time: each case computes a size from its input's."""

import math
import operator

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6, 8),)


def two_rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6), torch.randn(2 * n - 1, 6)


def even_rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(2 * n, 6),)


CASES: list[Case] = [
    Case(aten.reshape.default, lambda x: x.view(x.shape[0], -1), rows, name="size-and-rest"),
    Case(aten.reshape.default, lambda x: x.reshape(x.size(0) * 6, 8), rows, name="mul"),
    Case(aten.reshape.default, lambda x: x.view(2, x.shape[0] // 2, 6), even_rows, name="floordiv"),
    Case(aten.reshape.default, lambda x: x.view(2, x.numel() // 2), rows, name="numel"),
    Case(aten.expand.default, lambda x: x[:1].expand(x.shape[0] + 3, 6, 8), rows, name="add"),
    Case(aten.expand.default, lambda x: x[:1].expand(x.shape[0] - 2, 6, 8), rows, name="sub"),
    Case(aten.expand.default, lambda x: x[:1].expand(7 - x.shape[0], 6, 8), rows, name="sub-from"),
    Case(aten.expand.default, lambda x: x[:1].expand(x.shape[0] % 3 + 1, 6, 8), rows, name="mod"),
    Case(aten.expand.default, lambda x: x[:1].expand(-x.shape[0] % 8, 6, 8), rows, name="pad-to-multiple"),
    Case(aten.expand.default, lambda x: x[:1].expand((x.shape[0] + 3) // 2, 6, 8), rows, name="ceil-div"),
    Case(aten.expand.default, lambda x: x[:1].expand(-(-x.shape[0] // 2), 6, 8), rows, name="neg"),
    Case(aten.expand.default, lambda x: x[:1].expand(x.shape[0] ** 2, 6, 8), rows, name="pow"),
    Case(aten.expand.default, lambda x: x[:1].expand(math.ceil(x.shape[0] / 3), 6, 8), rows, name="ceil"),
    Case(aten.expand.default, lambda x: x[:1].expand(math.floor(x.shape[0] / 3), 6, 8), rows, name="floor"),
    Case(aten.expand.default, lambda x: x[:1].expand(int(x.shape[0] / 3), 6, 8), rows, name="trunc"),
    Case(
        aten.expand.default,
        lambda x, y: x[:1].expand(torch.sym_max(x.shape[0], y.shape[0]), 6),
        two_rows,
        name="max",
    ),
    Case(
        aten.expand.default,
        lambda x, y: x[:1].expand(torch.sym_min(x.shape[0], y.shape[0]), 6),
        two_rows,
        name="min",
    ),
    Case(
        aten.expand.default,
        lambda x, y: x[:1].expand(torch.sym_sum([x.shape[0], y.shape[0], 2]), 6),
        two_rows,
        name="sum",
    ),
]

REJECTED: list[Rejected] = [
    Rejected(
        operator.pow,
        lambda x: x[:1].expand(x.shape[0] ** 9, 6, 8),
        rows,
        "to the power of 9",
        dynamic=True,
    ),
]
