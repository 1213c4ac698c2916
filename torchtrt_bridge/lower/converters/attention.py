"""Scaled dot product attention."""

from __future__ import annotations

import math

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from torchtrt_bridge.lower.registry import converter
from torchtrt_bridge.shapes import is_symbolic

aten = torch.ops.aten
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def not_one_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    """TensorRT's attention takes four dimensions and one kind of mask, and drops no elements."""
    if dropout_p != 0:
        return f"attention with dropout_p={dropout_p}"
    if attn_mask is not None and is_causal:
        return "attention with both a mask and is_causal"
    if query.dim() > 4 or key.dim() != query.dim() or value.dim() != query.dim():
        return "attention over tensors of unequal or more than four dimensions"
    if query.dim() > 2 and not all(statically_known_true(query.shape[0] == t.shape[0]) for t in (key, value)):
        return "attention of a batch to keys of another batch size"
    if query.dim() == 4 and any(is_symbolic(t.shape[1]) for t in (query, key, value)):
        return "attention with a number of heads known only at run time"
    if attn_mask is not None and attn_mask.dim() > query.dim():
        return "an attention mask with more dimensions than the query"
    return None


@converter(aten.scaled_dot_product_attention.default, why_not=not_one_attention, dtypes=(*FLOATS, torch.bool))
def attention(ctx, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None,
    float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    added = {4: [], 3: [1], 2: [0, 1]}[len(query.shape)]
    size = max(query.shape[-1], value.shape[-1])
    q, k, v = (_with_size(ctx, _in_four(ctx, t, added), size) for t in (query, key, value))
    q = ctx.elementwise("PROD", q, scale, ctx.dtype(q))
    layer = ctx.network.add_attention(q, k, v, ctx.trt.AttentionNormalizationOp.SOFTMAX, is_causal)
    layer.decomposable = True  # no kernel fuses float32
    if attn_mask is not None:
        mask = ctx.tensor(attn_mask)
        mask = _in_four(ctx, mask, [1]) if len(mask.shape) == 3 and added == [1] else ctx.tensor(mask, rank=4)
        mask = _full_keys(ctx, mask, k)
        layer.mask = mask if ctx.dtype(mask) == torch.bool else ctx.cast(mask, ctx.dtype(q))
    result = layer.get_output(0)
    if attn_mask is not None and not _sees_a_key(attn_mask):
        result = _zero_where_blind(ctx, result, mask)
    result = _with_size(ctx, result, value.shape[-1])
    return ctx.squeeze(result, added) if added else result


def _in_four(ctx, tensor, added):
    """The tensor with batch and heads."""
    return ctx.unsqueeze(ctx.tensor(tensor), added) if added else ctx.tensor(tensor)


def _with_size(ctx, tensor, size):
    """The tensor with its last dimension cut or filled up: TensorRT wants keys and values of one size."""
    if tensor.shape[-1] == size:
        return tensor
    return ctx.slice(tensor, [0] * 4, [*ctx.sizes(tensor)[:-1], size], mode="FILL")


def _full_keys(ctx, mask, key):
    """The mask with an element for each key: TensorRT broadcasts no last dimension."""
    if mask.shape[-1] != 1:
        return mask
    return ctx.expand(mask, [-1, -1, -1, ctx.size(key, 2)])


def _sees_a_key(mask):
    """Whether the mask is a constant that leaves each query at least one key."""
    if not isinstance(mask, torch.Tensor):
        return False
    seen = mask if mask.dtype == torch.bool else mask > -math.inf
    return bool(seen.any(-1).all())


def _zero_where_blind(ctx, result, mask):
    """PyTorch gives zeros to a query that sees no key; the softmax of nothing is NaN."""
    if ctx.dtype(mask) == torch.bool:
        mask = ctx.select(mask, 0.0, -math.inf, torch.float32)
    best = ctx.reduce("MAX", mask, [-1], True)
    sees = ctx.elementwise("GREATER", best, -math.inf, ctx.dtype(best))
    return ctx.select(sees, result, 0.0, ctx.dtype(result))
