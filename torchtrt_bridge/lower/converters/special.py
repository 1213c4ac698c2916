"""Special functions: gamma, inverse error and modified Bessel functions, to the accuracy of fp32."""

from __future__ import annotations

import math

import torch

from torchtrt_bridge.lower.converters.pointwise import in_float32, polynomial
from torchtrt_bridge.lower.registry import converter

aten = torch.ops.aten

# Gamma -------------------------------------------------------------------------------------------------------------

# log(gamma(2 + t)) / t as a polynomial of t - 0.5, for t from 0 to 1; its error is below 2e-10.
_LGAMMA = (
    *(0.569365741, 0.267581797, -0.044805842, 0.0108771061, -0.00309522004),
    *(0.000959602463, -0.000314519351, 0.000114952456, -4.01873103e-05),
)

# The series of Stirling: what log(gamma(x)) has beyond its leading terms, as a polynomial of 1 / x**2, times 1 / x.
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680)


def lgamma(ctx, x):
    """Compute log(abs(gamma(x))); of a negative number by reflection, infinite at its poles."""
    size = ctx.unary("ABS", x)
    near = ctx.elementwise("LESS", size, 4.0)
    positive = ctx.select(near, _lgamma_below_4(ctx, size), _lgamma_from_4(ctx, size))
    _, sine = _turn(ctx, size)
    sine = ctx.unary("ABS", sine)
    # log(pi / (size * sine)), whose product may be too small for fp32
    height = ctx.elementwise("SUM", ctx.unary("LOG", size), ctx.unary("LOG", sine))
    mirrored = ctx.elementwise("SUB", ctx.elementwise("SUB", math.log(math.pi), height), positive)
    mirrored = ctx.select(ctx.elementwise("EQUAL", sine, 0.0), math.inf, mirrored)
    return ctx.select(ctx.elementwise("LESS", x, 0.0), mirrored, positive)


def _lgamma_below_4(ctx, x):
    """Compute log(gamma(x)) of 0 <= x < 4 from that of a number between 2 and 3."""
    t = ctx.elementwise("SUB", x, ctx.unary("FLOOR", x))
    base = ctx.elementwise("PROD", t, polynomial(ctx, ctx.elementwise("SUB", t, 0.5), *_LGAMMA))
    down = ctx.select(ctx.elementwise("LESS", x, 3.0), 1.0, ctx.elementwise("SUB", x, 1.0))
    up = ctx.elementwise("PROD", x, ctx.select(ctx.elementwise("LESS", x, 1.0), ctx.elementwise("SUM", x, 1.0), 1.0))
    up = ctx.select(ctx.elementwise("LESS", x, 2.0), up, 1.0)
    return ctx.elementwise("SUM", base, ctx.elementwise("SUB", ctx.unary("LOG", down), ctx.unary("LOG", up)))


def _lgamma_from_4(ctx, x):
    """Compute log(gamma(x)) by Stirling's series, in an order that overflows no earlier than the result."""
    inverse = ctx.unary("RECIP", x)
    rest = ctx.elementwise("PROD", inverse, polynomial(ctx, _squared(ctx, inverse), *_STIRLING))
    slope = ctx.elementwise("SUB", ctx.unary("LOG", x), 1.0)
    leading = ctx.elementwise("PROD", ctx.elementwise("SUB", x, 0.5), slope)
    return ctx.elementwise("SUM", leading, ctx.elementwise("SUM", rest, math.log(2 * math.pi) / 2 - 0.5))


def _turn(ctx, x):
    """Return cosine and sine of pi times the distance of `x` to the nearest integer, which is exact."""
    angle = ctx.elementwise("PROD", ctx.elementwise("SUB", x, ctx.unary("ROUND", x)), math.pi)
    return ctx.unary("COS", angle), ctx.unary("SIN", angle)


def _squared(ctx, x):
    return ctx.elementwise("PROD", x, x)


# How many steps the argument of digamma is moved up, and its asymptotic series there, as a polynomial of 1 / x**2.
STEPS = 6
_DIGAMMA = (-1 / 12, 1 / 120, -1 / 252, 1 / 240)


