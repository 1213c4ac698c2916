"""Graph breaks: each has its reason and source line in the report and in the explanation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import torchtrt_bridge as trtb
from torchtrt_bridge.report.model import GraphBreak


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        if y.sum() > 1e9:
            y = y + 1
        return y.relu()


class BranchInLoop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            if x.sum() > 1e9:
                x = x + 1
        return x.relu()


class WithinModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), Branch(), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + 1


@torch.compiler.disable
def in_python(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class DisabledFirst(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = in_python(x)
        return y.relu()


CASES = [
    pytest.param(Branch, "Data-dependent branching", "if y.sum() > 1e9:", "this line", id="branch"),
    pytest.param(BranchInLoop, "Data-dependent branching", "if x.sum()", "all of forward, as the line", id="loop"),
    pytest.param(WithinModules, "Data-dependent branching", "if y.sum() > 1e9:", "this line", id="within"),
    pytest.param(DisabledFirst, "torch.compiler.disable", "y = in_python(x)", "this line", id="disabled"),
]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def by_name(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="torchtrt_bridge", options=options)


def check(breaks: list[GraphBreak], reason: str, line: str, in_torch: str) -> None:
    (found,) = breaks
    assert reason in found.reason
    assert found.source.startswith(f"{__file__}:")
    assert line in found.source
    assert found.in_torch.startswith(in_torch)


@pytest.mark.parametrize("compiler", [trtb.compile, by_name])
@pytest.mark.parametrize(("model", "reason", "line", "in_torch"), CASES)
def test_the_report_has_every_break(
    model: type[nn.Module], reason: str, line: str, in_torch: str, compiler: Callable[..., Any]
) -> None:
    original, x = model().eval(), torch.randn(2, 3, 4)
    fast = compiler(original, engine="reference")
    torch.testing.assert_close(fast(x), original(x))
    report = trtb.report(fast)
    check(report.breaks, reason, line, in_torch)
    assert not report.is_whole
    assert report.to_dict()["breaks"][0]["source"] == report.breaks[0].source


@pytest.mark.parametrize(("model", "reason", "line", "in_torch"), CASES)
def test_an_explanation_has_every_break(model: type[nn.Module], reason: str, line: str, in_torch: str) -> None:
    report = trtb.explain(model().eval(), torch.randn(2, 3, 4), engine="reference")
    check(report.breaks, reason, line, in_torch)
    assert "1 graph break" in str(report)
    assert "trtb.explain" not in str(report)


@pytest.mark.parametrize("compiler", [trtb.compile, by_name])
@pytest.mark.parametrize(("model", "reason", "line", "in_torch"), CASES)
def test_a_break_is_an_error_where_errors_are_asked_for(
    model: type[nn.Module], reason: str, line: str, in_torch: str, compiler: Callable[..., Any]
) -> None:
    fast = compiler(model().eval(), engine="reference", fallback="error")
    wanted = trtb.UnsupportedOpError if compiler is trtb.compile else torch._dynamo.exc.BackendCompilerFailed
    with pytest.raises(wanted, match="Graph break at ") as raised:
        fast(torch.randn(2, 3, 4))
    for part in (reason, line, in_torch):
        assert part in str(raised.value)


def test_a_function_that_was_left_to_python_before_is_so_for_the_next_model() -> None:
    x = torch.randn(2, 3, 4)
    first, second = (trtb.compile(BranchInLoop().eval(), engine="reference") for _ in range(2))
    first(x)
    second(x)
    assert trtb.report(second).breaks == trtb.report(first).breaks
    strict = trtb.compile(BranchInLoop().eval(), engine="reference", fallback="error")
    with pytest.raises(trtb.UnsupportedOpError, match="Data-dependent branching"):
        strict(x)


def test_breaks_belong_to_the_model_that_has_them() -> None:
    whole = trtb.compile(nn.Linear(4, 4).eval(), engine="reference")
    broken = trtb.compile(Branch().eval(), engine="reference")
    x = torch.randn(2, 4)
    whole(x)
    broken(x)
    assert trtb.report(whole).breaks == []
    assert trtb.report(whole).is_whole
    assert len(trtb.report(broken).breaks) == 1


def test_nodes_are_those_that_graphs_hold_where_there_are_breaks() -> None:
    fast = trtb.compile(Branch().eval(), engine="reference")
    fast(torch.randn(2, 4))
    first, *_ = str(trtb.report(fast)).splitlines()
    assert "captured nodes" in first
    assert first.endswith("2 graphs, 1 graph break")


def test_a_model_of_which_nothing_is_captured_is_said_to_run_in_pytorch() -> None:
    fast = trtb.compile(BranchInLoop().eval(), engine="reference")
    fast(torch.randn(2, 3, 4))
    text = str(trtb.report(fast))
    assert text.startswith("No engine: Dynamo captured no operator")
    assert "Data-dependent branching" in text


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2, dropout=0.1)])
def test_a_model_in_training_mode_is_told_to_leave_it_first(layer: nn.Module) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer.train()

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)

    model, x = Model(), torch.randn(3, 4)
    fast = trtb.compile(model, engine="reference")
    fast(x)
    for report in (trtb.report(fast), trtb.explain(model, x, engine="reference")):
        assert "call model.eval() first" in report.notes[0]
    assert "call model.eval()" not in str(trtb.explain(model.eval(), x, engine="reference"))


def test_a_mode_without_effect_is_no_note() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)).train()
    assert trtb.explain(model, torch.randn(2, 4), engine="reference").notes == []


class Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_a_function_that_dynamo_compiles_no_more_is_said_to_be() -> None:
    x, limit = torch.rand(3), torch._dynamo.config.recompile_limit
    for number in range(limit):
        trtb.compile(Doubled(), engine="reference", cache_dir="", tf32=bool(number % 2))(x)
    fast = trtb.compile(Doubled(), engine="reference")
    assert torch.equal(fast(x), x * 2)
    (found,) = trtb.report(fast).breaks
    assert "recompile_limit" in found.reason
    assert "torch.compiler.reset()" in found.reason
    assert found.in_torch == "all of forward"
    with pytest.raises(trtb.UnsupportedOpError, match="recompile_limit"):
        trtb.compile(Doubled(), engine="reference", fallback="error")(x)
    torch.compiler.reset()
    fast = trtb.compile(Doubled(), engine="reference", fallback="error")
    fast(x)
    assert trtb.report(fast).is_whole


def test_errors_are_those_of_the_package() -> None:
    x = torch.rand(3, 3)
    for model in (Branch(), nn.Sequential(nn.Linear(3, 3), Determinant())):
        with pytest.raises(trtb.UnsupportedOpError) as caught:
            trtb.compile(model.eval(), engine="reference", fallback="error")(x)
        assert caught.value.__suppress_context__


class Determinant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.det(x)
