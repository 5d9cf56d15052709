"""The error function, composed of array functions.

Two rational approximations with the coefficients of Cody 1969, "Rational Chebyshev approximations for the error
function", Math. Comp. 23: x P(x^2) / Q(x^2) for |x| <= 0.46875, and 1 - exp(-x^2) R(|x|) / S(|x|) beyond. The paper has
a third one for |x| > 4, of the relative error of 1 - erf(x); there erf(x) itself is 1 to 8 digits, and the second will
do for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradflow.backend.array_functions import Array

_P = (1.85777706184603153e-1, 3.16112374387056560, 113.864154151050156, 377.485237685302021, 3209.37758913846947)
_Q = (1.0, 23.6012909523441209, 244.024637934444173, 1282.61652607737228, 2844.23683343917062)
_R = (
    2.15311535474403846e-8, 0.564188496988670089, 8.88314979438837594, 66.1191906371416295, 298.635138197400131,
    881.952221241769090, 1712.04761263407058, 2051.07837782607147, 1230.33935479799725,
)  # fmt: skip
_S = (
    1.0, 15.7449261107098347, 117.693950891312499, 537.181101862009858, 1621.38957456669019, 3290.79923573345963,
    4362.61909014324716, 3439.36767414372164, 1230.33935480374942,
)  # fmt: skip
_EDGE = 0.46875
_FAR = 6.0
"""From here on, erf is 1 in float64."""


def erf(F: Any, x: Array) -> Array:
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x, within 8 units in the last place."""
    size = F.abs(x)
    near = F.clip(x, -_EDGE, _EDGE)
    inner = F.square(near)
    small = F.multiply(near, F.divide(_polynomial(F, _P, inner), _polynomial(F, _Q, inner)))
    far = F.minimum(size, _FAR)  # beyond, the polynomials would overflow in float32
    ratio = F.divide(_polynomial(F, _R, far), _polynomial(F, _S, far))
    large = F.subtract(1.0, F.multiply(F.exp(F.negative(F.square(far))), ratio))
    return F.where(F.less_equal(size, _EDGE), small, F.multiply(large, F.sign(x)))


def _polynomial(F: Any, coefficients: Sequence[float], x: Array) -> Array:
    """The polynomial with these coefficients, that of the highest power first."""
    first, second, *others = coefficients
    out = F.add(F.multiply(x, first), second) if first != 1.0 else F.add(x, second)
    for c in others:
        out = F.add(F.multiply(out, x), c)
    return out
