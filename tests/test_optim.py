"""Optimizers: flat buffers, which parameters are updated and when, state, clipping, memory."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_write_an_optimizer import Lion
from twin import twin_device

import gradflow as gf
from gradflow import nn, optim
from gradflow.optim import SGD, Adam, AdamW, Optimizer, RMSprop, clip_grad_norm_, clip_grad_value_, schedules
from gradflow.testing import assert_agree, eps, host

MAKERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "SGD dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "SGD nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: Adam(p, lr=0.01, weight_decay=0.01),
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "RMSprop": lambda p: RMSprop(p, lr=0.01),
    "RMSprop all": lambda p: RMSprop(p, lr=0.01, momentum=0.5, centered=True, weight_decay=0.01),
    "AdamW amsgrad": lambda p: AdamW(p, lr=0.01, amsgrad=True, maximize=True),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01, weight_decay=0.01),
    "Lion": lambda p: Lion(p, lr=0.01, weight_decay=0.1),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def parameter(values: Any, dtype: str = "float32") -> gf.Tensor:
    return gf.tensor(values, dtype=dtype, requires_grad=True)


def network(dtype: str = "float32") -> nn.Module:
    return nn.MLP([3, 5, 2], activation="tanh", dtype=dtype, generator=gf.Generator(1))


def data(step: int, dtype: str = "float32") -> tuple[gf.Tensor, gf.Tensor]:
    rng = np.random.default_rng(step)
    return gf.tensor(rng.normal(size=(8, 3)).astype(dtype)), gf.tensor(rng.normal(size=(8, 2)).astype(dtype))


def backward(model: nn.Module, step: int = 0) -> gf.Tensor:
    x, y = data(step, str(next(model.parameters()).dtype))
    loss = gf.mse_loss(model(x), y)
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def values(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: host(p).copy() for name, p in model.named_parameters()}


def assert_same(model: nn.Module, expected: dict[str, np.ndarray]) -> None:
    for name, p in model.named_parameters():
        assert_agree(name, p, expected[name])


def shares(a: Any, b: Any) -> bool:
    """Whether a change of one array shows in the other, for arrays of any library."""
    before = host(gf.Tensor(b, gf.get_backend())).copy()
    a[...] = a + 1
    changed = bool((host(gf.Tensor(b, gf.get_backend())) != before).any())
    a[...] = a - 1
    return changed


# ---------------------------------------------------------------------- flat buffers


@pytest.mark.parametrize(("dtype", "elements"), [("float32", 64), ("float64", 32)])
def test_parameters_are_views_of_one_array_at_multiples_of_256_bytes(device: str, dtype: str, elements: int) -> None:
    model = network(dtype)
    before = values(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    (block,) = optimizer._blocks
    assert_same(model, before)
    assert [m.start % elements for m in block.slices] == [0] * 4
    assert [m.start for m in block.slices] == [0, elements, 2 * elements, 3 * elements]
    for m, p in zip(block.slices, model.parameters(), strict=True):
        assert m.tensor is p
        assert shares(block.values, p.array)
        flat = host(gf.Tensor(block.values, p.backend))
        np.testing.assert_array_equal(flat[m.start : m.stop].reshape(p.shape), host(p))


def test_gradients_are_written_directly_into_the_buffer(device: str) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    (block,) = optimizer._blocks
    for step in range(2):
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        backward(model, step)
        for m, p in zip(block.slices, model.parameters(), strict=True):
            assert p.grad.array is m.gradient
            assert shares(block.gradients, p.grad.array)
        optimizer.step()


@every_optimizer
def test_the_padding_stays_zero(device: str, make: Callable[[Any], Optimizer]) -> None:
    model = network()
    optimizer = make(model.parameters())
    (block,) = optimizer._blocks
    train(model, optimizer, range(3))
    for _ in range(2):
        clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    inside = np.zeros(block.size, dtype=bool)
    for m in block.slices:
        inside[m.start : m.stop] = True
    assert not inside.all()
    for name, flat in {"values": block.values, "gradients": block.gradients, **block.state}.items():
        outside = host(gf.Tensor(flat, block.backend))[~inside]
        assert (outside == 0).all(), f"{name}: {outside[outside != 0][:5]} outside the parameters"


def test_zero_dim_and_empty_and_one_element_parameters(device: str) -> None:
    a, b, c = parameter(2.0), parameter(np.zeros((0, 3))), parameter([[5.0]])
    scalar = nn.Parameter(gf.ones((3,)).sum())  # NumPy gives a scalar here, not an array
    optimizer = SGD([a, b, c, scalar], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (a * a + b.sum() + c.sum() * 3 + scalar * a.detach()).backward()
        optimizer.step()
    assert (a.shape, b.shape, c.shape, scalar.shape) == ((), (0, 3), (1, 1), ())
    assert (a.item(), c.item()) == (0, 2)
    assert scalar.item() == 3 - 0.5 * 2


def test_each_dtype_has_its_own_block(device: str) -> None:
    a, b, c = parameter([1.0]), parameter([1.0], "float64"), parameter([1.0])
    optimizer = Adam([a, b, c], lr=0.1)
    assert [[m.index for m in block.slices] for block in optimizer._blocks] == [[0, 2], [1]]
    for _ in range(3):
        optimizer.zero_grad()
        (a.sum() + b.astype("float32").sum() + c.sum()).backward()
        optimizer.step()
    assert (str(a.dtype), str(b.dtype)) == ("float32", "float64")
    assert b.item() == pytest.approx(0.7, rel=1e-6)
    assert a.item() == pytest.approx(0.7, rel=1e-6) == c.item()
    norm = [2.0, 3.0, 6.0]
    for p, g in zip((a, b, c), norm, strict=True):
        p.grad = gf.full((1,), g, dtype=p.dtype)
    assert clip_grad_norm_([a, b, c], 3.5).item() == pytest.approx(7.0, rel=1e-6)
    assert [p.grad.item() for p in (a, b, c)] == pytest.approx([1, 1.5, 3], rel=1e-6)


# ---------------------------------------------------------------------- who moves


@every_optimizer
def test_parameters_without_a_gradient_stay_and_so_does_their_state(device: str, make: Any) -> None:
    """p and r always have gradients, q only at steps 0, 3 and 4: q must move as if there were no other steps."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 4)), rng.normal(size=(5, 3, 4))
    p, q, r = (parameter(v, "float64") for v in start)
    alone = parameter(start[1], "float64")
    both, single = make([p, q, r]), make([alone])
    for step in range(5):
        both.zero_grad()
        for i, t in enumerate((p, q, r)):
            if i != 1 or step in (0, 3, 4):
                t.grad = gf.tensor(gradients[step, i])
        before = host(q).copy()
        both.step()
        if step in (0, 3, 4):
            alone.grad = gf.tensor(gradients[step, 1])
            single.step()
        else:
            assert_agree(f"q at step {step}", q, before)
        assert_agree(f"q after step {step}", q, host(alone))
    assert both.state_dict()["state"][1]["step"] == 3
    assert both.state_dict()["state"][0]["step"] == 5


def test_parameters_whose_histories_are_equal_again_are_updated_together(device: str) -> None:
    a, b, c = (parameter(np.ones(2)) for _ in range(3))
    optimizer = Adam([a, b, c], lr=0.1)
    (block,) = optimizer._blocks

    def step(*given: gf.Tensor) -> list[list[int]]:
        optimizer.zero_grad()
        for p in given:
            p.grad = gf.ones((2,))
        runs = [[s.index for s in run] for _, run in block.contiguous_runs(block.collect_ready())]
        optimizer.step()
        return runs

    assert step(a, b, c) == [[0, 1, 2]]
    assert step(a, c) == [[0], [2]]
    assert step(a, b, c) == [[0], [1], [2]]
    assert step(b) == [[1]]
    assert step(a, b, c) == [[0, 1, 2]]
    assert step(a, b, c) == [[0, 1, 2]]
    assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [5, 5, 5]


@every_optimizer
def test_a_zero_gradient_differs_from_a_missing_one(device: str, make: Any) -> None:
    p = parameter([1.0, 2.0])
    optimizer = make([p])
    p.grad = gf.zeros((2,))
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 1
    assert np.isfinite(host(p)).all()


@every_optimizer
def test_frozen_parameters_stay(device: str, make: Any) -> None:
    model = network()
    model[0].requires_grad_(False)
    optimizer = make(model.parameters())
    before = values(model)
    train(model, optimizer, range(3))
    assert_agree("frozen weight", model[0].weight, before["0.weight"])
    assert (host(model[1].weight) != before["1.weight"]).all()
    model[0].requires_grad_()  # unfrozen: updated from the next step on
    train(model, optimizer, range(3, 4))
    assert (host(model[0].weight) != before["0.weight"]).all()
    model.requires_grad_(False)
    before = values(model)
    optimizer.step()
    assert_same(model, before)


