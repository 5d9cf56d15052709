"""`gradflow.explain` and `gradflow.draw`: graphs that exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from graphs import close, forward, gradients, local

import gradflow as gf
from gradflow.drawing import existing, summaries
from gradflow.drawing.graph import Graph


def case_tensors(case: Case) -> list[gf.Tensor]:
    wanted = case.differentiable()
    return [
        gf.tensor(x, "float64" if x.dtype.kind == "f" else None, requires_grad=i in wanted)
        for i, x in enumerate(case.inputs)
    ]


def check_products(graph: Graph) -> int:
    """Each input receives the upstream gradient times the local derivative; returns how many were checked."""
    count = 0
    for each in [each for each in graph.steps if each.backward is not None]:
        upstream = graph.values[each.output].gradient
        for received, derivative, index in zip(each.received, each.local, each.inputs, strict=True):
            if derivative is None or derivative.numbers is None or received is None or upstream is None:
                continue
            g = np.reshape(np.array(upstream.values, "float64"), upstream.shape)
            jacobian = np.reshape(np.array(derivative.numbers.values, "float64"), derivative.numbers.shape)
            if derivative.form == "full":
                assert derivative.numbers.shape == (*graph.values[each.output].shape, *graph.values[index].shape)
                product = np.tensordot(g, jacobian, g.ndim)
            else:
                product = g.reshape(jacobian.shape) * jacobian
            expected = np.reshape(np.array(received.values, "float64"), received.shape)
            np.testing.assert_allclose(product.reshape(expected.shape), expected, rtol=1e-12, atol=1e-12)
            count += 1
    return count


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_operation(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are those of `gradients`, and each is the upstream gradient times the local derivative."""
    monkeypatch.setattr(summaries, "IN_FULL", 4096)
    inputs = case_tensors(case)
    with gf.trace() as trace:
        y = case.call(*inputs)
        ys = [each for each in (y if isinstance(y, (list, tuple)) else [y]) if each.requires_grad]
        if not ys:
            pytest.skip("has no gradient")
        y = ys[0]
        seed = gf.random.normal(y.shape, dtype=y.dtype)
        y.backward(seed, retain_graph=True)
    if y.is_leaf:
        pytest.skip("is its argument")
    wanted = [x for x in inputs if x.requires_grad]
    expected = gf.gradients(y, wanted, cotangents=seed, retain_graph=True)
    explained = gf.explain(y, seed)
    for picture in (trace, explained):
        found = gradients(picture.graph)
        for i, x in enumerate(inputs):
            if x.requires_grad and f"inputs[{i}]" in found:
                g = expected[next(j for j, w in enumerate(wanted) if w is x)]
                assert found[f"inputs[{i}]"] is None or close(found[f"inputs[{i}]"], g)
        assert str(picture)
        assert check_products(picture.graph) or y.size * min(x.size for x in wanted) == 0
    graph = explained.graph
    assert [s.operation for s in gf.draw(y).graph.steps] == [s.operation for s in graph.steps]


def test_what_draw_knows(device: str) -> None:
    """Values that a rule reads or a variable holds, and gradients of leaves and of retaining tensors."""
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    h = gf.exp(x) * 3.0
    h.retain_grad()
    f = (h + 1.0).sum()
    graph = gf.draw(f).graph
    assert [s.formula for s in graph.steps] == ["v1 = exp(x)", "h = v1 * 3", "v2 = h + v3", "f = sum(v2)"]
    known = forward(graph)
    assert known["x"] == [1, 2]
    assert known["v1"] == pytest.approx([np.e, np.e**2], rel=1e-6)
    assert "v2" not in known
    assert gradients(graph) == {}
    f.backward()
    graph = gf.draw(f).graph
    assert gradients(graph) == {}
    kept = {v.label: v.kept.values for v in graph.values if v.kept is not None}
    assert kept == {"h": [1, 1], "x": pytest.approx([3 * np.e, 3 * np.e**2], rel=1e-6)}
    assert "freed" in graph.title
    assert "h.grad" in str(gf.draw(f))


