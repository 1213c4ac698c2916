"""Every converter, from the op table: lowered whole, built by TensorRT, computed by the reference interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.lower.batch import Batch, parameters
from tests.lower.case import Point, Rejected
from tests.lower.lowering import Results, assert_right, lower_batch, reasons_of
from tests.lower.table import CASES, ONE_MORE, POINTS, REJECTED, batches_of_points, batches_of_rejected
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.lower import CONVERTERS
from torchtrt_bridge.options import Options
from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.trt import library as libraries


@pytest.mark.parametrize(("batch", "index"), parameters(batches_of_points(), ONE_MORE))
def test_case(batch: Batch[Point], index: int) -> None:
    assert_right(batch.items[index], batch.compute(index, interpreted))


@pytest.mark.parametrize(("batch", "index"), parameters(batches_of_rejected()))
def test_rejected(batch: Batch[Rejected], index: int) -> None:
    case, reasons = batch.items[index], batch.compute(index, reasons_of)
    assert reasons, f"{case.op} is not in the graph"
    assert any(case.reason in reason for reason in reasons), reasons


def interpreted(points: Sequence[Point]) -> list[Results]:
    """Build one network for all of `points`, and return what the interpreter computes with it, for each of them."""
    library = libraries.load("tensorrt_rtx")
    lowered = lower_batch(points, library)
    interpreter = NetworkInterpreter(library.trt, lowered.network.definition, lowered.network.constants)
    assert engine_from_network(lowered.network, library, Options(targets=("sm_89",)))
    return lowered.results(points, lambda tensors: interpreter(*tensors))


def test_every_converter_has_a_case() -> None:
    covered = {case.op for case in CASES}
    missing = [str(op) for op in CONVERTERS if hasattr(op, "_schema") and op not in covered]
    assert missing == []


def test_each_case_has_a_name_of_its_own() -> None:
    ids = [point.id for point in POINTS]
    assert len(ids) == len(set(ids))


def test_every_converter_has_all_kinds_of_points_in_each_run() -> None:
    """What `--full` adds is one more of a kind: static or dynamic, fp32 or fp16."""
    kinds: dict[bool, set[Any]] = {True: set(), False: set()}
    for point in POINTS:
        kinds[point.id in ONE_MORE].add((point.case.op, point.dynamic, point.dtype))
    assert kinds[True] <= kinds[False]


def test_every_why_not_has_a_rejecting_case() -> None:
    covered = {case.op for case in REJECTED}
    missing = [str(c.op) for c in CONVERTERS.values() if c.why_not is not None and c.op not in covered]
    assert missing == []