def test_a_gradient_given_by_the_user_is_used_and_not_changed(device: str) -> None:
    p, q = parameter([1.0, 2.0]), parameter([3.0, 4.0])
    optimizer = SGD([p, q], lr=0.5, momentum=0.9)
    g = gf.tensor([2.0, 4.0])
    p.grad = q.grad = g
    optimizer.step()
    assert (p.tolist(), q.tolist(), g.tolist()) == ([0, 0], [2, 2], [2, 4])
    p.zero_grad()
    (p * 3).sum().backward()
    assert (g.tolist(), q.grad.tolist()) == ([2, 4], [2, 4])


def test_gradients_may_be_exchanged_between_parameters(device: str) -> None:
    a, b = parameter([0.0]), parameter([0.0])
    sgd = SGD([a, b], lr=1.0)
    (a * 2 + b * 3).sum().backward()
    a.grad, b.grad = b.grad, a.grad
    sgd.step()
    assert (a.item(), b.item()) == (-3, -2)


def test_a_recorded_gradient_is_used(device: str) -> None:
    """backward(create_graph=True) makes gradients that can be differentiated; a step uses their values."""
    p = parameter([3.0], "float64")
    optimizer = SGD([p], lr=0.01)
    (p * p * p).sum().backward(create_graph=True)
    assert p.grad.requires_grad
    g = p.grad
    p.grad = None
    (g * g).sum().backward()  # d (3 p^2)^2 / dp = 36 p^3
    assert p.grad.item() == pytest.approx(36 * 27)
    optimizer.step()
    assert p.item() == pytest.approx(3 - 0.01 * 36 * 27)
    optimizer.zero_grad()
    (p * p).sum().backward(create_graph=True)
    expected = p.item() - 0.01 * 2 * p.item()
    optimizer.step()
    assert p.item() == pytest.approx(expected)


def test_backward_passes_add_up_until_zero_grad(device: str) -> None:
    model, once = network("float64"), network("float64")
    optimizer, single = SGD(model.parameters(), lr=0.1), SGD(once.parameters(), lr=0.1)
    backward(model, 0)
    backward(model, 1)
    x, y = data(0, "float64")
    x2, y2 = data(1, "float64")
    (gf.mse_loss(once(x), y) + gf.mse_loss(once(x2), y2)).backward()
    optimizer.step()
    single.step()
    for (name, p), q in zip(model.named_parameters(), once.parameters(), strict=True):
        np.testing.assert_allclose(host(p), host(q), rtol=1e-13, err_msg=name)


def test_a_parameter_used_twice_sums_its_gradients_in_the_buffer(device: str) -> None:
    """Gradients are written directly into the buffer: the second use must not overwrite the first."""
    w = parameter(np.array([[0.5, -1.0], [2.0, 0.25]]), "float64")
    free = parameter(host(w), "float64")
    optimizer = SGD([w], lr=1.0)
    x = gf.tensor([[1.0, 2.0], [3.0, -1.0]], dtype="float64")
    for t in (w, free):
        gf.linear(gf.linear(x, t, None, "tanh"), t).sum().backward()
    np.testing.assert_allclose(host(w.grad), host(free.grad), rtol=1e-15)
    before = host(w).copy()
    optimizer.step()
    np.testing.assert_allclose(host(w), before - host(free.grad), rtol=1e-15)


@pytest.mark.parametrize("makes", [("SGD momentum", "SGD momentum"), ("Adam", "RMSprop")])
def test_two_optimizers_may_share_a_parameter(device: str, makes: tuple[str, str]) -> None:
    """Each step starts from the other optimizer's result, as with plain arrays."""
    start = np.random.default_rng(0).normal(size=(3, 4))
    p, q, r = (parameter(v, "float64") for v in start)
    first, second = MAKERS[makes[0]]([p, q]), MAKERS[makes[1]]([q, r])
    mirror = [parameter(v, "float64") for v in start]
    mirrors = MAKERS[makes[0]](mirror[:1]), MAKERS[makes[0]](mirror[1:2]), MAKERS[makes[1]](mirror[2:])
    for step in range(4):
        for tensors in ((p, q, r), mirror):
            for t in tensors:
                t.zero_grad()
            sum((t * t).sum() for t in tensors).backward()
        if step % 2 == 0:
            first.step()
            mirrors[0].step()
            mirrors[1].step()
            assert_agree(f"step {step}", q, host(mirror[1]))
        else:
            before = host(q).copy()
            second.step()
            mirrors[2].step()
            assert (host(q) != before).all()
            with gf.no_grad():
                mirror[1].copy_(q)
    assert_agree("p", p, host(mirror[0]))
    assert_agree("r", r, host(mirror[2]))


@pytest.mark.parametrize("where", ["float64", "twin"])
def test_a_model_moved_after_its_optimizer_was_made_is_an_error_that_says_so(where: str) -> None:
    with twin_device():
        model = network()
        free = parameter([1.0])
        optimizer = SGD([free, *model.parameters()], lr=0.1)
        model.to(where)
        x, y = data(0)
        gf.mse_loss(model(x.to(where)), y.to(where)).backward()
        before = values(model)
        free.grad = gf.ones((1,))
        with pytest.raises(RuntimeError, match="create the optimizer after"):
            optimizer.step()
        assert_same(model, before)
        assert free.item() == 1.0, "nothing has changed"
        train_again = SGD(model.parameters(), lr=0.1)
        train_again.step()
        assert (host(model[0].weight) != before["0.weight"]).any()


def test_a_model_moved_away_and_back_continues() -> None:
    with twin_device():
        model, stay = network(), network()
        optimizer, other = (SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, stay))
        train(model, optimizer, range(2))
        train(stay, other, range(2))
        model.to("twin").to("cpu")
        train(model, optimizer, range(2, 4))
        train(stay, other, range(2, 4))
        assert_same(model, values(stay))


def test_values_loaded_after_the_optimizer_was_made_are_trained(device: str) -> None:
    model, other = network(), nn.MLP([3, 5, 2], activation="tanh")
    optimizer = SGD(model.parameters(), lr=0.1)
    model.load_state_dict(other.state_dict())
    train(model, optimizer, range(3))
    train(other, SGD(other.parameters(), lr=0.1), range(3))
    assert_same(model, values(other))


def test_a_step_between_forward_and_backward_is_an_error() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    backward(model)
    loss = gf.mse_loss(model(data(1)[0]), data(1)[1])
    optimizer.step()
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_closure_computes_the_loss_first(device: str) -> None:
    model, other = network(), network()
    optimizer = SGD(model.parameters(), lr=0.1)

    def closure() -> gf.Tensor:
        optimizer.zero_grad()
        return backward(model)

    expected = backward(other).item()
    assert optimizer.step(closure).item() == expected
    assert optimizer.step() is None
    assert optimizer.steps == 2


# ---------------------------------------------------------------------- hyperparameters


def test_hyperparameters_may_change_between_steps(device: str) -> None:
    """v = 0.9 v + d while momentum is on; then plain steps; then v continues from its last value."""
    p = parameter([0.0], "float64")
    sgd = SGD([p], lr=1.0)
    (group,) = sgd.param_groups

    def step() -> float:
        p.grad = gf.tensor([1.0], dtype="float64")
        before = p.item()
        sgd.step()
        return before - p.item()

    moves = [step()]
    group["momentum"] = 0.5
    sgd.state_dict()
    moves += [step(), step()]
    group["momentum"] = 0.0
    moves += [step()]
    group["momentum"], group["lr"] = 0.5, 0.1
    moves += [step()]
    assert moves == pytest.approx([1, 1, 1.5, 1, 0.175])


