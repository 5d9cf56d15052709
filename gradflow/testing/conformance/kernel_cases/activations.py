"""Cases of `activate` and `activate_backward`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.backend import ACTIVATIONS
from gradflow.testing.conformance.harness import REFERENCE, Case
from gradflow.testing.conformance.kernel_cases.inputs import half_case, name_of, normal

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 80.0, -80.0, 1e-6, -1e-6, 3.0, -3.0])
PARAMETERS = [*((name, ACTIVATIONS[name].parameter) for name in ACTIVATIONS), ("leaky_relu", 0.3), ("elu", 0.7)]


def activation_bound(e: float, x: Any, name: str, parameter: float) -> Sequence[Any]:
    # both forms of GELU add 1 to a number that is nearly -1 for negative x
    value = np.abs(ACTIVATIONS[name].forward(REFERENCE, x, parameter))
    return [8 * e * (value + (np.abs(x) if "gelu" in name else 0.0))]


def slope_bound(e: float, g: Any, x: Any, name: str | None) -> Any:
    """Return the bound for the VJP of an activation at x: the terms of the slope, which may cancel, times g."""
    one = 1 + np.abs(x)
    size = {"gelu": one + np.abs(x) ** 3 / 8, "gelu_exact": one, "silu": one}.get(name or "", 1.0)
    return 16 * e * np.abs(g) * size


def activation_cases() -> list[Case]:
    cases = []
    for name, parameter in PARAMETERS:
        title = f"{name}-{parameter:g}"
        exact = name == "relu"
        for shape in [(3, 5), (0, 5), (1, 33), (7,), (), (2, 3, 4)]:
            x = normal(shape, 1, 3.0)
            saved = x if ACTIVATIONS[name].saves == "x" else np.asarray(REFERENCE.activate(x, name, parameter))
            cases.append(
                Case("activate", f"{title}-{name_of(shape)}", (x, name, parameter), None if exact else activation_bound)
            )
            cases.append(
                Case(
                    "activate_backward", f"{title}-{name_of(shape)}", (normal(shape, 2), saved, name, parameter),
                    None if exact else lambda e, g, saved, name, _p: [slope_bound(e, g, saved, name)],
                )
            )  # fmt: skip
        cases.append(
            Case("activate", f"{title}-special", (SPECIAL, name, parameter), activation_bound, special=True)
        )  # fmt: skip
        if ACTIVATIONS[name].saves == "x":
            cases.append(
                Case(
                    "activate_backward", f"{title}-special", (normal(SPECIAL.shape, 2), SPECIAL, name, parameter),
                    lambda e, g, saved, name, _p: [slope_bound(e, g, saved, name)], special=True,
                )
            )  # fmt: skip
    pairs = np.array(list(itertools.product([np.inf, -np.inf, np.nan, 2.0], [0.0, -0.0, 1.0, 1e-30, np.inf, np.nan]))).T
    cases.append(Case("activate_backward", "relu-special", (*pairs.copy(), "relu", 0.0), special=True))
    return cases


def half_cases() -> list[Case]:
    cases = []
    far = np.array([300.0, -300.0, 3e4, -3e4])
    for name, parameter in PARAMETERS:
        saved = far if ACTIVATIONS[name].saves == "x" else np.asarray(REFERENCE.activate(far, name, parameter))
        cases.append(half_case("activate", f"{name}-{parameter:g}-far", (far, name, parameter)))
        cases.append(half_case("activate_backward", f"{name}-{parameter:g}-far", (far, saved, name, parameter)))
    return cases


def erf_bound(e: float, x: Any) -> Sequence[Any]:
    return [8 * e * np.abs(REFERENCE.erf(x))]


def erf_cases() -> list[Case]:
    cases = []
    values = {name_of(shape): normal(shape, 3, 2.0) for shape in [(3, 5), (0, 5), (1, 33), ()]}
    values |= {"small": np.array([1e-30, -1e-8, 1e-4, 0.46875, 0.47, -0.5]), "special": SPECIAL}
    for title, x in values.items():
        cases.append(Case("erf", title, (x,), erf_bound, special=title == "special"))
    return cases


CASES = [*activation_cases(), *half_cases(), *erf_cases()]
