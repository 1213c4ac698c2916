"""Arithmetic on sizes that are known only at run time, and questions about sizes that all families ask."""

from __future__ import annotations

import itertools
import math
import operator

import torch

from torchtrt_bridge.graph.shapes import is_symbolic
from torchtrt_bridge.graph.torch_internals import statically_known_true
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


def fake(ctx, index):
    """Return the fake value of an argument of the node being lowered: a number, size or tensor, or a list of them."""
    argument = ctx.node.args[index] if index < len(ctx.node.args) else None
    return torch.fx.map_arg(argument, lambda node: node.meta["val"])


def equal(sizes, others):
    """Return whether two lists of fake sizes are known to be the same."""
    pairs = zip(sizes, others, strict=False)
    return len(sizes) == len(others) and all(statically_known_true(a == b) for a, b in pairs)


def known(sizes, given):
    """Return `given`, with a number for each of the fake `sizes` that is known."""
    return [b if is_symbolic(a) else int(a) for a, b in zip(sizes, given, strict=True)]


def known_elements(*shapes):
    """Return how many elements a broadcast of fake shapes has along the dimensions of known size."""
    dims = itertools.zip_longest(*map(reversed, shapes), fillvalue=1)
    return math.prod(max((size for size in sizes if not is_symbolic(size)), default=1) for sizes in dims)


def arithmetic(ctx, op, left, right):
    """Add an `ElementWiseOperation`, by name, of two sizes, at least one of them known only at run time."""
    dtypes = [value.dtype.name if ctx.is_size(value) else type(value).__name__ for value in (left, right)]
    dtype = torch.float32 if {"FLOAT", "float"} & set(dtypes) else torch.int64
    tensors = [ctx.tensor(v if ctx.is_size(v) else [v], dtype) for v in (left, right)]
    kind = getattr(ctx.trt.ElementWiseOperation, op)
    return ctx.as_size(ctx.network.add_elementwise(*tensors, kind).get_output(0))


def computed(ctx, op, left, right):
    """Compute `op(left, right)` of two sizes: a number if both are."""
    if not ctx.is_size(left) and not ctx.is_size(right):
        return op(left, right)
    if (op, right) in ((operator.add, 0), (operator.sub, 0), (operator.mul, 1), (operator.floordiv, 1)):
        return left
    if (op, left) in ((operator.add, 0), (operator.mul, 1)):
        return right
    return arithmetic(ctx, LAYERS[op], left, right)


def product(ctx, sizes):
    result = 1
    for size in sizes:
        result = computed(ctx, operator.mul, result, size)
    return result


def scalar(ctx, size):
    """Return a size as a 0-d tensor, to compute with; a number stays one."""
    return ctx.reshape(size, []) if ctx.is_size(size) else size


LAYERS = {
    operator.add: "SUM",
    operator.sub: "SUB",
    operator.mul: "PROD",
    operator.floordiv: "FLOOR_DIV",
    torch.sym_max: "MAX",
    torch.sym_min: "MIN",
}


@converter(aten.sym_size.int)
def sym_size(ctx, self, dim):
    """sym_size.int(Tensor self, int dim) -> SymInt"""
    return ctx.size(ctx.tensor(self), dim)


def _register(op):
    @converter(op)
    def lower(ctx, left, right):
        return computed(ctx, op, left, right)


for _op in LAYERS:
    _register(_op)


@converter(operator.mod)
def mod(ctx, left, right):
    quotient = computed(ctx, operator.floordiv, left, right)
    return computed(ctx, operator.sub, left, computed(ctx, operator.mul, quotient, right))


@converter(operator.neg)
def neg(ctx, size):
    return computed(ctx, operator.sub, 0, size)


@converter(operator.truediv)
def truediv(ctx, left, right):
    """Divide in float32, as TensorRT has no float64: exact below 2**24 if floor or ceil follow."""
    tensors = [ctx.tensor(v if ctx.is_size(v) else [v], torch.float32) for v in (left, right)]
    return ctx.as_size(ctx.network.add_elementwise(*tensors, ctx.trt.ElementWiseOperation.DIV).get_output(0))


def not_a_small_power(size, exponent):
    """TensorRT's POW is for floats; a small power of a size is a product."""
    small = isinstance(exponent, int) and 0 <= exponent <= 8
    return None if small else f"a size to the power of {exponent}"


@converter(operator.pow, why_not=not_a_small_power)
def power(ctx, size, exponent):
    return product(ctx, [size] * exponent)


def _rounded(ctx, size, kind):
    if not ctx.is_size(size):
        return {"CEIL": math.ceil, "FLOOR": math.floor}[kind](size)
    if ctx.dtype(size) == torch.int64:
        return size
    return ctx.as_size(ctx.cast(ctx.unary(kind, size), torch.int64))


@converter(math.ceil)
def ceil(ctx, size):
    return _rounded(ctx, size, "CEIL")


@converter(math.floor)
def floor(ctx, size):
    return _rounded(ctx, size, "FLOOR")


@converter(math.trunc)
def trunc(ctx, size):
    """Cast, which drops the fraction as Python's trunc does."""
    return ctx.as_size(ctx.cast(size, torch.int64)) if ctx.is_size(size) else math.trunc(size)


@converter(torch.sym_float)
def sym_float(ctx, size):
    return ctx.as_size(ctx.cast(size, torch.float32)) if ctx.is_size(size) else float(size)


@converter(torch.sym_sum)
def sym_sum(ctx, sizes):
    result = 0
    for size in sizes:
        result = computed(ctx, operator.add, result, size)
    return result