def test_draw_shows_no_gradient_of_another_function(device: str) -> None:
    x, y = gf.tensor(-2.0, requires_grad=True), gf.tensor(5.0, requires_grad=True)
    (x * 3.0 + y).backward()
    f = x * y
    graph = gf.draw(f).graph
    assert gradients(graph) == {}
    assert graph.title == "no gradients: gradflow.explain computes those of this graph"
    assert "x.grad = 3" in str(gf.draw(f))


def test_draw_does_not_show_values_from_after_a_change(device: str) -> None:
    w = gf.tensor([2.0], requires_grad=True)
    of_variable, of_saved = (w + 1.0).sum(), (w * w).sum()
    for f in (of_variable, of_saved):
        assert forward(gf.draw(f).graph)["w"] == [2]
    with gf.no_grad():
        w.zero_()
    for f in (of_variable, of_saved):
        assert "w" not in forward(gf.draw(f).graph)


def test_explain_changes_nothing(device: str) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    h = x * x
    f = (h * x).sum()
    first = str(gf.explain(f))
    assert x.grad is None
    assert str(gf.explain(f)) == first
    f.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 12]
    h.retain_grad()
    assert h.grad is None


def test_explain_shows_sums_and_jacobians() -> None:
    x = gf.tensor([1.0, -2.0], requires_grad=True)
    s = gf.softmax(x)
    f = (s * x).sum()
    text = str(gf.explain(f)).splitlines()
    assert text[2] == "df/df = 1"
    assert "  df/dx gets df/dv1 * s = [0.9526 0.04743]" in text
    assert "  df/dx = the sum of 2 = [1.088 -0.0881]" in text
    assert (
        "    ds/dx: diag(s) - s s^T, a full Jacobian of shape (2, 2): [[0.04518 -0.04518] [-0.04518 0.04518]]" in text
    )
    assert "    dv1/ds: x, a diagonal Jacobian: [1 -2]" in text


def test_formulas_at_ties_and_with_a_correction() -> None:
    """What is computed where values are equal, and where a variance divides by n - 1."""
    v = gf.tensor([3.0, 3.0, 1.0], requires_grad=True)
    a, b = gf.tensor(3.0, requires_grad=True), gf.tensor(3.0, requires_grad=True)
    for y, formula, received in (
        (gf.maximum(a, b), "[a > b] + [a = b] / 2", [0.5, 0.5]),
        (gf.minimum(a, b), "[a < b] + [a = b] / 2", [0.5, 0.5]),
        (v.max(), "[v = y] / sum([v = y])", [[0.5, 0.5, 0]]),
        (v.min(), "[v = y] / sum([v = y])", [[0, 0, 1]]),
        (v.var(correction=1), "2 * (v - mean(v)) / (n - 1)", [pytest.approx([2 / 3, 2 / 3, -4 / 3])]),
    ):
        (shown,) = gf.explain(y).graph.steps
        assert shown.local[0] is not None
        assert shown.local[0].formula in (formula, f"({formula})")
        assert [each and each.values for each in shown.received] == received


