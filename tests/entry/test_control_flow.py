"""Operators that take graphs, as `torch.cond`, stay in PyTorch with their branches, between engines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

import torchtrt_bridge as trtb
from tests.entry.reference import TwoLayers
from torchtrt_bridge.lower.registry import TAKES_GRAPHS


def cond(model: TwoLayers, x: torch.Tensor) -> Any:
    result = torch.cond(x.mean() > 0.5, lambda a: model.inner(a).sin(), lambda a: a.cos() * 2, (x,))
    return result.exp().tanh()


def while_loop(model: TwoLayers, x: torch.Tensor) -> Any:
    def step(count: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return count + 1, model.inner(value).tanh()

    start = torch.tensor(0)
    return torch._higher_order_ops.while_loop(lambda count, _: count < 3, step, (start, x))[1].exp().tanh()


def scan(model: TwoLayers, x: torch.Tensor) -> Any:
    def step(carry: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return carry + value, (carry * value).sin()

    carry, results = torch._higher_order_ops.scan(step, x.new_zeros(8), x, dim=0)
    return results.exp().tanh() + carry


def mapped(model: TwoLayers, x: torch.Tensor) -> Any:
    return torch._higher_order_ops.map(lambda row: model.inner(row).sin(), x).exp().tanh()


def flexible_attention(model: TwoLayers, x: torch.Tensor) -> Any:
    heads = x.view(1, 1, -1, 8)

    def nearer_is_better(score: torch.Tensor, batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        return score + (query - key)

    return flex_attention(heads, heads, heads, score_mod=nearer_is_better).exp().tanh()  # type: ignore[union-attr]


OPERATORS = {
    cond: "cond",
    while_loop: "while_loop",
    scan: "scan",
    mapped: "map_impl",
    flexible_attention: "flex_attention",
}
each_operator = pytest.mark.parametrize("function", OPERATORS, ids=lambda function: function.__name__)
INPUTS = (torch.randn(16, 8), -3 * torch.randn(16, 8), torch.full((16, 8), -9.0))


def assert_between_engines(report: trtb.CompileReport, function: Callable[..., Any]) -> None:
    first, second = report.engines
    assert "aten.linear.default" in first.nodes
    assert "aten.tanh.default" in second.nodes
    assert {entry.op: entry.reason for entry in report.in_torch} == {OPERATORS[function]: TAKES_GRAPHS}
    assert report.notes == []


@torch.no_grad()
def assert_same(actual: Any, expected: Any, bound: float = 1e-5) -> None:
    for x in INPUTS:
        torch.testing.assert_close(actual(x), expected(x), rtol=bound, atol=bound)


@each_operator
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.full)])
def test_exported(precision: str, function: Callable[..., Any]) -> None:
    model = TwoLayers(function).eval()
    program = trtb.export(model, INPUTS[0], engine="reference", precision=precision)  # type: ignore[arg-type]
    assert_same(program, model, {"fp32": 1e-5, "fp16": 2e-2}[precision])
    assert_between_engines(program.report, function)


@each_operator
def test_compiled(function: Callable[..., Any]) -> None:
    model = TwoLayers(function).eval()
    fast = trtb.compile(copy.deepcopy(model), engine="reference")
    assert_same(fast, model)
    assert_same(fast, model)
    assert_between_engines(trtb.report(fast), function)


@pytest.mark.full
@each_operator
def test_explained(function: Callable[..., Any]) -> None:
    assert_between_engines(trtb.explain(TwoLayers(function).eval(), INPUTS[0], engine="reference"), function)


@pytest.mark.parametrize("function", [f for f in OPERATORS if f is not flexible_attention], ids=lambda f: f.__name__)
def test_saved_and_loaded(function: Callable[..., Any], tmp_path: Path) -> None:
    model = TwoLayers(function).eval()
    trtb.save(trtb.export(model, INPUTS[0], engine="reference"), tmp_path / "model.pt2")
    program = trtb.load(tmp_path / "model.pt2", device="cpu")
    assert_same(program, model)
    assert_between_engines(program.report, function)
