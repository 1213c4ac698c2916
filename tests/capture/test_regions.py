"""Regions of a model that Dynamo marks in its graph, and inputs that are views: all of the graph is captured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchtrt_bridge as trtb
from tests.entry.reference import TwoLayers, assert_same, compiled

on_cpu = torch.autocast("cpu", dtype=torch.bfloat16)


def cast_behind(model: TwoLayers, x: torch.Tensor) -> Any:
    with on_cpu:
        y = model.inner(x)
    return y.float().exp().tanh()


def cast_to_the_input(model: TwoLayers, x: torch.Tensor) -> Any:
    with on_cpu:
        y = model.inner(x)
    return (y * 2).to(x.dtype).exp()


def region_within_a_region(model: TwoLayers, x: torch.Tensor) -> Any:
    with on_cpu:
        y = model.inner(x)
        with torch.autocast("cpu", enabled=False):
            z = model.inner(y.float())
        y = model.inner(z)
    return y.float().tanh() + z


def half_outside(model: TwoLayers, x: torch.Tensor) -> Any:
    with on_cpu:
        return model.inner(x)


@pytest.mark.parametrize("function", [cast_behind, cast_to_the_input, region_within_a_region, half_outside])
def test_regions_of_autocast(function: Callable[..., Any]) -> None:
    model, x = TwoLayers(function).eval(), torch.randn(3, 8)
    fast = compiled(model)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)  # an ulp of bfloat16 is 8e-3
    report = trtb.report(fast)
    (engine,) = report.engines
    assert report.notes == []
    assert {"bfloat16", "float32"} <= set(engine.dtypes)


def one(model: TwoLayers, x: torch.Tensor) -> Any:
    return checkpoint(lambda a: model.inner(a).sin(), x, use_reentrant=False).exp()


def reentrant(model: TwoLayers, x: torch.Tensor) -> Any:
    return checkpoint(lambda a: model.inner(a).sin(), x, use_reentrant=True).exp()


def several_results(model: TwoLayers, x: torch.Tensor) -> Any:
    def block(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model.inner(a).sin(), nn.functional.dropout(b, 0.1, model.training) * a

    first, second = checkpoint(block, x, x * 2, use_reentrant=False)
    return checkpoint(model.inner, first, use_reentrant=False).exp() + second


@pytest.mark.parametrize("function", [one, reentrant, several_results])
def test_checkpoints(function: Callable[..., Any]) -> None:
    model, x = TwoLayers(function).eval(), torch.randn(3, 8)
    fast = compiled(model)
    with torch.no_grad():
        for _ in range(2):
            assert_same(fast(x), model(x))
    report = trtb.report(fast)
    assert report.notes == report.in_torch == []
    assert len(report.engines) == 1


# Inputs that are views ---------------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[int], torch.Tensor]] = {
    "beginning": lambda n: torch.randn(3, 20, 8)[:, :n],
    "end": lambda n: torch.randn(3, 20, 8)[:, 20 - n :],
    "transposed": lambda n: torch.randn(n, 3, 8).transpose(0, 1),
    "every second": lambda n: torch.randn(3, 2 * n, 8)[:, ::2],
    "of a larger one each time": lambda n: torch.randn(3, n + 5, 8)[:, :n],
}


@pytest.mark.first(3)
@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_views_of_changing_size(dynamic: bool | None, make: Callable[[int], torch.Tensor]) -> None:
    model = TwoLayers(lambda model, x: model.inner(x).exp().reshape(x.shape[0], -1)).eval()
    fast = compiled(model, dynamic=dynamic)
    with torch.no_grad():
        for size in (5, 7, 7, 9, 9, 12):
            x = make(size)
            assert_same(fast(x), model(x))
    report = trtb.report(fast)
    assert report.notes == []
    assert len(report.engines) == report.graphs == (1 if dynamic else 2)


def test_a_view_as_an_example_of_export() -> None:
    model = TwoLayers(lambda model, x: model.inner(x).exp()).eval()
    x = torch.randn(3, 20, 8)[:, :5]
    program = trtb.export(copy.deepcopy(model), x, engine="reference")
    assert_same(program(x), model(x))


def test_a_written_view_is_written() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x.sigmoid() * 2

    whole, expected = torch.zeros(3, 20), torch.zeros(3, 20)
    fast = compiled(model)
    for size in (5, 7, 9):
        assert_same(fast(whole[:, :size]), model(expected[:, :size]))
    torch.testing.assert_close(whole, expected)
