"""Products of matrices and vectors."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import HALF, Case, Rejected

aten = torch.ops.aten
matmul = aten.matmul.default


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 8),)


def sequences(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3 + n, 8),)


def addmm_inputs(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(6), torch.randn(n, 8), torch.randn(8, 6)


def baddbmm_inputs(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, 1, 6), torch.randn(n, 3, 8), torch.randn(n, 8, 6)


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-9, 9, shape)


def shaped(left: tuple[int, ...], right: tuple[int, ...], n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors, with n in place of each -1."""
    first, second = (torch.randn([n if size == -1 else size for size in shape]) for shape in (left, right))
    return first, second


def product(left: tuple[int, ...], right: tuple[int, ...]) -> Case:
    sizes = "-".join("x".join("n" if size == -1 else str(size) for size in shape) for shape in (left, right))
    return Case(matmul, torch.matmul, functools.partial(shaped, left, right), name=sizes)


class FirstRow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:1]


class Conv1D(nn.Module):
    """The linear layer of GPT-2, whose weights are [inputs, outputs]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(512, 520) / 20)
        self.bias = nn.Parameter(torch.randn(520))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


CASES: list[Case] = [
    Case(aten.linear.default, nn.Linear(8, 6), rows, name="2d"),
    Case(aten.linear.default, nn.Linear(8, 6, bias=False), rows, name="no-bias"),
    Case(
        aten.linear.default,
        nn.Linear(8, 6),
        lambda n: (torch.randn(8),),
        name="1d",
        tolerance={HALF: (1e-3, 1e-3)},
        reason="the product is rounded to fp16 before the bias is added",
    ),
    Case(aten.linear.default, nn.Linear(8, 6), sequences, name="3d"),
    Case(aten.linear.default, nn.Linear(8, 1025), sequences, name="wide"),
    Case(aten.linear.default, nn.Linear(8, 1031, bias=False), rows, name="wide-no-bias"),
    Case(aten.linear.default, nn.Linear(512, 520), lambda n: (torch.randn(n, 512),), name="few-rows"),
    Case(aten.linear.default, nn.Linear(512, 520), lambda n: (torch.randn(n, 2, 512),), name="few-rows-3d"),
    Case(
        aten.linear.default,
        nn.Sequential(FirstRow(), nn.Linear(1056, 520)),
        lambda n: (torch.randn(n, 1056),),
        name="one-row",
    ),
    Case(aten.linear.default, nn.Linear(8, 1), lambda n: (torch.randn(n, 2, 3, 8),), name="4d-to-one"),
    Case(
        aten.linear.default,
        F.linear,
        lambda n: (torch.randn(n, 3, 8), torch.randn(6, 8), torch.randn(6)),
        name="weights-at-run-time",
    ),
    Case(
        aten.linear.default,
        F.linear,
        lambda n: (torch.randn(n, 3, 8), torch.randn(8)),
        name="weight-of-one-output",
    ),
    Case(aten.linear.default, nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6)), rows, name="batch-norm"),
    Case(
        aten.bilinear.default,
        nn.Bilinear(8, 5, 6),
        lambda n: (torch.randn(n, 3, 8), torch.randn(n, 3, 5)),
    ),
    Case(
        aten.bilinear.default,
        F.bilinear,
        lambda n: (torch.randn(n, 8), torch.randn(n, 5), torch.randn(6, 8, 5)),
        name="weight-at-run-time",
    ),
    product((8,), (8,)),
    product((-1, 8), (8, 6)),
    product((-1, 8), (8,)),
    product((8,), (8, -1)),
    product((-1, 3, 8), (8,)),
    product((8,), (-1, 8, 6)),
    product((-1, 3, 8), (-1, 8, 6)),
    product((-1, 3, 8), (8, 6)),
    product((3, 8), (-1, 8, 6)),
    product((-1, 1, 3, 8), (5, 8, 6)),
    product((2, 1, -1, 8), (1, 5, 8, -1)),
    Case(aten.mm.default, torch.mm, lambda n: (torch.randn(n, 8), torch.randn(8, 6))),
    Case(aten.bmm.default, torch.bmm, lambda n: (torch.randn(n, 3, 8), torch.randn(n, 8, 6))),
    Case(aten.mv.default, torch.mv, lambda n: (torch.randn(n, 8), torch.randn(8))),
    Case(aten.dot.default, torch.dot, lambda n: (torch.randn(n), torch.randn(n))),
    Case(aten.addmm.default, Conv1D(), lambda n: (torch.randn(n, 512),), name="constant-matrix-few-rows"),
    Case(aten.addmm.default, torch.addmm, addmm_inputs),
    Case(aten.addmm.default, functools.partial(torch.addmm, beta=0.5, alpha=2), addmm_inputs, name="alpha-beta"),
    Case(aten.addmm.default, functools.partial(torch.addmm, beta=0), addmm_inputs, name="no-summand"),
    Case(
        aten.addmm.default,
        functools.partial(torch.addmm, beta=2),
        lambda n: (torch.randn(n, 1), torch.randn(n, 8), torch.randn(8, 6)),
        name="broadcast-columns",
    ),
    Case(aten.baddbmm.default, torch.baddbmm, baddbmm_inputs),
    Case(
        aten.baddbmm.default,
        functools.partial(torch.baddbmm, beta=0.5, alpha=0.25),
        baddbmm_inputs,
        name="alpha-beta",
    ),
    Case(
        aten.bmm.default,
        functools.partial(torch.einsum, "bik,bkj->bij"),
        lambda n: (torch.randn(n, 3, 8), torch.randn(n, 8, 6)),
        name="einsum",
    ),
    Case(
        aten.bmm.default,
        functools.partial(torch.einsum, "bhqd,bhkd->bhqk"),
        lambda n: (torch.randn(n, 2, 3, 8), torch.randn(n, 2, 5, 8)),
        name="einsum-of-heads",
    ),
    Case(
        aten.bmm.default,
        functools.partial(torch.einsum, "...i,ji->...j"),
        lambda n: (torch.randn(n, 3, 8), torch.randn(6, 8)),
        name="einsum-with-ellipsis",
    ),
]


INTEGERS = [
    Case(aten.mm.default, torch.mm, lambda n: (integers(n, 3), integers(3, n)), name="int64", half=False),
    Case(aten.mm.default, torch.mm, lambda n: (integers(n, 3).int(), integers(3, 4).int()), name="int32", half=False),
    Case(aten.mm.default, torch.mm, lambda n: (integers(n, 3) * 2**61, integers(3, 4)), name="overflow", half=False),
    Case(aten.bmm.default, torch.bmm, lambda n: (integers(n, 3, 5), integers(n, 5, 2)), name="int64", half=False),
    Case(
        aten.addmm.default,
        functools.partial(torch.addmm, beta=3, alpha=-2),
        lambda n: (integers(4), integers(n, 3), integers(3, 4)),
        name="int64",
        half=False,
    ),
    *[
        Case(
            matmul,
            torch.matmul,
            lambda n, make=make: tuple(integers(*(size or n for size in shape)) for shape in make),
            name=f"int64-{len(make[0])}d-{len(make[1])}d",
            half=False,
        )
        for make in (
            ((0,), (0,)),
            ((0, 3), (3,)),
            ((3,), (3, 0)),
            ((3,), (0, 3, 2)),
            ((0, 3), (2, 3, 4)),
            ((2, 1, 0, 3), (5, 3, 0)),
            ((2, 5, 4, 3), (0, 1, 5, 3, 2)),
            ((0, 5, 4, 3), (3,)),
        )
    ],
]

CASES += INTEGERS


def many(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return integers(256, 256), integers(256, 128)


REJECTED: list[Rejected] = [
    Rejected(aten.mm.default, torch.mm, many, "8388608 products of integers", name="integers"),
    Rejected(
        aten.bmm.default,
        torch.bmm,
        lambda n: (integers(n, 256, 256), integers(n, 256, 128)),
        "8388608 products of integers",
        dynamic=True,
    ),
    Rejected(
        aten.addmm.default, lambda x, y: torch.addmm(x[0, :128], x, y), many, "8388608 products of integers, at most"
    ),
    Rejected(matmul, torch.matmul, many, "8388608 products of integers", name="integers"),
    Rejected(
        matmul,
        torch.matmul,
        lambda n: (integers(*[2] * 8), integers(2, 3)),
        "integers in 8 dimensions",
        name="deep",
    ),
    Rejected(aten.mv.default, torch.mv, lambda n: (integers(n, 3), integers(3)), "int64", name="integers"),
]
