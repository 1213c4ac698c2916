"""Tensors made from sizes and numbers. Random ones stay in PyTorch."""

from __future__ import annotations

import math
import operator

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.lower.converters.sizes import computed, known, scalar
from torchtrt_bridge.lower.converters.slicing import line
from torchtrt_bridge.lower.converters.view import expand_to
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def filled(ctx, value, sizes):
    """Return a tensor of the node's dtype filled with `value`, a number or a run-time size."""
    one = ctx.tensor(scalar(ctx, value), ctx.node.meta["val"].dtype)
    return expand_to(ctx, one, [], known(ctx.node.meta["val"].shape, sizes))


@converter(aten.full.default)
def full(ctx, size, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None):
    """full(SymInt[] size, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None,
    Device? device=None, bool? pin_memory=None) -> Tensor"""
    return filled(ctx, fill_value, size)


@converter(aten.full_like.default)
def full_like(ctx, self, fill_value, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    """full_like(Tensor self, Scalar fill_value, *, ScalarType? dtype=None, Layout? layout=None,
    Device? device=None, bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor"""
    return filled(ctx, fill_value, ctx.sizes(ctx.tensor(self)))


@converter(aten.empty.memory_format)
def empty(ctx, size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    """empty.memory_format(SymInt[] size, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None,
    bool? pin_memory=None, MemoryFormat? memory_format=None) -> Tensor"""
    return filled(ctx, 0, size)


@converter(aten.empty_permuted.default)
def empty_permuted(ctx, size, physical_layout, *, dtype=None, layout=None, device=None, pin_memory=None):
    """empty_permuted(SymInt[] size, int[] physical_layout, *, ScalarType? dtype=None, Layout? layout=None,
    Device? device=None, bool? pin_memory=None) -> Tensor"""
    return filled(ctx, 0, size)


@converter(aten.scalar_tensor.default)
def scalar_tensor(ctx, s, *, dtype=None, layout=None, device=None, pin_memory=None):
    """scalar_tensor(Scalar s, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None,
    bool? pin_memory=None) -> Tensor"""
    return filled(ctx, s, [])


def fractional_steps(start, end, step=1, **rest):
    """The number of float steps is sensitive to rounding, and TensorRT has no float64 to count them."""
    if not any(is_symbolic(v) or isinstance(v, torch.SymFloat) for v in (start, end, step)):
        return None
    whole = isinstance(end, (int, torch.SymInt)) and isinstance(step, int)
    whole = whole and (isinstance(start, (int, torch.SymInt)) or (isinstance(start, float) and step > 0))
    return None if whole else "a run-time number of steps that are not whole"


@converter(aten.arange.start_step, why_not=fractional_steps)
def arange(ctx, start, end, step=1, *, dtype=None, layout=None, device=None, pin_memory=None):
    """arange.start_step(Scalar start, Scalar end, Scalar step=1, *, ScalarType? dtype=None,
    Layout? layout=None, Device? device=None, bool? pin_memory=None) -> Tensor"""
    (length,) = ctx.node.meta["val"].shape
    if not is_symbolic(length):
        return line(ctx, start, int(length), step, ctx.node.meta["val"].dtype)
    low = start if ctx.is_size(start) else math.floor(start)
    # The ceiling of a quotient is its floor with the sign of one side turned, twice.
    span = computed(ctx, operator.sub, low, end)
    length = computed(ctx, operator.sub, 0, computed(ctx, operator.floordiv, span, step))
    return line(ctx, start, length, step, ctx.node.meta["val"].dtype)
