"""Updates of caches of keys and values. The harness negates inputs: starts that must not be negative are made so."""

from __future__ import annotations

import torch

from tests.lower.case import Case, Rejected
from torchtrt_bridge.graph.kv_cache import own

update = own.kv_cache_update.default


def one(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, 2, 6, 8), torch.randn(n, 2, 1, 8), torch.tensor(-3)


def several(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 2, 6, 8), torch.randn(2, 2, n, 8), torch.tensor(-1, dtype=torch.int32)


def from_the_end(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, 2, 6, 8), torch.randn(n, 2, 2, 8), torch.tensor(2)


CASES: list[Case] = [
    Case(update, lambda *args: update(*args), one),
    Case(update, lambda *args: update(*args), several, name="several"),
    Case(update, lambda *args: update(*args), from_the_end, name="from_the_end"),
]
REJECTED: list[Rejected] = []
