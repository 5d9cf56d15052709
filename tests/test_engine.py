"""The backward pass: what it accumulates and where, what it saves and frees, and its errors."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.autograd import observers
from gradflow.autograd.graph import Node
from gradflow.autograd.leaf import Leaf, accumulate
from gradflow.autograd.observers import Observer, observe
from gradflow.backend import graphs
from gradflow.tensor import Tensor


def leaf(*values: float, dtype: str = "float64") -> gf.Tensor:
    return gf.tensor(np.array(values, dtype), requires_grad=True)


# ---------------------------------------------------------------------- adding up


def test_gradients_of_several_paths_add_up() -> None:
    x = leaf(2.0, 3.0)
    y = x * x
    (y * x + y).sum().backward()
    assert x.grad.tolist() == [3 * 4 + 2 * 2, 3 * 9 + 2 * 3]


def test_gradients_of_several_backward_passes_add_up() -> None:
    x = leaf(1.0, 2.0)
    for k in range(1, 4):
        (x * 3.0).sum().backward()
        assert x.grad.tolist() == [3.0 * k] * 2
    x.zero_grad()
    assert x.grad is None
    (x * 3.0).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("value", [(), (2,)], ids=["0-d", "1-d"])
def test_recorded_and_plain_backward_passes_add_up_in_any_order(value: tuple[int, ...]) -> None:
    x = gf.ones(value, dtype="float64", requires_grad=True)
    expected = 0.0
    for create_graph in (True, False, True, False, False, True):
        (x * 3.0).sum().backward(create_graph=create_graph)
        x.sum().backward(create_graph=create_graph)
        expected += 4.0
        assert np.array_equal(x.grad.detach().numpy(), np.full(value, expected)), f"create_graph={create_graph}"


def test_ten_thousand_uses_of_one_tensor_add_up() -> None:
    x = leaf(1.5)
    total = x * 0.0
    for _ in range(10_000):
        total = total + x
    total.backward()
    assert x.grad.item() == 10_000.0


class CountRules(observers.Observer):
    """Counts the runs of rules."""

    count = 0

    def after_rule(self, *_: Any) -> None:
        self.count += 1


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_the_work_for_many_uses_of_a_leaf_grows_with_the_uses(with_optimizer: bool) -> None:
    x = leaf(1.5)
    if with_optimizer:
        gf.optim.SGD([x], lr=1.0)
    counter = CountRules()
    with observers.observe(counter):
        gf.concat([x] * 10_000).sum().backward()
    assert x.grad.item() == 10_000.0
    assert counter.count == 10_001


def test_ten_thousand_uses_of_one_computed_tensor_in_one_concat_add_up() -> None:
    x = leaf(1.5)
    gf.concat([x * 2.0] * 10_000).sum().backward()
    assert x.grad.item() == 20_000.0


def test_a_gradient_is_the_same_to_the_bit_however_it_is_computed() -> None:
    """Written to an optimizer's buffer, with a hook elsewhere, added to an earlier gradient, or by `gradients`."""

    def gradient(trained: bool, hooked: bool, more: bool, asked: bool) -> bytes:
        rng = np.random.default_rng(0)
        layer, other = gf.nn.Linear(8, 8, bias=False), gf.ones(2, requires_grad=True)
        layer.load_state_dict({"weight": rng.normal(size=(8, 8), scale=0.4).astype("float32")})
        optimizer = gf.optim.SGD(layer.parameters(), lr=0.1) if trained else None
        handle = other.register_hook(lambda g: g) if hooked else None
        if more:
            layer.weight.grad = gf.zeros((8, 8))
        h = gf.tensor(rng.normal(size=(3, 8)).astype("float32"))
        for _ in range(5):
            h = gf.tanh(layer(h))
        loss = h.square().sum() + layer.weight.square().sum() + layer.weight[1:].sum()
        if asked:
            (found,) = gf.gradients(loss, [layer.weight])
            return found.numpy().tobytes()
        loss.backward()
        assert optimizer is None or optimizer.steps == 0
        if handle is not None:
            handle.remove()
        return layer.weight.grad.numpy().tobytes()

    ways = itertools.product((False, True), repeat=4)
    assert len({gradient(*way) for way in ways}) == 1


def test_a_diamond_is_visited_once() -> None:
    """40 doublings: a walk that follows paths instead of nodes would take 2^40 steps."""
    x = leaf(1.0)
    y = x
    for _ in range(40):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**40


def test_backward_of_a_leaf_adds_the_cotangent() -> None:
    x = leaf(1.0)
    x.backward()
    x.backward(gf.tensor(np.array([3.0])))
    assert x.grad.item() == 4.0


# ---------------------------------------------------------------------- aliasing


