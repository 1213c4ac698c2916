"""Scaled dot product attention, alone and in PyTorch's modules."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
sdpa = aten.scaled_dot_product_attention.default
attend = F.scaled_dot_product_attention


def heads(n: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, 2, 3 + n, 8), torch.randn(n, 2, 6 + n, 8), torch.randn(n, 2, 6 + n, 8)


def masked(n: int, *shape: int) -> tuple[torch.Tensor, ...]:
    """With a mask whose first row (or only one) hides all keys."""
    mask = torch.rand(shape) > 0.3
    mask[..., 0, :] = False
    return *heads(n), mask


def with_bias(n: int) -> tuple[torch.Tensor, ...]:
    bias = torch.randn(n, 1, 3 + n, 6 + n)
    bias[0, 0, 0] = -math.inf
    return *heads(n), bias


def tokens(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3 + n, 8),)


class SelfAttention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


CASES: list[Case] = [
    Case(sdpa, attend, heads),
    Case(sdpa, functools.partial(attend, is_causal=True), heads, name="causal"),
    Case(sdpa, functools.partial(attend, scale=0.3), heads, name="scale"),
    Case(sdpa, attend, lambda n: masked(n, n, 2, 3 + n, 6 + n), name="mask"),
    Case(sdpa, attend, lambda n: masked(n, 3 + n, 6 + n), name="mask-2d"),
    Case(sdpa, attend, lambda n: masked(n, n, 1, 1, 6 + n), name="mask-of-keys"),
    Case(sdpa, attend, lambda n: masked(n, n, 1, 3 + n, 1), name="mask-of-queries"),
    Case(sdpa, attend, with_bias, name="bias"),
    Case(
        sdpa,
        lambda q, k, v: attend(q, k, v, torch.ones(7, 10, dtype=torch.bool).tril()),
        lambda n: (torch.randn(n, 2, 7, 8), torch.randn(n, 2, 10, 8), torch.randn(n, 2, 10, 8)),
        name="constant-mask",
    ),
    Case(
        sdpa,
        functools.partial(attend, enable_gqa=True, is_causal=True),
        lambda n: (torch.randn(n, 4, 5, 8), torch.randn(n, 2, 5, 8), torch.randn(n, 2, 5, 8)),
        name="grouped",
    ),
    Case(
        sdpa,
        attend,
        lambda n: (torch.randn(n, 2, 5, 8), torch.randn(n, 2, 5, 8), torch.randn(n, 2, 5, 16)),
        name="other-value-size",
    ),
    Case(sdpa, attend, lambda n: (torch.randn(n, 5, 8), torch.randn(n, 7, 8), torch.randn(n, 7, 8)), name="3d"),
    Case(
        sdpa,
        attend,
        lambda n: (
            torch.randn(n, 5, 8),
            torch.randn(n, 7, 8),
            torch.randn(n, 7, 4),
            torch.randn(n, 5, 7) > 0,
        ),
        name="3d-mask",
    ),
    Case(sdpa, attend, lambda n: (torch.randn(3 + n, 8), torch.randn(7, 8), torch.randn(7, 8)), name="2d"),
    Case(sdpa, SelfAttention(need_weights=False), tokens, name="multihead"),
    Case(aten.bmm.default, SelfAttention(need_weights=True), tokens, name="multihead-with-weights"),
    Case(sdpa, nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), tokens, name="encoder-layer"),
    Case(
        sdpa,
        nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True),
        tokens,
        name="encoder-layer-norm-first",
    ),
    Case(
        sdpa,
        nn.TransformerDecoderLayer(8, 2, 16, batch_first=True),
        lambda n: (*tokens(n), *tokens(n)),
        name="decoder-layer",
    ),
]

REJECTED: list[Rejected] = [
    Rejected(sdpa, functools.partial(attend, dropout_p=0.1), heads, "dropout_p", name="dropout"),
    Rejected(
        sdpa,
        attend,
        lambda n: (torch.randn(n, 2, 2, 3, 8), torch.randn(n, 2, 2, 5, 8), torch.randn(n, 2, 2, 5, 8)),
        "four dimensions",
        name="5d",
    ),
    Rejected(
        sdpa,
        attend,
        lambda n: (torch.randn(n, 2, 3, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)),
        "batch",
        name="batch",
    ),
    Rejected(
        sdpa,
        lambda x: attend(x, x, x),
        lambda n: (torch.randn(2, n, 3, 8),),
        "number of heads",
        name="heads",
        dynamic=True,
    ),
]
