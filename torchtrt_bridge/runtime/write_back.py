"""Tensors that a model writes to: the last call of its graph copies their new values into them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from torchtrt_bridge.graph.memory import place_of
from torchtrt_bridge.graph.torch_internals import copy_all
from torchtrt_bridge.graph.views import views_from


def append_write_back(module: fx.GraphModule, outputs: int, mutations: Sequence[int]) -> None:
    """Let `module` copy its results behind the first `outputs` into inputs, and return only the first ones.

    mutations: for each further result, the index of its input.
    It is a part of the graph, so that a CUDA graph of a call has the copies in it.
    """
    if not mutations:
        return
    graph = module.graph
    (output,) = graph.find_nodes(op="output")
    placeholders = graph.find_nodes(op="placeholder")
    results = list(output.args[0])
    with graph.inserting_before(output):
        values = [_apart_from_inputs(graph, value) for value in results[outputs:]]
        graph.call_function(write_back, ([placeholders[index] for index in mutations], values))
    output.args = (tuple(results[:outputs]),)
    module.recompile()


def write_back(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copy each value into its target, unless it is there already, as a cache does that was written in place."""
    both = zip(targets, values, strict=True)
    pairs = [(target, value) for target, value in both if not _is_one(target, value)]
    if pairs:
        copy_all([target for target, _ in pairs], [value for _, value in pairs])


def _apart_from_inputs(graph: fx.Graph, value: fx.Node) -> fx.Node:
    """Return a value that copies into other inputs do not change."""
    is_input = views_from(value)[-1].op == "placeholder"
    return graph.call_function(torch.clone, (value,)) if is_input else value


def _is_one(target: torch.Tensor, value: torch.Tensor) -> bool:
    return place_of(target) == place_of(value) and target.dtype == value.dtype
