"""Rescaling: results that it keeps equal, errors that it lowers, and the channels that it scales."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as trtb
from tests.quantize.nets import (
    CHAINS,
    Apply,
    aten,
    calibrated,
    calls,
    loader,
    outlying,
    quantized,
    relative_error,
    rewrite_of,
    uneven,
)
from torchtrt_bridge.quantize.config import Settings
from torchtrt_bridge.quantize.qdq import Choice
from torchtrt_bridge.quantize.rescaling import _smoothing_factors, can_correct, equalize, smooth, smoothable
from torchtrt_bridge.quantize.search import AccuracyMeter


@pytest.mark.parametrize("chain", CHAINS)
def test_equalized_channels_compute_the_same(chain: str) -> None:
    data = loader(4, 3, 8, 8)
    model = CHAINS[chain]()
    rewrite = rewrite_of(calibrated(model, data))
    equalize(rewrite)
    (factors,) = rewrite.factors.values()
    assert factors.max() / factors.min() > 4
    expected = model(data[0])
    torch.testing.assert_close(rewrite.finish()(data[0])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(  # a ReLU6 bounds its channels
    "chain", ["pointwise", *[pytest.param(c, marks=pytest.mark.full) for c in ("depthwise", "grouped", "pooled")]]
)
def test_equalized_channels_are_quantized_better(chain: str) -> None:
    ratios = []
    for _ in range(8):  # in a single network the channels that matter may happen to be those with the largest range
        meter = AccuracyMeter(calibrated(CHAINS[chain](), loader(4, 3, 8, 8)), Settings())
        ratios.append(meter.error(Choice("absmax", equalize=True)) / meter.error(Choice("absmax")))
    assert statistics.median(ratios) < 0.9


BLOCKED = {
    "another reader": Apply(
        lambda m, x: m.two(F.relu(m.one(x))) + F.relu(m.one(x)).sum(), one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 4, 1)
    ),
    "a function between": Apply(
        lambda m, x: m.two(torch.sigmoid(m.one(x))), one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 4, 1)
    ),
    "a residual": Apply(
        lambda m, x: (lambda y: m.two(y) + y)(F.relu(m.one(x))), one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(8, 8, 1)
    ),
    "a shared weight": Apply(
        lambda m, x: m.one(F.relu(m.one(x))), one=nn.Conv2d(3, 3, 1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", BLOCKED)
def test_channels_are_not_scaled_where_that_would_show(reason: str) -> None:
    rewrite = rewrite_of(calibrated(BLOCKED[reason], loader(2, 3, 4, 4)))
    equalize(rewrite)
    assert rewrite.factors == {}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_computes_the_same(alpha: float) -> None:
    linears = {"q": nn.Linear(16, 8), "k": nn.Linear(16, 8)}
    model, data = Apply(lambda m, x: m.q(x) * m.k(x), **linears).eval(), outlying()
    rewrite = rewrite_of(calibrated(model, data))
    smooth(rewrite, alpha)
    assert len(rewrite.factors) == 1
    torch.testing.assert_close(rewrite.finish()(data[0])[0], model(data[0]), rtol=1e-3, atol=1e-3)


def test_smoothing_goes_into_a_layer_norm_that_only_linears_read() -> None:
    model = Apply(lambda m, x: m.one(m.norm(x)), norm=nn.LayerNorm(16), one=nn.Linear(16, 8)).eval()
    with torch.no_grad():
        model.norm.weight[:2] = 40.0
    data = loader(4, 16)
    rewrite = rewrite_of(calibrated(model, data))
    smooth(rewrite, 0.8)
    found = rewrite.finish()
    assert not calls(found, aten.mul.Tensor)
    torch.testing.assert_close(found(data[0])[0], model(data[0]), rtol=1e-3, atol=1e-3)


def test_smoothing_is_a_product_where_the_layer_norm_has_other_readers() -> None:
    model = Apply(lambda m, x: (lambda y: m.one(y) + y)(m.norm(x)), norm=nn.LayerNorm(16), one=nn.Linear(16, 16))
    rewrite = rewrite_of(calibrated(model, loader(4, 16)))
    smooth(rewrite, 0.8)
    assert len(calls(rewrite.finish(), aten.mul.Tensor)) == 1


def test_shared_weights_are_not_smoothed() -> None:
    model = Apply(lambda m, x: m.one(torch.tanh(m.one(x))), one=nn.Linear(16, 16))
    rewrite = rewrite_of(calibrated(model, outlying()))
    smooth(rewrite, 0.8)
    assert rewrite.factors == {}


def test_smoothing_helps_against_outlying_channels() -> None:
    model, data = nn.Sequential(nn.Linear(16, 16), nn.Tanh()), outlying()
    plain = quantized(model, data)
    smoothed = quantized(model, data, smooth=0.5)
    assert relative_error(smoothed(data[0]), model(data[0])) < 0.7 * relative_error(plain(data[0]), model(data[0]))


@pytest.mark.first(3)
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(32, 8), (64, 32)),
        (nn.Linear(32, 8, bias=False), (64, 32)),
        (nn.Conv2d(8, 8, 1), (16, 8, 4, 4)),
        (nn.Conv2d(8, 8, 1, groups=4), (16, 8, 4, 4)),
    ],
    ids=["linear", "no bias", "convolution", "grouped"],
)
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_corrected_biases_take_out_the_mean_error(model: nn.Module, shape: tuple[int, ...], dtype: str) -> None:
    if dtype == "int4" and not isinstance(model, nn.Linear):
        dtype = "fp8"
    data = [x + 3 for x in loader(*shape)]
    options: dict[str, Any] = {"dtype": dtype, "block_size": 16}
    plain, corrected = (quantized(model, data, correct_bias=c, **options) for c in (False, True))
    dims = [dim for dim in range(len(shape)) if dim != 1]

    def mean_error(found: nn.Module) -> float:
        with torch.no_grad():
            return float(torch.cat([found(x) - model(x) for x in data]).mean(dims).abs().max())

    assert mean_error(corrected) < 0.3 * mean_error(plain)


def test_channels_of_small_peaks_share_a_divisor() -> None:
    peaks = torch.tensor([0.1, 1.0, 1.0, 1.0, 9.0])
    factors = _smoothing_factors(peaks, torch.ones(5), 1.0)
    assert factors.tolist() == pytest.approx([1.0, 1.0, 1.0, 1.0, 9.0])


# Dimensions of channels -----------------------------------------------------------------------------------------------

Shape = tuple[int, ...]


def chain(one: nn.Module, between: Callable[[torch.Tensor], torch.Tensor], two: nn.Module) -> Apply:
    """Two layers with something between, and channels of the first that differ a thousandfold."""
    return Apply(lambda m, x: m.two(between(m.one(x))), one=uneven(one), two=two)


# Eight channels, and eight values beside them, so that factors along the wrong dimension would fit.
FITTING: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "one dimension": (lambda: chain(nn.Conv1d(3, 8, 1), F.relu6, nn.Conv1d(8, 4, 1)), (4, 3, 8)),
    "three dimensions": (lambda: chain(nn.Conv3d(3, 8, 1), F.relu6, nn.Conv3d(8, 4, 1)), (4, 3, 8, 8, 8)),
    "grouped": (lambda: chain(nn.Conv1d(4, 8, 1, groups=2), F.relu6, nn.Conv1d(8, 8, 1, groups=4)), (4, 4, 8)),
    "linear of 2": (lambda: chain(nn.Linear(3, 8), F.relu6, nn.Linear(8, 4)), (4, 3)),
    "linear of 3": (lambda: chain(nn.Linear(3, 8), F.relu6, nn.Linear(8, 4)), (4, 8, 3)),
    "linear of 4": (lambda: chain(nn.Linear(3, 8), F.relu6, nn.Linear(8, 4)), (4, 8, 8, 3)),
    "linear of 5": (lambda: chain(nn.Linear(3, 8), F.relu6, nn.Linear(8, 4)), (4, 2, 8, 8, 3)),
}


@pytest.mark.parametrize("name", FITTING)
def test_channels_of_any_rank_are_equalized(name: str) -> None:
    make, shape = FITTING[name]
    model, data = make(), [x * 3 for x in loader(*shape)]
    rewrite = rewrite_of(calibrated(model, data))
    equalize(rewrite)
    (factors,) = rewrite.factors.values()
    assert factors.max() / factors.min() > 2
    torch.testing.assert_close(rewrite.finish()(data[0])[0], model(data[0]), rtol=1e-4, atol=1e-5)


def both(one: nn.Module, two: nn.Module) -> Apply:
    """A convolution and a linear layer that read the result of one layer."""
    return Apply(
        lambda m, x: (lambda y: m.two(y) + m.three(y))(F.relu(m.one(x))),
        one=uneven(one),
        two=two,
        three=nn.Linear(8, 8),
    )


def swapped(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).transpose(1, 2)


MISFITTING: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "a convolution, then a linear layer": (
        lambda: chain(nn.Conv1d(3, 8, 1), F.relu, nn.Linear(8, 4)), (4, 3, 8)
    ),
    "a linear layer, then a convolution": (
        lambda: chain(nn.Linear(3, 8), F.relu, nn.Conv1d(8, 4, 1)), (4, 8, 3)
    ),
    "a linear layer, then one in two dimensions": (
        lambda: chain(nn.Linear(3, 8), F.relu6, nn.Conv2d(8, 4, 1)), (4, 8, 8, 3)
    ),
    "both after a convolution": (lambda: both(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 1)), (4, 3, 8)),
    "both after a linear layer": (lambda: both(nn.Linear(3, 8), nn.Conv1d(8, 8, 1)), (4, 8, 3)),
    "a pool over the channels of a linear layer": (
        lambda: chain(nn.Linear(3, 8), lambda x: F.max_pool2d(x, 3, 1, 1), nn.Linear(8, 4)), (4, 2, 8, 3)
    ),
    "a pool over the channels of a convolution": (
        lambda: chain(nn.Conv1d(3, 8, 1), lambda x: F.avg_pool2d(x, 3, 1, 1), nn.Conv1d(8, 4, 1)), (4, 3, 8)
    ),
    "a transposed convolution before": (
        lambda: chain(nn.ConvTranspose1d(8, 8, 1), F.relu, nn.Conv1d(8, 4, 1)), (4, 8, 8)
    ),
    "a transposed convolution behind": (
        lambda: chain(nn.Conv1d(8, 8, 1), F.relu, nn.ConvTranspose1d(8, 4, 1)), (4, 8, 8)
    ),
    "swapped dimensions": (lambda: chain(nn.Conv1d(3, 8, 1), swapped, nn.Linear(8, 4)), (4, 3, 8)),
    "flattened": (lambda: chain(nn.Conv1d(3, 8, 1), lambda x: x.flatten(1), nn.Linear(64, 4)), (4, 3, 8)),
    "no batch": (lambda: chain(nn.Conv1d(3, 8, 1), F.relu6, nn.Conv1d(8, 4, 1)), (3, 8)),
    "a weight of one dimension": (
        lambda: Apply(
            lambda m, x: m.two(F.relu(F.linear(x, m.one.weight[0]))), one=nn.Linear(8, 8), two=nn.Linear(8, 4)
        ), (4, 8, 8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITTING)
def test_channels_of_two_dimensions_are_not_mixed_up(name: str) -> None:
    make, shape = MISFITTING[name]
    model, data = make(), loader(*shape)
    rewrite = rewrite_of(calibrated(model, data))
    equalize(rewrite)
    assert rewrite.factors == {}
    smooth(rewrite, 0.8)
    torch.testing.assert_close(rewrite.finish()(data[0])[0], model(data[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.first(6)
@pytest.mark.parametrize("name", [*FITTING, *MISFITTING])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="auto", marks=pytest.mark.full),
        pytest.param({"equalize": True, "smooth": 0.5, "correct_bias": True}, id="all"),
    ],
)
def test_any_rank_is_quantized(name: str, options: dict[str, Any]) -> None:
    make, shape = (FITTING | MISFITTING)[name]
    model, data = make().eval(), loader(*shape)
    found = trtb.quantize(model, data, max_error=None, table=False, **options)
    assert relative_error(found(data[0]), model(data[0])) < 0.05


# Of each, whether the convolution, and the linear layer, is corrected: statistics are of the first one's channels.
PAIRS: dict[str, tuple[Callable[..., Any], tuple[bool, bool]]] = {
    "the convolution first": (lambda m, x: m.conv(x) + m.linear(x), (True, False)),
    "the linear layer first": (lambda m, x: m.linear(x) + m.conv(x), (False, True)),
}


@pytest.mark.parametrize("first", PAIRS)
def test_means_are_those_of_the_layers_own_channels(first: str) -> None:
    function, expected = PAIRS[first]
    model = Apply(function, conv=nn.Conv1d(8, 8, 3, padding=1), linear=nn.Linear(8, 8))
    rewrite = rewrite_of(calibrated(model, loader(4, 8, 8)))
    layers = {layer.name: layer for layer in rewrite.layers}
    assert (can_correct(rewrite, layers["conv"]), can_correct(rewrite, layers["linear"])) == expected


def test_a_linear_layer_is_not_smoothed_by_the_peaks_of_a_convolutions_channels() -> None:
    model = Apply(lambda m, x: m.conv(x) + m.linear(x), conv=nn.Conv1d(8, 8, 1), linear=nn.Linear(8, 8))
    assert smoothable(rewrite_of(calibrated(model, loader(4, 8, 8)), float_layers={"conv"})) == {}


def attend(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Attention whose values are its input itself."""
    return torch.softmax(m.q(x) @ m.k(x).transpose(1, 2) / 10, -1) @ x