@pytest.mark.parametrize("create_graph", [False, True])
def test_leaves_with_equal_gradients_do_not_share_them(create_graph: bool) -> None:
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    cotangent = gf.tensor(np.array([1.0, 1.0]))
    (a + b).backward(cotangent, create_graph=create_graph)
    assert a.grad is not b.grad
    assert not np.shares_memory(a.grad.array, b.grad.array)
    assert not np.shares_memory(a.grad.array, cotangent.array)
    with gf.no_grad():
        a.grad.zero_()
    assert b.grad.tolist() == [1.0, 1.0]
    assert cotangent.tolist() == [1.0, 1.0]
    (a * 2.0).sum().backward()
    assert a.grad.tolist() == [2.0, 2.0]
    assert b.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "function", [lambda x: x.sum(), lambda x: x.reshape(4).sum(), lambda x: (x.T * 1.0).sum(), lambda x: x[0].sum()]
)
def test_gradients_can_be_written_to(function: Any, create_graph: bool) -> None:
    """Rules return views and broadcast arrays, which NumPy refuses to write to."""
    x = gf.ones((2, 2), requires_grad=True)
    function(x).backward(create_graph=create_graph)
    with gf.no_grad():
        x.grad *= 2.0
        x.grad[0] = 5.0
    assert x.grad[0].tolist() == [5.0, 5.0]


def test_a_gradient_does_not_alias_the_values() -> None:
    x = leaf(1.0, 2.0)
    y = leaf(3.0, 4.0)
    (x * y).sum().backward()
    with gf.no_grad():
        y *= 100.0
    assert x.grad.tolist() == [3.0, 4.0]


def test_an_assigned_gradient_is_added_to_and_not_changed() -> None:
    x = gf.tensor(1.0, requires_grad=True)
    given = gf.tensor(2.0) * 2.0  # a NumPy scalar inside, which cannot be assigned into
    x.grad = given
    (x * 3.0).backward()
    assert x.grad.item() == 7.0
    y = leaf(1.0, 1.0)
    y.grad = gf.broadcast_to(gf.tensor(np.array([1.0])), (2,))  # read-only
    (y * 3.0).sum().backward()
    assert y.grad.tolist() == [4.0, 4.0]


def test_an_assigned_gradient_must_fit() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"shape \(3,\), float64 on cpu"):
        x.grad = gf.zeros(3, dtype="float64")
    with pytest.raises(ValueError, match="float32"):
        x.grad = gf.zeros(2)
    with pytest.raises(TypeError, match="ndarray"):
        x.grad = np.zeros(2)
    with pytest.raises(RuntimeError, match="only a leaf"):
        (x * 2.0).grad = gf.zeros(2, dtype="float64")
    x.grad = None
    assert x.grad is None


# ---------------------------------------------------------------------- what is recorded


def test_only_what_depends_on_a_leaf_is_recorded() -> None:
    x, c = leaf(1.0), gf.tensor(np.array([2.0]))
    assert not (c * c).requires_grad
    y = x * c
    assert y.requires_grad
    assert not y.is_leaf
    assert x.is_leaf
    assert c.is_leaf
    y.backward()
    assert c.grad is None


def test_constants_are_not_kept() -> None:
    """The gradient of x * c by x needs only c. x is not saved if c does not require grad."""
    x = leaf(1.0)
    a = gf.exp(x)
    watch = weakref.ref(a)
    y = a * gf.tensor(np.array([2.0]))
    del a
    assert watch() is None, "a * c kept a"
    y.backward()
    assert x.grad.item() == pytest.approx(2 * np.e)


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a + 1.0, lambda a: -a, lambda a: gf.exp(a), lambda a: gf.tanh(a), lambda a: gf.relu(a),
        lambda a: gf.sum(a), lambda a: gf.mean(a), lambda a: gf.reshape(a, (2, 1)) * 1.0, lambda a: a[[0, 1]],
        lambda a: gf.cumulative_sum(a), lambda a: gf.concat([a, a]), lambda a: gf.dropout(a, 0.5),
        lambda a: gf.softmax(a), lambda a: gf.sqrt(a), lambda a: gf.pad(a, 1),
    ],
)  # fmt: skip
def test_inputs_that_no_rule_reads_are_not_kept(function: Any) -> None:
    x = leaf(1.0, 2.0)
    a = x * 2.0
    watch = weakref.ref(a)
    y = function(a)
    del a
    assert watch() is None, f"{y._node.op.name} keeps its input"
    y.sum().backward()
    assert x.grad is not None


def test_a_change_to_what_no_rule_reads_is_allowed() -> None:
    x = leaf(1.0, 2.0)
    a = x * 2.0
    y = gf.concat([a, a + 1.0])
    z = gf.dropout(a, 0.5)
    with gf.no_grad():
        a *= 5.0
    (y.sum() + z.sum()).backward()
    assert x.grad is not None


