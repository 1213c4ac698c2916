"""Patch convolutions: convolutions whose windows do not overlap become linear layers, if these are faster."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchtrt_bridge as trtb
from tests.passes.case import assert_computes, aten, calls, passed
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.passes.transposes import drop_transposes

Function = Callable[[torch.Tensor], object]

IMAGE = (2, 3, 16, 24)


def convolution(*args: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(*args, **options).eval().requires_grad_(False)  # type: ignore[arg-type]


PATCH = convolution(3, 6, 4, stride=4)
OBLONG = convolution(3, 6, (2, 8), stride=(2, 8), bias=False)
GATE = convolution(3, 6, 1)
NORM = nn.LayerNorm(6).eval().requires_grad_(False)

CHANGED: dict[str, Function] = {
    "as rows": lambda x: PATCH(x).flatten(2).transpose(1, 2) * 2,
    "as pixels": lambda x: NORM(PATCH(x).permute(0, 2, 3, 1)),
    "as an image": lambda x: PATCH(x).relu(),
    "returned": PATCH,
    "oblong, without bias": lambda x: OBLONG(x).flatten(2).transpose(1, 2) * 2,
    "one patch": lambda x: PATCH(x[:, :, :4, :4]) * 2,
    "channels last": lambda x: PATCH(x.to(memory_format=torch.channels_last)) * 2,
    "of what is moved": lambda x: PATCH(x.reshape(2, 16, 24, 3).permute(0, 3, 1, 2)) * 2,
    "a gate": lambda x: x[:, :1] * GATE(x.mean((2, 3), keepdim=True)).sigmoid(),
}

LEFT: dict[str, Function] = {
    "overlapping windows": lambda x: F.conv2d(x, PATCH.weight, stride=2),
    "gaps between windows": lambda x: F.conv2d(x, GATE.weight, stride=2),
    "a margin": lambda x: F.conv2d(x, PATCH.weight, stride=4, padding=4),
    "windows with holes": lambda x: F.conv2d(x, OBLONG.weight[..., :4], stride=(2, 4), dilation=(1, 2)),
    "a rest that is cut off": lambda x: PATCH(x[:, :, :15]),
    "groups": lambda x: F.conv2d(x, PATCH.weight[:, :1], stride=4, groups=3),
    "transposed": lambda x: F.conv_transpose2d(x, PATCH.weight.transpose(0, 1), stride=4),
    "weights that are computed": lambda x: F.conv2d(x, x[:1, :, :4, :4], stride=4),
    "aligned channels": lambda x: F.conv2d(x.reshape(2, 8, 12, 12), torch.ones(4, 8, 2, 2), stride=2),
    "single pixels of an image": GATE,
}


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(IMAGE)


@pytest.mark.parametrize("name", CHANGED)
def test_patches_are_rows_of_a_linear_layer(name: str, x: torch.Tensor) -> None:
    module = passed(CHANGED[name], x, drop_transposes)
    assert aten.convolution.default not in calls(module)
    assert calls(module).count(aten.linear.default) == 1
    assert_computes(module, CHANGED[name], x)


@pytest.mark.parametrize("name", LEFT)
def test_other_convolutions_stay(name: str, x: torch.Tensor) -> None:
    module = passed(LEFT[name], x, drop_transposes)
    assert calls(module).count(aten.convolution.default) == 1
    assert_computes(module, LEFT[name], x)


@pytest.mark.parametrize("name", ["as rows", "as pixels"])
def test_results_stay_where_their_reader_wants_them(name: str, x: torch.Tensor) -> None:
    """One permutation, of the pixels; none of the results."""
    assert calls(passed(CHANGED[name], x, drop_transposes)).count(aten.permute.default) == 1


@pytest.mark.parametrize("dims", [1, 3])
def test_lines_and_volumes(dims: int) -> None:
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 5, 2, stride=2).eval().requires_grad_(False)
    x = torch.randn(2, 2, *[6, 4, 8][:dims])
    module = passed(layer, x, drop_transposes)
    assert aten.convolution.default not in calls(module)
    assert_computes(module, layer, x)


def test_strides_of_results_are_those_of_the_convolution(x: torch.Tensor) -> None:
    (result,) = passed(PATCH, x, drop_transposes)(x)
    assert result.stride() == PATCH(x).stride()


def test_what_the_user_keeps_in_pytorch_is_left_alone(x: torch.Tensor) -> None:
    module = passed(PATCH, x, drop_transposes, torch_ops=("aten.convolution.default",))
    assert calls(module) == [aten.convolution.default]


def test_a_batch_norm_is_folded_first(x: torch.Tensor) -> None:
    model = nn.Sequential(PATCH, nn.BatchNorm2d(6)).eval().requires_grad_(False)
    model[1].running_mean.uniform_()
    module = passed(model, x, normalize)
    assert_computes(module, model, x)
    assert set(calls(module)) >= {aten.linear.default}
    assert aten.mul.Tensor not in calls(module)


def test_a_batch_whose_size_is_dynamic(x: torch.Tensor) -> None:
    model = nn.Sequential(PATCH, nn.ReLU(), nn.AdaptiveAvgPool2d(1), convolution(6, 4, 1), nn.Flatten()).eval()
    program = trtb.export(model, x, dynamic_shapes=({0: torch.export.Dim("n", min=1, max=8)},), engine="reference")
    for n in (1, 5):
        images = torch.randn(n, *IMAGE[1:])
        torch.testing.assert_close(program(images), model(images), rtol=1e-5, atol=1e-5)
    assert program.report.torch_nodes == 0
