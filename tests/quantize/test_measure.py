"""Errors of samples, and what SmoothQuant's divisors leave to channels of small peaks."""

from __future__ import annotations

import pytest
import torch

from torchtrt_bridge.quantize.measure import _errors, _thinned
from torchtrt_bridge.quantize.smooth import _factors


def test_the_worst_sample_is_not_hidden_by_the_mean() -> None:
    found = _errors(torch.tensor([0.0, 0.0, 0.0, 4.0]), torch.full((4,), 16.0))
    assert found.mean == pytest.approx(0.25)
    assert found.worst == pytest.approx(0.5)


def test_a_small_sample_is_compared_with_the_mean_size() -> None:
    found = _errors(torch.tensor([0.0, 1.0]), torch.tensor([8.0, 0.0]))
    assert found.worst == pytest.approx(0.5)


def test_outputs_of_zero() -> None:
    assert _errors(torch.zeros(2), torch.zeros(2)).worst == 0
    assert _errors(torch.ones(2), torch.zeros(2)).worst == 1


@pytest.mark.parametrize(
    ("shape", "samples", "rows"), [((4, 3, 2), 4, 4), ((100, 4), 2, 1), ((4,), 4, 1), ((), 4, 1), ((4, 3), None, 1)]
)
def test_rows_are_samples_where_the_first_dimension_is_theirs(
    shape: tuple[int, ...], samples: int | None, rows: int
) -> None:
    assert len(_thinned(torch.ones(shape), samples)) == rows


def test_channels_of_small_peaks_share_a_divisor() -> None:
    peaks = torch.tensor([0.1, 1.0, 1.0, 1.0, 9.0])
    factors = _factors(peaks, torch.ones(5), 1.0)
    assert factors.tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0, 9.0])
