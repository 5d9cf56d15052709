"""Cases of `random_bits`, `dropout` and `dropout_backward`, whose results are equal bit for bit."""

from __future__ import annotations

import itertools

import numpy as np

from gradflow.testing.conformance.harness import Case
from gradflow.testing.conformance.kernel_cases.inputs import half_case, name_of, normal

KEY = (2**127 + 12345) ^ 2**63


def dropout_cases() -> list[Case]:
    cases = []
    for counter, n in itertools.product(
        [0, 7, 2**64 - 2, 2**128 - 3, 2**192 - 1, 2**256 - 1, 2**256 - 40], [0, 1, 4, 5, 1027]
    ):
        cases.append(Case("random_bits", f"{counter:x}-{n}", (KEY, counter, n), dtypes=("float32",)))
    for shape, p in itertools.product([(3, 5), (), (0, 5), (1,), (7,), (2, 3, 4), (2049,)], [0.0, 0.1, 0.5, 0.999]):
        x = normal(shape, 23)
        cases.append(
            Case(
                "dropout", f"{name_of(shape)}-{p}", (x, p, KEY, 2**64 - 3),
                call=lambda B, *arguments: B.dropout(*arguments),
            )
        )  # fmt: skip
        mask = np.asarray(np.random.default_rng(24).random(shape) >= p)
        cases.append(Case("dropout_backward", f"{name_of(shape)}-{p}", (x, mask, p)))
    for shape, skip in itertools.product([(), (1,), (7,), (3, 5), (0, 5), (2049,)], [1, 5, 7]):
        cases.append(
            Case(
                "dropout", f"{name_of(shape)}-from-{skip}", (normal(shape, 23), 0.5, KEY, 2**64 - 3, skip),
                call=lambda B, *arguments: B.dropout(*arguments),
            )
        )  # fmt: skip
    half = int(np.random.Philox(key=KEY, counter=3).random_raw(2)[1]) & 0xFFFFFFFF  # element 2 is at the threshold
    cases.append(
        Case(
            "dropout", "edge", (normal((5,), 23), half / 2**32, KEY, 3),
            call=lambda B, *arguments: B.dropout(*arguments),
        )
    )  # fmt: skip
    infinite = np.repeat([np.inf, -np.inf, np.nan, 1.0], 2)
    cases.append(
        Case(
            "dropout", "special", (np.tile(infinite, 8), 0.5, KEY, 3), special=True,
            call=lambda B, *arguments: B.dropout(*arguments),
        )
    )  # fmt: skip
    cases.append(Case("dropout_backward", "special", (infinite, np.tile([True, False], 4), 0.5), special=True))
    return cases


def half_cases() -> list[Case]:
    return [half_case("dropout_backward", "rare", (normal((64,), 49, 1e-3), np.arange(64) % 2 == 0, 0.99999))]


CASES = [*dropout_cases(), *half_cases()]
