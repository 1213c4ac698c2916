"""Pooling to a given size: PyTorch's windows then differ in size, and may overlap."""

from __future__ import annotations

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import statically_known_true
from torchtrt_bridge.lower.converters.image_means import mean_of_images, pools
from torchtrt_bridge.lower.converters.linear import multiply_along
from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten


def windows_known_only_at_run_time(self, output_size):
    """The beginning and end of each window go into the network as constants."""
    for size, wanted in zip(self.shape[-len(output_size) :], output_size, strict=True):
        kept = wanted == 1 if isinstance(wanted, int) else statically_known_true(size == wanted)
        if not kept and (is_symbolic(size) or is_symbolic(wanted)):
            return f"adaptive pooling to {wanted} from a size known only at run time"
    return None


@converter(
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
    aten._adaptive_avg_pool3d.default,
    why_not=windows_known_only_at_run_time,
    dtypes=FLOATS,
)
def adaptive_avg_pool(ctx, self, output_size):
    """adaptive_avg_pool2d(Tensor self, SymInt[2] output_size) -> Tensor"""
    return _adaptive(ctx, "AVG", ctx.tensor(self), output_size)


@converter(
    aten.adaptive_max_pool1d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    why_not=windows_known_only_at_run_time,
    dtypes=FLOATS,
)
def adaptive_max_pool(ctx, self, output_size):
    """adaptive_max_pool2d(Tensor self, int[2] output_size) -> (Tensor, Tensor)

    The indices are int64, which `dtypes` declines where something uses them."""
    return _adaptive(ctx, "MAX", ctx.tensor(self), output_size), None


def _adaptive(ctx, kind, x, output_size):
    """Bring the last dimensions to their sizes: by reductions, then equal windows, then unequal ones."""
    rank = len(x.shape)
    dims = range(rank - len(output_size), rank)
    whole = [dim for dim, wanted in zip(dims, output_size, strict=True) if isinstance(wanted, int) and wanted == 1]
    rest = [
        (dim, wanted)
        for dim, wanted in zip(dims, output_size, strict=True)
        if dim not in whole and isinstance(wanted, int) and wanted != x.shape[dim]
    ]
    if whole:
        x = mean_of_images(ctx, x) if kind == "AVG" and pools(ctx, x, whole) else ctx.reduce(kind, x, whole, True)
    equal = {dim: x.shape[dim] // wanted for dim, wanted in rest if x.shape[dim] % wanted == 0}
    if equal:
        x = _equal_windows(ctx, kind, x, equal, len(output_size))
    for dim, wanted in rest:
        if dim not in equal:
            x = (_means if kind == "AVG" else _maxima)(ctx, x, dim, wanted)
    return x


def _equal_windows(ctx, kind, x, window, spatial):
    """Add one pooling layer; `window` has the size for each dimension that changes."""
    rank = len(x.shape)
    missing = [dim for dim, lacks in ((0, rank == spatial + 1), (2, spatial == 1)) if lacks]
    image = ctx.unsqueeze(x, missing) if missing else x
    size = [window.get(dim, 1) for dim in range(rank - spatial, rank)]
    size = tuple([1, *size] if spatial == 1 else size)
    pooling = ctx.trt.PoolingType.AVERAGE if kind == "AVG" else ctx.trt.PoolingType.MAX
    layer = ctx.network.add_pooling_nd(image, pooling, size)
    layer.stride_nd = size
    return ctx.squeeze(layer.get_output(0), missing) if missing else layer.get_output(0)


def _windows(size, wanted):
    """Return the beginning and the end of each of PyTorch's windows."""
    return [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]


def _means(ctx, x, dim, wanted):
    """Compute the mean of each window of one dimension, as a product with a constant matrix."""
    matrix = torch.zeros(wanted, x.shape[dim])
    for row, (start, stop) in zip(matrix, _windows(x.shape[dim], wanted), strict=True):
        row[start:stop] = 1 / (stop - start)
    return multiply_along(ctx, x, dim, matrix)


def _maxima(ctx, x, dim, wanted):
    """Compute the maximum of each window of one dimension; short windows repeat their last element."""
    windows = _windows(x.shape[dim], wanted)
    longest = max(stop - start for start, stop in windows)
    index = [[min(start + i, stop - 1) for i in range(longest)] for start, stop in windows]
    gathered = ctx.network.add_gather(x, ctx.constant(index, torch.int64), dim).get_output(0)
    return ctx.reduce("MAX", gathered, [dim + 1], False)
