"""Bags of one size become rows and a reduction; others, and maxima of NaN, stay bags."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.passes.case import assert_computes, aten, calls, passed
from torchtrt_bridge.passes.embedding_bags import BAGS, reduce_equal_bags

NUMBERS = torch.tensor([[0, 4, 0, 8], [8, 8, 8, 8], [3, 8, 2, 6]])


class Bags(nn.Module):
    """A bag layer, called with numbers in one dimension and with constant offsets."""

    def __init__(self, *offsets: int, **options: Any) -> None:
        super().__init__()
        self.layer = nn.EmbeddingBag(9, 4, **options)
        self.register_buffer("offsets", torch.tensor(offsets))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.layer(numbers.reshape(-1), self.offsets)


class EveryResult(nn.Module):
    """A bag layer whose results for gradients are returned too."""

    def forward(self, numbers: torch.Tensor) -> Any:
        starts = torch.arange(0, numbers.numel(), numbers.shape[1])
        return aten._embedding_bag(torch.ones(9, 4), numbers.reshape(-1), starts)


def with_nan(mode: str) -> nn.Module:
    layer = nn.EmbeddingBag(9, 4, mode=mode)
    layer.weight.data[8, 1] = math.nan
    return layer


EQUAL = {
    **{mode: lambda mode=mode: nn.EmbeddingBag(9, 4, mode=mode) for mode in ("sum", "mean", "max")},
    **{
        f"{mode}-padding": lambda mode=mode: nn.EmbeddingBag(9, 4, mode=mode, padding_idx=8)
        for mode in ("sum", "mean", "max")
    },
    "float64-padding": lambda: nn.EmbeddingBag(9, 4, padding_idx=8, dtype=torch.float64),
    "constant offsets": lambda: Bags(0, 3, 6, 9),
    "constant offsets with the last": lambda: Bags(0, 6, 12, include_last_offset=True),
}

OTHER = {
    "sizes differ": lambda: Bags(0, 3, 7, 9),
    "an empty bag": lambda: Bags(0, 0, 6),
    "a last bag of another size": lambda: Bags(0, 3, 6),
    "nan": lambda: with_nan("max"),
    "every result": EveryResult,
}


@pytest.mark.parametrize("make", EQUAL.values(), ids=EQUAL)
def test_equal_bags_are_reduced_rows(make: Any) -> None:
    model = make()
    module = passed(model, NUMBERS, reduce_equal_bags)
    assert aten.embedding.default in calls(module)
    assert not set(BAGS) & set(calls(module))
    assert_computes(module, model, NUMBERS)


@pytest.mark.parametrize("make", OTHER.values(), ids=OTHER)
def test_other_bags_stay(make: Any) -> None:
    module = passed(make(), NUMBERS, reduce_equal_bags)
    assert set(BAGS) & set(calls(module))
