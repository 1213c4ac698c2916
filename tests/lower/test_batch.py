"""Batches of the op table: a case in one passes and fails as it does alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.lower.batch import Batch, batches_of
from tests.lower.case import TRACED, Case, Point, Rejected
from tests.lower.lowering import Results, assert_right, capture, lower_batch, reasons_of
from torchtrt_bridge.lower import CONVERTERS
from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.trt import library as libraries

aten = torch.ops.aten
Convert = Callable[..., Any]


def rows(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 6),)


CASES = [
    Case(aten.relu.default, torch.relu, rows),
    Case(aten.sigmoid.default, torch.sigmoid, rows),
    Case(aten.tanh.default, torch.tanh, rows),
    Case(aten.linear.default, nn.Linear(6, 3), rows),
    Case(aten.cat.default, lambda x, y: torch.cat([x, y]), lambda n: (torch.randn(n, 6), torch.randn(n + 1, 6))),
]


def interpreted(points: Sequence[Point]) -> list[Results]:
    library = libraries.load("tensorrt_rtx")
    lowered = lower_batch(points, library)
    interpreter = NetworkInterpreter(library.trt, lowered.network.definition, lowered.network.constants)
    return lowered.results(points, lambda tensors: interpreter(*tensors))


def failures(cases: Sequence[Case], dynamic: bool) -> dict[str, str]:
    """Return the error of each case that fails, as the test of the op table raises it."""
    batch = Batch("planted", [Point(case, dynamic, torch.float32) for case in cases])
    found = {}
    for index, point in enumerate(batch.items):
        try:
            assert_right(point, batch.compute(index, interpreted))
        except Exception as error:
            found[point.case.id] = str(error)
    return found


def with_converter(op: Any, lower: Convert) -> Any:
    return dataclasses.replace(CONVERTERS[op], lower=lower)


def slightly_wrong(ctx: Any, x: Any) -> Any:
    """Compute twice what is asked for."""
    result = CONVERTERS[aten.neg.default].lower(ctx, x)
    return ctx.network.add_elementwise(result, result, ctx.trt.ElementWiseOperation.SUM).get_output(0)


def raising(ctx: Any, x: Any) -> Any:
    raise RuntimeError("planted")


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.full)], ids=["static", "dynamic"])
class TestMistakes:
    def test_there_are_none(self, dynamic: bool) -> None:
        assert failures(CASES, dynamic) == {}

    def test_a_wrong_result(self, dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(CONVERTERS, aten.sigmoid.default, with_converter(aten.sigmoid.default, slightly_wrong))
        found = failures(CASES, dynamic)
        assert list(found) == ["sigmoid.default"]
        assert "not close" in found["sigmoid.default"]

    @pytest.mark.filterwarnings("ignore:the cases of planted run alone")
    def test_an_error(self, dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(CONVERTERS, aten.tanh.default, with_converter(aten.tanh.default, raising))
        found = failures(CASES, dynamic)
        assert list(found) == ["tanh.default"]
        assert "planted" in found["tanh.default"]

    @pytest.mark.filterwarnings("ignore:the cases of planted run alone")
    def test_a_call_that_is_declined(self, dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        found = dataclasses.replace(CONVERTERS[aten.relu.default], why_not=lambda x: "planted")
        monkeypatch.setitem(CONVERTERS, aten.relu.default, found)
        assert list(failures(CASES, dynamic)) == ["relu.default"]


@pytest.mark.first(1)
@pytest.mark.filterwarnings("ignore:the cases of planted run alone")
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(aten.sin.default, torch.tanh, rows), "sin.default is not in the graph"),
        (Case(aten.sin.default, lambda x: (x.sin(), x)[1], rows), "sin.default is not in the graph"),
        (Case(aten.relu.default, lambda x: torch.linalg.det(x.relu() @ x.T), rows), "linalg_det"),
    ],
    ids=["another operator", "a result that is dropped", "a fallback"],
)
def test_a_case_that_shows_nothing(case: Case, reason: str) -> None:
    found = failures([*CASES, case], dynamic=False)
    assert list(found) == [case.id]
    assert reason in found[case.id]


@pytest.mark.filterwarnings("ignore:the cases of planted run alone")
def test_a_size_that_does_not_stay_dynamic() -> None:
    fixed = Case(aten.relu.default, lambda x: x.view(4, 6).relu(), rows, name="fixed")
    found = failures([*CASES, fixed], dynamic=True)
    assert list(found) == [fixed.id]
    assert "no dimension stayed dynamic" in found[fixed.id]


def test_sizes_of_cases_are_independent() -> None:
    """Equal sizes of one case may be one symbol; those of two cases never are."""
    added = Case(aten.add.Tensor, lambda x, y: x + y, lambda n: (torch.randn(n, 6), torch.randn(n, 6)))
    cases = [added, *CASES, added]
    inputs = [case.make_inputs(TRACED, torch.float32) for case in cases]
    shapes = [case.dynamic_shapes(torch.float32) for case in cases]
    captured, parts = capture([case.module(torch.float32) for case in cases], inputs, shapes)
    symbols = [part.symbols(captured.module.graph) for part in parts]
    assert [len(own) for own in symbols] == [1, 1, 1, 1, 1, 2, 1]
    assert len(set().union(*symbols)) == 8


def test_reasons_belong_to_their_call() -> None:
    """Two calls of one operator in one graph, of which the converter declines one."""
    op = aten.topk.default
    many = Rejected(op, lambda x: torch.topk(x, 4000), lambda n: (torch.randn(n, 5000),), "4000")
    few = Rejected(op, lambda x: torch.topk(x, 4), lambda n: (torch.randn(n, 5000),), "")
    first, second = reasons_of([many, few])
    assert "finding 4000 values" in first[0]
    assert second == [""]


def test_batches_hold_all_cases_of_a_kind_once() -> None:
    points = [Point(case, dynamic, torch.float32) for case in CASES * 15 for dynamic in (False, True)]
    batches = batches_of("planted", points, lambda point: point.dynamic)
    assert [len(batch.items) for batch in batches] == [32, 32, 11, 32, 32, 11]
    assert [point for batch in batches for point in batch.items] == sorted(points, key=lambda point: point.dynamic)
    assert len({batch.name for batch in batches}) == len(batches)
