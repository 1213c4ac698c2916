"""Grouped heads: TensorRT's attention reads the keys and values that several heads share without copies for each.

PyTorch's fused attention takes no mask together with shared heads, so models repeat keys and values. The graphs that
PyTorch runs stay as they are; only the network is written without the copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import is_call
from torchtrt_bridge.graph.shapes import expression_of

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
VIEWS = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)
KEY, VALUE = 1, 2  # positions among the arguments


def share_heads(graph: fx.Graph) -> None:
    """Let attention read keys and values as they are before each is repeated for several heads; `graph` is changed."""
    for node in graph.find_nodes(op="call_function", target=ATTENTION):
        for place, tensor in zip((KEY, VALUE), _shared(node), strict=False):
            node.update_arg(place, tensor)
            node.update_kwarg("enable_gqa", True)
    graph.eliminate_dead_code()


def _shared(attention: fx.Node) -> list[fx.Node]:
    """Return what key and value repeat, with one size for the repetitions; nothing if one of them repeats nothing."""
    found = [_repeated(attention.args[place]) for place in (KEY, VALUE)]
    tensors = [tensor for tensor in found if tensor is not None]
    same = len({expression_of(tensor.meta["val"].shape[1]) for tensor in tensors}) == 1
    return tensors if len(tensors) == len(found) and same else []


def _repeated(node: Any) -> fx.Node | None:
    """Return x of shape (batch, heads, tokens, elements) if each of its heads comes several times in a row in `node`.

    That is `x[:, :, None].expand(-1, -1, times, -1, -1).reshape(batch, heads * times, tokens, elements)`.
    """
    merged = node
    while is_call(node, aten.clone.default) or (isinstance(node, fx.Node) and node.target in VIEWS):
        node = node.args[0]
    if not is_call(node, aten.expand.default) or not is_call(node.args[0], aten.unsqueeze.default):
        return None
    source, dim = node.args[0].args
    if not isinstance(source, fx.Node) or source.meta["val"].dim() != 4 or dim % 5 != 2:
        return None
    batch, heads, *rest = _sizes(source)
    times = _sizes(node)[2]
    expected = [batch, heads * times, *rest]
    is_merged = _sizes(node) == [batch, heads, times, *rest] and _sizes(merged) == expected
    return source if is_merged and isinstance(heads * times, int) else None


def _sizes(node: fx.Node) -> list[Any]:
    return [expression_of(size) for size in node.meta["val"].shape]
