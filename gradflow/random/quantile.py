"""The quantile function of the normal distribution, computed by operations that IEEE 754 rounds exactly.

Libraries' own logarithms and error functions differ in the last bits; these results are the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.backend import Array

# Wichura 1988, "Algorithm AS 241: The Percentage Points of the Normal Distribution", routine PPND16. Each entry holds
# the coefficients of a numerator and a denominator, the highest power first.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def normal_quantile(p: Array, F: Any) -> Array:
    """The x such that a standard normal variable is below x with probability p (float64 in [2^-53, 1 - 2^-53]).

    F: the backend of an array, or `gradflow.ops` for a tensor.

    By Wichura's rational approximations, with r = sqrt(-log(min(p, 1 - p))): in the centre where |p - 1/2| <= 0.425,
    in the middle where r <= 5, and in the tail. Accurate to about 3e-15.
    """
    q = F.subtract(p, 0.5)
    centre = F.multiply(q, _ratio(F.subtract(0.180625, F.square(q)), _CENTRE, F))
    r = F.sqrt(F.negative(log_of_half(F.subtract(0.5, F.abs(q)), F)))
    outer = F.where(
        F.less_equal(r, 5.0),
        _ratio(F.subtract(r, 1.6), _MIDDLE, F),
        _ratio(F.subtract(r, 5.0), _TAIL, F),
    )
    outer = F.where(F.less(q, 0.0), F.negative(outer), outer)
    return F.where(F.less_equal(F.abs(q), 0.425), centre, outer)


def log_of_half(p: Array, F: Any) -> Array:
    """The logarithm of float64 p in [2^-63, 1/2]: p is scaled into [1/2, 1), where a series of atanh converges."""
    exponent = F.zeros_like(p)  # p = scaled / 2^exponent
    for step in (32, 16, 8, 4, 2, 1):
        small = F.less(p, 2.0**-step)
        p = F.where(small, F.multiply(p, 2.0**step), p)
        exponent = F.where(small, F.add(exponent, float(step)), exponent)
    s = F.divide(F.subtract(p, math.sqrt(0.5)), F.add(p, math.sqrt(0.5)))  # |s| < 0.172
    series = _horner(F.square(s), [1.0 / k for k in range(23, 0, -2)], F)  # log(p / sqrt(1/2)) = 2 s series
    return F.subtract(F.multiply(F.multiply(s, series), 2.0), F.multiply(F.add(exponent, 0.5), math.log(2)))


def _ratio(x: Array, coefficients: tuple[Sequence[float], Sequence[float]], F: Any) -> Array:
    return F.divide(_horner(x, coefficients[0], F), _horner(x, coefficients[1], F))


def _horner(x: Array, coefficients: Sequence[float], F: Any) -> Array:
    """The value of a polynomial at x by Horner's method; coefficients: the highest power first."""
    total = F.add(F.multiply(x, coefficients[0]), coefficients[1])
    for c in coefficients[2:]:
        total = F.add(F.multiply(total, x), c)
    return total
