"""Comparisons, logic, and the choices made by them."""

import math

import torch
import torch.nn.functional as F

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def close(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Floats of which many are equal, and some are not numbers."""
    left = torch.randint(-2, 2, (n, 3, 4)) / 2
    right = torch.randint(-2, 2, (3, 4)) / 2
    left[0, 0, 0], right[1, 1], left[0, 2, 2], right[2, 2] = math.nan, math.nan, math.inf, math.inf
    return left, right


def integers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-2, 2, (n, 4)), torch.randint(-2, 2, (4,))


def integers_and_floats(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-2, 2, (n, 4)), torch.randint(-2, 2, (4,)) / 2


def bools(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 4) > 0, torch.randn(4) > 0


def bools_and_integers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 4) > 0, torch.randint(-1, 2, (4,))


def of_rank_zero(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3), torch.tensor(0.25)


def one(n: int) -> tuple[torch.Tensor]:
    return close(n)[:1]


def one_integer(n: int) -> tuple[torch.Tensor]:
    return integers(n)[:1]


def one_bool(n: int) -> tuple[torch.Tensor]:
    return bools(n)[:1]


def strange(n: int) -> tuple[torch.Tensor]:
    return (torch.tensor([1.0, math.nan, math.inf, -math.inf, 0.0]).repeat(n, 2),)


def chosen(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(n, 1, 4) > 0, torch.randn(3, 1), torch.randn(n, 3, 4)


def masked(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 4), torch.randn(n, 1, 4) > 0


def comparisons(name: str) -> list[Case]:
    tensor, number = getattr(aten, name).Tensor, getattr(aten, name).Scalar
    call = getattr(torch, name)
    return [
        Case(tensor, call, close),
        Case(tensor, call, of_rank_zero, name="0d"),
        Case(tensor, call, integers, name="int64", half=False),
        Case(tensor, call, integers_and_floats, name="int64_float"),
        Case(tensor, call, bools, name="bool", half=False),
        Case(tensor, call, bools_and_integers, name="bool_int64", half=False),
        Case(number, lambda x: call(x, 0.5), one),
        Case(number, lambda x: call(x, 0.5), one_integer, name="int64_float", half=False),
        Case(number, lambda x: call(x, 1), one_bool, name="bool", half=False),
    ]


CASES: list[Case] = [
    *[case for name in ("eq", "ne", "lt", "le", "gt", "ge") for case in comparisons(name)],
    Case(aten.lt.Scalar, lambda x: x < x.shape[0] - 4, one, name="size"),
    Case(aten.logical_not.default, torch.logical_not, one_bool, name="bool", half=False),
    Case(aten.logical_not.default, torch.logical_not, one, name="float"),
    Case(aten.logical_not.default, torch.logical_not, one_integer, name="int64", half=False),
    *[
        case
        for op in (torch.logical_and, torch.logical_or, torch.logical_xor)
        for case in (
            Case(getattr(aten, op.__name__).default, op, close),
            Case(getattr(aten, op.__name__).default, op, bools, name="bool", half=False),
            Case(getattr(aten, op.__name__).default, op, bools_and_integers, name="bool_int64", half=False),
        )
    ],
    Case(aten.isnan.default, torch.isnan, strange),
    Case(aten.isinf.default, torch.isinf, strange),
    Case(aten.isfinite.default, torch.isfinite, strange),
    Case(aten.isnan.default, torch.isnan, one_integer, name="int64", half=False),
    Case(aten.isinf.default, torch.isinf, one_integer, name="int64", half=False),
    Case(aten.isfinite.default, torch.isfinite, one_integer, name="int64", half=False),
    Case(aten.where.self, torch.where, chosen),
    Case(aten.where.self, lambda c, x, y: torch.where(c, x[0, 0], y), chosen, name="0d"),
    Case(aten.where.self, lambda x: torch.where(x > 0, x, 0.0), one, name="ScalarOther"),
    Case(aten.where.self, lambda x: torch.where(x > 0, -1, x), one, name="ScalarSelf"),
    Case(aten.where.self, lambda x: torch.where(x > 0, 1.0, -1.0), one, name="Scalar"),
    Case(aten.where.self, lambda x, y: torch.where(x > 0, x, y), integers_and_floats, name="int64_float"),
    Case(aten.where.self, lambda x, y: torch.where(x, x, y), bools, name="bool", half=False),
    Case(aten.where.self, lambda x: torch.where(x > 0, x, torch.finfo(x.dtype).min), one, name="finfo.min"),
    Case(aten.masked_fill.Scalar, lambda x, m: x.masked_fill(m, -math.inf), masked),
    Case(
        aten.masked_fill.Scalar,
        lambda x, m: x.masked_fill(m, torch.finfo(x.dtype).min),
        masked,
        name="finfo.min",
    ),
    Case(aten.masked_fill.Scalar, lambda x: x.masked_fill(x > 0, 7), one_integer, name="int64", half=False),
    Case(aten.masked_fill.Scalar, lambda x: x[0, 0, 0].masked_fill(x > 0, 7), one, name="0d"),
    Case(aten.masked_fill.Tensor, lambda x, m: x.masked_fill(m, torch.tensor(-2.5)), masked),
    # Functions that PyTorch itself takes apart.
    Case(aten.where.self, torch.nan_to_num, strange, name="nan_to_num"),
    Case(aten.where.self, lambda x: torch.nan_to_num(x, 1.0, 2.0, -3.0), strange, name="nan_to_num_numbers"),
    Case(aten.bitwise_and.Tensor, torch.isclose, close, name="isclose"),
    Case(aten.where.self, lambda x: F.threshold(x, 0.25, -1.0), one, name="threshold"),
    Case(aten.where.self, F.hardshrink, one, name="hardshrink"),
    Case(aten.where.self, F.softshrink, one, name="softshrink-default"),
]

REJECTED: list[Rejected] = []
