"""The largest and the smallest values, and their positions."""

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


def with_nan(n: int) -> tuple[torch.Tensor]:
    """Rows with NaN and infinities: none, one, several, and nothing else."""
    rows = torch.randperm(n * 6).reshape(n, 6) / 4
    rows[0, 2], rows[1, [1, 3]], rows[2, [0, 4]], rows[3, 5] = torch.nan, torch.nan, torch.inf, -torch.inf
    rows[2, 1] = torch.nan
    rows[3, :5] = torch.nan
    return (rows,)


def beside_infinity(n: int) -> tuple[torch.Tensor]:
    """Infinities before and behind the largest and the smallest number."""
    largest = torch.finfo(torch.float32).max
    row = torch.tensor([1.0, largest, torch.inf, -torch.inf, -largest])
    return (torch.stack([row.roll(i) for i in range(n)]),)


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
        Case(op, lambda x: tuple(call(x, 1)), beside_infinity, name="beside-infinity", half=False),
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
        Case(op, over(call, -1), beside_infinity, name="beside-infinity", half=False),
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
    Case(aten.topk.default, lambda x: torch.topk(x, 2)[0], with_nan, name="nan"),
    Case(aten.topk.default, lambda x: torch.topk(x, 2, largest=False)[0], with_nan, name="nan-smallest"),
]


REJECTED: list[Rejected] = [
    Rejected(aten.topk.default, over(torch.topk, 4000), lambda n: (torch.randn(n, 5000),), "at most 3840"),
]
