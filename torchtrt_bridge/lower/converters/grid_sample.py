"""Sampling at positions that a tensor gives."""

from __future__ import annotations

import torch

from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten

INTERPOLATIONS = ("LINEAR", "NEAREST", "CUBIC")
BORDERS = ("FILL", "CLAMP", "REFLECT")


@converter(aten.grid_sampler_2d.default, dtypes=FLOATS, precision="fp32")
def grid_sampler_2d(ctx, input, grid, interpolation_mode, padding_mode, align_corners):
    """grid_sampler_2d(Tensor input, Tensor grid, int interpolation_mode, int padding_mode,
    bool align_corners) -> Tensor"""
    layer = ctx.network.add_grid_sample(ctx.tensor(input), ctx.tensor(grid))
    layer.interpolation_mode = getattr(ctx.trt.InterpolationMode, INTERPOLATIONS[interpolation_mode])
    layer.sample_mode = getattr(ctx.trt.SampleMode, BORDERS[padding_mode])
    layer.align_corners = align_corners
    return layer.get_output(0)
