"""The NumPy backend with native kernels (the extra `fast`): see `gradflow_numpy.native`."""

from __future__ import annotations

from typing import ClassVar

from gradflow.backend import Array
from gradflow.environment import delayed_interrupts
from gradflow_numpy import mkl
from gradflow_numpy.backend import NumpyBackend
from gradflow_numpy.native import kernels
from gradflow_numpy.native.activations import ActivationKernels
from gradflow_numpy.native.clipping import ClippingKernels
from gradflow_numpy.native.dropout import DropoutKernels
from gradflow_numpy.native.linear import LinearKernels, rule
from gradflow_numpy.native.losses import LossKernels
from gradflow_numpy.native.optimizers import OptimizerKernels
from gradflow_numpy.native.squares import SquaredErrorKernels


class FastNumpyBackend(
    LinearKernels,
    ActivationKernels,
    LossKernels,
    SquaredErrorKernels,
    DropoutKernels,
    OptimizerKernels,
    ClippingKernels,
):
    """NumPy arrays in host memory, with native kernels and, on Intel processors, other products by MKL."""

    made_by: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("activate", "activate_backward", "erf"), "llvmlite"),
        **dict.fromkeys(("sgd_step", "adam_step", "rmsprop_step", "moment_step", "clip_global_norm"), "llvmlite"),
        **dict.fromkeys(("softmax_cross_entropy", "softmax_cross_entropy_backward"), "llvmlite"),
        **dict.fromkeys(("softmax", "log_softmax", "squared_error", "squared_error_backward"), "llvmlite"),
        **dict.fromkeys(("random_bits", "dropout", "dropout_backward"), "llvmlite"),
        **dict.fromkeys(("gemm", "linear", "linear_backward"), "llvmlite"),
    }  # fmt: skip

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self._by_mkl = mkl.is_intel() and mkl.library() is not None
        if self._by_mkl:
            self.product = self.product_by_mkl  # type: ignore[method-assign]

    def prepare(self) -> None:
        with delayed_interrupts():
            kernels.target()  # imports llvmlite

    def describe(self) -> str:
        from importlib.metadata import version

        products = f", other products by MKL {version('mkl')}" if self._by_mkl else ""
        return f"{super().describe()}, llvmlite {version('llvmlite')}, layers by {rule()}{products}"

    def product_by_mkl(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Like `product`, by MKL where MKL is faster."""
        result = mkl.multiply(a, b, out)
        return NumpyBackend.product(self, a, b, out) if result is None else result
