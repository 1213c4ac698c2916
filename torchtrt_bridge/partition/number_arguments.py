"""Numbers that are arguments of a model: an engine takes tensors, and knows sizes from these only."""

from __future__ import annotations

import torch
from torch import fx


def read_arguments_that_are_numbers(module: fx.GraphModule) -> dict[fx.Node, str]:
    """The calls that must stay in PyTorch, and why: what reads such a number, or one that is computed from it."""
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
