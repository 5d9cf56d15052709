"""A run that is stopped at any step and goes on from its saved state has the bits of one that never stopped."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.testing.workloads.workload import EPS
from gradflow.training import Trainer

hypothesis = pytest.importorskip("hypothesis")
pytest.importorskip("safetensors")
given, strategies = hypothesis.given, hypothesis.strategies

RNG = np.random.default_rng(0)
SAMPLES = 50
INPUTS = RNG.normal(size=(SAMPLES, 3)).astype("float32")
LABELS = (INPUTS[:, 0] > 0).astype("int64") + (INPUTS[:, 1] > 0.5)
VALUES = (INPUTS @ RNG.normal(size=(3, 2))).astype("float32")
WEIGHTS = RNG.uniform(0.5, 2.0, size=SAMPLES)


class Noisy(nn.Module):
    """A module of a user, with a buffer and random numbers of its own."""

    def __init__(self, generator: gf.Generator) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3, generator=generator)
        self.noise = generator
        self.register_buffer("calls", gf.zeros(()))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        if self.training:
            self.calls = self.calls + 1.0
            x = x + 0.1 * gf.random.normal(x.shape, generator=self.noise)
        return self.inner(x).tanh()


class Table(nn.Module):
    """A module of a user that looks up rows of a table: each index occurs many times in a batch."""

    def __init__(self, out: int, p: float) -> None:
        super().__init__()
        self.rows = nn.Parameter(gf.random.normal((5, 4)))
        self.head = nn.Sequential(nn.Dropout(p), nn.Linear(12, out))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        indices = gf.astype(gf.clip(gf.floor(2.0 * x) + 2.0, 0.0, 4.0), "int64")
        return self.head(gf.reshape(self.rows[indices], (len(x), 12)))


MODELS: dict[str, Callable[[int, float], nn.Module]] = {
    "perceptron": lambda out, p: nn.MLP([3, 6, 5, out], "tanh", dropout=p, generator=gf.Generator(3)),
    "sequential": lambda out, p: nn.Sequential(
        nn.Linear(3, 6), nn.LayerNorm(6), nn.GELU(), nn.Dropout(p), nn.Linear(6, out)
    ),
    "linear": lambda out, p: nn.Sequential(nn.Dropout(p, gf.Generator(7)), nn.Linear(3, out)),
    "user": lambda out, p: nn.Sequential(Noisy(gf.Generator(8)), nn.Dropout(p), nn.Linear(3, out)),
    "table": Table,
}
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": optim.SGD,
    "momentum": partial(optim.SGD, momentum=0.9, nesterov=True),
    "adam": optim.Adam,
    "adamw": partial(optim.AdamW, weight_decay=0.1),
    "rmsprop": partial(optim.RMSprop, momentum=0.5, centered=True),
    "nadam": optim.NAdam,
    "amsgrad": partial(optim.Adam, amsgrad=True),
}
SCHEDULES: dict[str, Any] = {
    "number": 0.02,
    "cosine": optim.schedules.cosine(0.05, 40),
    "warm-up": lambda step: 0.002 * min(step + 1, 10),
    "plateau": 0.05,
}
LOSSES: dict[str, tuple[Any, Any, int, list[str]]] = {
    "labels": (gf.cross_entropy, LABELS, 3, ["accuracy"]),
    "values": (nn.HuberLoss(), VALUES, 2, ["r2", "rmse"]),
}


@dataclass(frozen=True)
class Case:
    """The settings of a run."""

    model: str = "perceptron"
    optimizer: str = "adam"
    schedule: str = "cosine"
    loss: str = "labels"
    dropout: float = 0.0
    accumulate: int = 1
    average: float | None = None
    clip_norm: float | None = None
    capture: bool | str = "auto"
    weights: bool = False
    class_weight: str | None = None
    keep: str = "device"
    batch: int = 16
    drop_last: bool = False
    shuffle: str = "own"
    validation: bool = True
    autocast: str | None = None

    def trainer(self) -> Trainer:
        """Return a new trainer, the same each time, on the current device."""
        gf.manual_seed(0)
        loss, targets, outputs, metrics = LOSSES[self.loss]
        model = MODELS[self.model](outputs, self.dropout)
        optimizer = OPTIMIZERS[self.optimizer](model.parameters(), lr=SCHEDULES[self.schedule])
        generator = gf.Generator(1) if self.shuffle == "own" else None
        train = Batches(
            INPUTS, targets, self.batch, generator, self.shuffle != "no", self.drop_last,
            weights=WEIGHTS if self.weights else None, keep=self.keep,
        )  # fmt: skip
        validation = Batches(INPUTS[:20], targets[:20], 12) if self.validation else None  # shuffled, too
        trainer = Trainer(
            model, loss, optimizer, train, validation, metrics=metrics, clip_norm=self.clip_norm,
            schedule=optim.schedules.plateau(0.05, patience=0) if self.schedule == "plateau" else None,
            accumulate=self.accumulate, average=self.average, capture=self.capture, autocast=self.autocast,
            class_weight=self.class_weight if self.loss == "labels" else None,
        )  # fmt: skip
        if trainer.scaler is not None:  # so that some steps overflow, early and late
            state = {**trainer.scaler.state_dict(), "scale": 2.0**22, "growth_interval": 2}
            trainer.scaler.load_state_dict(state)
        return trainer


CASES = strategies.builds(
    Case,
    model=strategies.sampled_from(sorted(MODELS)),
    optimizer=strategies.sampled_from(sorted(OPTIMIZERS)),
    schedule=strategies.sampled_from(sorted(SCHEDULES)),
    loss=strategies.sampled_from(sorted(LOSSES)),
    dropout=strategies.sampled_from([0.0, 0.3]),
    accumulate=strategies.sampled_from([1, 2, 3]),
    average=strategies.sampled_from([None, 0.9]),
    clip_norm=strategies.sampled_from([None, 0.5]),
    capture=strategies.sampled_from(["auto", True, False]),
    weights=strategies.booleans(),
    class_weight=strategies.sampled_from([None, "balanced"]),
    keep=strategies.sampled_from(["device", "host"]),
    batch=strategies.sampled_from([7, 16, 50]),
    drop_last=strategies.booleans(),
    shuffle=strategies.sampled_from(["own", "default", "no"]),
    validation=strategies.booleans(),
    autocast=strategies.sampled_from([None, None, "bfloat16", "float16"]),
)


def bits(x: Any) -> Any:
    """Return what distinguishes a state bit for bit."""
    if isinstance(x, gf.Tensor):
        return x.dtype.name, x.shape, x.detach().cpu().numpy().tobytes()
    if isinstance(x, dict):
        return {key: bits(part) for key, part in x.items()}
    if isinstance(x, (list, tuple)):
        return [*map(bits, x)]
    return repr(x)


def outcome(trainer: Trainer) -> Any:
    """Return all that a run has led to: history, weights, best weights, moments, generators, without times."""
    state = trainer.state_dict()
    for epoch in [*state["progress"]["history"], state["progress"]]:
        for name in {"seconds", "samples_per_second"} & set(epoch):
            epoch[name] = 0.0
    return bits(state)


def losses(trainer: Trainer, n: int) -> list[Any]:
    return [bits(step.loss) for step in trainer.steps(n)]


def check_resume(case: Case, stops: Sequence[int], n: int, path: Path) -> None:
    """Assert that a run of n steps, stopped after these steps, has the bits of one that never stopped."""
    whole = case.trainer()
    expected = losses(whole, n), outcome(whole)
    trainer, found = case.trainer(), []
    for stop in stops:
        found += losses(trainer, stop)
        trainer.save(path)
        before = outcome(trainer)
        trainer = case.trainer()
        trainer.load(path)
        assert outcome(trainer) == before
    found += losses(trainer, n)
    assert found == expected[0]
    assert outcome(trainer) == expected[1]


@pytest.mark.slow
def test_any_run_goes_on_with_the_same_bits(random_examples: Callable[[int], Any], tmp_path: Path) -> None:
    @random_examples(20)
    @given(
        case=CASES,
        stops=strategies.lists(strategies.integers(0, 24), max_size=2),
        device=strategies.sampled_from(["cpu", "cpu", "fake"]),
    )
    def check(case: Case, stops: list[int], device: str) -> None:
        with gf.use_device(device):
            check_resume(case, sorted(stops), 25, tmp_path / "state.safetensors")

    check()


@pytest.mark.parametrize("stop", range(11))
def test_a_run_goes_on_from_each_step(device: str, stop: int, tmp_path: Path) -> None:
    """Between epochs too: an epoch has four steps of up to two batches of 7."""
    case = Case(accumulate=2, batch=7, average=0.9, clip_norm=0.5, weights=True, dropout=0.2)
    check_resume(case, [stop], 11, tmp_path / "state.safetensors")


def test_a_captured_run_goes_on_as_a_plain_one_and_the_reverse(device: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    plain, captured = Case(capture=False, average=0.9), Case(capture=True, average=0.9)
    whole = plain.trainer()
    expected = losses(whole, 20), outcome(whole)
    for first, second in ((plain, captured), (captured, plain)):
        trainer = first.trainer()
        found = losses(trainer, 9)
        trainer.save(path)
        trainer = second.trainer()
        trainer.load(path)
        assert (found + losses(trainer, 20), outcome(trainer)) == expected


def test_saving_does_not_change_the_run(device: str, tmp_path: Path) -> None:
    case = Case(average=0.9, dropout=0.0, accumulate=2)
    other = case.trainer()
    expected = losses(other, 15), outcome(other)
    saving, found = case.trainer(), []
    for step in saving.steps(15):
        found.append(bits(step.loss))
        saving.save(tmp_path / "state.safetensors")
    assert (found, outcome(saving)) == expected


def test_a_used_trainer_goes_back(device: str, tmp_path: Path) -> None:
    """Captured steps, the batches of the running epoch and the history of the moments are all replaced."""
    case = Case(capture=True, optimizer="momentum", average=0.9)
    trainer, path = case.trainer(), tmp_path / "state.safetensors"
    for stop in (0, 3):
        list(trainer.steps(stop))
        trainer.save(path)
        expected = losses(trainer, 18), outcome(trainer)
        for _ in range(2):
            trainer.load(path)
            assert (losses(trainer, 18), outcome(trainer)) == expected
        trainer.load(path)


def test_a_fresh_process_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from tests.test_resume import *
        trainer = Case(dropout=0.2, average=0.9).trainer()
        trainer.load("state.safetensors")
        print(losses(trainer, 20), outcome(trainer))
    """
    trainer = Case(dropout=0.2, average=0.9).trainer()
    losses(trainer, 9)
    trainer.save(tmp_path / "state.safetensors")
    expected = f"{losses(trainer, 20)} {outcome(trainer)}"
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == expected


