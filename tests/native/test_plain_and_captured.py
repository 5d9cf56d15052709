"""Steps in which plain and captured could differ: they raise in the middle, or read an input that they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gradflow_numpy.fast import FastNumpyBackend
from gradflow_numpy.native.kernels import is_supported

import gradflow as gf
from gradflow import nn, optim
from gradflow.optim.averaging import WeightAverage

pytestmark = pytest.mark.skipif(
    not isinstance(gf.get_backend("cpu"), FastNumpyBackend) or not is_supported(), reason="needs the extra fast"
)
Step = Callable[..., gf.Tensor]


def bits(x: gf.Tensor) -> bytes:
    return x.detach().numpy().tobytes()


def trained(
    make: Callable[[], tuple[list[gf.Tensor], list[optim.Optimizer], Step]],
    inputs: Callable[[int, list[gf.Tensor]], list[gf.Tensor]],
    capture: bool,
) -> tuple[list[Any], str]:
    """What 12 steps return or raise, and leave; and the status of the last one."""
    gf.manual_seed(0)
    parameters, optimizers, step = make()
    run, found = gf.capture(step) if capture else step, []
    for i in range(12):
        result: Any
        try:
            result = bits(run(*inputs(i, parameters)))
        except (IndexError, ValueError) as error:
            result = repr(error)
        state = [bits(p) for p in parameters], [p.grad is None for p in parameters], [each.steps for each in optimizers]
        found.append((result, state))
    return found, getattr(run, "status", "")


def assert_same(make: Any, inputs: Any, errors: int, status: str) -> None:
    plain, (captured, found) = trained(make, inputs, False)[0], trained(make, inputs, True)
    assert plain == captured
    assert sum(isinstance(result, str) for result, _ in plain) == errors
    assert found.startswith(status)


def two_embeddings() -> Any:
    """The second embedding comes after the gradients of the first."""
    table = nn.Embedding(10, 4)
    parameters = list(table.parameters())
    optimizer = optim.Adam(parameters, lr=0.1)

    def step(i: gf.Tensor, j: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        gf.mse_loss(gf.tanh(table(i)), gf.ones((8, 4))).backward()
        loss = gf.mse_loss(table(j), gf.ones((8, 4)))
        loss.backward()
        optimizer.step()
        return loss

    return parameters, [optimizer], step


def two_losses() -> Any:
    """The labels of the second loss are computed, after the step of the first optimizer."""
    a, b = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizers = [optim.Adam(list(x.parameters()), lr=0.1) for x in (a, b)]

    def step(x: gf.Tensor, labels: gf.Tensor) -> gf.Tensor:
        for each in optimizers:
            each.zero_grad()
        a(x).square().mean().backward()
        optimizers[0].step()
        loss = gf.cross_entropy(b(x), labels * 1)
        loss.backward()
        optimizers[1].step()
        return loss

    return [*a.parameters(), *b.parameters()], optimizers, step


def test_an_index_that_is_none_changes_nothing_even_after_gradients() -> None:
    def indices(i: int, _: Any) -> list[gf.Tensor]:
        rng = np.random.default_rng(i)
        a, b = rng.integers(0, 10, (2, 8))
        b[3] = 10 if i == 7 else b[3]
        return [gf.tensor(a), gf.tensor(b)]

    assert_same(two_embeddings, indices, 1, "replaying, with _check_range")


def test_labels_that_are_computed_and_wrong_leave_what_the_plain_step_leaves() -> None:
    def batch(i: int, _: Any) -> list[gf.Tensor]:
        rng = np.random.default_rng(i)
        labels = rng.integers(0, 3, 8)
        labels[3] = 3 if i == 7 else labels[3]
        return [gf.tensor(rng.normal(size=(8, 4)).astype("f4")), gf.tensor(labels)]

    status = "replaying, in Python, since it calls _check_label_values after it has changed something"
    assert_same(two_losses, batch, 1, status)


@pytest.mark.parametrize("first", [0, 6])
def test_an_input_may_be_a_parameter_and_is_read_after_the_step(first: int) -> None:
    def make() -> Any:
        weight = gf.random.normal((4, 4)).requires_grad_()
        optimizer = optim.SGD([weight], lr=0.1)

        def step(x: gf.Tensor) -> gf.Tensor:
            optimizer.zero_grad()
            (x @ weight).square().mean().backward()
            optimizer.step()
            return x * 2.0

        return [weight], [optimizer], step

    def parameter(i: int, parameters: list[gf.Tensor]) -> list[gf.Tensor]:
        return [parameters[0].detach() if i >= first else gf.full((4, 4), float(i))]

    status = "replaying, with " if first else "changes the memory of an input"
    assert_same(make, parameter, 0, status)


@pytest.mark.parametrize("rate", [0.1, lambda steps: 0.1 / (1 + steps)])
@pytest.mark.parametrize("read_at", [range(3, 4), range(0, 300, 2), range(0)])
def test_the_numbers_of_a_scaler_are_no_part_of_the_step(rate: Any, read_at: range) -> None:
    """Reading `optimizer.steps` refills the table of scalars, and so do 256 steps. Every tenth step overflows."""

    def values(through: Callable[[Any], Any]) -> list[Any]:
        x = gf.tensor([0.5, 1.0], requires_grad=True)
        optimizer, scaler, found = optim.Adam([x], lr=rate), optim.GradScaler(growth_interval=1000), []

        def step(factor: gf.Tensor) -> None:
            optimizer.zero_grad()
            scaler.scale((x * factor).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()

        run = through(step)
        for i in range(300):
            if i in read_at:
                found.append(optimizer.steps)
            run(gf.tensor([float("inf") if i % 10 == 3 else 1.0, 2.0]))
            found.append(bits(x))
        return [*found, optimizer.steps]

    assert values(gf.capture) == values(lambda step: step)


@pytest.mark.parametrize("check", [None, 1])
def test_an_optimizer_that_only_a_scaler_gets_is_guarded_and_checked(check: int | None) -> None:
    def values(through: Callable[[Any], Any]) -> list[Any]:
        gf.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer, scaler = optim.Adam(model.parameters(), lr=0.1), optim.GradScaler()

        def step(x: gf.Tensor) -> gf.Tensor:
            model.zero_grad()
            loss = model(x).square().sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return loss

        run, found = through(step), []
        for i in range(14):
            if i == 9:
                optimizer.param_groups[0]["params"].reverse()
            found.append([bits(run(gf.full((4, 3), 1.0 + i % 3))), bits(model.weight)])
        return found

    assert values(lambda step: gf.capture(step, check=check)) == values(lambda step: step)


def test_a_captured_update_of_an_average_follows_the_blocks_of_its_optimizer() -> None:
    def averages(through: Callable[[Any], Any]) -> list[Any]:
        gf.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        average, found = WeightAverage(optimizer, 0.9), []
        update = through(lambda: average.update())
        for i in range(14):
            if i == 9:
                optimizer.param_groups[0]["params"].reverse()
            optimizer.zero_grad()
            model(gf.full((2, 3), float(i))).square().mean().backward()
            optimizer.step()
            update()
            found.append([x.tobytes() for x in average._arrays])
        return found

    assert averages(gf.capture) == averages(lambda step: step)


def test_a_check_also_restores_the_gradients_of_frozen_parameters() -> None:
    def gradients(through: Callable[[Any], Any]) -> list[Any]:
        gf.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        def step(x: gf.Tensor) -> gf.Tensor:
            model(x).square().sum().backward()
            norm = optim.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            return norm

        run, found = through(step), []
        for i in range(8):
            model.weight.requires_grad_(i == 0)
            run(gf.ones((4, 3)))
            found.append(None if model.weight.grad is None else bits(model.weight.grad))
        return found

    assert gradients(gf.capture(check=1)) == gradients(lambda step: step)
