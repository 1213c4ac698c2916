"""Positions and masks of transformers, made from sizes, ids and padding. The harness negates inputs."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
Inputs = tuple[torch.Tensor, ...]
LOWEST = -1e4


def scores(n: int) -> Inputs:
    """Attention scores: batch, heads, queries, keys."""
    return (torch.randn(2, 4, n + 1, n + 3),)


def square_scores(n: int) -> Inputs:
    return (torch.randn(2, 4, 2 * n, 2 * n),)


def heads(n: int) -> Inputs:
    """Batch, heads, tokens, numbers of a head."""
    return (torch.randn(2, 4, n, 8),)


def token_ids(n: int) -> Inputs:
    """Ids from 0 to 8 after negation, of which 0 is padding."""
    return (-torch.randint(0, 9, (2, n + 3)),)


def not_padding(n: int) -> Inputs:
    """A mask that is True for padding before negation, at the end of the second row."""
    mask = torch.zeros(2, n + 3, dtype=torch.bool)
    mask[1, n:] = True
    return (mask,)


def states_and_mask(n: int) -> Inputs:
    return torch.randn(2, n + 3, 12), *not_padding(n)


# Positions ---------------------------------------------------------------------------------------------------------


class RelativeBuckets(nn.Module):
    """T5: a bias for each bucket of distances, which grow with the logarithm."""

    def __init__(self, is_bidirectional: bool) -> None:
        super().__init__()
        self.is_bidirectional = is_bidirectional
        self.bias = nn.Embedding(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])[None, :]
        bias = self.bias(self.buckets(keys - queries))
        return x + bias.permute(2, 0, 1).unsqueeze(0)

    def buckets(self, distance: torch.Tensor) -> torch.Tensor:
        count, result = 8, torch.zeros_like(distance)
        if self.is_bidirectional:
            count //= 2
            result = result + (distance > 0).to(torch.long) * count
            distance = distance.abs()
        else:
            distance = -torch.min(distance, torch.zeros_like(distance))
        exact = count // 2
        steps = torch.log(distance.float() / exact) / math.log(16 / exact) * (count - exact)
        far = torch.min(exact + steps.to(torch.long), torch.full_like(distance, count - 1))
        return result + torch.where(distance < exact, distance, far)


def alibi(x: torch.Tensor) -> torch.Tensor:
    """A penalty for distance, with a slope for each head."""
    slopes = torch.pow(2 ** -(8 / 4), torch.arange(1, 5, dtype=torch.int32))
    distance = torch.arange(x.shape[-1])[None, :] - torch.arange(x.shape[-2])[:, None]
    return x + (slopes[:, None, None] * distance).to(x.dtype)


def alibi_of_mask(mask: torch.Tensor) -> torch.Tensor:
    """Bloom: positions counted over what is no padding."""
    slopes = torch.pow(2 ** -(8 / 4), torch.arange(1, 5, dtype=torch.int32))
    position = ((mask.long().cumsum(dim=-1) - 1) * mask)[:, None, :]
    return (slopes[..., None] * position).reshape(2 * 4, 1, -1)


def position_ids(ids: torch.Tensor) -> torch.Tensor:
    """Roberta: positions count from behind the number of the padding, which keeps it."""
    mask = ids.ne(0).int()
    return (torch.cumsum(mask, dim=1).type_as(mask) * mask).long()


def left_padded_positions(mask: torch.Tensor) -> torch.Tensor:
    positions = mask.long().cumsum(-1) - 1
    return positions.masked_fill(~mask, 1)


class DisentangledBias(nn.Module):
    """DeBERTa: scores of content with relative positions, picked by distance."""

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        distance = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-2])[None, :]
        index = torch.clamp(distance + 5, 0, 9).squeeze(0).expand(x.shape[0], x.shape[1], x.shape[-2], x.shape[-2])
        return torch.gather(torch.matmul(x, positions.transpose(-1, -2)), dim=-1, index=index)


class WindowBias(nn.Module):
    """Swin: a table of biases, read at the distances within a window."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))
        places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        distance = (places[:, :, None] - places[:, None, :]).permute(1, 2, 0) + 1
        self.register_buffer("index", distance[..., 0] * 3 + distance[..., 1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)[None]


POSITIONS = [
    Case(aten.add.Tensor, RelativeBuckets(True), scores, name="relative-buckets"),
    Case(aten.add.Tensor, RelativeBuckets(False), scores, name="relative-buckets-backwards"),
    Case(aten.add.Tensor, alibi, scores, name="alibi"),
    Case(aten.cumsum.default, alibi_of_mask, not_padding, half=False, name="alibi-of-mask"),
    Case(aten.cumsum.default, position_ids, token_ids, half=False, name="position-ids"),
    Case(aten.cumsum.default, left_padded_positions, not_padding, half=False, name="left-padded-positions"),
    Case(aten.gather.default, DisentangledBias(), lambda n: (*heads(n), torch.randn(4, 10, 8)), name="disentangled"),
    Case(aten.add.Tensor, WindowBias(), lambda n: (torch.randn(n, 4, 4, 4),), name="window-bias"),
]


# Masks -------------------------------------------------------------------------------------------------------------


def distances(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])[None, :]


