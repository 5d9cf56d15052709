"""Parts of one tensor (indices, `split`, `unbind`, iteration): right gradients in every walk, in linear time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.autograd.leaf import GradientSlot
from gradflow.testing.fake import FakeBackend

ROWS, COLUMNS = 6, 4
MASK = np.arange(ROWS) % 3 > 0
KEYS: list[Any] = [
    2, -1, slice(1, 4), slice(None, None, -2), (slice(None), 1), (None, 3, ..., 2), ..., (4, 3), [0, 2, 2, -1],
    (slice(None), [1, 1]), ([0, 1, 1], 2), MASK, (MASK, 1), (slice(1, 5), np.array([True, False, True, True])),
]  # fmt: skip
"""Keys that overlap, so that their gradients are added."""


def placed(key: Any, device: str) -> Any:
    """A key with tensors of the device for its arrays."""
    if isinstance(key, tuple):
        return tuple(placed(k, device) for k in key)
    return gf.tensor(key, device=device) if isinstance(key, np.ndarray) else key


def by_index(x: gf.Tensor) -> list[gf.Tensor]:
    return [x[placed(key, str(x.device))] for key in KEYS]


def by_product(x: gf.Tensor) -> list[gf.Tensor]:
    """The same parts, each as the product of a matrix of zeros and ones with all elements."""
    found = []
    for key in KEYS:
        places = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)[key]
        matrix = gf.tensor(np.eye(ROWS * COLUMNS)[places.reshape(-1)], device=x.device)
        found.append((matrix @ x.reshape(-1)).reshape(places.shape))
    return found


def combined(x: gf.Tensor, parts: list[gf.Tensor]) -> gf.Tensor:
    """A scalar computed from all parts, and between them from the whole tensor, so that gradients of both kinds mix."""
    total = gf.sin(x).sum()
    for i, part in enumerate(parts):
        total = total + (gf.exp(part * (0.1 * i - 0.5)) * (i + 1)).sum()
        if i % 3 == 0:
            total = total + (x * x * (0.1 * i)).sum()
    return total


def start(device: str = "cpu") -> gf.Tensor:
    return gf.tensor(np.linspace(-1.0, 1.0, ROWS * COLUMNS).reshape(ROWS, COLUMNS), device=device, requires_grad=True)


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(
        actual.detach().cpu().numpy(), expected.detach().cpu().numpy(), rtol=1e-10, atol=1e-12
    )  # fmt: skip


def backward(function: Callable[[gf.Tensor], gf.Tensor], x: gf.Tensor) -> Any:
    function(x).backward()
    return x.grad


def twice(function: Callable[[gf.Tensor], gf.Tensor], x: gf.Tensor) -> Any:
    y = function(x)
    y.backward(retain_graph=True)
    y.backward()
    return x.grad


def second(function: Callable[[gf.Tensor], gf.Tensor], x: gf.Tensor) -> Any:
    function(x).backward(create_graph=True)
    first = x.grad
    x.grad = None
    assert first is not None
    gf.sin(first).sum().backward()
    return x.grad


def third(function: Callable[[gf.Tensor], gf.Tensor], x: gf.Tensor) -> Any:
    first = gf.grad(lambda x: gf.sin(gf.grad(function)(x) * 0.01).sum())
    return gf.grad(lambda x: gf.cos(first(x)).sum())(x)


def with_hooks(function: Callable[[gf.Tensor], gf.Tensor], x: gf.Tensor) -> Any:
    seen: list[gf.Tensor] = []
    with x.register_hook(lambda g: seen.append(g) or g * 2):  # type: ignore[func-returns-value]
        function(x).backward()
    assert len(seen) == 1, "the whole gradient, once"
    close(seen[0] * 2, x.grad)
    return x.grad


def watched(function: Callable[[gf.Tensor], gf.Tensor], x: gf.Tensor) -> Any:
    with gf.detect_anomaly():
        return backward(function, x)


def of_a_computed(function: Callable[[gf.Tensor], gf.Tensor], x: gf.Tensor) -> Any:
    return backward(lambda x: function(gf.tanh(x)), x)


WALKS: dict[str, Callable[..., Any]] = {
    "arrays": backward,
    "twice": twice,
    "second order": second,
    "third order": third,
    "hooks": with_hooks,
    "observer": watched,
    "computed": of_a_computed,
    "wanted": lambda f, x: gf.grad(f)(x),
    "checkpoint": lambda f, x: backward(lambda x: gf.checkpoint(f, x), x),
    "jacobian": lambda f, x: gf.jacobian(gf.grad(f))(x),
    "hessian": lambda f, x: gf.hessian(f)(x),
    "hvp": lambda f, x: gf.hvp(f, (x,), (gf.cos(x.detach()),))[0],
    "jvp": lambda f, x: gf.jvp(gf.grad(f), (x,), (gf.cos(x.detach()),))[1],
}


@pytest.mark.parametrize("walk", WALKS)
def test_parts_of_one_tensor_add_up_in_every_walk(walk: str, device: str) -> None:
    found = WALKS[walk](lambda x: combined(x, by_index(x)), start(device))
    close(found, WALKS[walk](lambda x: combined(x, by_product(x)), start(device)))


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("axis", [0, 1])
def test_unbind_split_and_iteration_are_indices(walk: str, axis: int) -> None:
    def rows(x: gf.Tensor) -> list[gf.Tensor]:
        x = x if axis == 0 else x.T
        return [*gf.unbind(x), *(p[0] for p in gf.split(x, x.shape[0])), *x, *gf.unbind(x.T, axis=1)]

    def indexed(x: gf.Tensor) -> list[gf.Tensor]:
        return [x[i] if axis == 0 else x[:, i] for _ in range(4) for i in range(x.shape[axis])]

    for part, same in zip(rows(start()), indexed(start()), strict=True):
        close(part, same)
    close(*(WALKS[walk](lambda x, of=of: combined(x, of(x)), start()) for of in (rows, indexed)))


def test_stack_undoes_unbind() -> None:
    x = start()
    for axis in (0, 1, -1):
        close(gf.stack(gf.unbind(x, axis), axis), x)
    with pytest.raises(ValueError, match="axis 2 is out of range"):
        gf.unbind(x, 2)
    with pytest.raises(ValueError, match="axis 0 is out of range"):
        gf.unbind(gf.tensor(1.0))


def test_a_gradient_of_parts_is_not_shared() -> None:
    """No hook, node or leaf gets the sum of parts before it is complete, and after that it does not change."""
    x, y = start(), start()
    z = x * 1.0 + y * 1.0  # x and y get one gradient
    kept: list[Any] = []
    z.register_hook(lambda g: kept.append((g, g.clone())))
    z[0].register_hook(lambda g: kept.append((g, g.clone())))
    (z[0] * 2 + z[1] + z[0]).sum().backward()
    (x[0] * 3).sum().backward()
    for g, copy in kept:
        close(g, copy)
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad[:2, 0].tolist() == [6.0, 1.0]
    assert y.grad[:2, 0].tolist() == [3.0, 1.0]


def test_a_gradient_passed_to_backward_is_not_changed() -> None:
    x = start()
    y = x * 1.0
    both = gf.concat([y.reshape(-1), y[0], y[1]])
    given = gf.ones(both.shape, dtype="float64")
    y_given = gf.ones(y.shape, dtype="float64")
    both.backward(given, retain_graph=True)
    y[...].backward(y_given)
    assert given.numpy().all()
    assert (y_given.numpy() == 1).all()


def test_parts_in_a_captured_step_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [start(), start()]
    target = start().detach()
    runs = []

    def step(w: gf.Tensor, t: gf.Tensor) -> gf.Tensor:
        w.zero_grad()
        loss = sum(((a - b.cos()) ** 2).sum() * (i + 1) for i, (a, b) in enumerate(zip(w, t, strict=True)))
        loss = loss + sum((part * part).sum() for part in gf.split(w, 2, axis=1))
        loss.backward()
        return loss

    class Model(gf.nn.Module):
        def __init__(self, w: gf.Tensor) -> None:
            super().__init__()
            self.w = gf.nn.Parameter(w.detach())

    models = [Model(w) for w in weights]
    optimizers = [gf.optim.SGD(m.parameters(), lr=0.01) for m in models]

    def run(i: int, t: gf.Tensor) -> gf.Tensor:
        runs.append(i)
        loss = step(models[i].w, t)
        optimizers[i].step()
        return loss

    captured = gf.capture(lambda t: run(1, t))
    for _ in range(8):
        assert run(0, target).item() == captured(target).item()
        close(models[0].w, models[1].w)
    assert runs.count(1) < 8, "replayed"


# ---------------------------------------------------------------------- linear time

PARTS: dict[str, Callable[[gf.Tensor], list[gf.Tensor]]] = {
    "split": lambda x: gf.split(x, x.shape[0]),
    "unbind": lambda x: gf.unbind(x),
    "iteration": list,
    "integers": lambda x: [x[i] for i in range(x.shape[0])],
    "slices": lambda x: [x[i : i + 1, 1:] for i in range(x.shape[0])],
    "along another axis": lambda x: gf.unbind(x.T, axis=1),
}


def touched(n: int, of: Callable[[gf.Tensor], list[gf.Tensor]], walk: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The elements of all arrays that the backward pass through n parts makes on a device."""
    x = gf.tensor(np.ones((n, 3)), device="fake", requires_grad=True)
    y = gf.concat([(part * part).reshape(-1) for part in of(x)]).sum()
    count = 0
    wrap = FakeBackend._wrap

    def counting(self: Any, values: Any, sources: Any = ()) -> Any:
        nonlocal count
        count += np.asarray(values).size
        return wrap(self, values, sources)

    with monkeypatch.context() as patch:
        patch.setattr(FakeBackend, "_wrap", counting)
        y.backward(create_graph=walk == "create_graph", retain_graph=walk == "retain_graph")
        if walk == "create_graph":
            assert x.grad is not None
            (x.grad * x.grad).sum().backward()
    return count


