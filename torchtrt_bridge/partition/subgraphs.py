"""Subgraphs for TensorRT, proposed by PyTorch's own partitioner from each node's `why_not`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch
from torch import fx
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase
from torch.fx.passes.utils.fuser_utils import fuse_by_partitions

from torchtrt_bridge.graph.edit import copy_graph
from torchtrt_bridge.graph.nodes import gpu_of_node, operator_name, returns_view
from torchtrt_bridge.graph.packed import own, why_packed
from torchtrt_bridge.graph.torch_internals import is_operator
from torchtrt_bridge.graph.views import AT_BORDER
from torchtrt_bridge.lower import ConverterProvider, only_moves_data, why_not
from torchtrt_bridge.options import Options
from torchtrt_bridge.partition.constraints import (
    memory_that_pytorch_reads,
    numbers_of_run_time,
    tensors_on_the_cpu,
)
from torchtrt_bridge.report.facts import counted

aten = torch.ops.aten
SUBGRAPH_PREFIX = "trt_"

# Names, in the `meta` of a node, its place in the graph that its subgraph was cut from.
PLACE = "place"


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A node that stays in PyTorch, with the reason."""

    node: fx.Node
    reason: str


@dataclasses.dataclass
class Proposal:
    """A partition of the graph.

    subgraphs: the names of the nodes of `trt_0`, `trt_1`, ..., which go to TensorRT.
    rejections: the nodes that do not.
    """

    subgraphs: dict[str, list[str]]
    rejections: list[Rejection]


def propose(module: fx.GraphModule, options: Options, provider: ConverterProvider | None = None) -> Proposal:
    """Group the nodes that TensorRT can run into acyclic subgraphs, as large as they can be.

    provider: decides about operators that have no converter here.
    Changes `module`: each user of a constant or a size gets a copy of its own.
    """
    _give_each_user_its_own(module)
    reasons = {node: reason for node in module.graph.nodes if (reason := _reason(node, options, provider))}
    reasons |= numbers_of_run_time(module, reasons.keys()) | _on_the_cpu(module)
    found = memory_that_pytorch_reads(module, reasons.keys()) | reasons
    reasons = {node: found[node] for node in module.graph.nodes if node in found}
    groups = []
    for calls in _groups_on_each_gpu(module, reasons):
        count = sum(node.target is not operator.getitem for node in calls)
        if count < options.min_subgraph_nodes:
            reason = f"its subgraph has {counted(count, 'node')}, and min_subgraph_nodes={options.min_subgraph_nodes}"
            reasons.update((node, reason) for node in calls if node.target is not operator.getitem)
            continue
        groups.append([node.name for node in calls])
    rejections = [Rejection(node, reason) for node, reason in reasons.items() if not _computes_nothing(node)]
    return Proposal({f"{SUBGRAPH_PREFIX}{i}": names for i, names in enumerate(groups)}, rejections)


