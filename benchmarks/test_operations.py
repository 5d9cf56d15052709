"""Single recorded operations on square matrices: small ones show the overhead, large ones the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from benchmarks.conftest import Timed

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
def test_operation(operation: str, n: int, library: str, device: str, timed: Timed) -> None:
    function = OPERATIONS[operation]
    host = np.random.default_rng(0).standard_normal((2, n, n), dtype=np.float32)
    a: Any
    b: Any
    synchronize: Callable[[], None] = gf.synchronize
    if library == "gradflow":
        a, b = (gf.tensor(values).requires_grad_() for values in host)
    else:
        import torch

        a, b = (torch.from_numpy(values).to(device).requires_grad_() for values in host)
        if device != "cpu":
            synchronize = torch.cuda.synchronize
    timed(
        lambda: function(a, b),
        synchronize=synchronize,
        workload=operation,
        size=f"{n}x{n}",
        batch=n,
        library=library,
        device=device,
    )
    result = function(a, b).detach().cpu().numpy()
    expected = OPERATIONS[operation](*(gf.tensor(values, device="cpu") for values in host)).numpy()
    assert np.allclose(result, expected, rtol=1e-3, atol=1e-3)
