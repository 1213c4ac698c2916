"""Operations on bits. TensorRT has those of bools; those of integers are sums, products and quotients.

Quotients are of numbers that are not negative, which every rounding of a division gives alike. A negative number is
flipped before and after.
"""

from __future__ import annotations

import re

import torch

from torchtrt_bridge.graph.torch_internals import schema_of
from torchtrt_bridge.lower.converters.arithmetic import result_dtype
from torchtrt_bridge.lower.converters.sizes import known_elements, scalar
from torchtrt_bridge.lower.registry import MAX_RANK, converter

aten = torch.ops.aten
INTEGERS = (torch.int64, torch.int32)
WITH_BOOLS = (torch.bool, *INTEGERS)

# The most bits of known number of two tensors; those of 65536 int64.
MOST_BITS = 2**22


def flipped(ctx, x):
    """Flip all bits: ~x is -1 - x."""
    return ctx.elementwise("SUB", -1, x, ctx.dtype(x))


def folded(ctx, x):
    """Return whether each number is negative, and the numbers with the bits of negative ones flipped."""
    is_negative = ctx.elementwise("LESS", x, 0)
    return is_negative, ctx.select(is_negative, flipped(ctx, x), x)


def wrapped(number, dtype):
    """Return the number of `dtype` that has the same low bits, which PyTorch computes with."""
    size = 1 << torch.iinfo(dtype).bits
    return (int(number) + size // 2) % size - size // 2


def operand(ctx, value, dtype):
    """Return a tensor, a number of any size or a run-time size as a tensor of `dtype`."""
    return ctx.tensor(wrapped(value, dtype) if isinstance(value, int) else scalar(ctx, value), dtype)


@converter(aten.bitwise_not.default, dtypes=WITH_BOOLS)
def bitwise_not(ctx, self):
    """bitwise_not(Tensor self) -> Tensor"""
    tensor = ctx.tensor(self)
    return ctx.unary("NOT", tensor) if ctx.dtype(tensor) == torch.bool else flipped(ctx, tensor)


def too_many_bits(self, other):
    """Bits of two tensors of integers stand along a new dimension; a number's tell which quotients to take."""
    dtype = torch.result_type(self, other)
    if dtype == torch.bool or isinstance(self, int) or isinstance(other, int):
        return None
    shapes = [getattr(value, "shape", ()) for value in (self, other)]
    if max(map(len, shapes)) == MAX_RANK:
        return f"bits of integers in {MAX_RANK} dimensions"
    count = known_elements(*shapes) * torch.iinfo(dtype).bits
    return f"{count} bits of integers, at most {MOST_BITS}" if count > MOST_BITS else None


def _bitwise(layer, *ops):
    @converter(*ops, why_not=too_many_bits, dtypes=WITH_BOOLS)
    def lower(ctx, self, other):
        dtype = result_dtype(ctx)
        number, tensor = (self, other) if isinstance(self, int) else (other, self)
        if dtype == torch.bool:
            return _of_bools(ctx, layer, ctx.tensor(tensor), number)
        if isinstance(number, int):
            return _with_number(ctx, layer, ctx.tensor(tensor, dtype), wrapped(number, dtype))
        return _by_bits(ctx, layer, self, other)

    lower.__doc__ = str(schema_of(ops[0]))


_bitwise("AND", aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.bitwise_and.Scalar_Tensor)
_bitwise("OR", aten.bitwise_or.Tensor, aten.bitwise_or.Scalar, aten.bitwise_or.Scalar_Tensor)
_bitwise("XOR", aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar, aten.bitwise_xor.Scalar_Tensor)


def _of_bools(ctx, layer, tensor, other):
    """Compute a bool; a number is no constant, with which TensorRT-RTX 1.6.1 got `x | True` wrong on an H100."""
    if isinstance(other, int):
        true = ctx.elementwise("EQUAL", tensor, tensor, torch.bool)
        other = true if other else ctx.unary("NOT", true)
    return ctx.elementwise(layer, tensor, other, torch.bool)


def _with_number(ctx, layer, x, number):
    """Compute from the bits that `x` shares with `number`. None of the sums has a bit twice, so none overflows."""
    dtype = ctx.dtype(x)
    common = _and_number(ctx, x, number)
    if layer == "AND":
        return common
    others = number if layer == "OR" else ctx.elementwise("SUB", number, common, dtype)
    return ctx.elementwise("SUM", ctx.elementwise("SUB", x, common), others, dtype)


def _and_number(ctx, x, number):
    """Return the bits that `x` has in common with a number.

    A negative `x` is ~y, and its bits in the number are those that y has not.
    """
    dtype = ctx.dtype(x)
    if number < 0:
        return ctx.elementwise("SUB", x, _and_number(ctx, x, ~number))
    is_negative, size = folded(ctx, x)
    common = ctx.elementwise("PROD", size, 0, dtype)
    for first, end in _runs(number):
        part = ctx.elementwise("SUB", _from_bit(ctx, size, first), _from_bit(ctx, size, end))
        common = ctx.elementwise("SUM", common, part)
    return ctx.select(is_negative, ctx.elementwise("SUB", number, common, dtype), common)


def _runs(number):
    """Return, of each run of ones in a number, its lowest bit and the bit that ends it."""
    return [run.span() for run in re.finditer("1+", f"{number:b}"[::-1])]


def _from_bit(ctx, size, bit):
    """Clear the bits below `bit` in numbers that are not negative."""
    dtype = ctx.dtype(size)
    if bit == 0:
        return size
    power = wrapped(1 << bit, dtype)  # that of the sign is the lowest number, by which the quotient is 0
    return ctx.elementwise("PROD", ctx.elementwise("DIV", size, power, dtype), power, dtype)


def _by_bits(ctx, layer, self, other):
    """Expand both tensors to bools, one for each bit, and add up the powers where the result is true."""
    dtype = result_dtype(ctx)
    powers = ctx.constant([wrapped(1 << bit, dtype) for bit in range(torch.iinfo(dtype).bits)], dtype)
    bits = [_bits(ctx, operand(ctx, value, dtype), powers) for value in (self, other)]
    chosen = ctx.select(ctx.elementwise(layer, *bits), powers, 0, dtype)
    return ctx.reduce("SUM", chosen, [-1], keep_dims=False)


def _bits(ctx, x, powers):
    """Return the bits of `x` as bools along a new last dimension.

    The quotient by the power of the sign bit, the lowest number, is 0: flipped for negative numbers, it is their sign.
    """
    dtype = ctx.dtype(x)
    is_negative, size = folded(ctx, ctx.unsqueeze(x, [len(x.shape)]))
    quotient = ctx.elementwise("DIV", size, powers)
    even = ctx.elementwise("PROD", ctx.elementwise("DIV", quotient, 2, dtype), 2, dtype)
    is_odd = ctx.unary("NOT", ctx.elementwise("EQUAL", quotient, even))
    return ctx.elementwise("XOR", is_odd, is_negative)


LEFT = aten.bitwise_left_shift
RIGHT = aten.bitwise_right_shift


@converter(
    *(LEFT.Tensor, LEFT.Tensor_Scalar, LEFT.Scalar_Tensor, aten.__lshift__.Tensor, aten.__lshift__.Scalar),
    dtypes=INTEGERS,
)
def left_shift(ctx, self, other):
    """bitwise_left_shift.Tensor(Tensor self, Tensor other) -> Tensor"""
    dtype = result_dtype(ctx)
    return ctx.elementwise("PROD", operand(ctx, self, dtype), _power(ctx, other, dtype, outside=0))


@converter(
    *(RIGHT.Tensor, RIGHT.Tensor_Scalar, RIGHT.Scalar_Tensor, aten.__rshift__.Tensor, aten.__rshift__.Scalar),
    dtypes=INTEGERS,
)
def right_shift(ctx, self, other):
    """bitwise_right_shift.Tensor(Tensor self, Tensor other) -> Tensor"""
    dtype = result_dtype(ctx)
    is_negative, size = folded(ctx, operand(ctx, self, dtype))
    power = _power(ctx, other, dtype, outside=torch.iinfo(dtype).min)  # by which the quotient is 0
    quotient = ctx.elementwise("DIV", size, power)
    return ctx.select(is_negative, flipped(ctx, quotient), quotient)


def _power(ctx, amount, dtype, outside):
    """Return two to the power of an amount; `outside` for an amount that is negative or beyond the bits of `dtype`."""
    bits = torch.iinfo(dtype).bits
    powers = [*(wrapped(1 << bit, dtype) for bit in range(bits)), outside]
    if isinstance(amount, int):
        amount = wrapped(amount, dtype)
        return ctx.constant(powers[amount if 0 <= amount < bits else bits], dtype)
    amount = operand(ctx, amount, dtype)
    is_outside = ctx.elementwise("OR", ctx.elementwise("LESS", amount, 0), ctx.elementwise("GREATER", amount, bits - 1))
    place = ctx.select(is_outside, bits, amount, dtype)
    return ctx.network.add_gather(ctx.constant(powers, dtype), place, 0).get_output(0)
