"""Cases of `take_rows`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.testing.conformance.harness import Case
from gradflow.testing.conformance.kernel_cases.inputs import normal


def take_rows_values(arrays: Sequence[Any], rows: Any) -> Sequence[Any]:
    return [x[rows] for x in arrays]


def run_take_rows(B: Any, arrays: Sequence[Any], rows: Any) -> Sequence[Any]:
    return list(B.take_rows(arrays, rows))


def take_rows_cases() -> list[Case]:
    order = np.random.default_rng(33).permutation(60)
    labels, mask = np.arange(60), np.arange(120).reshape(60, 2) % 3 == 0
    small = [labels.astype("int16"), labels.astype("uint8"), mask]
    given: dict[str, tuple[list[Any], Any]] = {
        "one": ([normal((60, 5), 34)], order[:60].reshape(3, 20)),
        "three": ([normal((60, 17), 35), labels, normal((60,), 36)], order[:35].reshape(5, 7)),
        "four": ([normal((60, 2, 3), 37), *small], order[:8].reshape(1, 8)),
        "last": ([normal((60, 4), 38), labels], order[57:].reshape(1, 3)),
        "repeated": ([normal((60, 4), 39)], np.array([[3, 3], [0, 59]])),
        "no columns": ([normal((60, 0), 40), labels], order[:4].reshape(2, 2)),
        "no batches": ([normal((60, 3), 41)], order[:0].reshape(0, 4)),
    }  # fmt: skip
    return [Case("take_rows", name, arguments, call=run_take_rows) for name, arguments in given.items()]


CASES = take_rows_cases()
