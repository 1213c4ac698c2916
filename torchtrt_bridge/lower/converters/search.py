"""The places of values in sorted sequences.

PyTorch searches by halving, which decides the places among NaN and in a sequence that is not sorted.
"""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.graph.torch_internals import statically_known_true
from torchtrt_bridge.lower.converters.arithmetic import result_dtype
from torchtrt_bridge.lower.converters.sizes import computed, fake, scalar
from torchtrt_bridge.lower.converters.topk import more_than, taken
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten

# The most values of a sequence: each doubling of their number adds a step to the search.
MAX_SEARCHED = 2**20


def many_boundaries(self, boundaries, **rest):
    return more_than(MAX_SEARCHED, boundaries.shape[-1], "searching")


@converter(aten.bucketize.Tensor, aten.bucketize.Scalar, why_not=many_boundaries)
def bucketize(ctx, self, boundaries, *, out_int32=False, right=False):
    """bucketize.Tensor(Tensor self, Tensor boundaries, *, bool out_int32=False, bool right=False) -> Tensor"""
    return ctx.cast(place_in(ctx, boundaries, self, right, fake(ctx, 1).shape[-1]), result_dtype(ctx))


def long_sequence(sorted_sequence, self, **rest):
    return more_than(MAX_SEARCHED, sorted_sequence.shape[-1], "searching")


@converter(aten.searchsorted.Tensor, aten.searchsorted.Scalar, why_not=long_sequence)
def searchsorted(ctx, sorted_sequence, self, *, out_int32=False, right=False, side=None, sorter=None):
    """searchsorted.Tensor(Tensor sorted_sequence, Tensor self, *, bool out_int32=False, bool right=False,
    str? side=None, Tensor? sorter=None) -> Tensor"""
    if sorter is not None:
        sorted_sequence = taken(ctx, ctx.tensor(sorted_sequence), -1, ctx.tensor(sorter))
    places = place_in(ctx, sorted_sequence, self, right or side == "right", fake(ctx, 0).shape[-1])
    return ctx.cast(places, result_dtype(ctx))


def place_in(ctx, sequence, value, is_right, size):
    """Return the int64 number of elements of `sequence` along its last dimension that come before each value.

    is_right: whether an element that equals the value comes before it.
    size: the fake size of the last dimension; its largest value decides how many steps a search takes.
    """
    dtype = ctx.result_type(sequence, value)
    value = ctx.tensor(scalar(ctx, value), dtype)
    if _is_short_and_sorted(sequence):
        return _counted_before(ctx, ctx.tensor(sequence, dtype), value, is_right)
    return _halved(ctx, ctx.tensor(sequence, dtype), value, is_right, size)


# The most values of a sequence with which each value is compared, instead of a search that takes turns.
MAX_COUNTED = 1024


def _is_short_and_sorted(sequence):
    is_line = isinstance(sequence, torch.Tensor) and sequence.dim() == 1 and len(sequence) <= MAX_COUNTED
    return is_line and bool((sequence[1:] >= sequence[:-1]).all() and not sequence.isnan().any())


def _counted_before(ctx, sequence, value, is_right):
    """Compare each value with all of a sequence."""
    before = _before(ctx, sequence, ctx.unsqueeze(value, [len(value.shape)]), is_right)
    return ctx.reduce("SUM", ctx.cast(before, torch.int64), [-1], keep_dims=False)


def _before(ctx, element, value, is_right):
    """Return whether an element comes before a value, as NaN of either does."""
    is_after = ctx.elementwise("GREATER", element, value)
    if not is_right:
        is_after = ctx.elementwise("OR", is_after, ctx.elementwise("EQUAL", element, value))
    return ctx.unary("NOT", is_after)


def _halved(ctx, sequence, value, is_right, size):
    """Halve the range of each value's place until nothing is left of it."""
    start, stop = (ctx.expand(scalar(ctx, end), ctx.sizes(value)) for end in (ctx.constant(0), ctx.size(sequence, -1)))
    last = computed(ctx, operator.sub, ctx.size(sequence, -1), 1)
    longest = 0
    while not statically_known_true(size <= longest):
        middle = ctx.elementwise("DIV", ctx.elementwise("SUM", start, stop), 2)
        element = _element(ctx, sequence, ctx.elementwise("MIN", middle, scalar(ctx, last)))
        is_before = _before(ctx, element, value, is_right)
        is_open = ctx.elementwise("LESS", start, stop)
        start, stop = (
            ctx.select(ctx.elementwise("AND", is_before, is_open), ctx.elementwise("SUM", middle, 1), start),
            ctx.select(is_before, stop, middle),
        )
        longest = 2 * longest + 1
    return start


def _element(ctx, sequence, index):
    """Return the elements at `index` of the only sequence, or of one for each row of `index`."""
    if len(sequence.shape) > 1:
        return taken(ctx, sequence, -1, index)
    return ctx.network.add_gather(sequence, index, 0).get_output(0)
