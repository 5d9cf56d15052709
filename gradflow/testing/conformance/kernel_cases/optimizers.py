"""Cases of `sgd_step`, `adam_step`, `rmsprop_step`, `moment_step` and `clip_global_norm`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import (
    AdamOptions,
    AdamScalars,
    MomentOptions,
    MomentScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from gradflow.testing.conformance.harness import Case
from gradflow.testing.conformance.kernel_cases.inputs import half_case, in_place, normal

SIZES = (0, 1, 7, 65539)
"""The largest takes two chunks of NumPy's backend, of 65536 elements."""


def sgd_bound(e: float, p: Any, g: Any, v: Any, options: SGDOptions, scalars: SGDScalars) -> Sequence[Any]:
    momentum, dampening, decay, nesterov = options
    lr, first = scalars
    size = np.abs(g) + decay * np.abs(p)
    if v is None:
        return [8 * e * (np.abs(p) + lr * size), None]
    velocity = size if first else momentum * np.abs(v) + (1 - dampening) * size
    size = size + momentum * velocity if nesterov else velocity
    return [8 * e * (np.abs(p) + lr * size), 8 * e * velocity]


def adam_numbers(
    step: int, lr: float, beta1: float, beta2: float, epsilon: float, decay: float, decoupled: bool
) -> tuple[AdamOptions, AdamScalars]:
    """The options and scalars of Adam, or of AdamW if `decoupled`."""
    options = AdamOptions(beta1, beta2, epsilon, 0.0 if decoupled else decay)
    return options, AdamScalars.at(step, lr, beta1, beta2, decay if decoupled else 0.0)


def root_bound(e: float, error: Any, square: Any, share: float) -> tuple[Any, Any]:
    """The root of `square`, a running mean of squares, and the bound on its error.

    error: the bound on the error of the number that was squared last. share: the weight of its square in the mean.
    """
    root = np.sqrt(square)
    return root, np.sqrt(share) * error + 4 * e * root


def adam_bound(
    e: float, p: Any, g: Any, m: Any, v: Any, options: AdamOptions, scalars: AdamScalars
) -> Sequence[Any]:  # fmt: skip
    b1, b2, epsilon, decay = options
    size, g = np.abs(g) + decay * np.abs(p), g + decay * scalars.decay_factor * p
    mean, square = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    root, error = root_bound(e, 4 * e * size, square, 1 - b2)
    mean_error = 6 * e * (b1 * np.abs(m) + (1 - b1) * size)
    rate, correction = scalars.lr / scalars.bias_correction1, 1 / scalars.bias_correction2_root
    denominator = correction * root + epsilon
    update = rate * np.abs(mean) / denominator
    change = rate * mean_error / denominator + update * (correction * error / denominator + 8 * e)
    return [8 * e * np.abs(p) + 2 * change, mean_error, 2 * root * error + error**2 + 4 * e * square]


def rmsprop_bound(
    e: float, p: Any, g: Any, square: Any, mean: Any, velocity: Any, options: RMSpropOptions, scalars: RMSpropScalars
) -> Sequence[Any]:  # fmt: skip
    alpha, epsilon, decay, momentum = options
    (lr,) = scalars
    size, g = np.abs(g) + decay * np.abs(p), g + decay * p
    square = alpha * square + (1 - alpha) * g**2
    root, error = root_bound(e, 4 * e * size, square, 1 - alpha)
    square_error = 2 * root * error + error**2 + 4 * e * square
    bounds = [square_error, None, None]
    average, error = square, square_error
    if mean is not None:
        bounds[1] = 6 * e * (alpha * np.abs(mean) + (1 - alpha) * size)
        mean = alpha * mean + (1 - alpha) * g
        average, error = square - mean**2, error + 2 * np.abs(mean) * bounds[1] + 4 * e * (square + mean**2)
        error, average = np.where(average + error < 0, 0.0, error), np.maximum(average, 0.0)
    denominator = np.sqrt(average) + epsilon
    update = np.abs(g) / denominator
    change = 4 * e * size / denominator + update * (
        error / np.sqrt(np.where(error == 0, 1.0, average)) / denominator + 8 * e
    )
    if velocity is not None:
        update = momentum * np.abs(velocity) + update
        change = bounds[2] = change + 4 * e * update
    return [4 * e * (np.abs(p) + lr * update) + lr * change, *bounds]


