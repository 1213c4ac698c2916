"""Every converter, from the op table: lowered whole, built by TensorRT, computed by the reference interpreter."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.compare import assert_matches
from tests.lower.case import TRACED, Case, Point, Rejected
from tests.lower.lowering import capture, flat_tensors, in_float64, lower
from tests.lower.table import CASES, POINTS, REJECTED
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.lower import CONVERTERS, why_not
from torchtrt_bridge.options import Options
from torchtrt_bridge.reference import NetworkInterpreter
from torchtrt_bridge.trt import library as libraries


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.id)
def test_case(point: Point) -> None:
    library = libraries.load("tensorrt_rtx")
    lowered = lower(point, library)
    interpreter = NetworkInterpreter(library.trt, lowered.network.definition, lowered.network.constants)
    assert engine_from_network(lowered.network, library, Options(targets=("sm_89",)))
    for inputs in map(point.make_inputs, point.sizes):
        with torch.no_grad():
            expected = flat_tensors(lowered.model(*inputs))
            results = lowered.outputs(lambda tensors: interpreter(*tensors), inputs)
            tolerance = point.case.tolerance.get(point.dtype)
            assert_matches(results, expected, functools.partial(in_float64, lowered.model, inputs), tolerance)


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: case.id)
def test_rejected(case: Rejected) -> None:
    made = Case(case.op, case.call, case.inputs)
    shapes = made.dynamic_shapes(torch.float32) if case.dynamic else None
    graph = capture(made.make_inputs(TRACED, torch.float32), made.module(torch.float32), shapes)
    nodes = [node for node in graph.module.graph.nodes if node.target is case.op]
    assert nodes, f"{case.op} is not in the graph"
    reasons = [why_not(node) or "" for node in nodes]
    assert any(case.reason in reason for reason in reasons), reasons


def test_every_converter_has_a_case() -> None:
    covered = {case.op for case in CASES}
    missing = [str(op) for op in CONVERTERS if hasattr(op, "_schema") and op not in covered]
    assert missing == []


def test_every_why_not_has_a_rejecting_case() -> None:
    covered = {case.op for case in REJECTED}
    missing = [str(c.op) for c in CONVERTERS.values() if c.why_not is not None and c.op not in covered]
    assert missing == []