# A smoothed activation that another layer reads as its second operand, and what smoothing may do to the error.
SECOND: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "a product": (lambda: Apply(attend, q=nn.Linear(16, 16), k=nn.Linear(16, 16)), (4, 8, 16)),
    "a residual": (
        lambda: Apply(
            lambda m, x: m.conv(torch.sigmoid(m.linear(x))) + x, conv=nn.Conv1d(8, 8, 1), linear=nn.Linear(16, 16)
        ), (4, 8, 16)
    ),
    "a product with a layer norm's result": (
        lambda: Apply(
            lambda m, x: attend(m, m.norm(x)), q=nn.Linear(16, 16), k=nn.Linear(16, 16), norm=nn.LayerNorm(16)
        ), (4, 8, 16)
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", SECOND)
@pytest.mark.parametrize("largest", [1.0, 90.0])
def test_smoothing_clips_no_other_reader_of_the_activation(reader: str, largest: float) -> None:
    make, shape = SECOND[reader]
    model, data = make().eval(), [x * torch.tensor([largest] + [1.0] * 15) for x in loader(*shape)]
    plain = quantized(model, data, attention=True)
    smoothed = quantized(model, data, attention=True, smooth=0.5)
    errors = [relative_error(found(data[0]), model(data[0])) for found in (plain, smoothed)]
    assert errors[1] < 1.5 * errors[0]


TWICE: dict[str, Callable[[nn.Module, torch.Tensor], torch.Tensor]] = {
    "linear": lambda m, x: F.linear(x, m.two.weight, x),
    "addmm": lambda m, x: torch.addmm(x, x, m.two.weight),
}


@pytest.mark.parametrize("twice", TWICE)
@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(8)], ids=["layer", "norm"])
@pytest.mark.parametrize("tool", [equalize, lambda rewrite: smooth(rewrite, 0.5)], ids=["equalize", "smooth"])
def test_a_bias_that_is_the_input_itself_stays_as_it_is(
    twice: str, norm: nn.Module, tool: Callable[[Any], None]
) -> None:
    function = lambda m, x: TWICE[twice](m, m.norm(F.relu(m.one(x))))  # noqa: E731
    model, data = Apply(function, one=uneven(nn.Linear(8, 8)), norm=norm, two=nn.Linear(8, 8)), loader(8, 8)
    rewrite = rewrite_of(calibrated(model, data))
    tool(rewrite)
    torch.testing.assert_close(rewrite.finish()(data[0])[0], model(data[0]), rtol=1e-3, atol=1e-4)
