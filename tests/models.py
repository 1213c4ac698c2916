"""Small models that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Called(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *args: torch.Tensor) -> Any:
        return self.call(*args)


class ConvNet(nn.Module):
    """A convolution with batch norm, pooled to logits."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class WithUnsupported(ConvNet):
    """The same, with an operator in its middle that TensorRT does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.linalg.det(x).unsqueeze(-1).unsqueeze(-1) + x
        return self.head(x.mean((2, 3)))


def trained(model: nn.Module) -> nn.Module:
    """Return `model` in evaluation mode, with batch statistics that differ from those of initialization."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def image(batch: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)
