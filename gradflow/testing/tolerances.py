"""Compare a result with a reference, in one of three ways and never with a guessed tolerance.

- *Exactly*: moves, masks, comparisons, random bits. `assert_agree(name, actual, reference)`.
- *In units in the last place (ulp)*: one transcendental function. `assert_agree(..., ulp=4)`.
- *Within a bound from error analysis*, `c * K * eps * (|A| @ |B|)`: products and sums of K terms, in any order of
  summation. `assert_agree(..., bound=product_bound(a, b))`.

For the last two, compute the reference in float64 on the CPU; every device, the CPU included, must be close to it.
"""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from gradflow.shapes import broadcasts
from gradflow.tensor import Tensor


def host(x: Any) -> Any:
    """Return the values of a tensor, a NumPy array or numbers as a NumPy array. Raises TypeError for anything else.

    >>> import gradflow as gf
    >>> host(gf.ones(2, requires_grad=True))
    array([1., 1.], dtype=float32)
    """
    if isinstance(x, Tensor):
        return x.backend.to_host(x.array)
    values = np.asarray(x)
    if values.dtype.kind not in "biufV":  # V: bfloat16 of ml_dtypes
        raise TypeError(f"expected a tensor, an array or numbers, all real; got {type(x).__name__} ({values.dtype})")
    return values


def eps(dtype: Any = "float32") -> float:
    """Return the distance from 1 to the next number of a floating dtype. Raises ValueError for other dtypes.

    >>> eps("float64") == 2.0**-52
    True
    """
    try:
        return float(np.finfo(str(dtype)).eps)
    except (TypeError, ValueError):
        raise ValueError(f"eps needs the dtype float16, float32 or float64; got {str(dtype)!r}") from None


def product_bound(a: Any, b: Any, dtype: Any = "float32", c: float = 1.0) -> Any:
    """Return c * K * eps * (|a| @ |b|). With c = 1, this bounds the error of K products and additions in any order.

    Higham 2002, "Accuracy and Stability of Numerical Algorithms", eq. 3.5. eps is that of `dtype`, float32 by default.

    >>> product_bound([[3.0, -4.0]], [[1.0], [1.0]]) == 2 * eps() * 7
    array([[ True]])
    """
    a, b = (np.abs(host(x)).astype(np.float64) for x in (a, b))
    return c * a.shape[-1] * eps(dtype) * (a @ b)


def sum_bound(x: Any, axis: Any = None, dtype: Any = "float32", c: float = 1.0) -> Any:
    """Return c * K * eps * sum(|x|), a bound on the error of sums of K terms along `axis`; eps is that of `dtype`.

    >>> float(sum_bound([1.0, -2.0, 3.0])) == 3 * eps() * 6
    True
    """
    x = np.abs(host(x)).astype(np.float64)
    total = x.sum(axis=axis)
    return c * (x.size / max(total.size, 1)) * eps(dtype) * total


def long_sum_bound(x: Any, axis: Any = None, dtype: Any = "float32") -> Any:
    """Return (20 + log2 n) * eps * sum(|x|) for sums of n terms along `axis`: every backend must keep to this bound.

    >>> float(long_sum_bound([1.0, -2.0, 3.0, 2.0])) == 22 * eps() * 8
    True
    """
    x = np.abs(host(x)).astype(np.float64)
    total = x.sum(axis=axis)
    n = x.size / max(total.size, 1)
    return (20 + np.log2(max(n, 1))) * eps(dtype) * total


def ulp_bound(reference: Any, dtype: Any = "float32", ulps: float = 4.0) -> Any:
    """Return `ulps` units in the last place of each element of the reference, in `dtype`.

    >>> float(ulp_bound(1.0)) == 4 * eps()
    True
    """
    return ulps * _spacing(host(reference).astype(np.float64), np.dtype(str(dtype)))


class Agreement(NamedTuple):
    """The error of a result; `compare` returns it.

    >>> import numpy as np
    >>> from gradflow.testing import compare
    >>> compare(np.float32([1.0, 2.0]), [1.0, 2.25], bound=0.5).share
    0.5
    """

    ulp: float
    """The largest error in units in the last place of the reference, in the dtype of the result."""
    share: float
    """The largest error as a share of its bound; above 1 is a failure, inf if there is no bound."""
    problem: str
    """What is wrong, in words; "" if nothing is."""

    @property
    def agrees(self) -> bool:
        """Whether the result is within its bound."""
        return not self.problem


_SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)


