"""Calls that stay in PyTorch because of what surrounds them, though TensorRT has their operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator

import torch
from torch import fx

from torchtrt_bridge.graph.nodes import reads_memory, returns_view, tensors_of_node
from torchtrt_bridge.graph.torch_internals import is_contiguous_or_false, statically_known_true

# Memory that is read by offsets ------------------------------------------------------------------------------------


def memory_that_pytorch_reads(module: fx.GraphModule, in_pytorch: Collection[fx.Node]) -> dict[fx.Node, str]:
    """Return the calls whose results PyTorch lays out otherwise than an engine and reads by offsets, with the reason.

    An engine gives every result contiguous, whatever PyTorch would do.
    in_pytorch: the nodes that stay there for other reasons.
    """
    reasons: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and reads_memory(node):
            source = node.all_input_nodes[0]
            behind = _ancestors(source, lambda n: n in in_pytorch or _shares_memory(n))
            if not all(_is_plain(value) for value in behind):
                reason = f"{node.name} reads memory that an engine would lay out otherwise"
                reasons.update((n, reason) for n in _ancestors(source) if n.target is not operator.getitem)
    return reasons


def _ancestors(node: fx.Node, goes_behind: Callable[[fx.Node], bool] = lambda _: True) -> Iterator[fx.Node]:
    """Yield `node` and the calls that it is computed from, each once; of some calls, not what is behind them."""
    seen, waiting = set(), [node]
    while waiting:
        if (current := waiting.pop()) not in seen and current.op == "call_function":
            seen.add(current)
            yield current
            waiting += current.all_input_nodes if goes_behind(current) else []


def _shares_memory(node: fx.Node) -> bool:
    """Return whether a value lies in the memory of what it is computed from: a view, or one of several results."""
    return returns_view(node) or node.target is operator.getitem


def _is_plain(node: fx.Node) -> bool:
    """Return whether a tensor is contiguous and has its memory for itself; true of all that is no strided tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return True
    begins = statically_known_true(value.storage_offset() == 0)
    ends = statically_known_true(value.untyped_storage().nbytes() == value.numel() * value.element_size())
    return begins and ends and is_contiguous_or_false(value)


# Numbers that are no sizes -----------------------------------------------------------------------------------------


def numbers_of_run_time(module: fx.GraphModule, in_pytorch: Collection[fx.Node]) -> dict[fx.Node, str]:
    """Return the calls that read a number, or one computed from it, which an engine cannot know, with the reason.

    An engine takes tensors, and knows sizes from these only. Other numbers are arguments of the model, and elements of
    tensors, as `item` gives them.
    in_pytorch: the nodes that stay there for other reasons.
    """
    reasons: dict[fx.Node, str] = {}
    sources: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder" and _is_number(node):
            sources[node] = f"it reads {node.name}, an argument that is a number and not fixed"
        elif node.op == "call_function" and _is_number(node) and node in in_pytorch:
            sources[node] = f"it reads {node.name}, a number that PyTorch computes"
        reason = next((sources[each] for each in node.all_input_nodes if each in sources), None)
        if node.op == "call_function" and reason is not None:
            reasons[node] = reason
            if _is_number(node):
                sources[node] = reason
    return reasons


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


# Tensors on the CPU ------------------------------------------------------------------------------------------------


def tensors_on_the_cpu(module: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the calls that take or give a tensor on the CPU in a graph on a GPU, with the reason.

    An engine takes and gives tensors on its GPU. Constants are part of it, wherever they were.
    """
    devices = {value.device.type for node in module.graph.nodes for value in tensors_of_node(node)}
    others = sorted(devices - {"cpu"})
    if not others or "cpu" not in devices:
        return {}
    reason = f"a tensor on the CPU in a graph on {others[0]}"
    reasons: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_function":
            used = (node, *(n for n in node.all_input_nodes if n.op != "get_attr"))
            if any(value.device.type == "cpu" for n in used for value in tensors_of_node(n)):
                reasons[node] = reason
            elif any(n in reasons and _is_number(n) for n in node.all_input_nodes):
                reasons[node] = "it reads the size of a tensor on the CPU"
    return {node: reason for node, reason in reasons.items() if node.target is not operator.getitem}