@pytest.mark.parametrize("saved", [None, 2, 3, 5], ids=lambda at: f"saved at {at}")
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_that_is_turned_on_and_off_works_as_in_pytorch(device: str, saved: int | None, nesterov: bool) -> None:
    """With dampening, the first step of a buffer differs from later ones; one parameter joins late."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(2, 3)), rng.normal(size=(8, 2, 3))
    ours = [parameter(v, "float64") for v in start]
    theirs = [torch.tensor(v, requires_grad=True) for v in start]
    sgd, reference = SGD(ours, lr=0.1), torch.optim.SGD(theirs, lr=0.1)
    for step, of_step in enumerate(gradients):
        if step == saved:
            state = pickle.loads(pickle.dumps(sgd.state_dict()))
            sgd = SGD(ours, lr=0.1)
            sgd.load_state_dict(state)
        for optimizer in (sgd, reference):
            optimizer.param_groups[0].update(
                momentum=0.0 if step in (0, 1, 4) else 0.9,
                dampening=0.0 if nesterov else 0.5,
                nesterov=nesterov and step not in (0, 1, 4),
            )
            optimizer.zero_grad()
        for i, g in enumerate(of_step):
            if i == 0 or step > 5:
                ours[i].grad, theirs[i].grad = gf.tensor(g), torch.tensor(g)
        sgd.step()
        reference.step()
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(host(p), q.detach().numpy(), rtol=1e-14, err_msg=f"step {step}")


def test_state_that_no_step_has_initialised_is_none() -> None:
    p = parameter([1.0])
    sgd = SGD([p], lr=0.1)
    p.grad = gf.ones((1,))
    sgd.step()
    assert sgd.state_dict()["state"] == {0: {"step": 1}}
    sgd.param_groups[0]["momentum"] = 0.9
    assert sgd.state_dict()["state"] == {0: {"step": 1, "momentum_buffer": None}}


def test_a_group_may_be_added(device: str) -> None:
    def make() -> tuple[nn.Module, Optimizer]:
        model = network()
        return model, SGD(model[0].parameters(), lr=schedules.cosine(0.1, 10), momentum=0.9)

    model, optimizer = make()
    train(model, optimizer, range(2))
    optimizer.add_param_group({"params": model[1].parameters(), "momentum": 0.5})
    assert [len(g["params"]) for g in optimizer.param_groups] == [2, 2]
    assert optimizer.learning_rates == [schedules.cosine(0.1, 10)(2)] * 2
    control, first = make()
    train(control, first, range(2))
    second = SGD(control[1].parameters(), lr=lambda step: first.param_groups[0]["lr"](step + 2), momentum=0.5)
    saved = model.state_dict(), optimizer.state_dict()
    for _ in range(2):
        train(model, optimizer, range(2, 5))
        resumed, other = make()
        other.add_param_group({"params": resumed[1].parameters(), "momentum": 0.5})
        resumed.load_state_dict(saved[0])
        other.load_state_dict(saved[1])
        train(resumed, other, range(2, 5))
        assert_same(resumed, values(model))
        model, optimizer = copy.deepcopy((resumed, other))
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
    for step in range(2, 5):
        control.zero_grad()
        backward(control, step)
        first.step()
        second.step()
    assert_same(control, values(resumed))
    for wrong, error in (
        ({"params": model[1].parameters()}, ValueError),
        ({"params": [parameter([1.0])], "betas": 1}, ValueError),
        ({"params": [parameter([1.0])], "momentum": -1}, ValueError),
        ([parameter([1.0])], TypeError),
        ({"params": [gf.arange(3)]}, TypeError),
    ):
        with pytest.raises(error):
            optimizer.add_param_group(wrong)  # type: ignore[arg-type]
        assert len(optimizer.param_groups) == len({id(b) for b in optimizer._blocks}) + 1 == 2


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, None])
def test_a_rate_set_out_of_range_raises_before_anything_changes(bad: Any) -> None:
    p = parameter([1.0])
    sgd = SGD([p], lr=0.1)
    p.grad = gf.ones((1,))
    sgd.param_groups[0]["lr"] = bad
    with pytest.raises(ValueError, match="lr"):
        sgd.step()
    assert (p.item(), sgd.steps) == (1.0, 0)


def test_hyperparameters_may_be_numpy_numbers(device: str) -> None:
    p, q = parameter([1.0]), parameter([1.0])
    rate, decay = np.float32(0.1), np.float64(0.01)
    sgd, reference = SGD([p], rate, weight_decay=decay), SGD([q], float(rate), weight_decay=float(decay))
    p.grad = q.grad = gf.ones((1,))
    sgd.step()
    reference.step()
    assert_agree("p", p, host(q))
    assert repr(sgd) == repr(reference)
    assert Adam([p], betas=(np.float32(0.5), np.float64(0.75))).param_groups[0]["betas"] == (0.5, 0.75)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_centred_rmsprop_of_a_gradient_that_does_not_vary_stays_finite(
    device: str, dtype: str, momentum: float
) -> None:
    """The mean square minus the squared mean is then rounding error only, and negative for some elements."""
    p = parameter([0.0] * 200, dtype)
    optimizer = RMSprop([p], lr=1e-9, alpha=0.5, momentum=momentum, centered=True)
    gradient = gf.tensor(np.linspace(0.1, 7.0, 200), dtype=dtype)
    for _ in range(100):
        p.grad = gradient
        optimizer.step()
    assert np.isfinite(host(p)).all()


def test_centred_rmsprop_may_be_turned_on_later(device: str) -> None:
    p = parameter([1.0])
    rms = RMSprop([p], lr=0.01)
    for _ in range(2):
        p.grad = gf.tensor([1.0])
        rms.step()
        rms.param_groups[0].update(centered=True, momentum=0.9)
    assert set(rms.state_dict()["state"][0]) == {"step", "square_avg", "grad_avg", "momentum_buffer"}
    assert math.isfinite(p.item())


def test_groups_have_their_own_hyperparameters(device: str) -> None:
    a, b, c = parameter([1.0]), parameter([1.0]), parameter([1.0])
    sgd = SGD([{"params": a, "lr": 0.5}, {"params": [b], "momentum": 0.5}, {"params": (t for t in [c])}], lr=0.25)
    assert [len(g["params"]) for g in sgd.param_groups] == [1, 1, 1]
    for _ in range(2):
        for t in (a, b, c):
            t.grad = gf.tensor([1.0])
        sgd.step()
    assert (a.item(), b.item(), c.item()) == (0.0, 1 - 0.25 - 0.375, 0.5)
    assert sgd.learning_rates == [0.5, 0.25, 0.25]


ONE = [gf.tensor([1.0], requires_grad=True)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGD(ONE, lr=-0.1),
        lambda: SGD(ONE, lr=math.nan),
        lambda: SGD(ONE, lr=math.inf),
        lambda: SGD(ONE, lr="0.1"),  # type: ignore[arg-type]
        lambda: SGD(ONE, lr=None),  # type: ignore[arg-type]
        lambda: SGD(ONE, lr=True),
        lambda: SGD(ONE, momentum=-0.1),
        lambda: SGD(ONE, weight_decay=-0.1),
        lambda: SGD(ONE, dampening=math.inf),
        lambda: SGD(ONE, nesterov=True),
        lambda: SGD(ONE, nesterov=True, momentum=0.9, dampening=0.1),
        lambda: Adam(ONE, betas=(1.0, 0.9)),
        lambda: Adam(ONE, betas=(0.9, -0.1)),
        lambda: Adam(ONE, betas=(0.9,)),  # type: ignore[arg-type]
        lambda: Adam(ONE, eps=-1e-8),
        lambda: Adam(ONE, eps=0.0),
        lambda: AdamW(ONE, weight_decay=-1.0),
        lambda: RMSprop(ONE, alpha=1.0),
        lambda: RMSprop(ONE, eps=0.0),
        lambda: RMSprop(ONE, momentum=-1.0),
        lambda: SGD([]),
        lambda: SGD([*ONE, *ONE]),
        lambda: SGD([{"params": ONE}, {"params": ONE}]),
        lambda: SGD([{"params": ONE, "learning_rate": 0.1}]),
        lambda: SGD([{"params": ONE, "betas": (0.9, 0.9)}]),
    ],
)
def test_hyperparameters_out_of_range_raise(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(
    "parameters",
    [
        lambda: ONE[0],
        lambda: [1.0],
        lambda: [np.ones(3)],
        lambda: [ONE[0] * 2],
        lambda: [gf.arange(3)],
        lambda: [{"lr": 0.1}],
        lambda: [{"params": ONE}, gf.ones((1,))],
        lambda: [gf.ones((1,)), {"params": ONE}],
        lambda: "ab",
    ],
)
def test_other_objects_than_parameters_raise(parameters: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        SGD(parameters())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SGD(network()), r"got a MLP: pass model\.parameters\(\)"),  # type: ignore[arg-type]
        (lambda: SGD(ONE[0]), "put it into a list"),  # type: ignore[arg-type]
        (lambda: Adam(ONE, betas=0.9), "betas are two numbers"),  # type: ignore[arg-type]
    ],
)
def test_a_type_error_says_what_to_pass(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make()


def test_a_constructor_that_raises_leaves_the_parameters_unchanged() -> None:
    p = parameter([1.0])
    array = p.array
    with pytest.raises(TypeError):
        SGD([p, gf.arange(3)])
    assert p.array is array


def test_repr() -> None:
    assert repr(SGD([parameter([1.0])], lr=0.1)) == (
        "SGD(1 parameters, lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False)"
    )


# ---------------------------------------------------------------------- state


@every_optimizer
@pytest.mark.parametrize("through", ["dict", "pickle", "numpy"])
def test_training_continues_from_a_state_dict_to_the_bit(device: str, make: Any, through: str) -> None:
    model, resumed = network(), network()
    optimizer = make(model.parameters())
    train(model, optimizer, range(5))
    weights, state = model.state_dict(), optimizer.state_dict()
    train(model, optimizer, range(5, 10))  # must not change what was saved
    if through == "pickle":
        weights, state = pickle.loads(pickle.dumps((weights, state)))
    elif through == "numpy":
        for entry in state["state"].values():
            entry.update({k: host(v) for k, v in entry.items() if isinstance(v, gf.Tensor)})
    resumed.load_state_dict(weights)
    other = make(resumed.parameters())
    other.param_groups[0]["lr"] = 123.0  # comes from the state
    other.load_state_dict(state)
    assert other.steps == 5
    train(resumed, other, range(5, 10))
    assert_same(resumed, values(model))


def test_a_state_dict_covers_groups_frozen_parameters_and_schedules(device: str) -> None:
    def make(model: nn.Module) -> Optimizer:
        rate = schedules.warmup(schedules.cosine(0.05, 10), 3)
        return AdamW([{"params": model[0].parameters(), "lr": rate}, {"params": model[1].parameters()}], lr=0.02)

    model, resumed = network(), network()
    model[1].bias.requires_grad_(False)
    optimizer = make(model)
    train(model, optimizer, range(4))
    state = optimizer.state_dict()
    assert sorted(state["state"]) == [0, 1, 2]
    assert "lr" not in state["param_groups"][0]
    assert state["param_groups"][1]["lr"] == 0.02
    resumed.load_state_dict(model.state_dict())
    other = make(resumed)
    train(resumed, other, range(2))  # so that it has a state to replace
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(state)
    assert other.learning_rates == optimizer.learning_rates
    model[1].bias.requires_grad_()
    train(model, optimizer, range(4, 8))
    train(resumed, other, range(4, 8))
    assert_same(resumed, values(model))


def test_a_schedule_stays_when_a_state_is_loaded(device: str) -> None:
    """A schedule is code: the state's learning rate does not replace it."""
    state = SGD([parameter([1.0])], lr=0.5, momentum=0.9).state_dict()
    state["steps"] = 5
    rate = schedules.cosine(0.1, 10)
    sgd = SGD([parameter([1.0])], lr=rate)
    sgd.load_state_dict(state)
    assert sgd.param_groups[0]["lr"] is rate
    assert sgd.param_groups[0]["momentum"] == 0.9
    assert sgd.learning_rates == [rate(5)]


