"""`gradflow.trace`: every operation and gradient of a `with`, by the names of the caller's variables."""

from __future__ import annotations

import pytest

import gradflow as gf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gates(device: str, dtype: str) -> None:
    x, y, z = (gf.tensor(v, dtype, requires_grad=True) for v in (-2.0, 5.0, -4.0))
    with gf.trace() as trace:
        q = x + y
        f = q * z
        f.backward()
    graph = trace.graph
    found = {v.name: (v.forward.values, v.gradient.values) for v in graph.values if v.forward and v.gradient}
    assert found == {"x": (-2, -4), "y": (5, -4), "z": (-4, 3), "q": (3, -4), "f": (-12, 1)}
    assert [(s.operation, s.formula) for s in graph.steps] == [("add", "q = x + y"), ("multiply", "f = q * z")]
