"""Pooling over windows of one, two and three dimensions, of given and of adaptive size."""

from __future__ import annotations

import math
import operator

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.sizes import computed
from torchtrt_bridge.lower.registry import FLOATS, converter

aten = torch.ops.aten


def _unknown_count(self, rank, kernel_size, stride, padding, ceil_mode):
    """PyTorch drops a window that starts in the padding; TensorRT does not."""
    kernel, padding = _each(kernel_size, rank), _each(padding, rank)
    stride = _each(stride, rank) or kernel
    for size, k, s, p in zip(self.shape[-rank:], kernel, stride, padding, strict=True):
        if ceil_mode and s + p > k and is_symbolic(size):
            return "ceil_mode, where the number of windows depends on a size known only at run time"
    return None


def _each(values, rank):
    """Return one number for each dimension, from a number or a list."""
    values = [values] if isinstance(values, int) else list(values)
    return values * rank if len(values) == 1 else values


def _max_pool(rank, op, op_with_indices=None):
    """Register the max pooling over the last `rank` dimensions."""

    def dilated_or_of_unknown_count(
        self, kernel_size, stride=(), padding=(0,) * rank, dilation=(1,) * rank, ceil_mode=False
    ):
        """TensorRT's windows have no gaps."""
        if any(step != 1 for step in _each(dilation, rank)):
            return "a max pooling with dilation"
        return _unknown_count(self, rank, kernel_size, stride, padding, ceil_mode)

    @converter(op, why_not=dilated_or_of_unknown_count, dtypes=FLOATS)
    def max_pool(ctx, self, kernel_size, stride=(), padding=(0,) * rank, dilation=(1,) * rank, ceil_mode=False):
        """max_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0, int[2] dilation=1,
        bool ceil_mode=False) -> Tensor"""
        return _pool(ctx, "MAX", self, rank, kernel_size, stride, padding, ceil_mode)

    if op_with_indices is None:
        return

    @converter(op_with_indices, why_not=dilated_or_of_unknown_count, dtypes=FLOATS)
    def max_pool_with_indices(
        ctx, self, kernel_size, stride=(), padding=(0,) * rank, dilation=(1,) * rank, ceil_mode=False
    ):
        """max_pool2d_with_indices(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0,
        int[2] dilation=1, bool ceil_mode=False) -> (Tensor, Tensor)

        The indices are int64, which `dtypes` declines where something uses them."""
        return _pool(ctx, "MAX", self, rank, kernel_size, stride, padding, ceil_mode), None


_max_pool(1, aten.max_pool1d.default)
_max_pool(2, aten.max_pool2d.default, aten.max_pool2d_with_indices.default)
_max_pool(3, aten.max_pool3d.default, aten.max_pool3d_with_indices.default)


def of_unknown_count(self, kernel_size, stride=(), padding=(0,), ceil_mode=False, count_include_pad=True):
    return _unknown_count(self, 1, kernel_size, stride, padding, ceil_mode)


@converter(aten.avg_pool1d.default, why_not=of_unknown_count, dtypes=FLOATS)
def avg_pool1d(ctx, self, kernel_size, stride=(), padding=(0,), ceil_mode=False, count_include_pad=True):
    """avg_pool1d(Tensor self, int[1] kernel_size, int[1] stride=[], int[1] padding=0, bool ceil_mode=False,
    bool count_include_pad=True) -> Tensor"""
    return _pool(ctx, "AVERAGE", self, 1, kernel_size, stride, padding, ceil_mode, count_include_pad)


