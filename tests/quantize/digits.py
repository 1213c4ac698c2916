"""Two small networks, trained on scikit-learn's digits: an ordinary one, and one of depthwise convolutions."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

TRAIN = 1200
EPOCHS = 12


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images (1797, 1, 8, 8), scaled to 0..1 and shuffled, and their classes."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(data.target)[order]


def calibration_loader() -> DataLoader:
    """Return training images with their labels, as a user's loader gives them."""
    images, labels = digits()
    return DataLoader(TensorDataset(images[:256], labels[:256]), batch_size=32)


def accuracy(model: nn.Module) -> float:
    """Return the percentage of test images that are classified right."""
    images, labels = digits()
    with torch.no_grad():
        found = model(images[TRAIN:]).argmax(-1)
    return 100 * float((found == labels[TRAIN:]).float().mean())


class Block(nn.Module):
    """A residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResidualNet(nn.Module):
    """A small ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class DepthwiseNet(nn.Module):
    """MobileNet in small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(
            separable(16, 32, 1), separable(32, 64, 2), separable(64, 64, 1), separable(64, 96, 2)
        )
        self.head = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def trained(model: nn.Module, epochs: int = EPOCHS) -> nn.Module:
    """Train `model` for some epochs on the training images; return it in evaluation mode."""
    images, labels = (tensor[:TRAIN] for tensor in digits())
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    steps = epochs * -(-TRAIN // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    order = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(TRAIN, generator=order).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def uneven(model: nn.Module) -> nn.Module:
    """Make the ranges of channels differ up to a hundredfold, as in trained MobileNets; the function is the same."""
    generator = torch.Generator().manual_seed(0)
    convs = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm, conv in zip(norms[:-1], convs[1:], strict=True):
            factors = 10 ** (2 * torch.rand(norm.num_features, generator=generator) - 1)
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            conv.weight.div_(factors.view(-1, 1, 1, 1) if conv.groups > 1 else factors.view(1, -1, 1, 1))
    return model
