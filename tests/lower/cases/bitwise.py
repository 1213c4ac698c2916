"""Operations on bits of bools and integers."""

import functools

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
Inputs = tuple[torch.Tensor, ...]

DTYPES = (torch.int64, torch.int32)
BINARY = (torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor)

# Runs of ones at either end, in the middle and none; powers; the sign bit of int32 and of int64; others.
MASKS = (
    0,
    -1,
    1,
    7,
    8,
    -8,
    0b0110_0110,
    -0b0110_0111,
    2**31 - 1,
    -(2**31),
    2**63 - 1,
    -(2**63),
    0x5555_5555,
    2**32 - 1,
)

# All that a shift tells apart, and a number that int32 wraps to 0.
AMOUNTS = (0, 1, 5, 30, 31, 32, 62, 63, 64, -1, -70, 2**40)


def words(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Integers of all sizes and both signs, the extremes among them."""
    limits = torch.iinfo(dtype)
    numbers = torch.randint(limits.min, limits.max, shape, dtype=dtype) >> torch.randint(0, limits.bits, shape)
    numbers.view(-1)[:6] = torch.tensor([0, -1, 1, limits.max, limits.min, limits.min + 1], dtype=dtype)
    return numbers.to(dtype)


def pair(dtype: torch.dtype, n: int) -> Inputs:
    return words(n, 3, 8, dtype=dtype), words(3, 8, dtype=dtype)


def one(dtype: torch.dtype, n: int) -> Inputs:
    return (words(n, 3, 8, dtype=dtype),)


def amounts(dtype: torch.dtype, n: int) -> Inputs:
    """Numbers, and amounts below zero, within the bits and beyond them."""
    limits = torch.iinfo(dtype)
    by = torch.randint(-limits.bits - 3, limits.bits + 3, (3, 8), dtype=dtype)
    by[0] = -torch.tensor([0, 1, limits.bits - 2, limits.bits - 1, limits.bits, -1, limits.max, limits.min])
    return words(n, 3, 8, dtype=dtype), by


def mixed(n: int) -> Inputs:
    return words(n, 3, 8), words(3, 8, dtype=torch.int32)


def bools(n: int) -> Inputs:
    return torch.randn(n, 4) > 0, torch.randn(4) > 0


def bools_and_integers(n: int) -> Inputs:
    return torch.randn(n, 8) > 0, words(8)


def without_dimensions(n: int) -> Inputs:
    return words(n, 8), torch.tensor(-77)


def of_tensors(op, call, inputs, name="") -> list[Case]:
    return [
        Case(op, call, functools.partial(inputs, dtype), name=f"{str(dtype).removeprefix('torch.')}{name}", half=False)
        for dtype in DTYPES
    ]


def of_numbers(op, call, numbers) -> list[Case]:
    """Return a case for each dtype, which calls with each of the numbers."""
    return of_tensors(op, functools.partial(_with_each, call, numbers), one, "-numbers")


def _with_each(call, numbers, x):
    return [call(x, number) for number in numbers]


LOGIC = [
    case
    for call in BINARY
    for op in (getattr(aten, call.__name__),)
    for case in (
        Case(op.Tensor, call, bools, name="bool", half=False),
        Case(op.Scalar, lambda x, y, call=call: call(x, True), bools, name="bool", half=False),
        Case(op.Scalar_Tensor, lambda x, y, call=call: call(False, x), bools, name="bool", half=False),
        Case(op.Tensor, call, bools_and_integers, name="bool-int64", half=False),
        Case(op.Tensor, call, mixed, name="int64-int32", half=False),
        Case(op.Tensor, call, without_dimensions, name="0d", half=False),
        Case(op.Scalar, lambda x, y, call=call: call(y.sum(), 5), mixed, name="of-0d", half=False),
        Case(op.Scalar, lambda x, y, call=call: call(x, 6), bools, name="bool-number", half=False),
        Case(op.Scalar_Tensor, lambda x, y, call=call: call(13, x), mixed, name="number-int64", half=False),
        Case(op.Scalar, lambda x, y, call=call: call(x, x.shape[0]), mixed, static=False, name="size", half=False),
        *of_tensors(op.Tensor, call, pair),
        *of_numbers(op.Scalar, call, MASKS),
    )
]

SHIFTS = [
    case
    for call, method in ((torch.bitwise_left_shift, aten.__lshift__), (torch.bitwise_right_shift, aten.__rshift__))
    for op in (getattr(aten, call.__name__),)
    for case in (
        *of_tensors(op.Tensor, call, amounts),
        *of_tensors(method.Tensor, method.Tensor, amounts),
        *of_numbers(op.Tensor_Scalar, call, (0, 3)),
        *of_numbers(method.Scalar, method.Scalar, AMOUNTS),
        Case(op.Tensor, call, mixed, name="int64-int32", half=False),
        Case(op.Tensor, lambda x, y, call=call: call(x, y.sum()), mixed, name="by-0d", half=False),
        Case(
            op.Scalar_Tensor,
            lambda x, y, call=call: call(-77, y),
            functools.partial(amounts, torch.int64),
            name="of-number",
            half=False,
        ),
        Case(
            op.Tensor_Scalar, lambda x, y, call=call: call(x, x.shape[0]), mixed, static=False, name="size", half=False
        ),
    )
]

CASES: list[Case] = [
    Case(aten.bitwise_not.default, lambda x, y: torch.bitwise_not(x), bools, name="bool", half=False),
    *of_tensors(aten.bitwise_not.default, lambda x, y: torch.bitwise_not(x), pair),
    *LOGIC,
    *SHIFTS,
]


BITS = "8388608 bits of integers, at most 4194304"


def many(n: int) -> Inputs:
    return words(4, 1 << 15), words(1 << 15)


def rows(n: int) -> Inputs:
    return (words(n, 1 << 17),)


def deep(n: int) -> Inputs:
    return words(*[2] * 8), words(2, 2, 2)


REJECTED: list[Rejected] = [
    *[
        rejected
        for call in BINARY
        for op in (getattr(aten, call.__name__),)
        for rejected in (
            Rejected(op.Tensor, call, many, BITS),
            Rejected(op.Tensor, call, deep, "8 dimensions", name="deep"),
            Rejected(op.Scalar, lambda x, call=call: call(x, x.shape[0]), rows, BITS, name="size", dynamic=True),
            Rejected(op.Scalar_Tensor, lambda x, call=call: call(x.shape[0], x), rows, BITS, name="size", dynamic=True),
        )
    ],
    *[
        Rejected(op.Tensor, call, bools_and_integers, "dtype bool", name="bool")
        for call in (torch.bitwise_left_shift, torch.bitwise_right_shift)
        for op in (getattr(aten, call.__name__),)
    ],
]
