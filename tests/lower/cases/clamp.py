"""Limits on values."""

import torch
import torch.nn.functional as F

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def one(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5) * 4,)


def one_integer(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-9, 9, (n, 4)),)


def limits(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 5), torch.rand(5), torch.rand(3, 1)


def limit(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 5), torch.rand(5)


def integer_limits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-9, 9, (n, 4)), torch.arange(4)


CASES: list[Case] = [
    Case(aten.clamp.default, lambda x: x.clamp(-1.5, 2), one),
    Case(aten.clamp.default, lambda x: x.clamp(min=-1), one, name="min"),
    Case(aten.clamp.default, lambda x: x.clamp(max=1), one, name="max"),
    Case(aten.clamp.default, lambda x: x.clamp(2.0, -1.0), one, name="crossed"),
    Case(aten.clamp.default, lambda x: x[0, 0, 0].clamp(-1, 1), one, name="0d"),
    Case(aten.clamp.default, lambda x: x.clamp(-3, 4), one_integer, name="int64", half=False),
    Case(aten.clamp.default, lambda x: x.clamp(4, -3), one_integer, name="int64_crossed", half=False),
    Case(aten.clamp.default, lambda x: x.clamp(-0.5, 4), one_integer, name="int64_float", half=False),
    Case(aten.clamp.Tensor, lambda x, low, high: x.clamp(low, high), limits),
    Case(aten.clamp.Tensor, lambda x, high: x.clamp(max=high), limit, name="max"),
    Case(aten.clamp.Tensor, lambda x, low: x.clamp(min=low), integer_limits, name="int64", half=False),
    Case(aten.clamp_min.default, lambda x: torch.clamp_min(x, 0.5), one),
    Case(aten.clamp_min.default, lambda x: torch.clamp_min(x, 2), one_integer, name="int64", half=False),
    Case(aten.clamp_min.Tensor, torch.clamp_min, limit),
    Case(aten.clamp_max.default, lambda x: torch.clamp_max(x, 0.5), one),
    Case(aten.clamp_max.Tensor, torch.clamp_max, limit),
    Case(aten.hardtanh.default, F.hardtanh, one),
    Case(aten.hardtanh.default, lambda x: F.hardtanh(x, -2, 0.5), one, name="limits"),
    Case(aten.hardtanh.default, F.relu6, one, name="relu6"),
]

REJECTED: list[Rejected] = []
