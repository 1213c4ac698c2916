"""Weights: the scale of each output channel or block, and values within half a step."""

from __future__ import annotations

import pytest
import torch

from torchtrt_bridge.graph.ops import dequantize, dequantize_int4
from torchtrt_bridge.quantize.weights import quantized_blocks, quantized_weight, rounded_weight


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
def test_the_rehearsed_weight_is_the_delivered_one(dtype: torch.dtype, axis: int) -> None:
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
