"""Single recorded operations on square matrices: small ones show the overhead, large ones the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from benchmarks.conftest import Measure

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {  # of two matrices, in the syntax of both libraries
    "add": lambda a, b: a + b,
    "multiply": lambda a, b: a * b,
    "matmul": lambda a, b: a @ b,
    "exp": lambda a, b: a.exp(),
    "tanh": lambda a, b: a.tanh(),
    "relu": lambda a, b: a.relu(),
    "sum": lambda a, b: a.sum(),
    "softmax": lambda a, b: a.softmax(-1),
}


@pytest.mark.parametrize("n", [32, 1024])
@pytest.mark.parametrize("operation", list(OPERATIONS))
@pytest.mark.benchmark(max_time=0.3)
def test_operation(operation: str, n: int, measure: Measure) -> None:
    host = np.random.default_rng(0).standard_normal((2, n, n), dtype=np.float32)
    a, b = (gf.tensor(values).requires_grad_() for values in host)
    result = measure(operation, OPERATIONS[operation], a, b, size=f"{n}x{n}", batch=n).detach().cpu().numpy()
    expected = OPERATIONS[operation](*(gf.tensor(values, device="cpu") for values in host)).numpy()
    assert np.allclose(result, expected, rtol=1e-3, atol=1e-3)
