"""Caches of keys and values, which TensorRT updates where they lie."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.graph.kv_cache import LENGTH, own
from torchtrt_bridge.lower.converters.sizes import computed, scalar
from torchtrt_bridge.lower.converters.slicing import along, line
from torchtrt_bridge.lower.registry import NUMBERS, converter


# In fp32 where the cache is: a cast of it would be no memory of the caller's, in which the layer writes.
@converter(own.kv_cache_update.default, dtypes=NUMBERS, precision="fp32")
def kv_cache_update(ctx, cache, update, start):
    """kv_cache_update(Tensor cache, Tensor update, Tensor start) -> Tensor"""
    cache, update = ctx.tensor(cache), ctx.tensor(update)
    start = _within(ctx, ctx.tensor(start), ctx.size(cache, LENGTH), ctx.size(update, LENGTH))
    if not (cache.is_network_input and ctx.supports("kv_cache_update")):
        return _scattered(ctx, cache, update, start)
    rows = ctx.expand(ctx.reshape(ctx.cast(start, torch.int32), [1]), [ctx.size(cache, 0)])
    return ctx.network.add_kv_cache_update(cache, update, rows, ctx.trt.KVCacheMode.LINEAR).get_output(0)


def _within(ctx, start, capacity, length):
    """Count a negative start from the end, and keep the update within the cache: TensorRT does not look."""
    start = ctx.cast(start, torch.int64)
    from_end = ctx.elementwise("SUM", start, scalar(ctx, capacity))
    start = ctx.select(ctx.elementwise("LESS", start, 0), from_end, start)
    last = scalar(ctx, computed(ctx, operator.sub, capacity, length))
    return ctx.elementwise("MAX", ctx.elementwise("MIN", start, last), 0)


def _scattered(ctx, cache, update, start):
    """Write the update into a copy of the cache, element by element."""
    steps = along(ctx, line(ctx, 0, ctx.size(update, LENGTH), 1), LENGTH, len(update.shape))
    index = ctx.expand(ctx.elementwise("SUM", start, steps), ctx.sizes(update))
    layer = ctx.network.add_scatter(cache, index, update, ctx.trt.ScatterMode.ELEMENT)
    layer.axis = LENGTH
    return layer.get_output(0)
