"""A subgraph as PyTorch runs it fastest, once its engine has been lowered from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def flatten_linear_inputs(module: fx.GraphModule) -> None:
    """Give linear layers two dimensions where their input is not contiguous; `module` is changed.

    PyTorch itself does so for weights that require gradients, and not for constants: these it would expand into a
    batch of small products. With the sequence first in attention, ViT-B/16's took twice the time on an H100.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.linear.default):
        source = node.args[0]
        value = source.meta.get("val") if isinstance(source, fx.Node) else None
        if not isinstance(value, torch.Tensor) or value.dim() < 3 or value.is_contiguous():
            continue
        with graph.inserting_before(node):
            sizes = [_size(graph, source, dim, size) for dim, size in enumerate(value.shape[:-1])]
            rows = graph.call_function(aten.reshape.default, (source, [-1, value.shape[-1]]))
            product = graph.call_function(aten.linear.default, (rows, *node.args[1:]), dict(node.kwargs))
            result = graph.call_function(aten.reshape.default, (product, [*sizes, node.meta["val"].shape[-1]]))
        result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    module.recompile()


def _size(graph: fx.Graph, source: fx.Node, dim: int, size: Any) -> Any:
    return size if isinstance(size, int) else graph.call_function(aten.sym_size.int, (source, dim))
