"""The steps of optimizers: one pass over flat arrays.

The formulas are those of `gradflow.backend.optimizer_steps`. There is a kernel for each case: which arrays are given,
and which options are not 0. Options and scalars come as arrays of float64 numbers, since scalars change from step to
step, also where a step is replayed. What is derived from them is computed in float64 and then rounded to the dtype of
the arrays.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gradflow.backend import (
    AdamOptions,
    AdamScalars,
    Array,
    MomentOptions,
    MomentScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from gradflow_numpy.native.base import NativeKernels, fit
from gradflow_numpy.native.kernels import Kernel, kernel, launch

_FLUSH = 0x8040  # bits of MXCSR: flush results to zero, treat operands as zero
_Update = Callable[..., Sequence[Any]]
"""A function of a vector of each array, or None, that returns the new values of each; None: no change."""


# ---------------------------------------------------------------------- the formulas


def sgd(fn: Any, used: SGDOptions, options: Sequence[Any], scalars: Sequence[Any]) -> _Update:
    """`Backend.sgd_step`. In these functions: used: for each option, whether it is not 0."""
    momentum, dampening, *others = options
    momentum, gain, *others = _vectors(fn, momentum, 1 - dampening, *others, *scalars)
    weight_decay, _, lr, first = others

    def update(p: Any, g: Any, v: Any) -> Sequence[Any]:
        d = fn.fma(weight_decay, p, g) if used.weight_decay else g
        if v is not None:
            v = fn.select(first != 0, d, fn.fma(momentum, v, gain * d))
            d = fn.fma(momentum, v, d) if used.nesterov else v
        return fn.fma(-lr, d, p), None, v

    return update


def adam(fn: Any, used: AdamOptions, options: Sequence[Any], scalars: Sequence[Any]) -> _Update:
    """`Backend.adam_step`, with epsilon and the step size times bias_correction2_root, which saves a division."""
    beta1, beta2, epsilon, weight_decay = options
    lr, correction1, correction2_root, decay_factor = scalars
    step_size = lr * correction2_root / correction1
    decay1, gain1, decay2, gain2 = _vectors(fn, beta1, 1 - beta1, beta2, 1 - beta2)
    epsilon, step_size = _vectors(fn, epsilon * correction2_root, step_size)
    weight_decay, decay_factor = _vectors(fn, weight_decay, decay_factor)

    def update(p: Any, g: Any, m: Any, v: Any) -> Sequence[Any]:
        p = decay_factor * p
        if used.weight_decay:
            g = fn.fma(weight_decay, p, g)
        m = fn.fma(decay1, m, gain1 * g)
        v = fn.fma(decay2, v, gain2 * (g * g))
        return p - step_size * m / (fn.sqrt(v) + epsilon), None, m, v

    return update


def rmsprop(fn: Any, used: RMSpropOptions, options: Sequence[Any], scalars: Sequence[Any]) -> _Update:
    """`Backend.rmsprop_step`."""
    alpha, *others = options
    alpha, gain, *others = _vectors(fn, alpha, 1 - alpha, *others, *scalars)
    epsilon, weight_decay, momentum, lr = others

    def update(p: Any, g: Any, s: Any, m: Any, v: Any) -> Sequence[Any]:
        if used.weight_decay:
            g = fn.fma(weight_decay, p, g)
        s = average = fn.fma(alpha, s, gain * (g * g))
        if m is not None:
            m = fn.fma(alpha, m, gain * g)
            average = fn.fma(-m, m, s)
            average = fn.select(average < 0, 0.0, average)  # by rounding
        change = g / (fn.sqrt(average) + epsilon)
        if v is not None:
            change = v = fn.fma(momentum, v, change)
        return fn.fma(-lr, change, p), None, s, m, v

    return update


def moments(fn: Any, used: MomentOptions, options: Sequence[Any], scalars: Sequence[Any]) -> _Update:
    """`Backend.moment_step`."""
    mean_decay, *others = options
    mean_decay, mean_gain, *others = _vectors(fn, mean_decay, 1 - mean_decay, *others, *scalars)
    square_decay, square_gain, weight_decay, lr, from_mean, from_gradient, root_factor, epsilon, decay_factor = others

    def update(p: Any, g: Any, m: Any, s: Any, w: Any) -> Sequence[Any]:
        p = decay_factor * p
        if used.weight_decay:
            g = fn.fma(weight_decay, p, g)
        d = from_gradient * g
        if m is not None:
            d = fn.fma(from_mean, m, d)
            m = fn.fma(mean_decay, m, mean_gain * g)
        if s is None:
            d = fn.select(d > 0, 1.0, fn.select(d < 0, fn.vector(-1.0), d))
        else:
            s = largest = fn.fma(square_decay, s, square_gain * (g * g))
            if w is not None:
                w = largest = fn.select((w >= s) | (w != w), w, s)  # NaN of both stays
            d = d / fn.fma(root_factor, fn.sqrt(largest), epsilon)
        return fn.fma(-lr, d, p), None, m, s, w

    return update


def _vectors(fn: Any, *numbers: Any) -> list[Any]:
    """Numbers rounded to the dtype of the arrays, as vectors."""
    return [fn.vector(x.as_float(fn.real)) for x in numbers]


# ---------------------------------------------------------------------- the kernels


_NUMBERS: dict[Any, tuple[type[Any], type[Any]]] = {
    sgd: (SGDOptions, SGDScalars),
    adam: (AdamOptions, AdamScalars),
    rmsprop: (RMSpropOptions, RMSpropScalars),
    moments: (MomentOptions, MomentScalars),
}


@functools.cache
def step_kernel(formula: Any, given: tuple[bool, ...], used: tuple[bool, ...], watched: bool) -> Kernel:
    """A kernel of the arrays, the options, the scalars, `skip` and `nonfinite` of a step: see `Backend.sgd_step`.

    Its last argument is how many elements an item has.
    formula: one of this module. given: which arrays are not None, the parameter and the gradient first. used: which
    options are not 0. watched: whether `nonfinite` is given.
    """
    options, scalars = _NUMBERS[formula]
    by_sign = formula is moments and not given[3]  # else, what is not finite in the gradient is so in the parameter
    case = "-".join("".join(str(int(x)) for x in group) for group in (given, used, [watched]))

    def build(fn: Any, *parameters: Any) -> None:
        from gradflow_numpy.native.emit import F32, F64, I32, I64

        *arrays, own, changing, skip, nonfinite, inner, start, stop, scratch = parameters

        def numbers(address: Any, kind: Any) -> list[Any]:
            return [fn.load(address + 8 * i, F64) for i in range(len(kind._fields))]

        update = formula(fn, options(*used), numbers(own, options), numbers(changing, scalars))
        bits = I32 if fn.real == F32 else I64
        broken = fn.variable(fn.vector(0.0).bits_as(bits))

        def work(i: Any, mask: Any) -> None:
            places = [x + i * fn.size if there else None for x, there in zip(arrays, given, strict=True)]
            values: list[Any] = [None if place is None else fn.load(place, mask=mask) for place in places]
            new: Sequence[Any] = update(*values)
            for place, value in zip(places, new, strict=True):
                if place is not None and value is not None:
                    fn.store(value, place, mask)
            if watched:
                for x in (new[0], values[1]) if by_sign else (new[0],):
                    x = x if mask is None else fn.select(mask, x, 0.0)
                    broken.set(broken.get() | (x - x).bits_as(bits))  # 0, or NaN

        with _unless(fn, skip):
            with _flushing(fn, scratch):
                fn.each(start * inner, stop * inner, work)
            if watched:
                with fn.when(fn.any(broken.get() != 0)):
                    fn.store(fn.constant(1, I32), nonfinite)

    access = "ur" + "u" * (len(given) - 2) + "RRRWi"
    return Kernel(f"{formula.__name__}-{case}", "step", access, build, flat=True)


@contextlib.contextmanager
def _unless(fn: Any, skip: Any) -> Iterator[None]:
    """The code within runs unless there is a nonzero int32 number at this address; at 0, there is none."""
    from gradflow_numpy.native.emit import I32

    number = fn.variable(fn.constant(0, I32))
    with fn.when(skip != 0):
        number.set(fn.load(skip, I32))
    with fn.when(number.get() == 0):
        yield


@contextlib.contextmanager
def _flushing(fn: Any, scratch: Any) -> Iterator[None]:
    """The code within takes subnormal numbers for zero on x86-64, and nothing after it: see `subnormals`."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        yield
        return
    from llvmlite import ir

    from gradflow_numpy.native.emit import I32

    nothing = ir.VoidType()
    fn.call("llvm.x86.sse.stmxcsr", nothing, fn.pointer(scratch))
    fn.store(fn.load(scratch, I32) | _FLUSH, scratch + 4)
    fn.call("llvm.x86.sse.ldmxcsr", nothing, fn.pointer(scratch + 4))
    yield
    fn.call("llvm.x86.sse.ldmxcsr", nothing, fn.pointer(scratch))


