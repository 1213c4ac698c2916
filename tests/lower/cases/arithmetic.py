"""Arithmetic of two tensors, or of a tensor and a number."""

import operator

import torch

from tests.lower.case import Case, Rejected

aten = torch.ops.aten
INFINITY = float("inf")


def pair(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3, 5) * 3, torch.randn(n, 3, 5) * 3


def broadcast(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 1, 5), torch.randn(3, 1)


def of_rank_zero(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3), torch.tensor(2.5)


def wide_and_narrow(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 3), torch.randn(3).to(torch.bfloat16)


def integers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-20, 20, (n, 4)), torch.tensor([3, -3, 7, -5])


def short_and_long(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-20, 20, (n, 4), dtype=torch.int32), torch.tensor([3, -3, 7, -5])


def integers_and_floats(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(-20, 20, (n, 4)), torch.randn(4)


def bools(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 4) > 0, torch.randn(4) > 0


def bools_and_integers(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 4) > 0, torch.randint(-5, 5, (4,))


def extremes(n: int, *others: float) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of numbers, the `others` among them, with what is none; n of them more than once."""
    values = torch.tensor([2.5, -2.5, INFINITY, -INFINITY, float("nan"), *others])
    left, right = torch.cartesian_prod(values, values).unbind(-1)
    return torch.cat([left, left[:n]]), torch.cat([right, right[:n]])


def zeros(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Zeros and infinities of both signs."""
    values = torch.tensor([0.0, -0.0, INFINITY, -INFINITY])
    return torch.cartesian_prod(torch.arange(n) * 1.0, values).unbind(-1)[0].clone(), values.repeat(n)


def huge_and_tiny(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers whose squares fp32 does not hold."""
    return torch.tensor([[1e30, 3e-30, 0.0, 1e30]]).repeat(n, 1), torch.tensor([1.0, 4e-30, 0.0, 1e30])


def one(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 3, 5),)


def one_integer(n: int) -> tuple[torch.Tensor]:
    return (torch.randint(-20, 20, (n, 4)),)


def one_bool(n: int) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4) > 0,)


def positive(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative, since a case's inputs are negated."""
    return -(torch.rand(n, 3) + 0.5), torch.randn(n, 3)


def quadrants(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    signs = torch.tensor([-1.0, -0.0, 1.0])  # a case's inputs are negated, and zero shall be positive
    return signs.repeat(3).expand(n, 9) * 1.5, signs.repeat_interleave(3).expand(n, 9) * 2.5


def overload(call) -> object:
    return getattr(aten, call.__name__).default


def promotions(op, call) -> list[Case]:
    """The operand pairs that PyTorch's type promotion distinguishes."""
    whole = {"half": False}
    return [
        Case(op, call, pair),
        Case(op, call, broadcast, name="broadcast"),
        Case(op, call, of_rank_zero, name="0d"),
        Case(op, call, wide_and_narrow, name="bf16"),
        Case(op, call, integers, name="int64", **whole),
        Case(op, call, short_and_long, name="int32_int64", **whole),
        Case(op, call, integers_and_floats, name="int64_float"),
        Case(op, call, bools_and_integers, name="bool_int64", **whole),
    ]


CASES: list[Case] = [
    *promotions(aten.add.Tensor, torch.add),
    *[case for case in promotions(aten.sub.Tensor, torch.sub) if case.name != "bool_int64"],
    *promotions(aten.mul.Tensor, torch.mul),
    *promotions(aten.maximum.default, torch.maximum),
    *promotions(aten.minimum.default, torch.minimum),
    Case(aten.add.Tensor, torch.add, bools, name="bool", half=False),
    Case(aten.add.Tensor, lambda x, y: torch.add(x, y, alpha=2), pair, name="alpha"),
    Case(aten.add.Tensor, lambda x, y: torch.add(x, y, alpha=-3), integers, name="alpha_int64", half=False),
    Case(aten.add.Tensor, lambda x: x + 1.5, one, name="number"),
    Case(aten.add.Tensor, lambda x: x + 1.5, one_integer, name="int64_number", half=False),
    Case(aten.add.Tensor, lambda x: x + 2, one_bool, name="bool_number", half=False),
    Case(aten.add.Tensor, lambda x: x.sum() + x.shape[0], one, name="size_0d"),
    Case(aten.add.Scalar, lambda x: aten.add.Scalar(x, 2, 3), one),
    Case(aten.sub.Tensor, lambda x, y: torch.sub(x, y, alpha=0.5), pair, name="alpha"),
    Case(aten.sub.Tensor, lambda x: x - 2, one_integer, name="int64_number", half=False),
    Case(aten.sub.Scalar, lambda x: aten.sub.Scalar(x, 2.5), one),
    Case(aten.rsub.Scalar, lambda x: 1 - x, one),
    Case(aten.rsub.Scalar, lambda x: torch.rsub(x, 2, alpha=3), one_integer, name="alpha", half=False),
    Case(aten.rsub.Tensor, lambda x, y: torch.rsub(x, y, alpha=2), broadcast),
    Case(aten.mul.Tensor, torch.mul, bools, name="bool", half=False),
    Case(aten.mul.Tensor, lambda x: x * x.shape[0], one, name="size"),
    Case(aten.mul.Tensor, lambda x: (1.0 - (x > 0).to(x.dtype)) * -1e9, one, name="beyond_fp16"),
    Case(aten.mul.Tensor, lambda x: x * 1e-8 * 1e8, one, name="below_fp16"),
    Case(aten.mul.Scalar, lambda x: aten.mul.Scalar(x, 0.5), one),
    Case(aten.maximum.default, torch.maximum, bools, name="bool", half=False),
    Case(aten.minimum.default, torch.minimum, bools, name="bool", half=False),
    Case(aten.maximum.default, torch.max, pair, name="max.other"),
    Case(aten.div.Tensor, torch.div, pair),
    Case(aten.div.Tensor, torch.true_divide, integers, name="int64", half=False),
    Case(aten.div.Tensor, lambda x: x / 3, one_integer, name="int64_number", half=False),
    Case(aten.div.Tensor, lambda x: x / x.shape[0], one, name="size"),
    Case(aten.div.Tensor, lambda x: x / 8.0, one, name="number"),
    Case(aten.div.Scalar, lambda x: aten.div.Scalar(x, 3), one),
    *[
        Case(aten.pow.Tensor_Scalar, lambda x, e=e: x**e, one, name=str(e))
        for e in (1, 2, 3, 4, 5, 2.0, 3.0, -1, -2, -3)
    ],
    *[
        Case(aten.pow.Tensor_Scalar, lambda x, e=e: x**e, lambda n: positive(n)[:1], name=str(e))
        for e in (0.5, -0.5, 1.7, 0.25)
    ],
    *[
        Case(aten.pow.Tensor_Scalar, lambda x, e=e: x**e, one_integer, name=f"int64_{e}", half=False)
        for e in (2, 3, 5, 2.0)
    ],
    Case(aten.pow.Tensor_Tensor, torch.pow, positive),
    Case(
        aten.pow.Tensor_Tensor,
        lambda x, y: x ** y.abs(),
        lambda n: (torch.randint(-4, 4, (n, 3)), torch.arange(3)),
        name="int64",
        half=False,
    ),
    Case(
        aten.pow.Tensor_Tensor,
        torch.pow,
        lambda n: (torch.randn(n, 3), torch.tensor([1.0, -2.0, 3.0])),
        name="negative_base",
    ),
    Case(aten.pow.Scalar, lambda x: 2**x, one),
    Case(aten.pow.Scalar, lambda x: 0.5**x, one_integer, name="int64", half=False),
    Case(aten.hypot.default, torch.hypot, pair),
    Case(aten.hypot.default, torch.hypot, lambda n: extremes(n, 0.0), name="extremes"),
    Case(aten.hypot.default, torch.hypot, huge_and_tiny, name="huge_and_tiny", half=False),
    Case(aten.atan2.default, torch.atan2, pair),
    Case(aten.atan2.default, torch.atan2, quadrants, name="quadrants"),
    Case(aten.atan2.default, torch.atan2, extremes, name="extremes"),
    Case(aten.atan2.default, torch.atan2, integers, name="int64", half=False),
    Case(aten.atan2.default, torch.atan2, lambda n: extremes(n, 0.0, -0.0), name="zeros"),
    Case(aten.copysign.Tensor, torch.copysign, pair),
    Case(aten.copysign.Tensor, lambda x, y: 1 / torch.copysign(x, y), zeros, name="zeros"),
    Case(aten.copysign.Tensor, torch.copysign, integers, name="int64", half=False),
    Case(aten.copysign.Scalar, lambda x: torch.copysign(x, -2.0), one),
    *[
        case
        for call in (torch.fmax, torch.fmin)
        for case in (
            *promotions(overload(call), call),
            Case(overload(call), call, lambda n: extremes(n, 0.0), name="extremes"),
            Case(overload(call), call, bools, name="bool", half=False),
        )
    ],
    # Functions that PyTorch itself takes apart.
    Case(aten.mul.Tensor, lambda x, y: torch.lerp(x, y, 0.3), pair, name="lerp"),
    Case(aten.mul.Tensor, lambda x, y: torch.lerp(x, y, x), pair, name="lerp_tensor"),
    Case(aten.add.Tensor, lambda x, y: torch.addcmul(x, x, y, value=0.5), pair, name="addcmul"),
    Case(aten.div.Tensor, lambda x, y: torch.addcdiv(x, x, y.abs() + 1, value=0.5), pair, name="addcdiv"),
    Case(aten.sub.Tensor, operator.isub, lambda n: (torch.randn(n, 3), torch.randn(3)), name="inplace"),
]

REJECTED: list[Rejected] = []