MOMENTS: dict[str, tuple[str, MomentOptions, MomentScalars]] = {
    "adagrad": ("square", MomentOptions(0.0, 1.0, 1.0, 0.0), MomentScalars(0.1, 0.0, 1.0, 1.0, 1e-10, 1.0)),
    "amsgrad": (
        "mean square largest", MomentOptions(0.9, 0.999, 0.001, 0.1), MomentScalars(0.1, 3.3, 0.4, 18.0, 1e-8, 1.0)
    ),
    "nadam": ("mean square", MomentOptions(0.9, 0.99, 0.01, 0.1), MomentScalars(0.1, 0.6, 0.7, 5.8, 1e-8, 1.0)),
    "radam-first": ("mean square", MomentOptions(0.9, 0.99, 0.01, 0.0), MomentScalars(0.1, 3.3, 0.4, 0.0, 1.0, 0.99)),
    "lion": ("mean", MomentOptions(0.99, 0.0, 0.0, 0.0), MomentScalars(0.01, 0.9, 0.1, 0.0, 0.0, 0.999)),
}  # fmt: skip
"""The state arrays of a step, its options and its scalars."""


def moment_bound(
    e: float, p: Any, g: Any, mean: Any, square: Any, largest: Any, options: MomentOptions, scalars: MomentScalars
) -> Sequence[Any]:  # fmt: skip
    mean_decay, square_decay, square_gain, decay = options
    size, g = np.abs(g) + decay * np.abs(p), g + decay * scalars.decay_factor * p
    direction, error = scalars.from_gradient * g, 6 * e * scalars.from_gradient * size
    bounds = [None, None, None]
    if mean is not None:
        direction, error = direction + scalars.from_mean * mean, error + 6 * e * scalars.from_mean * np.abs(mean)
        bounds[0] = 6 * e * (mean_decay * np.abs(mean) + (1 - mean_decay) * size)
    if square is None:
        change = np.where(np.abs(direction) > error, 4 * e, 2.0)
    else:
        square = square_decay * square + square_gain * g**2
        root, root_error = root_bound(e, 4 * e * size, square, square_gain)
        bounds[1] = 2 * root * root_error + root_error**2 + 4 * e * square
        if largest is not None:
            bounds[2] = bounds[1]
            root = np.sqrt(np.maximum(largest, square))
        denominator = scalars.root_factor * root + scalars.epsilon
        relative = scalars.root_factor * (root_error + 4 * e * root) / denominator + 8 * e
        change = error / denominator + np.abs(direction) / denominator * relative
    return [8 * e * np.abs(p) + 2 * scalars.lr * change, *bounds]


def run_clip(B: Any, gradients: list[Any], max_norm: float) -> Sequence[Any]:
    return [B.clip_global_norm(gradients, max_norm), *gradients]


def clip_bound(e: float, gradients: list[Any], max_norm: float) -> Sequence[Any]:
    n = sum(g.size for g in gradients) + 8
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    return [n * e * norm, *[n * e * np.abs(g) * min(1.0, max_norm / (norm + 1e-6)) for g in gradients]]


