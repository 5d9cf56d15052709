"""Cases of `put`, `scatter_add` and `scatter_add_along_axis`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.testing.conformance.harness import Case
from gradflow.testing.conformance.kernel_cases.inputs import half_case, normal


def full_key(key: Any) -> Any:
    """Return the key as gradflow passes it to a backend: one boolean array, or a tuple with an Ellipsis."""
    if isinstance(key, np.ndarray) and key.dtype == bool:
        return key
    parts = key if isinstance(key, tuple) else (key,)
    return parts if any(part is ... for part in parts) else (*parts, ...)


def scatter_bound(e: float, values: Any, key: Any, shape: tuple[int, ...], into: Any = None) -> Sequence[Any]:
    size = np.zeros(shape) if into is None else np.abs(into)
    np.add.at(size, key, np.abs(values))
    return [e * (values.size + 2) * size]


def run_scatter(B: Any, *arguments: Any) -> Sequence[Any]:
    found, into = B.scatter_add(*arguments), arguments[3:]
    assert not into or found is into[0], "scatter_add must return the array that it adds to"
    return [found]


def scatter_cases() -> list[Case]:
    cases = []
    keys: dict[str, tuple[Any, tuple[int, ...]]] = {
        "integer": (2, (4, 3)), "negative": (-1, (4, 3)), "integers": ((1, 2), (4, 3)),
        "slice": (slice(1, None, 2), (5, 3)), "reversed": (slice(None, None, -2), (5, 3)),
        "none": ((None, slice(None)), (4, 3)), "ellipsis": ((..., 1), (2, 3, 4)), "nothing": (slice(0, 0), (4, 3)),
        "mask": (normal((4, 3), 25) > 0, (4, 3)), "rows": (np.array([True, False, True, True]), (4, 3)),
    }  # fmt: skip
    for name, (short, shape) in keys.items():
        key = full_key(short)
        arguments: tuple[Any, ...] = (normal(np.zeros(shape)[key].shape, 26), key, shape)
        cases.append(Case("scatter_add", name, arguments))
        arguments += (normal(shape, 31),)
        cases.append(Case("scatter_add", f"{name}-into", arguments, scatter_bound, run_scatter, changes=(3,)))
        cases.append(Case("put", name, (arguments[3], key, arguments[0])))
        cases.append(Case("put", f"{name}-number", (arguments[3], key, 1.5)))
    cases.append(Case("put", "arrays", (normal((4, 3), 33), (np.array([2, 0]), ...), normal((1, 3), 34))))
    cases.append(Case("put", "arrays apart", (normal((2, 3, 4), 33), (np.array([1, 0]), ..., np.array([3, 0])), 2.0)))
    repeated: dict[str, tuple[Any, tuple[int, ...]]] = {
        "array": (np.array([0, 2, 2, -1]), (4, 3)), "table": (np.array([[0, 1], [1, 1], [3, 0]]), (4, 3)),
        "one": (np.array([1, 1, 1, 1, 0]), (4,)), "two": ((np.array([0, 1, 1]), np.array([2, 0, 0])), (4, 3)),
        "broadcast": ((np.array([[0], [1]]), np.array([2, 0, 0])), (4, 3)),
        "columns": ((slice(None), np.array([2, 2, 0])), (4, 3)), "with none": ((None, np.array([1, 1])), (4, 3)),
        "apart": ((np.array([0, 1, 1]), slice(None), np.array([1, 1, 1])), (2, 3, 4)),
        "integer too": ((np.array([0, 0]), 1), (4, 3)), "narrow": (np.array([3, 250, 3], np.uint8), (300,)),
        "ellipsis too": ((..., np.array([1, 1])), (2, 3, 4)), "empty": (np.array([], np.int64), (4, 3)),
        "many": (np.random.default_rng(27).integers(0, 20, 500), (20, 2)),
    }  # fmt: skip
    for name, (short, shape) in repeated.items():
        key = full_key(short)
        arguments = (normal(np.zeros(shape)[key].shape, 28), key, shape)
        cases.append(Case("scatter_add", name, arguments, scatter_bound))
        arguments += (normal(shape, 32),)
        cases.append(Case("scatter_add", f"{name}-into", arguments, scatter_bound, run_scatter, changes=(3,)))
    rows = np.arange(300)[:, None]
    for name, indices, shape, axis in [
        ("last", np.array([[0, 3, 3], [1, 1, 1]]), (2, 4), 1), ("first", np.array([[0, 3, 3, 0]]), (5, 4), 0),
        ("negative", np.array([[-1, 3, 0], [1, -2, 1]]), (2, 4), -1), ("empty", np.zeros((0, 2), np.int64), (0, 4), 1),
        ("nothing", np.zeros((2, 0), np.int64), (2, 4), 1), ("vector", np.array([2, 2, 0, 2]), (3,), 0),
        ("three", np.random.default_rng(29).integers(0, 3, (2, 5, 4)), (2, 3, 4), 1),
        ("int8", (rows % 3).astype(np.int8), (300, 3), 1), ("uint8", (rows % 3).astype(np.uint8), (300, 3), -1),
        ("int32", np.array([[0, 3], [1, 1]], np.int32), (2, 4), 1),
    ]:  # fmt: skip
        cases.append(
            Case(
                "scatter_add_along_axis", name, (normal(indices.shape, 30), indices, shape, axis),
                lambda e, values, indices, shape, axis: scatter_bound(e, values, along(indices, axis), shape),
            )
        )  # fmt: skip
    return cases


def along(indices: Any, axis: int) -> tuple[Any, ...]:
    """Return the key that selects `indices` along `axis`."""
    key = list(np.indices(indices.shape, sparse=True))
    key[axis] = indices
    return tuple(key)


def half_cases() -> list[Case]:
    key = (np.zeros(5000, np.int64), ...)
    along_one = (np.ones((5000, 1)), np.zeros((5000, 1), np.int64), (2, 1), 0)
    return [
        half_case("scatter_add", "often", (np.ones(5000), key, (2,))),
        half_case("scatter_add_along_axis", "often", along_one),
    ]


CASES = [*scatter_cases(), *half_cases()]