def digamma(ctx, x):
    """Compute the derivative of log(gamma(x)); of a negative number by reflection, NaN at its poles."""
    is_negative = ctx.elementwise("LESS", x, 0.0)
    y = ctx.select(is_negative, ctx.elementwise("SUB", 1.0, x), x)
    cosine, sine = _turn(ctx, x)
    cotangent = ctx.elementwise("DIV", ctx.elementwise("PROD", cosine, math.pi), sine)
    is_pole = ctx.elementwise("EQUAL", sine, 0.0)
    correction = ctx.select(is_negative, ctx.select(is_pole, math.nan, cotangent), 0.0)
    return ctx.elementwise("SUB", _digamma_above_0(ctx, y), correction)


def _digamma_above_0(ctx, x):
    """Compute digamma(x + STEPS) - 1 / x - 1 / (x + 1) - ...; the sign of a zero is that of its infinity."""
    steps = ctx.unary("RECIP", x)
    for step in range(1, STEPS):
        steps = ctx.elementwise("SUM", steps, ctx.unary("RECIP", ctx.elementwise("SUM", x, float(step))))
    far = ctx.elementwise("SUM", x, float(STEPS))
    inverse = ctx.unary("RECIP", far)
    square = _squared(ctx, inverse)
    rest = ctx.elementwise("PROD", square, polynomial(ctx, square, *_DIGAMMA))
    rest = ctx.elementwise("SUB", rest, ctx.elementwise("PROD", inverse, 0.5))
    return ctx.elementwise("SUB", ctx.elementwise("SUM", ctx.unary("LOG", far), rest), steps)


in_float32(aten.lgamma.default, lgamma)
in_float32(aten.digamma.default, digamma)


def higher_derivative(n, self):
    """The derivatives of digamma are values of the zeta function, of which only PyTorch has all."""
    return f"polygamma({n}, x)" if n else None


@converter(aten.polygamma.default, why_not=higher_derivative, precision="fp32")
def polygamma(ctx, n, self):
    """polygamma(int n, Tensor self) -> Tensor"""
    dtype = ctx.node.meta["val"].dtype
    return ctx.cast(digamma(ctx, ctx.tensor(self, torch.float32)), dtype)


# The inverse error function ----------------------------------------------------------------------------------------

# erfinv(x) / x of w = -log(1 - x**2): as a polynomial of w - 2.5 for w below 5, and of sqrt(w) - 3 up to the largest
# fp32 number below 1, where w is 16. Their errors are below 2e-8 and 4e-8.
_ERFINV_NEAR = (
    *(1.50140936, 0.246640279, -0.00417739288, -0.00125272639, 0.000218349386),
    *(-4.97241969e-06, -3.46398527e-06, 4.68131348e-07, 2.33359673e-08, -8.93192595e-09),
)
_ERFINV_FAR = (
    *(2.83297679, 1.00167507, 0.00944574381, -0.00763913985, 0.00568267831),
    *(-0.00358781138, 0.00149722388, -7.60562314e-05, -0.000319928279, 0.000129247018),
)


def erfinv(ctx, x):
    """Compute the number whose error function is `x`: infinite at 1, and NaN beyond."""
    sides = [ctx.elementwise(op, 1.0, x) for op in ("SUB", "SUM")]
    w = ctx.unary("NEG", ctx.unary("LOG", ctx.elementwise("PROD", *sides)))
    near = polynomial(ctx, ctx.elementwise("SUB", w, 2.5), *_ERFINV_NEAR)
    far = polynomial(ctx, ctx.elementwise("SUB", ctx.unary("SQRT", w), 3.0), *_ERFINV_FAR)
    factor = ctx.select(ctx.elementwise("LESS", w, 5.0), near, far)
    is_end = ctx.elementwise("EQUAL", ctx.unary("ABS", x), 1.0)
    return ctx.elementwise("PROD", x, ctx.select(is_end, math.inf, factor))


