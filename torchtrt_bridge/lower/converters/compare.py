"""Comparisons, logic, and the choices made by them."""

from __future__ import annotations

import torch

from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower.converters.arithmetic import result_dtype
from torchtrt_bridge.lower.converters.sizes import scalar
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def compared(ctx, op, left, right):
    """Compare two values by element; TensorRT orders no bools."""
    dtype = ctx.result_type(left, right)
    if dtype == torch.bool and op != "EQUAL":
        dtype = torch.int32
    return ctx.elementwise(op, scalar(ctx, left), scalar(ctx, right), dtype)


@converter(aten.eq.Tensor, aten.eq.Scalar)
def eq(ctx, self, other):
    """eq.Tensor(Tensor self, Tensor other) -> Tensor"""
    return compared(ctx, "EQUAL", self, other)


@converter(aten.ne.Tensor, aten.ne.Scalar)
def ne(ctx, self, other):
    """ne.Tensor(Tensor self, Tensor other) -> Tensor"""
    return ctx.unary("NOT", compared(ctx, "EQUAL", self, other))


@converter(aten.lt.Tensor, aten.lt.Scalar)
def lt(ctx, self, other):
    """lt.Tensor(Tensor self, Tensor other) -> Tensor"""
    return compared(ctx, "LESS", self, other)


@converter(aten.gt.Tensor, aten.gt.Scalar)
def gt(ctx, self, other):
    """gt.Tensor(Tensor self, Tensor other) -> Tensor"""
    return compared(ctx, "GREATER", self, other)


@converter(aten.le.Tensor, aten.le.Scalar)
def le(ctx, self, other):
    """le.Tensor(Tensor self, Tensor other) -> Tensor"""
    return _or_equal(ctx, "LESS", "GREATER", self, other)


@converter(aten.ge.Tensor, aten.ge.Scalar)
def ge(ctx, self, other):
    """ge.Tensor(Tensor self, Tensor other) -> Tensor"""
    return _or_equal(ctx, "GREATER", "LESS", self, other)


def _or_equal(ctx, op, opposite, left, right):
    """Compute integers as not the opposite; floats, which may be NaN, as less (or greater) or equal."""
    if not ctx.result_type(left, right).is_floating_point:
        return ctx.unary("NOT", compared(ctx, opposite, left, right))
    return ctx.elementwise("OR", compared(ctx, op, left, right), compared(ctx, "EQUAL", left, right))


def truth(ctx, value):
    """Return whether each element is not zero."""
    return ctx.tensor(value, torch.bool)


@converter(aten.logical_not.default)
def logical_not(ctx, self):
    """logical_not(Tensor self) -> Tensor"""
    tensor = ctx.tensor(self)
    if ctx.dtype(tensor) == torch.bool:
        return ctx.unary("NOT", tensor)
    return ctx.elementwise("EQUAL", tensor, 0, ctx.dtype(tensor))


def _logical(op, layer):
    @converter(op)
    def lower(ctx, self, other):
        return ctx.elementwise(layer, truth(ctx, self), truth(ctx, other), torch.bool)

    lower.__doc__ = str(schema_of(op))


_logical(aten.logical_and.default, "AND")
_logical(aten.logical_or.default, "OR")
_logical(aten.logical_xor.default, "XOR")


@converter(aten.isnan.default)
def isnan(ctx, self):
    """isnan(Tensor self) -> Tensor"""
    return _tested(ctx, "ISNAN", self)


@converter(aten.isinf.default)
def isinf(ctx, self):
    """isinf(Tensor self) -> Tensor"""
    return _tested(ctx, "ISINF", self)


def _tested(ctx, test, value):
    """Test floats; an integer is cast, and is neither NaN nor infinite."""
    tensor = ctx.tensor(value)
    return ctx.unary(test, tensor if ctx.dtype(tensor).is_floating_point else ctx.cast(tensor, torch.float32))


@converter(aten.isfinite.default)
def isfinite(ctx, self):
    """isfinite(Tensor self) -> Tensor"""
    strange = ctx.elementwise("OR", _tested(ctx, "ISNAN", self), _tested(ctx, "ISINF", self))
    return ctx.unary("NOT", strange)


@converter(aten.where.self)
def where(ctx, condition, self, other):
    """where.self(Tensor condition, Tensor self, Tensor other) -> Tensor"""
    return ctx.select(condition, self, other, result_dtype(ctx))


@converter(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(ctx, self, mask, value):
    """masked_fill.Scalar(Tensor self, Tensor mask, Scalar value) -> Tensor"""
    return ctx.select(mask, scalar(ctx, value), self, result_dtype(ctx))
