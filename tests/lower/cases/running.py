"""Running sums, products and extremes. The harness negates inputs."""

import math
from collections.abc import Callable
from typing import Any

import torch

from tests.lower.case import Case, Rejected
from tests.lower.cases.order import NO_END, short, signed_zeros, signs, small_integers
from tests.lower.cases.topk import bools, distinct, equal, integers, line, over

aten = torch.ops.aten


def near_one(n: int) -> tuple[torch.Tensor]:
    return (-torch.rand(n, 3, 4) - 0.5,)


def with_zeros(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 3) * (torch.rand(n, 4, 3) > 0.2),)


def with_infinities(n: int) -> tuple[torch.Tensor]:
    """Large numbers, of which none, some or all before one are -inf after negation."""
    rows = torch.randn(n, 5) * 50
    rows[0, :3], rows[1, 2] = torch.inf, torch.inf
    return (rows,)


def with_either_infinity(n: int) -> tuple[torch.Tensor]:
    rows = torch.randn(n, 6)
    rows[0, [1, 4]], rows[1, 2], rows[2, 3], rows[3, 0] = torch.inf, -torch.inf, torch.nan, torch.nan
    rows[1, 4], rows[2, 1] = torch.nan, -torch.inf
    return (rows,)


def with_extremes(n: int) -> tuple[torch.Tensor]:
    """Rows with NaN at the start, in the middle and twice, infinities, and the largest number beside infinity."""
    largest = torch.finfo(torch.float32).max
    rows = torch.tensor(
        [
            [math.nan, 1, 2, 3, math.nan, 4, math.nan],
            [3, 1, math.nan, 4, 4, -math.inf, math.inf],
            [math.inf, math.inf, -math.inf, 1, 2, -math.inf, math.inf],
            [largest, math.inf, largest, -largest, -math.inf, -largest, -math.inf],
        ]
    )
    return (rows[:, :, None].repeat(1, 1, n),)


def long(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(0, 40, (n, 300)) / 4,)


def extreme(op: Any, call: Callable[..., Any]) -> list[Case]:
    """Extremes so far, with their positions; of equal ones the last."""
    return [
        Case(op, over(call, 1), distinct),
        Case(op, over(call, -1), equal, name="ties"),
        Case(op, over(call, 1), with_extremes, name="nan"),
        Case(op, lambda x: signs(call(x, 1)[0]), signed_zeros, name="signed-zeros"),
        Case(op, over(call, 1), long, name="long"),
        Case(op, over(call, 1), integers, name="int64", half=False),
        Case(op, lambda x: call(x.int(), 1), small_integers, name="int32", half=False),
        Case(op, over(call, 2), bools, name="bool", half=False),
        Case(op, lambda x: call(x[0], 0), line, name="0d"),
        Case(op, short(over(call, 0)), equal, name="dynamic"),
        Case(op, short(over(call, 0)), line, name="dynamic-1d"),
        Case(op, lambda x: call(x.reshape(1, 1, 1, 1, 1, -1, 4, 6), -1), distinct, name="8d"),
    ]


CASES: list[Case] = [
    *extreme(aten.cummax.default, torch.cummax),
    *extreme(aten.cummin.default, torch.cummin),
    Case(aten.cumsum.default, over(torch.cumsum, -1), distinct),
    Case(aten.cumsum.default, over(torch.cumsum, 0), distinct, name="dynamic"),
    Case(aten.cumsum.default, over(torch.cumsum, 1), integers, name="int64", half=False),
    Case(aten.cumsum.default, over(torch.cumsum, 1), bools, name="bool", half=False),
    Case(aten.cumsum.default, over(torch.cumsum, 1, dtype=torch.float32), bools, name="dtype", half=False),
    Case(aten.cumsum.default, lambda x: torch.cumsum(x[0], 0), line, name="0d"),
    Case(aten.cumprod.default, over(torch.cumprod, -1), near_one),
    Case(aten.cumprod.default, over(torch.cumprod, 1), with_zeros, name="zeros"),
    Case(aten.cumprod.default, over(torch.cumprod, 1), small_integers, name="int64", half=False),
    Case(aten.cumprod.default, over(torch.cumprod, 1, dtype=torch.float32), bools, name="dtype", half=False),
    Case(aten.cumprod.default, lambda x: torch.cumprod(x[0], 0), line, name="0d"),
    Case(aten.cumprod.default, short(over(torch.cumprod, 0)), near_one, name="dynamic"),
    Case(aten.cumprod.default, over(torch.cumprod, 1), with_either_infinity, name="infinities"),
    Case(aten.cumprod.default, lambda x: torch.cumprod(x.reshape(1, 1, 1, 1, 1, -1, 3, 4), -1), near_one, name="8d"),
    Case(aten.logcumsumexp.default, over(torch.logcumsumexp, -1), near_one),
    Case(aten.logcumsumexp.default, over(torch.logcumsumexp, 1), with_infinities, name="infinities"),
    Case(aten.logcumsumexp.default, over(torch.logcumsumexp, 1), with_either_infinity, name="nan"),
    Case(aten.logcumsumexp.default, over(torch.logcumsumexp, 1), long, name="long"),
    Case(aten.logcumsumexp.default, short(over(torch.logcumsumexp, 0)), near_one, name="dynamic"),
    Case(aten.logcumsumexp.default, lambda x: torch.logcumsumexp(x[0], 0), line, name="0d"),
]


def endless(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(2**16 + 1).expand(n, -1),)


REJECTED: list[Rejected] = [
    Rejected(aten.cumprod.default, over(torch.cumprod, 1), endless, "of 65537 values; at most 65536"),
    Rejected(aten.logcumsumexp.default, over(torch.logcumsumexp, 0), line, NO_END, dynamic=True),
    Rejected(aten.cummax.default, over(torch.cummax, 0), line, NO_END, dynamic=True),
    Rejected(aten.cummin.default, over(torch.cummin, 1), endless, "at most 65536"),
]
