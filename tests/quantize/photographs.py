"""ResNet-50 with random weights, and crops of scikit-learn's two photographs."""

from __future__ import annotations

import torch
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional as F
from torchvision import models

SIZE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet50() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet50(weights=None).eval()


def crops() -> torch.Tensor:
    """Return 32 crops (3, 224, 224), sixteen of each photograph: from the whole of it to a third of its height."""
    found = []
    for photo in load_sample_images().images:
        image = torch.tensor(photo).permute(2, 0, 1).float().unsqueeze(0) / 255
        height, width = image.shape[-2:]
        for side in (height, 2 * height // 3, height // 2, height // 3):
            for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
                top, left = row * (height - side), column * (width - side)
                found.append(F.interpolate(image[..., top : top + side, left : left + side], (SIZE, SIZE), mode="area"))
    pixels = torch.cat(found)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))  # both in each batch
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return ((pixels - mean) / deviation)[order]


def batches() -> list[torch.Tensor]:
    """Return the 24 crops to calibrate with; the last 8 are to measure on."""
    return list(crops()[:24].split(4))


def unseen() -> torch.Tensor:
    return crops()[24:]
