"""Statistics of activations: taken in one pass, in memory that does not grow."""

from __future__ import annotations

import pytest
import torch

from torchtrt_bridge.errors import CalibrationError
from torchtrt_bridge.quantize.statistics import BINS, NEWEST, NonFiniteError, Statistics

BATCHES = [torch.randn(4, 6, 5) * scale for scale in (0.1, 1.0, 7.0, 0.5)]


def seen(batches: list[torch.Tensor], channel_dim: int | None = None) -> Statistics:
    statistics = Statistics(channel_dim)
    for batch in batches:
        statistics.update(batch)
    return statistics


def test_the_maximum_is_that_of_all_batches() -> None:
    assert seen(BATCHES).absmax == pytest.approx(float(torch.cat(BATCHES).abs().max()))


def test_the_moving_average_follows_the_batches() -> None:
    expected = float(BATCHES[0].abs().max())
    for peak in [float(batch.abs().max()) for batch in BATCHES[1:]]:
        expected += NEWEST * (peak - expected)
    assert seen(BATCHES).moving == pytest.approx(expected)


def test_doubling_the_range_loses_no_value() -> None:
    """Bins whose limit doubled are those that a histogram of the last limit has."""
    statistics = seen(BATCHES)
    values = torch.cat(BATCHES).abs().flatten().double()
    assert statistics.limit > statistics.absmax / 1.0001
    whole = torch.histogram(values, BINS, range=(0.0, statistics.limit)).hist
    assert statistics.counts is not None
    assert statistics.counts.sum() == values.numel()
    # A value on the border of two bins may be counted in either, by the rounding of its bin's number.
    assert (statistics.counts.cumsum(0) - whole.cumsum(0)).abs().max() <= 1


@pytest.mark.parametrize("count", [1, 40])
def test_memory_does_not_depend_on_the_number_of_batches(count: int) -> None:
    statistics = seen(BATCHES * count, channel_dim=1)
    tensors = [value for value in vars(statistics).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in tensors) == BINS + 2 * 6


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_channels_have_their_own_maximum_and_mean(channel_dim: int) -> None:
    statistics = seen(BATCHES, channel_dim)
    rows = torch.cat(BATCHES).movedim(channel_dim, 0).flatten(1)
    torch.testing.assert_close(statistics.channel_max, rows.abs().amax(1))
    torch.testing.assert_close(statistics.channel_mean, rows.double().mean(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("channel_dim", [None, 1])
def test_values_that_are_not_finite_are_refused(wrong: float, channel_dim: int | None) -> None:
    batch = torch.ones(2, 3)
    batch[1, 2] = wrong
    with pytest.raises(NonFiniteError):
        Statistics(channel_dim).update(batch)


def test_zeros_before_the_first_value_are_counted() -> None:
    statistics = seen([torch.zeros(10), torch.tensor([4.0])])
    assert statistics.counts is not None
    assert statistics.counts[0] == 10
    assert statistics.limit == 4.0


def test_an_empty_tensor_is_no_batch() -> None:
    assert seen([torch.zeros(0, 3)]).batches == 0


def test_statistics_survive_a_file() -> None:
    statistics = seen(BATCHES, channel_dim=1)
    again = Statistics.from_dict(statistics.to_dict(), torch.device("cpu"))
    assert again.to_dict() == statistics.to_dict()
    torch.testing.assert_close(again.channel_mean, statistics.channel_mean)


def test_damaged_statistics_are_refused() -> None:
    with pytest.raises(CalibrationError, match="damaged"):
        Statistics.from_dict({"absmax": 1.0}, torch.device("cpu"))
