"""`gradflow.trace`: every operation and gradient of a `with`, by the names of the caller's variables."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from graphs import close, forward, gradients

import gradflow as gf
from gradflow.drawing.graph import Graph
from tests.devices import replays


def leaf(values: Any) -> gf.Tensor:
    return gf.tensor(values, "float64", requires_grad=True)


def formulas(graph: Graph) -> list[str]:
    return [s.formula for s in graph.steps]


# ---------------------------------------------------------------------- gradients


def random_graph(seed: int) -> tuple[list[gf.Tensor], gf.Tensor]:
    """Some leaves and what was computed from them, and their sum; each value is used by several others."""
    rng = np.random.default_rng(seed)
    vs = [leaf(rng.normal(size=(3,))) for _ in range(3)]
    choices: list[Any] = [
        lambda a, b: a * b, lambda a, b: a + b, lambda a, b: a - 2.0 * b, lambda a, _b: gf.tanh(a),
        lambda a, b: gf.maximum(a, b), lambda a, _b: gf.softmax(a), lambda a, b: gf.where(a > b, a, b * b),
        lambda a, b: gf.stack([a, b]).sum(axis=0), lambda a, _b: a.reshape(3, 1)[:, 0], lambda a, _b: a[[2, 0, 0]],
        lambda a, b: a / (1.0 + b * b), lambda a, _b: a.mean() * a,
    ]  # fmt: skip
    for _ in range(15):
        a, b = (vs[i] for i in rng.integers(0, len(vs), 2))
        vs.append(choices[rng.integers(len(choices))](a, b))
    total = vs[0].sum()
    for v in vs[1:]:
        total = total + v.sum()
    return vs, total


@pytest.mark.parametrize("seed", range(12))
def test_gradients_of_all_values_are_those_of_gradients(seed: int) -> None:
    with gf.trace() as trace:
        vs, f = random_graph(seed)
        f.backward(retain_graph=True)
    expected = gf.gradients(f, vs, retain_graph=True)
    for graph in (trace.graph, gf.explain(f).graph):
        found = gradients(graph)
        for i, g in enumerate(expected):
            if f"vs[{i}]" in found:
                assert close(found[f"vs[{i}]"], g), (seed, i)
        assert sum(f"vs[{i}]" in found for i in range(len(vs))) >= 10
    for v in vs:
        assert v.is_leaf or gf.autograd.hooks.retained(v._node) is None


def test_a_value_that_is_used_several_times_sums(device: str) -> None:
    x = gf.tensor(3.0, requires_grad=True)
    with gf.trace() as trace:
        f = x * x * x
        f.backward()
    assert gradients(trace.graph)["x"] == 27
    assert str(trace).splitlines()[-4:] == [
        "df/dx gets df/df * v1 = 9",
        "df/dx gets df/dv1 * x = 9",
        "df/dx gets df/dv1 * x = 9",
        "df/dx                 = 9 + 9 + 9 = 27",
    ]


def test_gradients_after_hooks_are_shown(device: str) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    with gf.trace() as trace:
        y = x * 2.0
        y.register_hook(lambda g: g * 10.0)
        y.sum().backward()
    assert gradients(trace.graph)["y"] == [10, 10]
    assert gradients(trace.graph)["x"] == [20, 20]


def test_several_passes(device: str) -> None:
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    with gf.trace() as trace:
        a = (w * 2.0).sum()
        b = (w * w).sum()
        a.backward()
        b.backward()
    graph = trace.graph
    assert [graph.values[p.root].name for p in graph.passes] == ["a", "b"]
    (index,) = [v.index for v in graph.values if v.name == "w"]
    assert [p.gradients[index].values for p in graph.passes] == [[2, 2], [2, 4]]
    assert "backward pass 2, from b:" in str(trace)


def test_of_a_graph_that_is_older_than_the_trace(device: str) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    f = (x * x).sum()
    with gf.trace() as trace:
        f.backward()
    assert gradients(trace.graph) == {"f": 1, "v1": [1, 1], "x": [2, 4]}
    h = x * 3.0
    with gf.trace() as trace:
        y = (h * h).sum()
        y.backward()
    assert gradients(trace.graph)["h"] == [6, 12]
    assert formulas(trace.graph) == ["v1 = h * h", "y = sum(v1)"]


# ---------------------------------------------------------------------- higher derivatives and transforms


def test_second_order(device: str) -> None:
    x = gf.tensor(2.0, requires_grad=True)
    with gf.trace() as trace:
        y = x * x * x
        (g,) = gf.gradients(y, [x], create_graph=True)
        g.backward()
    graph = trace.graph
    assert forward(graph)["dy/dx"] == forward(graph)["g"] == 12
    assert gradients(graph)["x"] == 12  # d(3 x^2)/dx
    assert graph.passes[0].recorded
    assert not graph.passes[1].recorded
    first = [s for s in graph.steps if s.recorded_by is None]
    second = [s for s in graph.steps if s.recorded_by is not None]
    assert [s.operation for s in first] == ["multiply", "multiply", "copy"]
    assert {graph.steps[s.recorded_by or 0].operation for s in second} == {"multiply"}
    assert any(s.backward is not None for s in second)
    assert "computed by a recorded backward pass (create_graph=True):" in str(trace)


def test_all_steps_of_a_recorded_pass_belong_to_a_rule(device: str) -> None:
    x, W = leaf([1.0, 2.0]), leaf([[1.0, 2.0], [3.0, 4.0]])
    with gf.trace() as trace:
        h = gf.tanh(W @ x)
        f = (h * h).sum()
        f.backward(create_graph=True)
        assert x.grad is not None
        slope = (x.grad**2).sum()
        slope.backward()
    forward_steps = [s for s in trace.graph.steps if s.recorded_by is None]
    assert [s.operation for s in forward_steps] == ["matmul", "tanh", "multiply", "sum", "square", "sum"]
    assert {s.recorded_by for s in trace.graph.steps} == {None, 0, 1, 2, 3}


def test_the_cotangent_of_a_recorded_pass_may_be_a_value(device: str) -> None:
    x, held = leaf([1.0, 2.0]), {"v": gf.ones(2, dtype="float64")}
    with gf.trace() as trace:
        y = x * held["v"] * x
        y.backward(held["v"], create_graph=True)
    assert formulas(trace.graph)[:2] == ["v1 = x * held['v']", "y = v1 * x"]
    assert "dy/dx" in {v.label for v in trace.graph.values}


def test_a_mask_that_selects_nothing(device: str) -> None:
    x = leaf([-1.0, -2.0])
    with gf.trace() as trace:
        x[x > 0].sum().backward()
    assert gradients(trace.graph)["x"] == [0, 0]
    assert gradients(gf.explain(x[x > 0].sum()).graph)["x"] == [0, 0]


def test_a_checkpoint_that_ran_before_is_one_step(device: str) -> None:
    x, w = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    f = gf.checkpoint(lambda z: gf.sin(z) * w, x).sum()
    explained = gf.explain(f).graph
    with gf.trace() as trace:
        f.backward()
    for graph in (explained, trace.graph):
        assert [s.operation for s in graph.steps] == ["checkpoint", "sum"]
        assert gradients(graph)["w"] == pytest.approx(np.sin([1.0, 2.0]))
        assert [r and r.values for r in graph.steps[0].received] == [gradients(graph)["x"], gradients(graph)["w"]]


def test_parts_of_a_gradient_from_before_the_trace_are_told(device: str) -> None:
    x = leaf(3.0)
    y = x * 2.0
    with gf.trace() as trace:
        z = y * x
        z.backward()
    assert gradients(trace.graph)["x"] == 12
    assert "= 6 + 6 (1 of them from steps that were not recorded) = 12" in str(trace)


def test_what_hooks_change_is_told(device: str) -> None:
    x = leaf(3.0)
    with gf.trace() as trace:
        y = x * 2.0
        y.register_hook(lambda g: g * 10.0)
        z = y * y
        z.backward()
    lines = [" ".join(line.split()) for line in str(trace).splitlines()]
    assert lines[-3:] == ["dz/dy = 6 + 6 = 12", "dz/dy after hooks = 120", "dz/dx = dz/dy * 2 = 240"]
    assert "computed in hooks:" in lines


def test_transforms(device: str) -> None:
    x = leaf([1.0, 2.0])
    with gf.trace() as trace:
        g = gf.grad(lambda t: (t * t * t).sum())(x)
    assert gradients(trace.graph)["x"] == [3, 12] == g.tolist()
    with gf.trace() as trace:
        _, pullback = gf.vjp(lambda t: t * t, x)
        pullback(gf.tensor([1.0, 10.0], "float64"))
    assert gradients(trace.graph)["x"] == [2, 40]
    assert formulas(trace.graph)[0] == "v1 = x * x"
    with gf.trace() as trace:
        gf.jacobian(gf.softmax)(x)
        gf.hessian(lambda t: (t * t * t).sum())(x)
    assert "softmax" in str(trace)


@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_is_a_box_that_runs_once(nested: bool, device: str) -> None:
    def inner(t: gf.Tensor) -> gf.Tensor:
        return gf.exp(gf.ops.dropout(t, 0.5) * w)

    def part(t: gf.Tensor) -> gf.Tensor:
        h = gf.checkpoint(inner, t) if nested else inner(t)
        return h * t

    x, w = leaf([0.5, 1.0, 2.0, 3.0]), leaf(2.0)
    gf.manual_seed(3)
    with gf.trace() as plain:
        y = part(x).sum()
        y.backward()
    gf.manual_seed(3)
    with gf.trace() as trace:
        y = gf.checkpoint(part, x).sum()
        y.backward()
    assert formulas(trace.graph) == formulas(plain.graph)
    assert gradients(trace.graph) == gradients(plain.graph)
    assert [s.backward for s in trace.graph.steps] == [s.backward for s in plain.graph.steps]
    boxes = [s.module for s in trace.graph.steps]
    assert boxes[-1] == ()
    assert boxes[0] == ("checkpoint", "checkpoint") if nested else ("checkpoint",)
    assert {box[0] for box in boxes[:-1]} == {"checkpoint"}


def test_a_checkpoint_with_several_results(device: str) -> None:
    x = leaf([0.5, 1.0])
    with gf.trace() as trace:
        a, b = gf.checkpoint(lambda t: (gf.exp(t), t * t), x)
        y = (a * b).sum()
        y.backward()
    a, b = gf.exp(x), x * x
    (expected,) = gf.gradients((a * b).sum(), [x])
    assert close(gradients(trace.graph)["x"], expected)
    exp = next(s for s in trace.graph.steps if s.operation == "exp")
    assert exp.backward is not None


def test_a_captured_step_runs_normally(device: str) -> None:
    model = gf.nn.MLP([2, 3, 1], activation="tanh")
    optimizer = gf.optim.SGD(model.parameters(), lr=0.1)

    @gf.capture
    def training(x: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    x = gf.ones((4, 2))
    for _ in range(4):
        training(x)
    with gf.trace() as trace:
        first = training(x)
        second = training(x)
    graph = trace.graph
    assert [graph.values[p.root].name for p in graph.passes] == ["first", "second"]
    assert forward(graph)["first"] == first.item() != second.item()
    weights = [v for v in graph.values if v.name == "0.weight"]
    assert len(weights) == 2  # before and after the optimizer's step
    assert weights[0].forward != weights[1].forward
    assert [w.gradient for w in weights] == [p.gradients[w.index] for p, w in zip(graph.passes, weights, strict=True)]
    assert training.status.startswith("an observer sees the step")
    training(x)
    assert replays(training.status)


# ---------------------------------------------------------------------- what is seen, and when


def test_operations_without_gradient_are_constants(device: str) -> None:
    x = gf.tensor([[1.0, 3.0], [4.0, 2.0]], requires_grad=True)
    with gf.trace() as trace, gf.no_grad():
        y = x * 2.0
        label = y.argmax(axis=1)
        right = (label == gf.tensor([1, 1], "int64")).astype("float32").mean()
    graph = trace.graph
    assert forward(graph)["label"] == label.tolist() == [1, 0]
    assert forward(graph)["right"] == right.item() == 0.5
    assert {v.kind for v in graph.values if v.step is not None} == {"constant"}
    assert [s.operation for s in graph.steps] == ["multiply", "argmax", "equal", "astype", "mean"]
    assert graph.passes == []


def test_values_are_those_at_the_time(device: str) -> None:
    x = gf.tensor([1.0, 2.0])
    large = gf.ones(1000)
    with gf.trace() as trace:
        a = x + 1.0
        total = large.sum()
        x.zero_()
        large[:] = gf.full(1000, 5.0)
        b = x + 1.0
    graph = trace.graph
    assert [v.forward.values for v in graph.values if v.name == "x" and v.forward] == [[1, 2], [0, 0]]
    assert [v.forward.mean for v in graph.values if v.name == "large" and v.forward] == [1]
    assert (forward(graph)["a"], forward(graph)["b"], forward(graph)["total"]) == ([2, 3], [1, 1], 1000)
    assert (a.tolist(), b.tolist(), total.item()) == ([2, 3], [1, 1], 1000)


def test_statistics_of_large_arrays(device: str) -> None:
    values = np.random.default_rng(0).normal(size=(30, 40)).astype("float32")
    values[3, 4:7] = np.nan, np.inf, -np.inf
    x = gf.tensor(values)
    with gf.trace() as trace:
        x * 1.0
    numbers = trace.graph.values[0].forward
    assert numbers is not None
    finite = values[np.isfinite(values)].astype("float64")
    assert (numbers.shape, numbers.dtype, numbers.values, numbers.nonfinite) == ((30, 40), "float32", None, 3)
    found = (numbers.mean, numbers.deviation, numbers.least, numbers.greatest)
    assert found == pytest.approx((finite.mean(), finite.std(), finite.min(), finite.max()), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float64"])
def test_dtypes(dtype: str) -> None:
    values = [True, False] if dtype == "bool" else [3, 7]
    x = gf.tensor(values, dtype)
    with gf.trace() as trace:
        x.reshape(2, 1)
    numbers = trace.graph.values[0].forward
    assert numbers is not None
    assert (numbers.dtype, numbers.values) == (dtype, values)
    assert [type(v) for v in numbers.values] == [type(v) for v in x.tolist()]


def test_one_transfer() -> None:
    with gf.use_device("fake"):
        model = gf.nn.MLP([3, 100, 2])
        x = gf.random.normal((32, 3))
        y = gf.tensor([0, 1] * 16, "int64")
        with gf.testing.count_transfers() as count:
            with gf.testing.forbid_sync(), gf.trace() as trace:
                loss = gf.cross_entropy(model(x), y)
                loss.backward()
            assert (count.to_host, count.synchronizations) == (0, 0)
            assert len(trace.graph.steps) == 3
            assert str(trace)
        assert (count.to_host, count.from_host) == (1, 0)
        assert {v.forward.device for v in trace.graph.values if v.forward} == {"fake:0"}


def test_after_an_exception_the_trace_has_what_ran(device: str) -> None:
    x = gf.tensor(2.0, requires_grad=True)

    def fail() -> None:
        with trace:
            y = x * x
            y.backward()
            raise ValueError("in between")

    trace = gf.trace()
    with pytest.raises(ValueError, match="in between"):
        fail()
    assert forward(trace.graph)["y"] == 4
    assert gradients(trace.graph)["x"] == 4
    assert not gf.autograd.grad_mode.current_observer.get()


def test_a_backward_pass_that_fails(device: str) -> None:
    x = gf.tensor(2.0, requires_grad=True)
    failing = gf.operation("failing", lambda F, a: F.multiply(a, 2.0), lambda F, g, _out, _a: {}["no"])
    with gf.trace() as trace:
        y = failing(x) * 3.0
        with pytest.raises(KeyError):
            y.backward()
        z = x * 5.0
        z.backward()
    assert gradients(trace.graph)["x"] == 5
    assert gradients(trace.graph)["v1"] == 3
    assert "backward pass 1, from y, which failed:" in str(trace)


def test_traces_inside_each_other_and_anomaly_detection(device: str) -> None:
    x = gf.tensor(2.0, requires_grad=True)
    with gf.detect_anomaly(), gf.trace() as outer:
        a = x * 2.0
        with gf.trace() as inner, gf.detect_anomaly():
            b = a * 3.0
            b.backward()
        c = x + 1.0
    assert formulas(inner.graph) == ["b = a * 3"]
    assert formulas(outer.graph) == ["a = x * 2", "b = a * 3", "c = x + 1"]
    for trace in (inner, outer):
        assert gradients(trace.graph)["a"] == 3
    assert c.item() == 3
    with pytest.raises(gf.NonFiniteError), gf.trace() as trace, gf.detect_anomaly():
        x * float("inf")
    assert [s.operation for s in trace.graph.steps] == ["multiply"]


def test_a_trace_sees_its_own_thread() -> None:
    x = gf.tensor(2.0, requires_grad=True)
    other: list[gf.Tensor] = []
    with gf.trace() as trace:
        thread = threading.Thread(target=lambda: other.append(x * 5.0))
        thread.start()
        thread.join()
        y = x * 3.0
    assert formulas(trace.graph) == ["y = x * 3"]
    assert (other[0].item(), y.item()) == (10, 6)


def test_a_generator_leaves_its_trace_at_the_end() -> None:
    def traced() -> Iterator[Any]:
        with gf.trace() as trace:
            inside = gf.ones(2) * 3.0
            yield trace
        yield inside

    generator = traced()
    trace = next(generator)
    next(generator)
    assert formulas(trace.graph) == ["inside = v1 * 3"]


# ---------------------------------------------------------------------- names, modules and places


def test_a_name_is_never_that_of_another_value(device: str) -> None:
    x = gf.tensor(1.0, requires_grad=True)
    first = x
    with gf.trace() as trace:
        for _ in range(2):
            x = x * 2.0
    assert formulas(trace.graph) == ["v1 = first * 2", "x = v1 * 2"]
    del first
    start = x
    with gf.trace(y=start) as trace:
        y = start + 1.0
        del start
        (y * 2.0).sum()
    assert [v.name for v in trace.graph.values] == ["y", None, None, None, None, None][: len(trace.graph.values)]


def test_names_in_containers_and_attributes(device: str) -> None:
    """Layers in a list are different boxes, a loop's variable names none of them, `self.w` has its name."""
    nets = [gf.nn.Linear(2, 2) for _ in range(3)]
    with gf.trace() as trace:
        h = gf.ones((1, 2))
        for net in nets:
            h = net(h)
    assert [s.module for s in trace.graph.steps] == [(f"nets[{i}] (Linear)",) for i in range(3)]
    assert {f"nets[{i}].weight" for i in range(3)} <= {v.label for v in trace.graph.values}

    class Model:
        def __init__(self) -> None:
            self.w = gf.tensor(2.0, requires_grad=True)
            self.first, self.second = gf.nn.Linear(1, 1), gf.nn.Linear(1, 1)

        def run(self) -> str:
            with gf.trace() as trace:
                y = self.second(self.first(gf.ones((1, 1)))) * self.w
            assert [s.module for s in trace.graph.steps] == [("self.first (Linear)",), ("self.second (Linear)",), ()]
            assert y.shape == (1, 1)
            return trace.graph.steps[-1].formula

    assert Model().run().endswith(" * self.w")
    leaves = [gf.tensor(float(i), requires_grad=True) for i in range(3)]
    w, b = gf.tensor(1.0), gf.tensor(2.0)
    both = [w, b]
    with gf.trace() as trace:
        total = w * b
        for leaf in leaves:
            total = total + leaf
    assert len(both) == 2
    assert [s.formula.partition(" = ")[2] for s in trace.graph.steps] == [
        "w * b", "v1 + leaves[0]", "v2 + leaves[1]", "v3 + leaves[2]"
    ]  # fmt: skip
    with gf.trace() as trace:
        [gf.nn.Linear(2, 2)(gf.ones((1, 2))) for _ in range(2)]
    assert [s.module for s in trace.graph.steps] == [("linear (Linear)",), ("linear_2 (Linear)",)]


