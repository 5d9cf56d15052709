"""Backends for the conformance kit: those of `backends/`, and NumPy's with one fault each, named after the fault."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.backend import Backend

sys.path.insert(0, str(Path(__file__).parent / "backends"))
for module, name in (("strict", "StrictBackend"), ("torch_arrays", "TorchBackend")):
    with contextlib.suppress(ImportError):
        cls = getattr(importlib.import_module(module), name)
        gf.register_backend(cls.name, cls)

Numpy: Any = type(gf.get_backend("cpu"))
FAULTS: dict[str, tuple[str, type[Backend]]] = {}
"""For each device with a fault: part of the name of a check that must find it, and the backend."""


def plant(check: str) -> Any:
    """Register a backend with a fault that this check must find."""

    def register(backend: type[Backend]) -> type[Backend]:
        FAULTS[backend.name] = (check, backend)
        gf.register_backend(backend.name, backend)
        return backend

    return register


@plant("test_kernel[softmax-3x10-axis-1-float64]")
class NoneForOneDtype(Numpy):
    name = "none_for_one_dtype"

    def softmax(self, x: Any, axis: int) -> Any:
        if x.dtype != np.float64:
            return super().softmax(x, axis)
        np.exp(x)
        return None


@plant("test_kernel[clip_global_norm-several-1000.0-float32]")
class ZeroesGradients(Numpy):
    name = "zeroes_gradients"

    def clip_global_norm(self, gradients: Any, max_norm: float, padding: Any = ()) -> Any:
        norm = super().clip_global_norm(gradients, max_norm, padding)
        if norm < max_norm:
            for g in gradients:
                g[...] = 0
        return norm


@plant("test_kernel[adam_step-7-2-0.1-False-float32]")
class ChangesTheGradient(Numpy):
    name = "changes_the_gradient"

    def adam_step(self, parameter: Any, gradient: Any, *others: Any, **results: Any) -> None:
        *state, options, scalars = others
        if options.weight_decay:
            gradient += options.weight_decay * parameter
            others = (*state, options._replace(weight_decay=0.0), scalars)
        super().adam_step(parameter, gradient, *others, **results)


@plant("test_array_function[argsort-2x3x4-float32]")
class WrongAxisDefault(Numpy):
    name = "wrong_axis_default"

    @staticmethod
    def argsort(x: Any, /, *, axis: int = 0, descending: bool = False, stable: bool = True) -> Any:
        return Numpy.argsort(x, axis=axis, descending=descending, stable=stable)


@plant("test_random_bits[0x0-0x0]")
class RandomOffByOne(Numpy):
    name = "random_off_by_one"

    def random_bits(self, key: int, counter: int, n: int) -> Any:
        return super().random_bits(key, (counter + 1) % 2**256, n)


@plant("test_array_function[multiply-3x4-number-float32]")
class SilentFloat64(Numpy):
    name = "silent_float64"

    @staticmethod
    def multiply(a: Any, b: Any, /) -> Any:
        return np.multiply(a, np.float64(b) if isinstance(b, float) else b)


@plant("test_from_host_copies[float32]")
class MissingCopy(Numpy):
    name = "missing_copy"

    def from_host(self, values: Any) -> Any:
        return np.ascontiguousarray(values) if np.ndim(values) else np.array(values)


@plant("test_to_host_copies[float32]")
class LendsItsMemory(Numpy):
    name = "lends_its_memory"

    def to_host(self, array: Any) -> Any:
        return np.asarray(array)


@plant("test_values_leave_in_c_order[float32-transposed]")
class KeepsTheOrderOnTheWayOut(Numpy):
    name = "keeps_the_order_on_the_way_out"

    def to_host(self, array: Any) -> Any:
        return np.array(array)


@plant("test_copies_are_in_c_order[float32-transposed]")
class KeepsTheOrderOfCopies(Numpy):
    name = "keeps_the_order_of_copies"

    def copy(self, x: Any) -> Any:
        return np.array(x)


@plant("test_values_from_pinned_memory")
class ReadsForGood(Numpy):
    name = "reads_for_good"

    def from_host_later(self, values: Any) -> Any:
        return np.asarray(values)


@plant("test_values_are_copied_ahead[float32]")
class LendsItsBuffers(Numpy):
    name = "lends_its_buffers"

    def from_host_ahead(self, values: Any) -> Any:
        return [np.asarray(x) for x in values], super().event()


@plant("test_memory_is_exchanged_through_dlpack[float32]")
class CopiesWhatItTakes(Numpy):
    name = "copies_what_it_takes"

    def from_dlpack(self, x: Any) -> Any:
        return np.from_dlpack(x, copy=True)


@plant("test_python_numbers[float]")
class ShortensNumbers(Numpy):
    name = "shortens_numbers"

    @staticmethod
    def asarray(obj: Any, /, *, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(obj, dtype=np.float32 if dtype is None and isinstance(obj, float) else dtype, copy=copy)


@plant("test_kernel[linear_backward-3x5-4-relu-bias-yyy-buffers-float32]")
class IgnoresBuffers(Numpy):
    name = "ignores_buffers"

    def linear_backward(self, *arguments: Any) -> Any:
        return super().linear_backward(*arguments[:-1], (None, None, None))


@plant("test_kernel[linear_backward-3x5-4-gelu-bias-yyy-float32]")
class ChangesItsInput(Numpy):
    name = "changes_its_input"

    def activate_backward(self, g: Any, saved: Any, name: str, parameter: float) -> Any:
        found = super().activate_backward(g, saved, name, parameter)
        if name == "gelu":
            g *= 0
        return found


@plant("test_dropout_masks[7-0.5]")
class DropoutOfTheHighHalf(Numpy):
    name = "dropout_of_the_high_half"

    def dropout(self, x: Any, p: float, key: int, counter: int) -> Any:
        words = self.random_bits(key, counter, x.size)
        mask = ((words >> np.uint64(32)) >= round(p * 2**32)).reshape(x.shape)
        return self.dropout_backward(x, mask, p), mask


@plant("test_array_function[mean-large-float16]")
class OverflowsInHalf(Numpy):
    name = "overflows_in_half"

    @staticmethod
    def mean(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        with np.errstate(all="ignore"):
            total = np.add.reduce(x, axis=axis, keepdims=keepdims)
            return np.divide(total, max(x.size // max(total.size, 1), 1), dtype=x.dtype)


@plant("test_array_function[sum-10000x3-axis=0-float32]")
class AddsRowAfterRow(Numpy):
    name = "adds_row_after_row"

    @staticmethod
    def sum(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return np.sum(x, axis=axis, keepdims=keepdims)


@plant("test_array_function[cumulative_sum-10000x3-axis=0-float64]")
class RunsOn(Numpy):
    name = "runs_on"

    @staticmethod
    def cumulative_sum(x: Any, /, *, axis: Any = None) -> Any:
        return np.cumulative_sum(x, axis=axis)


@plant("test_event")
class EventsOfNoTime(Numpy):
    name = "events_of_no_time"

    def event(self) -> Any:
        event = super().event()
        event.time = 0.0
        return event


@plant("test_what_has_no_result_raises[a shape of another size]")
class ReshapesByForce(Numpy):
    name = "reshapes_by_force"

    @staticmethod
    def reshape(x: Any, /, shape: Any) -> Any:
        try:
            return np.reshape(x, shape)
        except ValueError:
            return np.resize(x, shape)


@plant("test_training_run[AdamW-float64]")
class ForgetsADecay(Numpy):
    name = "forgets_a_decay"

    def adam_step(self, *arguments: Any, **results: Any) -> None:
        *arrays, options, scalars = arguments
        super().adam_step(*arrays, options, scalars._replace(decay_factor=1.0), **results)


# ------------------------------------------------------------------ declarations


class Lacking(Numpy):
    """Lacks cumulative sums in half precision and one check, and declares that."""

    name = "lacking"
    unsupported = {"cumulative_sum[float16]": "not in half precision", "test_event": "no clock"}  # noqa: RUF012

    @staticmethod
    def cumulative_sum(x: Any, /, *, axis: Any = None) -> Any:
        if x.dtype == np.float16:
            raise TypeError("no cumulative sums in half precision")
        return Numpy.cumulative_sum(x, axis=axis)

    def event(self) -> Any:
        raise NotImplementedError("no clock")


class Humble(Numpy):
    """Declares something that it can do."""

    name = "humble"
    unsupported = {"cumulative_sum": "too hard", "test_event": "no clock"}  # noqa: RUF012


class Confused(Numpy):
    """Declares something that does not exist, without a reason."""

    name = "confused"
    unsupported = {"cumulative_product": "", "float16": ""}  # noqa: RUF012


for backend in (Lacking, Humble, Confused):
    gf.register_backend(backend.name, backend)