def optimizer_cases() -> list[Case]:
    cases = []
    for n in SIZES:
        p, g, v = normal((n,), 31), normal((n,), 32), normal((n,), 33)
        some = n == 7
        for velocity, first, nesterov, dampening, decay in [
            (False, False, False, 0.0, 0.0), (False, False, False, 0.0, 0.1), (True, True, False, 0.0, 0.0),
            (True, False, False, 0.0, 0.0), (True, False, True, 0.0, 0.1), (True, True, True, 0.0, 0.1),
            (True, False, False, 0.3, 0.0), (True, False, False, 0.3, 0.1), (True, True, False, 0.3, 0.1),
        ]:  # fmt: skip
            before = None if not velocity else np.full(n, np.nan) if first else v  # the first step must not read it
            title = f"{n}-{'velocity' if velocity else 'plain'}{'-first' * first}{'-nesterov' * nesterov}"
            cases.append(
                Case(
                    "sgd_step", f"{title}-{dampening}-{decay}",
                    (p, g, before, SGDOptions(0.9 if velocity else 0.0, dampening, decay, nesterov),
                     SGDScalars(0.1, first)),
                    sgd_bound, in_place("sgd_step", 0, 2), changes=(0, 2),
                )
            )  # fmt: skip
        for step, (decay, decoupled) in itertools.product(
            (1, 2, 1000) if some else (1, 3), ((0.0, False), (0.1, False), (0.1, True), (0.0, True))
        ):
            m, square = (np.zeros(n), np.zeros(n)) if step == 1 else (v * 0.3, normal((n,), 34) ** 2)
            cases.append(
                Case(
                    "adam_step", f"{n}-{step}-{decay}-{decoupled}",
                    (p, g, m, square, *adam_numbers(step, 0.01, 0.9, 0.999, 1e-8, decay, decoupled)),
                    adam_bound, in_place("adam_step", 0, 2, 3), changes=(0, 2, 3),
                )
            )  # fmt: skip
        if some:
            numbers = AdamOptions(0.9, 0.999, 1e-8, 0.1), AdamScalars.at(3, 0.01, 0.9, 0.999, 0.1)
            cases.append(
                Case(
                    "adam_step", f"{n}-both-decays", (p, g, v * 0.3, normal((n,), 34) ** 2, *numbers),
                    adam_bound, in_place("adam_step", 0, 2, 3), changes=(0, 2, 3),
                )
            )  # fmt: skip
        for centred, with_velocity, decay in itertools.product((False, True), (False, True), (0.0, 0.1)):
            cases.append(
                Case(
                    "rmsprop_step", f"{n}{'-centred' * centred}{'-velocity' * with_velocity}-{decay}",
                    (p, g, 1 + normal((n,), 35) ** 2, v * 0.2 if centred else None, v if with_velocity else None,
                     RMSpropOptions(0.99, 1e-8, decay, 0.9 if with_velocity else 0.0), RMSpropScalars(0.01)),
                    rmsprop_bound, in_place("rmsprop_step", 0, 2, 3, 4), changes=(0, 2, 3, 4),
                )
            )  # fmt: skip
        constant = 1 + np.abs(v)  # a constant gradient whose running mean square is below its square
        cases += [
            Case(
                "rmsprop_step", f"{n}-constant{'-velocity' * with_velocity}",
                (p, constant, 0.99 * constant**2, constant, v if with_velocity else None,
                 RMSpropOptions(0.99, 0.1, 0.0, 0.9 if with_velocity else 0.0), RMSpropScalars(0.01)),
                rmsprop_bound, in_place("rmsprop_step", 0, 2, 3, 4), changes=(0, 2, 3, 4),
            )
            for with_velocity in (False, True)
        ]  # fmt: skip
        state = {"mean": v * 0.3, "square": normal((n,), 34) ** 2, "largest": normal((n,), 42) ** 2}
        cases += [
            Case(
                "moment_step", f"{n}-{title}",
                (p, g, *[x if name in names.split() else None for name, x in state.items()], *numbers),
                moment_bound, in_place("moment_step", 0, 2, 3, 4), changes=(0, 2, 3, 4),
            )
            for title, (names, *numbers) in MOMENTS.items()
        ]  # fmt: skip
    several = [normal((3, 5), 36), normal((4,), 37), normal((), 38), normal((0, 2), 39), normal((2, 3, 4), 40)]
    for (name, gradients), max_norm in itertools.product(
        {"one": several[:1], "several": several, "zeros": [np.zeros(4)], "empty": several[3:4],
         "long": [normal((3000,), 41), several[0]]}.items(), (0.0, 0.5, 1e3)
    ):  # fmt: skip
        cases.append(
            Case(
                "clip_global_norm", f"{name}-{max_norm}", (gradients, max_norm), clip_bound, run_clip, changes=(0,),
            )
        )  # fmt: skip
    broken = [np.array([1.0, np.nan]), np.array([2.0])]
    cases.append(
        Case("clip_global_norm", "special", (broken, 1.0), None, run_clip, changes=(0,), special=True)
    )  # fmt: skip
    return cases


