"""Sampling at positions that a tensor gives."""

import functools

import torch
import torch.nn.functional as F

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def image_and_grid(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 5 + n, 7), 1.5 * torch.rand(n, 4, 6, 2) - 0.75


def sampling(mode: str, padding_mode: str, align_corners: bool) -> Case:
    call = functools.partial(F.grid_sample, mode=mode, padding_mode=padding_mode, align_corners=align_corners)
    name = f"{mode}-{padding_mode}{'-align' if align_corners else ''}"
    return Case(aten.grid_sampler_2d.default, call, image_and_grid, name=name)


CASES: list[Case] = [
    sampling("bilinear", "zeros", False),
    sampling("bilinear", "zeros", True),
    sampling("bilinear", "border", False),
    sampling("bilinear", "reflection", True),
    sampling("nearest", "zeros", False),
    sampling("nearest", "border", True),
    sampling("bicubic", "zeros", False),
    sampling("bicubic", "reflection", False),
]

REJECTED: list[Rejected] = []
