"""Elementary functions of `Value`s, scalars or vectors of float32 or float64, to the last bits.

Every function reduces its argument to a small interval exactly, or with an error far below the last bit, and adds up
the Taylor series there, with as many terms as the dtype needs. The reductions of exp and log are those of Cody & Waite
1980, "Software Manual for the Elementary Functions", with the numbers of bits that fma allows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gradflow_numpy.native.emit import F32, I32, I64, Function, Value


class _Format(NamedTuple):
    """A floating-point format and what the series need for it.

    integer: the integer type of its size. mantissa: the bits of the mantissa that are stored. bias: of the exponent.
    ln2: log(2) as the sum of two numbers. lowest, highest: exp is 0 or infinite beyond.
    powers: the highest power in the series of exp. terms: the terms of the series of log.
    """

    integer: Any
    mantissa: int
    bias: int
    ln2: tuple[float, float]
    lowest: float
    highest: float
    powers: int
    terms: int


_SINGLE = _Format(I32, 23, 127, (0.693147182464599609375, -1.904654299957768e-9), -104.0, 89.0, 7, 4)
_DOUBLE = _Format(I64, 52, 1023, (math.log(2), 2.3190468138462996e-17), -746.0, 710.0, 13, 10)


def _format(x: Value) -> _Format:
    return _SINGLE if x.element == F32 else _DOUBLE


def exp(fn: Function, x: Value) -> Value:
    """e to the power x."""
    f = _format(x)
    x = _at_least(fn, _at_most(fn, x, f.highest), f.lowest)
    less, n = _exponential(fn, x)
    n = n + 2 * f.bias
    first = n >> 1  # two factors: 2^n itself may be subnormal or infinite
    second = n - first
    return (less + 1.0) * _power_of_2(x, first) * _power_of_2(x, second)


def expm1(fn: Function, x: Value) -> Value:
    """exp(x) - 1, accurate near 0."""
    f = _format(x)
    far = -(f.mantissa + 3) * math.log(2)  # below, it is -1
    out = _expm1(fn, _at_least(fn, _at_most(fn, x, f.highest), far))
    return fn.select(_size(fn, x) < 2.0 ** -(f.mantissa + 1), x, out)  # keeps subnormals and the sign of 0


def _expm1(fn: Function, x: Value) -> Value:
    """`expm1` where exp(x) is not too small for the format to add 1; the last bit of a subnormal x may be lost."""
    f = _format(x)
    less, n = _exponential(fn, x)
    half = _power_of_2(x, n + (f.bias - 1))  # 2^n may be infinite
    return fn.fma(less, half, half - 0.5) * 2.0


def _exponential(fn: Function, x: Value) -> tuple[Value, Value]:
    """exp(r) - 1 and an integer n, where x = n log(2) + r and |r| <= log(2) / 2; x is in [lowest, highest]."""
    f = _format(x)
    shift = 1.5 * 2.0**f.mantissa  # a number that large has no fraction: adding it rounds to an integer
    shifted = fn.fma(x, 1 / math.log(2), shift)
    n = shifted - shift
    r = fn.fma(n, -f.ln2[1], fn.fma(n, -f.ln2[0], x))
    series = fn.fma(r, 1 / math.factorial(f.powers), 1 / math.factorial(f.powers - 1))
    for k in range(f.powers - 2, 1, -1):
        series = fn.fma(series, r, 1 / math.factorial(k))
    bits_of_shift = ((f.bias + f.mantissa) << f.mantissa) + (1 << (f.mantissa - 1))
    return fn.fma(r * r, series, r), shifted.bits_as(f.integer) - bits_of_shift


def _power_of_2(like: Value, exponent: Value) -> Value:
    """The float with this exponent, an integer that includes the bias: 0 or more."""
    return (exponent << _format(like).mantissa).bits_as(like.element)


def log(fn: Function, x: Value) -> Value:
    """The natural logarithm: -inf at 0, NaN below."""
    f = _format(x)
    tiny, more = 2.0 ** (1 - f.bias), f.mantissa + 1
    small = x < tiny  # subnormal, if it is positive
    e, m, _ = _split(fn.select(small, x * 2.0**more, x))
    out = _logarithm(fn, fn.select(small, e - float(more), e), m - 1.0)
    return _with_edges(fn, x, out, x)


def log1p(fn: Function, x: Value) -> Value:
    """log(1 + x), accurate near 0."""
    f = _format(x)
    u = x + 1.0
    error = x - (u - 1.0)  # of the addition
    e, m, scale = _split(u)
    out = _logarithm(fn, e, fn.fma(error * 0.5, scale, m - 1.0))
    out = fn.select(_size(fn, x) < 2.0 ** -(f.mantissa + 1), x, out)  # keeps subnormals and the sign of 0
    return _with_edges(fn, u, out, x)


def _split(x: Value) -> tuple[Value, Value, Value]:
    """e, m and 2^(1 - e), where x = 2^e m and sqrt(1/2) <= m < sqrt(2), of a positive normal number."""
    f = _format(x)
    root = 0x3F3504F3 if f is _SINGLE else 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
    moved = x.bits_as(f.integer) + ((f.bias << f.mantissa) - root)
    m = ((moved & ((1 << f.mantissa) - 1)) + root).bits_as(x.element)
    exponent = moved >> f.mantissa
    large = (exponent + ((f.bias + f.mantissa) << f.mantissa)).bits_as(x.element)  # 2^mantissa + exponent
    return large - (2.0**f.mantissa + f.bias), m, _power_of_2(x, (exponent * -1) + (2 * f.bias + 1))


def _logarithm(fn: Function, e: Value, less: Value) -> Value:
    """log(2^e (1 + less)), where `less` is as `_split` makes it.

    log(1 + f) = 2 artanh(s), where s = f / (2 + f), rearranged as in Sun's fdlibm (e_log.c), so that the error of s
    hardly matters.
    """
    f = _format(less)
    s = less / (less + 2.0)
    z = s * s
    series = z * (2 / (2 * f.terms + 1))
    for k in range(f.terms - 1, 0, -1):
        series = (series + 2 / (2 * k + 1)) * z
    half_square = less * less * 0.5
    tail = fn.fma(s, half_square + series, e * f.ln2[1])
    return fn.fma(e, f.ln2[0], less - (half_square - tail))


def _with_edges(fn: Function, x: Value, out: Value, above: Value) -> Value:
    """`out` where x is positive and finite; `above` where x is infinite or NaN; -inf at 0 and NaN below."""
    edge = fn.select(x == 0.0, fn.constant(-math.inf, x.element), fn.constant(math.nan, x.element))
    return fn.select(x > 0.0, fn.select(x < math.inf, out, above), edge)


def tanh(fn: Function, x: Value) -> Value:
    """The hyperbolic tangent."""
    f = _format(x)
    size = _size(fn, x)
    one = (f.mantissa + 6) * math.log(2) / 2  # beyond, it is 1, and t + 2 is t
    t = _expm1(fn, _at_most(fn, size, one) * 2.0)
    return fn.intrinsic("copysign", t / (t + 2.0), x)


def _at_most(fn: Function, x: Value, limit: float) -> Value:
    """The smaller of the two; NaN where x is NaN."""
    return fn.select(x > limit, limit, x)


def _at_least(fn: Function, x: Value, limit: float) -> Value:
    """The larger of the two; NaN where x is NaN."""
    return fn.select(x < limit, limit, x)


def _size(fn: Function, x: Value) -> Value:
    return fn.intrinsic("fabs", x)
