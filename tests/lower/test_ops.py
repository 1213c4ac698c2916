"""Every converter, from the op table: lowered whole, built by TensorRT, computed by the reference interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.compare import assert_matches
from tests.lower.case import (
    HALF,
    OTHER,
    TRACED,
    Case,
    Rejected,
    captured,
    flat_tensors,
    in_float64,
    network_inputs,
    operators,
    partitioned,
)
from tests.lower.table import CASES, REJECTED
from torchtrt_bridge.engine import flavour
from torchtrt_bridge.engine.build import engine_from_network
from torchtrt_bridge.lower import CONVERTERS, why_not
from torchtrt_bridge.lower.network import network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.reference import NetworkInterpreter

OPTIONS = Options(engine="tensorrt_rtx", cache_dir="", targets=("sm_89",))


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["fp32", "fp16"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case, dynamic: bool, dtype: torch.dtype) -> None:
    if dtype == HALF and not case.half:
        pytest.skip("the operator has no floating point arguments, or none in fp16")
    shapes = case.dynamic_shapes(dtype) if dynamic else None
    if dynamic and not any(shapes or ()):
        pytest.skip("the case has no dynamic dimension")
    module, inputs = case.module(dtype), case.make_inputs(TRACED, dtype)
    graph = captured(inputs, module, shapes)
    if dynamic:
        assert graph.ranges, "no dimension stayed dynamic"
    subgraphs, rejections = partitioned(graph, OPTIONS)
    assert [f"{r.node.target}: {r.reason}" for r in rejections] == []
    assert list(subgraphs) == ["trt_0"]
    subgraph = subgraphs["trt_0"]
    assert case.op in operators(subgraph), f"{case.op} is not in the graph: {operators(subgraph)}"
    network = network_from_graph(subgraph, flavour.load("tensorrt_rtx"), dict.fromkeys(graph.ranges, (1, 16)))
    run = NetworkInterpreter(flavour.load("tensorrt_rtx").trt, network.definition, network.constants)
    assert engine_from_network(network, flavour.load("tensorrt_rtx"), OPTIONS)
    for n in (TRACED, OTHER) if dynamic else (TRACED,):
        inputs = case.make_inputs(n, dtype)
        _check(case, module, inputs, run(*network_inputs(subgraph, graph, inputs)), dtype)


def _check(case: Case, module: Any, inputs: tuple[Any, ...], results: list[torch.Tensor], dtype: torch.dtype) -> None:
    with torch.no_grad():
        expected = flat_tensors(module(*inputs))
        assert_matches(results, expected, lambda: in_float64(module, inputs), case.tolerance.get(dtype))


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: case.id)
def test_rejected(case: Rejected) -> None:
    made = Case(case.op, case.call, case.inputs)
    shapes = made.dynamic_shapes(torch.float32) if case.dynamic else None
    graph = captured(made.make_inputs(TRACED, torch.float32), made.module(torch.float32), shapes)
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
