"""Positions and order of values, and running sums and products."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def distinct(n: int) -> tuple[torch.Tensor]:
    """Values of which no two along a dimension are equal, in fp16 either."""
    return (torch.stack([torch.randperm(24).reshape(4, 6) for _ in range(n)]) / 4 + torch.arange(n)[:, None, None] * 7,)


def equal(n: int) -> tuple[torch.Tensor]:
    """Values with ties, of which PyTorch takes the first."""
    return (torch.randint(0, 3, (n, 3, 5)) / 1.0,)


def line(n: int) -> tuple[torch.Tensor]:
    return (torch.randperm(n) / 2,)


def integers(n: int) -> tuple[torch.Tensor]:
    return (torch.stack([torch.randperm(24).reshape(4, 6) for _ in range(n)]) - 12,)


def bools(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 4) > 0.5,)


def near_one(n: int) -> tuple[torch.Tensor]:
    return (-torch.rand(n, 3, 4) - 0.5,)


def with_zeros(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, 3) * (torch.rand(n, 4, 3) > 0.2),)


def small_integers(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-3, 4, (n, 5)),)


def with_infinities(n: int) -> tuple[torch.Tensor]:
    """Large numbers, of which none, some or all before one are -inf after negation."""
    rows = torch.randn(n, 5) * 50
    rows[0, :3], rows[1, 2] = torch.inf, torch.inf
    return (rows,)


def with_nan(n: int) -> tuple[torch.Tensor]:
    """Rows with NaN and infinities: none, one, several, and nothing else."""
    rows = torch.randperm(n * 6).reshape(n, 6) / 4
    rows[0, 2], rows[1, [1, 3]], rows[2, [0, 4]], rows[3, 5] = torch.nan, torch.nan, torch.inf, -torch.inf
    rows[2, 1] = torch.nan
    rows[3, :5] = torch.nan
    return (rows,)


def over(call, *args, **kwargs):
    return lambda x: call(x, *args, **kwargs)


def along(op, call) -> list[Case]:
    """Values and positions of extremes."""
    return [
        Case(op, lambda x: tuple(call(x, 1)), distinct),
        Case(op, lambda x: tuple(call(x, -1, keepdim=True)), distinct, name="keepdim"),
        Case(op, lambda x: tuple(call(x, 0)), distinct, name="dynamic"),
        Case(op, lambda x: call(x, -1)[0], distinct, name="values"),
        Case(op, lambda x: call(x, -1)[1], distinct, name="indices"),
        Case(op, lambda x: tuple(call(x, -1)), equal, name="ties"),
        Case(op, lambda x: tuple(call(x, 0)), line, name="1d"),
        Case(op, lambda x: tuple(call(x[0], 0)), line, name="0d"),
        Case(op, lambda x: tuple(call(x, 1)), integers, name="int64", half=False),
        Case(op, lambda x: call(x, 1)[0], bools, name="bool", half=False),
        Case(op, lambda x: tuple(call(x, 1)), with_nan, name="nan"),
    ]


def position(op, call) -> list[Case]:
    return [
        Case(op, over(call, -1), distinct),
        Case(op, over(call, 1, keepdim=True), distinct, name="keepdim"),
        Case(op, over(call, 0), distinct, name="dynamic"),
        Case(op, call, distinct, name="flat"),
        Case(op, over(call, keepdim=True), distinct, name="flat_keepdim"),
        Case(op, over(call, -1), equal, name="ties"),
        Case(op, call, line, name="1d"),
        Case(op, lambda x: call(x[0]), line, name="0d"),
        Case(op, over(call, -1), integers, name="int64", half=False),
        Case(op, over(call, -1), with_nan, name="nan"),
        Case(op, call, with_nan, name="flat_nan"),
    ]


CASES: list[Case] = [
    *along(aten.max.dim, torch.max),
    *along(aten.min.dim, torch.min),
    *position(aten.argmax.default, torch.argmax),
    *position(aten.argmin.default, torch.argmin),
    Case(aten.topk.default, lambda x: torch.topk(x, 3), distinct),
    Case(aten.topk.default, lambda x: torch.topk(x, 2, 1, largest=False), distinct, name="smallest"),
    Case(aten.topk.default, lambda x: torch.topk(x, 1, 0), distinct, name="dynamic"),
    Case(aten.topk.default, lambda x: torch.topk(x, 2, sorted=False), distinct, name="unsorted"),
    Case(aten.topk.default, lambda x: torch.topk(x[0, 0], 2), distinct, name="1d"),
    Case(aten.topk.default, lambda x: torch.topk(x, 3), integers, name="int64", half=False),
    Case(aten.sort.default, lambda x: torch.sort(x), distinct),
    Case(aten.sort.default, lambda x: torch.sort(x, 1, descending=True), distinct, name="descending"),
    Case(aten.sort.default, lambda x: torch.sort(x[0, 0]), distinct, name="1d"),
    Case(aten.sort.default, lambda x: torch.sort(x), integers, name="int64", half=False),
    Case(aten.sort.default, lambda x: torch.argsort(x, -1, descending=True), distinct, name="argsort"),
    Case(aten.sort.default, lambda x: torch.msort(x.mT.mT[0]), distinct, name="msort"),
    Case(aten.topk.default, lambda x: torch.topk(x, 2)[0], with_nan, name="nan"),
    Case(aten.topk.default, lambda x: torch.topk(x, 2, largest=False)[0], with_nan, name="nan-smallest"),
    Case(aten.sort.default, lambda x: torch.sort(x)[0], with_nan, name="nan"),
    Case(aten.sort.default, lambda x: torch.sort(x, descending=True)[0], with_nan, name="nan-descending"),
    *[
        Case(
            aten.sort.stable,
            lambda x, d=d: torch.sort(x, dim=1, descending=d, stable=True),
            make,
            name=f"{name}-{d}",
            half=half,
        )
        for name, make, half in (("ties", equal, True), ("nan", with_nan, True), ("int64", small_integers, False))
        for d in (False, True)
    ],
    Case(aten.sort.stable, lambda x: torch.argsort(x, dim=1, stable=True), bools, name="bool", half=False),
    Case(aten.sort.stable, lambda x: torch.sort(x[0], stable=True), line, name="0d"),
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
    Case(aten.logcumsumexp.default, over(torch.logcumsumexp, -1), near_one),
    Case(aten.logcumsumexp.default, over(torch.logcumsumexp, 1), with_infinities, name="infinities"),
    Case(aten.logcumsumexp.default, lambda x: torch.logcumsumexp(x[0], 0), line, name="0d"),
]


def stable(x: torch.Tensor) -> torch.Tensor:
    return torch.sort(x, stable=True)[0]


REJECTED: list[Rejected] = [
    Rejected(aten.sort.stable, stable, lambda n: (torch.randn(n, 2000),), "at most 1024"),
    Rejected(aten.sort.stable, lambda x: stable(x.mT), lambda n: (torch.randn(n, 3),), "is not known", dynamic=True),
    Rejected(aten.topk.default, over(torch.topk, 4000), lambda n: (torch.randn(n, 5000),), "at most 3840"),
    Rejected(aten.sort.default, torch.sort, lambda n: (torch.randn(n, 5000),), "at most 3840"),
    Rejected(aten.cumprod.default, over(torch.cumprod, 1), lambda n: (torch.randn(n, 1025),), "at most 1024"),
    Rejected(aten.logcumsumexp.default, over(torch.logcumsumexp, 0), line, "whose size is not known", dynamic=True),
]
