"""Accuracy on a task: networks trained here on scikit-learn's digits, in 8 bits."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from tests.quantize.digits import DepthwiseNet, ResidualNet, accuracy, calibration_loader, trained, uneven
from torchtrt_bridge.quantize.ranges import RANGE_METHODS

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, float]:
    """The network, and the CPU seconds of each core that its training took."""
    torch.manual_seed(0)
    started = time.process_time()
    return trained(ResidualNet()), (time.process_time() - started) / torch.get_num_threads()


@pytest.fixture(scope="module")
def even() -> nn.Module:
    torch.manual_seed(0)
    return trained(DepthwiseNet())


@pytest.fixture(scope="module")
def depthwise(even: nn.Module) -> nn.Module:
    return uneven(copy.deepcopy(even))


def test_the_training_is_short_and_the_network_good(residual: tuple[nn.Module, float]) -> None:
    model, seconds = residual
    assert seconds < 30
    assert accuracy(model) > 98


@pytest.mark.parametrize(
    "method", ["auto", *[pytest.param(method, marks=pytest.mark.full) for method in RANGE_METHODS]]
)
def test_each_method_keeps_the_accuracy(method: str, residual: tuple[nn.Module, float]) -> None:
    model, _ = residual
    found = trtb.quantize(model, calibration_loader(), method=method, max_error=None, table=False)
    assert found.quantization.quantized == 11
    assert accuracy(found) >= accuracy(model) - 0.35


@pytest.mark.parametrize("dtype", ["fp8", "int4"])
def test_other_types_keep_it_too(dtype: str, residual: tuple[nn.Module, float]) -> None:
    model, _ = residual
    found = trtb.quantize(model, calibration_loader(), dtype=dtype, block_size=32, max_error=None, table=False)
    assert accuracy(found) >= accuracy(model) - 0.7


def test_uneven_channels_do_not_change_the_float_model(even: nn.Module, depthwise: nn.Module) -> None:
    assert accuracy(even) > 95
    assert accuracy(depthwise) == pytest.approx(accuracy(even), abs=0.2)


@pytest.mark.full
def test_equalization_keeps_a_depthwise_network(depthwise: nn.Module) -> None:
    """Within 0.7 points with it; the loss without is what it is there for."""
    found = {
        equalize: trtb.quantize(
            depthwise, calibration_loader(), method="absmax", equalize=equalize, smooth=None, table=False
        )
        for equalize in (False, True)
    }
    expected = accuracy(depthwise)
    losses = {equalize: expected - accuracy(model) for equalize, model in found.items()}
    assert losses[True] <= 0.7, f"loss in points with and without equalization: {losses}"
    assert losses[False] > losses[True]


def test_auto_finds_that_equalization_helps(depthwise: nn.Module) -> None:
    found = trtb.quantize(depthwise, calibration_loader(), max_error=None, table=False)
    assert "equalized channels" in found.quantization.choice
    assert accuracy(found) >= accuracy(depthwise) - 0.7
