"""Ranges from statistics, each method against its definition."""

from __future__ import annotations

import pytest
import torch

from torchtrt_bridge.quantize.settings import OBSERVERS
from torchtrt_bridge.quantize.statistics import Statistics
from torchtrt_bridge.quantize.thresholds import threshold
from torchtrt_bridge.quantize.weights import round_trip


def seen(*batches: torch.Tensor) -> Statistics:
    statistics = Statistics(None)
    for batch in batches:
        statistics.update(batch)
    return statistics


def found(statistics: Statistics, method: str, dtype: torch.dtype = torch.int8, percentile: float = 99.9) -> float:
    return threshold(statistics, method, dtype, percentile)


HEAVY = torch.distributions.StudentT(2.0).sample((200_000,))


def test_absmax_and_moving_average_are_those_of_the_batches() -> None:
    statistics = seen(torch.tensor([1.0]), torch.tensor([3.0]))
    assert found(statistics, "absmax") == 3.0
    assert found(statistics, "moving_average") == pytest.approx(1.2)


def test_the_percentile_is_that_of_all_values() -> None:
    values = torch.linspace(-1, 1, 100_001)
    assert found(seen(values), "percentile", percentile=90.0) == pytest.approx(0.9, abs=1e-3)


# A few outliers make most of the error in float8, so that it jumps from one threshold to the next.
@pytest.mark.parametrize(("dtype", "factor"), [(torch.int8, 1.05), (torch.float8_e4m3fn, 1.15)])
def test_mse_is_as_good_as_trying_all_thresholds(dtype: torch.dtype, factor: float) -> None:
    best = found(seen(HEAVY), "mse", dtype)

    def error(limit: float) -> float:
        return float((round_trip(HEAVY, torch.tensor(limit), dtype) - HEAVY).square().mean())

    tried = min(error(float(HEAVY.abs().max()) * part) for part in torch.linspace(0.02, 1.0, 50).tolist())
    assert error(best) <= factor * tried


def test_entropy_cuts_off_outliers_and_keeps_the_rest() -> None:
    values = torch.cat((torch.randn(100_000), torch.tensor([60.0])))
    assert 2.0 < found(seen(values), "entropy") < 30.0


def test_entropy_keeps_an_even_distribution_whole() -> None:
    assert found(seen(torch.linspace(-1, 1, 100_000)), "entropy") == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("method", OBSERVERS)
def test_zeros_get_a_range_above_zero(method: str) -> None:
    assert found(seen(torch.zeros(100)), method) == 1.0


@pytest.mark.parametrize("method", OBSERVERS)
@pytest.mark.parametrize("value", [3.0, -3.0, 1e-30, 1e30])
def test_a_constant_is_in_its_range(method: str, value: float) -> None:
    limit = found(seen(torch.full((1000,), value)), method)
    assert 0 < limit <= abs(value) * 1.0001
    assert limit >= abs(value) * 0.98


@pytest.mark.parametrize("method", OBSERVERS)
def test_no_range_is_beyond_the_maximum(method: str) -> None:
    statistics = seen(HEAVY)
    assert 0 < found(statistics, method) <= statistics.absmax