def test_no_grad_and_enable_grad_nest() -> None:
    x = leaf(1.0)
    assert gf.is_grad_enabled()
    with gf.no_grad():
        assert not gf.is_grad_enabled()
        assert not (x * 2.0).requires_grad
        with gf.enable_grad():
            assert gf.is_grad_enabled()
            assert (x * 2.0).requires_grad
            with gf.no_grad():
                assert not gf.exp(x).requires_grad
            assert gf.is_grad_enabled()
        assert not gf.is_grad_enabled()
    assert gf.is_grad_enabled()


def test_no_grad_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), gf.no_grad():
        raise KeyError
    assert gf.is_grad_enabled()
    with gf.no_grad():
        with pytest.raises(KeyError), gf.enable_grad():
            raise KeyError
        assert not gf.is_grad_enabled()


def test_no_grad_decorates_functions() -> None:
    @gf.no_grad()
    def double(x: gf.Tensor) -> gf.Tensor:
        return x * 2.0

    assert not double(leaf(1.0)).requires_grad
    assert not double(leaf(1.0)).requires_grad
    assert gf.is_grad_enabled()


def test_no_grad_affects_only_its_thread() -> None:
    import threading

    seen: list[bool] = []
    with gf.no_grad():
        thread = threading.Thread(target=lambda: seen.append(gf.is_grad_enabled()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_a_plain_backward_records_nothing_and_a_recorded_one_can_be_differentiated() -> None:
    x = leaf(2.0)
    (x**3).backward()
    assert not x.grad.requires_grad
    x.zero_grad()
    (x**3).backward(create_graph=True)
    first = x.grad
    assert first.item() == 12.0
    x.zero_grad()
    first.backward(create_graph=True)
    second = x.grad
    assert second.item() == 12.0
    x.zero_grad()
    second.backward()
    assert x.grad.item() == 6.0


def test_backward_works_within_no_grad() -> None:
    x = leaf(2.0)
    y = x * x
    with gf.no_grad():
        y.backward()
    assert x.grad.item() == 4.0


# ---------------------------------------------------------------------- errors


def test_a_second_backward_raises_and_names_the_fix() -> None:
    x = leaf(1.0, 2.0)
    y = gf.exp(x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match=r"exp saved .* freed .* retain_graph=True"):
        y.backward()
    assert x.grad.tolist() == np.exp([1.0, 2.0]).tolist(), "the refused pass changed the gradient"


@pytest.mark.parametrize("options", [{"retain_graph": True}, {"create_graph": True}], ids=str)
def test_a_retained_graph_can_be_walked_again(options: dict[str, bool]) -> None:
    x = leaf(1.0, 2.0)
    y = gf.exp(x).sum()
    y.backward(**options)
    y.backward()
    np.testing.assert_array_equal(x.grad.detach().numpy(), 2 * np.exp([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="freed"):
        y.backward()


@pytest.mark.parametrize("name", ["dropout", "mse_loss", "linear", "layer_norm", "cross_entropy"])
def test_operations_with_a_residual_are_freed_too(name: str) -> None:
    x = gf.ones((2, 3), requires_grad=True)
    y = {
        "dropout": lambda: gf.dropout(x, 0.5),
        "mse_loss": lambda: gf.mse_loss(x, gf.zeros((2, 3))),
        "linear": lambda: gf.linear(x, gf.ones((2, 3)), activation="gelu"),
        "layer_norm": lambda: gf.layer_norm(x, (3,)),
        "cross_entropy": lambda: gf.cross_entropy(x, gf.tensor(np.array([0, 1]))),
    }[name]().sum()
    y.backward()
    with pytest.raises(RuntimeError, match=f"{name} saved"):
        y.backward()


def test_backward_of_a_tensor_that_does_not_require_grad_raises() -> None:
    with pytest.raises(RuntimeError, match=r"shape \(2,\), float32 on cpu that does not require grad"):
        gf.ones(2).backward()


def test_backward_needs_a_cotangent_for_more_than_one_element() -> None:
    y = leaf(1.0, 2.0) * 2.0
    with pytest.raises(RuntimeError, match=r"this one has shape \(2,\): reduce it first"):
        y.backward()
    leaf(1.0).reshape(1, 1).backward()


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (gf.ones(2, dtype="float64"), r"got a tensor of shape \(2,\)"),
        (gf.ones((3, 1), dtype="float64"), r"got a tensor of shape \(3, 1\)"),
        (gf.ones(3), "float32"),
    ],
    ids=["shape", "axes", "dtype"],
)
def test_backward_raises_for_a_cotangent_that_does_not_fit(gradient: gf.Tensor, message: str) -> None:
    y = leaf(1.0, 2.0, 3.0) * 2.0
    with pytest.raises(ValueError, match=message):
        y.backward(gradient)
    with pytest.raises(TypeError, match="ndarray"):
        y.backward(np.ones(3))


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x, a: a * a, "input 0 of multiply"),
        (lambda x, a: gf.log(a), "input 0 of log"),
        (lambda x, a: gf.linear(a, a), "input 0 of linear"),
        (lambda x, a: gf.mse_loss(a, x), "input 0 of mse_loss"),
        (lambda x, a: gf.max(a), "input 0 of max"),
    ],
)
@pytest.mark.parametrize("through", ["itself", "a view", "a detached tensor"])
def test_a_change_of_a_saved_input_is_detected(function: Any, named: str, through: str) -> None:
    x = gf.tensor(np.array([[1.0, 2.0], [3.0, 4.0]]), requires_grad=True)
    a = x + 1.0
    y = function(x, a).sum()
    with gf.no_grad():
        target = {"itself": a, "a view": a[0], "a detached tensor": a.detach()}[through]
        target += 1.0
    with pytest.raises(
        RuntimeError,
        match=rf"{named}, a tensor of shape \(2, 2\), float64 on cpu, .* version \d+, changed at version \d+.* copy",
    ):
        y.backward()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", ["exp", "sqrt", "tanh", "sigmoid", "relu", "softmax"])