def test_formulas_are_those_of_the_rules() -> None:
    """Labels become one-hot rows, batches are summed, nothing is summed for an empty array, and every layer has one."""
    x, w = gf.ones((2, 3), requires_grad=True), gf.ones((3, 4), requires_grad=True)
    b = gf.ones(3, requires_grad=True)
    batch, v = gf.ones((5, 2, 3), requires_grad=True), gf.ones(3, requires_grad=True)
    labels, chances = (
        gf.tensor([0, 2], dtype="int64"),
        gf.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], requires_grad=True),
    )
    empty = gf.zeros(0, requires_grad=True)
    names = {"x": x, "w": w, "b": b, "batch": batch, "v": v, "labels": labels, "chances": chances, "empty": empty}

    def rules(y: gf.Tensor) -> list[str]:
        """The formulas of what the inputs of the last step receive, without their left sides."""
        return [each.partition(" = ")[2] for each in gf.explain(y, **names).graph.steps[-1].rule if each is not None]

    losses = gf.cross_entropy(x, labels), gf.cross_entropy(x, chances)
    assert rules(losses[0]) == ["dy/dy * (softmax(x) - one_hot(labels)) / n"]
    assert rules(losses[1]) == [
        "dy/dy * (softmax(x) - chances) / n", "dy/dy * (-log_softmax(x) / n)"
    ]  # fmt: skip
    assert rules(batch @ w) == ["dy/dy @ w^T", "sum(batch^T @ dy/dy)"]
    assert rules(x @ w) == ["dy/dy @ w^T", "x^T @ dy/dy"]
    assert rules(batch @ v) == ["dy/dy @ v^T", "sum(batch^T @ dy/dy)"]
    assert rules(empty.sum()) == ["dy/dy * 1"]
    assert rules(x * v) == ["dy/dy * v", "sum(dy/dy * x)"]
    assert rules(gf.layer_norm(x, 3, v, b))[1:] == [
        "sum(dy/dy * layer_norm(x)) over the rows", "sum(dy/dy) over the rows"
    ]  # fmt: skip
    normed = gf.explain(gf.layer_norm(x, 3)).graph.steps[-1]
    assert normed.formula == "v1 = layer_norm(x)"
    assert rules(gf.layer_norm(x, 3)) == [
        "(dy/dy - mean(dy/dy) - layer_norm(x) * mean(dy/dy * layer_norm(x))) / sqrt(var(x) + 1e-05)"
    ]
    model = gf.nn.MLP([3, 2, 1], activation="tanh")
    y = model(x)
    with gf.trace() as trace:
        y.backward(gf.ones(y.shape))
    fused = trace.graph.steps[0]
    assert fused.formula.startswith("y = tanh(x @ ")
    assert " * dv1" not in "".join(map(str, fused.rule))


def test_what_a_scatter_adds_is_told() -> None:
    x = gf.tensor([1.0, 2.0, 3.0], requires_grad=True)
    with gf.trace() as trace:
        y = x[gf.tensor([0, 2], dtype="int64")]
        z = gf.take_along_axis(x, gf.tensor([1, 1], dtype="int64"), axis=0)
        (g,) = gf.gradients((y * y * z).sum(), [x], create_graph=True)
        (g * g).sum().backward()
    text = str(trace)
    assert "added at [indices] to" in text
    assert "scatter_add_along_axis(" in text
    assert not any(" * dv" in line.partition(" = ")[2] and line.count("/d") == 3 for line in text.splitlines())


def test_roles_say_what_the_local_derivative_says() -> None:
    a, b = gf.tensor([1.0, 2.0], requires_grad=True), gf.tensor([3.0, -4.0], requires_grad=True)
    for y, role in (
        (a + b, "distributes"), (a.sum(), "distributes"), (a - b, "scales"), (a.mean(), "scales"),
        (gf.leaky_relu(b), "scales"), (gf.relu(b), "routes"),
    ):  # fmt: skip
        assert gf.explain(y).graph.steps[-1].role == role


def test_a_given_gradient_is_the_seed(device: str) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    found = gradients(gf.explain(y, gf.tensor([1.0, 10.0])).graph)
    assert found == {"y": [1, 10], "x": [2, 40]}
    assert gradients(gf.explain(y, 3).graph) == {"y": [3, 3], "x": [6, 12]}


def test_a_trace_is_explained(device: str) -> None:
    """After backward(), which has freed the graph."""
    x = gf.tensor(3.0, requires_grad=True)
    with gf.trace() as trace:
        f = x * x
        text = str(gf.explain(f))
        f.backward()
    assert str(gf.explain(trace)) == text
    with pytest.raises(TypeError, match=r"explain\(trace\) takes nothing else"):
        gf.explain(trace, x=x)
    with gf.trace() as trace:
        x * x
    with pytest.raises(RuntimeError, match="a trace without a backward pass: call backward"):
        gf.explain(trace)


