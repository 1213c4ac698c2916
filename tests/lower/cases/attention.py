"""Scaled dot product attention in every form that PyTorch takes, alone and in PyTorch's modules."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
sdpa = aten.scaled_dot_product_attention.default
attend = F.scaled_dot_product_attention
LOWEST = torch.finfo(torch.float32).min

Tensors = tuple[torch.Tensor, ...]


def heads(n: int) -> Tensors:
    return torch.randn(n, 2, 3 + n, 8), torch.randn(n, 2, 6 + n, 8), torch.randn(n, 2, 6 + n, 8)


def qkv(*sizes: tuple[int, ...]) -> Tensors:
    """Query, key and value; the value is of the key's size if only two are given."""
    return tuple(torch.randn(size) for size in (*sizes, sizes[-1])[:3])


def shown(*shape: int) -> torch.Tensor:
    """A mask that is turned around before it is used (`Called`): the first query, or the first of the batch, is blind.

    A mask of one row for all leaves the last key.
    """
    mask = torch.rand(shape) > 0.6
    if shape[-2] > 1:
        mask[..., 0, :] = True
    elif len(shape) > 2 and shape[0] > 1:
        mask[0] = True
    else:
        mask[..., -1] = False
    return mask


def masked(*shape: Any) -> Callable[[int], Tensors]:
    """`heads` with a mask of bools; functions in `shape` give sizes that depend on n."""
    return lambda n: (*heads(n), shown(*(size(n) if callable(size) else size for size in shape)))


def batch(n: int) -> int:
    return n


def queries(n: int) -> int:
    return 3 + n


def keys(n: int) -> int:
    return 6 + n


def added(hidden: float, at: Any = attend) -> Callable[..., torch.Tensor]:
    """Attention under the mask of fp32 numbers that holds `hidden` where one of bools is False."""
    return lambda q, k, v, mask: at(q, k, v, torch.where(mask, torch.zeros(()), torch.full((), hidden)))


def added_in_own_dtype(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return attend(q, k, v, torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf))


def with_bias(n: int) -> Tensors:
    bias = torch.randn(n, 1, 3 + n, 6 + n)
    bias[0, 0, 0] = math.inf  # which `Called` turns around
    return *heads(n), bias


def tokens(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3 + n, 8),)