def test_a_change_of_a_saved_result_is_detected(name: str, create_graph: bool) -> None:
    x = leaf(1.0, 2.0)
    y = getattr(gf, name)(x)
    z = y.sum()
    with gf.no_grad():
        y[0] = 3.0
    with pytest.raises(
        RuntimeError, match=rf"the result of {name}, a tensor of shape \(2,\), float64 on cpu, was changed in"
    ):
        z.backward(create_graph=create_graph)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: gf.layer_norm(x, (2,)),
        lambda x: gf.dropout(x, 0.5),
        lambda x: gf.linear(x, gf.ones((2, 2), dtype="float64"), activation="gelu"),
        lambda x: gf.linear(x, gf.ones((2, 2), dtype="float64")),
        lambda x: gf.mse_loss(x, gf.zeros((2, 2), dtype="float64"), reduction="none"),
    ],
    ids=["layer_norm", "dropout", "linear gelu", "linear", "mse_loss"],
)
def test_a_changed_result_that_no_rule_reads_does_not_matter(function: Any) -> None:
    """The residual of a kernel must not be the result itself, which the user may change."""
    values = np.array([[1.0, 2.0], [3.0, 7.0]])
    expected = gf.tensor(values, requires_grad=True)
    weights = gf.tensor(np.array([[1.0, 2.0], [3.0, 4.0]]))
    gf.manual_seed(1)
    function(expected).backward(weights)
    x = gf.tensor(values, requires_grad=True)
    gf.manual_seed(1)
    y = function(x)
    with gf.no_grad():
        y *= 100.0
    y.backward(weights)
    np.testing.assert_array_equal(x.grad.numpy(), expected.grad.numpy())


def test_a_change_before_the_operation_or_after_the_backward_is_fine() -> None:
    x = leaf(1.0, 2.0)
    with gf.no_grad():
        x *= 2.0
    y = (x * x).sum()
    y.backward()
    with gf.no_grad():
        x *= 2.0
    assert x.grad.tolist() == [4.0, 8.0]
    (x * x).sum().backward()
    assert x.grad.tolist() == [4.0 + 8.0, 8.0 + 16.0]


def test_a_change_of_a_leaf_by_an_optimizer_step_is_detected() -> None:
    w = leaf(1.0)
    y = w * w
    with gf.no_grad():
        w -= 0.1
    with pytest.raises(RuntimeError, match="multiply"):
        y.backward()


def test_the_key_of_an_index_is_its_own() -> None:
    x, i = leaf(1.0, 2.0, 3.0), gf.tensor(np.array([0, 1]))
    y = x[i]
    with gf.no_grad():
        i += 1
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("method", ["before_backward", "visit", "before_rules", "after_rule"])
def test_an_observer_learns_of_a_pass_that_fails_in_one_of_its_own_methods(method: str) -> None:
    calls: list[str] = []

    class Fails(Observer):
        def backward_failed(self) -> None:
            calls.append("backward_failed")

        def after_backward(self) -> None:
            calls.append("after_backward")

    def fail(*_: Any) -> None:
        raise KeyError("mine")

    setattr(Fails, method, fail)
    y = leaf(1.0) * 2.0
    with observe(Fails()), pytest.raises(KeyError, match="mine"):
        y.backward()
    assert calls == ["backward_failed"]