@kernel("round_to_half", "rwiR")
def round_to_half(fn: Any, x: Any, half: Any, is_float16: Any, skip: Any, start: Any, stop: Any, scratch: Any) -> None:
    """half = x, of float32, in float16, or else in bfloat16, unless a step is skipped."""
    from gradflow_numpy.native.emit import F16, F32, I16, I32

    def to_float16(x: Any) -> Any:
        return x.as_float(F16).bits_as(I16)

    def to_bfloat16(x: Any) -> Any:
        bits = x.bits_as(I32)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to the nearest, ties to even
        return (fn.select(x != x, bits | 0x400000, rounded) >> 16).as_integer(I16)

    def each(convert: Callable[[Any], Any]) -> None:
        def work(i: Any, mask: Any) -> None:
            fn.store(convert(fn.load(x + 4 * i, mask=mask).as_float(F32)), half + 2 * i, mask)

        fn.each(start, stop, work)

    with _unless(fn, skip), fn.when_else(is_float16 != 0) as (first, second):
        with first:
            each(to_float16)
        with second:
            each(to_bfloat16)


# ---------------------------------------------------------------------- the backend's part


class OptimizerKernels(NativeKernels):
    """The optimizers' kernels of `FastNumpyBackend`."""

    def sgd_step(
        self,
        parameter: Array,
        gradient: Array,
        velocity: Array | None,
        options: SGDOptions,
        scalars: SGDScalars | Array,
        *,
        half: Array | None = None,
        skip: Array | None = None,
    ) -> None:
        arrays = parameter, gradient, velocity
        if _fit(arrays, half):
            self._step(sgd, 0.2, arrays, options, scalars, half, skip)
        else:
            self.numpy.sgd_step(*arrays, options, scalars, half=half, skip=skip)

    def adam_step(
        self,
        parameter: Array,
        gradient: Array,
        mean: Array,
        square: Array,
        options: AdamOptions,
        scalars: AdamScalars | Array,
        *,
        half: Array | None = None,
        skip: Array | None = None,
    ) -> None:
        arrays = parameter, gradient, mean, square
        if _fit(arrays, half):
            self._step(adam, 0.5, arrays, options, scalars, half, skip)
        else:
            self.numpy.adam_step(*arrays, options, scalars, half=half, skip=skip)

    def rmsprop_step(
        self,
        parameter: Array,
        gradient: Array,
        square: Array,
        mean: Array | None,
        velocity: Array | None,
        options: RMSpropOptions,
        scalars: RMSpropScalars | Array,
        *,
        half: Array | None = None,
        skip: Array | None = None,
    ) -> None:
        arrays = parameter, gradient, square, mean, velocity
        if _fit(arrays, half):
            self._step(rmsprop, 0.5, arrays, options, scalars, half, skip)
        else:
            self.numpy.rmsprop_step(*arrays, options, scalars, half=half, skip=skip)

    def moment_step(
        self,
        parameter: Array,
        gradient: Array,
        mean: Array | None,
        square: Array | None,
        largest: Array | None,
        options: MomentOptions,
        scalars: MomentScalars | Array,
        *,
        half: Array | None = None,
        skip: Array | None = None,
    ) -> None:
        arrays = parameter, gradient, mean, square, largest
        if _fit(arrays, half):
            self._step(moments, 0.5, arrays, options, scalars, half, skip)
        else:
            self.numpy.moment_step(*arrays, options, scalars, half=half, skip=skip)

    def _step(
        self, formula: Any, cost: float, arrays: Sequence[Any], options: Any, scalars: Any, half: Any, skip: Any
    ) -> None:
        if scalars.__class__ is not np.ndarray:
            scalars = np.frombuffer(array("d", scalars))
        parameter, nonfinite = arrays[0], self.nonfinite
        dtype, size = parameter.dtype, parameter.size
        case = tuple([a is not None for a in arrays]), nonfinite is not None
        step, numbers = _prepared(formula, options, *case)
        launch(step, dtype, size, cost, *arrays, numbers, scalars, skip, nonfinite, 1)
        if half is not None:
            launch(round_to_half, dtype, size, 0.2, parameter, half, int(half.dtype == np.float16), skip)


def _fit(arrays: Sequence[Array | None], half: Array | None) -> bool:
    """Whether kernels take the arrays of a step, and its half copy."""
    return fit(arrays) and (half is None or bool(half.flags.carray))


@functools.lru_cache(maxsize=256)
def _prepared(formula: Any, options: Any, given: tuple[bool, ...], watched: bool) -> tuple[Kernel, Array]:
    """The kernel of a step, and its options as it takes them."""
    return step_kernel(formula, given, tuple(map(bool, options)), watched), float64s(options)


@functools.lru_cache(maxsize=64)
def float64s(numbers: tuple[float, ...]) -> Array:
    """The numbers as an array, which is not to be changed."""
    return np.array(numbers, np.float64)
