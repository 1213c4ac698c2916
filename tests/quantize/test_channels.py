"""Channels: in which dimension they lie for each layer, and what is scaled along them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchtrt_bridge as trtb
from tests.quantize.nets import Apply, loader, quantized, relative_error
from tests.quantize.test_tools import calibrated, draft_of, uneven
from torchtrt_bridge.quantize.correct import can_correct
from torchtrt_bridge.quantize.equalize import equalize
from torchtrt_bridge.quantize.smooth import smooth, smoothable

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
    draft = draft_of(calibrated(model, data))
    equalize(draft)
    (factors,) = draft.factors.values()
    assert factors.max() / factors.min() > 2
    torch.testing.assert_close(draft.finished()(data[0])[0], model(data[0]), rtol=1e-4, atol=1e-5)


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
    draft = draft_of(calibrated(model, data))
    equalize(draft)
    assert draft.factors == {}
    smooth(draft, 0.8)
    torch.testing.assert_close(draft.finished()(data[0])[0], model(data[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*FITTING, *MISFITTING])
@pytest.mark.parametrize("options", [{}, {"equalize": True, "smooth": 0.5, "correct_bias": True}], ids=["auto", "all"])
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
    draft = draft_of(calibrated(model, loader(4, 8, 8)))
    layers = {layer.name: layer for layer in draft.layers}
    assert (can_correct(draft, layers["conv"]), can_correct(draft, layers["linear"])) == expected


def test_a_linear_layer_is_not_smoothed_by_the_peaks_of_a_convolutions_channels() -> None:
    model = Apply(lambda m, x: m.conv(x) + m.linear(x), conv=nn.Conv1d(8, 8, 1), linear=nn.Linear(8, 8))
    assert smoothable(draft_of(calibrated(model, loader(4, 8, 8)), kept={"conv"})) == {}


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
@pytest.mark.parametrize("tool", [equalize, lambda draft: smooth(draft, 0.5)], ids=["equalize", "smooth"])
def test_a_bias_that_is_the_input_itself_stays_as_it_is(
    twice: str, norm: nn.Module, tool: Callable[[Any], None]
) -> None:
    function = lambda m, x: TWICE[twice](m, m.norm(F.relu(m.one(x))))  # noqa: E731
    model, data = Apply(function, one=uneven(nn.Linear(8, 8)), norm=norm, two=nn.Linear(8, 8)), loader(8, 8)
    draft = draft_of(calibrated(model, data))
    tool(draft)
    torch.testing.assert_close(draft.finished()(data[0])[0], model(data[0]), rtol=1e-3, atol=1e-4)