# ---------------------------------------------------------------------- long chains, memory


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive() -> dict[str, int]:
    found = {"Tensor": 0, "Node": 0, "Leaf": 0}
    for thing in gc.get_objects():
        kind = type(thing)
        if kind is Tensor or kind is Node or kind is Leaf:
            found[kind.__name__] += 1
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("step", [lambda y: y + 1.0, lambda y: y * 1.0, gf.sin, lambda y: gf.reshape(y, (1,))],
                         ids=["add", "multiply", "sin", "reshape"])  # fmt: skip
def test_a_chain_of_100_000_operations_runs_forward_and_backward_and_is_freed(step: Any) -> None:
    before = alive()
    x = leaf(0.5)
    y = x
    for _ in range(100_000):
        y = step(y)
    y.backward()
    assert np.isfinite(x.grad.item())
    del y
    after = alive()
    assert after["Node"] == before["Node"], f"{after['Node'] - before['Node']} nodes are left"


@pytest.mark.usefixtures("_no_collector")
def test_a_chain_without_a_backward_pass_is_freed_without_recursion() -> None:
    before = alive()
    y = leaf(0.5)
    for _ in range(100_000):
        y = y * 1.0
    del y
    assert alive() == before


@pytest.mark.slow
def test_a_recorded_backward_of_100_000_operations() -> None:
    x = leaf(1.0)
    y = x * x
    for _ in range(100_000):
        y = y * 1.0
    y.backward(create_graph=True)
    gradient = x.grad
    x.zero_grad()
    gradient.backward()
    assert x.grad.item() == 2.0


@pytest.mark.usefixtures("_no_collector")
def test_training_steps_leave_nothing_behind_without_the_garbage_collector() -> None:
    w1, b1 = gf.random.normal((8, 4)).requires_grad_(), gf.zeros(8, requires_grad=True)
    w2 = gf.random.normal((3, 8)).requires_grad_()
    parameters = [w1, b1, w2]
    x, t = gf.random.normal((5, 4)), gf.tensor(np.array([0, 1, 2, 0, 1]))

    def step() -> None:
        h = gf.linear(x, w1, b1, activation="relu")
        h = gf.layer_norm(gf.dropout(h, 0.1), (8,))
        loss = gf.cross_entropy(gf.linear(h, w2), t) + (w1[0] ** 2).sum() * 1e-3
        for p in parameters:
            p.zero_grad()
        loss.backward()
        with gf.no_grad():
            for p in parameters:
                p -= p.grad * 0.1

    step()
    before, bytes_before = alive(), gf.memory_stats()["current"]
    for _ in range(1000):
        step()
    assert alive() == before
    grown = gf.memory_stats()["current"] - bytes_before
    assert grown < 4 << 20, f"memory grew by {grown} bytes"


@pytest.mark.usefixtures("_no_collector")
def test_second_derivatives_leave_nothing_behind_once_the_gradient_is_gone() -> None:
    x = leaf(1.0, 2.0)

    def step() -> None:
        y = (x**3).sum()
        y.backward(create_graph=True)
        first = x.grad
        x.zero_grad()
        (first * first).sum().backward()
        x.zero_grad()

    step()
    before, bytes_before = alive(), gf.memory_stats()["current"]
    for _ in range(1000):
        step()
    assert alive() == before
    grown = gf.memory_stats()["current"] - bytes_before
    assert grown < 4 << 20, f"memory grew by {grown} bytes"


@pytest.mark.usefixtures("_no_collector")
def test_saved_arrays_are_freed_as_the_walk_passes() -> None:
    x = gf.ones(1000, requires_grad=True)
    a = x * 2.0
    y = (a * a).sum()
    watch = weakref.ref(a)
    del a
    assert watch() is not None
    y.backward()
    assert watch() is None, "backward did not free the saved input of multiply"


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("layers", ["one rule for all", "a rule for each"])
def test_the_last_step_of_a_pass_does_not_hold_all_gradients_twice(layers: str, observed: bool) -> None:
    """Leaves without an optimizer get copies, and each gradient is freed once it was copied."""
    weights = [gf.ones((256, 256), requires_grad=True) for _ in range(6)]
    x = gf.ones((2, 256))
    if layers == "one rule for all":
        y = gf.ops.network.perceptron(x, [(w, gf.zeros(256)) for w in weights], "tanh")
    else:
        y = x
        for w in weights:
            y = y @ w
    loss = y.sum()
    tracemalloc.start()
    try:
        with observe(Observer()) if observed else contextlib.nullcontext():
            loss.backward()
        needed, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one = 256 * 256 * 4
    assert 6 * one <= needed
    assert peak < needed + 2.5 * one


# ---------------------------------------------------------------------- rules


