"""Ranges: each range method against its definition, and weights within half a step of their scales."""

from __future__ import annotations

import pytest
import torch

from torchtrt_bridge.graph.ops import dequantize, dequantize_int4
from torchtrt_bridge.quantize.ranges import (
    RANGE_METHODS,
    quantized_blocks,
    quantized_weight,
    round_trip,
    rounded_weight,
    threshold,
)
from torchtrt_bridge.quantize.statistics import Statistics


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


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_zeros_get_a_range_above_zero(method: str) -> None:
    assert found(seen(torch.zeros(100)), method) == 1.0


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("value", [3.0, -3.0, 1e-30, 1e30])
def test_a_constant_is_in_its_range(method: str, value: float) -> None:
    limit = found(seen(torch.full((1000,), value)), method)
    assert 0 < limit <= abs(value) * 1.0001
    assert limit >= abs(value) * 0.98


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_no_range_is_beyond_the_maximum(method: str) -> None:
    statistics = seen(HEAVY)
    assert 0 < found(statistics, method) <= statistics.absmax


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_int8_weights_are_within_half_a_step(axis: int) -> None:
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-3, 2, 6).view(-1, 1, 1, 1)
    values, scale = quantized_weight(weight, axis, torch.int8)
    assert scale.shape == (weight.shape[axis],)
    assert values.abs().amax() == 127
    step = scale.view([-1 if dim == axis else 1 for dim in range(4)])
    assert ((dequantize(values, scale, axis, torch.float32) - weight).abs() <= step / 2 * 1.001).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_simulated_weight_is_the_quantized_one(dtype: torch.dtype, axis: int) -> None:
    weight = torch.randn(5, 7)
    values, scale = quantized_weight(weight, axis, dtype)
    torch.testing.assert_close(rounded_weight(weight, axis, dtype), dequantize(values, scale, axis, torch.float32))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_channel_of_zeros_has_a_scale_above_zero(dtype: torch.dtype) -> None:
    values, scale = quantized_weight(torch.zeros(3, 4), 0, dtype)
    assert (scale > 0).all()
    assert (values.float() == 0).all()


@pytest.mark.parametrize("block_size", [16, 32])
def test_int4_weights_are_within_half_a_step_of_their_block(block_size: int) -> None:
    """Those inside of what is clipped."""
    weight = torch.randn(3, 64)
    packed, scale = quantized_blocks(weight, block_size)
    assert packed.shape == (3, 32)
    assert scale.shape == (3, 64 // block_size)
    step = scale.repeat_interleave(block_size, dim=1)
    error = (dequantize_int4(packed, scale, block_size, torch.float32) - weight).abs()
    is_inside = (weight >= -8.5 * step) & (weight <= 7.5 * step)
    assert float(is_inside.double().mean()) > 0.9
    assert (error <= step / 2 * 1.001)[is_inside].all()


def test_blocks_are_clipped_where_that_costs_least() -> None:
    """One weight far from the others: rounding them well is worth more than that one."""
    weight = torch.randn(16, 128)
    weight[:, 0] = 5.0
    packed, scale = quantized_blocks(weight, 128)
    clipped = dequantize_int4(packed, scale, 128, torch.float32)
    whole = (weight.abs().amax(1, keepdim=True) / 7).expand(-1, 128)
    plain = (weight / whole).round() * whole
    assert float((clipped - weight).norm()) < 0.95 * float((plain - weight).norm())
    assert bool((scale <= whole[:, :1]).all())
