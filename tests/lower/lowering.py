"""From a case to its network, and from the network's results to those of the case."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from tests.lower.case import TRACED, Point
from torchtrt_bridge.capture.export import CapturedGraph, export_program, graph_from_program
from torchtrt_bridge.capture.graph_json import graph_from_text, text_from_graph
from torchtrt_bridge.lower.network import Network, network_from_graph
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition import extract_subgraphs, propose
from torchtrt_bridge.passes import normalize
from torchtrt_bridge.trt.library import TensorRTLibrary

Compute = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


@dataclasses.dataclass
class Lowered:
    """A case whose graph is one network.

    model: the case in PyTorch; graph: the same, with a submodule `trt_0` for the network.
    """

    model: nn.Module
    graph: torch.fx.GraphModule
    network: Network

    def outputs(self, compute: Compute, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
        """The results of the case when `compute` stands for the network."""
        self.graph.set_submodule("trt_0", _Computed(compute))
        return flat_tensors(self.graph(*inputs))


class _Computed(nn.Module):
    def __init__(self, compute: Compute) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.compute(inputs)


def capture(inputs: tuple[Any, ...], module: nn.Module, dynamic: Any) -> CapturedGraph:
    spec = None if dynamic is None else (dynamic,)  # `Called.forward` takes one tuple of arguments
    return graph_from_program(export_program(module, inputs, dynamic_shapes=spec))


def lower(point: Point, library: TensorRTLibrary, can: Callable[[str], bool] = lambda capability: True) -> Lowered:
    """Capture, normalize, partition and lower a case; nothing may be left in PyTorch.

    can: what TensorRT is said to build.
    """
    case = point.case
    model = case.module(point.dtype)
    shapes = case.dynamic_shapes(point.dtype) if point.dynamic else None
    with torch.backends.opt_einsum.flags(enabled=False):  # where it is installed, it makes sizes static
        captured = capture(point.make_inputs(TRACED), model, shapes)
    assert bool(captured.ranges) == point.dynamic, "no dimension stayed dynamic"
    if not point.dynamic and point.dtype is torch.float32:
        captured = recalled(captured)
    graph = normalize(captured.module, Options())
    proposal = propose(graph, Options())
    assert [f"{r.node.target}: {r.reason}" for r in proposal.rejections] == []
    assert list(proposal.subgraphs) == ["trt_0"]
    subgraph = extract_subgraphs(graph, proposal.subgraphs)["trt_0"]
    operators = {node.target for node in subgraph.graph.nodes if node.op == "call_function"}
    assert case.op in operators, f"{case.op} is not in the graph: {operators}"
    network = network_from_graph(subgraph, library, dict.fromkeys(captured.ranges, (1, _most(point))), can)
    return Lowered(model, graph, network)


def recalled(captured: CapturedGraph) -> CapturedGraph:
    """The same graph as a later process reads it from the cache."""
    weights = {origin: captured.module.get_buffer(name) for name, origin in captured.origins.items()}
    return graph_from_text(text_from_graph(captured, weights), weights)


def _most(point: Point) -> int:
    """What dynamic sizes may reach: 16, or the largest of the inputs."""
    inputs = [value for n in point.sizes for value in point.make_inputs(n) if isinstance(value, torch.Tensor)]
    return max([16, *(size for value in inputs for size in value.shape)])


def flat_tensors(result: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]


def in_float64(module: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """What `module` gives when it and its inputs are float64."""
    wide = [v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in inputs]
    return flat_tensors(copy.deepcopy(module).double()(*wide))
