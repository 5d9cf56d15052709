"""`schedules.plateau` has the rates of PyTorch's ReduceLROnPlateau, and a `Trainer` follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import optim
from gradflow.data import Batches
from gradflow.optim.schedules import plateau
from gradflow.training import Trainer

OPTIONS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["min", "max"]),
        "factor": st.sampled_from([0.1, 0.5, 0.0]),
        "patience": st.integers(0, 3),
        "threshold": st.sampled_from([1e-4, 0.0, 0.2]),
        "threshold_mode": st.sampled_from(["rel", "abs"]),
        "cooldown": st.integers(0, 3),
        "min_lr": st.sampled_from([0.0, 0.003]),
        "eps": st.sampled_from([1e-8, 0.01]),
    }
)
FIGURES = st.one_of(st.integers(-3, 3).map(float), st.floats(-3, 3), st.just(float("nan")))


def test_the_rates_are_pytorchs(random_examples: Any) -> None:
    """To the bit, after each epoch of a random history."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])

    @random_examples(100)
    @given(OPTIONS, st.lists(FIGURES, max_size=30))
    def check(options: dict[str, Any], history: list[float]) -> None:
        optimizer.param_groups[0]["lr"] = 0.1
        theirs, ours = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options), plateau(0.1, **options)
        assert ours([]) == 0.1
        for i, figure in enumerate(history, 1):
            theirs.step(figure)
            assert ours(history[:i]) == optimizer.param_groups[0]["lr"], f"after epoch {i}"

    check()


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0}, {"factor": 1.0}, {"factor": -0.5}, {"patience": -1}, {"patience": 1.5}, {"cooldown": True},
        {"mode": "least"}, {"threshold_mode": "share"}, {"threshold": -1.0}, {"min_lr": -1.0}, {"eps": -1.0},
    ],
)  # fmt: skip
def test_arguments_out_of_range_raise(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plateau(**{"lr": 0.1, **wrong})


def test_it_is_no_function_of_steps() -> None:
    x = gf.tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([x], lr=plateau(0.1))  # type: ignore[arg-type]
    x.sum().backward()
    with pytest.raises(TypeError, match="takes the figures of all epochs so far, not a step; got 0"):
        optimizer.step()
    assert x.item() == 1.0


# ---------------------------------------------------------------------- by a trainer

X = gf.random.normal((40, 3), generator=gf.Generator(0))
Y = X[:, :1] - X[:, 1:2]


def trainer(rule: Any, capture: bool = False, metric: bool = False) -> Trainer:
    model = gf.nn.Linear(3, 1, generator=gf.Generator(1))
    groups = [{"params": [model.weight], "lr": 0.7}, {"params": [model.bias]}]
    batches = Batches(X, Y, 8, gf.Generator(2), shuffle=True)
    options: dict[str, Any] = {"metrics": ["r2"], "monitor": "r2"} if metric else {}
    optimizer = optim.SGD(groups, lr=0.5, momentum=0.9)
    return Trainer(model, gf.mse_loss, optimizer, batches, Batches(X, Y, 40), schedule=rule, capture=capture, **options)


@pytest.mark.parametrize("capture", [False, True])
def test_a_trainer_has_the_rates_of_the_figures_so_far(capture: bool) -> None:
    """All groups; in captured steps, too. They have the bits of a loop that sets the rates."""
    rule = plateau(0.9, factor=0.5, patience=0, threshold=0.1)
    run, by_hand = trainer(rule, capture), trainer(None)
    assert len(list(run.epochs(12))) == 12
    losses: list[float] = []
    for epoch in range(12):
        for group in by_hand.optimizer.param_groups:
            group["lr"] = rule(losses)
        *_, last = by_hand.epochs(epoch + 1)
        losses.append(last.validation_loss)
    assert [e.learning_rate for e in run.history] == [rule(losses[:i]) for i in range(12)]
    assert len({e.learning_rate for e in run.history}) > 2
    assert run.history == by_hand.history
    assert [group["lr"] for group in run.optimizer.param_groups] == [run.history[-1].learning_rate] * 2


@pytest.mark.parametrize("steps", [0, 3, 5, 42])
def test_a_resumed_run_has_the_same_rates(steps: int, tmp_path: Path) -> None:
    rule = plateau(0.9, mode="max", factor=0.5, patience=0, threshold=0.1)
    whole, part, resumed = (trainer(rule, metric=True) for _ in range(3))
    list(whole.epochs(12))
    list(part.steps(steps))
    part.save(tmp_path / "state.safetensors")
    resumed.load(tmp_path / "state.safetensors")
    list(resumed.epochs(12))
    assert resumed.history == whole.history
    assert resumed.model.weight.tolist() == whole.model.weight.tolist()
    other = trainer(plateau(0.8), metric=True)
    with pytest.raises(ValueError, match=r"schedule was .plateau\(lr=0.9.+ is .plateau\(lr=0.8"):
        other.load(tmp_path / "state.safetensors")


def test_a_schedule_that_does_not_fit_raises() -> None:
    with pytest.raises(TypeError, match="schedule is a function of the figures so far"):
        trainer(0.1)
    model = gf.nn.Linear(3, 1)
    optimizer = optim.SGD(model.parameters(), lr=optim.schedules.cosine(0.1, 10))
    with pytest.raises(ValueError, match="the optimizer has a schedule of steps as its lr"):
        Trainer(model, gf.mse_loss, optimizer, Batches(X, Y, 8), schedule=plateau(0.1))
    with pytest.raises(ValueError, match="the rate of the schedule must be a finite number"):
        list(trainer(lambda figures: float("nan")).epochs(1))


# ---------------------------------------------------------------------- a schedule for each group


def test_each_group_has_a_schedule_of_its_own_as_in_pytorch(device: str) -> None:
    """LambdaLR with a list: rates, weights and, through a saved state, what follows."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    rules = [lambda step: 0.1 * 0.5**step, lambda step: 0.2 / (1 + step)]
    theirs = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in rules]
    reference = torch.optim.SGD([{"params": [p]} for p in theirs], lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(reference, rules)

    def groups(parameters: list[gf.Tensor]) -> list[dict[str, Any]]:
        return [{"params": [p], "lr": rule} for p, rule in zip(parameters, rules, strict=True)]

    ours = [gf.ones(2, dtype="float64", requires_grad=True) for _ in rules]
    optimizer = optim.SGD(groups(ours), momentum=0.9)
    for step in range(6):
        if step == 3:
            state = optimizer.state_dict()
            assert all("lr" not in group for group in state["param_groups"])
            optimizer = optim.SGD(groups(ours), momentum=0.9)
            optimizer.load_state_dict(state)
        assert optimizer.learning_rates == pytest.approx(scheduler.get_last_lr(), rel=1e-15)
        for p, q in zip(ours, theirs, strict=True):
            p.grad, q.grad = gf.full((2,), 0.5 - step, dtype="float64"), torch.full((2,), 0.5 - step, dtype=q.dtype)
        optimizer.step()
        reference.step()
        scheduler.step()
    for p, q in zip(ours, theirs, strict=True):
        assert p.tolist() == pytest.approx(q.tolist(), rel=1e-14)
