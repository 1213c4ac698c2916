"""Operators that read memory as it lies: engines give every result contiguous, whatever PyTorch would do."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator

import torch
from torch import fx

from torchtrt_bridge.graph.nodes import operator_name, returns_view
from torchtrt_bridge.graph.torch_internals import is_contiguous_or_false, statically_known_true

# By offsets into the memory of their first argument, not by its elements.
_READERS = ("as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter")


def read_as_they_lie(module: fx.GraphModule, in_pytorch: Collection[fx.Node]) -> dict[fx.Node, str]:
    """The calls that must stay in PyTorch, and why: what leads to memory that PyTorch reads, and lays out otherwise.

    in_pytorch: the nodes that stay there anyhow.
    """
    reasons: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and operator_name(node.target) in _READERS:
            source = node.all_input_nodes[0]
            if not all(_is_plain(value) for value in _leading_to(source, lambda n: n in in_pytorch or _is_part(n))):
                reason = f"{node.name} reads memory that an engine would lay out otherwise"
                reasons.update((n, reason) for n in _leading_to(source) if n.target is not operator.getitem)
    return reasons


def _leading_to(node: fx.Node, goes_behind: Callable[[fx.Node], bool] = lambda _: True) -> Iterator[fx.Node]:
    """`node` and the calls that it is computed from, each once; those behind a call only if it is gone behind."""
    seen, waiting = set(), [node]
    while waiting:
        if (current := waiting.pop()) not in seen and current.op == "call_function":
            seen.add(current)
            yield current
            waiting += current.all_input_nodes if goes_behind(current) else []


def _is_part(node: fx.Node) -> bool:
    """Whether a value is in the memory of what it is computed from, be it a view or one of several results."""
    return returns_view(node) or node.target is operator.getitem


def _is_plain(node: fx.Node) -> bool:
    """Whether a tensor is contiguous and has its memory for itself; others than tensors have no layout."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return True
    begins = statically_known_true(value.storage_offset() == 0)
    ends = statically_known_true(value.untyped_storage().nbytes() == value.numel() * value.element_size())
    return begins and ends and is_contiguous_or_false(value)
