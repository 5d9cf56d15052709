"""Calls of functions that reshape, join or select, and of `matmul`."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradflow.testing.conformance import REALS
from gradflow.testing.conformance.function_cases.calls import Table, values_for
from gradflow.testing.conformance.kernel_cases.inputs import normal


def add_shapes(t: Table) -> None:
    shape: tuple[int, ...]
    for dtypes in (REALS, ("bool",), ("int64",)):
        x, y = (values_for(dtypes, normal((2, 3, 4), seed)) for seed in (66, 67))
        if dtypes == ("bool",):
            x, y = x > 50, y > 50
        empty, scalar = x[:, :0], x[0, 0, 0].reshape(())
        for shape in ((24,), (4, 6), (-1,), (2, -1), (2, 1, 3, 4)):
            t.add("reshape", x, shape, dtypes=dtypes)
        t.add("reshape", empty, (0, 5), dtypes=dtypes)
        t.add("reshape", scalar, (1, 1), dtypes=dtypes)
        t.add("reshape", x[:1, :1, :1], (), dtypes=dtypes)
        sources = ((x[0], (5, 3, 4)), (x[:, :1], (2, 3, 4)), (scalar, (2, 2)), (x, (2, 3, 4)), (empty, (2, 0, 4)))
        for a, shape in sources:
            t.add("broadcast_to", a, shape, dtypes=dtypes)
        for axes in ((2, 0, 1), (0, 1, 2), (1, 0, 2)):
            t.add("permute_dims", x, axes, dtypes=dtypes)
        t.add("permute_dims", scalar, (), dtypes=dtypes)
        t.add("matrix_transpose", x, dtypes=dtypes)
        t.add("matrix_transpose", x[0], dtypes=dtypes)
        t.add("squeeze", x[:, :1], axis=1, dtypes=dtypes)
        t.add("squeeze", x[:1, :, :1], axis=(0, 2), dtypes=dtypes)
        t.add("squeeze", x[:1, :, :1], axis=-1, dtypes=dtypes)
        for axis in (0, 1, -1):
            t.add("expand_dims", x, axis=axis, dtypes=dtypes)
        t.add("expand_dims", scalar, axis=0, dtypes=dtypes)
        t.add("concat", [x, y], dtypes=dtypes)
        t.add("concat", [x, y[:, :1]], axis=1, dtypes=dtypes)
        t.add("concat", [x, y, empty], axis=-2, dtypes=dtypes)
        t.add("concat", [x], axis=0, dtypes=dtypes)
        t.add("stack", [x, y], dtypes=dtypes)
        t.add("stack", [x, y, x], axis=-1, dtypes=dtypes)
        t.add("stack", [scalar, scalar], axis=0, dtypes=dtypes)
        t.add("flip", x, dtypes=dtypes)
        t.add("flip", x, axis=0, dtypes=dtypes)
        t.add("flip", x, axis=(1, 2), dtypes=dtypes)
        t.add("flip", empty, axis=-1, dtypes=dtypes)
        t.add("flip", scalar, dtypes=dtypes)
    x = normal((3, 4), 68)
    for indices, axis in (
        (np.array([[0, 3, 3], [1, 1, 1], [2, 0, 3]]), 1), (np.array([[0, 2, 2, 0]]), 0),
        (np.array([[3], [0], [1]]), -1), (np.zeros((3, 0), np.int64), 1),
    ):  # fmt: skip
        t.add("take_along_axis", x, indices, axis=axis)
    t.add("take_along_axis", normal((5,), 69), np.array([4, 0, 0]), axis=0)
    for a, b in (
        ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (3, 4, 5)), ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((3, 4), (4, 0)), ((33, 65), (65, 17)),
    ):  # fmt: skip
        t.add("matmul", normal(a, 70), normal(b, 71), bound=_matmul_bound)


def _matmul_bound(e: float, a: Any, b: Any) -> Any:
    return (a.shape[-1] + 1) * e * np.matmul(np.abs(a), np.abs(b))
