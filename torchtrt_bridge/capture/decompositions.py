"""Decompositions of operators without a converter into operators that have one."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

aten = torch.ops.aten


def encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Tensor:
    """Compute `nn.TransformerEncoderLayer` as its fused operator does, in evaluation mode with the batch first.

    A query that may attend to no key gets zeros, as `scaled_dot_product_attention` gives; the fused operator gives NaN.
    """

    def attend(x: Tensor) -> Tensor:
        packed = functional.linear(x, qkv_weight, qkv_bias).unflatten(-1, (3, num_heads, -1))
        q, k, v = (packed.select(2, index).transpose(1, 2) for index in range(3))
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=_allowed(mask, mask_type))
        return functional.linear(attended.transpose(1, 2).flatten(2), proj_weight, proj_bias)

    def feed_forward(x: Tensor) -> Tensor:
        activation = functional.gelu if use_gelu else functional.relu
        return functional.linear(activation(functional.linear(x, ffn_weight_1, ffn_bias_1)), ffn_weight_2, ffn_bias_2)

    def norm_1(x: Tensor) -> Tensor:
        return functional.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def norm_2(x: Tensor) -> Tensor:
        return functional.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    if norm_first:
        attended = src + attend(norm_1(src))
        return attended + feed_forward(norm_2(attended))
    attended = norm_1(src + attend(src))
    return norm_2(attended + feed_forward(attended))


def _allowed(mask: Tensor | None, mask_type: int | None) -> Tensor | None:
    """Return the keys that a query may attend to, of shape (batch, heads, queries, keys) or broadcast to it.

    mask: true, or not zero, where a query may not attend; its shape is (queries, keys) for `mask_type` 0, (batch, keys)
        for 1, and (batch, heads, queries, keys) for 2.
    """
    if mask is None:
        return None
    allowed = mask == 0
    return allowed[:, None, None, :] if mask_type == 1 else allowed


def quantile(
    self: Tensor, q: float, dim: int | None = None, keepdim: bool = False, interpolation: str = "linear"
) -> Any:
    """Compute a quantile along a dimension of known size, so that its place in the order is a number.

    PyTorch's own decomposition computes the place in float64 at run time, which TensorRT does not have.
    """
    x, along = (self.flatten(), 0) if dim is None else (self, dim)
    is_known = self.dim() > 0 and isinstance(x.shape[along], int) and 0 <= q <= 1
    if not is_known or interpolation != "linear" or self.dtype != torch.float32:
        return NotImplemented  # then PyTorch runs it
    place = ctypes.c_float(q).value * (x.shape[along] - 1)
    values = x.sort(along).values
    below, above = values.select(along, math.floor(place)), values.select(along, math.ceil(place))
    between = torch.lerp(below, above, place - math.floor(place))
    result = between.masked_fill(x.isnan().any(along), math.nan)
    if not keepdim:
        return result
    return result.unsqueeze(along) if dim is not None else result.reshape([1] * self.dim())


# Operators without a converter that PyTorch itself does not decompose, or only into what TensorRT does not have.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten._transformer_encoder_layer_fwd.default: encoder_layer,
    aten.quantile.scalar: quantile,
}
