"""Weights: the scale of each output channel or block, and values within half a step."""

from __future__ import annotations

import pytest
import torch

from torchtrt_bridge.quantize.ops import dequantize, dequantize_int4
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
    weight = torch.randn(3, 64)
    packed, scale = quantized_blocks(weight, block_size)
    assert packed.shape == (3, 32)
    assert scale.shape == (3, 64 // block_size)
    error = (dequantize_int4(packed, scale, block_size, torch.float32) - weight).abs()
    assert (error.unflatten(1, (-1, block_size)) <= scale.unsqueeze(-1) / 2 * 1.001).all()
