"""Casts and copies."""

import math

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def one(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5) * 3,)


def near_zero(n: int) -> tuple[torch.Tensor]:
    return (torch.tensor([0.0, 0.25, -0.25, 1.0, math.nan, math.inf, 3.5]).repeat(n, 1),)


def one_integer(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-300, 300, (n, 4)),)


def one_bool(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4) > 0,)


def pixels(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(0, 256, (n, 3, 4), dtype=torch.uint8),)


FLOATS = (torch.float32, torch.float16, torch.bfloat16)
WHOLES = (torch.int32, torch.int64)


def to(dtype: torch.dtype):
    """A cast between two sums, so that it neither stands alone nor casts to the dtype that it has."""
    return lambda x: x.to(dtype) if x.dtype != dtype else aten._to_copy(x, dtype=dtype)


CASES: list[Case] = [
    *[Case(aten._to_copy.default, to(d), one, name=f"float_to_{str(d)[6:]}") for d in (*FLOATS, *WHOLES)],
    *[
        Case(aten._to_copy.default, to(d), one_integer, name=f"int64_to_{str(d)[6:]}", half=False)
        for d in (*FLOATS, *WHOLES, torch.bool)
    ],
    *[
        Case(aten._to_copy.default, to(d), one_bool, name=f"bool_to_{str(d)[6:]}", half=False)
        for d in (*FLOATS, *WHOLES)
    ],
    Case(aten._to_copy.default, lambda x: x.bool(), near_zero, name="float_to_bool"),
    Case(aten._to_copy.default, lambda x: x.float() / 255, pixels, name="uint8_to_float", half=False),
    Case(aten._to_copy.default, lambda x: x.half() * 2, pixels, name="uint8_to_half", half=False),
    Case(aten._to_copy.default, lambda x: x.long() - 1, pixels, name="uint8_to_int64", half=False),
    Case(aten._to_copy.default, lambda x: ~x.bool(), pixels, name="uint8_to_bool", half=False),
    Case(aten._to_copy.default, lambda x: x.int().to(x.device, torch.float32), one, name="device"),
    Case(aten._to_copy.default, lambda x: x.long().type_as(x), one, name="type_as"),
    Case(aten.clone.default, lambda x: x.clone() + 1, one),
    Case(aten.clone.default, lambda x: x.mT.contiguous() + 1, one, name="contiguous"),
    Case(aten.alias.default, lambda x: aten.alias(x) + 1, one),
    Case(aten.detach.default, lambda x: x.detach() + 1, one),
    Case(aten.clone.default, lambda x: aten.lift_fresh_copy(x) + 1, one, name="lift_fresh_copy"),
]

REJECTED: list[Rejected] = [
    Rejected(aten._to_copy.default, lambda x: x.to("meta"), one, "a move from cpu to meta"),
    Rejected(aten._to_copy.default, lambda x: x.to(torch.uint8), one_integer, "a cast to uint8"),
]
