"""Activations as kernels, made from the formulas of `gradflow.backend.activations`, and erf."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np

from gradflow.backend import ACTIVATIONS, Array
from gradflow.backend.erf import erf
from gradflow_numpy.native.base import NativeKernels, as_array, fit, fits, items_of
from gradflow_numpy.native.elementwise import elementwise
from gradflow_numpy.native.kernels import Kernel, launch

_COST = 1.0
"""About how many nanoseconds an element takes, where there is an exponential."""
_CHEAP = ("relu", "leaky_relu", "hardtanh", "softsign")
"""The activations without one."""


class Functions:
    """The array functions that formulas are written in, of `Value`s and Python numbers."""

    add = staticmethod(operator.add)
    subtract = staticmethod(operator.sub)
    multiply = staticmethod(operator.mul)
    divide = staticmethod(operator.truediv)
    negative = staticmethod(operator.neg)
    greater = staticmethod(operator.gt)
    greater_equal = staticmethod(operator.ge)
    less = staticmethod(operator.lt)
    less_equal = staticmethod(operator.le)
    equal = staticmethod(operator.eq)
    not_equal = staticmethod(operator.ne)

    def __init__(self, fn: Any) -> None:
        from gradflow_numpy.native import formulas

        self.where = fn.select
        self.sqrt = fn.sqrt
        for name in ("exp", "expm1", "log", "log1p", "tanh"):
            setattr(self, name, functools.partial(getattr(formulas, name), fn))
        self.abs = functools.partial(fn.intrinsic, "fabs")
        self._fn = fn

    def square(self, x: Any) -> Any:
        return x * x

    def maximum(self, x: Any, y: Any) -> Any:
        """The larger; NaN if either is, as in NumPy."""
        return self._fn.select(~(x >= y) & (x == x), y, x)

    def minimum(self, x: Any, y: Any) -> Any:
        """The smaller; NaN if either is, as in NumPy."""
        return self._fn.select(~(x <= y) & (x == x), y, x)

    def clip(self, x: Any, low: Any, high: Any) -> Any:
        return self.minimum(self.maximum(x, low), high)

    def sign(self, x: Any) -> Any:
        """-1, 0 or 1; NaN of NaN."""
        return self._fn.select(x > 0.0, 1.0, self._fn.select(x < 0.0, -1.0, x))

    def erf(self, x: Any) -> Any:
        return erf(self, x)

    def sigmoid(self, x: Any) -> Any:
        return ACTIVATIONS["sigmoid"].forward(self, x, 0.0)


def forward(fn: Any, name: str, x: Any, parameter: Any) -> Any:
    """The activation of a `Value`."""
    return ACTIVATIONS[name].forward(Functions(fn), x, parameter)


def backward(fn: Any, name: str, g: Any, saved: Any, parameter: Any) -> Any:
    """The VJP of an activation, of `Value`s."""
    return ACTIVATIONS[name].backward(Functions(fn), g, saved, parameter)


@functools.cache
def _kernels(name: str) -> tuple[Kernel, Kernel]:
    """The kernels of an activation, forward and backward."""
    group = f"activation_{name}"
    return (
        elementwise(group, "forward", "rf", lambda fn, x, p: forward(fn, name, x, p)),
        elementwise(group, "backward", "rrf", lambda fn, g, saved, p: backward(fn, name, g, saved, p)),
    )


_ERF = elementwise("erf", "erf", "r", lambda fn, x: Functions(fn).erf(x))


class ActivationKernels(NativeKernels):
    """`activate`, its VJP, and `erf`."""

    def activate(self, x: Array, name: str, parameter: float) -> Array:
        x = as_array(x)
        if not fits(x):
            return self.numpy.activate(x, name, parameter)
        out = np.empty(x.shape, x.dtype)
        items, inner = items_of(x)
        launch(_kernels(name)[0], x.dtype, items, _cost(name) * inner, x, parameter, out, inner)
        return out

    def activate_backward(self, g: Array, saved: Array, name: str, parameter: float) -> Array:
        g, saved = as_array(g), as_array(saved)
        if not fit((saved, g)) or g.shape != saved.shape:
            return self.numpy.activate_backward(g, saved, name, parameter)
        out = np.empty(g.shape, g.dtype)
        items, inner = items_of(g)
        launch(_kernels(name)[1], g.dtype, items, _cost(name) * inner, g, saved, parameter, out, inner)
        return out

    def erf(self, x: Array) -> Array:
        x = as_array(x)
        if not fits(x):
            return self.numpy.erf(x)
        out = np.empty(x.shape, x.dtype)
        items, inner = items_of(x)
        launch(_ERF, x.dtype, items, _COST * inner, x, out, inner)
        return out


def _cost(name: str) -> float:
    return 0.2 if name in _CHEAP else _COST