def causal(x: torch.Tensor) -> torch.Tensor:
    mask = torch.full((x.shape[-2], x.shape[-1]), torch.finfo(x.dtype).min, dtype=x.dtype)
    return x + torch.triu(mask, diagonal=1)[None, None]


def causal_for_the_last(x: torch.Tensor) -> torch.Tensor:
    """Fewer queries than keys: those of the last tokens."""
    mask = torch.ones(x.shape[-2], x.shape[-1], dtype=torch.bool).tril(diagonal=x.shape[-1] - x.shape[-2])
    return x.masked_fill(~mask, LOWEST)


def sliding_window(x: torch.Tensor) -> torch.Tensor:
    distance = distances(x)
    return torch.where((distance >= 0) & (distance < 3), x, LOWEST)


def chunks(x: torch.Tensor) -> torch.Tensor:
    rows, columns = torch.arange(x.shape[-2]) // 3, torch.arange(x.shape[-1]) // 3
    return x.masked_fill(rows[:, None] != columns[None, :], LOWEST)


class CausalBuffer(nn.Module):
    """GPT-2: a part of a triangle that is kept for the longest input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tril(torch.ones(32, 32, dtype=torch.bool)).view(1, 1, 32, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries, keys = x.shape[-2:]
        return torch.where(self.bias[:, :, keys - queries : keys, :keys], x, torch.finfo(x.dtype).min)


def extended(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """BERT: a number that is very negative where there is padding."""
    return (x @ x.transpose(1, 2)) + (1.0 - mask[:, None, :].to(x.dtype)) * torch.finfo(x.dtype).min


def inverted_twice(mask: torch.Tensor) -> torch.Tensor:
    """CLIP and BART: a mask of one text, expanded and inverted."""
    expanded = mask[:, None, None, :].expand(2, 1, mask.shape[1], mask.shape[1]).to(torch.float32)
    inverted = 1.0 - expanded
    return inverted.masked_fill(inverted.to(torch.bool), torch.finfo(torch.float32).min)


def softmax_in_fp32(x: torch.Tensor) -> torch.Tensor:
    return F.softmax(x, dim=-1, dtype=torch.float32).to(x.dtype)


MASKS = [
    Case(aten.add.Tensor, causal, scores, name="causal"),
    Case(aten.masked_fill.Scalar, causal_for_the_last, scores, name="causal-for-the-last"),
    Case(aten.where.self, CausalBuffer(), scores, name="causal-buffer"),
    Case(aten.where.self, sliding_window, scores, name="sliding-window"),
    Case(aten.masked_fill.Scalar, chunks, square_scores, name="chunks"),
    Case(aten.matmul.default, extended, states_and_mask, name="extended-mask"),
    Case(aten.masked_fill.Scalar, inverted_twice, not_padding, half=False, name="inverted-mask"),
    Case(aten._softmax.default, softmax_in_fp32, scores, name="in-fp32"),
]

CASES: list[Case] = [*POSITIONS, *MASKS]

REJECTED: list[Rejected] = []
