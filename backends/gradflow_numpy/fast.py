"""The NumPy backend with kernels compiled by numba (the extra `fast`).

The compiled kernels take C-contiguous arrays of float32 or float64. All other arguments go to NumPy's kernels. numba is
imported when the first compiled kernel runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gradflow.backend import Array
from gradflow.environment import delayed_interrupts
from gradflow_numpy import mkl
from gradflow_numpy.backend import NumpyBackend
from gradflow_numpy.native.activations import ActivationKernels
from gradflow_numpy.native.clipping import ClippingKernels
from gradflow_numpy.native.dropout import DropoutKernels
from gradflow_numpy.native.losses import LossKernels
from gradflow_numpy.native.optimizers import OptimizerKernels
from gradflow_numpy.native.squares import SquaredErrorKernels

_COMPILED = (np.dtype(np.float32), np.dtype(np.float64))


class _Functions:
    """The functions of `gradflow_numpy.compiled`, imported on first use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a look-up by Python itself
            raise AttributeError(name)
        try:
            with delayed_interrupts():
                from gradflow_numpy import compiled
        except Exception as error:  # numba also rejects some settings, such as NUMBA_NUM_THREADS=0
            reason = " ".join(str(error).split())
            raise ImportError(
                f"numba, of the extra 'fast', cannot be imported ({reason}): repair its installation or its "
                "settings, or set GRADFLOW_FAST=0 to use NumPy's kernels"
            ) from error
        function = getattr(compiled, name)
        setattr(self, name, function)
        return function


_functions: Any = _Functions()


def _fit(*arrays: Array) -> bool:
    """Whether the compiled functions can take these arrays."""
    dtype = arrays[0].dtype
    if dtype not in _COMPILED:
        return False
    for a in arrays:  # noqa: SIM110 (a generator takes a microsecond longer)
        if a.dtype != dtype or not a.flags.carray:
            return False
    return True


class FastNumpyBackend(
    ActivationKernels, LossKernels, SquaredErrorKernels, DropoutKernels, OptimizerKernels, ClippingKernels
):
    """NumPy arrays in host memory, with kernels compiled by numba and, on Intel processors, products by MKL."""

    made_by: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("activate", "activate_backward", "erf"), "llvmlite"),
        **dict.fromkeys(("sgd_step", "adam_step", "rmsprop_step", "moment_step", "clip_global_norm"), "llvmlite"),
        **dict.fromkeys(("softmax_cross_entropy", "softmax_cross_entropy_backward"), "llvmlite"),
        **dict.fromkeys(("softmax", "log_softmax", "squared_error", "squared_error_backward"), "llvmlite"),
        **dict.fromkeys(("random_bits", "dropout", "dropout_backward"), "llvmlite"),
        **dict.fromkeys(("linear", "linear_backward"), "numba"),
    }  # fmt: skip

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self._by_mkl = mkl.is_intel() and mkl.library() is not None
        if self._by_mkl:
            self.product = self.product_by_mkl  # type: ignore[method-assign]

    def prepare(self) -> None:
        _functions.add_bias  # noqa: B018 (looking up a function imports them)

    def describe(self) -> str:
        from importlib.metadata import version

        products = f", products by MKL {version('mkl')}" if self._by_mkl else ""
        return f"{super().describe()}, numba {version('numba')}{products}"

    def product_by_mkl(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Like `product`, by MKL where MKL is faster."""
        result = mkl.multiply(a, b, out)
        return NumpyBackend.product(self, a, b, out) if result is None else result

    def linear(
        self, x: Array, weight: Array, bias: Array | None, activation: str | None, parameter: float
    ) -> tuple[Array, Any]:
        if bias is None or x.ndim != 2 or x.dtype not in _COMPILED or not bias.flags.carray:
            return super().linear(x, weight, bias, activation, parameter)
        z = self.product(x, weight.T)
        if activation == "relu":
            _functions.add_bias_relu(z, bias)
            return z, None
        _functions.add_bias(z, bias)
        return (z, None) if activation is None else self._activated(z, activation, parameter)

    def linear_backward(
        self,
        g: Array,
        out: Array,
        x: Array,
        weight: Array,
        bias: Array | None,
        activation: str | None,
        parameter: float,
        residual: Any,
        needs: Sequence[bool],
        into: Sequence[Array | None],
    ) -> tuple[Array | None, Array | None, Array | None]:
        need_x, need_weight, need_bias = needs
        if not need_bias or g.ndim != 2 or activation not in (None, "relu"):
            return super().linear_backward(g, out, x, weight, bias, activation, parameter, residual, needs, into)
        gb = np.empty(g.shape[1], g.dtype) if into[2] is None else into[2]
        if not _fit(g, gb) or not (activation is None or _fit(out)):
            return super().linear_backward(g, out, x, weight, bias, activation, parameter, residual, needs, into)
        if activation is None:
            _functions.sum_rows(g, gb)
        else:
            result = np.empty(g.shape, g.dtype)
            _functions.relu_backward_bias(g, out, result, gb)
            g = result
        gx = self.product(g, weight, into[0]) if need_x else None
        gw = self.product(g.T, x, into[1]) if need_weight else None
        return gx, gw, gb
