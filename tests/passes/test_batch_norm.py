"""Batch norms go into the weights of the layer before them, unless another node reads its result or its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import trained
from tests.passes.case import assert_computes, aten, call, calls, constants, passed
from torchtrt_bridge.passes.batch_norm import BATCH_NORM, fold_batch_norm
from torchtrt_bridge.passes.constant_folding import fold_constants

X = (2, 4, 6, 6)


def lively(model: nn.Module) -> nn.Module:
    """Put `model` in evaluation mode, with statistics and an epsilon that change its results."""
    for module in trained(model).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
            module.eps = 1e-2
    return model


def unaffine(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def sequence(*layers: nn.Module) -> nn.Module:
    return lively(nn.Sequential(*layers))


# Models whose batch norm leaves nothing but its layer, the operator of that layer, and their input.
MELTING: dict[str, tuple[Callable[[], nn.Module], Any, tuple[int, ...]]] = {
    "conv": (lambda: sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), aten.convolution.default, X),
    "conv without bias": (
        lambda: sequence(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        aten.convolution.default,
        X,
    ),
    "conv1d": (lambda: sequence(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), aten.convolution.default, (2, 4, 9)),
    "conv3d": (lambda: sequence(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)), aten.convolution.default, (1, 4, 5, 5, 5)),
    "grouped": (lambda: sequence(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), aten.convolution.default, X),
    "depthwise": (lambda: sequence(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), aten.convolution.default, X),
    "strided": (
        lambda: sequence(nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2), nn.BatchNorm2d(6)),
        aten.convolution.default,
        X,
    ),
    "transposed": (lambda: sequence(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)), aten.convolution.default, X),
    "transposed in groups": (
        lambda: sequence(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)),
        aten.convolution.default,
        X,
    ),
    "transposed without bias": (
        lambda: sequence(nn.ConvTranspose2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8)),
        aten.convolution.default,
        X,
    ),
    "linear": (lambda: sequence(nn.Linear(4, 6), nn.BatchNorm1d(6)), aten.linear.default, (5, 4)),
    "linear without bias": (
        lambda: sequence(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)),
        aten.linear.default,
        (5, 4),
    ),
    "without affine": (
        lambda: unaffine(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False))),
        aten.convolution.default,
        X,
    ),
}


@pytest.mark.parametrize("name", MELTING)
def test_a_batch_norm_melts_into_its_layer(name: str) -> None:
    make, op, shape = MELTING[name]
    model, x = make(), torch.randn(shape)
    module = passed(model, x, fold_batch_norm)
    assert calls(module) == [op]
    assert_computes(module, model, x)


def test_two_norms_in_a_row() -> None:
    model, x = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)), torch.randn(X)
    module = passed(model, x, fold_batch_norm)
    assert calls(module)[0] is aten.convolution.default
    assert BATCH_NORM not in calls(module)
    assert_computes(module, model, x)


def test_the_layer_keeps_the_dtype_of_half_precision() -> None:
    model, x = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).half(), torch.randn(X).half()
    module = passed(model, x, fold_batch_norm)
    assert calls(module) == [aten.convolution.default]
    assert_computes(module, model, x, rtol=1e-2, atol=1e-2)


def test_the_models_own_weights_are_not_touched() -> None:
    model = sequence(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    before = copy.deepcopy(model.state_dict())
    passed(model, torch.randn(X), fold_batch_norm)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


# Where a norm must not melt into its layer ---------------------------------------------------------------------


class OutputUsedTwice(nn.Module):
    """The convolution's own result is added to its normalized one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.norm(x) + x


class OutputReturned(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> Any:
        x = self.conv(x)
        return self.norm(x), x


class TwoNorms(nn.Module):
    """Two norms of one result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.one(x) * self.two(x)


class LinearNormAdd(nn.Module):
    """A linear layer's result beside its normalized one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return self.norm(x) + x


class NormFirst(nn.Module):
    """A norm with no layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


class NormAfterRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.relu(self.conv(x)))


class LinearOfThreeDimensions(nn.Module):
    """The norm's channels are dimension 1, the linear layer's the last."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


class LinearOfEqualSizes(LinearOfThreeDimensions):
    """The same with equal sizes, which do not tell the dimensions apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)


APART: dict[str, tuple[type[nn.Module], Any, tuple[int, ...]]] = {
    "output used twice": (OutputUsedTwice, aten.convolution.default, X),
    "output returned": (OutputReturned, aten.convolution.default, X),
    "two norms of one result": (TwoNorms, aten.convolution.default, X),
    "linear, norm and add": (LinearNormAdd, aten.linear.default, (5, 4)),
    "norm first": (NormFirst, aten.convolution.default, X),
    "norm after relu": (NormAfterRelu, aten.convolution.default, X),
    "linear of three dimensions": (LinearOfThreeDimensions, aten.linear.default, (2, 5, 4)),
    "linear of equal sizes": (LinearOfEqualSizes, aten.linear.default, (2, 5, 4)),
}


@pytest.mark.parametrize("name", APART)
def test_a_norm_that_may_not_melt_becomes_a_product_and_a_sum(name: str) -> None:
    make, op, shape = APART[name]
    model, x = lively(make()), torch.randn(shape)
    original = next(m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))).weight
    module = passed(model, x, fold_batch_norm)
    assert BATCH_NORM not in calls(module)
    assert aten.mul.Tensor in calls(module)
    assert aten.add.Tensor in calls(module)
    weight = getattr(module, str(call(module, op).args[1].target))
    assert torch.equal(weight, original), "the layer's weight is not its own to change"
    assert_computes(module, model, x)


class SharedWeight(nn.Module):
    """One convolution called twice, with a norm for each call."""

    def __init__(self, shared_bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=shared_bias)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.conv(torch.relu(self.one(self.conv(x)))))


class SharedWithoutNorm(SharedWeight):
    """Only one of the two calls has a norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(self.one(self.conv(x))))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("make", [SharedWeight, SharedWithoutNorm])
def test_calls_that_share_a_weight_get_weights_of_their_own(make: type[SharedWeight], bias: bool) -> None:
    model, x = lively(make(bias)), torch.randn(X)
    module = passed(model, x, fold_batch_norm)
    assert calls(module).count(aten.convolution.default) == 2
    assert BATCH_NORM not in calls(module)
    weights = [value for value in constants(module) if value.dim() == 4]
    assert len(weights) == 2
    assert not torch.equal(*weights)
    assert_computes(module, model, x)


def test_batch_statistics_of_the_call_itself_are_left_alone() -> None:
    """`track_running_stats=False` normalizes by the statistics of the batch, which no constant can replace."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)).eval()
    x = torch.randn(X)
    module = passed(model, x, fold_batch_norm)
    assert aten.convolution.default in calls(module)
    assert len(calls(module)) > 1
    assert_computes(module, model, x)


def test_weights_that_are_computed_are_folded_first() -> None:
    """A weight norm computes the weight from constants; after folding it is one."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6))
    x = torch.randn(X)
    module = passed(lively(model), x, fold_constants, fold_batch_norm)
    assert calls(module) == [aten.convolution.default]
    assert_computes(module, model, x)
