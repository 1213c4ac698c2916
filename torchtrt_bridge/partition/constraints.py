"""Calls that stay in PyTorch because of what surrounds them, though TensorRT has their operators."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator

import torch
from torch import fx

from torchtrt_bridge.graph.nodes import operator_name, returns_view
from torchtrt_bridge.graph.torch_internals import is_contiguous_or_false, statically_known_true

# Memory that is read by offsets ------------------------------------------------------------------------------------

# These read by offsets into the memory of their first argument, not by its elements.
_MEMORY_READERS = ("as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter")


def memory_that_pytorch_reads(module: fx.GraphModule, in_pytorch: Collection[fx.Node]) -> dict[fx.Node, str]:
    """Return the calls whose results PyTorch lays out otherwise than an engine and reads by offsets, with the reason.

    An engine gives every result contiguous, whatever PyTorch would do.
    in_pytorch: the nodes that stay there for other reasons.
    """
    reasons: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and operator_name(node.target) in _MEMORY_READERS:
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


# Numbers that are arguments of the model ---------------------------------------------------------------------------


def numbers_that_are_arguments(module: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the calls that read a number among the model's arguments, or one computed from it, with the reason.

    An engine takes tensors, and knows sizes from these only.
    """
    reasons: dict[fx.Node, str] = {}
    sources: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        is_number = isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
        if node.op == "placeholder" and is_number:
            sources[node] = node.name
        name = next((sources[each] for each in node.all_input_nodes if each in sources), None)
        if node.op == "call_function" and name is not None:
            reasons[node] = f"it reads {name}, an argument that is a number and not fixed"
            if is_number:
                sources[node] = name
    return reasons
