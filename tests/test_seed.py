"""The kept seed of backward passes: the number 1 that `backward()` starts from, which nobody can change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradflow as gf


@pytest.fixture
def seed(device: str) -> Any:
    """The kept seed for float32, which must be 1 at the end of the test as well."""
    backend = gf.get_backend()
    kept = backend.seed(backend.single)
    yield kept
    assert backend.seed(backend.single) is kept
    assert backend.to_host(kept) == 1


def test_the_seed_is_made_once(seed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one for each dtype, and a backward pass fills no array with ones."""
    backend = gf.get_backend()
    assert (seed.shape, seed.dtype) == ((), backend.single)
    assert backend.seed(backend.double) is not seed
    assert backend.seed(backend.double).dtype == backend.double
    x = gf.ones(3, requires_grad=True)
    monkeypatch.setattr(backend, "ones", lambda *_, **__: pytest.fail("ones"))
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


def test_a_leaf_gets_an_array_of_its_own(seed: Any) -> None:
    for slot in (False, True):
        x = gf.tensor(3.0, requires_grad=True)
        optimizer = gf.optim.SGD([x], lr=0.5) if slot else None
        x.backward()
        assert x.grad.array is not seed
        x.backward()
        (x + 0.0).backward()
        assert x.grad.item() == 3
        with gf.no_grad():
            x.grad[...] = 6.0
        assert x.grad.item() == 6
        if optimizer is not None:
            optimizer.step()
            assert x.item() == 0


def test_a_hook_and_a_retained_gradient_are_no_seed(seed: Any) -> None:
    """The hook breaks the rules: it changes the gradient in place, which raises, but not the seed."""
    x = gf.tensor(3.0, requires_grad=True)

    def change(g: Any) -> None:
        g[...] = 2.0

    for tensor in (y := x + 1.0, x):
        with tensor.register_hook(change), pytest.raises(RuntimeError, match="in place"):
            y.backward(retain_graph=True)
    x.grad = None
    y = x + 1.0
    y.retain_grad()
    y.backward()
    with gf.no_grad():
        y.grad[...] = 4.0
    assert (x.grad.item(), y.grad.item()) == (1, 4)


def test_recorded_passes_and_transforms_are_no_seed(seed: Any) -> None:
    x = gf.tensor(3.0, requires_grad=True)
    y = x + 1.0
    y.backward(create_graph=True)
    with gf.no_grad():
        x.grad[...] = 2.0
    (found,) = (gf.grad(lambda z: z + 0.0)(x),)
    with gf.no_grad():
        found[...] = 2.0
    assert found.item() == 2


def test_the_rule_of_a_custom_operation_may_change_its_gradient(seed: Any) -> None:
    def rule(F: Any, g: Any, out: Any, _x: Any) -> Any:
        g[...] = 7.0
        return g

    same = gf.operation("same", lambda F, x: F.add(x, 0.0), rule)
    x = gf.tensor(3.0, requires_grad=True)
    same(x).backward()
    assert x.grad.item() == 7


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_a_tensor_with_axes_starts_from_an_array_of_its_shape(seed: Any, shape: tuple[int, ...]) -> None:
    x = gf.ones(shape, requires_grad=True)
    (x * 3.0).backward()
    assert x.grad.shape == shape
    assert x.grad.numpy().tolist() == np.full(shape, 3.0).tolist()


def test_a_captured_step_starts_from_the_seed(seed: Any) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    optimizer = gf.optim.SGD([x], lr=0.25)

    @gf.capture
    def step(t: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        loss = ((x - t) * (x - t)).sum()
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(gf.zeros(2)).item() for _ in range(5)]
    assert losses == [5.0 / 4**i for i in range(5)]
