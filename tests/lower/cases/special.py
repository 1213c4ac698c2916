"""Special functions: gamma, inverse error and modified Bessel functions."""

import torch

from tests.lower.case import Case, Rejected
from tests.lower.cases.pointwise import bools, integers, numbers, scalar, signed, unit

aten = torch.ops.aten


def wide(n: int) -> tuple[torch.Tensor]:
    """Numbers of both signs between 1e-4 and 1e4."""
    size = 10.0 ** torch.linspace(-4, 4, n * 15)
    return (torch.stack([size, -size]),)


def huge(n: int) -> tuple[torch.Tensor]:
    """Negative, since a case's inputs are negated; the logarithm of gamma overflows fp32 from 4.09e36 on.

    PyTorch's own overflows at 4.04e36.
    """
    return (-torch.tensor([1e5, 1e10, 1e20, 1e30, 3e36, 4.1e36, 3e38]).repeat(n, 1),)


def tiny(n: int) -> tuple[torch.Tensor]:
    return (torch.tensor([1e-4, -1e-4, 1e-10, -1e-10, 1e-30, -1e-30, 2e-38, -2e-38]).repeat(n, 1),)


def poles(n: int) -> tuple[torch.Tensor]:
    """Integers of both signs, and numbers close to those that are poles."""
    whole = torch.arange(-n - 4.0, n + 5)
    return (torch.stack([whole, whole + 1e-3, whole - 1e-3, whole * 1e7]),)


def between(low: float, high: float):
    """Return a maker of numbers in this range, negated as a case's inputs are."""
    return lambda n: (-torch.linspace(low, high, n * 50),)


def near_one(n: int) -> tuple[torch.Tensor]:
    """Up to the largest number below one, and the first one beyond."""
    line = 1 - 2.0 ** -torch.arange(1.0, 25)
    return (torch.cat([line, -line, torch.tensor([1.0, -1.0, 1 + 2.0**-23])]).repeat(n, 1),)


GAMMA = (torch.lgamma, torch.digamma)
BESSEL = (torch.special.i0e, torch.special.i1e, torch.i0, torch.special.i1)
OPS = {
    torch.lgamma: aten.lgamma.default,
    torch.digamma: aten.digamma.default,
    torch.erfinv: aten.erfinv.default,
    torch.special.i0e: aten.special_i0e.default,
    torch.special.i1e: aten.special_i1e.default,
    torch.i0: aten.i0.default,
    torch.special.i1: aten.special_i1.default,
}

CASES: list[Case] = [
    *[Case(op, call, numbers, name="numbers") for call, op in OPS.items()],
    *[Case(op, call, scalar, name="0d") for call, op in OPS.items() if call is not torch.erfinv],
    *[Case(op, call, integers, name="int64", half=False) for call, op in OPS.items()],
    Case(aten.lgamma.default, torch.lgamma, bools, name="bool", half=False),
    *[Case(OPS[call], call, between(0.01, 10), name="positive") for call in GAMMA],
    *[Case(OPS[call], call, between(-10, 0.01), name="negative") for call in GAMMA],
    *[Case(OPS[call], call, wide, name="wide") for call in GAMMA],
    *[Case(OPS[call], call, tiny, name="tiny", half=False) for call in GAMMA],
    *[Case(OPS[call], call, poles, name="poles", half=False) for call in GAMMA],
    *[Case(OPS[call], call, huge, name="huge", half=False) for call in GAMMA],
    Case(aten.polygamma.default, lambda x: torch.polygamma(0, x), signed),
    Case(aten.lgamma.default, torch.special.gammaln, signed, name="gammaln"),
    Case(aten.digamma.default, torch.special.psi, signed, name="psi"),
    Case(aten.lgamma.default, lambda x: torch.special.multigammaln(x, 3), between(1.5, 9), name="multigammaln"),
    Case(aten.erfinv.default, torch.erfinv, unit),
    Case(aten.erfinv.default, torch.erfinv, near_one, name="near_one"),
    Case(aten.erfinv.default, torch.special.erfinv, tiny, name="tiny", half=False),
    *[Case(OPS[call], call, between(-20, 20), name="moderate") for call in BESSEL],
    *[Case(OPS[call], call, between(20, 100), name="large", half=False) for call in BESSEL],
    # Functions that PyTorch itself takes apart.
    Case(aten.where.self, torch.sinc, numbers, name="sinc"),
    Case(aten.log.default, lambda x: torch.xlogy(x, x[:, :1]), lambda n: (-torch.rand(n, 4),), name="xlogy"),
    Case(aten.log1p.default, lambda x: torch.special.xlog1py(x, x.abs()), signed, name="xlog1py"),
    Case(aten.log1p.default, lambda x: torch.logaddexp(x, x.flip(1)), numbers, name="logaddexp"),
    Case(aten.log1p.default, lambda x: torch.logaddexp2(x, x.flip(1)), numbers, name="logaddexp2"),
    Case(aten.erf.default, torch.special.ndtr, signed, name="ndtr"),
    Case(aten.log.default, torch.special.entr, numbers, name="entr"),
]

REJECTED: list[Rejected] = [
    Rejected(aten.polygamma.default, lambda x: torch.polygamma(1, x), signed, "polygamma(1, x)"),
]