def test_a_walk_reaches_only_what_needs_a_gradient() -> None:
    """The rule of a constant argument never runs: this one would divide by zero, which is an error here."""
    x = leaf(1.0)
    c = gf.zeros(1, dtype="float64")
    (x * 0.0 + c * x).sum().backward()
    (c / x).sum()
    assert x.grad.item() == 0.0


def test_operations_name_themselves() -> None:
    x = leaf(1.0)
    assert repr(gf.exp(x)._node.op) == "<operation exp>"


# ---------------------------------------------------------------------- shared memory


def test_a_held_gradient_keeps_its_values_when_the_buffer_is_overwritten() -> None:
    """An optimizer's gradients lie in a buffer that the next backward pass overwrites."""
    p = gf.tensor([1.0, 2.0], requires_grad=True)
    q = gf.tensor([1.0, 1.0], requires_grad=True)
    optimizer = gf.optim.SGD([p], lr=0.0)
    history = []
    for factor in (2.0, 3.0, 5.0):
        optimizer.zero_grad()
        (p * factor).sum().backward()
        history.append(p.grad)
    assert [g.tolist() for g in history] == [[2.0, 2.0], [3.0, 3.0], [5.0, 5.0]]
    y = (p.grad * q).sum()
    optimizer.zero_grad()
    gf.linear(p.reshape(1, 2), gf.ones((3, 2))).sum().backward()
    y.backward()
    assert q.grad.tolist() == [5.0, 5.0]
    q.grad = p.grad
    optimizer.zero_grad()
    (p * 7).sum().backward()
    assert (q.grad.tolist(), p.grad.tolist()) == ([3.0, 3.0], [7.0, 7.0])


def test_a_held_gradient_that_was_written_straight_to_its_buffer_keeps_its_values() -> None:
    layer = gf.nn.Linear(2, 3)
    optimizer = gf.optim.SGD(layer.parameters(), lr=0.0)
    for value in (1.0, 4.0):
        optimizer.zero_grad()
        layer(gf.full((1, 2), value)).sum().backward()
        if value == 1.0:
            held = layer.weight.grad
    assert held.tolist() == [[1.0, 1.0]] * 3
    assert layer.weight.grad.tolist() == [[4.0, 4.0]] * 3


@pytest.mark.parametrize("view", [lambda g: g.detach(), lambda g: g.reshape(-1), lambda g: g[:2]])
def test_a_view_of_a_gradient_keeps_its_values_when_the_buffer_is_overwritten(view: Any) -> None:
    p = gf.tensor([1.0, 2.0], requires_grad=True)
    q = gf.tensor([1.0, 1.0], requires_grad=True)
    optimizer = gf.optim.SGD([p], lr=0.0)
    history = []
    for factor in (1.0, 10.0):
        optimizer.zero_grad()
        (p * factor).sum().backward()
        history.append(view(p.grad))
    y = (view(p.grad) * q).sum()
    optimizer.zero_grad()
    (p * 3).sum().backward()
    y.backward()
    assert [g.tolist() for g in history] == [[1.0, 1.0], [10.0, 10.0]]
    assert q.grad.tolist() == [10.0, 10.0]


def test_a_gradient_held_while_another_optimizer_takes_over_keeps_its_values() -> None:
    p = gf.tensor([1.0], requires_grad=True)
    optimizers = [gf.optim.SGD([p], lr=0.0), gf.optim.SGD([p], lr=0.0)]
    history = []
    for i, factor in enumerate((1.0, 10.0, 100.0, 1000.0)):
        p.zero_grad()
        (p * factor).sum().backward()
        optimizers[i % 2].step()
        history.append(p.grad)
    assert [g.item() for g in history] == [1.0, 10.0, 100.0, 1000.0]


def test_a_frozen_leaf_keeps_its_gradient_and_its_place_in_graphs() -> None:
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    optimizer = gf.optim.SGD([w], lr=1.0)
    y = (w * w).sum()
    (w * 3).sum().backward()
    w.requires_grad_(False)
    assert w.grad.tolist() == [3.0, 3.0]
    assert not (w * 2).requires_grad
    w.requires_grad_(True)
    y.backward()
    assert w.grad.tolist() == [5.0, 7.0]
    optimizer.step()
    assert w.tolist() == [-4.0, -5.0]
    w.requires_grad_(False)
    w.zero_grad()
    assert w.grad is None


def test_a_view_of_a_computed_scalar_is_one() -> None:
    t = gf.tensor([1.0, 2.0]).sum()
    v = t.reshape((1,))
    v[0] = 5
    assert t.item() == 5.0


def test_a_graph_from_before_a_module_was_converted_is_refused() -> None:
    layer = gf.nn.Linear(2, 2)
    y = layer(gf.ones((1, 2), requires_grad=True)).sum()
    layer.to("float64")
    with pytest.raises(RuntimeError, match=r"of linear, .* changed in place"):
        y.backward()


