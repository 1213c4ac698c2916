"""Rows of a table by their numbers."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def negative_numbers(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Numbers whose negatives, which a case sees, are rows of a table of nine."""
    return -torch.randint(0, 9, shape, dtype=dtype)


CASES: list[Case] = [
    Case(aten.embedding.default, nn.Embedding(9, 4), lambda n: (negative_numbers(n, 5),)),
    Case(
        aten.embedding.default,
        nn.Embedding(9, 4, padding_idx=0),
        lambda n: (negative_numbers(n),),
        name="padding",
    ),
    Case(
        aten.embedding.default,
        nn.Embedding(9, 4),
        lambda n: (negative_numbers(n, 5, dtype=torch.int32),),
        name="int32",
    ),
    Case(aten.embedding.default, nn.Embedding(9, 4), lambda n: (negative_numbers(),), name="0d"),
    Case(
        aten.embedding.default,
        lambda table, numbers: F.embedding(numbers, table),
        lambda n: (torch.randn(9, n), negative_numbers(n, 2)),
        name="table-at-run-time",
    ),
]

REJECTED: list[Rejected] = []
