"""Attention in parts: product, mask, softmax, product, for calls that TensorRT's own layer does not take."""

from __future__ import annotations

import torch

from torchtrt_bridge.graph.torch_internals import statically_known_true
from torchtrt_bridge.lower.converters.slicing import line


def attention_in_parts(ctx, tensors, shapes, mask, is_causal):
    """Compute attention of query (scaled already), key and value, under a mask or a causal one.

    Leading sizes broadcast.
    """
    rank = max(map(len, shapes))
    q, k, v = (ctx.tensor(tensor, rank=rank) for tensor in tensors)
    k, v = (_for_each_head(ctx, t, shape, shapes[0]) for t, shape in zip((k, v), shapes[1:], strict=True))
    scores = ctx.cast(ctx.product(q, k, "TRANSPOSE"), torch.float32)
    if is_causal:
        mask = ctx.once("causal mask", None, lambda: _causal(ctx, q, k), str(shapes[0][-2]), str(shapes[1][-2]))
    if mask is not None:
        scores = _masked(ctx, scores, mask)
    layer = ctx.network.add_softmax(scores)
    layer.axes = ctx.axes([-1], rank)
    weights = ctx.cast(layer.get_output(0), ctx.dtype(v))
    return ctx.product(weights, v)


def _for_each_head(ctx, tensor, own, query):
    """Repeat keys or values for each head of the query if several share one; `own` and `query` are fake shapes."""
    if len(own) < 3 or len(query) < 3 or any(statically_known_true(own[-3] == n) for n in (1, query[-3])):
        return tensor  # the product broadcasts
    if statically_known_true(query[-3] == 1):
        return tensor
    rank, times = len(tensor.shape), query[-3] // own[-3]
    grouped = ctx.expand(ctx.unsqueeze(tensor, [rank - 2]), [*[-1] * (rank - 2), times, -1, -1])
    sizes = ctx.sizes(tensor)
    return ctx.reshape(grouped, [*sizes[:-3], query[-3], *sizes[-2:]])


def _masked(ctx, scores, mask):
    """Apply a mask to scores; a row that hides all keys becomes a mean, which the caller replaces by zeros.

    Hidden scores get the lowest number. With an infinity here, TensorRT-RTX 1.6 and 1.7 fail to build an attention in
    half precision whose size is no multiple of 8 ("tactics_tiled_layout").
    """
    if ctx.dtype(mask) == torch.bool:
        return ctx.select(ctx.tensor(mask), scores, torch.finfo(torch.float32).min, torch.float32)
    return ctx.elementwise("SUM", scores, mask, torch.float32)


def _causal(ctx, query, key):
    """Return a mask that shows each query the keys up to its own position; both count from the first, as in PyTorch."""
    rows, columns = (line(ctx, 0, ctx.size(tensor, -2), 1) for tensor in (query, key))
    hidden = ctx.elementwise("LESS", ctx.unsqueeze(rows, [1]), ctx.unsqueeze(columns, [0]))
    return ctx.unary("NOT", hidden)
