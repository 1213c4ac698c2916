"""From cases to their network, and from the network's results to those of each case."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from tests.compare import assert_matches
from tests.lower.case import TRACED, Case, Point, Rejected
from tests.lower.networks import assert_names_differ
from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.capture.graph_json import graph_from_text, text_from_graph
from torchtrt_bridge.graph.nodes import reads_memory
from torchtrt_bridge.graph.shapes import expression_of
from torchtrt_bridge.lower import why_not
from torchtrt_bridge.lower.network import Network, network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import extract_subgraphs, propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.runtime.tolerance import compare
from torchtrt_bridge.trt.library import TensorRTLibrary

Compute = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]
Inputs = tuple[Any, ...]


@dataclasses.dataclass
class LoweredBatch:
    """Cases whose graph is one network.

    models: each case in PyTorch.
    graph: all of them, with a submodule `trt_0` for the network; it takes the inputs of all, and returns all results.
    """

    models: list[nn.Module]
    parts: list[Part]
    graph: fx.GraphModule
    network: Network

    def outputs(self, compute: Compute, inputs: Sequence[Inputs]) -> list[list[torch.Tensor]]:
        """Return the results of each case when `compute` stands for the network."""
        self.graph.set_submodule("trt_0", _Computed(compute))
        found = self.graph(*[value for values in inputs for value in values])
        return [flat_tensors(found[part.outputs]) for part in self.parts]

    def results(self, points: Sequence[Point], compute: Compute, calls: int = 1) -> list[Results]:
        """Return the results of each case for all sizes that it is compared with, `calls` times each."""
        sizes = [n for n in points[0].sizes for _ in range(calls)]
        with torch.no_grad():
            found = [self.outputs(compute, [point.make_inputs(n) for point in points]) for n in sizes]
        by_case = zip(*found, strict=True)
        return [
            Results(model, list(zip(sizes, own, strict=True))) for model, own in zip(self.models, by_case, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of one case.

    model: the case in PyTorch.
    calls: the size n of the inputs of each call, and its results.
    """

    model: nn.Module
    calls: list[tuple[int, list[torch.Tensor]]]


@dataclasses.dataclass
class Lowered:
    """One case whose graph is one network."""

    batch: LoweredBatch

    @property
    def model(self) -> nn.Module:
        return self.batch.models[0]

    @property
    def network(self) -> Network:
        return self.batch.network

    def outputs(self, compute: Compute, inputs: Inputs) -> list[torch.Tensor]:
        """Return the results of the case when `compute` stands for the network."""
        return self.batch.outputs(compute, [inputs])[0]


class _Computed(nn.Module):
    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.compute(inputs)


class Together(nn.Module):
    """Calls that have nothing to do with each other: takes a tuple of inputs for each, and returns a result of each."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, *inputs: Inputs) -> list[Any]:
        return [model(*values) for model, values in zip(self.models, inputs, strict=True)]


@dataclasses.dataclass(frozen=True)
class Part:
    """The places that one call has among the inputs and the results of a captured graph of several."""

    inputs: slice
    outputs: slice

    def nodes(self, graph: fx.Graph) -> list[fx.Node]:
        """Return all that the results of the call are computed from; nothing of another call may be among it."""
        found: set[fx.Node] = set()
        waiting = [value for value in graph.output_node().args[0][self.outputs] if isinstance(value, fx.Node)]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting.extend(node.all_input_nodes)
        placeholders = graph.find_nodes(op="placeholder")
        assert {node for node in found if node.op == "placeholder"} <= set(placeholders[self.inputs])
        return [node for node in graph.nodes if node in found]

    def symbols(self, graph: fx.Graph) -> set[Any]:
        """Return the symbols of the sizes of the call's inputs."""
        values = [node.meta["val"] for node in graph.find_nodes(op="placeholder")[self.inputs]]
        sizes = [expression_of(size) for value in values if isinstance(value, torch.Tensor) for size in value.shape]
        return {symbol for size in sizes if not isinstance(size, int) for symbol in size.free_symbols}


def capture(
    models: Sequence[nn.Module], inputs: Sequence[Inputs], dynamic: Sequence[Any] | None
) -> tuple[CapturedGraph, list[Part]]:
    """Capture several calls in one graph.

    dynamic: the dynamic dimensions of the inputs of each call; without it, all sizes are known.
    """
    spec = None if dynamic is None else (tuple(dynamic),)  # `Together.forward` takes one tuple of arguments
    with torch.backends.opt_einsum.flags(enabled=False):  # where it is installed, it makes sizes static
        program = export_program(Together(models), tuple(inputs), dynamic_shapes=spec)
    captured = graph_from_program(program)
    results = [result.num_leaves for result in program.call_spec.out_spec.children()]
    parts = [Part(*places) for places in zip(_slices(map(len, inputs)), _slices(results), strict=True)]
    _check_independent(captured.module.graph, parts)
    return captured, parts


def _slices(lengths: Any) -> list[slice]:
    slices, start = [], 0
    for length in lengths:
        slices.append(slice(start, start + length))
        start += length
    return slices


