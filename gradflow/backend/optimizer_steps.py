"""Optimizer steps on flat arrays, and gradient clipping: the composed defaults, and the numbers that they take.

A step takes its arrays, then two tuples of numbers: the options, which stay the same from step to step, and the
scalars, which change with each. The scalars may also be an array on the device, with the same numbers in the same
order: a replayed step then reads them there. The defaults compute all results first and store them at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gradflow.backend.array_functions import Array
from gradflow.backend.half_floats import in_float32
from gradflow.backend.kernels import KernelBase, kernel


class SGDOptions(NamedTuple):
    """The options of `sgd_step`.

    momentum: the factor by which the velocity decays (0: no velocity).
    dampening: each step adds 1 - dampening times the gradient to the velocity.
    weight_decay: the factor of the parameter that is added to the gradient.
    nesterov: whether to use Nesterov momentum.
    """

    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool


class SGDScalars(NamedTuple):
    """The scalars of `sgd_step`.

    lr: the learning rate.
    first: whether the velocity is uninitialized: it is set to the gradient with weight decay instead of decayed.
    """

    lr: float
    first: bool


class AdamOptions(NamedTuple):
    """The options of `adam_step`.

    beta1, beta2: the decay factors of the running means of the gradient and of its square.
    epsilon: what is added to sqrt(v) / bias_correction2_root before dividing by it (eps of `Adam`).
    weight_decay: the factor of the parameter that is added to the gradient, 0 for AdamW.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


class AdamScalars(NamedTuple):
    """The scalars of `adam_step` at step t = 1, 2, ...

    lr: the learning rate.
    bias_correction1: 1 - beta1**t.
    bias_correction2_root: sqrt(1 - beta2**t).
    decay_factor: the factor applied to the parameter before the update: 1 - lr * weight_decay for AdamW, 1 for Adam.
    """

    lr: float
    bias_correction1: float
    bias_correction2_root: float
    decay_factor: float

    @classmethod
    def at(cls, step: int, lr: float, beta1: float, beta2: float, decoupled_decay: float = 0.0) -> AdamScalars:
        """The scalars of a step, counted from 1; decoupled_decay: the weight decay of AdamW (default 0)."""
        return cls._make(cls.numbers(step, lr, beta1, beta2, decoupled_decay))

    @staticmethod
    def numbers(
        step: int, lr: float, beta1: float, beta2: float, decoupled_decay: float
    ) -> tuple[float, float, float, float]:
        """Those of `at` as a plain tuple, which takes a third of the time: for the tables of many steps."""
        return lr, 1.0 - beta1**step, math.sqrt(1.0 - beta2**step), 1.0 - lr * decoupled_decay


class RMSpropOptions(NamedTuple):
    """The options of `rmsprop_step`.

    alpha: the decay factor of the running means of the squared gradient and of the gradient.
    epsilon: what is added to the root of the mean square before dividing by it (eps of `RMSprop`).
    weight_decay: the factor of the parameter that is added to the gradient.
    momentum: the factor by which the velocity decays (0: no velocity).
    """

    alpha: float
    epsilon: float
    weight_decay: float
    momentum: float


class RMSpropScalars(NamedTuple):
    """The scalars of `rmsprop_step`: the learning rate."""

    lr: float


class MomentOptions(NamedTuple):
    """The options of `moment_step`.

    mean_decay: the decay factor of the running mean of the gradient.
    square_decay, square_gain: the factors of the squares so far and of the square of the gradient in their sum.
    weight_decay: the factor of the parameter that is added to the gradient.
    """

    mean_decay: float
    square_decay: float
    square_gain: float
    weight_decay: float


class MomentScalars(NamedTuple):
    """The scalars of `moment_step`.

    lr: the learning rate.
    from_mean, from_gradient: the factors, in the direction of the step, of the mean before it and of the gradient.
    root_factor, epsilon: the root of the squares times the one, plus the other, divides the direction.
    decay_factor: the factor applied to the parameter before the update: 1 - lr * weight_decay if it is decoupled.
    """

    lr: float
    from_mean: float
    from_gradient: float
    root_factor: float
    epsilon: float
    decay_factor: float


