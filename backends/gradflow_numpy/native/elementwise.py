"""Kernels that compute every element from the same element of other arrays; the exact array functions among them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradflow.backend import Array
from gradflow_numpy.native.base import fits, items_of
from gradflow_numpy.native.kernels import Kernel, launch

_COST = 0.3
"""About how many nanoseconds an element takes."""


def elementwise(group: str, name: str, operands: str, formula: Callable[..., Any]) -> Kernel:
    """A kernel that writes `formula(fn, *operands)` to its last array. An item is a row of it.

    operands: a letter for each: `r` an array like the result, `R` an array of one element, `f` a number.
    The arguments of the kernel are the operands, the result, and the number of elements in a row.
    """

    def build(fn: Any, *arguments: Any) -> None:
        *given, out, inner, start, stop, _scratch = arguments
        given = [fn.vector(fn.load(x, fn.real)) if k == "R" else x for k, x in zip(operands, given, strict=True)]

        def body(i: Any, mask: Any) -> None:
            at = i * fn.size
            loaded = [fn.load(x + at, mask=mask) if k == "r" else x for k, x in zip(operands, given, strict=True)]
            fn.store(formula(fn, *loaded), out + at, mask)

        fn.each(start * inner, stop * inner, body)

    return Kernel(group, name, operands + "wi", build)


_BINARY = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv}
_UNARY: dict[str, Callable[..., Any]] = {
    "negative": lambda fn, x: -x,
    "abs": lambda fn, x: fn.intrinsic("fabs", x),
    "square": lambda fn, x: x * x,
    "sqrt": lambda fn, x: fn.sqrt(x),
    "copy": lambda fn, x: x,
    "setitem": lambda fn, x: x,
}
ELEMENTWISE = frozenset((*_BINARY, *_UNARY))
"""The array functions that `launch_elementwise` knows: they round once or not at all, as NumPy does."""


@functools.cache
def _kernel(name: str, operands: str) -> Kernel:
    formula = _UNARY.get(name) or (lambda fn, x, y: _BINARY[name](x, y))
    return elementwise(f"{name}_{operands}", name, operands, formula)


def launch_elementwise(name: str, arguments: Sequence[Any], out: Array | None = None) -> bool:
    """Do an array function of `ELEMENTWISE` with a kernel, if there is one for its arguments, and say whether.

    arguments: those of the array function: contiguous arrays and Python's numbers, but no NumPy scalars, whose values
    have no address. Arrays have the shape of the result, or one element.
    out: what gets the result, of its shape and dtype; None for `setitem`, whose target is its first argument.
    """
    if name == "setitem":
        out, arguments = _part(*arguments[:2]), arguments[2:]
    if out is None or not fits(out):
        return False
    operands = [_constant(x, out.dtype) if x.__class__ in (int, float) else x for x in arguments]
    if not all(fits(x, out.dtype) and _apart(x, out) for x in operands):
        return False
    shape = out.shape if name == "setitem" else np.broadcast_shapes(*[x.shape for x in operands])
    if shape != out.shape or not all(x.shape == shape or x.size == 1 for x in operands):
        return False
    letters = "".join("r" if x.shape == shape else "R" for x in operands)
    items, inner = items_of(out)
    launch(_kernel(name, letters), out.dtype, items, _COST * inner, *operands, out, inner)
    return True


def _constant(number: float, dtype: Any) -> Array:
    with np.errstate(over="ignore"):  # inf, as in NumPy
        return np.array(number, dtype)


def _apart(x: Array, out: Array) -> bool:
    """Whether x is `out`, or does not overlap it."""
    return not np.may_share_memory(x, out) or (x.shape == out.shape and x.ctypes.data == out.ctypes.data)


def _part(x: Any, key: Any) -> Array | None:
    """The view x[key], or None if it is a copy."""
    keys = key if key.__class__ is tuple else (key,)
    if x.__class__ is not np.ndarray or not all(k is ... or k.__class__ in (int, slice) for k in keys):
        return None
    return x[key] if any(k is ... for k in keys) else x[(*keys, ...)]  # a view also of a single element