def test_hyperparameters_that_were_changed_are_kept(tmp_path: Path) -> None:
    case, path = Case(schedule="number"), tmp_path / "state.safetensors"
    trainer = case.trainer()
    list(trainer.steps(5))
    trainer.optimizer.param_groups[0].update(lr=0.003, betas=(0.5, 0.9), weight_decay=0.2)
    list(trainer.steps(7))
    trainer.save(path)
    expected = losses(trainer, 15)
    trainer = case.trainer()
    trainer.load(path)
    assert losses(trainer, 15) == expected
    assert trainer.history[-1].learning_rate == 0.003


def test_what_is_not_finite_goes_on(tmp_path: Path) -> None:
    """An epoch that has diverged is read at its end, by the run that goes on, too."""
    case, path = Case(schedule="number", optimizer="momentum"), tmp_path / "state.safetensors"
    trainer = case.trainer()
    trainer.optimizer.param_groups[0]["weight_decay"] = 1e38
    with np.errstate(all="ignore"):
        list(trainer.steps(3))
        moments = trainer.optimizer.state_dict()["state"]
        assert not all(gf.isfinite(entry["momentum_buffer"]).all().item() for entry in moments.values())
        trainer.save(path)
        trainer = case.trainer()
        trainer.load(path)
        with pytest.raises(ArithmeticError, match="the loss became"):
            list(trainer.steps(4))