@pytest.mark.parametrize("walk", ["arrays", "retain_graph", "create_graph"])
@pytest.mark.parametrize("of", PARTS)
def test_the_gradients_of_parts_cost_what_the_parts_hold(of: str, walk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (touched(n, PARTS[of], walk, monkeypatch) for n in (20, 200))
    assert large <= 10.5 * small


TILINGS: dict[str, Callable[[gf.Tensor], list[gf.Tensor]]] = {
    "all": lambda x: gf.split(x, [2, 3]),
    "in another order": lambda x: gf.split(x, [2, 3])[::-1] + gf.split(x, 3)[1:],
    "empty ones": lambda x: gf.split(x, [0, 2, 2, 6]),
    "cuts in descending order": lambda x: gf.split(x, [4, 2]),
    "cuts from the end": lambda x: gf.split(x, [2, -1]),
    "cuts beyond the end": lambda x: gf.split(x, [3, 9]),
    "one is missing": lambda x: gf.unbind(x)[1:],
    "one is there twice": lambda x: [*gf.unbind(x)[1:], x[1]],
    "one is larger": lambda x: [*gf.unbind(x)[:4], x[-2:]],
    "as many elements": lambda x: [x[:3], x[:3], x[1:4]],
    "the last is missing": lambda x: gf.unbind(x)[:-1],
    "two axes": lambda x: [*gf.unbind(x, 1)[:3], x[3]],
    "two axes, all": lambda x: gf.unbind(x) + gf.unbind(x, 1),
    "one alone": lambda x: gf.split(x, 1),
    "integers and ranges": lambda x: [x[0], *gf.split(x, [1])[1:]],
    "a key of two parts": lambda x: [x[5, :], *gf.unbind(x)[1:]],
    "an array of integers": lambda x: [*gf.unbind(x)[:2], x[[2, 3, 4, 5, 5]]],
}
"""Parts that cover the tensor, and parts that seem to."""


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("of", TILINGS)
def test_parts_that_cover_a_tensor_are_joined_and_others_added(of: str, walk: str) -> None:
    def squares(x: gf.Tensor) -> gf.Tensor:
        return sum(
            ((part * part * part).sum() * (i + 1) for i, part in enumerate(TILINGS[of](x))), start=gf.tensor(0.0)
        )

    def by_mask(x: gf.Tensor) -> gf.Tensor:
        """The same number by the indices of the parts, without a part."""
        places = gf.tensor(np.arange(x.size).reshape(x.shape))
        total = gf.tensor(0.0)
        for i, part in enumerate(TILINGS[of](places)):
            counts = np.bincount(part.numpy().reshape(-1), minlength=x.size).reshape(x.shape)
            total = total + (x * x * x * gf.tensor(counts.astype("float64") * (i + 1))).sum()
        return total

    close(WALKS[walk](squares, start()), WALKS[walk](by_mask, start()))


def test_a_jacobian_by_parts_adds_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    wholes = []
    scatter_add = FakeBackend.scatter_add

    def counting(self: Any, values: Any, key: Any, shape: Any, into: Any = None) -> Any:
        wholes.append(into is None)
        return scatter_add(self, values, key, shape, into)

    monkeypatch.setattr(FakeBackend, "scatter_add", counting)
    x = gf.tensor(np.ones((20, 3)), device="fake")
    gf.jacobian(lambda x: gf.stack([gf.sin(x[i]).sum() for i in range(19)]))(x)
    assert len(wholes) == 19
    assert sum(wholes) == 1


def test_embeddings_looked_up_in_a_loop_add_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = gf.get_backend("cpu")
    wholes = []
    scatter_add = backend.scatter_add

    def counting(values: Any, key: Any, shape: Any, into: Any = None) -> Any:
        wholes.append(into is None)
        return scatter_add(values, key, shape, into)

    monkeypatch.setattr(backend, "scatter_add", counting, raising=False)
    table = gf.ones((50, 3), requires_grad=True)
    sum((table[[i, i, i + 1]] * 1.0).sum() for i in range(20)).backward()  # type: ignore[union-attr]
    assert wholes == [True] + [False] * 19
    assert table.grad is not None
    assert table.grad[:3, 0].tolist() == [2.0, 3.0, 3.0]


class Counted(list[Any]):
    """A list that counts the elements read from it."""

    read = 0

    def __iter__(self) -> Any:
        Counted.read += len(self)
        return super().__iter__()


def test_views_of_a_gradient_are_recorded_in_linear_time() -> None:
    model = gf.nn.Linear(2, 3000)
    optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    model(gf.ones((1, 2))).sum().backward()
    gradient = model.weight.grad
    assert gradient is not None
    memory = gradient._memory
    assert isinstance(memory, GradientSlot)
    memory.holders = Counted(memory.holders)
    rows = list(gradient)
    assert Counted.read <= 2 * len(rows)
    assert len(memory.holders) > len(rows)
    del rows
    for _ in range(10_000):
        gradient[0]
    assert len(memory.holders) <= 130, "references to dead tensors are dropped"
    optimizer.step()
