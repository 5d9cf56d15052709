"""checkpoint: the same gradients, to the bit, from a second run; less memory; errors where they would differ."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, random
from gradflow.autograd import grad_mode, observers
from gradflow.autograd.graph import Node
from gradflow.autograd.leaf import Leaf
from gradflow.random import generator
from gradflow.tensor import Tensor


def leaf(*values: float, dtype: str = "float64") -> gf.Tensor:
    return gf.tensor(np.array(values, dtype), requires_grad=True)


def host(x: gf.Tensor) -> np.ndarray:
    return np.asarray(x.backend.to_host(x.array))


def plain(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return function(*arguments, **options)


# ---------------------------------------------------------------------- the same gradients


class Network(nn.Module):
    """Linear layers with fused activations, dropout, layer norm, tanh: in segments that `through` runs."""

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *[
                nn.Sequential(
                    nn.MLP([8, 16, 8], activation="gelu", dropout=0.3, dtype=dtype),
                    nn.LayerNorm(8, dtype=dtype),
                    nn.Tanh(),
                    nn.Dropout(0.2),
                )
                for _ in range(3)
            ]
        )

    def forward(self, x: gf.Tensor, through: Callable[..., Any] = plain) -> gf.Tensor:
        for layer in self.layers:
            x = through(layer, x)
        return x


@pytest.mark.parametrize("with_optimizer", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_and_random_numbers_are_equal_to_the_bit(dtype: str, with_optimizer: bool, device: str) -> None:
    results = []
    for through in (plain, gf.checkpoint):
        gf.manual_seed(7)
        model = Network(dtype)
        x = gf.random.normal((5, 8), dtype=dtype).requires_grad_()
        if with_optimizer:
            optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
        y = model(x, through)
        after_forward = random.default_generator.state_dict()
        loss = (y * y).sum()
        loss.backward()
        assert random.default_generator.state_dict() == after_forward, "the backward pass moved the generator"
        results.append(
            [loss.item(), host(x.grad), *(host(p.grad) for p in model.parameters()), gf.random.uniform((3,)).tolist()]
        )
        if with_optimizer:
            optimizer.step()
            results[-1] += [host(p) for p in model.parameters()]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_closed_over_tensors_get_their_gradients_leaves_and_computed_ones() -> None:
    def run(through: Callable[..., Any]) -> list[np.ndarray]:
        x, w, v = leaf(1.0, 2.0), leaf(0.5, -1.0), leaf(3.0, 4.0)
        computed = gf.exp(v)
        constant = gf.tensor(np.array([2.0, 5.0]))
        y = through(lambda x: gf.sin(x * w) * computed + constant * w + computed, x)
        (y * computed).sum().backward()
        return [host(t.grad) for t in (x, w, v)]

    for a, b in zip(run(plain), run(gf.checkpoint), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-15)


def test_closed_over_tensors_of_which_one_depends_on_another() -> None:
    def run(through: Callable[..., Any]) -> np.ndarray:
        w = leaf(0.5, -1.0)
        e = gf.exp(w)
        f = e * w
        through(lambda x: x * w * e * f, leaf(1.0, 1.0)).sum().backward()
        return host(w.grad)

    np.testing.assert_allclose(run(gf.checkpoint), run(plain), rtol=1e-15)


def test_nothing_but_closed_over_tensors_needs_a_gradient() -> None:
    w = leaf(0.5, -1.0)
    x = gf.tensor(np.array([1.0, 2.0]))
    gf.checkpoint(lambda x: gf.sin(x * w), x).sum().backward()
    np.testing.assert_array_equal(host(w.grad), np.cos(host(x) * host(w)) * host(x))
    assert gf.checkpoint(lambda: gf.exp(w)).requires_grad
    assert not gf.checkpoint(gf.exp, x).requires_grad


def test_one_tensor_twice_and_functions_that_return_what_they_are_given() -> None:
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    gf.checkpoint(lambda a, b: a * b * b, x, x).sum().backward()
    np.testing.assert_allclose(host(x.grad), 3 * host(x.detach()) ** 2)
    x.zero_grad()
    gf.checkpoint(lambda a: a, x).sum().backward()
    gf.checkpoint(lambda a: w, x).sum().backward()
    assert (x.grad.tolist(), w.grad.tolist()) == ([1.0, 1.0], [1.0, 1.0])


class Pair(NamedTuple):
    first: Any
    second: Any


def test_several_results_in_any_structure_and_results_that_are_no_tensors() -> None:
    def function(x: gf.Tensor) -> Any:
        y = gf.exp(x)
        return {
            "pair": Pair(y, [y.sum(), "name"]),
            "none": None,
            "count": 3,
            "indices": x.argmax(),
            "constant": gf.ones(2),
        }

    def run(through: Callable[..., Any]) -> tuple[Any, np.ndarray]:
        x = leaf(0.5, 1.5)
        out = through(function, x)
        (out["pair"].first * out["pair"].first * out["pair"].second[0]).sum().backward()
        return out, host(x.grad)

    (out, gradient), (expected_out, expected) = run(gf.checkpoint), run(plain)
    np.testing.assert_array_equal(gradient, expected)
    assert type(out["pair"]) is Pair
    assert (out["pair"].second[1], out["none"], out["count"]) == ("name", None, 3)
    assert out["indices"].item() == 1
    assert not out["constant"].requires_grad
    np.testing.assert_array_equal(host(out["pair"].first), host(expected_out["pair"].first))
    assert out["pair"].second[0].shape == ()


def test_results_of_which_some_are_not_used() -> None:
    x = leaf(0.5, 1.5)
    _, second = gf.checkpoint(lambda x: (gf.exp(x), gf.sin(x)), x)
    second.sum().backward()
    np.testing.assert_array_equal(host(x.grad), np.cos([0.5, 1.5]))


def test_arguments_in_any_structure_and_arguments_that_are_no_tensors() -> None:
    def function(p: Any, name: str, *, scale: Any, labels: gf.Tensor) -> gf.Tensor:
        assert name == "name"
        return (p["w"][0][labels] * scale).sum() * p["b"]

    def run(through: Callable[..., Any]) -> list[np.ndarray]:
        w, b, s = leaf(1.0, 2.0, 3.0), leaf(0.5), leaf(4.0)
        labels = gf.tensor(np.array([0, 0, 2]))
        through(function, {"w": [w], "b": b}, "name", scale=s, labels=labels).sum().backward()
        return [host(t.grad) for t in (w, b, s)]

    for a, b in zip(run(gf.checkpoint), run(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoints_inside_checkpoints() -> None:
    results = []
    for through in (plain, gf.checkpoint):
        gf.manual_seed(5)
        x = leaf(0.1, 0.2, 0.3, 0.4)

        def inner(x: gf.Tensor, through: Any = through) -> Any:
            return through(lambda x: gf.dropout(gf.exp(x), 0.5) * x, x)

        def outer(x: gf.Tensor, through: Any = through, inner: Any = inner) -> Any:
            return through(lambda x: inner(gf.dropout(inner(x), 0.25)) + x, x)

        outer(outer(x)).sum().backward()
        results.append((host(x.grad), random.default_generator.state_dict()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_user_generators_are_restored_and_left_where_they_were() -> None:
    results = []
    for through in (plain, gf.checkpoint):
        own = gf.Generator(11)
        x = leaf(*range(1, 9))
        y = through(lambda x, own=own: gf.dropout(x * x, 0.5, generator=own), x)
        later = gf.dropout(gf.ones(8), 0.5, generator=own)
        state = own.state_dict()
        y.sum().backward()
        assert own.state_dict() == state
        results.append((host(x.grad), host(later), state))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_under_no_grad_it_is_an_ordinary_call() -> None:
    x = leaf(1.0, 2.0)
    calls = []

    def function(x: gf.Tensor) -> gf.Tensor:
        calls.append(gf.is_grad_enabled())
        return gf.exp(x)

    with gf.no_grad():
        y = gf.checkpoint(function, x)
    assert not y.requires_grad
    assert calls == [False]


def test_no_grad_inside_the_function() -> None:
    x = leaf(1.0, 2.0)

    def function(x: gf.Tensor) -> gf.Tensor:
        with gf.no_grad():
            c = gf.exp(x)
        return c * x

    gf.checkpoint(function, x).sum().backward()
    np.testing.assert_array_equal(host(x.grad), np.exp([1.0, 2.0]))


def test_in_a_backward_pass_inside_no_grad() -> None:
    x = leaf(1.0, 2.0)
    y = gf.checkpoint(gf.exp, x).sum()
    with gf.no_grad():
        y.backward()
    np.testing.assert_array_equal(host(x.grad), np.exp([1.0, 2.0]))


# ---------------------------------------------------------------------- higher orders


def _loss(model: Network, x: gf.Tensor, through: Callable[..., Any]) -> gf.Tensor:
    gf.manual_seed(9)
    return (model(x, through) ** 2).sum()


def test_second_derivatives_with_create_graph() -> None:
    gf.manual_seed(1)
    model = Network("float64")
    values = host(gf.random.normal((4, 8), dtype="float64"))
    results = []
    for through in (plain, gf.checkpoint):
        x = gf.tensor(values, requires_grad=True)
        model.zero_grad()
        _loss(model, x, through).backward(create_graph=True)
        penalty = (x.grad * x.grad).sum() + sum((p.grad * p.grad).sum() for p in model.parameters())
        x.zero_grad()
        model.zero_grad()
        penalty.backward()
        results.append([host(x.grad), *(host(p.grad) for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def test_transforms_through_a_checkpoint() -> None:
    w = leaf(0.3, -0.2, 0.5)

    def function(x: gf.Tensor, through: Callable[..., Any]) -> gf.Tensor:
        return through(lambda x: gf.tanh(gf.dropout(x * w, 0.3, generator=gf.Generator(1))) * x, x)

    x, v = gf.tensor(np.array([1.0, 2.0, 3.0])), gf.tensor(np.array([1.0, -1.0, 2.0]))

    def results(through: Callable[..., Any]) -> list[gf.Tensor]:
        def f(x: gf.Tensor) -> gf.Tensor:
            return function(x, through)

        def scalar(x: gf.Tensor) -> gf.Tensor:
            return f(x).sum() ** 2

        def third(x: gf.Tensor) -> gf.Tensor:
            return (gf.grad(lambda x: (gf.grad(scalar)(x) ** 2).sum())(x) * v).sum()

        return [
            gf.grad(scalar)(x),
            gf.jacobian(f)(x),
            gf.jacobian(lambda x: gf.concat([f(x)] * 3))(x),
            gf.jvp(f, (x,), (v,))[1],
            gf.hessian(scalar)(x),
            gf.hvp(scalar, (x,), (v,))[0],
            gf.grad(third)(x),
        ]

    for a, b in zip(results(gf.checkpoint), results(plain), strict=True):
        np.testing.assert_allclose(host(a), host(b), rtol=1e-12, atol=1e-13)
    gf.gradcheck(lambda x: function(x, gf.checkpoint), x)
    gf.gradgradcheck(lambda x: function(x, gf.checkpoint), x)


def test_a_transform_inside_a_checkpoint() -> None:
    x = leaf(1.0, 2.0)
    gf.checkpoint(lambda x: gf.grad(lambda y: (y**3).sum())(x), x).sum().backward()
    np.testing.assert_allclose(host(x.grad), [6.0, 12.0])


def test_a_second_pass_needs_retain_graph() -> None:
    x = leaf(1.0, 2.0)
    runs = []

    def function(x: gf.Tensor) -> gf.Tensor:
        runs.append(1)
        return gf.exp(x)

    y = gf.checkpoint(function, x * 2.0)
    z = (y * y).sum()
    z.backward(retain_graph=True)
    first = x.grad.tolist()
    z.backward(retain_graph=True)
    assert x.grad.tolist() == [2 * g for g in first]
    assert len(runs) == 3
    z.backward()
    with pytest.raises(RuntimeError, match="freed"):
        z.backward()


# ---------------------------------------------------------------------- errors


CHANGES: dict[str, Callable[[gf.Tensor], Any]] = {
    "operator": lambda t: t.__iadd__(1.0),
    "item": lambda t: t.__setitem__(0, 9.0),
    "copy_": lambda t: t.copy_(gf.zeros(2, dtype="float64")),
    "view": lambda t: t[1:].zero_(),
    "detached": lambda t: t.detach().zero_(),
}


@pytest.mark.parametrize(
    "function", [lambda x, t: x * t, lambda x, t: gf.exp(x + t), lambda x, t: gf.where(x > 0, t, x) * x]
)
@pytest.mark.parametrize("how", list(CHANGES))
@pytest.mark.parametrize("what", ["argument", "constant argument", "closed over", "closed over constant", "computed"])
def test_a_change_in_place_between_the_runs_is_an_error(what: str, how: str, function: Any) -> None:
    x = leaf(1.0, 2.0)
    t = gf.tensor(np.array([3.0, 4.0]), requires_grad=what in ("argument", "closed over", "computed"))
    if what == "computed":
        t = t * 2.0
    y = gf.checkpoint(function, x, t) if "argument" in what else gf.checkpoint(lambda x: function(x, t), x)
    with gf.no_grad():
        CHANGES[how](t)
    with pytest.raises(RuntimeError, match=r"a tensor of shape \(2,\) that a checkpoint reads was changed in place"):
        y.sum().backward()
    assert grad_mode.current_observer.get() is None


def test_an_optimizer_step_between_the_runs_is_an_error() -> None:
    layer = nn.Linear(2, 2)
    optimizer = gf.optim.SGD(layer.parameters(), lr=0.1)
    x = gf.ones((1, 2), requires_grad=True)
    y = gf.checkpoint(layer, x)
    layer(x).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="that a checkpoint reads was changed in place"):
        y.sum().backward()


def test_changes_before_the_first_run_inside_it_and_after_the_backward_pass_are_allowed() -> None:
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    with gf.no_grad():
        w += 1.0

    def function(x: gf.Tensor) -> gf.Tensor:
        buffer = gf.zeros(2, dtype="float64")
        buffer += 2.0
        buffer[0] = 5.0
        return x * w * buffer

    y = gf.checkpoint(function, x)
    y.sum().backward()
    assert x.grad.tolist() == [20.0, 10.0]
    with gf.no_grad():
        w += 1.0


def test_a_change_of_what_is_not_read_and_of_the_result_are_allowed() -> None:
    x, other = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = gf.checkpoint(gf.exp, x)
    z = y.sum()
    with gf.no_grad():
        other += 1.0
        y *= 0.0
    z.backward()
    np.testing.assert_array_equal(host(x.grad), np.exp([1.0, 2.0]))


def test_a_change_after_a_pass_that_kept_the_graph_is_an_error_in_the_next() -> None:
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = gf.checkpoint(lambda x: gf.exp(x + w), x).sum()
    y.backward(retain_graph=True)
    with gf.no_grad():
        w += 1.0
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


OTHERWISE: dict[str, Callable[[gf.Tensor, gf.Tensor, int], Any]] = {
    "another shape": lambda x, w, run: (x * w)[:1] if run else x * w,
    "another tensor is read": lambda x, w, run: x * w if run else x * 2.0,
    "a tensor is not read": lambda x, w, run: x * 2.0 if run else x * w,
    "a constant": lambda x, w, run: gf.ones(2, dtype="float64") if run else x * w,
    "fewer results": lambda x, w, run: (x * w,) if run else (x * w, x),
}


@pytest.mark.parametrize("what", list(OTHERWISE))
def test_a_function_that_does_something_else_the_second_time_is_an_error(what: str) -> None:
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    runs: list[int] = []

    def function(x: gf.Tensor) -> Any:
        runs.append(1)
        return OTHERWISE[what](x, w, len(runs) - 1)

    out = gf.checkpoint(function, x)
    first = out[0] if isinstance(out, tuple) else out
    with pytest.raises(RuntimeError, match="the function of a checkpoint did something else when it was run again"):
        first.sum().backward()


def test_results_of_several_dtypes_raise() -> None:
    with pytest.raises(TypeError, match=r"of one dtype and on one device; got float64 on cpu, float32 on cpu"):
        gf.checkpoint(lambda x: (x, x.astype("float32")), leaf(1.0))
    x = leaf(1.0)
    y, constant = gf.checkpoint(lambda x: (x * 2.0, gf.ones(1)), x)
    assert constant.dtype is gf.float32
    y.backward()


@pytest.mark.parametrize("run", [1, 2])
def test_an_exception_in_either_run_leaves_generators_and_modes_as_they_were(run: int) -> None:
    x = leaf(1.0, 2.0)
    runs: list[int] = []

    def function(x: gf.Tensor) -> gf.Tensor:
        runs.append(1)
        y = gf.dropout(x, 0.5)
        if len(runs) == run:
            raise KeyError("mine")
        return y

    if run == 2:
        y = gf.checkpoint(function, x).sum()
        state = random.default_generator.state_dict()
        with pytest.raises(KeyError, match="mine"):
            y.backward()
        assert random.default_generator.state_dict() == state
    else:
        with pytest.raises(KeyError, match="mine"):
            gf.checkpoint(function, x)
    assert generator._used.get() is None
    assert grad_mode.current_observer.get() is None
    assert grad_mode.grad_enabled.get() is grad_mode.FAST


def test_an_observer_sees_both_runs() -> None:
    seen: list[str] = []

    class Names(observers.Observer):
        def forward(self, op: Any, inputs: Any, out: Any, parameters: Any) -> None:
            seen.append(op.name)

    x = leaf(1.0)
    with observers.observe(Names()):
        gf.checkpoint(gf.exp, x).backward()
    assert seen.count("exp") == 2


# ---------------------------------------------------------------------- memory


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive() -> int:
    return sum(type(thing) in (Tensor, Node, Leaf) for thing in gc.get_objects())


@pytest.mark.usefixtures("_no_collector")
def test_intermediate_values_are_freed_after_each_run() -> None:
    watches: list[weakref.ref[gf.Tensor]] = []

    def function(x: gf.Tensor) -> gf.Tensor:
        a = gf.exp(x)
        b = a * a
        watches.extend([weakref.ref(a), weakref.ref(b)])
        return gf.tanh(b)

    x = leaf(0.1, 0.2)
    y = gf.checkpoint(function, x).sum()
    assert [watch() for watch in watches] == [None, None]
    y.backward()
    assert len(watches) == 4
    assert [watch() for watch in watches] == [None] * 4


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("create_graph", [False, True])
def test_steps_leave_nothing_behind_without_the_garbage_collector(create_graph: bool) -> None:
    gf.manual_seed(0)
    model = Network()
    x = gf.random.normal((4, 8))

    def step() -> None:
        model.zero_grad()
        loss = (model(x, gf.checkpoint) ** 2).sum()
        loss.backward(create_graph=create_graph)
        if create_graph:
            gradients = [p.grad for p in model.parameters()]
            model.zero_grad()
            sum((g * g).sum() for g in gradients).backward()
        model.zero_grad()

    step()
    before = alive()
    for _ in range(10):
        step()
    assert alive() == before


@pytest.mark.slow
def test_the_peak_of_a_deep_network_is_lower() -> None:
    """20 layers of 256, a batch of 2,048: 20 activations of 2 MB without checkpoints; 5 and 4 with five segments.

    All other memory, gradients of activations and of weights, is the same for both; so the bound is not 9/20.
    """

    def peak(through: Callable[..., Any]) -> tuple[int, list[np.ndarray]]:
        gf.manual_seed(0)
        segments = [nn.Sequential(*[nn.Linear(256, 256, activation="tanh") for _ in range(4)]) for _ in range(5)]
        x = gf.random.normal((2048, 256))
        gc.collect()
        tracemalloc.start()
        try:
            y = x
            for segment in segments:
                y = through(segment, y)
            (y * y).mean().backward()
            return tracemalloc.get_traced_memory()[1], [host(s[0].weight.grad) for s in segments]
        finally:
            tracemalloc.stop()

    with_all, gradients = peak(plain)
    with_checkpoints, same = peak(gf.checkpoint)
    for a, b in zip(gradients, same, strict=True):
        np.testing.assert_array_equal(a, b)
    ratio = with_checkpoints / with_all
    assert with_all > 20 * 2048 * 256 * 4
    assert ratio < 0.65, (
        f"{with_checkpoints / 2**20:.1f} MB with checkpoints, {with_all / 2**20:.1f} MB without: {ratio:.2f}"
    )


def test_a_change_of_a_result_that_is_a_view_of_an_argument_is_detected() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    b = x * 1.0
    z = (b * b).sum()
    out = gf.checkpoint(lambda t: t.reshape(-1), b)
    with gf.no_grad():
        out.zero_()
    with pytest.raises(RuntimeError, match=r"input 0 of multiply, .* changed in place"):
        z.backward()


def test_a_second_backward_raises_and_the_arguments_are_freed() -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    y = gf.exp(x)
    watch = weakref.ref(y)
    z = gf.checkpoint(gf.sin, y)
    del y
    total = z.sum()
    total.backward()
    assert watch() is None
    with pytest.raises(RuntimeError, match="freed by an earlier backward pass"):
        total.backward()


def test_another_observer_sees_all_of_a_derivative_within_a_checkpoint() -> None:
    def part(x: Tensor) -> Tensor:
        with gf.enable_grad():
            return gf.grad(lambda x: (x * x * x).sum())(x)

    def seen(checkpointed: bool) -> list[str]:
        calls: list[str] = []

        class Everything(observers.Observer):
            def __getattribute__(self, name: str) -> Any:
                if name in vars(observers.Observer) and not name.startswith("__"):
                    calls.append(name)
                return super().__getattribute__(name)

        x = gf.ones(2, requires_grad=True)
        with observers.observe(Everything()):
            y = gf.checkpoint(part, x) if checkpointed else part(x)
            y.sum().backward()
        return calls

    calls = seen(True)
    assert calls.count("before_backward") == calls.count("after_backward") == 4
    assert set(seen(False)) == set(calls)


def test_detect_anomaly_knows_the_end_of_a_derivative_within_a_checkpoint() -> None:
    x = gf.ones(2, requires_grad=True)
    with gf.detect_anomaly():
        gf.checkpoint(lambda x: gf.grad(lambda x: (x * x * x).sum())(x), x).sum().backward()
        assert grad_mode.current_observer.get().passes == []  # type: ignore[union-attr]


def test_a_forwarder_forwards_everything() -> None:
    own = {name for name in vars(observers.Observer) if not name.startswith("__")}
    assert own == {name for name in vars(observers.Forwarder) if not name.startswith("__")}
