"""Attention: taken apart, so that its two products can be quantized."""

from __future__ import annotations

import math

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from torchtrt_bridge.graph.edit import fake_mode_of, finish, insert_call, insert_constant
from torchtrt_bridge.graph.nodes import arguments_of

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


def take_attention_apart(module: fx.GraphModule) -> fx.GraphModule:
    """Replace each attention by two products with a softmax between them, where `why_whole` has no reason."""
    mode = fake_mode_of(module)
    changed = False
    for node in module.graph.find_nodes(op="call_function", target=ATTENTION):
        if why_whole(node) is None:
            node.replace_all_uses_with(_apart(node, mode))
            module.graph.erase_node(node)
            changed = True
    return finish(module, changed)


def why_whole(node: fx.Node) -> str | None:
    """Why an attention cannot be taken apart here; None if it can."""
    given = arguments_of(node)
    if given["dropout_p"]:
        return "an attention with dropout"
    if given["enable_gqa"]:
        return "an attention of grouped queries"
    sizes = (given["query"].meta["val"].shape[-2], given["key"].meta["val"].shape[-2])
    if given["is_causal"] and not all(isinstance(size, int) for size in sizes):
        return "a causal attention whose lengths are known at run time only"
    return None


def _apart(node: fx.Node, mode: FakeTensorMode) -> fx.Node:
    given = arguments_of(node)
    query, key, value, mask = given["query"], given["key"], given["value"], given["attn_mask"]
    rank, width = query.meta["val"].dim(), query.meta["val"].shape[-1]
    scale = 1 / math.sqrt(width) if given["scale"] is None else given["scale"]
    scaled = insert_call(node, mode, aten.mul.Tensor, query, scale)
    order = [*range(key.meta["val"].dim() - 2), rank - 1, rank - 2]
    scores = insert_call(
        node, mode, aten.matmul.default, scaled, insert_call(node, mode, aten.permute.default, key, order)
    )
    is_seen = None
    if given["is_causal"]:
        scores = _without(node, scores, _causal_mask(node, mode), mode)
    elif mask is not None:
        scores, is_seen = _masked(node, scores, mask, mode)
    weights = insert_call(node, mode, aten._softmax.default, scores, -1, False)
    if is_seen is not None:
        weights = insert_call(node, mode, aten.mul.Tensor, weights, is_seen)
    return insert_call(node, mode, aten.matmul.default, weights, value)


def _causal_mask(node: fx.Node, mode: FakeTensorMode) -> fx.Node:
    """True where a query may look at a key: at those that are not behind it."""
    queries, keys = (node.args[i].meta["val"].shape[-2] for i in (0, 1))  # type: ignore[union-attr]
    device = node.meta["val"].device
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
    return insert_constant(node, allowed, f"{node.name}_mask", mode)


def _masked(node: fx.Node, scores: fx.Node, mask: fx.Node, mode: FakeTensorMode) -> tuple[fx.Node, fx.Node]:
    """The scores behind a mask, and for each query whether it sees any key: attention gives zeros where it sees none.

    Hidden scores become the least finite number, of which a softmax makes no NaN.
    """
    if mask.meta["val"].dtype == torch.bool:
        shown, masked = mask, _without(node, scores, mask, mode)
    else:
        shown = insert_call(node, mode, aten.ne.Scalar, mask, -math.inf)
        finite = insert_call(node, mode, aten.clamp.default, mask, torch.finfo(mask.meta["val"].dtype).min)
        masked = insert_call(node, mode, aten.add.Tensor, scores, finite)
    return masked, insert_call(node, mode, aten.any.dim, shown, -1, True)


def _without(node: fx.Node, scores: fx.Node, shown: fx.Node, mode: FakeTensorMode) -> fx.Node:
    """The scores with the least finite number where `shown` is false."""
    hidden = insert_call(node, mode, aten.logical_not.default, shown)
    least = torch.finfo(scores.meta["val"].dtype).min
    return insert_call(node, mode, aten.masked_fill.Scalar, scores, hidden, least)
