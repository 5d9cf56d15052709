"""`GradScaler`: against PyTorch's, skipped steps, counts of applied steps, states, and no waits."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.optim import schedules
from gradflow.optim.averaging import WeightAverage
from gradflow.testing import count_transfers, forbid_sync
from tests.devices import replays

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}), "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}), "adam": ("Adam", {"lr": 0.01}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}), "rmsprop": ("RMSprop", {"lr": 0.01}),
    "nadam": ("NAdam", {"lr": 0.01, "maximize": True}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """NumPy warns of the numbers that the scaler is for."""
    with np.errstate(all="ignore"):
        yield


def leaf(device: str = "cpu") -> gf.Tensor:
    return gf.tensor([1.0, -2.0, 3.0], device=device, requires_grad=True)


def backward(scaler: Any, x: Any, bad: bool) -> None:
    factor = float("inf") if bad else 1.0
    scaler.scale((x * x).sum() * factor).backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("first_is_bad", [False, True])
def test_steps_and_scales_are_those_of_pytorch(torch: Any, name: str, first_is_bad: bool) -> None:
    """Scales exactly; parameters within 1e-5, over 24 steps of which some are skipped."""
    kind, options = OPTIMIZERS[name]
    x, y = leaf(), torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    numbers = {"init_scale": 1024.0, "growth_interval": 5}
    ours, theirs = gf.optim.GradScaler(**numbers), torch.amp.GradScaler("cpu", **numbers)
    optimizers = getattr(gf.optim, kind)([x], **options), getattr(torch.optim, kind)([y], **options)
    for i in range(24):
        bad = i in (3, 4, 17) or (first_is_bad and not i)
        for scaler, optimizer, parameter in ((ours, optimizers[0], x), (theirs, optimizers[1], y)):
            optimizer.zero_grad()
            backward(scaler, parameter, bad)
            if i % 3 == 0:
                scaler.unscale_(optimizer)
                clip = gf.optim.clip_grad_norm_ if scaler is ours else torch.nn.utils.clip_grad_norm_
                clip([parameter], 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert ours.get_scale() == theirs.get_scale()
        assert np.abs(x.detach().numpy() - y.detach().numpy()).max() < 1e-5
    assert optimizers[0].steps == 21 - first_is_bad
    assert ours.state_dict() == theirs.state_dict()


@pytest.mark.parametrize("seed", range(6))
def test_random_overflows_of_two_optimizers_are_those_of_pytorch(torch: Any, seed: int) -> None:
    """Parameters without a gradient, an empty group, clipping, either order, one optimizer alone, and loaded states."""
    rng = random.Random(seed)
    scales = {"init_scale": 2.0 ** rng.randint(-2, 20), "growth_interval": rng.randint(1, 4), "backoff_factor": 0.9}
    kinds = [rng.choice(list(OPTIMIZERS.values())) for _ in range(2)]
    steps = [
        ([rng.choice([1.0, 2.0, -1.0, float("inf"), float("nan")]) for _ in range(4)], [rng.random() < 0.8, True] * 2,
         rng.choice([(0, 1), (1, 0), (0,), (1,)]), rng.random() < 0.5, rng.random() < 0.2)
        for _ in range(20)
    ]  # fmt: skip

    def run(library: Any, make: Callable[[], Any], optim: Any, clip: Any) -> list[Any]:
        leaves = [library.tensor([float(i), -1.0, 0.5], requires_grad=True) for i in range(4)]
        groups = [[{"params": [x]} for x in leaves[k : k + 2]] + [{"params": []}] for k in (0, 2)]
        optimizers = [getattr(optim, kind)(g, **options) for g, (kind, options) in zip(groups, kinds, strict=True)]
        scaler, found = make(), []
        for factors, used, order, clips, loads in steps:
            for optimizer in optimizers:
                optimizer.zero_grad()
            terms = [(x * x).sum() * f for x, f, use in zip(leaves, factors, used, strict=True) if use]
            scaler.scale(sum(terms[1:], terms[0])).backward()
            for k in order:
                if clips:
                    scaler.unscale_(optimizers[k])
                    clip(leaves[2 * k : 2 * k + 2], 1.0)
            for k in order:
                scaler.step(optimizers[k])
            scaler.update()
            if loads:
                state, scaler = scaler.state_dict(), make()
                scaler.load_state_dict(state)
            found.append((scaler.state_dict(), np.array([x.tolist() for x in leaves])))
        return found

    theirs = run(torch, lambda: torch.amp.GradScaler("cpu", **scales), torch.optim, torch.nn.utils.clip_grad_norm_)
    ours = run(gf, lambda: gf.optim.GradScaler(**scales), gf.optim, gf.optim.clip_grad_norm_)
    for (state, values), (expected_state, expected) in zip(ours, theirs, strict=True):
        assert state == expected_state
        assert np.abs(values - expected).max() < 1e-5


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [(), (0,), (2, 3, 9)])
def test_applied_steps_have_the_bits_of_plain_steps(name: str, bad: tuple[int, ...], device: str) -> None:
    """Those of the optimizer alone, with a schedule, on the gradients of the applied steps."""
    kind, options = OPTIMIZERS[name]
    options = {**options, "lr": schedules.cosine(options["lr"], 20)}
    x, y = leaf(device), leaf(device)
    scaled, plain = getattr(gf.optim, kind)([x], **options), getattr(gf.optim, kind)([y], **options)
    scaler = gf.optim.GradScaler(init_scale=64.0, growth_interval=4)
    for i in range(12):
        scaled.zero_grad()
        backward(scaler, x, i in bad)
        scaler.step(scaled)
        scaler.update()
        if i not in bad:
            plain.zero_grad()
            (y * y).sum().backward()
            plain.step()
        if i == 6:
            assert scaled.steps == plain.steps
    assert x.tolist() == y.tolist()
    found, expected = scaled.state_dict(), plain.state_dict()
    assert found["steps"] == expected["steps"] == 12 - len(bad)
    for key, value in expected["state"][0].items():
        other = found["state"][0][key]
        assert (other.tolist() if isinstance(value, gf.Tensor) else other) == (
            value.tolist() if isinstance(value, gf.Tensor) else value
        )


EDITS: dict[str, Any] = {
    "a rate": lambda o: o.param_groups[0].update(lr=0.05),
    "a rate by a function": lambda o: o.param_groups[0].update(lr=lambda n: 0.1 / (n + 1)),
    "steps": lambda o: setattr(o, "steps", 20),
    "momentum": lambda o: o.param_groups[0].update(momentum=0.9),
    "weight decay": lambda o: o.param_groups[0].update(weight_decay=0.1),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("bad", [(), (0,), (2, 5)])
def test_edits_between_steps_have_the_bits_of_plain_steps(name: str, bad: tuple[int, ...], device: str) -> None:
    """Also with a new scaler for some steps, which counts the applied steps of the first one."""
    x, y = leaf(device), leaf(device)
    scaled, plain = [gf.optim.SGD([z], lr=0.1, dampening=0.5) for z in (x, y)]
    scalers = [gf.optim.GradScaler(init_scale=64.0) for _ in range(2)]
    for i in range(10):
        if i == 5:
            EDITS[name](scaled)
            EDITS[name](plain)
        scaled.zero_grad()
        scaler = scalers[i in (3, 4, 7)]
        backward(scaler, x, i in bad)
        scaler.step(scaled)
        scaler.update()
        if i not in bad:
            plain.zero_grad()
            (y * y).sum().backward()
            plain.step()
    assert x.tolist() == y.tolist()
    assert scaled.steps == plain.steps


@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop", "Adagrad", "NAdam", "RAdam", "Lion"])
def test_a_step_waits_for_nothing(kind: str) -> None:
    """On the fake device: no transfer to the host and no wait in 20 steps, skipped ones among them."""
    x = leaf("fake")
    optimizer, scaler = getattr(gf.optim, kind)([x], lr=0.1), gf.optim.GradScaler()

    def step(bad: bool) -> None:
        optimizer.zero_grad()
        backward(scaler, x, bad)
        scaler.step(optimizer)
        scaler.update()

    step(False)
    with forbid_sync(), count_transfers() as counts:
        for i in range(20):
            step(i == 7)
    assert (counts.to_host, counts.from_host, counts.synchronizations) == (0, 0, 0)
    assert (optimizer.steps, scaler.get_scale()) == (20, 32768.0)


def test_the_table_is_renewed(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """After as many steps as it has rows, after a changed rate, and where a parameter has no gradient."""
    monkeypatch.setattr("gradflow.optim.applied_steps.AHEAD", 3)
    results = []
    for scaled in (True, False):
        x, y = leaf(device), leaf(device)
        optimizer = gf.optim.Adam([x, y], lr=0.1)
        scaler = gf.optim.GradScaler(init_scale=4.0, enabled=scaled)
        for i in range(11):
            optimizer.zero_grad()
            if i == 5:
                optimizer.param_groups[0]["lr"] = 0.05
            loss = (x * x).sum() if i == 7 else (x * y).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append((x.tolist(), y.tolist(), optimizer.steps))
    assert results[0] == results[1]


def test_several_optimizers_and_accumulated_gradients() -> None:
    """Only the optimizer with a gradient that is not finite is skipped; the scale is that of all."""
    x, y = leaf(), leaf()
    first, second = gf.optim.SGD([x], lr=0.1), gf.optim.SGD([y], lr=0.1)
    scaler = gf.optim.GradScaler(init_scale=8.0)
    for _ in range(2):
        scaler.scale((x * 2.0).sum()).backward()
    scaler.scale((y * float("nan")).sum()).backward()
    for optimizer in (first, second):
        scaler.step(optimizer)
    scaler.update()
    assert x.tolist() == pytest.approx([0.6, -2.4, 2.6])
    assert y.tolist() == [1.0, -2.0, 3.0]
    assert (first.steps, second.steps, scaler.get_scale()) == (1, 0, 4.0)


@pytest.mark.parametrize("through", [lambda step: step, gf.capture])
@pytest.mark.parametrize("own_update", [False, True])
def test_a_skipped_step_does_not_enter_the_average(through: Any, own_update: bool, device: str) -> None:
    """Within 1e-6 of that of plain steps on the gradients of the applied ones; also in a state that is loaded."""

    class Own(gf.optim.SGD):
        def update(self, *arguments: Any) -> None:
            super().update(*arguments)

    x, y, factor = leaf(device), leaf(device), gf.ones((), device=device)
    scaled, plain = (Own if own_update else gf.optim.SGD)([x], lr=0.1), gf.optim.SGD([y], lr=0.1)
    scaler = gf.optim.GradScaler(init_scale=64.0)
    averages = [WeightAverage(scaled, 0.9, scaler), WeightAverage(plain, 0.9)]

    @through
    def step(factor: gf.Tensor) -> None:
        scaled.zero_grad()
        scaler.scale((x * x).sum() * factor).backward()
        scaler.step(scaled)
        scaler.update()
        averages[0].update()

    for i in range(12):
        bad = i in (0, 3, 4, 8, 11)
        step(factor * float("inf") if bad else factor)
        if not bad:
            plain.zero_grad()
            (y * y).sum().backward()
            plain.step()
            averages[1].update()
        if i == 5:
            averages[0].load_state_dict(averages[0].state_dict())
    found, expected = [average.state_dict() for average in averages]
    assert found["steps"] == expected["steps"] == 7
    assert np.abs(found["weights"][0].numpy() - expected["weights"][0].numpy()).max() < 1e-6


def test_an_optimizer_with_its_own_update() -> None:
    class Descent(gf.optim.Optimizer):
        def update(self, flat: Any, group: Any, lr: float, step: int, first: bool) -> None:
            flat.parameters[...] -= lr * flat.gradients

    x = leaf()
    optimizer, scaler = Descent([x], {"lr": 0.5}), gf.optim.GradScaler()
    for bad in (True, False):
        optimizer.zero_grad()
        backward(scaler, x, bad)
        scaler.step(optimizer)
        scaler.update()
    assert (x.tolist(), optimizer.steps) == ([0.0, 0.0, 0.0], 1)


def test_a_captured_step_of_float16_gives_the_same_bits(device: str) -> None:
    if not gf.get_backend(device).supports("float16"):
        pytest.skip(f"{device} has no float16")
    results = []
    for wrap in (lambda step: step, gf.capture):
        model = nn.MLP([6, 8, 3], device=device, generator=gf.Generator(1))
        optimizer = gf.optim.Adam(model.parameters(), lr=0.01)
        scaler = gf.optim.GradScaler(init_scale=2.0**40, growth_interval=3)  # the first steps overflow
        rng = np.random.default_rng(0)
        x = gf.tensor(rng.standard_normal((16, 6)).astype(np.float32), device=device)
        y = gf.tensor(rng.integers(0, 3, 16), device=device)

        def step(x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
            optimizer.zero_grad()  # noqa: B023
            with gf.autocast("float16"):
                loss = gf.cross_entropy(model(x), y)  # noqa: B023
            scaler.scale(loss).backward()  # noqa: B023
            scaler.step(optimizer)  # noqa: B023
            scaler.update()  # noqa: B023
            return loss

        run = wrap(step)
        losses = [run(x, y).item() for _ in range(60)]
        results.append((losses, optimizer.steps, scaler.get_scale()))
    assert replays(run.status)
    assert results[0] == results[1]
    assert 0 < results[0][1] < 60
    assert results[0][0][-1] < results[0][0][0]


def test_states() -> None:
    x = leaf()
    optimizer, scaler = gf.optim.SGD([x], lr=0.0), gf.optim.GradScaler(init_scale=2.0, growth_interval=3)
    for _ in range(2):
        optimizer.zero_grad()
        backward(scaler, x, False)
        scaler.step(optimizer)
        scaler.update()
    other = gf.optim.GradScaler()
    other.scale(gf.ones(()))
    for target in (other, gf.optim.GradScaler()):
        target.load_state_dict(scaler.state_dict())
        assert target.state_dict() == scaler.state_dict()
    for twin in (copy.deepcopy(scaler), pickle.loads(pickle.dumps(scaler))):
        assert twin.state_dict() == scaler.state_dict()
        backward(twin, leaf(), False)
        backward(target, x, False)
        target.step(optimizer)
        target.update()
        assert target.get_scale() == 4.0
    assert gf.optim.GradScaler(enabled=False).state_dict() == {}


def test_a_new_state_is_that_of_pytorch(torch: Any) -> None:
    assert torch.amp.GradScaler("cpu").state_dict() == gf.optim.GradScaler().state_dict()


def test_errors() -> None:
    x = leaf()
    optimizer = gf.optim.SGD([x])
    for name, wrong in (("init_scale", 0.0), ("init_scale", -1), ("init_scale", 1e39), ("growth_factor", 1.0),
                        ("backoff_factor", 1.0), ("growth_interval", 0), ("growth_interval", 2.5)):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name} must be .*; got {wrong}$".replace("+", r"\+")):
            gf.optim.GradScaler(**{name: wrong})  # type: ignore[arg-type]
    for method in ("step", "unscale_"):
        for thing in (None, nn.Linear(1, 1), [optimizer]):
            with pytest.raises(TypeError, match=f"^GradScaler.{method} takes an optimizer; got "):
                getattr(gf.optim.GradScaler(), method)(thing)
    with pytest.raises(RuntimeError, match=r"call scaler\.scale"):
        gf.optim.GradScaler().step(optimizer)
    scaler = gf.optim.GradScaler()
    scaler.scale(gf.ones(()))
    with pytest.raises(ValueError, match="this GradScaler is on cpu; got a tensor on fake"):
        scaler.scale(gf.ones((), device="fake"))


def test_states_that_are_none() -> None:
    scaler = gf.optim.GradScaler(init_scale=4.0)
    state = scaler.state_dict()
    for wrong, error, match in (
        ({}, KeyError, "lacks scale, .*: it is that of a scaler that is not enabled"),
        ({"scale": 2.0}, KeyError, "lacks growth_factor, backoff_factor, growth_interval, _growth_tracker'"),
        ({**state, "growth_factor": "a"}, ValueError, "growth_factor must be a finite number; got 'a'"),
        ({**state, "growth_interval": 2.5}, ValueError, "^growth_interval must be an integer"),
        ({**state, "_growth_tracker": -1}, ValueError, "^_growth_tracker must be an integer"),
        ({**state, "scale": -1.0}, ValueError, r"^scale must be in \(0, "),
        (None, TypeError, "takes a state dict"),
    ):
        with pytest.raises(error, match=match):
            scaler.load_state_dict(wrong)
    assert scaler.state_dict() == state


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scaler: pickle.loads(pickle.dumps(scaler))])
def test_copies_go_on_by_themselves(copied: Callable[[Any], Any], device: str) -> None:
    x = leaf(device)
    optimizer, scaler = gf.optim.SGD([x], lr=0.1), gf.optim.GradScaler(init_scale=4.0, growth_interval=2)
    backward(scaler, x, False)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"call scaler.update\(\) first"):
        copied(scaler)
    scaler.update()
    other = copied(scaler)
    assert other.state_dict() == scaler.state_dict()
    backward(other, x, False)
    other.step(optimizer)
    other.update()
    assert (other.get_scale(), scaler.get_scale(), optimizer.steps) == (8.0, 4.0, 2)
    assert not copied(gf.optim.GradScaler(enabled=False)).is_enabled()


def test_calls_in_a_wrong_order_raise_and_change_nothing() -> None:
    """Those that PyTorch refuses."""
    x, y = leaf(), leaf()
    optimizer, other = gf.optim.SGD([x], lr=1.0), gf.optim.SGD([y], lr=1.0)
    scaler = gf.optim.GradScaler(init_scale=4.0, growth_interval=1)
    scaler.scale((x * 2.0).sum()).backward()
    with pytest.raises(RuntimeError, match=r"no step since the last update\(\)"):
        scaler.update()
    with pytest.raises(RuntimeError, match="no parameter of this optimizer has a gradient"):
        scaler.step(other)
    with pytest.raises(RuntimeError, match="no parameter of this optimizer has a gradient"):
        scaler.unscale_(other)
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"were unscaled already since the last update\(\)"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for call in (scaler.step, scaler.unscale_):
        with pytest.raises(RuntimeError, match=r"has done a step since the last update\(\)"):
            call(optimizer)
    assert (x.tolist(), x.grad.tolist(), scaler.get_scale()) == ([-1.0, -4.0, 1.0], [2.0] * 3, 4.0)
    scaler.update()
    with pytest.raises(RuntimeError, match=r"no step since the last update\(\)"):
        scaler.update()
    assert (scaler.get_scale(), optimizer.steps) == (8.0, 1)
    disabled = gf.optim.GradScaler(enabled=False)
    for _ in range(2):
        disabled.step(optimizer)
        disabled.update()
    assert optimizer.steps == 3
