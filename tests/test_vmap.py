"""`vmap` is a loop over the examples, in one call of each operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.tree import flatten
from tests.cases import CASES, FUNCTIONS, Case
from tests.devices import require

_seen: Counter[str] = Counter()
TABLE = [
    case
    for case in CASES
    if "dropout" not in case.covers
    and _seen.update(case.covers) is None
    and min(_seen[name] for name in case.covers) <= 2
]
"""Two cases for each operation: dropout draws random numbers, which `vmap` refuses."""


def examples(x: np.ndarray) -> gf.Tensor:
    """Two examples like x, with the same numbers in another order."""
    other = np.roll(x.reshape(-1), 1).reshape(x.shape)
    return gf.tensor(np.stack([x, other]), dtype="float64" if x.dtype.kind == "f" else str(x.dtype))


def assert_close(found: Any, expected: Any) -> None:
    for (path, a), (_, b) in zip(flatten(found), flatten(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-12, atol=1e-13, err_msg=path)


def looped(f: Callable[..., Any], *batches: Any, axes: Any = None) -> Any:
    """What f returns for each example, a list or tuple, stacked; the batches with an axis of None are shared."""
    axes = (0,) * len(batches) if axes is None else axes
    count = next(len(b) for b, axis in zip(batches, axes, strict=True) if axis == 0)
    rows = [f(*[b if axis is None else b[i] for b, axis in zip(batches, axes, strict=True)]) for i in range(count)]
    return type(rows[0])([gf.stack(list(parts)) for parts in zip(*rows, strict=True)])


def test_the_table_is_whole() -> None:
    assert {*FUNCTIONS} - {name for case in TABLE for name in case.covers} == {"dropout"}


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_an_operation_and_its_gradient_are_those_of_a_loop(case: Case) -> None:
    def call(*inputs: gf.Tensor) -> list[gf.Tensor]:
        out = case.call(*inputs)
        return list(out) if isinstance(out, (tuple, list)) else [out]

    def weighted(*inputs: gf.Tensor) -> gf.Tensor:
        terms = [(y * gf.reshape(gf.arange(y.size, dtype="float64") - 1.3, y.shape)).sum() for y in call(*inputs)]
        return gf.stack(terms).sum()

    batches = [examples(np.asarray(x)) for x in case.inputs]
    assert_close(gf.vmap(call)(*batches), looped(call, *batches))
    numbers = case.differentiable()
    gradient = gf.grad(weighted, tuple(numbers))
    if numbers:
        assert_close(gf.vmap(gradient)(*batches), looped(gradient, *batches))
    if numbers and len(batches) > 1:  # the first is shared by all examples
        axes = (None, *[0] * (len(batches) - 1))
        batches[0] = batches[0][0]
        assert_close(gf.vmap(gradient, axes)(*batches), looped(gradient, *batches, axes=axes))


@pytest.mark.slow  # the import of torch.func
def test_gradients_of_each_sample_are_pytorchs(device: str) -> None:
    torch = pytest.importorskip("torch")
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).to("float64")
    x, t = gf.random.normal((6, 5), dtype="float64"), gf.tensor([0, 2, 1, 1, 0, 2], dtype="int64")
    parameters = dict(model.named_parameters())

    def loss(p: Any, x: Any, t: Any) -> Any:
        return gf.cross_entropy(nn.functional_call(model, p, x[None]), t[None])

    found = gf.vmap(gf.grad(loss), in_axes=(None, 0, 0))(parameters, x, t)
    twin = torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)
    ).double()
    values = {name: torch.from_numpy(p.detach().numpy()) for name, p in parameters.items()}

    def theirs(p: Any, x: Any, t: Any) -> Any:
        return torch.nn.functional.cross_entropy(torch.func.functional_call(twin, p, (x[None],)), t[None])

    expected = torch.func.vmap(torch.func.grad(theirs), in_dims=(None, 0, 0))(
        values, torch.from_numpy(x.numpy()), torch.from_numpy(t.numpy())
    )
    assert found.keys() == expected.keys()
    for name, g in found.items():
        np.testing.assert_allclose(g.detach().numpy(), expected[name].numpy(), rtol=1e-12, atol=1e-14)


W = gf.random.normal((3, 3), dtype="float64", generator=gf.Generator(1))
X = gf.random.normal((4, 3), dtype="float64", generator=gf.Generator(2))


def layer(x: gf.Tensor) -> gf.Tensor:
    return gf.tanh(W @ x)


def several(x: gf.Tensor) -> gf.Tensor:
    """More than twice as many results as arguments, so that a Jacobian is computed by columns."""
    return gf.concat([layer(x), layer(x * 2), x * x])


def shared_layers(w: gf.Tensor, x: gf.Tensor) -> gf.Tensor:
    """The forward kernels get what all examples share, the backward kernels gradients of each."""
    h = gf.layer_norm(gf.linear(W, w, w[0], activation="gelu"), 3)
    losses = gf.cross_entropy(h, gf.tensor([0, 1, 2], dtype="int64"), reduction="none") + gf.mse_loss(h, W)
    return (losses * x).sum()


TRANSFORMS: dict[str, Callable[[gf.Tensor], gf.Tensor]] = {
    "jacobian": gf.jacobian(layer),
    "jacobian by columns": gf.jacobian(several),
    "hessian": gf.hessian(lambda x: layer(x).sum()),
    "hessian of what all share": lambda x: gf.hessian(lambda w: gf.tanh(w @ x).sum())(W),
    "layers that all share": lambda x: gf.grad(shared_layers)(W, x),
    "jvp": lambda x: gf.jvp(layer, (x,), (x * 2,))[1],
    "jvp with a shared tangent": lambda x: gf.jvp(layer, (x,), (W[0],))[1],
    "vjp": lambda x: gf.vjp(layer, x)[1](x)[0],
    "hvp": lambda x: gf.hvp(lambda y: layer(y).sum(), (x,), (x,))[0],
    "vmap": lambda x: gf.vmap(lambda y: x * y.sum())(X),
    "vmap of a gradient": lambda x: gf.vmap(gf.grad(lambda y: (x * layer(y)).sum()))(X * x),
    "checkpoint": gf.jacobian(lambda x: gf.checkpoint(layer, x)),
    "a checkpoint of a gradient": lambda x: gf.checkpoint(lambda y: gf.grad(lambda w: layer(w @ y).sum())(W)[0], x),
    "a custom operation": gf.grad(lambda x: softsign(x).sum()),
    "gradients": lambda x: gf.gradients(layer(x).sum(), x) if x.requires_grad else x,
    "a network": lambda x: MODEL(x),
    "a NumPy array": lambda x: x * np.arange(3.0) @ np.eye(3),
    "an index that differs": lambda x: X[gf.argmax(x)],
    "elements that differ": lambda x: W[0].at[gf.argsort(x)[:2]].add(x[:2]),
    "a mask": lambda x: x.at[x > 0].set(5.0),
    "a loop over elements": lambda x: gf.stack([v * i for i, v in enumerate(x)]),
    "what does not depend on the example": lambda x: W.sum(axis=0),
}
softsign = gf.operation(
    "softsign",
    lambda F, x: F.divide(x, F.add(F.abs(x), 1.0)),
    lambda F, g, _out, x: F.divide(g, F.square(F.add(F.abs(x), 1.0))),
)
MODEL = nn.MLP([3, 4, 2], dtype="float64")
NORM = nn.BatchNorm1d(3, dtype="float64")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_inside_and_outside_are_those_of_a_loop(name: str) -> None:
    f = TRANSFORMS[name]

    def loop(x: gf.Tensor) -> gf.Tensor:
        return gf.stack([f(row) for row in x])

    assert_close(gf.vmap(f)(X), loop(X))
    assert_close(gf.jacobian(gf.vmap(f))(X), gf.jacobian(loop)(X))
    hessians = [gf.hessian(lambda x, g=g: g(x).square().sum())(X[:2]) for g in (gf.vmap(f), loop)]
    assert_close(*hessians)


def test_a_model_trains_through_vmap_like_on_a_batch(device: str) -> None:
    gradients = []
    for through in (lambda model: model, lambda model: gf.vmap(model)):
        gf.manual_seed(0)
        model = nn.MLP([3, 4, 2]).to("float64")
        optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
        loss = through(model)(X.to(device)).square().mean()
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        optimizer.step()
        gradients[-1] += list(model.parameters())
    assert_close(*gradients)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dtypes_stay(dtype: str) -> None:
    x, w = X.astype(dtype), W.astype(dtype)
    f = gf.grad(lambda w, x: gf.softmax(w @ x * 0.5).square().sum())
    found = gf.vmap(f, (None, 0))(w, x)
    assert found.dtype == x.dtype
    expected = gf.stack([f(w, row) for row in x]).astype("float64")
    bound = {"float16": 1e-3, "float32": 1e-6}[dtype]
    np.testing.assert_allclose(found.astype("float64").numpy(), expected.numpy(), atol=bound)


@pytest.mark.parametrize("place", ["fake", "strict"])
def test_gradients_of_each_example_on_other_devices_are_those_on_the_cpu(place: str) -> None:
    require(place)
    found = gf.vmap(gf.grad(lambda w, x: gf.softmax(w @ x).square().sum()), (None, 0))(W.to(place), X.to(place))
    assert found.device.type == place
    assert_close(found.cpu(), gf.stack([gf.grad(lambda w, x=x: gf.softmax(w @ x).square().sum())(W) for x in X]))


def test_axes_are_nested_like_arguments_and_results() -> None:
    def f(p: Any, c: Any, scale: float = 1.0) -> Any:
        return {"sum": (p["a"] + p["b"][0]) * scale, "same": (c,)}

    a, b = X, X.T
    found = gf.vmap(f, ({"a": 0, "b": [1]}, None), {"sum": 1, "same": None})({"a": a, "b": [b]}, W, scale=2.0)
    assert_close(found, {"sum": (X * 4).T, "same": (W,)})
    assert_close(gf.vmap(layer, -1, -1)(X.T), gf.vmap(layer)(X).T)
    assert gf.vmap(layer)(X[:0]).shape == (0, 3)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "if": (lambda: gf.vmap(lambda x: x if x.sum() > 0 else -x)(X), RuntimeError, "use gradflow.where in place of if"),
    "item": (lambda: gf.vmap(lambda x: gf.tensor(x[0].item()))(X), RuntimeError, "cannot be read"),
    "mask": (lambda: gf.vmap(lambda x: x[x > 0])(X), RuntimeError, r"x\[mask\] would have another shape"),
    "unique": (lambda: gf.vmap(gf.unique_values)(X), RuntimeError, "another shape for each example"),
    "random": (lambda: gf.vmap(lambda x: x + gf.random.normal((3,)))(X), RuntimeError, "no random numbers are drawn"),
    "dropout": (lambda: gf.vmap(nn.Dropout(0.5))(X), RuntimeError, r"model.eval\(\) turns dropout off"),
    "in place": (lambda: gf.vmap(lambda x: x.zero_())(X), RuntimeError, "cannot be changed in place"),
    "in place from outside": (
        lambda: gf.vmap(changes_outside)(X),
        RuntimeError,
        "would change one from outside in place",
    ),
    "batch norm": (
        lambda: gf.vmap(NORM)(X[None]),
        RuntimeError,
        r"leaves its running statistics alone after .*eval\(\)",
    ),
    "dlpack": (lambda: gf.vmap(gf.from_dlpack)(X), RuntimeError, "cannot be read"),
    "assigned": (lambda: gf.vmap(assigned)(X), RuntimeError, "would change one from outside in place"),
    "backward": (
        lambda: gf.vmap(lambda w: w.sum().backward())(leaf()),
        RuntimeError,
        "use gradflow.grad",
    ),
    "gradients": (lambda: gf.vmap(outer_gradient)(X), RuntimeError, "comes from outside of this vmap"),
    "ended": (lambda: escaped(), RuntimeError, "add got a tensor of a vmap that has ended"),
    "arithmetic": (lambda: gf.vmap(doubled)(X), TypeError, r"an operation calls functions of F only"),
    "lengths": (lambda: gf.vmap(gf.add)(X, X[:2]), ValueError, r"got 4 in argument\[0\], 2 in argument\[1\]"),
    "nothing mapped": (lambda: gf.vmap(layer, None)(X), ValueError, "all in_axes are None"),
    "axes": (
        lambda: gf.vmap(layer, (0, 0))(X),
        ValueError,
        r"nested like the arguments; got \(0, 0\) for tuple of length 1",
    ),
    "an axis": (lambda: gf.vmap(layer, 2)(X), ValueError, "axis 2 is out of range"),
    "no axis": (lambda: gf.vmap(lambda x: x)(X[0, 0]), ValueError, "has no axes for the examples"),
    "out_axes": (lambda: gf.vmap(layer, 0, None)(X), ValueError, "result depends on the example"),
    "a number": (
        lambda: gf.vmap(gf.add)(X, 1.0),
        TypeError,
        r"argument\[1\] is float: make .* or give it None in in_axes",
    ),
    "no tensor": (lambda: gf.vmap(lambda x: 1.0)(X), TypeError, "returns tensors; result is float"),
    "a tensor": (lambda: gf.vmap(X), TypeError, "vmap takes a function"),  # type: ignore[arg-type]
}
doubled = gf.operation("doubled", lambda F, x: x * 2, lambda F, g, _out, _x: g)


def leaf() -> gf.Tensor:
    return X.clone().requires_grad_()


def assigned(x: gf.Tensor) -> gf.Tensor:
    out = gf.zeros(3, dtype="float64")
    out[0] = x[0]
    return out


def changes_outside(x: gf.Tensor) -> gf.Tensor:
    total = gf.zeros(3, dtype="float64")
    total += x
    return total


def outer_gradient(x: gf.Tensor) -> gf.Tensor:
    w = W.clone().requires_grad_()
    found: gf.Tensor = gf.gradients((w @ x).sum(), w)
    return found


def escaped() -> None:
    kept: list[gf.Tensor] = []
    gf.vmap(lambda x: kept.append(x) or x)(X)  # type: ignore[func-returns-value]
    gf.vmap(lambda x: x + kept[0])(X)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_for_all_examples_at_once_is_refused_with_advice(name: str) -> None:
    call, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        call()
    assert gf.vmap(layer)(X).shape == (4, 3)  # nothing stays behind


def test_tools_see_all_examples(capsys: Any) -> None:
    gf.vmap(lambda x: (print(x), x)[1])(X)
    assert capsys.readouterr().out == "tensor(one of 4 in vmap, shape=(3,), dtype=float64, device=cpu)\n"
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    y = gf.vmap(lambda x: (w * x).sum())(gf.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert "v2 = v1 * v3 = (not kept)\nv4 = sum(v2) = (not kept)\ny = vmap(v4) = [1 2]" in str(gf.draw(y))
    assert "v1 = vmap(w) = (not kept)   (moves: " in str(gf.explain(y.sum()))
    gf.gradgradcheck(gf.vmap(layer), X[:2].clone().requires_grad_())
    with pytest.raises(gf.NonFiniteError, match=r"multiply gave inf at index \(0, 0\)"), gf.detect_anomaly():
        gf.vmap(lambda x: x * float("inf"))(X.abs())
    step = gf.capture(gf.vmap(lambda x: x * 2))
    for _ in range(3):
        assert step(X).tolist() == (X * 2).tolist()
    assert "calls vmap" in step.status