@pytest.mark.parametrize("make", [lambda t: t.detach().requires_grad_(), lambda t: gf.nn.Parameter(t)])
def test_an_optimizer_step_on_a_tensor_with_an_alias_is_detected(make: Any) -> None:
    p = make(gf.tensor([1.0, 2.0]))
    optimizer = gf.optim.SGD([p], lr=1.0)
    y = (p * p).sum()
    (p * 3).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"multiply.*changed in place"):
        y.backward()


def test_a_change_through_the_source_of_a_parameter_is_detected() -> None:
    t = gf.tensor([1.0, 2.0])
    p = gf.nn.Parameter(t)
    y = (p * p).sum()
    t += 5
    with pytest.raises(RuntimeError, match=r"multiply.*changed in place"):
        y.backward()


def test_an_optimizer_made_between_forward_and_backward_changes_nothing() -> None:
    p = gf.tensor([1.0, 2.0], requires_grad=True)
    y = (p * p).sum()
    gf.optim.SGD([p], lr=1.0)
    y.backward()
    assert p.grad.tolist() == [2.0, 4.0]


def test_a_detached_tensor_does_not_keep_the_graph() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    y = gf.exp(gf.exp(x))
    node = weakref.ref(y._node)
    d = y.detach()
    del y
    assert node() is None
    assert d.tolist() == gf.exp(gf.exp(x)).tolist()


def test_a_detached_scalar_shares_its_memory() -> None:
    y = gf.tensor([1.0, 2.0]).sum()
    d = y.detach()
    d += 5
    assert (y.item(), d.item()) == (8.0, 8.0)


def test_a_gradient_assigned_to_its_own_leaf_keeps_its_values() -> None:
    w = gf.ones(2, requires_grad=True)
    gf.optim.SGD([w], lr=0.1)
    (w * 3.0).sum().backward()
    g = w.grad
    assert g is not None
    w.zero_grad()
    w.backward(g)
    (w * 1.0).sum().backward()
    assert (g.tolist(), w.grad.tolist()) == ([3.0, 3.0], [4.0, 4.0])


# ---------------------------------------------------------------------- threads


@pytest.fixture
def hasty() -> Iterator[None]:
    """Switch between threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(work: Callable[[int], Any], count: int = 8) -> None:
    """Call `work(i)` in several threads at once, and raise what one of them raises."""
    start = threading.Barrier(count)

    def run(i: int) -> None:
        start.wait()
        work(i)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run, i) for i in range(count)]:
            done.result()


USES: dict[str, Callable[[gf.Tensor], gf.Tensor]] = {
    "product": lambda p: (p * 1.0).sum(),
    "linear": lambda p: gf.linear(gf.ones((1, p.shape[1])), p).sum(),
    "twice": lambda p: (gf.linear(gf.ones((1, p.shape[1])), p) * 0.5).sum() + (p * 0.5).sum(),
    "hooked": lambda p: _hooked((p * 1.0).sum()),
}


def _hooked(y: gf.Tensor) -> gf.Tensor:
    y.register_hook(lambda g: g)  # so that the general walk runs
    return y


@pytest.mark.parametrize("trained", [False, True], ids=["alone", "in a buffer"])
@pytest.mark.parametrize("use", USES)
def test_threads_that_backpropagate_to_one_leaf_lose_nothing(use: str, trained: bool, hasty: None) -> None:
    """All contributions are ones, so that sums are exact in any order."""
    p = gf.zeros((40, 5000), requires_grad=True)
    other = gf.zeros((7,), requires_grad=True)
    optimizer = gf.optim.SGD([other, p], lr=1.0) if trained else None
    for _ in range(3):
        in_threads(lambda i: [USES[use](p).backward() for _ in range(6)])
        assert p.grad.tolist() == gf.full(p.shape, 48.0).tolist()
        if optimizer is None:
            p.zero_grad()
        else:
            before = p.detach().clone()
            optimizer.step()
            assert (before - p.detach()).tolist() == gf.full(p.shape, 48.0).tolist()
            optimizer.zero_grad()
    assert other.tolist() == [0.0] * 7


def test_threads_with_recorded_gradients_lose_nothing(hasty: None) -> None:
    p = gf.zeros((100,), requires_grad=True)
    in_threads(lambda i: [(p * 1.0).sum().backward(create_graph=True) for _ in range(6)])
    assert p.grad.tolist() == [48.0] * 100


@pytest.mark.parametrize("trained", [False, True])
def test_a_walk_within_a_walk_adds_to_the_leaf_that_the_outer_one_writes_to(trained: bool) -> None:
    w = gf.ones((2, 3), requires_grad=True)
    keep = gf.optim.SGD([w], lr=1.0) if trained else None

    def inner(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        gf.linear(gf.ones((1, 3)), w).sum().backward()
        (w * 1.0).sum().backward()
        return g

    nested = gf.operation("nested", lambda F, x: F.add(x, 0.0), inner)
    x = nested(gf.ones((1, 3), requires_grad=True))
    gf.linear(x, w).sum().backward()
    assert w.grad.tolist() == [[3.0] * 3] * 2
    in_threads(lambda i: (w * 1.0).sum().backward(), 2)  # would deadlock if the walk had kept a lock
    del keep


class Slow:
    """A gradient of ones. Adding it sets `begun`, and then waits until `finish` is set."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype = np.dtype("float32")
        self.begun, self.finish = threading.Event(), threading.Event()

    def __array__(self, *_: Any, **__: Any) -> Any:
        self.begun.set()
        self.finish.wait(20)
        return np.ones(self.shape, dtype="float32")