def test_an_optimizer_with_a_schedule_is_pickled(device: str) -> None:
    model = network()
    optimizer = Adam(model.parameters(), lr=schedules.warmup(schedules.step(0.1, 2), 2))
    train(model, optimizer, range(3))
    twin, other = pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, range(3, 6))
    train(twin, other, range(3, 6))
    assert_same(twin, values(model))


def test_a_state_moves_to_another_device() -> None:
    with twin_device() as twin:
        model = network()
        optimizer = Adam(model.parameters(), lr=0.01)
        train(model, optimizer, range(3))
        moved = network().to(twin)
        moved.load_state_dict(model.state_dict())
        other = Adam(moved.parameters(), lr=0.01)
        other.load_state_dict(optimizer.state_dict())
        for entry in other.state_dict()["state"].values():
            assert str(entry["exp_avg"].device) == f"{twin}:0"
        train(model, optimizer, range(3, 6))
        for step in range(3, 6):
            other.zero_grad()
            x, y = (t.to(twin) for t in data(step))
            gf.mse_loss(moved(x), y).backward()
            other.step()
        assert_same(moved, values(model))


def _drop(state: dict[str, Any], *path: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    del state[path[-1]]


def _put(state: dict[str, Any], value: Any, *path: Any) -> None:
    for key in path[:-1]:
        state = state[key]
    state[path[-1]] = value


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda s: _drop(s, "steps"), KeyError),
        (lambda s: _drop(s, "state"), KeyError),
        (lambda s: _drop(s, "param_groups"), KeyError),
        (lambda s: _drop(s, "state", 3, "exp_avg"), KeyError),
        (lambda s: _drop(s, "state", 3, "step"), KeyError),
        (lambda s: _put(s, gf.zeros((7,)), "state", 3, "exp_avg"), ValueError),
        (lambda s: _put(s, "text", "state", 3, "exp_avg"), TypeError),
        (lambda s: _put(s, {"step": 1}, "state", 4), ValueError),
        (lambda s: _put(s, -1.0, "param_groups", 0, "lr"), ValueError),
        (lambda s: _put(s, -1, "steps"), ValueError),
        (lambda s: _put(s, 1.5, "steps"), ValueError),
        (lambda s: _put(s, True, "steps"), ValueError),
        (lambda s: _put(s, "many", "steps"), ValueError),
        (lambda s: _put(s, float("nan"), "steps"), ValueError),
        (lambda s: _put(s, float("inf"), "steps"), ValueError),
        (lambda s: _put(s, -3, "state", 3, "step"), ValueError),
        (lambda s: _put(s, 2.5, "state", 3, "step"), ValueError),
        (lambda s: _put(s, gf.tensor([1.0, 2.0]), "state", 3, "step"), ValueError),
        (lambda s: _put(s, gf.tensor([1.0, -1e-9]), "state", 3, "exp_avg_sq"), ValueError),
        (lambda s: _put(s, gf.tensor([1.0, math.nan]), "state", 3, "exp_avg_sq"), ValueError),
        (lambda s: _put(s, gf.tensor([1.0, math.inf]), "state", 3, "exp_avg"), ValueError),
        (lambda s: _put(s, gf.tensor([1, 2], dtype="int64"), "state", 3, "exp_avg"), TypeError),
        (lambda s: _put(s, gf.tensor([1.0, 2.0]), "state", 3, "square_avg"), ValueError),
        (lambda s: _put(s, None, "state", 3, "momentum_buffer"), ValueError),
        (lambda s: _put(s, 0.5, "param_groups", 0, "momentum"), ValueError),
        (lambda s: s["param_groups"].append(s["param_groups"][0]), ValueError),
        (lambda s: s["param_groups"][0]["params"].append(4), ValueError),
    ],
)
def test_a_state_that_does_not_fit_leaves_the_optimizer_unchanged(change: Any, error: type[Exception]) -> None:
    model, control = network(), network()
    optimizer, reference = Adam(model.parameters(), lr=0.01), Adam(control.parameters(), lr=0.01)
    train(model, optimizer, range(3))
    train(control, reference, range(3))
    other = network()
    source = Adam(other.parameters(), lr=0.3)
    train(other, source, range(5, 7))
    state = copy.deepcopy(source.state_dict())
    change(state)
    with pytest.raises(error):
        optimizer.load_state_dict(state)
    assert optimizer.steps == 3
    assert optimizer.param_groups[0]["lr"] == 0.01
    train(model, optimizer, range(3, 6))
    train(control, reference, range(3, 6))
    assert_same(model, values(control))


@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "RMSprop all"])
def test_a_negative_mean_of_squares_or_an_unknown_name_in_a_state_raises(name: str) -> None:
    p = parameter([1.0, 2.0])
    optimizer = MAKERS[name]([p])
    p.sum().backward()
    optimizer.step()
    for kind in (*optimizer.state_dict()["state"][0], "variance"):
        state = optimizer.state_dict()
        state["state"][0][kind] = -3 if kind == "step" else gf.tensor([1.0, -1.0])
        if kind in ("step", "variance") or kind.endswith(("_sq", "square_avg")):
            with pytest.raises(ValueError, match=r"count|negative|lacks"):
                optimizer.load_state_dict(state)
        else:
            optimizer.load_state_dict(state)
    steps = optimizer.state_dict()
    steps["state"][0]["step"] = gf.tensor(4.0)  # as in PyTorch
    optimizer.load_state_dict(steps)
    assert optimizer.state_dict()["state"][0]["step"] == 4


@pytest.mark.parametrize(
    "wrong", [{"param_groups": [3]}, {"param_groups": None}, {"param_groups": [{}]}, {"state": None}, {"state": {0: 3}}]
)
def test_a_state_of_another_structure_raises(wrong: dict[str, Any]) -> None:
    optimizer = SGD([parameter([1.0])])
    with pytest.raises(TypeError, match="param_groups, a list of mappings with 'params', and state, a mapping"):
        optimizer.load_state_dict({**optimizer.state_dict(), **wrong})


@pytest.mark.parametrize("given", ["adam.pt", Path("adam.pt"), [1], None])
def test_other_objects_than_states_raise(given: Any) -> None:
    with pytest.raises(TypeError, match="load_state_dict takes a state dict, as state_dict"):
        SGD([parameter([1.0])]).load_state_dict(given)
    with pytest.raises(TypeError, match="load_state_dict takes a state dict, as state_dict"):
        network().load_state_dict(given)


@pytest.mark.parametrize(("a", "b"), [("SGD", "Adam"), ("Adam", "RMSprop"), ("RMSprop", "SGD")])
def test_a_state_of_another_optimizer_raises(a: str, b: str) -> None:
    state = MAKERS[a]([parameter([1.0])]).state_dict()
    with pytest.raises(ValueError, match="hyperparameters"):
        MAKERS[b]([parameter([1.0])]).load_state_dict(state)


@every_optimizer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_model_and_its_optimizer_are_copied_together(device: str, make: Any, copied: Any) -> None:
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    twin, other = copied((model, optimizer))
    before = values(model)
    train(twin, other, range(3, 6))
    assert_same(model, before)
    train(model, optimizer, range(3, 6))
    assert_same(twin, values(model))