def test_a_changed_value_has_another_label(device: str) -> None:
    a, w = gf.tensor([1.0, 2.0]), gf.tensor([1.0, 1.0], requires_grad=True)
    with gf.trace() as trace:
        before = a * w
        a += 10.0
        after = a * w
    assert before.shape == after.shape
    assert formulas(trace.graph) == ["before = a * w", "v1 = a + 10", "after = a (2) * w"]


def test_lines_fit_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    matrix = gf.tensor([[0.12345 * i * j - 0.5 for i in range(4)] for j in range(4)], requires_grad=True)
    with gf.trace() as trace:
        product = gf.tanh(matrix @ matrix)
        product.sum().backward()
    lines = str(trace).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("    [[") and " ... " in line and line.endswith("]]") for line in lines)
    monkeypatch.setenv("COLUMNS", "300")
    assert " ... " not in str(trace)


def test_given_names_win(device: str) -> None:
    x = gf.tensor(1.0, requires_grad=True)
    layer = gf.nn.Linear(2, 2)
    with gf.trace(speed=x, net=layer) as trace:
        y = x * layer(gf.ones((1, 2)))
    assert y.shape == (1, 2)
    names = {v.name for v in trace.graph.values}
    assert {"speed", "net.weight", "net.bias", "y"} <= names
    assert not {"x", "weight"} & names


