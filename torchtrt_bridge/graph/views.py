"""Views in a graph: the tensor whose memory a result lies in, and the order in which it lies there."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import fake
from torchtrt_bridge.graph.nodes import operator_name
from torchtrt_bridge.graph.shapes import example_size
from torchtrt_bridge.graph.torch_internals import (
    fake_mode_of_values,
    is_contiguous_or_false,
    schema_of,
    statically_known_true,
    storage_id,
    symbolic_dispatch,
)

# Names, in the `meta` of a node, the calls that bring inputs into a form that engines take, and those that make results
# from what engines return. PyTorch runs them in any case, and no report counts them.
AT_BORDER = "at_border"

# These give a view where the strides allow it, else a copy.
_VIEWS_IF_POSSIBLE = ("reshape", "contiguous", "flatten", "to", "_reshape_alias")


def base_of(node: Any) -> fx.Node | None:
    """Return what a call's result is a view of; None for what has memory of its own.

    An item of several views, as of a split, has the call that makes them as its base.
    """
    if not isinstance(node, fx.Node) or node.op != "call_function" or not node.args:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    if node.target is operator.getitem:
        return source if base_of(source) is not None else None
    return source if _returns_view(node.target) and _is_in_memory_of(node, source) else None


def views_from(node: fx.Node) -> list[fx.Node]:
    """Return a result, what it is a view of, and so on; the last one has memory of its own."""
    found = [node]
    while (base := base_of(found[-1])) is not None:
        found.append(base)
    return found


def _returns_view(op: Any) -> bool:
    schema = schema_of(op)
    aliases = [] if schema is None else [result.alias_info for result in schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _is_in_memory_of(node: fx.Node, source: fx.Node) -> bool:
    """Return whether a view that may have to be a copy is none, of a tensor with the strides of the fake one."""
    if operator_name(node.target) not in _VIEWS_IF_POSSIBLE:
        return True
    value = source.meta.get("val")
    if not isinstance(value, torch.Tensor) or any("val" not in n.meta for n in node.all_input_nodes):
        return False
    op: Any = node.target
    with symbolic_dispatch(fake_mode_of_values([value])), torch.no_grad():
        return storage_id(op(*fake(node.args), **fake(node.kwargs))) == storage_id(value)


def is_strided(value: Any) -> bool:
    """Return whether a fake value is a tensor with strides, and has elements."""
    is_tensor = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return is_tensor and not any(isinstance(size, int) and size == 0 for size in value.shape)


def memory_order(value: torch.Tensor) -> list[int] | None:
    """Return the dimensions of a fake tensor as they lie in memory, the outermost first; None if there are gaps.

    Dimensions of size one are where a tensor of that order has their strides. Where none has, they come first.
    """
    strides, sizes = value.stride(), value.shape
    ones = [dim for dim in range(value.dim()) if statically_known_true(sizes[dim] == 1)]
    order = sorted(range(value.dim()), key=lambda dim: (-example_size(strides[dim]), dim in ones, dim))
    if _lie_side_by_side([(sizes[dim], strides[dim]) for dim in order]):
        return order
    if is_contiguous_or_false(value):
        return list(range(value.dim()))
    apart = [dim for dim in order if dim not in ones]
    return [*ones, *apart] if _lie_side_by_side([(sizes[dim], strides[dim]) for dim in apart]) else None


def lies_in_order(value: torch.Tensor) -> bool:
    """Return whether a fake tensor has the strides of a new one, as an engine gives it, or is to be taken for one."""
    return memory_order(value) == list(range(value.dim()))


def _lie_side_by_side(dims: Sequence[tuple[Any, Any]]) -> bool:
    """Return whether sizes and strides, the outermost first, leave no gap, whatever the symbolic ones are."""
    expected: Any = 1
    for size, stride in reversed(dims):
        if not statically_known_true(stride == expected):
            return False
        expected = expected * size
    return True
