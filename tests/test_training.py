"""Whole runs: the scores they reach, their files, and that they repeat bit for bit."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.data import Batches
from gradflow.training import Run, Settings, SettingsError, load_run, read_config, train
from gradflow.training.epoch import NonFiniteLossError
from gradflow.training.runs.members import Members

for _package in ("sklearn", "matplotlib", "safetensors", "tomli_w"):
    pytest.importorskip(_package)

FILES = {"config.toml", "curves.png", "metrics.csv", "model.safetensors", "report.html"}
SMALL = {"hidden": (16,), "epochs": 3, "device": "cpu"}


# ---------------------------------------------------------------------- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_digits_reach_96_percent_with_default_settings(seed: int, tmp_path: Path) -> None:
    result = train(Settings("digits", seed=seed, device="cpu"), tmp_path / "run")
    assert result.assessed == "test"
    assert result.figures["accuracy"] >= 0.96
    assert result.seconds < 30


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("breast-cancer", 0.92), ("wine", 0.92), ("iris", 0.9), ("diabetes", 0.1)])
def test_other_datasets_reach_what_they_should(name: str, least: float, tmp_path: Path) -> None:
    result = train(Settings(name, device="cpu"), tmp_path / "run")
    assert result.figures["r2" if name == "diabetes" else "accuracy"] >= least
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header.split(",")[-1] == ("validation_r2" if name == "diabetes" else "validation_accuracy")


def test_a_run_leaves_its_files(device: str, tmp_path: Path) -> None:
    settings = Settings("iris", **{**SMALL, "device": device})
    result = train(settings, tmp_path / "run")
    assert {p.name for p in result.folder.iterdir()} == FILES
    with (result.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "epoch", "step", "learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
    ]  # fmt: skip
    assert [tuple(map(float, row.values())) for row in rows] == [
        (e.epoch, e.step, e.learning_rate, e.train_loss, e.train_metrics["accuracy"], e.validation_loss,
         e.validation_metrics["accuracy"]) for e in result.histories[0]
    ]  # fmt: skip
    text = (result.folder / "config.toml").read_text()
    assert ("add: --device auto" in text) == (device != "cpu")
    config = tomllib.loads(text)
    assert Settings(**config["settings"]) == result.settings
    data_hash = gf.data.load("iris").fingerprint
    assert config["data"] == {"hash": data_hash, "train": 96, "validation": 24, "test": 30}
    assert config["result"]["test_accuracy"] == result.figures["accuracy"]
    assert config["result"]["validation_loss"] == result.best[0].validation_loss
    assert (result.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (result.folder / "report.html").read_text(encoding="utf-8")


def test_the_model_is_that_of_the_best_epoch(tmp_path: Path) -> None:
    result = train(Settings("wine", **{**SMALL, "epochs": 12, "lr": 0.05}), tmp_path / "run")
    losses = [e.validation_loss for e in result.histories[0]]
    assert result.best[0].validation_loss == min(losses)
    assert losses[-1] != min(losses), "the last epoch is another one"
    split = gf.data.load("wine").split(0)
    assert split.validation is not None
    assert split.test is not None
    model = load_run(tmp_path / "run").members[0]
    batches = Batches(split.validation.inputs, split.validation.targets, 100, shuffle=False)
    with gf.no_grad():
        loss = gf.cross_entropy(model(batches.inputs), batches.targets).item()
    assert loss == pytest.approx(min(losses), rel=1e-5)
    figures = load_run(tmp_path / "run").evaluate(split.test.raw_inputs, split.test.raw_targets)
    assert figures["accuracy"] == result.figures["accuracy"]


def test_a_run_repeats_bit_for_bit(device: str, tmp_path: Path) -> None:
    settings = Settings("wine", device=device, epochs=5)
    for name in ("one", "two"):
        gf.random.uniform((7,))  # earlier random numbers do not matter
        train(settings, tmp_path / name)
    for name in ("metrics.csv", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = train(Settings("wine", device=device, epochs=5, seed=1), tmp_path / "three")
    assert (tmp_path / "one" / "metrics.csv").read_bytes() != (other.folder / "metrics.csv").read_bytes()


def test_an_ensemble_averages_models_of_several_seeds(tmp_path: Path) -> None:
    small = {**SMALL, "hidden": (16,), "epochs": 12, "lr": 0.05}
    result = train(Settings("wine", ensemble=3, **small), tmp_path / "three")
    alone = train(Settings("wine", **small), tmp_path / "one")
    assert result.histories[0] == alone.histories[0], "the first is the model of a run without an ensemble"
    assert len({tuple(e.train_loss for e in history) for history in result.histories}) == 3
    predictor = load_run(tmp_path / "three")
    inputs = gf.data.load("wine").inputs
    scaled = gf.tensor(predictor.inputs.apply(inputs))
    with gf.no_grad():
        mean = np.mean([gf.softmax(member(scaled), axis=-1).numpy() for member in predictor.members], axis=0)
    np.testing.assert_allclose(predictor.predict_proba(inputs), mean, atol=1e-6)
    assert result.members[0]["accuracy"] == alone.figures["accuracy"]
    assert alone.best[0].epoch < 12
    for name, weights in predictor.members[0].state_dict().items():
        np.testing.assert_array_equal(weights.numpy(), alone.predictor.members[0].state_dict()[name].numpy())
    rows = (tmp_path / "three" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["member", *"1" * 12, *"2" * 12, *"3" * 12]


def test_patience_ends_training_after_as_many_epochs_without_an_improvement(tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": 200, "lr": 0.05}
    result = train(Settings("iris", patience=4, **settings), tmp_path / "run")
    (history,) = result.histories
    assert history[-1].stale == 4
    assert len(history) < 200
    assert result.stopped == ""
    assert result.best[0].epoch == len(history) - 4


def test_without_validation_the_training_loss_chooses_the_epoch(tmp_path: Path) -> None:
    result = train(Settings("iris", validation=0.0, **SMALL), tmp_path / "run")
    assert result.best[0].train_loss == min(e.train_loss for e in result.histories[0])
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header == "epoch,step,learning_rate,train_loss,train_accuracy"


def test_without_samples_for_testing_the_figures_are_those_of_the_validation(tmp_path: Path) -> None:
    result = train(Settings("iris", test=0.0, **SMALL), tmp_path / "run")
    assert result.assessed == "validation"
    assert result.figures["accuracy"] == result.best[0].validation_metrics["accuracy"]
    result = train(Settings("iris", test=0.0, validation=0.0, **SMALL), tmp_path / "all")
    assert (result.assessed, result.figures) == ("", {})
    assert {p.name for p in result.folder.iterdir()} == FILES


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({"clip_norm": 0.01}, 6), ({"accumulate": 2}, 3), ({"average": 0.9}, 6), ({"class_weight": "balanced"}, 6)],
)
def test_settings_of_the_step_reach_the_trainer(settings: dict[str, Any], steps: int, tmp_path: Path) -> None:
    """A class of the wine is rarer than the others, so balanced weights differ from equal ones."""
    plain = train(Settings("wine", **SMALL), tmp_path / "plain")
    other = train(Settings("wine", **settings, **SMALL), tmp_path / "other")
    assert plain.histories[0][-1].validation_loss != other.histories[0][-1].validation_loss
    assert other.histories[0][-1].step == steps


def test_data_of_files_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name, n in (("train", 60), ("held", 20), ("check", 30)):
        x = rng.normal(size=(n, 3))
        np.savez(tmp_path / f"{name}.npz", X=x, y=np.where(x.sum(1) > 0, "up", "down"))
    monkeypatch.chdir(tmp_path)
    result = train(Settings("train.npz", test_file="held.npz", validation_file="check.npz", **SMALL))
    assert result.folder == Path("runs/train-1")
    config = read_config(result.folder)
    assert config["data"] | {"hash": ""} == {"hash": "", "train": 60, "validation": 30, "test": 20}
    monkeypatch.chdir("/")  # the paths in the config mean the same from everywhere
    again = train(Settings(**config["settings"]), tmp_path / "again")
    assert again.histories == result.histories
    assert set(load_run(tmp_path / "again").predict(rng.normal(size=(50, 3)))) == {"up", "down"}


def test_divergence_keeps_the_best_epoch_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Members.steps

    def diverging(members: Members) -> Any:
        for step in real(members):
            yield step
            if step.finished and step.epoch == 2:
                raise NonFiniteLossError("the loss became inf in epoch 3")

    monkeypatch.setattr(Members, "steps", diverging)
    result = train(Settings("iris", **SMALL), tmp_path / "run")
    assert (result.stopped, result.failed) == ("the loss became inf in epoch 3", True)
    assert [len(history) for history in result.histories] == [2]
    assert {p.name for p in result.folder.iterdir()} == FILES
    assert read_config(result.folder)["result"]["stopped"] == "the loss became inf in epoch 3"


def test_a_run_that_reached_nothing_leaves_nothing(tmp_path: Path) -> None:
    run = Run.new(Settings("iris", **SMALL), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    with run:
        assert [p.name for p in run.folder.iterdir()] == ["config.toml"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NonFiniteLossError, match=r"epoch 1.+nothing is saved"):
        train(Settings("iris", optimizer="sgd", lr=1e38, **SMALL), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- settings and files


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dataset", ""), ("dataset", 3), ("test_file", ""), ("test_file", "a\0b"),
        ("activation", "step"), ("optimizer", "lamb"), ("schedule", "linear"),
        ("hidden", (0,)), ("hidden", (2, -1)), ("hidden", 8), ("hidden", ("8",)), ("hidden", (True,)),
        ("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("lr", float("inf")), ("lr", "0.1"),
        ("momentum", 0.9), ("weight_decay", -1.0), ("weight_decay", float("nan")), ("dropout", 1.0), ("dropout", -0.1),
        ("dropout", float("nan")), ("batch_size", 0), ("batch_size", 2.0), ("epochs", 0), ("epochs", True),
        ("test", 1.0), ("test", -0.1), ("validation", 1.0), ("clip_norm", 0.0), ("average", -0.1), ("average", 1.0),
        ("accumulate", 0), ("class_weight", "all"), ("class_weight", 3), ("patience", 0), ("ensemble", 0),
        ("ensemble", 1001), ("epochs", 1_000_001), ("hidden", (65_537,)), ("hidden", (1,) * 1001),
        ("seed", -1), ("seed", 1 << 32), ("device", 3),
    ],
)  # fmt: skip
def test_bad_settings_are_named(setting: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=setting) as caught:
        Settings(**{"dataset": "iris", setting: value})
    assert "\n" not in str(caught.value)


def test_settings_may_be_numbers_of_numpy(tmp_path: Path) -> None:
    """They become Python numbers, which a config can hold."""
    given = {"batch_size": 32, "epochs": 2, "seed": 7, "lr": 0.5, "dropout": 0.25, "hidden": (8, 4)}
    plain = Settings("iris", **given)
    numpys = {name: np.asarray(value)[()] for name, value in given.items() if name != "hidden"}
    settings = Settings("iris", hidden=tuple(np.array([8, 4])), **numpys)
    assert settings == plain
    assert all(type(n) in (int, float, str, list) for n in settings.to_dict().values())
    assert all(type(n) is int for n in settings.hidden)


def test_defaults_of_the_optimizer() -> None:
    assert Settings("iris").momentum is None
    assert "momentum" not in Settings("iris").to_dict()
    assert Settings("iris", optimizer="sgd").momentum == 0.9
    assert Settings("iris", optimizer="sgd", momentum=0.0).momentum == 0.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("= 3", "not valid TOML"),
        ("[settings]\nrate = 3", "unknown setting 'rate'"),
        ("[settings]\nepoch = 3", "did you mean epochs"),
        ("[setings]", "unknown key 'setings'"),
        ("settings = 3", "no table"),
        ("", "no table"),
    ],
)
def test_bad_configs_are_one_clear_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=words) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[settings]\ndataset = 'iris'\n", encoding="utf-8-sig")
    assert read_config(path)["settings"] == {"dataset": "iris"}
    path.write_text("[settings]\ndataset = 'iris'\n", encoding="utf-16")
    with pytest.raises(SettingsError, match="not text in UTF-8: save it"):
        read_config(path)
