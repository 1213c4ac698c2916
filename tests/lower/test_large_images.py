"""What is written in another form for its size: first convolutions, means over large images, and large GELUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.networks import assert_computes, network_of
from torchtrt_bridge.lower.network import Network
from torchtrt_bridge.reference.registry import class_name
from torchtrt_bridge.trt import library as libraries

HALF = torch.float16


def layers(network: Network, kind: str) -> list[Any]:
    """Return the layers of a kind, with the attributes of their own class."""
    found = [network.definition.get_layer(index) for index in range(network.layers)]
    found = [layer for layer in found if layer.type.name == kind]
    for layer in found:
        layer.__class__ = getattr(libraries.choose("reference").trt, class_name(kind))
    return found


def convolution(dtype: torch.dtype, x: torch.Tensor, *args: Any, **options: Any) -> tuple[Network, nn.Module]:
    torch.manual_seed(0)
    model = nn.Conv2d(*args, **options).eval().to(dtype)
    return network_of(model, x), model


@pytest.mark.parametrize("height", [32, 33])
@pytest.mark.parametrize("width", [40, 41])
@pytest.mark.parametrize(("kernel", "padding"), [(7, 3), (7, 0), (7, 1), (5, 2), (5, 0), (6, 2), (6, 0), (11, 5)])
def test_a_first_convolution_reads_pixels_of_two_by_two(height: int, width: int, kernel: int, padding: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=HALF)
    network, model = convolution(HALF, x, 3, 8, kernel, stride=2, padding=padding)
    (layer,) = layers(network, "CONVOLUTION")
    assert layer.get_input(0).shape[1] == 16
    assert tuple(layer.kernel_size_nd) == (-(-kernel // 2),) * 2
    assert tuple(layer.stride_nd) == (1, 1)
    assert_computes(network, model, x, 2e-3)


@pytest.mark.parametrize(
    ("dtype", "args", "options"),
    [
        (torch.float32, (3, 8, 7), {"stride": 2}),
        (HALF, (3, 8, 7), {"stride": 1}),
        (HALF, (3, 8, 7), {"stride": (2, 1)}),
        (HALF, (3, 8, 3), {"stride": 2}),
        (HALF, (8, 8, 7), {"stride": 2}),
        (HALF, (3, 3, 7), {"stride": 2, "groups": 3}),
        (HALF, (3, 8, 7), {"stride": 2, "dilation": 2}),
    ],
)
def test_other_convolutions_are_written_as_they_are(dtype: torch.dtype, args: Any, options: Any) -> None:
    x = torch.randn(2, args[0], 32, 32, dtype=dtype)
    network, model = convolution(dtype, x, *args, **options)
    (layer,) = layers(network, "CONVOLUTION")
    assert tuple(layer.kernel_size_nd) == (args[2],) * 2
    assert_computes(network, model, x, 1e-5 if dtype == torch.float32 else 2e-3)


MEANS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pooled": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3)),
    "mean that keeps": lambda x: x.mean((-1, -2), keepdim=True),
}


class Called(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x.abs())


@pytest.mark.parametrize("form", MEANS)
@pytest.mark.parametrize(
    ("shape", "windows"),
    [
        ((30, 32, 56, 56), [(8, 8), (7, 7)]),
        ((30, 2048, 7, 7), [(7, 7)]),
        ((30, 480, 14, 15), [(7, 5), (2, 3)]),
        ((60, 300, 13, 13), [(13, 13)]),
    ],
)
def test_means_of_large_images_are_pooled(form: str, shape: tuple[int, ...], windows: list[tuple[int, int]]) -> None:
    x, model = torch.rand(shape, dtype=HALF) + 1, Called(MEANS[form])
    network = network_of(model, x)
    assert [tuple(layer.window_size_nd) for layer in layers(network, "POOLING")] == windows
    assert layers(network, "REDUCE") == []
    assert_computes(network, model, x, 2e-3)


@pytest.mark.parametrize(
    ("shape", "dtype", "form"),
    [
        ((2, 32, 56, 56), HALF, "pooled"),
        ((30, 32, 56, 56), torch.float32, "pooled"),
        ((30, 32, 56, 56), torch.float32, "mean"),
    ],
)
def test_means_of_small_images_are_reductions(shape: tuple[int, ...], dtype: torch.dtype, form: str) -> None:
    network = network_of(Called(MEANS[form]), torch.rand(shape, dtype=dtype))
    assert layers(network, "POOLING") == []
    assert len(layers(network, "REDUCE")) == 1


def test_a_mean_over_other_dimensions_is_a_reduction() -> None:
    network = network_of(Called(lambda x: x.mean((1, 2))), torch.rand(30, 32, 56, 56, dtype=HALF))
    assert layers(network, "POOLING") == []


class Gelu(nn.Module):
    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2048)
        self.gelu = nn.GELU(approximate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gelu(self.layer(x))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(
    ("shape", "dtype", "is_apart"),
    [
        ((8, 64, 16), HALF, True),
        ((512, 16), HALF, True),
        ((512, 16), torch.bfloat16, True),
        ((4, 64, 16), HALF, False),
        ((512, 16), torch.float32, False),
        ((2, 4, 64, 16), HALF, False),
    ],
)
def test_a_large_gelu_is_apart_from_its_linear_layer(
    shape: tuple[int, ...], dtype: torch.dtype, is_apart: bool, approximate: str
) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(shape).to(dtype), Gelu(approximate).eval().to(dtype)
    network = network_of(model, x)
    (layer,) = [layer for layer in layers(network, "ACTIVATION") if "gelu" in layer.name]
    assert len(layer.get_input(0).shape) == len(shape) + is_apart
    assert_computes(network, model, x, 1e-5 if dtype == torch.float32 else 2e-2)