def test_names(device: str) -> None:
    model = gf.nn.MLP([2, 3, 1], dtype="float64")
    x = gf.ones((4, 2), dtype="float64")
    loss = model(x).square().mean()
    expected = {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert expected | {"loss", "x"} <= set(forward(gf.explain(loss).graph))
    named = forward(gf.explain(loss, net=model, batch=x).graph)
    assert {f"net.{name}" for name in expected} | {"loss", "batch"} <= set(named)


def test_a_fused_perceptron_is_explained(device: str) -> None:
    model = gf.nn.MLP([2, 3, 1], activation="tanh", dtype="float64")
    y = model(gf.ones((2, 2), dtype="float64"))
    found = gradients(gf.explain(y).graph)
    expected = gf.gradients(y, dict(model.named_parameters()), cotangents=gf.ones((2, 1), dtype="float64"))
    assert all(close(found[name], g) for name, g in expected.items())


def test_the_layers_of_a_perceptron_are_steps_as_in_a_trace() -> None:
    """Also where the model runs twice, where a layer is frozen, and where they are asked for under `no_grad`."""
    model = gf.nn.MLP([2, 3, 3, 1], activation="tanh", dtype="float64")
    x = gf.tensor([[1.0, 2.0], [3.0, -1.0]], dtype="float64")
    for frozen in (False, True):
        for layer in (model[0], model[1]):
            layer.requires_grad_(not frozen)
        loss = model(model(x) * x).square().sum()
        with gf.no_grad():
            explained, drawn = gf.explain(loss), gf.draw(loss)
        assert str(explained) == str(gf.explain(loss))
        with gf.trace() as trace:
            loss = model(model(x) * x).square().sum()
            loss.backward()
        steps = [(s.formula, s.module) for s in trace.graph.steps]
        assert sum("Linear" in str(module) for _, module in steps) == 6
        for graph in (explained.graph, drawn.graph):
            assert [(s.formula, s.module) for s in graph.steps] == steps
            assert {v.label: v.kind for v in graph.values} == {v.label: v.kind for v in trace.graph.values}
            assert all(close(forward(graph)[name], each) for name, each in forward(trace.graph).items())
        expected, found = gradients(trace.graph), gradients(explained.graph)
        assert found.keys() == expected.keys()
        assert all(close(found[name], g) for name, g in expected.items())
        received = [[r and r.values for r in s.received] for s in explained.graph.steps]
        assert received == [[r and r.values for r in s.received] for s in trace.graph.steps]


def test_hooks_of_a_perceptron_run_once_and_trained_parameters_have_names() -> None:
    model = gf.nn.MLP([2, 3, 1], activation="tanh")
    model(gf.ones((1, 2))).backward()
    gf.optim.SGD(model.parameters(), lr=0.1).step()
    x, calls = gf.ones((1, 2), requires_grad=True), []
    for tensor in (x, model[0].weight):
        tensor.register_hook(calls.append)
    y = model(x)
    graph = gf.explain(y).graph
    assert len(calls) == 2
    assert {v.label for v in graph.values} == {"x", "v1", "y", "0.weight", "0.bias", "1.weight", "1.bias"}


def test_a_perceptron_whose_input_was_changed_stays_one_step() -> None:
    model, x = gf.nn.MLP([2, 3, 1]), gf.ones((1, 2))
    y = model(x)
    x.zero_()
    assert [s.operation for s in gf.draw(y).graph.steps] == ["perceptron"]
    assert "y" in forward(gf.draw(y).graph)
    z = model(x)
    z.backward()
    assert [s.operation for s in gf.draw(z).graph.steps] == ["perceptron"]


def test_values_with_known_inputs_are_computed_again(device: str) -> None:
    """Others are told, with what shows them."""
    x, w = gf.tensor(3.0, requires_grad=True), gf.tensor(2.0, requires_grad=True)
    f = (w * x - 1) ** 2
    for picture in (gf.draw(f), gf.explain(f)):
        assert forward(picture.graph)["v1"] == 6
        hint = "not kept: v3; gradflow.trace() around the computation shows all values"
        assert str(picture).splitlines()[0] == picture.graph.title == hint
    g = gf.exp(x * w + w) * 0
    for picture in (gf.draw(g), gf.explain(g)):
        assert picture.graph.title == ""
        assert all(v.forward is not None for v in picture.graph.values)
    h = x + w
    for _ in range(5):
        h = h + 1
    assert gf.draw(h).graph.title.endswith("and 6 more; gradflow.trace() around the computation shows all values")


def test_operations_of_the_user_are_not_run_again() -> None:
    calls = []

    def doubled(F: Any, x: Any) -> Any:
        calls.append(x)
        return F.add(x, x)

    x = gf.tensor(3.0, requires_grad=True)
    gf.draw(gf.operation("doubled", doubled, lambda F, g, _out, _x: F.add(g, g))(x) + x)
    assert len(calls) == 1


def test_draw_and_explain_need_one_transfer() -> None:
    with gf.use_device("fake"):
        x = gf.tensor([[0.1, 0.2], [0.3, 0.4]], requires_grad=True)
        f = gf.softmax(x @ x).square().sum()
        with gf.testing.count_transfers() as count:
            gf.draw(f)
            gf.explain(f)
        assert (count.to_host, count.from_host) == (2, 0)


def test_an_operation_of_the_user(device: str) -> None:
    """Whatever its name and its parameters are called."""
    mixed = gf.operation(
        "exp",
        lambda F, x, shape=3.0: F.multiply(F.flip(x, axis=0), shape),
        lambda F, g, _out, _x, shape=3.0: F.multiply(F.flip(g, axis=0), shape),
    )
    odd = gf.operation("{odd} <b>", lambda F, x: F.add(x, x), lambda F, g, _out, _x: F.add(g, g))
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    graph = gf.explain(odd(mixed(x)), gf.tensor([1.0, 10.0])).graph
    assert [s.formula for s in graph.steps] == ["v1 = exp(x)", "v2 = {odd} <b>(v1)"]
    jacobian = local(graph, "v1", "x")
    assert jacobian.form == "full"
    assert jacobian.numbers is not None
    assert jacobian.numbers.values == [[0, 3], [3, 0]]
    assert gradients(graph)["x"] == [60, 6]


def test_a_rule_of_the_user_that_works_on_arrays_only() -> None:
    flipped = gf.operation("flipped", lambda F, x: F.flip(x, axis=0), lambda _F, g, _out, _x: g[::-1] * 1.0)
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    graph = gf.explain(flipped(x), gf.tensor([1.0, 10.0])).graph
    assert gradients(graph)["x"] == [10, 1]
    assert local(graph, "v1", "x").form == "implicit"


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("function", [gf.draw, gf.explain])
def test_errors(function: Any, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    name = function.__name__
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match=f"{name} takes a tensor, such as the loss; got float"):
        function(1.0)
    with pytest.raises(TypeError, match=f"{name} takes one tensor, not a list: pass one of them, or their sum"):
        function([x * 2, x * 3])
    with pytest.raises(
        RuntimeError,
        match=rf"{name}\(\) on a tensor .* does not require grad, so it has no graph: set .* outside of no_grad",
    ):
        function(gf.ones(2))
    with pytest.raises(RuntimeError, match=rf"is a leaf: no operation computed it.*as in {name}\(loss\)"):
        function(x)
    with pytest.raises(TypeError, match=rf"{name} takes names of tensors and modules.* scale is float"):
        function(x * 2, scale=2.0)
    y = x
    for _ in range(5):
        y = y * 2.0
    monkeypatch.setattr(existing, "LARGEST", 4)
    with pytest.raises(ValueError, match=rf"{name}\(\) on a graph of 5 steps; the largest is 4: pass a result in the"):
        function(y)


def test_a_freed_graph_is_not_explained(device: str) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    f = (x * x).sum()
    f.backward()
    with pytest.raises(
        RuntimeError, match=r"freed: call explain\(\) before backward\(\).*retain_graph=True.*explain\(trace\)"
    ):
        gf.explain(f)


def test_a_gradient_that_does_not_fit(device: str) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(TypeError, match="takes a tensor or a number as gradient; got str"):
        gf.explain(x * x, "1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gradient must be like the tensor of shape \(2,\)"):
        gf.explain(x * x, gf.ones(3))


def test_local_derivatives_are_not_formed_beyond_a_size(device: str) -> None:
    x = gf.ones((40, 40), requires_grad=True)
    y = (x * 2.0).sum()
    graph = gf.explain(y).graph
    product, total = graph.steps
    assert [each and (each.form, each.numbers) for each in product.local] == [("diagonal", None), None]
    assert [each and (each.form, each.numbers) for each in total.local] == [("implicit", None)]
    assert local(gf.explain(x[0, :2]).graph, "v1", "x").form == "implicit"
