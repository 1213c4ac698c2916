"""Fused attention, rotary embedding and the key-value cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.reference.layer import Layer
from torchtrt_bridge.reference.registry import Compute, in_float32, reads


@reads("ATTENTION_OUTPUT")
def attention(layer: Layer) -> Compute:
    """Compute normalize(query @ key^T + mask) @ value, unscaled. Query heads share key-value heads in equal groups.

    TensorRT has two layers for an attention; this one, at its end, computes all of it.
    """
    whole = layer.raw.attention
    _refuse_packed(layer, whole)
    lengths = getattr(whole, "key_value_lengths", None)
    layer.inputs = [*(whole.get_input(index) for index in range(3)), whole.mask, lengths]
    causal = _causal_kind(whole)
    softmax = whole.norm_op.name == "SOFTMAX"

    def compute(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = q @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        allowed = _allowed(scores, causal, lengths)
        if softmax:
            scores = torch.softmax(scores.masked_fill(~allowed, -torch.inf), -1)
        else:
            scores = scores.masked_fill(~allowed, 0)
        return scores @ v

    return in_float32(compute)


def _causal_kind(whole: Any) -> str:
    if hasattr(whole, "causal_kind"):
        return str(whole.causal_kind.name)
    return "UPPER_LEFT" if whole.causal else "NONE"


def _refuse_packed(layer: Layer, whole: Any) -> None:
    if whole.normalization_quantize_scale is not None:
        raise LoweringError(f"{layer}: the reference has no quantized attention.")
    for form in ("query_form", "key_value_form"):
        if hasattr(whole, form) and getattr(whole, form).name != "PADDED_BHND":
            raise LoweringError(f"{layer}: the reference computes only attention of padded sequences.")


def _allowed(scores: Tensor, causal: str, lengths: Tensor | None) -> Tensor:
    """Return which keys each query may see: bool, broadcastable to [batch, heads, queries, keys]."""
    queries, keys = scores.shape[-2:]
    column = torch.arange(keys)
    ends = torch.full((1, 1, 1, 1), keys) if lengths is None else lengths.reshape(-1, 1, 1, 1)
    allowed = column < ends
    row = torch.arange(queries).reshape(-1, 1)
    if causal == "UPPER_LEFT":
        allowed = allowed & (column <= row)
    elif causal == "LOWER_RIGHT":
        allowed = allowed & (column <= row + (ends - queries))
    return allowed


@reads("ROTARY_EMBEDDING")
def rotary_embedding(layer: Layer) -> Compute:
    """Rotate pairs within the first `rotary_embedding_dim` elements (0: all) of [batch, heads, tokens, dim].

    A pair is two adjacent elements if interleaved, else one of each half. Cosines and sines are
    [batch, tokens, dim / 2], or [positions, dim / 2] chosen by the position ids.
    """
    interleaved, rotary_dim = bool(layer.raw.interleaved), int(layer.raw.rotary_embedding_dim)

    def compute(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is not None:
            cos, sin = cos[positions.long()], sin[positions.long()]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        size = rotary_dim or x.shape[-1]
        turned, rest = x[..., :size], x[..., size:]
        one, two = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
        pair = [one * cos - two * sin, one * sin + two * cos]
        joined = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
        return torch.cat([joined, rest], -1)

    return in_float32(compute)


@reads("KV_CACHE_UPDATE")
def kv_cache_update(layer: Layer) -> Compute:
    """Return the cache [batch, heads, positions, dim] with each update written from its sequence's index on."""
    if layer.option("update_form", "PADDED_BHND") != "PADDED_BHND":
        raise LoweringError(f"{layer}: the reference computes only updates of padded sequences.")

    def compute(cache: Tensor, update: Tensor, starts: Tensor, *_: Tensor | None) -> Tensor:
        result = cache.clone()
        for row, start in enumerate(starts.tolist()):
            result[row, :, start : start + update.shape[2]] = update[row]
        return result

    return compute
