"""Upsampling and downsampling of one, two and three dimensions, and sampling at positions that a tensor gives."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.linear import multiply_along
from torchtrt_bridge.lower.converters.sizes import computed
from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Resampling:
    """One way to interpolate.

    mode: TensorRT's name for it, None where it has no such mode.
    along: PyTorch's own operator on one dimension: (rows [R, L], new size, scale or None) -> [R, new size].
    """

    mode: str | None
    along: Callable[..., torch.Tensor]
    align_corners: bool = False
    is_exact: bool = False


def _in_two_dimensions(op: Any, align_corners: bool) -> Callable[..., torch.Tensor]:
    """Apply a two-dimensional operator to rows, as images of height 1."""
    return lambda rows, size, scale: op(rows[None, :, None], [1, size], align_corners, None, scale)[0, :, 0]


def _nearest(is_exact: bool) -> Resampling:
    op = aten._upsample_nearest_exact1d.default if is_exact else aten.upsample_nearest1d.default
    return Resampling("NEAREST", lambda rows, *size: op(rows[None], size[:1], size[1])[0], False, is_exact)


def _linear(align_corners: bool) -> Resampling:
    op = aten.upsample_linear1d.default
    along = lambda rows, size, scale: op(rows[None], [size], align_corners, scale)[0]  # noqa: E731
    return Resampling("LINEAR", along, align_corners)


def _cubic(align_corners: bool) -> Resampling:
    return Resampling("CUBIC", _in_two_dimensions(aten.upsample_bicubic2d.default, align_corners), align_corners)


def _antialiased(op: Any) -> Callable[[bool], Resampling]:
    return lambda align_corners: Resampling(None, _in_two_dimensions(op, align_corners), align_corners)


def _reason(how: Resampling, sizes, scale_factors):
    """PyTorch maps positions by the scale that it is given, TensorRT by that of the sizes."""
    for size, scale in zip(sizes, scale_factors or [None] * len(sizes), strict=True):
        if not is_symbolic(size):
            continue
        if how.mode is None:
            return "antialiasing with a size known only at run time"
        divides = _is_divisor(scale) and (how.mode != "CUBIC" or how.align_corners)
        if scale is not None and not float(scale).is_integer() and not divides:
            return f"a scale factor of {scale} for a size known only at run time"
    return None


def _is_divisor(scale):
    return scale in (1 / 2, 1 / 4, 1 / 8, 1 / 16)


def _register_nearest(*ops, is_exact):
    how = _nearest(is_exact)

    def unknown_scale(input, output_size, scale_factors):
        return _reason(how, input.shape[2:], scale_factors)

    @converter(*ops, why_not=unknown_scale, dtypes=FLOATS)
    def upsample(ctx, input, output_size, scale_factors):
        """upsample_nearest2d.vec(Tensor input, SymInt[]? output_size, float[]? scale_factors) -> Tensor"""
        return _resample(ctx, ctx.tensor(input), how, output_size, scale_factors)


def _register(op, way):
    def unknown_scale(input, output_size, align_corners, scale_factors):
        return _reason(way(align_corners), input.shape[2:], scale_factors)

    @converter(op, why_not=unknown_scale, dtypes=FLOATS)
    def upsample(ctx, input, output_size, align_corners, scale_factors):
        """upsample_bilinear2d.vec(Tensor input, SymInt[]? output_size, bool align_corners,
        float[]? scale_factors) -> Tensor"""
        return _resample(ctx, ctx.tensor(input), way(align_corners), output_size, scale_factors)


_register_nearest(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_nearest3d.vec, is_exact=False)
_register_nearest(
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
    is_exact=True,
)
for _op in (aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec):
    _register(_op, _linear)
_register(aten.upsample_bicubic2d.vec, _cubic)
_register(aten._upsample_bilinear2d_aa.vec, _antialiased(aten._upsample_bilinear2d_aa.default))
_register(aten._upsample_bicubic2d_aa.vec, _antialiased(aten._upsample_bicubic2d_aa.default))


def _resample(ctx, x, how, output_size, scale_factors):
    """Map each dimension whose scale is not that of its sizes by constants, the others by one layer."""
    rank = len(x.shape) - 2
    scales = scale_factors or [None] * rank
    outs = [
        _output_size(ctx, ctx.size(x, dim), output_size and output_size[dim - 2], scales[dim - 2])
        for dim in range(2, rank + 2)
    ]
    for dim, (out, scale) in enumerate(zip(outs, scales, strict=True), start=2):
        size = x.shape[dim]
        follows = how.align_corners or scale is None or (size < 0 and not _is_divisor(scale)) or size * scale == out
        if how.mode is not None and follows:
            continue
        if how.mode in ("NEAREST", "LINEAR") and _is_divisor(scale):
            x = _without_rest(ctx, x, dim, out, round(1 / scale))
        else:
            x = _mapped(ctx, x, dim, how, out, scale)
    if all(size == out for size, out in zip(x.shape[2:], outs, strict=True)):
        return x
    return _resized(ctx, x, how, [*ctx.sizes(x)[:2], *outs])


def _output_size(ctx, size, given, scale):
    if given is not None or scale is None:
        return given
    if isinstance(size, int):
        return int(size * scale)
    if scale < 1:
        return computed(ctx, operator.floordiv, size, round(1 / scale))
    return computed(ctx, operator.mul, size, round(scale))


def _without_rest(ctx, x, dim, out, divisor):
    """Cut off the elements behind the last whole step, so that the sizes have the scale asked for."""
    sizes = ctx.sizes(x)
    sizes[dim] = out * divisor if isinstance(out, int) else computed(ctx, operator.mul, out, divisor)
    return ctx.slice(x, [0] * len(sizes), sizes)


def _mapped(ctx, x, dim, how, out, scale):
    """Resample one dimension as PyTorch does, by the indices or the matrix that PyTorch itself gives."""
    size = x.shape[dim]
    if how.mode == "NEAREST":
        index = how.along(torch.arange(size, dtype=torch.float32)[None], out, scale)[0].long()
        return ctx.network.add_gather(x, ctx.constant(index), dim).get_output(0)
    return multiply_along(ctx, x, dim, how.along(torch.eye(size), out, scale).T)


def _resized(ctx, x, how, sizes):
    layer = ctx.network.add_resize(x)
    layer.resize_mode = getattr(ctx.trt.InterpolationMode, how.mode or "LINEAR")
    coordinates = "ALIGN_CORNERS" if how.align_corners else "HALF_PIXEL"
    if how.mode == "NEAREST":
        coordinates = "HALF_PIXEL" if how.is_exact else "ASYMMETRIC"
        layer.nearest_rounding = getattr(ctx.trt.ResizeRoundMode, "HALF_UP" if how.is_exact else "FLOOR")
    elif how.align_corners:
        layer.selector_for_single_pixel = ctx.trt.ResizeSelector.UPPER
    layer.coordinate_transformation = getattr(ctx.trt.ResizeCoordinateTransformation, coordinates)
    layer.cubic_coeff = -0.75
    if all(isinstance(size, int) for size in sizes):
        layer.shape = tuple(sizes)
    else:
        layer.set_input(1, ctx.shape_tensor(sizes))
    return layer.get_output(0)


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