def half_cases() -> list[Case]:
    cases = []
    far = np.array([300.0, -300.0, 3e4, -3e4])
    p, small = normal((6,), 50, 1e-3), np.array([0.0, 1e-4, -1e-4, 3e-6, -0.5, 300.0])
    zeros = np.zeros(6)
    options: tuple[Any, ...]
    for velocity in (None, zeros + 100.0):
        options = (SGDOptions(0.0 if velocity is None else 0.9999, 0.0, 1e-8, False), SGDScalars(1e-8, False))
        cases.append(
            half_case(
                "sgd_step", "small" if velocity is None else "small-velocity", (p, 100 * small, velocity, *options),
                in_place("sgd_step", 0, 2), changes=(0, 2),
            )
        )  # fmt: skip
    for decoupled in (True, False):
        options = adam_numbers(1, 1e-5, 0.9, 0.9999, 1e-8, 1e-6, decoupled)
        cases.append(
            half_case(
                "adam_step", f"small-{decoupled}", (p, small, zeros, zeros, *options),
                in_place("adam_step", 0, 2, 3), changes=(0, 2, 3),
            )
        )  # fmt: skip
    for mean, velocity in itertools.product((None, zeros), (None, zeros)):
        options = (RMSpropOptions(0.9999, 1e-8, 1e-6, 0.0 if velocity is None else 0.9), RMSpropScalars(1e-5))
        title = f"small{'' if mean is None else '-centred'}{'' if velocity is None else '-velocity'}"
        cases.append(
            half_case(
                "rmsprop_step", title, (p, small, zeros, mean, velocity, *options),
                in_place("rmsprop_step", 0, 2, 3, 4), changes=(0, 2, 3, 4),
            )
        )  # fmt: skip
    _, *numbers = MOMENTS["amsgrad"]
    cases.append(
        half_case(
            "moment_step", "small", (p, small, zeros, zeros, zeros, *numbers), in_place("moment_step", 0, 2, 3, 4),
            changes=(0, 2, 3, 4),
        )
    )  # fmt: skip
    cases.append(half_case("clip_global_norm", "far", ([far, far[:2]], 1e-4), run_clip, changes=(0,)))
    return cases


def scale_cases() -> list[Case]:
    cases = []
    for n, last in itertools.product((0, 1, 7, 4099), (1.0, np.inf, np.nan)):
        gradient = normal((n,), 60)
        gradient[-1:] = last
        cases.append(
            Case(
                "unscale", f"{n}-{last}", (gradient, np.array(1024.0), np.array(0, np.int32)),
                None, in_place("unscale", 0, 2), changes=(0, 2), dtypes=("float32",), special=last != 1.0,
            )
        )  # fmt: skip
    for scale, growth, found in itertools.product((1024.0, 3e38), (0, 4), (0, 1)):
        given = np.array(scale), np.array(growth, np.int32), np.array(found, np.int32), 2.0, 0.5, 5
        cases.append(
            Case(
                "update_scale", f"{scale}-{growth}-{found}", given, None, in_place("update_scale", 0, 1),
                changes=(0, 1), dtypes=("float32",), special=scale > 1e38,
            )
        )  # fmt: skip
    for skip in (0, 1):
        counted = np.array([5], np.int64), np.array(skip, np.int32)
        cases.append(Case("count_step", str(skip), counted, None, in_place("count_step", 0), changes=(0,)))
    return cases


CASES = [*optimizer_cases(), *half_cases(), *scale_cases()]
