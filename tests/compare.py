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
    for index, (mine, theirs) in enumerate(zip(actual, expected, strict=True)):
        if not isinstance(theirs, torch.Tensor):
            assert mine == theirs
            continue
        assert isinstance(mine, torch.Tensor)
        mine = mine.to(theirs.device)
        try:
            _assert_close(mine, theirs, tolerance)
        except AssertionError:
            if in_float64 is None or not theirs.is_floating_point() or mine.shape != theirs.shape:
                raise
            referee = in_float64() if referee is None else referee
            if not _is_as_good(mine, theirs, referee[index]):
                raise


def _assert_close(mine: torch.Tensor, theirs: torch.Tensor, tolerance: tuple[float, float] | None) -> None:
    if not theirs.is_floating_point():
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    elif tolerance is None:
        torch.testing.assert_close(mine, theirs, equal_nan=True)
    else:
        torch.testing.assert_close(mine, theirs, rtol=tolerance[0], atol=tolerance[1], equal_nan=True)


def _is_as_good(mine: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> bool:
    if mine.dtype != theirs.dtype or not torch.equal(mine.isfinite(), theirs.isfinite()):
        return False
    exact = exact.to(mine.device, torch.float64)
    finite = theirs.isfinite()
    own = torch.linalg.vector_norm((theirs.double() - exact)[finite])
    error = torch.linalg.vector_norm((mine.double() - exact)[finite])
    return bool(error <= REFEREE_FACTOR * own)