def _on_the_cpu(module: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the calls with tensors on the CPU; of packed sequences, whose lengths are there always, with what else."""
    reasons = tensors_on_the_cpu(module)
    return {node: why_packed(node) or reason for node, reason in reasons.items()}


def _groups_on_each_gpu(module: fx.GraphModule, reasons: Mapping[fx.Node, str]) -> list[list[fx.Node]]:
    """Return the groups of calls for engines, each of which runs on one GPU.

    The groups of one GPU are cut out of a copy before those of the next are sought, so that all of them together have
    no circle.
    """
    gpus = list(dict.fromkeys(gpu for node in module.graph.nodes if (gpu := gpu_of_node(node)) is not None))
    if len(gpus) < 2:
        return groups_of(module, _Support(reasons))
    order = {node.name: index for index, node in enumerate(module.graph.nodes)}
    nodes = {node.name: node for node in module.graph.nodes}
    rejected = {node.name for node in reasons}
    copied = fx.GraphModule(module, copy_graph(module.graph))
    groups = []
    for index, gpu in enumerate(gpus):
        elsewhere = {
            node: "" for node in copied.graph.nodes if node.name in rejected or gpu_of_node(node) not in (None, gpu)
        }
        found = [[node.name for node in calls] for calls in groups_of(copied, _Support(elsewhere))]
        prefix = f"gpu_{index}_"
        extract_subgraphs(copied, {f"{prefix}{i}": names for i, names in enumerate(found)}, prefix)
        groups += found
    return [[nodes[name] for name in names] for names in sorted(groups, key=lambda names: order[names[0]])]


def groups_of(module: fx.GraphModule, support: OperatorSupportBase) -> list[list[fx.Node]]:
    """Return the calls that `support` takes, in the largest acyclic groups, without groups that only move data."""
    partitioner = CapabilityBasedPartitioner(module, support, allows_single_node_partition=True)
    with _quiet(logging.getLogger("torch.fx.passes")):
        proposals = partitioner.propose_partitions()
    groups = []
    for proposal in proposals:
        nodes = _without_shared_views([node for node in module.graph.nodes if node in proposal.nodes])
        calls = [node for node in nodes if node.op == "call_function"]
        if not all(node.target is operator.getitem or _is_move(node) for node in calls):
            groups.append(calls)
    position = {node: index for index, node in enumerate(module.graph.nodes)}
    return sorted(groups, key=lambda calls: position[calls[0]])


def extract_subgraphs(
    module: fx.GraphModule, subgraphs: Mapping[str, Iterable[str]], prefix: str = SUBGRAPH_PREFIX
) -> dict[str, fx.GraphModule]:
    """Move the calls of each subgraph, and the constants that only they read, into a submodule of its name.

    subgraphs: names of nodes for each name of a subgraph, which is `prefix` and a count from 0.
    """
    _drop_unread_items(module)
    _give_each_user_its_own(module)
    by_name = {node.name: node for node in module.graph.nodes}
    for place, node in enumerate(module.graph.nodes):
        node.meta[PLACE] = place
    groups = [_with_constants([by_name[name] for name in names]) for names in subgraphs.values()]
    fuse_by_partitions(module, groups, prefix=prefix, always_return_tuple=True)
    _drop_unread_constants(module)
    module.recompile()
    found = {name: cast(fx.GraphModule, module.get_submodule(name)) for name in subgraphs}
    for subgraph in found.values():
        _restore_order(subgraph)
    return found


def _restore_order(subgraph: fx.GraphModule) -> None:
    """Put the nodes of a subgraph in the order of the graph: PyTorch 2.11 returns them breadth first."""
    nodes = [node for node in subgraph.graph.nodes if node.op not in ("placeholder", "output")]
    for node in sorted(nodes, key=lambda node: node.meta[PLACE]):
        subgraph.graph.output_node().prepend(node)
    subgraph.recompile()


def _drop_unread_items(module: fx.GraphModule) -> None:
    """Drop the items of results that nothing reads: outside their subgraph they would make it return them all.

    `torch.export.load` gives each call that has several results an item for each of these.
    """
    for node in module.graph.find_nodes(op="call_function", target=operator.getitem):
        if not node.users:
            module.graph.erase_node(node)


def _drop_unread_constants(module: fx.GraphModule) -> None:
    """Drop the constants that only subgraphs read now: these hold them themselves."""
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in module.named_buffers(recurse=False, remove_duplicate=False) if name not in read]:
        delattr(module, name)


def _with_constants(calls: list[fx.Node]) -> dict[fx.Node, int | None]:
    inside = set(calls)
    inside |= {n for call in calls for n in call.all_input_nodes if n.op == "get_attr"}
    return {node: None for node in calls[0].graph.nodes if node in inside}


def _reason(node: fx.Node, options: Options, provider: ConverterProvider | None) -> str | None:
    if node.op != "call_function" or node.target is operator.getitem or node.meta.get(AT_BORDER):
        return None
    if str(node.target) in options.torch_ops:
        return "the option torch_ops names it"
    return why_not(node, provider)


class _Support(OperatorSupportBase):
    """Support of a node by its reason; constants and items of results go where their users go."""

    def __init__(self, reasons: Mapping[fx.Node, str]) -> None:
        self.reasons = reasons

    def is_node_supported(self, submodules: Mapping[str, torch.nn.Module], node: fx.Node) -> bool:
        if node.meta.get(AT_BORDER):
            return False
        if node.op == "get_attr":
            return not any(user in self.reasons or user.op == "output" for user in node.users)
        if node.op != "call_function":
            return False
        if node.target is operator.getitem:
            source = node.args[0]
            return isinstance(source, fx.Node) and self.is_node_supported(submodules, source)
        return node not in self.reasons


def _is_move(node: fx.Node) -> bool:
    """Return whether a call computes no elements: an engine of nothing else is never worth its launch."""
    return not operator_name(node.target) or _is_size(node) or only_moves_data(node)


def _without_shared_views(nodes: list[fx.Node]) -> list[fx.Node]:
    """Leave views to PyTorch whose memory the caller sees twice, so that they stay views, and sizes that are results.

    Such a view is a result of the subgraph, and one of an input, or of another result.
    """
    inside = set(nodes)
    for node in reversed(nodes):
        if any(user in inside for user in node.users):
            continue
        if _is_size(node):
            inside.discard(node)
        elif _is_alias(node):
            source = node.all_input_nodes[0]
            if source.op != "get_attr" and (
                _is_view_of_input(node, inside) or any(u not in inside for u in source.users)
            ):
                inside.discard(node)
    return [node for node in nodes if node in inside]


def _is_view_of_input(node: fx.Node, inside: set[fx.Node]) -> bool:
    while node in inside and _is_alias(node):
        node = node.all_input_nodes[0]
    return node not in inside


def _is_alias(node: fx.Node) -> bool:
    return returns_view(node) and bool(node.all_input_nodes)


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
    """Return whether a call computes a number from sizes and numbers, and not from the elements of a tensor."""
    value = node.meta.get("val")
    is_number = isinstance(value, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool))
    return node.op == "call_function" and is_number and not _reads_elements(node)


def _computes_nothing(node: fx.Node) -> bool:
    """Return whether a call gives a size, or checks one, as a length is: neither is the work of an engine."""
    return _is_size(node) or node.target in (aten._assert_scalar.default, own.batch_sizes.default)


def _reads_elements(node: fx.Node) -> bool:
    return is_operator(node.target) and torch.Tag.data_dependent_output in node.target.tags


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silence the partitioner, which logs at INFO what the report says better."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
