"""Attention masks: each attention gets the smallest mask that hides the same keys, or none, best for fused kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from torchtrt_bridge.graph.edit import constant_of, finish, is_call
from torchtrt_bridge.graph.torch_internals import schema_of, statically_known_true
from torchtrt_bridge.lower.bounds import ALL_TRUE, ALL_ZERO, Bounds, bounds_of
from torchtrt_bridge.options import Options

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default
AND = (aten.bitwise_and.Tensor, aten.logical_and.default)


def simplify_masks(module: fx.GraphModule, options: Options) -> fx.GraphModule:
    """Drop masks that hide nothing, name causal ones by `is_causal`, and take others from before their expansion.

    Models make such masks for inputs without padding: of all ones, or of the positions that precede each other.
    """
    known: dict[fx.Node, Bounds] = {}
    changed = False
    for node in module.graph.find_nodes(op="call_function", target=ATTENTION):
        query, key, value, mask, dropout, is_causal = _arguments(node)
        if not isinstance(mask, fx.Node) or is_causal:
            continue
        least = _before_expansion(mask, known)
        causal = _is_causal(least, query, key)
        hides = not causal and bounds_of(least, known) != (ALL_TRUE if _dtype(least) == torch.bool else ALL_ZERO)
        if not hides or least is not mask:
            node.args = (query, key, value, least if hides else None, dropout, causal)
            node.kwargs = {name: given for name, given in node.kwargs.items() if name in ("scale", "enable_gqa")}
            changed = True
    return finish(module, changed)


def _arguments(node: fx.Node) -> list[Any]:
    """Return the positional arguments of an attention, with those that are missing or given by name."""
    names = [argument.name for argument in schema_of(ATTENTION).arguments if not argument.kwarg_only]
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, **node.kwargs}
    return [*node.args, *[defaults[name] for name in names[len(node.args) :]]]


def _dtype(node: fx.Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["val"].dtype
    return dtype


def _before_expansion(mask: fx.Node, known: dict[fx.Node, Bounds]) -> fx.Node:
    """Return the smallest tensor that, broadcast to the scores, is the same mask."""
    for source in _sources(mask, known):
        if source.meta["val"].dim() > 1:  # PyTorch takes no mask of fewer
            return _before_expansion(source, known)
    return mask


def _sources(mask: fx.Node, known: dict[fx.Node, Bounds]) -> list[fx.Node]:
    """Return the tensors that equal `mask` but for broadcasting."""
    if is_call(mask, aten.expand.default):
        return [source for source in mask.args[:1] if isinstance(source, fx.Node)]
    if mask.target in AND and _dtype(mask) == torch.bool:
        pairs = zip(mask.args, reversed(mask.args), strict=True)
        return [one for one, other in pairs if isinstance(one, fx.Node) and bounds_of(other, known) == ALL_TRUE]
    return []


def _is_causal(mask: fx.Node, query: fx.Node, key: fx.Node) -> bool:
    """Return whether each query sees the keys up to its own position and no others."""
    sizes = (query.meta["val"].shape[-2], key.meta["val"].shape[-2])
    if not all(statically_known_true(a == b) for a, b in zip(mask.meta["val"].shape[-2:], sizes, strict=True)):
        return False
    constant = constant_of(mask)
    if constant is not None:
        return _is_triangle(constant)
    keys, queries = _compared(mask)
    start = _positions(keys, -1)
    return start is not None and start == _positions(queries, -2)


def _is_triangle(mask: torch.Tensor) -> bool:
    """Return whether a constant mask shows the diagonal and all below it, and hides the rest."""
    shown = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    if mask.dtype != torch.bool:
        shown = torch.zeros_like(shown, dtype=mask.dtype).masked_fill(~shown, -math.inf)
    return torch.equal(mask, shown.expand_as(mask))


def _compared(mask: fx.Node) -> tuple[Any, Any]:
    """Return the two tensors that the mask compares: it is true where the first is no larger than the second."""
    if is_call(mask, aten.le.Tensor):
        return mask.args[0], mask.args[1]
    if is_call(mask, aten.ge.Tensor):
        return mask.args[1], mask.args[0]
    difference = mask.args[0] if is_call(mask, aten.le.Scalar) and mask.args[1] == 0 else None
    if isinstance(difference, fx.Node) and is_call(difference, aten.sub.Tensor) and not difference.kwargs:
        return difference.args[0], difference.args[1]  # the decomposition of `tril`
    return None, None


def _positions(node: Any, dim: int) -> int | None:
    """Return the first of consecutive numbers along a dimension that are the same along the other dimensions.

    dim: counted from the end.
    Returns None if the tensor is not known to hold such numbers.
    """
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.int32, torch.int64):
        return None
    if is_call(node, aten.arange.start_step):
        start, _, step = (*node.args, 1)[:3]
        return start if isinstance(start, int) and step == 1 and dim == -1 else None
    if is_call(node, aten.add.Tensor) and isinstance(node.args[1], int) and not node.kwargs:
        start = _positions(node.args[0], dim)
        return None if start is None else start + node.args[1]
    if is_call(node, aten.unsqueeze.default):
        new = int(node.args[1]) % value.dim() - value.dim()
        return None if new == dim else _positions(node.args[0], dim + 1 if new > dim else dim)
    return None