def test_what_is_added_while_a_walk_writes_to_the_buffer_is_not_lost() -> None:
    """One thread claims a leaf. Another begins to add to it, and is not done when the first one is."""
    w = gf.ones((2, 3), requires_grad=True)
    optimizer = gf.optim.SGD([w], lr=1.0)
    slow = Slow(w.shape)

    def waits(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        adding.start()
        assert slow.begun.wait(20)
        return g

    adding = threading.Thread(target=lambda: accumulate(w._node, slow))
    x = gf.operation("waits", lambda F, x: F.add(x, 0.0), waits)(gf.ones((1, 3), requires_grad=True))
    gf.linear(x, w).sum().backward()
    slow.finish.set()
    adding.join()
    assert w.grad.tolist() == [[2.0] * 3] * 2
    optimizer.step()
    assert w.tolist() == [[-1.0] * 3] * 2


def test_no_walk_writes_to_the_buffer_of_a_leaf_that_another_thread_adds_to() -> None:
    w = gf.ones((2, 3), requires_grad=True)
    optimizer = gf.optim.SGD([w], lr=1.0)
    slow = Slow(w.shape)
    loss = gf.linear(gf.ones((1, 3)), w).sum()
    adding = threading.Thread(target=lambda: accumulate(w._node, slow))
    walking = threading.Thread(target=loss.backward)
    adding.start()
    assert slow.begun.wait(20)
    walking.start()
    walking.join(0.2)
    slow.finish.set()
    adding.join()
    walking.join()
    assert w.grad.tolist() == [[2.0] * 3] * 2
    optimizer.step()
    assert w.tolist() == [[-1.0] * 3] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_forked_while_another_thread_adds_a_gradient_or_draws_does_not_deadlock() -> None:
    w = gf.ones(2, requires_grad=True)
    (w * 1.0).sum().backward()
    slow = Slow(w.shape)

    def hold() -> None:
        with graphs.counter_lock:
            accumulate(w._node, slow)

    thread = threading.Thread(target=hold)
    thread.start()
    assert slow.begun.wait(20)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that deadlocks
        (w * 1.0).sum().backward()
        gf.random.normal((2,))
        os._exit(0 if w.grad.tolist() == [2.0, 2.0] else 1)
    slow.finish.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert w.grad.tolist() == [2.0, 2.0]


def test_a_walk_that_fails_releases_its_claims() -> None:
    w = gf.ones((2, 3), requires_grad=True)
    optimizer = gf.optim.SGD([w], lr=1.0)

    def fails(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        raise ZeroDivisionError

    x = gf.operation("fails", lambda F, x: F.add(x, 0.0), fails)(gf.ones((1, 3), requires_grad=True))
    with pytest.raises(ZeroDivisionError):
        gf.linear(x, w).sum().backward()
    assert w.grad is None
    in_threads(lambda i: gf.linear(gf.ones((1, 3)), w).sum().backward(), 2)  # would deadlock
    assert w.grad.tolist() == [[2.0] * 3] * 2
    optimizer.step()
    assert w.tolist() == [[-1.0] * 3] * 2


def test_a_gradient_that_requires_grad_is_not_overwritten_by_a_later_one() -> None:
    """As in meta-learning, where a gradient is differentiated by: it has become a leaf, and may be saved by a node."""
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    optimizer = gf.optim.SGD([w], lr=0.0)
    (w * w).sum().backward()
    g = w.grad.requires_grad_()
    inner = (g * g * g).sum()
    (w * 10.0).sum().backward()
    inner.backward()
    assert g.tolist() == [2.0, 4.0]
    assert g.grad.tolist() == [12.0, 48.0]
    assert w.grad.tolist() == [12.0, 14.0]
    optimizer.step()
