"""Regions of Dynamo's graphs that `torch.export` does not take as Dynamo writes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.torch_internals import autocast_calls, higher_order_name

# Operators that compute what their first argument, a graph, computes; the index of the graph's first own argument.
_WRAPPERS = {"tag_activation_checkpoint": 1, "wrap_activation_checkpoint": 1, "wrap": 1, "invoke_subgraph": 2}


def rewrite_regions(graph: fx.Graph) -> None:
    """Let `torch.export` inline wrapped regions, as of `checkpoint`, and see regions of autocast.

    Without gradients a checkpoint computes what it holds, once. Of autocast, `torch.export` notes what Dynamo calls at
    the ends of a region without doing it, and gives the tensors inside the dtypes of outside.
    """
    enter, leave = autocast_calls()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is enter:
            node.target = _enter_autocast
        elif node.target is leave:
            node.target = _leave_autocast
        elif first := _WRAPPERS.get(higher_order_name(node.target)):
            _call_directly(node, first)


def _call_directly(node: fx.Node, first: int) -> None:
    """Replace an operator on a graph by a call of the graph."""
    body = node.args[0]
    assert isinstance(body, fx.Node)
    with node.graph.inserting_before(node):
        call = node.graph.call_module(str(body.target), tuple(node.args[first:]))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    node.graph.erase_node(node)
    if not body.users:
        node.graph.erase_node(body)


def _enter_autocast(*arguments: Any) -> torch.amp.autocast:
    region = torch.amp.autocast(*arguments)
    region.__enter__()
    return region


def _leave_autocast(region: torch.amp.autocast) -> None:
    region.__exit__(None, None, None)
