"""Subgraphs for TensorRT, proposed by PyTorch's own partitioner from each node's `why_not`."""

from __future__ import annotations

import dataclasses
import logging
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions

from torchtrt_bridge.lower import why_not
from torchtrt_bridge.options import Options

aten = torch.ops.aten
SUBGRAPH_PREFIX = "trt_"

# Operators that move or rename data: an engine of nothing else is never worth its launch.
_MOVES = {
    "_to_copy", "_unsafe_view", "alias", "clone", "detach", "expand", "permute", "reshape", "select", "slice",
    "split", "split_with_sizes", "squeeze", "sym_size", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A node that stays in PyTorch, and why."""

    node: fx.Node
    reason: str


@dataclasses.dataclass
class Partition:
    """The graph, with each subgraph for TensorRT as a submodule `trt_0`, `trt_1`, ..., and what stayed outside."""

    module: fx.GraphModule
    subgraphs: dict[str, fx.GraphModule]
    nodes: dict[str, list[str]]
    rejections: list[Rejection]


def partition(module: fx.GraphModule, options: Options) -> Partition:
    """Fuse what TensorRT can run into submodules of `module`, which is changed."""
    _give_each_user_its_own(module)
    reasons = {node: reason for node in module.graph.nodes if (reason := _reason(node, options))}
    support = _Support(reasons)
    partitioner = CapabilityBasedPartitioner(module, support, allows_single_node_partition=True)
    groups = []
    for proposal in partitioner.propose_partitions():
        nodes = _without_shared_views([n for n in module.graph.nodes if n in proposal.nodes])
        calls = [n for n in nodes if n.op == "call_function" and n.target is not operator.getitem]
        if not calls or all(_is_move(n) for n in calls):
            continue
        if len(calls) < options.min_subgraph_nodes:
            reason = f"a subgraph of {len(calls)} nodes; min_subgraph_nodes={options.min_subgraph_nodes}"
            reasons.update({n: reason for n in calls})
            continue
        groups.append([n.name for n in nodes])
    rejections = [Rejection(node, reason) for node, reason in reasons.items()]
    named = {f"{SUBGRAPH_PREFIX}{i}": names for i, names in enumerate(sorted(groups, key=_order(module)))}
    return Partition(module, fuse_named(module, named), named, rejections)


def fuse_named(module: fx.GraphModule, nodes: Mapping[str, Iterable[str]]) -> dict[str, fx.GraphModule]:
    """Move the nodes of each name's list into a submodule of that name."""
    by_name = {node.name: node for node in module.graph.nodes}
    groups = [{by_name[n]: None for n in names} for names in nodes.values()]
    with _quiet_fuser():
        fuse_by_partitions(module, groups, prefix=SUBGRAPH_PREFIX, always_return_tuple=True)
    module.recompile()
    return {name: module.get_submodule(name) for name in nodes}  # type: ignore[misc]


def _reason(node: fx.Node, options: Options) -> str | None:
    if node.op != "call_function" or node.target is operator.getitem:
        return None
    if str(node.target) in options.torch_ops:
        return "the option torch_ops names it"
    return why_not(node)


class _Support(OperatorSupportBase):
    """Constants and the items of a supported node's results go where their users go."""

    def __init__(self, reasons: Mapping[fx.Node, str]) -> None:
        self.reasons = reasons

    def is_node_supported(self, submodules: Mapping[str, torch.nn.Module], node: fx.Node) -> bool:
        if node.op == "get_attr":
            return not any(user in self.reasons or user.op == "output" for user in node.users)
        if node.op != "call_function":
            return False
        if node.target is operator.getitem:
            source = node.args[0]
            return isinstance(source, fx.Node) and self.is_node_supported(submodules, source)
        return node not in self.reasons


def _is_move(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or schema.name.split("::")[-1] in _MOVES


def _without_shared_views(nodes: list[fx.Node]) -> list[fx.Node]:
    """Leave to PyTorch the views whose memory the caller sees twice, so that they stay views.

    These are views of an input that leave the subgraph, and views of a result that leaves it too.
    """
    inside = set(nodes)
    for node in reversed(nodes):
        if _is_alias(node) and not any(user in inside for user in node.users):
            source = node.all_input_nodes[0]
            if source.op != "get_attr" and (_is_view_of_input(node, inside) or any(u not in inside for u in source.users)):
                inside.discard(node)
    return [node for node in nodes if node in inside]


def _is_view_of_input(node: fx.Node, inside: set[fx.Node]) -> bool:
    while node in inside and _is_alias(node):
        node = node.all_input_nodes[0]
    return node not in inside


def _is_alias(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    is_view = schema is not None and any(ret.alias_info is not None for ret in schema.returns)
    return is_view and bool(node.all_input_nodes)


def _give_each_user_its_own(module: fx.GraphModule) -> None:
    """Copy constants and sizes for each user, so that only tensors that are computed cross a subgraph's border."""
    for node in reversed(list(module.graph.nodes)):
        if node.op != "get_attr" and not _is_size(node):
            continue
        for user in list(node.users)[1:]:
            with module.graph.inserting_before(user):
                twin = module.graph.node_copy(node, lambda n: n)
            user.replace_input_with(node, twin)


def _is_size(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool))


def _order(module: fx.GraphModule) -> Any:
    position = {node.name: i for i, node in enumerate(module.graph.nodes)}
    return lambda names: min(position[name] for name in names)


class _quiet_fuser:  # noqa: N801
    """The partitioner logs at INFO what the report says better."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("torch.fx.passes")
        self.level = self.logger.level
        self.logger.setLevel(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        self.logger.setLevel(self.level)
