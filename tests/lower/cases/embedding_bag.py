"""Bags of rows of a table: of one size, which need no offsets, and of any size."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
BAG, BAG_FORWARD = aten._embedding_bag.default, aten._embedding_bag_forward_only.default
MODES = ("sum", "mean", "max")
Inputs = tuple[torch.Tensor, ...]


def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Numbers whose negatives, which a case sees, are rows of a table of nine."""
    return -torch.randint(0, 9, shape, dtype=dtype)


def starts(*values: int) -> torch.Tensor:
    return -torch.tensor(values)


def table(seed: int = 0) -> torch.Tensor:
    """Rows of which one is infinite, and another has large numbers."""
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))
    rows[3], rows[5, 2] = math.inf, -math.inf
    return rows


def with_nan(n: int) -> Inputs:
    """Rows at run time, of which two have NaN: one is first of a bag, one is not, and one is in both."""
    rows = table()
    rows[1], rows[2, :2] = math.nan, math.nan
    return rows, -torch.tensor([1, 0, 4, 2, 4, 6, 7, 2, 2, 0, 8][: n + 6]), starts(0, 2, 2, 5, 7)


def in_rows(n: int) -> Inputs:
    return (-torch.tensor([[0, 4, 0, 8], [8, 8, 8, 8], [1, 8, 2, 6], [8, 7, 2, 7], [6, 0, 4, 1]])[:n],)


def in_bags(n: int) -> Inputs:
    """Bags of 3, 0, 3 and the rest, some of them of padding alone."""
    return torch.cat([numbers(3), starts(8, 8, 8), numbers(n)]), starts(0, 3, 3, 6)


def weighted(n: int) -> Inputs:
    return *in_bags(n), torch.randn(n + 6)


def many_bags(n: int) -> Inputs:
    return numbers(7), -torch.arange(n)


def bag(**options) -> nn.Module:
    return nn.EmbeddingBag.from_pretrained(table(), **options)


def finite(**options) -> nn.Module:
    return nn.EmbeddingBag.from_pretrained(table().nan_to_num(posinf=7.0, neginf=-7.0), **options)


class Weighted(nn.Module):
    """A bag whose last argument weights the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = finite(mode="sum")

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.bag(*args[:-1], per_sample_weights=args[-1])


class OfKnownOffsets(nn.Module):
    """A bag of four bags of four."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = bag(mode="sum")
        self.register_buffer("offsets", torch.tensor([0, 4, 8, 12]))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.bag(numbers.reshape(-1), self.offsets)


EQUAL = [
    *[Case(aten.embedding.default, bag(mode=mode), in_rows, name=f"bag-{mode}") for mode in MODES],
    *[
        Case(aten.embedding.default, finite(mode=mode, padding_idx=8), in_rows, name=f"bag-{mode}-padding")
        for mode in MODES
    ],
    Case(
        aten.embedding.default,
        Weighted(),
        lambda n: (*in_rows(n), torch.randn(n, 4)),
        name="bag-weighted",
    ),
    Case(
        aten.embedding.default,
        lambda rows, ids: F.embedding_bag(ids, rows),
        lambda n: (torch.randn(9, 4), numbers(n, 3, dtype=torch.int32)),
        name="bag-table-at-run-time",
    ),
    Case(aten.embedding.default, OfKnownOffsets(), lambda n: in_rows(4), name="bag-offsets"),
]

ANY = [
    *[Case(BAG_FORWARD, bag(mode=mode), in_bags, name=mode) for mode in MODES],
    *[Case(BAG_FORWARD, bag(mode=mode, padding_idx=8), in_bags, name=f"{mode}-padding") for mode in MODES],
    *[
        Case(
            BAG_FORWARD,
            lambda rows, ids, offsets, mode=mode: F.embedding_bag(ids, rows, offsets, mode=mode),
            with_nan,
            name=f"{mode}-nan",
        )
        for mode in MODES
    ],
    *[Case(BAG_FORWARD, bag(mode=mode), many_bags, name=f"{mode}-dynamic-bags") for mode in MODES],
    Case(BAG_FORWARD, Weighted(), weighted, name="weighted"),
    Case(
        BAG_FORWARD,
        bag(include_last_offset=True),
        lambda n: (numbers(n + 6), starts(0, 3, 3, 6, n + 6)),
        name="last-offset",
    ),
    Case(
        BAG_FORWARD,
        bag(),
        lambda n: (numbers(n + 6, dtype=torch.int32), starts(0, 3, 3, 6).int()),
        name="int32",
    ),
    Case(
        BAG_FORWARD,
        lambda rows, ids: F.embedding_bag(ids, rows, mode="max"),
        lambda n: (with_nan(n)[0], with_nan(4)[1].reshape(2, 5)),
        name="equal-with-nan",
    ),
    Case(BAG, lambda rows, *args: aten._embedding_bag(rows, *args)[0], lambda n: (table(), *in_bags(n))),
]

CASES: list[Case] = [*EQUAL, *ANY]


def large(n: int) -> Inputs:
    return numbers(1 << 12), -torch.arange(1 << 9)


REJECTED: list[Rejected] = [
    Rejected(BAG_FORWARD, bag(), large, "8388608 comparisons"),
    Rejected(
        BAG_FORWARD,
        bag(),
        lambda n: (numbers(3 * n), -torch.arange(n)),
        "known only at run time",
        name="of-unknown-number",
        dynamic=True,
    ),
    Rejected(
        BAG,
        lambda rows, *args: aten._embedding_bag(rows, *args)[0],
        lambda n: (table(), *large(n)),
        "8388608 comparisons",
    ),
]