class OptimizerKernels(KernelBase):
    """Optimizer steps composed of array functions; all change arrays in place."""

    # ------------------------------------------------------------------ kernels: optimizers, all in place

    @kernel
    @functools.partial(in_float32, changes=(0, 2))
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
        """Do a step of SGD on flat arrays: `parameter` and `velocity` change, `gradient` does not.

        PyTorch's SGD: d = g + weight_decay * p; v = d if `first`, else momentum * v + (1 - dampening) * d;
        p -= lr * (d + momentum * v if nesterov else v). `velocity` is None where momentum is 0.

        In all steps: `scalars` may be a 1-D float64 array on the device with the same numbers in the same order,
        bools as 0 or 1; the results are the same, bit for bit. half: a flat float16 or bfloat16 array that gets the new
        parameters, rounded, where `parameter` is float32. skip: a 0-d int32 array on the device; unless it is 0,
        nothing changes. Where `nonfinite` is not None, it is set to 1 if an element of `gradient` or of the new
        `parameter` is not finite, unless the step is skipped.
        """
        momentum, dampening, weight_decay, nesterov = options
        lr, first = self._numbers(SGDScalars, scalars)
        one_minus_dampening = 1.0 - dampening
        d = self._used(gradient, skip)
        if weight_decay:
            d = self.add(d, self.multiply(parameter, weight_decay))
        changes = []
        if velocity is not None:
            known = first.__class__ is float
            v = d
            if not (known and first):
                v = self.add(self.multiply(velocity, momentum), self.multiply(d, one_minus_dampening))
                v = v if known else self.where(self.not_equal(first, 0.0), d, v)
            changes.append((velocity, v))
            d = self.add(d, self.multiply(v, momentum)) if nesterov else v
        new = self.subtract(parameter, self.multiply(d, self._weak(lr, parameter)))
        self._store(gradient, half, skip, (parameter, new), *changes)

    @kernel
    @functools.partial(in_float32, changes=(0, 2, 3))
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
        """Do a step of Adam or AdamW on flat arrays: all but `gradient` change.

        Kingma & Ba 2015, "Adam", algorithm 1, with epsilon as in PyTorch, outside the corrected root; Loshchilov &
        Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2. p *= decay_factor; g += weight_decay * p;
        m = beta1 * m + (1 - beta1) * g; v = beta2 * v + (1 - beta2) * g**2;
        p -= lr / bias_correction1 * m / (sqrt(v) / bias_correction2_root + epsilon). scalars, half, skip: as in
        `sgd_step`.
        """
        beta1, beta2, epsilon, weight_decay = options
        lr, bias_correction1, bias_correction2_root, decay_factor = self._numbers(AdamScalars, scalars)
        p, g = parameter, self._used(gradient, skip)
        if decay_factor.__class__ is not float or decay_factor != 1:
            p = self.multiply(p, self._weak(decay_factor, p))
        if weight_decay:
            g = self.add(g, self.multiply(p, weight_decay))
        m = self.add(self.multiply(mean, beta1), self.multiply(g, 1.0 - beta1))
        v = self.add(self.multiply(square, beta2), self.multiply(self.square(g), 1.0 - beta2))
        corrected_root = self.multiply(self.sqrt(v), self._weak(1.0 / bias_correction2_root, p))
        update = self.divide(self.multiply(m, self._weak(lr / bias_correction1, p)), self.add(corrected_root, epsilon))
        self._store(gradient, half, skip, (parameter, self.subtract(p, update)), (mean, m), (square, v))

    @kernel
    @functools.partial(in_float32, changes=(0, 2, 3, 4))
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
        """Do a step of RMSprop on flat arrays: all but `gradient` change.

        Tieleman & Hinton 2012, lecture 6.5; centered where `mean` is given (Graves 2013, "Generating Sequences",
        eq. 38-41), with momentum where `velocity` is given; epsilon outside the root, as in PyTorch. A centered mean
        square that rounding makes negative counts as 0. scalars, half, skip: as in `sgd_step`.
        """
        alpha, epsilon, weight_decay, momentum = options
        (lr,) = self._numbers(RMSpropScalars, scalars)
        one_minus_alpha = 1.0 - alpha
        g = self._used(gradient, skip)
        if weight_decay:
            g = self.add(g, self.multiply(parameter, weight_decay))
        s = average = self.add(self.multiply(square, alpha), self.multiply(self.square(g), one_minus_alpha))
        changes = [(square, s)]
        if mean is not None:
            m = self.add(self.multiply(mean, alpha), self.multiply(g, one_minus_alpha))
            changes.append((mean, m))
            average = self.maximum(self.subtract(s, self.square(m)), 0.0)  # rounding may make it negative
        update = self.divide(g, self.add(self.sqrt(average), epsilon))
        if velocity is not None:
            update = self.add(self.multiply(velocity, momentum), update)
            changes.append((velocity, update))
        new = self.subtract(parameter, self.multiply(update, self._weak(lr, parameter)))
        self._store(gradient, half, skip, (parameter, new), *changes)

    @kernel
    @functools.partial(in_float32, changes=(0, 2, 3, 4))
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
        """Do a step along moments of the gradient on flat arrays: all but `gradient` change.

        The step of Adagrad, NAdam, RAdam, Lion, and Adam with the largest squares (AMSGrad), by their options.
        p *= decay_factor; g += weight_decay * p; d = from_mean * m + from_gradient * g;
        m = mean_decay * m + (1 - mean_decay) * g; v = square_decay * v + square_gain * g**2;
        w = max(w, v), where `largest` is given, else v; p -= lr * d / (root_factor * sqrt(w) + epsilon).
        Without a `mean`, d = from_gradient * g. Without a `square`, p -= lr * sign(d). scalars, half, skip: as in
        `sgd_step`.
        """
        mean_decay, square_decay, square_gain, weight_decay = options
        lr, from_mean, from_gradient, root_factor, epsilon, decay_factor = self._numbers(MomentScalars, scalars)
        p, g = parameter, self._used(gradient, skip)
        if decay_factor.__class__ is not float or decay_factor != 1:
            p = self.multiply(p, self._weak(decay_factor, p))
        if weight_decay:
            g = self.add(g, self.multiply(p, weight_decay))
        direction = self.multiply(g, self._weak(from_gradient, p))
        changes = []
        if mean is not None:
            direction = self.add(self.multiply(mean, self._weak(from_mean, p)), direction)
            changes.append((mean, self.add(self.multiply(mean, mean_decay), self.multiply(g, 1.0 - mean_decay))))
        if square is None:
            direction = self.sign(direction)
        else:
            v = self.add(self.multiply(square, square_decay), self.multiply(self.square(g), square_gain))
            changes.append((square, v))
            if largest is not None:
                v = self.maximum(largest, v)
                changes.append((largest, v))
            root = self.multiply(self.sqrt(v), self._weak(root_factor, p))
            direction = self.divide(direction, self.add(root, self._weak(epsilon, p)))
        new = self.subtract(p, self.multiply(direction, self._weak(lr, p)))
        self._store(gradient, half, skip, (parameter, new), *changes)

    @kernel
    def unscale(self, gradient: Array, scale: Array, found: Array) -> None:
        """Divide `gradient` by `scale` in place, and set `found` to 1 if an element of it is not finite.

        scale: 0-d, float32. found: 0-d, int32.
        """
        factor = self.divide(1.0, scale)
        wide = (
            self.multiply(self.astype(gradient, scale.dtype, copy=False), factor)
            if (gradient.dtype in self.half_dtypes)
            else self.multiply(gradient, self.astype(factor, gradient.dtype, copy=False))
        )
        self.setitem(found, ..., self.where(self.all(self.isfinite(gradient)), found, 1))
        self.setitem(gradient, ..., self.astype(wide, gradient.dtype, copy=False))

    @kernel
    def update_scale(
        self, scale: Array, growth: Array, found: Array, growth_factor: float, backoff_factor: float, interval: int
    ) -> None:
        """Change a loss scale after a step, in place.

        Where `found` is not 0, `scale` is multiplied by `backoff_factor` and `growth` becomes 0. Else `growth` counts
        the step; once it is `interval`, `scale` is multiplied by `growth_factor`, unless that is infinite, and `growth`
        becomes 0.

        scale: 0-d, float32. growth, found: 0-d, int32.
        """
        bad = self.not_equal(found, 0)
        grown = self.add(growth, 1)
        due = self.equal(grown, interval)
        wide = self.astype(scale, self.dtypes["float64"])  # as in PyTorch
        larger = self.astype(self.multiply(wide, growth_factor), scale.dtype)
        smaller = self.astype(self.multiply(wide, backoff_factor), scale.dtype)
        larger = self.where(self.logical_and(due, self.isfinite(larger)), larger, scale)
        self.setitem(scale, ..., self.where(bad, smaller, larger))
        self.setitem(growth, ..., self.where(self.logical_or(bad, due), 0, grown))

    @kernel
    def count_step(self, count: Array, skip: Array) -> None:
        """Add 1 to `count` in place, unless `skip` is not 0.

        count: int64, of shape (1,). skip: 0-d, int32.
        """
        self.setitem(count, ..., self.where(self.equal(skip, 0), self.add(count, 1), count))

    def _used(self, gradient: Array, skip: Array | None) -> Array:
        """The gradient of a step; zeros if it is skipped, so that numbers that are not finite do not warn."""
        return gradient if skip is None else self.where(self.not_equal(skip, 0), 0.0, gradient)

    def _numbers(self, kind: Any, scalars: Any) -> Any:
        """The scalars of a step as Python floats, or those in an array on the device as arrays of one element."""
        if isinstance(scalars, tuple):
            return kind(*map(float, scalars))
        return kind(*[self.getitem(scalars, slice(i, i + 1)) for i in range(len(kind._fields))])

    def _weak(self, number: Any, like: Array) -> Any:
        """A number in float64, rounded to the dtype of an array, as a Python number is in an operation with it."""
        return number if number.__class__ is float else self.astype(number, like.dtype)

    def _store(self, gradient: Array, half: Array | None, skip: Array | None, *results: tuple[Array, Array]) -> None:
        """Store the results of a step, each with the array that it is for, the parameter first; see `sgd_step`."""
        stays = None if skip is None else self.not_equal(skip, 0)
        new = results[0][1]
        if half is not None:
            results = (*results, (half, self.astype(new, half.dtype)))
        if self.nonfinite is not None:
            finite = self.logical_and(self.all(self.isfinite(gradient)), self.all(self.isfinite(new)))
            results = (*results, (self.nonfinite, self.where(finite, self.nonfinite, 1)))
        for array, value in results:
            self.setitem(array, ..., value if stays is None else self.where(stays, array, value))

    @kernel
    @functools.partial(in_float32, changes=(0,))
    def clip_global_norm(
        self, gradients: Sequence[Array], max_norm: float, padding: Sequence[Array | None] = ()
    ) -> Array:
        """Scale the arrays in place by min(1, max_norm / (norm + 1e-6)) and return their previous 2-norm, 0-d.

        The arrays have one dtype, which is that of the norm. A norm of NaN makes all numbers NaN, except for padding.
        padding: for each array, an int64 array of the indices of its elements that are 0 and stay 0, or None.

        The norm stays on the device, and nothing waits for it. Pascanu et al. 2013, "On the difficulty of training
        recurrent neural networks", algorithm 1.
        """
        total = self.sum(self.square(gradients[0]))
        for gradient in gradients[1:]:
            total = self.add(total, self.sum(self.square(gradient)))
        norm = self.sqrt(total)
        factor = self.minimum(self.divide(max_norm, self.add(norm, 1e-6)), 1.0)
        for gradient in gradients:
            gradient[...] = self.multiply(gradient, self.astype(factor, gradient.dtype, copy=False))
        for gradient, zeros in zip(gradients, padding, strict=False):
            if zeros is not None:
                self.setitem(gradient, zeros, 0.0)
        return self.astype(norm, gradients[0].dtype, copy=False)