def _check_independent(graph: fx.Graph, parts: Sequence[Part]) -> None:
    """Check that no call of the graph shares a computation or a symbolic size with another."""
    for kind, found in (
        ("calls", [{n for n in part.nodes(graph) if n.op == "call_function"} for part in parts]),
        ("symbols", [part.symbols(graph) for part in parts]),
    ):
        assert len(set().union(*found)) == sum(map(len, found)), f"cases share {kind}"


def lower(point: Point, library: TensorRTLibrary, can: Callable[[str], bool] = lambda capability: True) -> Lowered:
    """Capture, normalize, partition and lower a case alone; nothing may be left in PyTorch.

    can: what TensorRT is said to build.
    """
    return Lowered(lower_batch([point], library, can))


def lower_batch(
    points: Sequence[Point], library: TensorRTLibrary, can: Callable[[str], bool] = lambda capability: True
) -> LoweredBatch:
    """Capture, normalize, partition and lower cases in one graph; nothing of any of them may be left in PyTorch.

    points: all static or all dynamic, and of one dtype.
    """
    dynamic, dtype = points[0].dynamic, points[0].dtype
    models = [point.case.module(dtype) for point in points]
    shapes = [point.case.dynamic_shapes(dtype) for point in points] if dynamic else None
    captured, parts = capture(models, [point.make_inputs(TRACED) for point in points], shapes)
    sizes = [part.symbols(captured.module.graph) for part in parts]
    for symbols in sizes:
        assert bool(symbols) == dynamic, "no dimension stayed dynamic"
    assert bool(captured.ranges) == dynamic
    if dtype is torch.float32 and not (dynamic and any(map(reads_memory, captured.module.graph.nodes))):
        captured = from_cache(captured)
    graph = normalize(captured.module, Options(), outputs=0)  # views among the results too
    proposal = propose(graph, Options())
    assert [f"{r.node.target}: {r.reason}" for r in proposal.rejections] == []
    assert list(proposal.subgraphs) == ["trt_0"]
    _check_independent(graph.graph, parts)
    for point, part in zip(points, parts, strict=True):
        _check_lowered(point, part, graph.graph, set(proposal.subgraphs["trt_0"]))
    subgraph = extract_subgraphs(graph, proposal.subgraphs)["trt_0"]
    ranges = dict.fromkeys(captured.ranges, (1, max(map(_most, points))))
    for point, symbols in zip(points, sizes, strict=True):
        ranges |= dict.fromkeys(symbols, (1, _most(point)))
    network = network_from_graph(subgraph, library, ranges, can)
    assert_names_differ(network)
    return LoweredBatch(models, parts, graph, network)


def _check_lowered(point: Point, part: Part, graph: fx.Graph, lowered: set[str]) -> None:
    """Check that the operator of a case is among the nodes for TensorRT; `Called` sees to it that one computes."""
    operators = {node.target for node in part.nodes(graph) if node.name in lowered}
    assert point.case.op in operators, f"{point.case.op} is not in the graph: {operators}"


def reasons_of(cases: Sequence[Rejected]) -> list[list[str]]:
    """Capture calls in one graph, and return for each why the converter of its operator declines it, node by node."""
    made = [Case(case.op, case.call, case.inputs) for case in cases]
    shapes = [case.dynamic_shapes(torch.float32) for case in made] if cases[0].dynamic else None
    inputs = [case.make_inputs(TRACED, torch.float32) for case in made]
    captured, parts = capture([case.module(torch.float32) for case in made], inputs, shapes)
    nodes = [part.nodes(captured.module.graph) for part in parts]
    return [[why_not(n) or "" for n in own if n.target is case.op] for case, own in zip(cases, nodes, strict=True)]


def from_cache(captured: CapturedGraph) -> CapturedGraph:
    """Return the graph as a later process reads it from the cache."""
    weights = {origin: captured.module.get_buffer(name) for name, origin in captured.origins.items()}
    return graph_from_text(text_from_graph(captured, weights), weights)


def _most(point: Point) -> int:
    """Return what dynamic sizes may reach: 16, or the largest of the inputs."""
    inputs = [value for n in point.sizes for value in point.make_inputs(n) if isinstance(value, torch.Tensor)]
    return max([16, *(size for value in inputs for size in value.shape)])


def assert_right(point: Point, results: Results, near: float = 0.0) -> None:
    """Compare the results of a case, for each of its sizes, with PyTorch's.

    near: the relative L2 distance that always passes.
    """
    assert list(dict.fromkeys(n for n, _ in results.calls)) == list(point.sizes)
    model, tolerance = results.model, point.case.tolerance.get(point.dtype)
    for n, found in results.calls:
        inputs = point.make_inputs(n)
        with torch.no_grad():
            expected = flat_tensors(model(*inputs))
            if near and compare(found, expected, near).problem is None:
                continue
            assert_matches(found, expected, functools.partial(in_float64, model, inputs), tolerance)


def flat_tensors(result: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]


def in_float64(module: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """Return what `module` gives when it and its inputs are float64."""
    wide = [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in inputs]
    return flat_tensors(copy.deepcopy(module).double()(*wide))