def under(mask: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Attention under a constant mask."""
    return lambda q, k, v: attend(q, k, v, mask)


def ten_keys(n: int) -> Tensors:
    return qkv((n, 2, 7, 8), (n, 2, 10, 8))


FIRST_HIDDEN = torch.ones(7, 10, dtype=torch.bool)
FIRST_HIDDEN[:, 0] = False
BLIND = FIRST_HIDDEN.clone()
BLIND[2] = False
grouped = functools.partial(attend, enable_gqa=True)


def repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attention of four heads, two of which share a key and a value, repeated as transformers' models do."""
    pairs = (x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(-1, 4, *x.shape[-2:]) for x in (k, v))
    return attend(q, *pairs, attn_mask=mask)


def interleaved(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return attend(q, *(x.repeat_interleave(2, dim=1) for x in (k, v)), attn_mask=mask)


def half_repeated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Heads that are repeated as a whole, so that query and key pair in another order."""
    return attend(q, k.repeat(1, 2, 1, 1), v.repeat_interleave(2, dim=1), attn_mask=mask)


def four_heads(n: int) -> Tensors:
    return *qkv((n, 4, 3 + n, 8), (n, 2, 6 + n, 8)), shown(n, 1, 3 + n, 6 + n)


def one_query_of_four_heads(n: int) -> Tensors:
    return qkv((n, 4, 1, 8), (n, 2, 130, 8))


class Memory(nn.Module):
    """Attention to constant keys and values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.key, self.value = (nn.Parameter(torch.randn(2, 2, 7, 8)) for _ in range(2))

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        return attend(query, self.key, self.value)


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
    Case(sdpa, functools.partial(attend, scale=0.3), heads, name="scale"),
    Case(sdpa, functools.partial(attend, dropout_p=0.0, is_causal=True), heads, name="causal"),
    Case(
        sdpa,
        functools.partial(attend, is_causal=True),
        lambda n: qkv((n, 2, 6 + n, 8), (n, 2, 3, 8)),
        name="causal-fewer-keys",
    ),
    # Sizes of the elements that are known only at run time
    Case(sdpa, lambda x: attend(*x.chunk(3, -1)), lambda n: (torch.randn(2, 5, 6 * n),), name="chunks"),
    Case(
        sdpa,
        lambda q, k, v: attend(q, k, v, is_causal=True),
        lambda n: qkv((2, 2, 5, 2 * n), (2, 2, 7, 2 * n), (2, 2, 7, n)),
        name="elements",
    ),
    # Masks of bools, each with a row that hides all keys
    Case(sdpa, attend, masked(batch, 2, queries, keys), name="mask"),
    Case(sdpa, attend, masked(batch, 1, queries, keys), name="mask-of-all-heads"),
    Case(sdpa, attend, masked(1, 1, queries, keys), name="mask-of-the-batch"),
    Case(sdpa, attend, masked(2, queries, keys), name="mask-3d"),
    Case(sdpa, attend, masked(queries, keys), name="mask-2d"),
    Case(sdpa, attend, masked(batch, 1, 1, keys), name="mask-of-keys"),
    Case(sdpa, attend, masked(1, 1, 1, keys), name="mask-of-keys-of-the-batch"),
    Case(sdpa, attend, masked(1, keys), name="mask-of-keys-2d"),
    Case(sdpa, attend, masked(batch, 1, queries, 1), name="mask-of-queries"),
    Case(sdpa, attend, masked(queries, 1), name="mask-of-queries-2d"),
    # Masks that are added
    Case(sdpa, attend, with_bias, name="bias"),
    Case(sdpa, added_in_own_dtype, masked(queries, keys), name="minus-infinity"),
    Case(sdpa, added(-math.inf), masked(queries, keys), name="minus-infinity-in-fp32"),
    Case(sdpa, added(LOWEST), masked(batch, 1, queries, keys), name="lowest-in-fp32"),
    Case(sdpa, added(-1e4), masked(1, 1, 1, keys), name="large-in-fp32"),
    # Constant masks
    Case(sdpa, under(FIRST_HIDDEN), ten_keys, name="constant-mask"),
    Case(sdpa, under(BLIND), ten_keys, name="constant-blind-mask"),
    Case(sdpa, under(torch.ones(7, 10, dtype=torch.bool).tril()), ten_keys, name="constant-causal-mask"),
    Case(sdpa, under(torch.where(BLIND, 0.5, -math.inf)), ten_keys, half=False, name="constant-bias"),
    # Heads that share keys
    Case(
        sdpa,
        functools.partial(grouped, is_causal=True),
        lambda n: qkv((n, 4, 5, 8), (n, 2, 5, 8)),
        name="grouped",
    ),
    Case(
        sdpa,
        grouped,
        lambda n: (*qkv((n, 4, 5, 8), (n, 2, 4 + n, 8)), shown(n, 1, 5, 4 + n)),
        name="grouped-mask",
    ),
    Case(sdpa, grouped, lambda n: qkv((4, n, 8), (2, n, 8)), name="grouped-3d"),
    Case(sdpa, repeated, four_heads, name="repeated-heads"),
    Case(sdpa, interleaved, four_heads, name="interleaved-heads"),
    Case(sdpa, half_repeated, four_heads, name="keys-repeated-as-a-whole"),
    Case(sdpa, grouped, lambda n: qkv((n, 8, 3, 8), (n, 4, 5, 8), (n, 2, 5, 8)), name="grouped-twice"),
    Case(sdpa, grouped, lambda n: qkv((n, 4, 3, 8), (1, 2, 5, 8)), name="grouped-one-batch"),
    Case(sdpa, attend, lambda n: qkv((n, 2, 3, 8), (n, 1, 5, 8)), name="one-key-head"),
    Case(sdpa, attend, lambda n: qkv((n, 1, 3, 8), (n, 2, 5, 8)), name="one-query-head"),
    # One query for each head, and many keys
    Case(sdpa, attend, lambda n: qkv((n, 2, 1, 8), (n, 2, 130, 8)), name="one-query"),
    Case(sdpa, attend, lambda n: (*qkv((n, 2, 1, 8), (n, 2, 130, 8)), shown(n, 1, 1, 130)), name="one-query-mask"),
    Case(sdpa, repeated, lambda n: (*one_query_of_four_heads(n), shown(n, 1, 1, 130)), name="one-query-repeated-heads"),
    Case(sdpa, grouped, lambda n: (*one_query_of_four_heads(n), shown(n, 4, 1, 130)), name="one-query-mask-of-heads"),
    Case(
        sdpa,
        grouped,
        lambda n: (*one_query_of_four_heads(n), torch.randn(4, 1, 130)),
        name="one-query-bias-of-heads",
    ),
    Case(sdpa, functools.partial(grouped, is_causal=True), one_query_of_four_heads, name="one-query-causal"),
    # Constant keys and values
    Case(sdpa, Memory(), lambda n: (torch.randn(2, 2, 3 + n, 8),), name="constant-keys"),
    # Sizes and ranks
    Case(sdpa, attend, lambda n: qkv((n, 2, 5, 8), (n, 2, 5, 8), (n, 2, 5, 16)), name="larger-values"),
    Case(sdpa, attend, lambda n: (*qkv((n, 2, 5, 8), (n, 2, 7, 8), (n, 2, 7, 3)), shown(5, 7)), name="smaller-values"),
    Case(sdpa, attend, lambda n: qkv((n, 5, 8), (n, 7, 8)), name="3d"),
    Case(sdpa, attend, lambda n: (*qkv((n, 5, 8), (n, 7, 8), (n, 7, 4)), shown(n, 5, 7)), name="3d-mask"),
    Case(sdpa, attend, lambda n: (*qkv((n, 5, 8), (n, 7, 8)), shown(1, 7)), name="3d-mask-of-keys"),
    Case(sdpa, attend, lambda n: qkv((3 + n, 8), (7, 8)), name="2d"),
    Case(sdpa, attend, lambda n: (*qkv((3 + n, 8), (7, 8)), shown(3 + n, 7)), name="2d-mask"),
    Case(sdpa, attend, lambda n: (*qkv((3, 8), (7 + n, 8)), torch.rand(7 + n) > 0.5), name="2d-mask-1d"),
    Case(sdpa, attend, lambda n: qkv((n, 3, 2, 5, 8), (n, 3, 2, 7, 8)), name="5d"),
    Case(sdpa, attend, lambda n: (*qkv((2, n, 2, 3 + n, 8), (2, n, 2, 7, 8)), shown(3 + n, 7)), name="5d-mask"),
    Case(
        sdpa,
        attend,
        lambda n: (*qkv((2, n, 2, 5, 8), (2, n, 2, 7, 8)), shown(2, 1, 1, 5, 7)),
        name="5d-mask-of-the-first",
    ),
    Case(
        sdpa,
        functools.partial(attend, is_causal=True),
        lambda n: qkv((n, 2, 2, 2, 5, 8), (n, 2, 2, 2, 7, 8)),
        name="6d",
    ),
    Case(sdpa, lambda x: attend(x, x, x), lambda n: (torch.randn(2, n, 3, 8),), name="heads"),
    Case(
        sdpa,
        lambda x, mask: attend(x, x, x, mask),
        lambda n: (torch.randn(2, n, 3, 8), shown(n, 3, 3)),
        name="heads-mask",
    ),
    # Sizes that are broadcast
    Case(sdpa, attend, lambda n: qkv((n, 2, 3, 8), (1, 2, 5, 8)), name="one-batch-of-keys"),
    Case(sdpa, attend, lambda n: qkv((1, 2, 3, 8), (n, 2, 5, 8)), name="one-batch-of-queries"),
    Case(
        sdpa,
        attend,
        lambda n: (*qkv((n, 2, 3, 8), (n, 2, 5, 8), (1, 2, 5, 8)), shown(n, 1, 3, 5)),
        name="one-batch-of-values",
    ),
    Case(sdpa, attend, lambda n: qkv((n, 2, 3, 8), (2, 5, 8)), name="fewer-dimensions"),
    # Modules
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
    Rejected(sdpa, attend, lambda n: qkv((n, 2, 3, 8), (n, 2, 5, 8), (n, 2, 4, 8)), "unequal number", name="lengths"),
    Rejected(
        sdpa, attend, lambda n: (*qkv((1, 2, 3, 8), (1, 2, 5, 8)), shown(n, 1, 3, 5)), "larger", name="mask-batch"
    ),
    Rejected(sdpa, attend, lambda n: (*qkv((2, 3, 8), (2, 5, 8)), shown(n, 2, 3, 5)), "larger", name="mask-rank"),
    Rejected(
        sdpa,
        lambda x: grouped(x, x, x),
        lambda n: (torch.randn(2, n, 3, 8),),
        "number of heads",
        name="grouped-heads",
        dynamic=True,
    ),
]
