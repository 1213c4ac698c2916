"""Sums, means and maxima of rows of a table, in bags that begin at offsets. Each bag is compared with each index.

Bags of one size come without offsets: `passes/embedding_bags.py` makes them a reduction of rows.
"""

from __future__ import annotations

import math
import operator

import torch

from torchtrt_bridge.errors import LoweringError
from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.arithmetic import widened
from torchtrt_bridge.lower.converters.scatter_reduce import too_many_comparisons
from torchtrt_bridge.lower.converters.sizes import computed, fake, scalar
from torchtrt_bridge.lower.converters.slicing import END, line
from torchtrt_bridge.lower.registry import NUMBERS, converter

aten = torch.ops.aten
SUM, MEAN, MAX = range(3)


def too_many_pairs(weight, indices, offsets, **rest):
    """Each bag is compared with each index, so the number of one of them must be known."""
    bags, count = offsets.shape[0], indices.shape[0]
    known, other = (count, bags) if is_symbolic(bags) else (bags, count)
    return too_many_comparisons(known, [other, weight.shape[1]])


@converter(
    aten._embedding_bag.default,
    aten._embedding_bag_forward_only.default,
    why_not=too_many_pairs,
    dtypes=NUMBERS,
)
def embedding_bag(
    ctx,
    weight,
    indices,
    offsets,
    scale_grad_by_freq=False,
    mode=SUM,
    sparse=False,
    per_sample_weights=None,
    include_last_offset=False,
    padding_idx=-1,
):
    """_embedding_bag(Tensor weight, Tensor indices, Tensor offsets, bool scale_grad_by_freq=False, int mode=0,
    bool sparse=False, Tensor? per_sample_weights=None, bool include_last_offset=False, int padding_idx=-1)
    -> (Tensor, Tensor, Tensor, Tensor)

    The other results are for gradients. The last bag ends with the indices, as on CUDA, whatever the last offset is.
    """
    _check_results(ctx)
    dtype = fake(ctx, 0).dtype
    wide = widened(dtype)
    indices = ctx.tensor(indices, torch.int64)
    rows = ctx.cast(ctx.network.add_gather(ctx.tensor(weight), indices, 0).get_output(0), wide)
    if per_sample_weights is not None:
        rows = ctx.elementwise("PROD", rows, ctx.unsqueeze(ctx.tensor(per_sample_weights, wide), [1]))
    members = _members(ctx, indices, _starts(ctx, offsets, include_last_offset), padding_idx)
    if mode == MAX:
        result = _largest(ctx, rows, members, may_be_nan=not _is_free_of_nan(weight))
    else:
        result = _total(ctx, rows, members, mode)
    return ctx.cast(result, dtype), None, None, None


def _check_results(ctx):
    used = sorted({user.args[1] for user in ctx.node.users} - {0})
    if used:
        raise LoweringError(f"results {used} are used, which are for gradients; only the first is computed.")


def _starts(ctx, offsets, include_last_offset):
    """Return the position where each bag begins."""
    offsets = ctx.tensor(offsets, torch.int64)
    bags = computed(ctx, operator.sub, ctx.size(offsets, 0), 1) if include_last_offset else None
    return offsets if bags is None else ctx.slice(offsets, [0], [bags])


def _members(ctx, indices, starts, padding_idx):
    """Return which index is in which bag, of shape (bags, indices)."""
    ends = ctx.slice(starts, [1], ctx.sizes(starts), mode="FILL", fill=END)
    positions = line(ctx, 0, ctx.size(indices, 0), 1)
    begun = ctx.unary("NOT", ctx.elementwise("GREATER", ctx.unsqueeze(starts, [1]), positions))
    members = ctx.elementwise("AND", begun, ctx.elementwise("GREATER", ctx.unsqueeze(ends, [1]), positions))
    if padding_idx < 0:
        return members
    return ctx.elementwise("AND", members, ctx.unary("NOT", ctx.elementwise("EQUAL", indices, padding_idx)))


def _reduced(ctx, layer, rows, members, neutral):
    """Reduce the rows of each bag. A product with the mask would give NaN for infinite rows of other bags."""
    chosen = ctx.select(ctx.unsqueeze(members, [2]), ctx.unsqueeze(rows, [0]), neutral, ctx.dtype(rows))
    return ctx.reduce(layer, chosen, [1], keep_dims=False)


def _counts(ctx, members, dtype):
    """Return the number of rows of each bag, of shape (bags, 1)."""
    return ctx.reduce("SUM", ctx.cast(members, dtype), [1], keep_dims=True)


def _total(ctx, rows, members, mode):
    total = _reduced(ctx, "SUM", rows, members, 0.0)
    if mode == SUM:
        return total
    count = _counts(ctx, members, ctx.dtype(rows))
    return ctx.elementwise("DIV", total, ctx.elementwise("MAX", count, 1.0, ctx.dtype(rows)))


def _largest(ctx, rows, members, may_be_nan):
    """Return the largest row of each bag, by element, and zeros for empty bags.

    PyTorch begins with the first row and takes greater ones, so NaN wins as the first one and loses later.
    """
    numbers = ctx.select(ctx.unary("ISNAN", rows), -math.inf, rows) if may_be_nan else rows
    result = _reduced(ctx, "MAX", numbers, members, -math.inf)
    if may_be_nan:
        first = ctx.network.add_gather(rows, _first(ctx, members), 0).get_output(0)
        result = ctx.select(ctx.unary("ISNAN", first), first, result)
    is_filled = ctx.elementwise("GREATER", _counts(ctx, members, ctx.dtype(rows)), 0.0)
    return ctx.select(is_filled, result, 0.0)


def _first(ctx, members):
    """Return the position of the first row of each bag; the last position for an empty bag."""
    count = ctx.size(members, 1)
    last = scalar(ctx, computed(ctx, operator.sub, count, 1))
    places = ctx.select(members, line(ctx, 0, count, 1), last, torch.int64)
    return ctx.reduce("MIN", places, [1], keep_dims=False)


def _is_free_of_nan(weight):
    return isinstance(weight, torch.Tensor) and not bool(weight.isnan().any())
