"""Arithmetic on sizes that are known only at run time."""

from __future__ import annotations

import operator

import torch

from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten


@converter(aten.sym_size.int)
def sym_size(ctx, self, dim):
    """sym_size.int(Tensor self, int dim) -> SymInt"""
    return ctx.size(ctx.tensor(self), dim)


def _arithmetic(op, layer):
    @converter(op)
    def lower(ctx, left, right):
        if isinstance(left, int) and isinstance(right, int):
            return op(left, right)
        tensors = [ctx.shape_tensor([size]) for size in (left, right)]
        kind = getattr(ctx.trt.ElementWiseOperation, layer)
        return ctx.as_size(ctx.network.add_elementwise(*tensors, kind).get_output(0))

    return lower


for _op, _layer in (
    (operator.add, "SUM"),
    (operator.sub, "SUB"),
    (operator.mul, "PROD"),
    (operator.floordiv, "FLOOR_DIV"),
    (torch.sym_max, "MAX"),
    (torch.sym_min, "MIN"),
):
    _arithmetic(_op, _layer)


@converter(operator.mod)
def mod(ctx, left, right):
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    a, b = (ctx.shape_tensor([size]) for size in (left, right))
    kinds = ctx.trt.ElementWiseOperation
    quotient = ctx.network.add_elementwise(a, b, kinds.FLOOR_DIV).get_output(0)
    product = ctx.network.add_elementwise(quotient, b, kinds.PROD).get_output(0)
    return ctx.as_size(ctx.network.add_elementwise(a, product, kinds.SUB).get_output(0))


@converter(operator.neg)
def neg(ctx, size):
    if isinstance(size, int):
        return -size
    zero = ctx.shape_tensor([0])
    kind = ctx.trt.ElementWiseOperation.SUB
    return ctx.as_size(ctx.network.add_elementwise(zero, ctx.shape_tensor([size]), kind).get_output(0))