def _avg_pool(rank, op):
    """Register the average pooling over the last `rank` dimensions."""

    def of_unknown_count_or_divisor(
        self,
        kernel_size,
        stride=(),
        padding=(0,) * rank,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        if divisor_override is not None and ceil_mode and any(is_symbolic(size) for size in self.shape[-rank:]):
            return "divisor_override with ceil_mode and a size known only at run time"
        return _unknown_count(self, rank, kernel_size, stride, padding, ceil_mode)

    @converter(op, why_not=of_unknown_count_or_divisor, dtypes=FLOATS)
    def avg_pool(
        ctx,
        self,
        kernel_size,
        stride=(),
        padding=(0,) * rank,
        ceil_mode=False,
        count_include_pad=True,
        divisor_override=None,
    ):
        """avg_pool2d(Tensor self, int[2] kernel_size, int[2] stride=[], int[2] padding=0,
        bool ceil_mode=False, bool count_include_pad=True, int? divisor_override=None) -> Tensor"""
        window = (rank, kernel_size, stride, padding, ceil_mode)
        if divisor_override is None:
            return _pool(ctx, "AVERAGE", self, *window, count_include_pad)
        mean = _pool(ctx, "AVERAGE", self, *window, counts_all=True)
        factor = math.prod(_each(kernel_size, rank)) / divisor_override
        return ctx.elementwise("PROD", mean, factor, ctx.dtype(mean))


_avg_pool(2, aten.avg_pool2d.default)
_avg_pool(3, aten.avg_pool3d.default)


def _pool(ctx, kind, self, rank, kernel_size, stride, padding, ceil_mode, count_include_pad=True, counts_all=False):
    """Add a pooling layer over the last `rank` dimensions.

    counts_all: each window's average counts all its elements, those beyond the padding too.
    """
    kernel, padding = _each(kernel_size, rank), _each(padding, rank)
    stride = _each(stride, rank) or kernel
    x = ctx.tensor(self)
    if ceil_mode and kind == "AVERAGE" and count_include_pad and not counts_all:
        x, padding, count_include_pad = _with_zeros(ctx, x, padding), [0] * rank, False
    sizes, wanted = x.shape[-rank:], ctx.node.meta["val"]
    wanted = (wanted[0] if isinstance(wanted, (tuple, list)) else wanted).shape[-rank:]
    needed = [
        0 if size < 0 or not isinstance(out, int) else (out - 1) * s + k - size - p
        for size, out, k, s, p in zip(sizes, wanted, kernel, stride, padding, strict=True)
    ]
    # PyTorch drops a window that would start beyond the image; without it there is nothing to round up.
    rounds_up = ceil_mode and (min(sizes) < 0 or any(n > p for n, p in zip(needed, padding, strict=True)))
    post = padding
    if rounds_up and min(sizes) >= 0:
        post, rounds_up = [max(n, p) for n, p in zip(needed, padding, strict=True)], False
    # TensorRT wants batch, channels and at least two dimensions more.
    missing = [dim for dim, lacks in ((0, len(x.shape) == rank + 1), (2, rank == 1)) if lacks]
    lead = (1,) if rank == 1 else ()
    image = ctx.unsqueeze(x, missing) if missing else x
    layer = ctx.network.add_pooling_nd(image, getattr(ctx.trt.PoolingType, kind), (*lead, *kernel))
    layer.stride_nd = (*lead, *stride)
    layer.pre_padding, layer.post_padding = (*[0 for _ in lead], *padding), (*[0 for _ in lead], *post)
    layer.average_count_excludes_padding = not (count_include_pad or counts_all)
    if rounds_up:
        layer.padding_mode = ctx.trt.PaddingMode.EXPLICIT_ROUND_UP
    pooled = layer.get_output(0)
    return _cropped(ctx, ctx.squeeze(pooled, missing) if missing else pooled, rank, wanted)


def _with_zeros(ctx, x, padding):
    """Pad `x` with zeros. TensorRT then excludes from an average what only rounds the size up, as PyTorch does.

    With padding of its own it counts all or nothing: seen on an H100, where each window was divided by its full size.
    """
    if not any(padding):
        return x
    lead = len(x.shape) - len(padding)
    sizes = ctx.sizes(x)
    shape = sizes[:lead] + [computed(ctx, operator.add, n, 2 * p) for n, p in zip(sizes[lead:], padding, strict=True)]
    return ctx.slice(x, [0] * lead + [-p for p in padding], shape, mode="FILL")


def _cropped(ctx, x, rank, wanted):
    """Cut off the windows that PyTorch drops."""
    pairs = list(zip(x.shape[-rank:], wanted, strict=True))
    if all(not isinstance(out, int) or size in (-1, out) for size, out in pairs):
        return x
    sizes = ctx.sizes(x)
    sizes[-rank:] = [out if isinstance(out, int) else size for size, (_, out) in zip(sizes[-rank:], pairs, strict=True)]
    return ctx.slice(x, [0] * len(sizes), sizes)
