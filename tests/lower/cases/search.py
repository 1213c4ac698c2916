"""The places of values in sorted sequences. The harness negates inputs."""

import math
from collections.abc import Callable
from typing import Any

import torch

from tests.lower.case import Case, Rejected
from tests.lower.cases.order import NO_END, short

aten = torch.ops.aten


def near(*sizes: int) -> torch.Tensor:
    """Values of which some are equal to those of `steps`."""
    return torch.randint(-6, 7, sizes) / 4


def steps(*sizes: int) -> torch.Tensor:
    """Rows that are sorted after negation, with equal values."""
    return -(torch.randint(-5, 6, sizes) / 4).sort(-1)[0]


def values_and_line(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return near(n, 3), steps(7)


def values_and_rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return near(n, 3, 4), steps(n, 3, 9)


def integers_and_rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-9, 9, (n, 6)), -torch.randint(-9, 9, (n, 5)).sort(-1)[0]


def values_and_unsorted(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return near(n, 3, 4), near(n, 3, 9)


def values(n: int) -> tuple[torch.Tensor]:
    rows = near(n, 8)
    rows[:, 3], rows[0, 4], rows[1, 5] = torch.nan, torch.inf, -torch.inf
    return (rows,)


def with_nan(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and sequences with NaN, one of nothing else, and both infinities."""
    rows = steps(n, 6)
    rows[0, 4:], rows[1], rows[2, 5], rows[3, 0] = torch.nan, torch.nan, -torch.inf, torch.inf
    return *values(n), rows


def lengths(n: int) -> tuple[torch.Tensor, ...]:
    """Sequences of one to nine values."""
    return (near(n, 5), *(steps(length) for length in range(1, 10)))


def search(x: torch.Tensor, s: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return torch.searchsorted(s, x, **kwargs)


def with_sorter(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return torch.searchsorted(s, x, sorter=torch.argsort(s, stable=True))


def keyed(call: Callable[..., Any], **kwargs: Any) -> Callable[..., Any]:
    return lambda x, s: call(x, s, **kwargs)


def of_number(number: float, **kwargs: Any) -> Callable[..., Any]:
    return lambda s: torch.searchsorted(s, number, **kwargs)


def sequence(n: int) -> tuple[torch.Tensor]:
    """Values that are sorted after negation, as many as a dynamic size says."""
    return (-torch.arange(n) / 2,)


def in_itself(s: torch.Tensor) -> torch.Tensor:
    torch._check(s.shape[0] <= 16)
    return torch.searchsorted(s, s - 0.5, right=True)


class Buckets(torch.nn.Module):
    """Boundaries that the graph holds: sorted ones with NaN, or without, which are compared instead of searched."""

    def __init__(self, *boundaries: float) -> None:
        super().__init__()
        self.register_buffer("boundaries", torch.tensor(boundaries))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.bucketize(x, self.boundaries), torch.bucketize(x, self.boundaries, right=True)


SEARCHES = [
    Case(aten.searchsorted.Tensor, search, values_and_line),
    Case(aten.searchsorted.Tensor, keyed(search, right=True), values_and_line, name="right"),
    Case(aten.searchsorted.Tensor, keyed(search, side="right", out_int32=True), values_and_line, name="side"),
    Case(aten.searchsorted.Tensor, keyed(search, side="left"), values_and_rows, name="left-rows"),
    Case(aten.searchsorted.Tensor, keyed(search, right=True), values_and_rows, name="rows"),
    Case(aten.searchsorted.Tensor, search, integers_and_rows, name="int64", half=False),
    Case(aten.searchsorted.Tensor, search, values_and_unsorted, name="unsorted"),
    Case(aten.searchsorted.Tensor, search, with_nan, name="nan"),
    Case(aten.searchsorted.Tensor, keyed(search, right=True), with_nan, name="nan-right"),
    Case(aten.searchsorted.Tensor, with_sorter, values_and_unsorted, name="sorter"),
    Case(aten.searchsorted.Tensor, lambda x, s: search(x[0, 0], s), values_and_line, name="0d"),
    Case(aten.searchsorted.Tensor, lambda x, s: search(x, s.half()), values_and_line, name="promoted"),
    Case(aten.searchsorted.Tensor, lambda x, s: search((x * 4).long(), s), values_and_line, name="int64-in-floats"),
    Case(aten.searchsorted.Tensor, lambda x, s: search((x * 4).long()[0, 0], s), values_and_line, name="0d-int64"),
    Case(aten.searchsorted.Tensor, lambda x, *s: [search(x, one) for one in s], lengths, name="lengths"),
    Case(aten.searchsorted.Tensor, in_itself, sequence, name="dynamic"),
    Case(aten.searchsorted.Tensor, lambda x, s: search(x[0, 0], s.half()), values_and_line, name="0d-promoted"),
    Case(aten.searchsorted.Scalar, short(of_number(1.0)), sequence),
    Case(aten.searchsorted.Scalar, short(of_number(1.0, side="right", out_int32=True)), sequence, name="right"),
    Case(aten.searchsorted.Scalar, short(of_number(2)), sequence, name="int"),
    Case(
        aten.searchsorted.Scalar,
        lambda x, s: torch.searchsorted(s, 0.1, right=True, sorter=torch.argsort(s, stable=True)),
        lambda n: (near(n, 3), near(9)),
        name="sorter",
        static=False,
    ),
]

BUCKETS = [
    Case(aten.bucketize.Tensor, lambda x, b: torch.bucketize(x, b), values_and_line),
    Case(
        aten.bucketize.Tensor,
        lambda x: torch.bucketize(x, torch.tensor([-3, 0, 3]), right=True, out_int32=True),
        lambda n: (torch.randint(-4, 5, (n, 3)),),
        half=False,
        name="right",
    ),
    Case(aten.bucketize.Tensor, Buckets(-1.0, -0.25, 0.0, 0.0, 1.0), values, name="constant"),
    Case(aten.bucketize.Tensor, Buckets(-1.0, 0.0, 0.5, math.nan, math.nan), values, name="constant-nan"),
    Case(aten.bucketize.Tensor, Buckets(1.0, -1.0, 0.5, 0.0), values, name="constant-unsorted"),
    Case(aten.bucketize.Tensor, lambda x: Buckets(-1.0, 1.0)(x[0, 3]), values, name="constant-0d"),
    Case(aten.bucketize.Scalar, short(lambda b: torch.bucketize(1.0, b, right=True)), sequence),
    Case(aten.bucketize.Scalar, short(lambda b: torch.bucketize(1, b, out_int32=True)), sequence, name="int"),
]

CASES: list[Case] = [*SEARCHES, *BUCKETS]


def endless(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n), -torch.arange(2.0**20 + 1)


REJECTED: list[Rejected] = [
    Rejected(aten.searchsorted.Tensor, search, endless, "searching 1048577 values; at most 1048576"),
    Rejected(aten.searchsorted.Scalar, of_number(1.0), sequence, NO_END, dynamic=True),
    Rejected(aten.bucketize.Tensor, lambda x, b: torch.bucketize(x, b), endless, "at most 1048576"),
    Rejected(aten.bucketize.Scalar, lambda b: torch.bucketize(1.0, b), sequence, NO_END, dynamic=True),
]
