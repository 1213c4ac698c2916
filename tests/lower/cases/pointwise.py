"""Elementwise functions of one tensor."""

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten


def signed(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5) * 3,)


def positive(n: int) -> tuple[torch.Tensor]:
    """Negative, since a case's inputs are negated; between 0.1 and 4."""
    return (-(torch.rand(n, 3, 5) * 3.9 + 0.1),)


def unit(n: int) -> tuple[torch.Tensor]:
    return (torch.rand(n, 3, 5) * 1.9 - 0.95,)


def above_one(n: int) -> tuple[torch.Tensor]:
    return (-(torch.rand(n, 3, 5) * 5 + 1.1),)


def integers(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-9, 9, (n, 3)),)


def bools(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3) > 0,)


def halves(n: int) -> tuple[torch.Tensor]:
    """Numbers at and around the points where rounding turns."""
    return (torch.arange(n * 8).reshape(n, 8) / 4 - 3,)


def scalar(n: int) -> tuple[torch.Tensor]:
    return (torch.tensor(-1.5),)


OF_ALL = (
    torch.abs,
    torch.atan,
    torch.ceil,
    torch.cos,
    torch.cosh,
    torch.erf,
    torch.erfc,
    torch.exp,
    torch.exp2,
    torch.expm1,
    torch.floor,
    torch.frac,
    torch.neg,
    torch.reciprocal,
    torch.round,
    torch.sgn,
    torch.sign,
    torch.sin,
    torch.sinh,
    torch.asinh,
    torch.square,
    torch.trunc,
)
OF_POSITIVE = (torch.log, torch.log2, torch.log10, torch.log1p, torch.sqrt, torch.rsqrt)
OF_UNIT = (torch.acos, torch.asin, torch.atanh, torch.tan)
OF_INTEGERS = (
    torch.abs,
    torch.ceil,
    torch.cos,
    torch.exp,
    torch.exp2,
    torch.floor,
    torch.neg,
    torch.reciprocal,
    torch.round,
    torch.sign,
    torch.square,
    torch.trunc,
)
OF_HALVES = (torch.ceil, torch.floor, torch.round, torch.trunc, torch.frac, torch.sign)


def numbers(n: int) -> tuple[torch.Tensor]:
    """Zeros of both signs and what is no number, beside numbers around them."""
    line = torch.tensor([0.0, -0.0, 0.3, -0.3, 2.5, -2.5, float("inf"), -float("inf"), float("nan")])
    return (line.repeat(n, 1),)


def near_zero(n: int) -> tuple[torch.Tensor]:
    return ((torch.rand(n, 9) - 0.5) * 1e-4,)


def large(n: int) -> tuple[torch.Tensor]:
    """Negative, since a case's inputs are negated."""
    return (-(torch.rand(n, 9) + 2.0),)


# Of small results, which the default absolute tolerance would not see.
SMALL = {"tolerance": {torch.float32: (5e-6, 0.0), torch.float16: (2e-3, 6e-8)}, "reason": "relative, to small results"}


def signed_zero(call):
    """Return a call whose result is infinite, with the sign of a zero."""
    return lambda x: 1 / call(x)


def overload(call) -> object:
    return getattr(aten, call.__name__).default


def decimals(count: int):
    return lambda x: torch.round(x, decimals=count)


CASES: list[Case] = [
    *[Case(overload(call), call, signed) for call in OF_ALL],
    *[Case(overload(call), call, positive) for call in OF_POSITIVE],
    *[Case(overload(call), call, unit) for call in OF_UNIT],
    *[Case(overload(call), call, integers, name="int64", half=False) for call in OF_INTEGERS],
    *[Case(overload(call), call, halves, name="halves") for call in OF_HALVES],
    *[Case(overload(call), call, near_zero, name="near_zero", **SMALL) for call in (torch.log1p, torch.expm1)],
    *[Case(overload(call), call, unit, name="unit", **SMALL) for call in (torch.log1p, torch.expm1)],
    *[Case(overload(call), call, numbers, name="numbers") for call in (torch.log1p, torch.expm1, torch.erfc)],
    Case(aten.erfc.default, torch.erfc, large, name="large", **SMALL),
    *[Case(overload(call), signed_zero(call), numbers, name="signed_zero") for call in (torch.trunc, torch.expm1)],
    Case(aten.signbit.default, torch.signbit, lambda n: (numbers(n)[0][:, :8],)),
    Case(aten.signbit.default, torch.signbit, integers, name="int64", half=False),
    Case(aten.acosh.default, torch.acosh, above_one),
    Case(aten.exp.default, torch.exp, bools, name="bool", half=False),
    Case(aten.exp.default, torch.exp, scalar, name="0d"),
    Case(aten.sign.default, torch.sign, bools, name="bool", half=False),
    Case(aten.abs.default, lambda x: torch.abs(x.int()), integers, name="int32", half=False),
    Case(aten.round.decimals, decimals(2), signed),
    Case(aten.round.decimals, decimals(-1), lambda n: (torch.randn(n, 3) * 100,), name="negative"),
    # Functions that PyTorch itself takes apart.
    Case(aten.abs.default, torch.absolute, signed, name="absolute"),
    Case(aten.exp.default, lambda x: torch.sigmoid(x) + torch.positive(x).exp(), signed, name="positive"),
]

REJECTED: list[Rejected] = []
