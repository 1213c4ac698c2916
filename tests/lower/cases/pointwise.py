"""Elementwise operators of one and two tensors."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def signed(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5),)


CASES: list[Case] = [
    Case(aten.relu.default, torch.relu, signed),
    Case(aten.neg.default, torch.neg, signed),
    Case(aten.neg.default, torch.neg, lambda n: (torch.randint(-9, 9, (n, 3)),), name="int64", half=False),
    Case(aten.bitwise_not.default, torch.bitwise_not, lambda n: (torch.randn(n, 3) > 0,), half=False),
]

REJECTED: list[Rejected] = [
    Rejected(aten.bitwise_not.default, torch.bitwise_not, lambda n: (torch.arange(n),), "bitwise not of integers"),
]