def test_what_is_frozen_and_in_which_mode_goes_on(device: str, tmp_path: Path) -> None:
    case = Case(dropout=0.3, capture=True)

    def run(stop: int) -> Any:
        trainer, found = case.trainer(), []
        layers = [*trainer.model.modules()]
        layers[1].requires_grad_(False)  # the script of a user, who thaws a layer later
        for step in trainer.steps(9):
            if step.step == 3:
                layers[1].requires_grad_(True)
                layers[-1].requires_grad_(False)
                next(m for m in layers if isinstance(m, nn.Dropout)).eval()
            if step.step == stop:
                trainer.save(tmp_path / "state")
                trainer = case.trainer()
                trainer.load(tmp_path / "state")
                break
        found = losses(trainer, 15)[-6:]
        return found, outcome(trainer), [p.requires_grad for p in trainer.model.parameters()]

    expected = run(0)
    assert run(3) == run(7) == expected
    assert expected[2] == [True] * 4 + [False] * 2


class Listed(nn.Module):
    """A module with generators in a list, a tuple and a dict."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        first = gf.Generator(7)
        self.generators = [first], {"second": first if shared else gf.Generator(7)}
        self.listed, self.named = self.generators
        self.inner = nn.Linear(3, 3, generator=gf.Generator(0))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        x = gf.dropout(x, 0.5, self.training, generator=self.listed[0])
        return self.inner(gf.dropout(x, 0.5, self.training, generator=self.named["second"]))


def test_generators_in_lists_and_dicts_and_how_they_are_shared(tmp_path: Path) -> None:
    def make(shared: bool) -> Trainer:
        model = Listed(shared)
        return Trainer(model, gf.cross_entropy, optim.Adam(model.parameters()), Batches(INPUTS, LABELS, 16))

    gf.manual_seed(0)
    trainer = make(shared=True)
    list(trainer.steps(3))
    trainer.save(tmp_path / "state")
    expected = losses(trainer, 9), outcome(trainer)
    again = make(shared=True)
    again.load(tmp_path / "state")
    assert (losses(again, 9), outcome(again)) == expected
    with pytest.raises(ValueError, match=r"sharing of random generators was \[.*\], and is \[.*\] here"):
        make(shared=False).load(tmp_path / "state")


def test_a_state_does_not_change_later() -> None:
    trainer = Case(average=0.9, optimizer="momentum").trainer()
    list(trainer.steps(6))
    state = trainer.state_dict()
    before = bits(state)
    list(trainer.steps(11))
    trainer.restore_best()
    assert bits(state) == before


@pytest.mark.parametrize(("options", "weights"), [({}, False), ({"accumulate": 2, "average": 0.9}, True)])
def test_a_state_of_another_device_goes_on_within_the_bounds(
    other_device: str, options: dict[str, Any], weights: bool, tmp_path: Path
) -> None:
    """The next 20 losses are within the bound of `gradflow agree` for losses: 6 K eps loss x steps, K = 17."""
    case, path = Case(weights=weights, **options), tmp_path / "state.safetensors"
    trainer = case.trainer()
    list(trainer.steps(6))
    trainer.save(path)
    expected = [step.loss.item() for step in trainer.steps(26)]
    with gf.use_device("cpu"):
        trainer = case.trainer()
        trainer.load(path)
        found = [step.loss.item() for step in trainer.steps(26)]
    assert found == pytest.approx(expected, rel=6 * 17 * EPS * 20)
    assert trainer.epoch > 3


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "sequential"}, r"model: 1.weight was 'float32 \[5, 6\]', and is 'float32 \[6\]' here"),
        ({"loss": "values"}, "model: "),
        ({"optimizer": "sgd"}, "optimizer was 'Adam', and is 'SGD' here"),
        ({"schedule": "number"}, r"learning rate was \['cosine\(.*\)'\], and is \['number'\] here"),
        ({"accumulate": 2}, "accumulate was 1, and is 2 here"),
        ({"average": 0.9}, "average was None, and is 0.9 here"),
        ({"clip_norm": 0.5}, "clip_norm was None, and is 0.5 here"),
        ({"weights": True}, "training data was"),
        ({"class_weight": "balanced"}, "class_weight was None"),
        ({"batch": 7}, "batch_size was 16, and is 7 here"),
        ({"drop_last": True}, "drop_last was False, and is True here"),
        ({"shuffle": "no"}, "shuffle was True, and is False here"),
        ({"validation": False}, "validation data was"),
    ],
)
def test_the_state_of_another_run(changes: dict[str, Any], message: str) -> None:
    other = Case().trainer()
    list(other.steps(3))
    state = other.state_dict()
    trainer = replace(Case(), **changes).trainer()
    before = outcome(trainer)
    with pytest.raises(ValueError, match=f"the saved state is of another run: {message}"):
        trainer.load_state_dict(state)
    assert outcome(trainer) == before


def made(**changes: Any) -> Trainer:
    p, rate, activation = changes.get("p", 0.1), changes.get("rate", 0.1), changes.get("activation", nn.ReLU())
    model = nn.Sequential(nn.Linear(3, 3), activation, nn.Dropout(p))
    parameters = [*model.parameters()]
    groups = [{"params": [x]} for x in parameters] if "groups" in changes else parameters
    loss = nn.CrossEntropyLoss(weight=gf.tensor(changes.get("weight", [1.0, 2.0, 3.0])))
    lr = changes.get("lr", optim.schedules.warmup(optim.schedules.cosine(rate, 20), 3))
    validation = Batches(INPUTS, LABELS, changes.get("validation", 20))
    return Trainer(model, loss, optim.SGD(groups, lr), Batches(INPUTS, LABELS, 16), validation)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 0.2}, r"layer: 2 was 'Dropout\(p=0.1\)', and is 'Dropout\(p=0.2\)' here"),
        ({"activation": nn.Tanh()}, r"layer: 1 was 'ReLU\(\)', and is 'Tanh\(\)' here"),
        ({"rate": 0.2}, r"learning rate was .*lr=0.1.*, and is .*lr=0.2"),
        ({"lr": lambda step: 0.1}, r"learning rate was .*, and is \['<function <lambda>>'\] here"),
        ({"groups": True}, r"parameter groups was \[2\], and is \[1, 1\] here"),
        ({"weight": [1.0, 2.0, 4.0]}, r"loss was .*weight=\[1.0, 2.0, 3.0\]', and is .*weight=\[1.0, 2.0, 4.0\]' here"),
        ({"validation": 10}, "validation batch_size was 20, and is 10 here"),
    ],
)
def test_the_state_of_a_run_that_differs_in_one_thing(changes: dict[str, Any], message: str) -> None:
    state = made().state_dict()
    made().load_state_dict(state)
    with pytest.raises(ValueError, match=f"another run: {message}"):
        made(**changes).load_state_dict(state)


@pytest.mark.parametrize(("name", "value"), [("optimizer", None), ("trainable", ["x"]), ("training", [3])])
def test_a_state_with_a_damaged_part_is_told_once(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^the saved state is damaged: its {name} cannot be "):
        made().load_state_dict({**made().state_dict(), name: value})


def test_other_data_is_refused() -> None:
    state = Case().trainer().state_dict()
    trainer = Case().trainer()
    vars(trainer.train)["inputs"] = trainer.train.inputs + 1.0
    with pytest.raises(ValueError, match="another run: training data was"):
        trainer.load_state_dict(state)


def mutated(x: Any, rng: Any) -> Any:
    """Return a tree with one part changed to something else."""
    if isinstance(x, dict) and x:
        key = rng.choice(list(x))
        if rng.random() < 0.1:
            return {k: v for k, v in x.items() if k != key}
        return {**x, key: mutated(x[key], rng)}
    if isinstance(x, list) and x:
        i = rng.randrange(len(x))
        if rng.random() < 0.1:
            return x[:i] + x[i + 1 :]
        return [*x[:i], mutated(x[i], rng), *x[i + 1 :]]
    others = [
        None,
        -1,
        0,
        3,
        1 << 300,
        0.5,
        float("nan"),
        "x",
        [],
        {},
        [1],
        True,
        gf.zeros((2,)),
        gf.zeros((), dtype="int64"),
    ]
    return rng.choice(others)


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "average": 0.9, "batch": 7}])
def test_a_damaged_state_changes_nothing(options: dict[str, Any]) -> None:
    import random

    rng = random.Random(0)
    case = Case(dropout=0.1, **options)
    trainer = case.trainer()
    list(trainer.steps(6))
    state, target = trainer.state_dict(), case.trainer()
    before, errors = outcome(target), []
    for _ in range(150):
        try:
            target.load_state_dict(mutated(state, rng))
        except ValueError as error:
            errors.append(str(error))
            assert outcome(target) == before
        else:  # another count, another hyperparameter
            target = case.trainer()
    assert len(errors) > 100
    assert not any("\n" in error for error in errors)


def test_different_values_of_one_parameter_change_nothing() -> None:
    def make() -> Trainer:
        layer = nn.Linear(3, 3, generator=gf.Generator(0))
        model = nn.Sequential(layer, nn.Tanh(), layer)
        train = Batches(INPUTS, LABELS, 16, gf.Generator(1))
        return Trainer(model, gf.cross_entropy, optim.Adam(model.parameters()), train, average=0.9)

    trainer, other = make(), make()
    list(trainer.steps(5))
    state = trainer.state_dict()
    other.load_state_dict(state)
    state["model"]["2.weight"] = state["model"]["2.weight"] + 1.0
    before = outcome(trainer)
    with pytest.raises(ValueError, match=r"0\.weight and 2\.weight share one tensor"):
        trainer.load_state_dict(state)
    assert outcome(trainer) == before
    assert (losses(trainer, 12), outcome(trainer)) == (losses(other, 12), outcome(other))


@pytest.mark.parametrize("content", [b"", b"abc", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ValueError, match="state"):
        Case().trainer().load(tmp_path / "state")


@pytest.mark.parametrize("tree", [{}, {"model": {}}, [1], {"run": 3}])
def test_a_file_of_something_else(tree: Any, tmp_path: Path) -> None:
    from gradflow.saving import save

    save(tmp_path / "state", tree)
    with pytest.raises(ValueError, match="not the state of a trainer"):
        Case().trainer().load(tmp_path / "state")
