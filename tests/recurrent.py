"""Models with recurrent layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Crnn(nn.Module):
    """Convolutions over a line of text, then a layer of both directions over its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d((2, 1)))
        self.layer = nn.LSTM(16, 8, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.features(x).flatten(1, 2).transpose(1, 2)
        y, _ = self.layer(columns)
        result: torch.Tensor = self.head(y).log_softmax(-1)
        return result


class Encoder(nn.Module):
    """A speech encoder: every second frame, then layers of a kind over what is left."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.subsampled = nn.Conv1d(8, 12, 3, stride=2, padding=1)
        self.layers = kind(12, 6, num_layers=2, batch_first=True, **options)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        y, state = self.layers(self.subsampled(x).relu().transpose(1, 2))
        return self.norm(y), state