def test_variables_of_the_module_are_found() -> None:
    names: dict[str, Any] = {"gf": gf}
    exec("x = gf.ones(2)\nwith gf.trace() as trace:\n    y = x * 2.0\n", names)
    assert formulas(names["trace"].graph) == ["y = x * 2"]


def test_modules_are_boxes(device: str) -> None:
    class Block(gf.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = gf.nn.ModuleList([gf.nn.Linear(2, 2), gf.nn.Linear(2, 2)])

        def forward(self, x: gf.Tensor) -> gf.Tensor:
            for layer in self.layers:
                x = gf.tanh(layer(x))
            return x

    class Net(gf.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()
            self.mlp = gf.nn.MLP([2, 3, 1])

        def forward(self, x: gf.Tensor) -> gf.Tensor:
            return self.mlp(self.block(self.block(x)))

    net = Net()
    with gf.trace() as trace:
        y = net(gf.ones((4, 2)))
        y.sum().backward()
    outer = "net (Net)"
    assert [s.module for s in trace.graph.steps] == [
        (outer, "block (Block)", "layers.0 (Linear)"),
        (outer, "block (Block)"),
        (outer, "block (Block)", "layers.1 (Linear)"),
        (outer, "block (Block)"),
        (outer, "block (Block), call 2", "layers.0 (Linear)"),
        (outer, "block (Block), call 2"),
        (outer, "block (Block), call 2", "layers.1 (Linear)"),
        (outer, "block (Block), call 2"),
        (outer, "mlp (MLP)", "0 (Linear)"),
        (outer, "mlp (MLP)", "1 (Linear)"),
        (),
    ]
    names = {v.name for v in trace.graph.values if v.kind == "parameter"}
    assert names == {name for name, _ in net.named_parameters()}
    with gf.trace() as trace:
        net.mlp[0](gf.ones((1, 2)))
    assert trace.graph.steps[0].module == ("net.mlp.0 (Linear)",)


def test_the_line_is_the_callers() -> None:
    with gf.trace() as trace:
        y = gf.ones(2) * 2.0
        line = sys._getframe().f_lineno - 1
    assert trace.graph.steps[0].line == f"test_trace.py:{line}"
    assert y.shape == (2,)


def test_a_product_of_a_vector_is_one_step(device: str) -> None:
    W, x = leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([1.0, -1.0])
    with gf.trace() as trace:
        a = W @ x
        b = x @ a
        c = (W @ x.reshape(2, 1)).reshape(2)
        (b * c).sum().backward()
    assert formulas(trace.graph)[:5] == [
        "a = W @ x", "b = x @ a", "v1 = reshape(x, (2, 1))", "v2 = W @ v1", "c = reshape(v2, (2,))",
    ]  # fmt: skip
    found = gradients(trace.graph)
    expected = gf.gradients((x @ (W @ x) * (W @ x.reshape(2, 1)).reshape(2)).sum(), [W, x])
    assert all(close(found[name], g) for name, g in zip(("W", "x"), expected, strict=True))


# ---------------------------------------------------------------------- the program that is observed


def test_a_failure_of_the_recorder_ends_the_recording_and_not_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # see conftest.py
    x = gf.tensor(2.0, requires_grad=True)
    for method in ("local_derivatives", "name_values"):
        with pytest.MonkeyPatch.context() as patch:
            where = "tracing" if method == "name_values" else "recorder"
            patch.setattr(f"gradflow.drawing.{where}.{method}", lambda *_: {}["no"])
            with gf.trace() as trace:
                y = x * x
                y.backward()
                z = y * 3.0
        assert (x.grad.item(), z.item()) == (4, 12)
        assert "the recording ended here: KeyError: 'no'" in str(trace)
        assert trace.graph.steps[0].operation == "multiply"
        x.grad = None
    monkeypatch.setattr("gradflow.drawing.recorder.local_derivatives", lambda *_: {}["no"])
    with pytest.raises(KeyError):
        gf.explain(x * x)


def test_keys_that_cannot_be_printed_name_nothing() -> None:
    class Key:
        def __repr__(self) -> str:
            raise ValueError("no text")

    weights = {Key(): gf.ones(2), "a": gf.ones(2), 3: gf.ones(2)}
    with gf.trace() as trace:
        for w in list(weights.values()):
            w * 2.0
        del w
    assert formulas(trace.graph) == ["v2 = v1 * 2", "v3 = weights['a'] * 2", "v4 = weights[3] * 2"]


def test_a_rule_of_a_user_runs_once(device: str) -> None:
    calls: list[int] = []

    def rule(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        calls.append(1)
        return F.multiply(g, 2.0)

    twice = gf.operation("twice", lambda F, x: F.multiply(x, 2.0), rule)
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    with gf.trace() as trace:
        twice(x).sum().backward()
    assert len(calls) == 1
    assert gradients(trace.graph)["x"] == [2, 2]


def test_explain_keeps_no_gradient_of_a_result() -> None:
    y = x = leaf([1.0, 2.0])
    alive: list[weakref.ref[Any]] = []
    most = 0

    def rule(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        nonlocal most
        most = max(most, sum(each() is not None for each in alive))
        result = F.multiply(g, 2.0)
        alive.append(weakref.ref(result))
        return result

    double = gf.operation("double", lambda F, x: F.multiply(x, 2.0), rule)
    for _ in range(8):
        y = double(y)
    assert gradients(gf.explain(y).graph)["x"] == [256, 256]
    assert most <= 2
    assert x.grad is None


# ---------------------------------------------------------------------- objects and errors


def test_a_trace_that_was_read_keeps_no_model(device: str) -> None:
    model = gf.nn.Sequential(gf.nn.Linear(2, 2), gf.nn.Dropout(0.5))
    with gf.trace() as trace:
        model(gf.ones((1, 2)))[gf.tensor([0], "int64")].sum().backward()
        recorder = gf.autograd.grad_mode.current_observer.get()
        options = [value for s in recorder.steps for value in s.parameters.values()]
    assert not any(hasattr(value, "shape") for value in options)
    del recorder
    assert len(trace.graph.steps) == 4
    found = weakref.ref(model)
    del model
    gc.collect()
    assert found() is None


def test_a_trace_keeps_nothing_alive() -> None:
    gc.collect()
    gc.disable()
    try:
        model = gf.nn.Linear(2, 2)
        with gf.trace() as trace:
            y = model(gf.ones((1, 2)))
            z = y.sum()
            z.backward()
        found = [weakref.ref(y), weakref.ref(z), weakref.ref(z._node)]
        del y, z
        assert [each() for each in found] == [None, None, None]
        assert len(trace.graph.steps) == 2
        reference = weakref.ref(model)
        del model
        assert reference() is None
    finally:
        gc.enable()


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"trace takes names of tensors and modules, as in trace\(x=x, .* n is int"):
        gf.trace(n=3)
    with gf.trace() as trace, pytest.raises(RuntimeError, match="complete at the end of its `with`"):
        print(trace)
    with pytest.raises(RuntimeError, match="a trace records one `with`"), trace:
        pass
    assert str(trace) == "no operation was recorded in the `with`"
    with pytest.raises(RuntimeError, match="name\\(\\) is for the inside of the `with`"):
        trace.name(x=gf.ones(2))
    assert repr(gf.trace()) == "<a trace whose `with` has not ended>"
    assert repr(trace) == "<trace of 0 steps and 0 backward passes: print it, or save it as a picture>"


def test_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gf.tensor(2.0, requires_grad=True)
    with gf.trace() as trace:
        y = x * x
        y.backward()
    picture = pytest.importorskip("pygraphviz", exc_type=ImportError) and trace._repr_svg_()
    assert picture is not None
    assert "<svg" in picture
    assert "max-width: 100%" in picture
    assert trace._repr_html_() is None
    shown = gf.explain(x * x)
    assert shown._repr_svg_() is None  # type: ignore[func-returns-value]
    assert "df/d" not in shown._repr_html_()
    assert shown._repr_html_().startswith("<pre>The backward pass of v1")
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    assert trace._repr_svg_() is None
    page = trace._repr_html_()
    assert page is not None
    assert page.startswith("<iframe srcdoc=")
