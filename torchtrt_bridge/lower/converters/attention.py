"""Scaled dot product attention."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import statically_known_true
from torchtrt_bridge.lower.bounds import bounds_of
from torchtrt_bridge.lower.converters.attention_layer import attention_layer, fits_the_layer
from torchtrt_bridge.lower.converters.attention_parts import attention_in_parts
from torchtrt_bridge.lower.converters.sizes import fake
from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten


def not_one_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    """TensorRT has no dropout; the other calls are those that some versions of PyTorch refuse too."""
    if dropout_p != 0:
        return f"attention with dropout_p={dropout_p}"
    if attn_mask is not None and is_causal:
        return "attention with both a mask and is_causal"
    if statically_known_true(key.shape[-2] != value.shape[-2]):
        return "attention to keys and values of unequal number"
    if attn_mask is not None and _is_larger(attn_mask.shape, query.shape, key.shape):
        return "an attention mask that is larger than the scores"
    if enable_gqa and any(is_symbolic(heads) for t in (query, key, value) for heads in t.shape[-3:-2]):
        return "grouped-query attention with a number of heads known only at run time"
    return None


def _is_larger(mask, query, key):
    """Return whether the mask would give the scores more dimensions, or larger ones."""
    pairs = zip(reversed(query[:-2]), reversed(key[:-2]), strict=False)
    either = [k if statically_known_true(q == 1) else q for q, k in pairs][::-1]
    longer = max(query[:-2], key[:-2], key=len)
    scores = [*longer[: len(longer) - len(either)], *either, query[-2], key[-2]]
    aligned = zip(reversed(mask), reversed(scores), strict=False)
    grows = any(statically_known_true(size == 1) and not statically_known_true(own == 1) for own, size in aligned)
    return grows or len(mask) > len(scores)


@converter(
    aten.scaled_dot_product_attention.default, why_not=not_one_attention, dtypes=(*FLOATS, torch.bool), precision="half"
)
def attention(ctx, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None,
    float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"""
    shapes = [fake(ctx, index).shape for index in range(3)]
    q, k, v = (ctx.tensor(tensor) for tensor in (query, key, value))
    scale = _usual_scale(ctx, q, shapes[0][-1]) if scale is None else scale
    q = ctx.elementwise("PROD", q, scale, ctx.dtype(q))  # ahead of the product, whose sums fp16 may not hold
    # A mask of another dtype stays as it is in the parts: fp16 has no number that outweighs all scores, as fp32 has.
    fits = fits_the_layer(shapes) and (attn_mask is None or ctx.dtype(attn_mask) in (torch.bool, ctx.dtype(q)))
    # Of several queries to constant keys, TensorRT-RTX 1.6's layer makes other numbers.
    is_constant = isinstance(key, torch.Tensor) or isinstance(value, torch.Tensor)
    write = attention_layer if fits and not is_constant and ctx.supports("attention") else attention_in_parts
    result = write(ctx, (q, k, v), shapes, attn_mask, is_causal)
    if attn_mask is None or _leaves_a_key(ctx, attn_mask):
        return result
    return ctx.select(_sees_a_key(ctx, attn_mask), result, 0.0, ctx.dtype(result))


def _usual_scale(ctx, query, size):
    """Return one through the root of the size of the query's elements."""
    if not is_symbolic(size):
        return 1 / math.sqrt(size)
    root = ctx.unary("SQRT", ctx.cast(ctx.size(query, -1), torch.float32))
    return ctx.reshape(ctx.unary("RECIP", root), [1] * len(query.shape))


def _leaves_a_key(ctx, mask):
    """Return whether it is certain that under this mask each query sees at least one key."""
    if isinstance(mask, torch.Tensor):
        seen = mask if mask.dtype == torch.bool else mask > -math.inf
        return bool(seen.any(-1).all())
    node = ctx.node.args[3] if len(ctx.node.args) > 3 else ctx.node.kwargs["attn_mask"]
    low, _ = bounds_of(node)
    return low == 1 if ctx.dtype(mask) == torch.bool else low > -math.inf


def _sees_a_key(ctx, mask):
    """Return a mask of the queries that see a key: the others get zeros from PyTorch, and NaN from a softmax."""

    def make():
        tensor = ctx.tensor(mask)
        is_bool = ctx.dtype(tensor) == torch.bool
        best = ctx.reduce("MAX", ctx.cast(tensor, torch.float32) if is_bool else tensor, [-1], True)
        return ctx.elementwise("GREATER", best, 0.0 if is_bool else -math.inf, ctx.dtype(best))

    return ctx.once("queries that see a key", mask, make)
