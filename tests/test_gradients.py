"""`gradients` of a recorded graph, and `retain_grad`."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.testing import assert_agree

torch = pytest.importorskip("torch")


def leaf(values: Any) -> gf.Tensor:
    return gf.tensor(values, dtype="float64", requires_grad=True)


# ---------------------------------------------------------------------- gradients


def test_gradients_by_leaves_and_computed_tensors_are_pytorchs(device: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4))

    def program(F: Any, w: Any, b: Any) -> tuple[Any, ...]:
        h = F.tanh(w * b)
        k = h * w + b
        return h, k, (h * k).sum(), (k * k * b).sum()

    w, b = leaf(values), leaf(values[::-1] * 0.5)
    tw, tb = (torch.tensor(t.tolist(), dtype=torch.float64, requires_grad=True) for t in (w, b))
    h, k, first, second = program(gf, w, b)
    th, tk, one, two = program(torch, tw, tb)
    found = gf.gradients([first, second], [w, h, b, k, first], retain_graph=True)
    expected = torch.autograd.grad([one, two], [tw, th, tb, tk, one], retain_graph=True)
    for name, g, e in zip(["w", "h", "b", "k", "first"], found, expected, strict=True):
        assert_agree(name, g, e.numpy(), bound=1e-12)
    cotangent = gf.ones((3, 4), dtype="float64") * 0.5
    found = gf.gradients(k, (w, b), cotangents=cotangent)
    expected = torch.autograd.grad(tk, (tw, tb), torch.full((3, 4), 0.5, dtype=torch.float64))
    for name, g, e in zip(["w", "b"], found, expected, strict=True):
        assert_agree(name, g, e.numpy(), bound=1e-12)
    assert w.grad is None
    assert b.grad is None


def test_the_result_is_like_the_inputs_and_grad_does_not_change(device: str) -> None:
    model = nn.MLP([3, 4, 2])
    x = gf.ones((5, 3), requires_grad=True)
    loss = model(x).square().mean()
    loss.backward(retain_graph=True)
    before = {name: p.grad.tolist() for name, p in model.named_parameters()}
    found = gf.gradients(loss, {"weights": dict(model.named_parameters()), "rest": (x, None, [loss])})
    assert found["rest"][1] is None
    assert found["rest"][2][0].tolist() == 1.0
    assert found["rest"][0].tolist() == x.grad.tolist()
    for name, p in model.named_parameters():
        assert found["weights"][name].tolist() == before[name]
        assert p.grad.tolist() == before[name]
        assert not found["weights"][name].requires_grad


def test_gradients_of_gradients(device: str) -> None:
    x = leaf([1.0, 2.0])
    y = (x * x * x).sum()
    first = gf.gradients(y, x, create_graph=True)
    second = gf.gradients(first.sum(), x, create_graph=True)
    third = gf.gradients(second.sum(), x)
    assert [t.tolist() for t in (first, second, third)] == [[3.0, 12.0], [6.0, 12.0], [6.0, 6.0]]
    penalty = (gf.gradients((x * x).sum(), x, create_graph=True) ** 2).sum()
    penalty.backward()
    assert x.grad.tolist() == [8.0, 16.0]


def test_a_graph_is_freed_or_retained(device: str) -> None:
    x = leaf([1.0, 2.0])
    y = (x * x).sum()
    gf.gradients(y, x, retain_graph=True)
    gf.gradients(y, x)
    with pytest.raises(RuntimeError, match="freed"):
        gf.gradients(y, x)


def test_results_share_no_memory(device: str) -> None:
    x, z = leaf([1.0, 2.0]), leaf([1.0, 2.0])
    cotangent = gf.ones(2, dtype="float64")
    a, b, c = gf.gradients(x + z, [x, z, x], cotangents=cotangent)
    a.zero_()
    assert b.tolist() == c.tolist() == cotangent.tolist() == [1.0, 1.0]


def test_hooks_see_what_passes(device: str) -> None:
    x = leaf([1.0, 2.0])
    y = x * 3.0
    seen: list[Any] = []
    y.register_hook(lambda g: seen.append(g.tolist()) or g * 10.0)
    x.register_hook(lambda g: g + 1.0)
    z = (y * y).sum()
    by_y, by_x = gf.gradients(z, (y, x), retain_graph=True)
    assert seen == [[6.0, 12.0]]
    assert by_y.tolist() == [60.0, 120.0]
    assert by_x.tolist() == [181.0, 361.0]
    y.retain_grad()
    gf.gradients(z, x, retain_graph=True)
    assert y.grad is None
    z.backward()
    assert y.grad.tolist() == [60.0, 120.0]


def test_within_a_captured_step_and_without_recording(device: str) -> None:
    w = gf.ones(3, requires_grad=True)

    @gf.capture
    def step(x: gf.Tensor) -> gf.Tensor:
        h = w * x
        return gf.gradients((h * h).sum(), (w, h))[0]

    for i in range(6):
        x = gf.full((3,), float(i))
        assert step(x).tolist() == [2.0 * i * i] * 3
    y = (w * w).sum()
    with gf.no_grad():
        assert gf.gradients(y, w).tolist() == [2.0] * 3


X, Y = gf.ones(2, requires_grad=True), gf.ones(2, requires_grad=True)
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "an unrelated input": (
        lambda: gf.gradients((X * 2.0).sum(), {"x": X, "y": [Y]}), RuntimeError,
        r"no output depends on inputs\['y'\]\[0\], a tensor of shape \(2,\).*detached",
    ),
    "an input of later": (lambda: gf.gradients((X * 2.0).sum(), X * 2.0), RuntimeError, "no output depends on inputs,"),
    "an input without": (lambda: gf.gradients(X.sum(), gf.ones(2)), RuntimeError, "inputs, .* not require grad: set"),
    "an output without": (lambda: gf.gradients(gf.ones(2).sum(), X), RuntimeError, "outputs, .* not require grad"),
    "no cotangent": (lambda: gf.gradients(X * 2.0, X), RuntimeError, r"outputs has shape \(2,\): reduce it"),
    "another cotangent": (lambda: gf.gradients(X * 2.0, X, gf.ones(3)), ValueError, "cotangent must be a tensor of"),
    "no list of cotangents": (lambda: gf.gradients([X * 2.0], X, gf.ones(2)), ValueError, "must be nested like"),
    "no input": (lambda: gf.gradients(X.sum(), []), ValueError, "inputs hold none"),
    "no output": (lambda: gf.gradients(None, X), ValueError, "outputs hold none"),
    "a function": (lambda: gf.gradients(lambda x: x, X), TypeError, "outputs is function: .*use gradflow.grad"),
    "an array": (lambda: gf.gradients(X.sum(), np.ones(2)), TypeError, "inputs is ndarray"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_tensors_without_gradients_are_refused(what: str) -> None:
    call, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        call()


def test_a_refused_call_leaves_the_graph_unchanged() -> None:
    y = (X * X).sum()
    with pytest.raises(RuntimeError, match="no output depends"):
        gf.gradients(y, [X, Y])
    assert gf.gradients(y, X).tolist() == [2.0, 2.0]


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": gf.grad,
    "value_and_grad": gf.value_and_grad,
    "jacobian": gf.jacobian,
    "hessian": gf.hessian,
    "vjp": lambda f: gf.vjp(f, X),
    "jvp": lambda f: gf.jvp(f, (X,), (X,)),
    "hvp": lambda f: gf.hvp(f, (X,), (X,)),
    "checkpoint": lambda f: gf.checkpoint(f, X),
    "gradcheck": lambda f: gf.gradcheck(f, leaf([1.0])),
    "gradgradcheck": lambda f: gf.gradgradcheck(f, leaf([1.0])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_given_a_tensor_points_to_gradients(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} takes a function; got a tensor .*gradients\(outputs, inputs\)"):
        TRANSFORMS[name]((X * X).sum())
    with pytest.raises(TypeError, match=f"^{name} takes a function; got int$"):
        TRANSFORMS[name](3)


@pytest.mark.parametrize("transform", [gf.grad, gf.value_and_grad, gf.jacobian, gf.hessian])
def test_a_transformed_function_keeps_the_name_of_the_function(transform: Any) -> None:
    def energy(x: gf.Tensor, *, scale: float = 2.0) -> gf.Tensor:
        """Half the square."""
        return (x * x).sum() * scale

    of_energy = transform(energy)
    assert (of_energy.__name__, of_energy.__doc__, of_energy.__module__) == ("energy", "Half the square.", __name__)
    assert list(inspect.signature(of_energy).parameters) == ["x", "scale"]
    assert transform(functools.partial(energy, scale=1.0))(gf.ones(2)) is not None
    assert not hasattr(transform(nn.Linear(2, 1)), "weight")


# ---------------------------------------------------------------------- retain_grad


def test_the_gradient_of_a_computed_tensor_is_kept_and_added_up_as_in_pytorch(device: str) -> None:
    x, tx = leaf([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    y, ty = x * 3.0, tx * 3.0
    for t in (y, ty):
        t.register_hook(lambda g: g * 2.0)
        t.retain_grad()
        t.register_hook(lambda g: g + 1.0)  # a hook registered later runs first, too
        t.retain_grad()
    z, tz = (y * y * y).sum(), (ty * ty * ty).sum()
    assert y.grad is None
    for _ in range(2):
        z.backward(retain_graph=True)
        tz.backward(retain_graph=True)
        assert y.grad.tolist() == ty.grad.tolist()
        assert x.grad.tolist() == tx.grad.tolist()
    assert not y.grad.requires_grad
    y.zero_grad()
    assert y.grad is None
    z.backward(retain_graph=True)
    y.grad = None
    z.backward()
    ty.grad = None
    tz.backward()
    assert y.grad.tolist() == ty.grad.tolist()


def test_a_retained_gradient_is_recorded_with_create_graph(device: str) -> None:
    x = leaf([1.0, 2.0])
    y = x * 3.0
    y.retain_grad()
    z = (y * y * y).sum()
    z.backward(create_graph=True)
    assert y.grad.requires_grad
    assert gf.gradients(y.grad.sum(), x, retain_graph=True).tolist() == [54.0, 108.0]
    z = (y * y).sum()
    z.backward()
    assert y.grad.tolist() == [33.0, 120.0]


def test_retained_gradients_share_no_memory(device: str) -> None:
    x = leaf([1.0, 2.0])
    y = x + 0.0
    w = y + 0.0
    y.retain_grad()
    w.retain_grad()
    w.backward(gf.ones(2, dtype="float64"))
    with gf.no_grad():
        y.grad.zero_()
    assert w.grad.tolist() == x.grad.tolist() == [1.0, 1.0]


def test_retain_grad_does_nothing_for_a_leaf_and_needs_requires_grad(device: str) -> None:
    x = leaf([1.0])
    x.retain_grad()
    (x * 2.0).sum().backward()
    assert x.grad.tolist() == [2.0]
    with pytest.raises(RuntimeError, match="that does not require grad: it has no gradient"):
        gf.ones(2).retain_grad()


def test_the_gradient_of_a_computed_tensor_warns_and_says_what_to_do() -> None:
    y = leaf([1.0]) * 2.0
    with pytest.warns(UserWarning, match=r"of multiply.*retain_grad\(\).*register_hook\(\).*gradflow.gradients\(\)"):
        assert y.grad is None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            assert y.grad is None
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert gf.ones(2).grad is None
    with pytest.raises(RuntimeError, match=r"only a leaf.*computed tensor: call retain_grad\(\)"):
        y.grad = gf.ones(1, dtype="float64")


def test_a_captured_step_that_retains_gradients_runs_normally(device: str) -> None:
    w = gf.ones(2, requires_grad=True)

    @gf.capture
    def step(x: gf.Tensor) -> Any:
        w.zero_grad()
        h = w * x
        h.retain_grad()
        (h * h).sum().backward()
        return h.grad

    for i in range(6):
        assert step(gf.full((2,), float(i))).tolist() == [2.0 * i] * 2
