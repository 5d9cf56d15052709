"""The worked examples of the lecture notes, with their numbers, by `gradflow.trace` and by `gradflow.explain`.

The numbers are those of the notes; each was also computed by hand.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from graphs import close, forward, gradients, local, step

import gradflow as gf

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def tensors(dtype: str, *values: Any) -> list[gf.Tensor]:
    return [gf.tensor(v, dtype, requires_grad=True) for v in values]


def test_example_1(device: str) -> None:
    """f = w*x + b."""
    w, x, b = tensors("float32", -2.0, 5.0, 3.0)
    with gf.trace() as trace:
        g = w * x
        f = g + b
    explained = gf.explain(f).graph
    with gf.trace() as second:
        f.backward()
    assert forward(trace.graph) == forward(explained) == {"w": -2, "x": 5, "b": 3, "g": -10, "f": -7}
    for graph in (explained, second.graph):
        assert gradients(graph) == {"f": 1, "g": 1, "b": 1, "w": 5, "x": -2}


@DTYPES
def test_example_2(device: str, dtype: str) -> None:
    """f = (x + y) * z."""
    x, y, z = tensors(dtype, -2.0, 5.0, -4.0)
    with gf.trace() as trace:
        q = x + y
        f = q * z
        f.backward(retain_graph=True)
    for graph in (trace.graph, gf.explain(f).graph):
        assert forward(graph) == {"x": -2, "y": 5, "z": -4, "q": 3, "f": -12}
        assert gradients(graph) == {"f": 1, "q": -4, "z": 3, "x": -4, "y": -4}
        assert [s.formula for s in graph.steps] == ["q = x + y", "f = q * z"]
        assert step(graph, "f").rule == ("df/dq = df/df * z", "df/dz = df/df * q")
        assert step(graph, "q").rule == ("df/dx = df/dq * 1", "df/dy = df/dq * 1")
        assert [s.backward for s in graph.steps] == [1, 0]
        assert all(v.forward.dtype == dtype and v.forward.device == str(f.device) for v in graph.values if v.forward)


@DTYPES
def test_example_3(device: str, dtype: str) -> None:
    """A sigmoid neuron as gates, and as one gate."""
    w0, x0, w1, x1, w2 = tensors(dtype, 2.0, -1.0, -3.0, -2.0, -3.0)
    with gf.trace() as trace:
        dot = w0 * x0 + w1 * x1 + w2
        minus = -dot
        e = gf.exp(minus)
        plus = e + 1.0
        f = 1.0 / plus
        f.backward(retain_graph=True)
    expected = {"w0": -0.1966, "x0": 0.3932, "w1": -0.3932, "x1": -0.5898, "w2": 0.1966}
    for graph in (trace.graph, gf.explain(f).graph):
        found = gradients(graph)
        chain = [found[name] for name in ("plus", "e", "minus", "dot")]
        assert chain == pytest.approx([-0.5344, -0.5344, -0.1966, 0.1966], abs=5e-5)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-4)  # the notes round twice
        assert forward(graph)["f"] == pytest.approx(0.7311, abs=5e-5)
        assert forward(graph)["dot"] == 1
    gates = gradients(trace.graph)
    with gf.trace() as trace:
        dot = w0 * x0 + w1 * x1 + w2
        s = gf.sigmoid(dot)
        s.backward()
    found = gradients(trace.graph)
    assert all(close(found[name], gates[name], dtype) for name in expected)
    gate = local(trace.graph, "s", "dot")
    assert (gate.formula, gate.form) == ("s * (1 - s)", "number")
    assert gate.numbers is not None
    assert gate.numbers.values == pytest.approx(0.1966, abs=5e-5)


def test_example_4(device: str) -> None:
    """Add distributes, multiply switches, max routes; a value that is used twice sums what comes back."""
    x, y = tensors("float64", 3.0, -4.0)
    with gf.trace() as trace:
        s = x + y
        p = x * y
        m = gf.maximum(x, y)
        f = s + p + m
        f.backward(retain_graph=True)
    for graph in (trace.graph, gf.explain(f).graph):
        assert [step(graph, name).role for name in "spm"] == ["distributes", "switches", "routes"]
        received = {name: [r.values for r in step(graph, name).received if r] for name in "spm"}
        assert received == {"s": [1, 1], "p": [-4, 3], "m": [1, 0]}
        assert gradients(graph) == pytest.approx({**gradients(graph), "x": -2, "y": 4})
        assert local(graph, "m", "x").formula == "([x > y] + [x = y] / 2)"
    assert "df/dx gets df/dp * y = -4" in str(trace).replace("  ", "")
    assert "1 + (-4) + 1 = -2" in str(trace)


def test_example_5(device: str) -> None:
    """A gradient of 5 means that f changes five times as fast as the weight."""
    w, x, b = tensors("float64", -2.0, 5.0, 3.0)
    f = w * x + b
    rate = gradients(gf.explain(f).graph)["w"]
    changed = (w + 0.5) * x + b
    assert (rate, (changed - f).item()) == (5, 0.5 * 5)


@DTYPES
def test_example_6(device: str, dtype: str) -> None:
    """q = W x, f = ||q||^2."""
    W, x = tensors(dtype, [[0.1, 0.5], [-0.3, 0.8]], [0.2, 0.4])
    with gf.trace() as trace:
        q = W @ x
        f = (q * q).sum()
        f.backward(retain_graph=True)
    for graph in (trace.graph, gf.explain(f).graph):
        assert close(forward(graph)["q"], [0.22, 0.26], dtype)
        assert close(forward(graph)["f"], 0.116, dtype)
        found = gradients(graph)
        assert close(found["q"], [0.44, 0.52], dtype)
        assert close(found["W"], [[0.088, 0.176], [0.104, 0.208]], dtype)
        assert close(found["x"], [-0.112, 0.636], dtype)
        for v in graph.values:
            assert v.gradient is None or v.gradient.shape == v.shape
        assert [s.formula for s in graph.steps] == ["q = W @ x", "v1 = q * q", "f = sum(v1)"]
        assert step(graph, "q").rule == ("df/dW = df/dq @ x^T", "df/dx = W^T @ df/dq")
        jacobian = local(graph, "q", "x")
        assert jacobian.form == "full"
        assert jacobian.numbers is not None
        assert close(jacobian.numbers.values, W.detach().cpu(), dtype)


@DTYPES
def test_example_7(device: str, dtype: str) -> None:
    """The Jacobian of an elementwise activation is diagonal, that of softmax full, and a large one is not formed."""
    (z,) = tensors(dtype, [0.5, -1.0, 2.0])
    with gf.trace() as trace:
        s = gf.sigmoid(z)
        p = gf.softmax(z)
        f = s.sum() + (p * p).sum()
        f.backward(retain_graph=True)
    for graph in (trace.graph, gf.explain(f).graph):
        diagonal, full = local(graph, "s", "z"), local(graph, "p", "z")
        assert (diagonal.form, full.form) == ("diagonal", "full")
        assert diagonal.numbers is not None
        assert full.numbers is not None
        assert close(diagonal.numbers.values, (s * (1 - s)).detach().cpu(), dtype)
        probabilities = p.detach().cpu()
        expected = gf.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype, "cpu") * probabilities - gf.ops.outer(
            probabilities, probabilities
        )
        assert close(full.numbers.values, expected, dtype)
    batch = gf.random.normal((100, 4096), dtype=dtype).requires_grad_()
    graph = gf.explain(gf.softmax(batch).sum()).graph
    large = graph.steps[0].local[0]
    assert large is not None
    assert (large.form, large.numbers) == ("implicit", None)
    assert "a Jacobian that is never formed" in str(gf.explain(gf.softmax(batch).sum()))


@pytest.mark.parametrize("hidden", [0, 1, 3])
@DTYPES
def test_example_8(device: str, dtype: str, hidden: int) -> None:
    """The recursion over the layers of a sigmoid network, C = (y - target)^2 / 2, against the formulas."""
    sizes = [3, *[4] * hidden, 1]
    Ws = [gf.random.normal((n, m), dtype=dtype).requires_grad_() for m, n in pairwise(sizes)]
    bs = [gf.random.normal((n,), dtype=dtype).requires_grad_() for n in sizes[1:]]
    x = gf.random.normal((3,), dtype=dtype)
    target = gf.tensor([0.3], dtype)
    with gf.trace() as trace:
        ys = [x]
        for W, b in zip(Ws, bs, strict=True):
            ys.append(gf.sigmoid(W @ ys[-1] + b))
        C = ((ys[-1] - target) ** 2 * 0.5).sum()
        C.backward(retain_graph=True)
    with gf.no_grad():
        grad_y = ys[-1] - target
        expected = {}
        for k in reversed(range(len(Ws))):
            grad_z = grad_y * ys[k + 1] * (1 - ys[k + 1])
            expected[f"Ws[{k}]"], expected[f"bs[{k}]"] = gf.ops.outer(grad_z, ys[k]), grad_z
            grad_y = grad_z @ Ws[k]
            if k:
                expected[f"ys[{k}]"] = grad_y
    W = b = None  # these name the last layer too
    for graph in (trace.graph, gf.explain(C).graph):
        found = gradients(graph)
        names = {"W": f"Ws[{hidden}]", "b": f"bs[{hidden}]"}
        found |= {names[name]: found[name] for name in names if name in found}
        for name, value in expected.items():
            assert close(found[name], value.detach().cpu(), dtype), name