@every_optimizer
def test_a_shallow_copy_has_its_own_groups_and_state_and_the_same_parameters(device: str, make: Any) -> None:
    model, control = network(), network()
    optimizer, reference = make(model.parameters()), make(control.parameters())
    train(model, optimizer, range(3))
    train(control, reference, range(3))
    twin = copy.copy(optimizer)
    twin.param_groups[0]["lr"] = 100.0
    twin.param_groups[0]["params"].pop()
    twin.defaults["lr"] = 100.0
    assert optimizer.param_groups[0]["lr"] != 100.0
    train(model, optimizer, range(3, 6))
    train(control, reference, range(3, 6))
    assert_same(model, values(control))
    twin = copy.copy(optimizer)
    train(model, twin, range(6, 9))
    train(control, reference, range(6, 9))
    assert_same(model, values(control))


# ---------------------------------------------------------------------- memory seen from elsewhere


def shared_pair(way: str) -> tuple[gf.Tensor, gf.Tensor]:
    """A parameter, and a tensor that shares its memory, in the same shape or transposed."""
    w = parameter([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    if way == "alias":
        return w, w.detach()
    if way == "view":
        return w, w.detach().T
    return w, w.detach()[0]


@every_optimizer
@pytest.mark.parametrize("owner", ["torch", "bytearray", "memoryview"])
def test_memory_of_another_library_shows_what_an_optimizer_trains(make: Any, owner: str) -> None:
    values = [1.0, 2.0, 3.0]
    memory: Any = bytearray(np.array(values, dtype="float32").tobytes())
    if owner == "torch":
        memory = pytest.importorskip("torch").tensor(values)
        array = memory.numpy()
    else:
        array = np.frombuffer(memory if owner == "bytearray" else memoryview(memory), dtype="float32")
    w = gf.asarray(array, device="cpu").requires_grad_()
    del array
    optimizer = make([w])
    for _ in range(2):
        w.grad = gf.ones(3, device="cpu")
        optimizer.step()
        seen = memory.tolist() if owner == "torch" else np.frombuffer(memory, dtype="float32").tolist()
        assert seen == w.tolist() != values


def test_shared_read_only_memory_raises_and_unshared_is_copied() -> None:
    array = np.ones(3, dtype="float32")
    array.flags.writeable = False
    spread = np.broadcast_to(np.ones(1, dtype="float32"), (3,))
    for held in (array, spread):
        w = gf.asarray(held, device="cpu").requires_grad_()
        with pytest.raises(ValueError, match=r"parameter 0, of shape \(3,\), .* read-only.*gradflow.tensor\(\.\.\.\)"):
            SGD([w], lr=1.0)
    alone = gf.asarray(np.frombuffer(np.ones(3, dtype="float32").tobytes(), dtype="float32"), device="cpu")
    optimizer = SGD([alone.requires_grad_()], lr=1.0)
    alone.grad = gf.ones(3, device="cpu")
    optimizer.step()
    assert alone.tolist() == [0.0] * 3


@every_optimizer
@pytest.mark.parametrize("way", ["alias", "view", "row"])
def test_an_alias_shows_what_an_optimizer_trains(device: str, make: Any, way: str) -> None:
    w, other = shared_pair(way)
    control = parameter([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    optimizer, reference = make([parameter([0.0]), w]), make([parameter([0.0]), control])
    for _ in range(3):
        for p, o in ((w, optimizer), (control, reference)):
            o.zero_grad()
            (p * p).sum().backward()
            o.step()
        expected = {"alias": w, "view": w.T, "row": w[0]}[way]
        assert other.tolist() == expected.tolist()
    assert w.tolist() == control.tolist()  # to the bit


@every_optimizer
def test_the_array_behind_asarray_shows_what_an_optimizer_trains(make: Any) -> None:
    whole = np.arange(6.0).reshape(2, 3)
    for array in (whole, whole[0], whole.T, whole[:, ::2]):
        w = gf.asarray(array, device="cpu").requires_grad_()
        optimizer = make([w])
        for _ in range(2):
            before = array.copy()
            (w * 3.0).sum().backward()
            optimizer.step()
            assert w.tolist() == array.tolist()
            assert (before != array).all()
        array[...] = 100.0  # and a change of the array shows in the parameter
        optimizer.step()
        assert w.tolist() == array.tolist()
        assert (np.abs(array - 100.0) < 5.0).all()


@pytest.mark.parametrize("name", ["SGD", "SGD momentum", "Adam", "AdamW", "RMSprop", "RMSprop all"])
def test_a_decoder_whose_weight_is_the_encoders_transposed_trains_as_in_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    start = np.random.default_rng(0).normal(size=(2, 3))
    x = np.random.default_rng(1).normal(size=(8, 3))
    kind, *_ = name.split()
    options: dict[str, Any] = {
        "SGD": {"lr": 0.1}, "SGD momentum": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, "Adam": {"lr": 0.01},
        "AdamW": {"lr": 0.01}, "RMSprop": {"lr": 0.01}, "RMSprop all": {"lr": 0.01, "momentum": 0.5, "centered": True},
    }[name]  # fmt: skip
    theirs = torch.nn.Parameter(torch.tensor(start))
    their_decoder = torch.nn.Parameter(theirs.data.T)
    ours = nn.Parameter(gf.tensor(start, device="cpu"))
    decoder = nn.Parameter(ours.detach().T)
    one = getattr(torch.optim, kind)([theirs, their_decoder], **options)
    other = getattr(optim, kind)([ours, decoder], **options)
    for _ in range(5):
        one.zero_grad()
        other.zero_grad()
        batch = torch.tensor(x)
        ((batch @ theirs.T @ their_decoder.T - batch) ** 2).mean().backward()
        data = gf.tensor(x, device="cpu")
        gf.mse_loss(gf.linear(gf.linear(data, ours), decoder), data).backward()
        one.step()
        other.step()
        assert decoder.tolist() == ours.T.tolist()
        np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-12, atol=1e-14)


def test_a_parameter_moves_into_the_buffer_once_its_memory_is_no_longer_shared(device: str) -> None:
    w, alias = shared_pair("alias")
    optimizer = SGD([w], lr=0.5)
    (block,) = optimizer._blocks
    assert block.slices[0].outside
    w.sum().backward()
    optimizer.step()
    del alias
    optimizer.step()
    assert not block.slices[0].outside
    assert w.array is block.slices[0].values
    assert w.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_an_alias_of_a_trained_parameter_stays_with_it_under_another_optimizer(device: str) -> None:
    w = parameter([1.0, 2.0])
    first = SGD([w], lr=1.0)
    alias = w.detach()
    second = SGD([w], lr=1.0)
    w.sum().backward()
    for optimizer in (first, second, first):
        optimizer.step()
        assert alias.tolist() == w.tolist()
    assert w.tolist() == [-2.0, -1.0]


def test_parameters_with_unshared_memory_lie_in_the_buffer(device: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.MLP([4, 5, 2], dropout=0.1))
    copied = copy.deepcopy(model)
    loss = model(gf.ones((2, 3))).sum()  # saves the parameters as they are now
    models = [model, copied, pickle.loads(pickle.dumps(model)), copy.deepcopy(copied).to("float64")]
    made = [
        lambda: gf.random.normal((3, 4)),
        lambda: gf.tensor(np.ones(3)),
        lambda: gf.ones((3, 3)).sum(axis=0).detach(),
    ]
    for parameters in [*[list(m.parameters()) for m in models], *[[make().requires_grad_()] for make in made]]:
        for _ in range(2):  # also after another optimizer
            optimizer = SGD(parameters)
            assert not any(m.outside for block in optimizer._blocks for m in block.slices)
    loss.backward()


def test_a_saved_value_that_a_step_changes_outside_of_the_buffer_is_an_error() -> None:
    w, alias = shared_pair("alias")
    optimizer = SGD([w])
    y = (w * w).sum()
    y.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()
    assert alias.tolist() == w.tolist()


# ---------------------------------------------------------------------- edits of param_groups


def regroup(optimizer: Optimizer, more: gf.Tensor, *, move: bool) -> None:
    """Add a group with `more`, and move the first parameter there, or remove the first group."""
    optimizer.add_param_group({"params": [more]})
    first, second = optimizer.param_groups
    if move:
        second["params"].insert(0, first["params"].pop(0))
    else:
        del optimizer.param_groups[0]


EDITS: dict[str, tuple[Callable[[Any, gf.Tensor], Any], list[int]]] = {
    "append": (lambda o, more: o.param_groups[0]["params"].append(more), [0, 1, 2, 3]),
    "remove": (lambda o, more: o.param_groups[0]["params"].pop(1), [0, 2]),
    "replace": (lambda o, more: o.param_groups[0]["params"].__setitem__(1, more), [0, 2, 3]),
    "assign": (lambda o, more: o.param_groups[0].update(params=[more, o.param_groups[0]["params"][0]]), [0, 3]),
    "append a group": (lambda o, more: o.param_groups.append({"params": [more]}), [0, 1, 2, 3]),
    "remove a group": (lambda o, more: regroup(o, more, move=False), [3]),
    "move to another group": (lambda o, more: regroup(o, more, move=True), [0, 1, 2, 3]),
    "assign the groups": (lambda o, more: setattr(o, "param_groups", [{"params": [more]}]), [3]),
}
"""Edits of the groups of an optimizer of three parameters, and which are trained from then on; 3 is a new one."""


@every_optimizer
@pytest.mark.parametrize("kind", EDITS)
def test_edits_of_the_groups_decide_which_parameters_are_trained(device: str, make: Any, kind: str) -> None:
    """The result is as if a separate optimizer had trained each parameter."""
    starts = [[1.0, 2.0], [3.0], [[4.0]], [5.0, 6.0]]
    ours = [parameter(start) for start in starts]
    alone = [parameter(start) for start in starts]
    optimizer = make(ours[:3])
    singles = [make([p]) for p in alone]

    def step(trained: list[int]) -> None:
        optimizer.zero_grad()
        for p in (*ours, *alone):
            if not any(p is ours[i] for i in trained):
                p.zero_grad()
            (p * p * 0.5).sum().backward()
        optimizer.step()
        for i in trained:
            singles[i].step()

    step([0, 1, 2])
    step([0, 1, 2])
    edit, trained = EDITS[kind]
    edit(optimizer, ours[3])
    for _ in range(3):
        step(trained)
    for p, single in zip(ours, alone, strict=True):
        assert p.tolist() == single.tolist()
    state = optimizer.state_dict()
    assert sum(len(group["params"]) for group in state["param_groups"]) == len(trained)
    optimizer.load_state_dict(state)


def test_a_list_of_parameters_can_be_edited_again_after_a_step() -> None:
    p, q = gf.ones(2, requires_grad=True), gf.ones(2, requires_grad=True)
    optimizer = optim.SGD([p, q], lr=0.5)
    members = optimizer.param_groups[0]["params"]
    for trained in (True, False, True):
        (p * q).sum().backward()
        if trained is not (len(members) == 2):
            members.append(q) if trained else members.pop()
        before = q.tolist()
        optimizer.step()
        assert optimizer.param_groups[0]["params"] is members
        assert (q.tolist() != before) == trained
        p.zero_grad(), q.zero_grad()


def test_an_invalid_edit_raises_before_anything_changes(device: str) -> None:
    p, q = parameter([1.0]), parameter([2.0])
    optimizer = SGD([p], lr=1.0)
    for bad, error in (
        (lambda: optimizer.param_groups[0]["params"].append(p), ValueError),
        (lambda: optimizer.param_groups[0]["params"].append(q * 2.0), TypeError),
        (lambda: optimizer.param_groups[0]["params"].append(3), TypeError),
        (lambda: optimizer.param_groups[0].update(params=iter([p, q])), TypeError),  # which zero_grad() would use up
        (lambda: optimizer.param_groups[0].update(params=None), TypeError),
        (lambda: optimizer.param_groups.append({"params": [p]}), ValueError),
        (lambda: optimizer.param_groups.append([q]), TypeError),
        (lambda: optimizer.param_groups.append({"params": [q], "speed": 2.0}), ValueError),
    ):
        kept = [{**group, "params": list(group["params"])} for group in optimizer.param_groups]
        bad()
        p.sum().backward()
        for use in (optimizer.step, optimizer.state_dict, lambda: copy.deepcopy(optimizer)):
            with pytest.raises(error):
                use()
        assert p.tolist() == [1.0]
        optimizer.param_groups = kept
        optimizer.zero_grad()


def test_a_captured_step_follows_an_edit_of_the_groups(device: str) -> None:
    p, q = parameter([1.0]), parameter([1.0])
    optimizer = SGD([p], lr=0.25)

    @gf.capture
    def step(x: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        q.zero_grad()
        loss = (p * x).sum() + (q * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    x = gf.ones(1)
    for _ in range(5):
        step(x)
    optimizer.param_groups[0]["params"].append(q)
    for _ in range(5):
        step(x)
    assert (p.item(), q.item()) == (-1.5, -0.25)


# ---------------------------------------------------------------------- clipping


def gradients(parameters: list[gf.Tensor], arrays: list[np.ndarray]) -> None:
    for p, a in zip(parameters, arrays, strict=True):
        p.grad = gf.tensor(a.astype(str(p.dtype)))


@pytest.mark.parametrize("where", ["no optimizer", "all of a block", "part of a block", "one of two blocks"])
@pytest.mark.parametrize("max_norm", [0.5, 1e3, 0.0])
def test_clipping_scales_to_the_norm(device: str, where: str, max_norm: float) -> None:
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (5,), ()]
    parameters = [parameter(rng.normal(size=s)) for s in shapes]
    extra = parameter([1.0, 2.0])
    arrays = [np.asarray(rng.normal(size=s)) for s in shapes]
    optimizers = {
        "no optimizer": list,
        "all of a block": lambda: [SGD(parameters)],
        "part of a block": lambda: [SGD([extra, *parameters])],
        "one of two blocks": lambda: [SGD(parameters[:2]), SGD([parameters[2], extra])],
    }[where]()
    gradients([*parameters, extra], [*arrays, np.array([7.0, 8.0])])
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()  # copies the gradients into the buffers
    norm = math.sqrt(sum(float((a**2).sum()) for a in arrays))
    found = clip_grad_norm_(parameters, max_norm)
    assert isinstance(found, gf.Tensor)
    assert found.shape == ()
    assert found.item() == pytest.approx(norm, rel=20 * eps())
    factor = min(1.0, max_norm / (norm + 1e-6))
    for p, a in zip(parameters, arrays, strict=True):
        np.testing.assert_allclose(host(p.grad), a * factor, rtol=20 * eps(), atol=0)
    assert extra.grad.tolist() == [7, 8]


def test_clipping_of_gradients_in_the_buffer_allocates_no_other_array(device: str) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=1.0)
    backward(model)
    arrays = [p.grad.array for p in model.parameters()]
    before = values(model)
    clip_grad_norm_(model.parameters(), 1e-3)
    assert all(p.grad.array is a for p, a in zip(model.parameters(), arrays, strict=True))
    optimizer.step()
    moves = [host(p).astype(np.float64) - before[name] for name, p in model.named_parameters()]
    moved = math.sqrt(sum(float((m**2).sum()) for m in moves))
    assert moved == pytest.approx(1e-3, rel=0.01)


def test_clipping_ignores_parameters_without_gradients_and_stale_buffers(device: str) -> None:
    a, b = parameter([1.0]), parameter([1.0])
    sgd = SGD([a, b], lr=0.0)
    (a * 100 + b * 3).sum().backward()
    sgd.zero_grad()
    (b * 3).sum().backward()  # a's part of the buffer still holds 100
    assert clip_grad_norm_([a, b], 1.0).item() == pytest.approx(3)
    assert a.grad is None
    assert b.grad.item() == pytest.approx(1, rel=1e-5)


def test_clipping_without_gradients(device: str) -> None:
    p = parameter([1.0])
    assert clip_grad_norm_([p], 1.0).item() == 0
    assert clip_grad_norm_([], 1.0).item() == 0
    assert clip_grad_norm_([gf.ones((2,))], 1.0).item() == 0
    p.grad = gf.zeros((1,))
    assert clip_grad_norm_(p, 1.0).item() == 0
    assert p.grad.item() == 0


def test_clipping_of_non_finite_gradients(device: str) -> None:
    p = parameter([1.0, 1.0])
    p.grad = gf.tensor([math.nan, 1.0])
    assert math.isnan(clip_grad_norm_([p], 1.0).item())
    assert np.isnan(host(p.grad)).all()


@pytest.mark.parametrize("where", ["no optimizer", "a block"])
def test_clipping_counts_a_parameter_that_is_given_twice_once(device: str, where: str) -> None:
    a, b = parameter([1.0]), parameter([1.0])
    a.grad, b.grad = gf.tensor([3.0]), gf.tensor([4.0])
    if where == "a block":
        SGD([a, b], lr=0.0).step()
    assert clip_grad_norm_([a, a], 1.0).item() == pytest.approx(3)
    assert (a.grad.item(), b.grad.item()) == (pytest.approx(1, rel=1e-5), 4)


@pytest.mark.parametrize("biggest", [3.0, math.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_infinite_norm_only_measures(device: str, biggest: float) -> None:
    p = parameter([1.0, 1.0])
    g = p.grad = gf.tensor([biggest, 4.0])
    assert clip_grad_norm_([p], math.inf).item() == (5 if biggest == 3 else math.inf)
    assert p.grad is g
    assert g.tolist() == [biggest, 4]


@pytest.mark.parametrize("bad", [-1.0, -math.inf, math.nan, None, "1"])
def test_clipping_to_an_invalid_norm_raises(bad: Any) -> None:
    with pytest.raises(ValueError, match="max_norm"):
        clip_grad_norm_([parameter([1.0])], bad)


def test_clipping_of_mixed_devices_raises() -> None:
    with twin_device() as twin:
        a, b = parameter([1.0]), gf.tensor([1.0], device=twin, requires_grad=True)
        a.grad, b.grad = gf.ones((1,)), gf.ones((1,), device=twin)
        with pytest.raises(gf.DeviceMismatchError, match="clip_grad_norm_"):
            clip_grad_norm_([a, b], 1.0)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # NumPy's, of composed kernels
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_raises_if_asked(device: str, bad: float) -> None:
    """Before anything changes, as in PyTorch; a finite one is clipped as without the question."""
    p, q = parameter([1.0, 2.0]), parameter([3.0])
    SGD([p], lr=0.1)
    (p.sum() * 2 + q.sum() * bad).backward()
    with pytest.raises(RuntimeError, match=r"^the norm of the gradients is (nan|inf): .+nothing was clipped"):
        clip_grad_norm_(iter([p, q]), 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(host(p.grad), [2, 2])
    np.testing.assert_array_equal(host(q.grad), [bad])
    assert clip_grad_norm_([p], 1.0, error_if_nonfinite=True).item() == pytest.approx(math.sqrt(8))
    np.testing.assert_allclose(host(p.grad), [math.sqrt(0.5)] * 2, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_a_captured_step_that_asks_whether_the_norm_is_finite_runs_normally(device: str) -> None:
    p = parameter([1.0, 2.0])
    optimizer = SGD([p], lr=0.1)

    @gf.capture
    def step(factor: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        loss = (p * factor).sum()
        loss.backward()
        clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
        optimizer.step()
        return loss

    for _ in range(3):
        step(gf.ones((2,)))
    assert "reads a value (clip_grad_norm_)" in step.status
    before = host(p).copy()
    with pytest.raises(RuntimeError, match="the norm of the gradients is inf"):
        step(gf.full((2,), math.inf))
    assert_agree("parameter", p, before)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_clipping_by_value_is_pytorchs(device: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    if not gf.get_backend(device).supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    rng, theirs = np.random.default_rng(0), []
    inside, outside, frozen = (
        parameter(np.zeros(70), dtype),
        parameter(np.zeros((2, 3)), dtype),
        parameter([1.0], dtype),
    )
    optimizer = SGD([inside, frozen], lr=0.0)
    for p in (inside, outside):
        g = rng.normal(size=p.shape).astype(dtype)
        g[..., :3] = [math.nan, math.inf, -math.inf]
        p.grad = gf.tensor(g)
        theirs.append(torch.zeros(p.shape, dtype=getattr(torch, dtype), requires_grad=True))
        theirs[-1].grad = torch.from_numpy(g.copy())
    with np.errstate(invalid="ignore"):
        optimizer.step()  # copies the gradient into the buffer
    clip_grad_value_([inside, outside, frozen], 0.4)
    torch.nn.utils.clip_grad_value_(theirs, 0.4)
    for p, q in zip((inside, outside), theirs, strict=True):
        np.testing.assert_array_equal(host(p.grad), q.grad.numpy())
    for wrong in (-1.0, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="clip_value"):
            clip_grad_value_(inside, wrong)


# ---------------------------------------------------------------------- memory


@every_optimizer
def test_a_model_and_its_optimizer_are_freed_without_the_garbage_collector(device: str, make: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        model = nn.Sequential(nn.MLP([3, 5, 2], dropout=0.2), nn.LayerNorm(2))
        optimizer = make(model.parameters())
        optimizer.param_groups[0]["lr"] = schedules.cosine(0.1, 10)
        train(model, optimizer, range(3))
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.load_state_dict(optimizer.state_dict())
        watched = [weakref.ref(o) for o in (model, optimizer, *optimizer._blocks, *model.parameters())]
        watched += [weakref.ref(p._node) for p in model.parameters()]
        del model, optimizer
        alive = [r() for r in watched if r() is not None]
        assert not alive, f"still alive: {[type(o).__name__ for o in alive]}"
    finally:
        gc.enable()


def test_a_model_outlives_its_optimizer(device: str) -> None:
    model, other = network(), network()
    optimizer = SGD(model.parameters(), lr=0.1)
    train(model, optimizer, range(2))
    del optimizer
    train(other, SGD(other.parameters(), lr=0.1), range(2))
    model.zero_grad()
    backward(model, 2)
    clip_grad_norm_(model.parameters(), 10.0)
    train(model, optim.Adam(model.parameters()), range(2, 4))
    train(other, optim.Adam(other.parameters()), range(2, 4))
    assert_same(model, values(other))


def skip_without(device: str, *dtypes: str) -> None:
    for dtype in dtypes:
        if not gf.get_backend(device).supports(dtype):
            pytest.skip(f"{device} has no {dtype}")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_clipping_recovers_from_a_nan_gradient(device: str, dtype: str) -> None:
    """The padding between the gradients was NaN from then on, and so was the norm."""
    skip_without(device, dtype)
    a, b = parameter([1.0] * 3, dtype), parameter([1.0] * 3, dtype)
    optimizer = SGD([a, b], lr=0.1)
    norms = []
    for factor in (1.0, math.nan, 1.0):
        optimizer.zero_grad()
        (a.sum() * factor + b.sum()).backward()
        norms.append(clip_grad_norm_([a, b], 1.0).item())
    assert math.isnan(norms[1])
    assert norms[2] == norms[0] > 2
    assert np.allclose(host(a.grad), 6**-0.5, atol=1e-3)


@pytest.mark.parametrize("dtypes", [("float16", "float32"), ("float32", "float16"), ("float32", "float64")], ids=str)
@pytest.mark.parametrize("in_blocks", [False, True])
def test_clipping_keeps_the_range_and_precision_of_each_dtype(
    device: str, dtypes: tuple[str, str], in_blocks: bool
) -> None:
    """The dtype of the first gradient decided that of the computation: others became 0 or infinite."""
    skip_without(device, *dtypes)
    for big in (1e-9, 1e5):
        pair = [parameter([0.0, 0.0], dtype) for dtype in dtypes]
        _ = SGD(pair) if in_blocks else None
        values = {p.dtype.name: 300.0 if p.dtype == "float16" else big for p in pair}
        for p in pair:
            (p * values[p.dtype.name]).sum().backward()
        before = [host(p.grad).copy() for p in pair]
        norm = clip_grad_norm_(pair, 1e9)
        assert norm.dtype == max((p.dtype for p in pair), key=lambda dtype: dtype.itemsize)
        assert norm.item() == pytest.approx(math.sqrt(2 * sum(v**2 for v in values.values())), rel=1e-6)
        for p, values_before in zip(pair, before, strict=True):
            assert_agree("gradient", p.grad, values_before)
        if norm.item() < 1e-3:
            continue  # the 1e-6 that is added to the norm would count
        clip_grad_norm_(pair, norm.item() / 2)
        for p, values_before in zip(pair, before, strict=True):
            half = values_before / 2
            assert_agree("gradient", p.grad, half, 4 * eps(host(p.grad).dtype) * np.abs(half) + 1e-7 * half)


def test_clipping_a_read_only_gradient_raises_before_any_changes() -> None:
    p, q = parameter([1.0] * 3), parameter([1.0] * 3)
    p.grad = gf.tensor([3.0] * 3)
    q.grad = gf.broadcast_to(gf.tensor(3.0), (3,))
    assert clip_grad_norm_([p, q], math.inf).item() == pytest.approx(math.sqrt(54))
    with pytest.raises(ValueError, match="read-only"):
        clip_grad_norm_([p, q], 1.0)
    assert p.grad.tolist() == [3.0] * 3


@every_optimizer
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_tensor_assigned_as_the_gradient_may_be_written_again(device: str, make: Any, dtype: str) -> None:
    """A step made the flat buffer the gradient, so that later steps ignored the assigned tensor."""
    skip_without(device, dtype)
    p, q = parameter([1.0, 2.0], dtype), parameter([1.0, 2.0], dtype)
    optimizer, expected = make([p]), make([q])
    p.grad = buffer = gf.zeros((2,), dtype=dtype)
    for i in range(3):
        buffer[...] = float(i + 1)
        q.grad = gf.full((2,), float(i + 1), dtype=dtype)
        optimizer.step()
        expected.step()
        assert p.grad is buffer
        assert_agree("parameter", p, host(q))


def test_a_step_keeps_the_graph_of_a_gradient(device: str) -> None:
    p = parameter([1.0, 2.0])
    optimizer = SGD([p])
    (p * p * p).sum().backward(create_graph=True)
    gradient = p.grad
    optimizer.step()
    assert p.grad is gradient
    assert gradient.requires_grad


@every_optimizer
@pytest.mark.parametrize("outside", [False, True])
def test_an_interrupted_update_counts_as_a_step(device: str, make: Any, outside: bool) -> None:
    """Its parameters have changed: a graph that needs their old values must know, and so must the state."""
    p = parameter([1.0, 2.0])
    alias = p.detach() if outside else None
    optimizer = make([p])
    loss = (p * p).sum()
    p.grad = gf.ones((2,))
    update = optimizer.update

    def interrupted(*arguments: Any) -> None:
        update(*arguments)
        raise KeyboardInterrupt

    optimizer.update = interrupted
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 1
    if outside:
        assert_agree("an alias", alias, p)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_that_a_move_dropped_does_not_reappear(frozen: bool) -> None:
    layer = nn.Linear(2, 2)
    weight = layer.weight.requires_grad_(False).requires_grad_(True)
    layer(gf.tensor([[1.0, 2.0]])).sum().backward()
    weight.requires_grad_(not frozen)
    assert weight.grad is not None
    layer.to("float64")
    assert weight.grad is None
    layer.to("float32")
    assert weight.grad is None


# ---------------------------------------------------------------------- edits, copies and memory


@pytest.mark.parametrize("make", [Adam, AdamW, RMSprop, SGD])
@pytest.mark.parametrize(
    "edit",
    [{"betas": 0.9}, {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"momentum": -5.0}, {"alpha": 1.0}, {"unknown": 1.0}],
    ids=str,
)
def test_an_invalid_hyperparameter_set_between_steps_raises_before_anything_changes(make: Any, edit: Any) -> None:
    """It raised in the middle of the step, after the parameters of earlier groups had changed, or not at all."""
    p, q = parameter([1.0, 2.0]), parameter([1.0, 2.0])
    optimizer = make([{"params": [p]}, {"params": [q]}])
    (name,) = edit
    if name != "unknown" and name not in optimizer.defaults:
        return
    for each in (p, q):
        each.grad = gf.ones((2,))
    optimizer.step()
    before, state = host(p).copy(), optimizer.state_dict()["state"]
    old = optimizer.param_groups[1].get(name)
    optimizer.param_groups[1].update(edit)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=name):
            optimizer.step()
    assert_agree("parameter", p, before)
    optimizer.param_groups[1][name] = old
    if old is None:
        del optimizer.param_groups[1][name]
    assert optimizer.steps == 1
    assert optimizer.state_dict()["state"].keys() == state.keys()
    optimizer.step()
    assert optimizer.steps == 2


@pytest.mark.parametrize("make", [Adam, AdamW, RMSprop, optim.Adagrad, optim.NAdam, optim.RAdam])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_eps_that_is_zero_in_the_dtype_raises(make: Any, dtype: str) -> None:
    """The step of a zero gradient was NaN, and so was the padding."""
    smallest = 1e-38 if dtype != "float64" else 1e-308
    with pytest.raises(ValueError, match="eps must be above 0, also in the dtype"):
        make([parameter([1.0], dtype)], eps=smallest)
    p, q = parameter([1.0], dtype), parameter([2.0], dtype)
    optimizer = make([p, q], eps=smallest * 100)
    for each in (p, q):
        each.grad = gf.zeros((1,), dtype=dtype)
    optimizer.step()
    assert p.isfinite().all()
    optimizer.param_groups[0]["eps"] = smallest
    with pytest.raises(ValueError, match="eps"):
        optimizer.step()


@every_optimizer
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_an_optimizer_with_non_finite_state_is_copied(device: str, make: Any, bad: float, copied: Any) -> None:
    p = parameter([1.0, 2.0])
    optimizer = make([p])
    p.grad = gf.full((2,), bad)
    optimizer.step()
    found, expected = copied(optimizer).state_dict(), optimizer.state_dict()
    assert found["steps"] == 1
    for name, value in expected["state"][0].items():
        if isinstance(value, gf.Tensor):
            np.testing.assert_array_equal(host(found["state"][0][name]), host(value))
        else:
            assert found["state"][0][name] == value


def read_only(values: Any) -> gf.Tensor:
    read_only.arrays = [*getattr(read_only, "arrays", []), np.array(values, np.float32)]  # type: ignore[attr-defined]
    read_only.arrays[-1].flags.writeable = False  # type: ignore[attr-defined]
    return gf.asarray(read_only.arrays[-1])  # type: ignore[attr-defined]


def test_a_group_that_cannot_be_added_leaves_the_optimizer_unchanged() -> None:
    p = parameter([1.0])
    optimizer = SGD([p], lr=1.0)
    with pytest.raises(ValueError, match="read-only"):
        optimizer.add_param_group({"params": [read_only([1.0]).requires_grad_()]})
    assert len(optimizer.param_groups) == 1
    p.grad = gf.ones((1,))
    optimizer.step()
    assert p.item() == 0.0


def test_a_frozen_parameter_may_be_read_only_until_it_is_trained() -> None:
    frozen, p = read_only([1.0]), parameter([1.0])
    optimizer = SGD([frozen, p], lr=1.0)
    p.grad = gf.ones((1,))
    optimizer.step()
    assert (frozen.item(), p.item()) == (1.0, 0.0)
    frozen.requires_grad_()
    with pytest.raises(ValueError, match=r"parameter 0, of shape .* read-only"):
        optimizer.step()
    assert p.item() == 0.0


def viewed_memory(kind: str, folder: Path) -> tuple[Any, np.ndarray]:
    """Float32 memory of another owner behind a view, 6 zeros: the array of a parameter, and another array of it."""
    if kind == "reshaped bytearray":
        memory = bytearray(24)
        return np.frombuffer(memory, np.float32).reshape(2, 3), np.frombuffer(memory, np.float32)
    if kind == "transposed buffer":
        memory = bytearray(24)
        return np.ndarray((3, 2), np.float32, memory).T, np.frombuffer(memory, np.float32)
    path = folder / "values"
    np.zeros(6, np.float32).tofile(path)
    mapped = np.memmap(path, np.float32, "r+", shape=(2, 3))
    return np.asarray(mapped), np.memmap(path, np.float32, "r+")


@every_optimizer
@pytest.mark.parametrize("kind", ["reshaped bytearray", "transposed buffer", "memmap"])
def test_memory_of_another_owner_behind_a_view_shows_what_an_optimizer_trains(
    tmp_path: Path, make: Any, kind: str
) -> None:
    array, other = viewed_memory(kind, tmp_path)
    p = gf.asarray(array).requires_grad_()
    del array
    optimizer = make([p])
    for _ in range(2):
        p.grad = gf.ones((2, 3))
        optimizer.step()
    assert (other != 0).all()
    assert_agree("memory", p.detach().flatten(), other)


@pytest.mark.parametrize("params", [lambda q: (x for x in [q]), lambda q: q, lambda q: gf.tensor(1.0)])
@pytest.mark.parametrize("use", [SGD.zero_grad, SGD.step])
def test_params_that_are_not_a_list_raise(params: Any, use: Any) -> None:
    """A generator was used up by zero_grad, so that its group trained nothing."""
    p = parameter([1.0, 2.0])
    optimizer = SGD([p])
    optimizer.param_groups[0]["params"] = params(p)
    with pytest.raises(TypeError, match=r"must be a list; got a (generator|Tensor): use list\(...\)"):
        use(optimizer)
    optimizer = SGD([p])
    optimizer.param_groups.append({"params": (x for x in [parameter([1.0])])})
    with pytest.raises(TypeError, match="must be a list"):
        optimizer.zero_grad()


def test_the_rate_of_a_group_that_was_appended_is_the_default() -> None:
    optimizer = SGD([parameter([1.0])], lr=0.5)
    optimizer.param_groups.append({"params": [parameter([1.0])]})
    assert optimizer.learning_rates == [0.5, 0.5]


def test_an_edit_does_not_hide_that_the_model_was_moved() -> None:
    model = network()
    optimizer = SGD(model.parameters(), momentum=0.9)
    model.to("float64")
    optimizer.param_groups[0]["params"].pop()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="parameter 0 was moved to float64"):
            optimizer.step()


@pytest.mark.parametrize("key", [0.7, -0.5])
def test_a_state_whose_keys_are_no_indices_raises(key: Any) -> None:
    optimizer = SGD([parameter([1.0])], momentum=0.9)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {"0": {"step": 1, "momentum_buffer": np.ones(1)}}})
    state = optimizer.state_dict()
    entry = state["state"][0]
    with pytest.raises(ValueError, match="has a parameter"):
        optimizer.load_state_dict({**state, "state": {key: entry}})
    with pytest.raises(ValueError, match="has parameter 0 twice"):
        optimizer.load_state_dict({**state, "state": {"0": entry, 0: entry}})


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(("dtype", "big"), [("float32", 1e300), ("float16", 1e6)])
def test_a_state_beyond_the_dtype_of_the_parameter_raises(device: str, dtype: str, big: float) -> None:
    skip_without(device, dtype)
    optimizer = SGD([parameter([1.0], dtype)], momentum=0.9)
    state = {"0": {"step": 1, "momentum_buffer": np.full(1, big)}}
    with pytest.raises(ValueError, match=f"non-finite in {dtype}"):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def test_an_invalid_edit_stops_steps_and_nothing_else() -> None:
    """A state can be saved, loaded over it, and copied; loading mends it."""
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    optimizer = optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True)
    (w * w).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    before = w.tolist()
    optimizer.param_groups[0]["momentum"] = 0.0
    with pytest.raises(ValueError, match="Nesterov"):
        optimizer.step()
    assert w.tolist() == before
    assert optimizer.state_dict()["param_groups"][0]["momentum"] == 0.0
    assert optimizer.learning_rates == [0.1]
    copy.deepcopy((w, optimizer))
    optimizer.load_state_dict(state)
    optimizer.step()
    assert w.tolist() != before
