"""The NumPy backend with native kernels (the extra `fast`): see `gradflow_numpy.native`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from gradflow.backend import Array
from gradflow.backend.graphs import RecordedStep
from gradflow.environment import delayed_interrupts
from gradflow_numpy.native import kernels, llvm
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
    """NumPy arrays in host memory, with native kernels."""

    made_by: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("activate", "activate_backward", "erf"), "llvmlite"),
        **dict.fromkeys(("sgd_step", "adam_step", "rmsprop_step", "moment_step", "clip_global_norm"), "llvmlite"),
        **dict.fromkeys(("softmax_cross_entropy", "softmax_cross_entropy_backward"), "llvmlite"),
        **dict.fromkeys(("softmax", "log_softmax", "squared_error", "squared_error_backward"), "llvmlite"),
        **dict.fromkeys(("random_bits", "dropout", "dropout_backward"), "llvmlite"),
        **dict.fromkeys(("gemm", "linear", "linear_backward"), "llvmlite"),
    }  # fmt: skip

    graphs_of_several = False

    def prepare(self) -> None:
        with delayed_interrupts():
            kernels.target()  # imports llvmlite

    def graph(self, step: RecordedStep, inputs: Sequence[Array]) -> Callable[..., Any]:
        if not kernels.is_supported():
            return step.run
        from gradflow_numpy.native.step import NativeStep

        return NativeStep(self, step)

    def describe(self) -> str:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("llvmlite")
        except PackageNotFoundError:
            found = llvm.version()  # which says what to install
        return f"{super().describe()}, llvmlite {found}, layers by {rule()}"
