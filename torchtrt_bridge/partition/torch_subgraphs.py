"""Subgraphs that stay in PyTorch between engines, and that inductor can compile."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx
from torch.fx.passes.operator_support import OperatorSupportBase

from torchtrt_bridge.graph.nodes import is_random
from torchtrt_bridge.graph.torch_internals import is_operator, schema_of
from torchtrt_bridge.partition.subgraphs import groups_of

TORCH_SUBGRAPH_PREFIX = "torch_"


def propose_torch_subgraphs(module: fx.GraphModule) -> dict[str, list[str]]:
    """Group the calls that stay in PyTorch, in a graph whose engines were cut out; return the names of their nodes.

    Leaves out operators whose sizes are not static, and random ones, as inductor draws other numbers.
    """
    groups = groups_of(module, _Compilable())
    return {f"{TORCH_SUBGRAPH_PREFIX}{index}": [node.name for node in calls] for index, calls in enumerate(groups)}


class _Compilable(OperatorSupportBase):
    """Support of functional operators on tensors of static sizes."""

    def is_node_supported(self, submodules: Mapping[str, torch.nn.Module], node: fx.Node) -> bool:
        if node.op != "call_function":
            return False
        if node.target is operator.getitem:
            source = node.args[0]
            return isinstance(source, fx.Node) and self.is_node_supported(submodules, source)
        return _is_functional(node) and all(_is_static(n) for n in (node, *node.all_input_nodes))


def _is_functional(node: fx.Node) -> bool:
    op = node.target
    if not is_operator(op):
        return False
    may_be_random = torch.Tag.nondeterministic_seeded in op.tags or is_random(node)
    return not may_be_random and not schema_of(op).is_mutable


def _is_static(node: fx.Node) -> bool:
    """Return whether a node gives tensors of known sizes."""
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return all(isinstance(v, torch.Tensor) and all(isinstance(size, int) for size in v.shape) for v in values)
