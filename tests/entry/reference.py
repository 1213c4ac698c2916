"""`trtb.compile` with the reference interpreter, and the comparison of its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import torchtrt_bridge as trtb

REFERENCE = {"engine": "reference"}


def compiled(model: Any, **options: Any) -> Any:
    """Compile `model` for the reference interpreter."""
    return trtb.compile(model, engine="reference", **options)


def assert_same(actual: Any, expected: Any) -> None:
    """Assert that fp32 results are equal up to rounding."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class TwoLayers(nn.Module):
    """Two layers, and a function of the results of the first."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(8, 8)
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, self.layer(x).relu())