in_float32(aten.erfinv.default, erfinv)

# Modified Bessel functions -----------------------------------------------------------------------------------------

# exp(-x) * I(x), with I1(x) / x in place of I1(x): as a Chebyshev series of x / 4 - 1 for x up to 8, and times sqrt(x),
# without that division, as a polynomial of 1 / x beyond. Their errors are below 1e-8.
_I0_NEAR = (
    *(0.338397637, -0.304682672, 0.171620902, -0.094901097, 0.0493052842, -0.0237374148, 0.0105464604),
    *(-0.00432431, 0.00163947562, -0.000576375575, 0.000188502885, -5.75419501e-05, 1.64484481e-05),
    *(-4.41673835e-06, 1.11738746e-06, -2.670789e-07, 6.04669956e-08, -1.29829821e-08, 2.56306592e-09),
)
_I0_FAR = (0.398942281, 0.0498674502, 0.0280923632, 0.0273206788, 0.0842413998, -0.300545881, 1.81695548)
_I1_NEAR = (
    *(0.126293593, -0.176416518, 0.102643659, -0.0529459812, 0.024726449, -0.0105640849, 0.00415642294),
    *(-0.00151357245, 0.000512285956, -0.000161760816, 4.78156511e-05, -1.32731637e-05, 3.47025131e-06),
    *(-8.56872025e-07, 2.00329468e-07, -4.4450541e-08, 9.38121516e-09, -1.88526592e-09, 3.50822976e-10),
)
_I1_FAR = (0.39894228, -0.149602981, -0.0467976468, -0.0387871528, -0.10163402, 0.326311047, -2.04891723)


def i0e(ctx, x):
    """Compute exp(-abs(x)) * I0(x)."""
    size = ctx.unary("ABS", x)
    return _near_or_far(ctx, size, _chebyshev(ctx, size, _I0_NEAR), _I0_FAR)


def i1e(ctx, x):
    """Compute exp(-abs(x)) * I1(x), which has the sign of `x`."""
    size = ctx.unary("ABS", x)
    near = ctx.elementwise("PROD", size, _chebyshev(ctx, size, _I1_NEAR))
    result = _near_or_far(ctx, size, near, _I1_FAR)
    return ctx.select(ctx.elementwise("LESS", x, 0.0), ctx.unary("NEG", result), result)


def _near_or_far(ctx, x, near, far):
    """Return `near` for x up to 8, and beyond, the polynomial `far` of 1 / x, divided by sqrt(x)."""
    beyond = ctx.elementwise("DIV", polynomial(ctx, ctx.unary("RECIP", x), *far), ctx.unary("SQRT", x))
    return ctx.select(ctx.elementwise("GREATER", x, 8.0), beyond, near)


def _chebyshev(ctx, x, coefficients):
    """Compute a Chebyshev series of x / 4 - 1 by Clenshaw's recurrence."""
    double = ctx.elementwise("SUB", ctx.elementwise("PROD", x, 0.5), 2.0)
    last, before = ctx.elementwise("PROD", x, 0.0), coefficients[-1]
    for coefficient in reversed(coefficients[1:-1]):
        term = ctx.elementwise("SUB", ctx.elementwise("PROD", double, before), last)
        last, before = before, ctx.elementwise("SUM", term, coefficient)
    half = ctx.elementwise("PROD", ctx.elementwise("PROD", double, 0.5), before)
    return ctx.elementwise("SUM", ctx.elementwise("SUB", half, last), coefficients[0])


def _without_scale(scaled):
    """Return the function without the factor exp(-abs(x)): NaN of an infinity, as PyTorch's."""

    def lower(ctx, x):
        return ctx.elementwise("PROD", ctx.unary("EXP", ctx.unary("ABS", x)), scaled(ctx, x))

    return lower


in_float32(aten.special_i0e.default, i0e)
in_float32(aten.special_i1e.default, i1e)
in_float32(aten.i0.default, _without_scale(i0e))
in_float32(aten.special_i1.default, _without_scale(i1e))