def compare(actual: Any, reference: Any, bound: Any = None, ulp: float | None = None) -> Agreement:
    """Return the error of `actual` against `reference` (tensors, arrays or numbers) as an `Agreement`.

    bound: the largest absolute error allowed, one number or one for each element.
    ulp: the largest error allowed, in units in the last place of the reference in the dtype of `actual`.

    With neither, values, dtype and shape must be equal. Where the reference is infinite or NaN, `actual` must be the
    same. With `bound` or `ulp`, a zero of float32 or bfloat16 agrees with a subnormal number, since GPUs flush those
    to zero. Raises TypeError or ValueError for an invalid bound.

    >>> compare(np.float32([1.0, 2.0]), [1.0, 2.0], ulp=4)
    Agreement(ulp=0.0, share=0.0, problem='')
    >>> compare(np.float32([1.0, 2.0]), [1.0, 2.0 + 2.0**-21], ulp=4).share
    0.5
    """
    exact = bound is None and ulp is None
    limit = None if exact else _checked_limit(bound, ulp)
    found, expected = host(actual), host(reference)
    if found.shape != expected.shape:
        return Agreement(np.inf, np.inf, f"shape {found.shape}, not {expected.shape}")
    if limit is not None and not broadcasts(limit.shape, found.shape):
        raise ValueError(
            f"a bound is one number or one per element; it has shape {limit.shape}, the result has shape {found.shape}"
        )
    if ulp is not None and found.dtype.kind not in "fV":
        return Agreement(np.inf, np.inf, f"{found.dtype}, which has no ulp")
    if exact and found.dtype != expected.dtype:
        return Agreement(np.inf, np.inf, f"{found.dtype}, not {expected.dtype}")
    if exact and found.dtype.kind not in "fV":  # also integers that float64 cannot hold
        return _exactly(found, expected, (found != expected) * 1.0)
    wide, target = found.astype(np.float64), expected.astype(np.float64)
    spacing = _spacing(target, found.dtype)
    with np.errstate(all="ignore"):
        error = np.where((wide == target) | (np.isnan(wide) & np.isnan(target)), 0.0, np.abs(wide - target))
        error = np.where(np.isnan(error) | ~np.isfinite(target) & (error > 0), np.inf, error)
        errors_in_ulp = np.where((error == 0) | np.isinf(error), error, error / spacing)
        if exact:
            return _exactly(found, expected, errors_in_ulp)
        if found.dtype == np.float32 or found.dtype.kind == "V":
            flushed = (wide == 0) & (np.abs(target) < _SMALLEST_NORMAL)
            error, errors_in_ulp = np.where(flushed, 0.0, error), np.where(flushed, 0.0, errors_in_ulp)
        limit = np.broadcast_to(np.asarray(limit if ulp is None else limit * spacing, np.float64), error.shape)
        share = np.where(error == 0, 0.0, error / limit)
        share = np.where(np.isnan(share), np.inf, share)
    if not share.size:
        return Agreement(0.0, 0.0, "")
    largest = Agreement(float(errors_in_ulp.max()), float(share.max()), "")
    if largest.share <= 1.0:
        return largest
    i = np.unravel_index(int(share.argmax()), share.shape)
    return largest._replace(
        problem=f"{found[i]!r} at {tuple(map(int, i))}, not {expected[i]!r}: an error of {error[i]:.3g} "
        f"({errors_in_ulp[i]:.3g} ulp), {share[i]:.3g} times its bound of {limit[i]:.3g}; "
        f"{int((share > 1).sum())} of {share.size} elements exceed theirs, and the largest error is "
        f"{largest.ulp:.3g} ulp"
    )


def assert_agree(name: str, actual: Any, reference: Any, bound: Any = None, ulp: float | None = None) -> float:
    """Return the largest error as a share of its bound, at most 1. The arguments are those of `compare`.

    Raises AssertionError, with the largest error in ulp and as a share of its bound, if `actual` exceeds the bound.

    >>> import gradflow as gf
    >>> x = gf.tensor([0.5, 1.0, 2.0])
    >>> assert_agree("exp", gf.exp(x), np.exp(host(x).astype("float64")), ulp=4) <= 1
    True
    >>> assert_agree("negative", -x, [-0.5, -1.0, -2.0 - 2.0**-22], ulp=0.5)
    Traceback (most recent call last):
    ...
    AssertionError: negative: np.float32(-2.0) at (2,), not np.float64(-2.000000238418579): an error of 2.38e-07 \
(1 ulp), 2 times its bound of 1.19e-07; 1 of 3 elements exceed theirs, and the largest error is 1 ulp
    """
    if not isinstance(name, str):
        raise TypeError(f"assert_agree(name, actual, reference): name is a str; got {type(name).__name__}")
    found = compare(actual, reference, bound, ulp)
    if found.problem:
        raise AssertionError(f"{name}: {found.problem}")
    return found.share


def _checked_limit(bound: Any, ulp: Any) -> Any:
    if bound is not None and ulp is not None:
        raise TypeError("pass bound or ulp, not both")
    if ulp is not None and not isinstance(ulp, Real):
        raise TypeError(f"ulp is one number for all elements; got {ulp!r}")
    limit = host(bound if ulp is None else ulp)
    if (limit < 0).any():
        raise ValueError(f"{'a bound' if ulp is None else 'ulp'} is 0 or more; got {limit[limit < 0][0]}")
    return limit


def _spacing(values: Any, dtype: Any) -> Any:
    """Return the unit in the last place of each value in `dtype`, as float64; 1 for integer dtypes."""
    if dtype.kind not in "fV":
        return np.ones(values.shape)
    with np.errstate(all="ignore"):
        rounded = np.abs(values).astype(dtype)
        if dtype.kind == "f":
            rounded = np.minimum(rounded, np.finfo(dtype).max * 0.75)  # the spacing of the largest number would be inf
        return np.spacing(rounded).astype(np.float64)


def _exactly(found: Any, expected: Any, errors_in_ulp: Any) -> Agreement:
    different = errors_in_ulp != 0
    if not different.any():
        return Agreement(0.0, 0.0, "")
    i = np.unravel_index(int(different.argmax()), different.shape) if different.ndim else ()
    worst = float(errors_in_ulp.max())
    how = f"; the largest error is {worst:.3g} ulp" if found.dtype.kind in "fV" else ""
    return Agreement(
        worst, np.inf,
        f"{int(different.sum())} of {different.size} elements differ; the first at {tuple(map(int, i))}: "
        f"{found[i]!r}, not {expected[i]!r}{how}",
    )  # fmt: skip
