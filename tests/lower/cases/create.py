"""Tensors made from other tensors' sizes. Those made from sizes alone: `tests/lower/test_creation.py`."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6),)


CASES: list[Case] = [
    Case(aten.full_like.default, lambda x: torch.full_like(x, 2.5), rows),
    Case(aten.full_like.default, lambda x: torch.zeros_like(x), rows, name="zeros"),
    Case(aten.full_like.default, lambda x: torch.ones_like(x, dtype=torch.int64), rows, name="ones-int64"),
    Case(aten.full_like.default, lambda x: torch.ones_like(x, dtype=torch.bool), rows, name="ones-bool"),
    Case(aten.full_like.default, lambda x: torch.full_like(x[0, 0], -3), rows, name="0d"),
    Case(aten.full_like.default, lambda x: torch.full_like(x, float("-inf")), rows, name="infinity"),
    Case(aten.full_like.default, lambda x: torch.fill(x, 7), rows, name="fill"),
]

REJECTED: list[Rejected] = [
    Rejected(
        aten.arange.start_step,
        lambda x: (torch.arange(0, x.shape[0], 0.5), -x),
        rows,
        "steps that are not whole",
        dynamic=True,
    ),
]
