"""Divisions that round, and their remainders."""

import torch

from tests.lower.case import Case, Rejected
from tests.lower.cases.arithmetic import INFINITY, extremes, integers, one_integer, pair

aten = torch.ops.aten


def apart(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quotients that stay clear of whole numbers, where a rounding error is as large as the divisor."""
    whole, divisor = torch.randint(-6, 6, (n, 4)), torch.tensor([0.5, -0.75, 2.0, -3.0])
    return (whole + 0.25) * divisor, divisor


def apart_and_zero(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quotients and remainders among which are zeros of both signs."""
    dividends = torch.tensor([2.0, -2.0, 0.0, -0.0, 0.25, -0.25])
    return dividends.repeat(n, 1), torch.tensor([0.5, -0.5]).repeat(3)


def tenths(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers whose rounded quotient is whole where the exact one is not, and one of many digits."""
    tenths = torch.arange(n * 8.0).reshape(n, 8) * 0.1
    tenths[:, 0] = 50000.0
    return tenths - 1.8, torch.tensor(0.1)


def of_any_size(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers whose quotients are as large as fp32 holds; of larger ones PyTorch's remainder is NaN on a CPU."""
    return torch.randn(n, 200) * 10 ** (torch.rand(n, 200) * 40 - 20), 10 ** (torch.rand(n, 200) * 34 - 17)


def of_any_half(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of all the magnitudes that fp16 has, its denormal ones among the divisors."""
    return torch.randn(n, 200) * 10 ** (torch.rand(n, 200) * 8 - 4), 10 ** (torch.rand(n, 200) * 10 - 7)


def mode(name, divisor=None):
    if divisor is not None:
        return lambda x: torch.div(x, divisor, rounding_mode=name)
    return lambda x, y: torch.div(x, y, rounding_mode=name)


FLOATS = (torch.floor_divide, torch.remainder, torch.fmod)


def overload(call, kind: str) -> object:
    name = "default" if (call, kind) == (torch.floor_divide, "Tensor") else kind
    return getattr(getattr(aten, call.__name__), name)


def by(call, number: float):
    return lambda x: getattr(aten, call.__name__).Scalar(x, number)


CASES: list[Case] = [
    *[Case(overload(call, "Tensor"), call, tenths, name="tenths") for call in FLOATS],
    *[Case(overload(call, "Tensor"), call, of_any_size, name="any_size", half=False) for call in FLOATS],
    *[Case(overload(call, "Tensor"), call, of_any_half, name="any_half") for call in FLOATS],
    *[Case(overload(call, "Tensor"), call, lambda n: extremes(n, 0.0), name="extremes") for call in FLOATS],
    *[
        Case(overload(call, "Scalar"), by(call, d), lambda n: tenths(n)[:1], name=f"tenths_{d}")
        for call in FLOATS
        for d in (0.1, -0.3, 1.0, 3, 1e-12)
    ],
    *[
        Case(overload(call, "Scalar"), by(call, d), lambda n: extremes(n)[:1], name=f"extremes_{d}")
        for call in FLOATS
        for d in (INFINITY, -INFINITY, 0.0, -2.0)
    ],
    *[
        Case(overload(call, "Tensor"), lambda x, y, call=call: 1 / call(x, y), apart_and_zero, name="signed_zero")
        for call in FLOATS
    ],
    Case(aten.div.Tensor_mode, mode("floor", 0.1), lambda n: tenths(n)[:1], name="floor_tenths"),
    Case(aten.div.Tensor_mode, mode("trunc", 0.1), lambda n: tenths(n)[:1], name="trunc_tenths"),
    Case(aten.div.Tensor_mode, mode("trunc"), of_any_half, name="trunc_any_half"),
    Case(aten.remainder.Scalar, lambda x: x % x.shape[0], lambda n: pair(n)[:1], name="size"),
    Case(aten.div.Tensor_mode, mode(None), pair, name="none"),
    Case(aten.div.Tensor_mode, mode("trunc"), apart, name="trunc"),
    Case(aten.div.Tensor_mode, mode("trunc"), integers, name="trunc_int64", half=False),
    Case(aten.div.Tensor_mode, mode("floor"), apart, name="floor"),
    Case(aten.div.Tensor_mode, mode("floor"), integers, name="floor_int64", half=False),
    Case(aten.div.Tensor_mode, mode("floor", 4), one_integer, name="floor_number", half=False),
    Case(
        aten.div.Scalar_mode,
        lambda x: aten.div.Scalar_mode(x, -3, rounding_mode="trunc"),
        one_integer,
        half=False,
    ),
    Case(aten.floor_divide.default, torch.floor_divide, integers, half=False),
    Case(aten.floor_divide.default, torch.floor_divide, apart, name="float"),
    Case(aten.floor_divide.default, lambda x: x // 4, one_integer, name="number", half=False),
    Case(aten.floor_divide.Scalar, lambda x: aten.floor_divide.Scalar(x, 4), one_integer, half=False),
    Case(aten.remainder.Tensor, torch.remainder, apart),
    Case(aten.remainder.Tensor, torch.remainder, integers, name="int64", half=False),
    Case(aten.remainder.Scalar, lambda x: x % 3, one_integer, half=False),
    Case(aten.remainder.Scalar, lambda x: x % -0.75, lambda n: apart(n)[:1], name="float"),
    Case(
        aten.remainder.Scalar_Tensor,
        lambda x: torch.remainder(17, x),
        lambda n: (torch.arange(n) + 3,),
        half=False,
    ),
    Case(aten.remainder.Scalar, lambda x: x % -INFINITY, lambda n: extremes(n)[:1], name="infinity"),
    Case(aten.fmod.Scalar, lambda x: torch.fmod(x, INFINITY), lambda n: extremes(n)[:1], name="infinity"),
    Case(aten.fmod.Tensor, torch.fmod, apart),
    Case(aten.fmod.Tensor, torch.fmod, integers, name="int64", half=False),
    Case(aten.fmod.Scalar, lambda x: torch.fmod(x, -3), one_integer, half=False),
]

REJECTED: list[Rejected] = []
