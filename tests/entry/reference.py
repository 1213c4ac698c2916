"""`trtb.compile` with the reference interpreter, and the comparison of its results."""

from __future__ import annotations

from typing import Any

import torch

import torchtrt_bridge as trtb

REFERENCE = {"engine": "reference"}


def compiled(model: Any, **options: Any) -> Any:
    """Compile `model` for the reference interpreter."""
    return trtb.compile(model, engine="reference", **options)


def assert_same(actual: Any, expected: Any) -> None:
    """Assert that fp32 results are equal up to rounding."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
