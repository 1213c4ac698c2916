"""A model in the style of Llama's reference code, with rotary embeddings as complex numbers."""

from __future__ import annotations

import math

import torch
from torch import nn


def frequencies(head: int, length: int) -> torch.Tensor:
    """Return the rotations of positions, as complex numbers of length 1."""
    steps = 1.0 / (10000.0 ** (torch.arange(0, head, 2)[: head // 2].float() / head))
    angles = torch.outer(torch.arange(length).float(), steps)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(q: torch.Tensor, k: torch.Tensor, rotations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys of shape (batch, length, heads, size)."""
    q_, k_ = (torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2)) for x in (q, k))
    shape = [size if dim in (1, q_.ndim - 1) else 1 for dim, size in enumerate(q_.shape)]
    rotations = rotations.view(*shape)
    q, k = (torch.view_as_real(x * rotations).flatten(3).type_as(y) for x, y in ((q_, q), (k_, k)))
    return q, k


class Attention(nn.Module):
    def __init__(self, size: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
        batch, length, size = x.shape
        q, k, v = (w(x).view(batch, length, self.heads, -1) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, k, rotations)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(size // self.heads)
        mask = torch.full((length, length), float("-inf"), device=x.device).triu(1)
        scores = nn.functional.softmax((scores + mask).float(), dim=-1).type_as(q)
        return self.wo(torch.matmul(scores, v).transpose(1, 2).contiguous().view(batch, length, -1))


class Llama(nn.Module):
    """Two layers, with rotations as an attribute (as in the reference code), a buffer, or an argument."""

    def __init__(self, kind: str = "attribute") -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.norm = nn.LayerNorm(16)
        if kind == "buffer":
            self.register_buffer("freqs_cis", frequencies(8, 64), persistent=False)
        else:
            self.freqs_cis = frequencies(8, 64)

    def forward(self, x: torch.Tensor, rotations: torch.Tensor | None = None) -> torch.Tensor:
        if rotations is None:
            if "freqs_cis" not in self._buffers:
                self.freqs_cis = self.freqs_cis.to(x.device)
            rotations = self.freqs_cis[: x.shape[1]]
        for layer in self.layers:
            x = x + layer(self.norm(x), rotations)
        return x
