"""Compare a result with PyTorch's: exact for bool and int, `torch.testing`'s for floats, float64 as referee."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# How much larger than eager's own error against float64 an error may be.
REFEREE_FACTOR = 4.0


def assert_matches(
    actual: Sequence[Any],
    expected: Sequence[Any],
    in_float64: Callable[[], Sequence[Any]] | None = None,
    tolerance: tuple[float, float] | None = None,
) -> None:
    """Raise AssertionError unless each of `actual` is as good an answer as the one of `expected`.

    in_float64: computes the same outputs in float64; asked only where the default tolerance fails.
    tolerance: (rtol, atol) in place of the defaults of `torch.testing.assert_close`.
    """
    assert len(actual) == len(expected), f"{len(actual)} outputs instead of {len(expected)}"
    referee: Sequence[Any] | None = None
    for index, (found, wanted) in enumerate(zip(actual, expected, strict=True)):
        if not isinstance(wanted, torch.Tensor):
            assert found == wanted
            continue
        assert isinstance(found, torch.Tensor)
        found = found.to(wanted.device)
        try:
            _assert_close(found, wanted, tolerance)
        except AssertionError:
            if in_float64 is None or not wanted.is_floating_point() or found.shape != wanted.shape:
                raise
            referee = in_float64() if referee is None else referee
            if not _is_as_good(found, wanted, referee[index]):
                raise


def _assert_close(found: torch.Tensor, wanted: torch.Tensor, tolerance: tuple[float, float] | None) -> None:
    if not wanted.is_floating_point():
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    elif tolerance is None:
        torch.testing.assert_close(found, wanted, equal_nan=True)
    else:
        torch.testing.assert_close(found, wanted, rtol=tolerance[0], atol=tolerance[1], equal_nan=True)


def _is_as_good(found: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor) -> bool:
    """Return whether the error against float64 is at most a few times that of what was wanted."""
    if found.dtype != wanted.dtype or not torch.equal(found.isfinite(), wanted.isfinite()):
        return False
    exact = exact.to(found.device, torch.float64)
    finite = wanted.isfinite()
    own = torch.linalg.vector_norm((wanted.double() - exact)[finite])
    error = torch.linalg.vector_norm((found.double() - exact)[finite])
    return bool(error <= REFEREE_FACTOR * own)
