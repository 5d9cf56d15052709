"""The training loop and whole runs: the scores they reach, their files, and that they repeat bit for bit."""

from __future__ import annotations

import csv
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.data import Batches
from gradflow.training import Epoch, NonFiniteLossError, Settings, SettingsError, evaluate, fit, read_config, train
from gradflow.training.run_folder import RunFolder, metrics_csv, weights_safetensors

for _package in ("sklearn", "matplotlib", "safetensors", "tomli_w"):
    pytest.importorskip(_package)

FILES = {"config.toml", "curves.png", "metrics.csv", "weights.safetensors"}
SMALL = {"hidden": (16,), "epochs": 3, "device": "cpu"}


def two_classes(device: str, n: int = 60) -> tuple[Batches, Batches]:
    """Return shuffled batches of points on both sides of a line, and the same points for testing."""
    points = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    labels = (points.sum(1) > 0).astype(np.int64)
    shuffled = Batches(points, labels, 16, gf.Generator(1), device=device)
    return shuffled, Batches(points, labels, 25, shuffle=False, device=device)


def run(device: str, epochs: int, **options: Any) -> tuple[list[Epoch], gf.nn.MLP]:
    gf.manual_seed(0)
    train_batches, test_batches = two_classes(device)
    model = gf.nn.MLP([2, 8, 2], device=device, dropout=0.1)
    optimizer = gf.optim.Adam(model.parameters(), **options)
    return list(fit(model, gf.cross_entropy, optimizer, train_batches, test_batches, epochs)), model


# ---------------------------------------------------------------------- the loop


def test_fit_learns(device: str) -> None:
    epochs, _ = run(device, 30, lr=0.02)
    assert [e.epoch for e in epochs] == list(range(1, 31))
    assert [e.step for e in epochs] == list(range(4, 121, 4))
    assert epochs[-1].test_score > 0.95
    assert epochs[-1].test_loss < epochs[0].test_loss
    assert epochs[-1].train_loss < epochs[0].train_loss


def test_fit_repeats_bit_for_bit(device: str) -> None:
    assert run(device, 5, lr=0.02)[0] == run(device, 5, lr=0.02)[0]


def test_figures_are_means_over_samples_not_batches(device: str) -> None:
    epochs, model = run(device, 1, lr=0.02)
    batches = two_classes(device)[1]  # 25, 25 and 10 samples
    with gf.no_grad():
        outputs = model.eval()(batches.inputs)
        loss = gf.cross_entropy(outputs, batches.targets).item()
        accuracy = (outputs.numpy().argmax(1) == batches.targets.numpy()).mean()
    assert evaluate(model, gf.cross_entropy, batches) == pytest.approx((loss, accuracy), rel=1e-5)
    assert (epochs[0].test_loss, epochs[0].test_score) == pytest.approx((loss, accuracy), rel=1e-5)


def test_learning_rate_of_an_epoch_is_that_of_its_last_step(device: str) -> None:
    schedule = gf.optim.schedules.cosine(0.1, 8)
    epochs, _ = run(device, 2, lr=schedule)
    assert [e.learning_rate for e in epochs] == [schedule(3), schedule(7)]


def test_score_of_a_regression_is_r2(device: str) -> None:
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 3)).astype(np.float32)
    targets = (inputs.sum(1, keepdims=True) + rng.normal(size=(40, 1))).astype(np.float32)
    batches = Batches(inputs, targets, 16, shuffle=False, device=device)
    model = gf.nn.MLP([3, 1], device=device)
    with gf.no_grad():
        expected = r2_score(targets, model(batches.inputs).numpy())
    assert evaluate(model, gf.mse_loss, batches)[1] == pytest.approx(expected, rel=1e-5)


def test_fit_stops_at_a_loss_that_is_not_finite(device: str) -> None:
    batches, _ = two_classes(device)
    model = gf.nn.MLP([2, 2], device=device)
    with gf.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * float("nan"))
    optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NonFiniteLossError, match="nan in epoch 1"):
        list(fit(model, gf.cross_entropy, optimizer, batches, batches, 2))


# ---------------------------------------------------------------------- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_digits_reach_97_percent_with_default_settings(seed: int, tmp_path: Path) -> None:
    result = train(Settings("digits", seed=seed, device="cpu"), tmp_path / "run")
    assert result.epochs[-1].test_score >= 0.97
    assert result.seconds < 30


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("breast-cancer", 0.94), ("wine", 0.94), ("iris", 0.9), ("diabetes", 0.1)])
def test_other_datasets_reach_what_they_should(name: str, least: float, tmp_path: Path) -> None:
    result = train(Settings(name, device="cpu"), tmp_path / "run")
    assert result.epochs[-1].test_score >= least
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert header.split(",")[-1] == ("test_r2" if name == "diabetes" else "test_accuracy")


def test_a_run_leaves_its_four_files(device: str, tmp_path: Path) -> None:
    settings = Settings("iris", **{**SMALL, "device": device})
    result = train(settings, tmp_path / "run")
    assert {p.name for p in result.folder.iterdir()} == FILES
    with (result.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["epoch", "step", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    assert list(rows[0]) == names
    assert [tuple(map(float, row.values())) for row in rows] == [tuple(map(float, e)) for e in result.epochs]
    config = tomllib.loads((result.folder / "config.toml").read_text())
    assert Settings(**config["settings"]) == result.settings
    assert config["result"]["test_accuracy"] == result.epochs[-1].test_score
    assert (result.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_saved_weights_are_those_of_the_last_row(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    result = train(Settings("iris", **SMALL), tmp_path / "run")
    weights = load_file(tmp_path / "run" / "weights.safetensors")
    assert {n: w.shape for n, w in weights.items()} == {n: p.shape for n, p in result.model.state_dict().items()}
    model = gf.nn.MLP([4, 16, 3], dropout=0.2)
    model.load_state_dict(weights)
    from gradflow.data import load

    split = load("iris").split(0, validation=0)
    batches = Batches(split.test.inputs, split.test.targets, 100, shuffle=False)
    assert evaluate(model, gf.cross_entropy, batches) == (result.epochs[-1].test_loss, result.epochs[-1].test_score)


def test_a_run_repeats_bit_for_bit(device: str, tmp_path: Path) -> None:
    settings = Settings("wine", device=device, epochs=5)
    for name in ("one", "two"):
        gf.random.uniform((7,))  # earlier random numbers do not matter
        train(settings, tmp_path / name)
    for name in ("metrics.csv", "weights.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = train(Settings("wine", device=device, epochs=5, seed=1), tmp_path / "three")
    assert (tmp_path / "one" / "metrics.csv").read_bytes() != (other.folder / "metrics.csv").read_bytes()


def test_interruption_keeps_the_whole_epochs(tmp_path: Path) -> None:
    whole = train(Settings("iris", **SMALL), tmp_path / "whole")

    def interrupt(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    result = train(Settings("iris", **SMALL), tmp_path / "part", on_epoch=interrupt)
    assert result.interrupted
    assert result.epochs == whole.epochs[:2]
    assert {p.name for p in result.folder.iterdir()} == FILES
    assert read_config(result.folder / "config.toml")["result"]["stopped"] == "interrupted"


def test_failure_in_the_middle_keeps_the_whole_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradflow.training import train as package_function
    from gradflow.training.train import fit as real_fit

    def diverging(*arguments: Any) -> Any:
        yield next(real_fit(*arguments))
        raise NonFiniteLossError("the loss became inf in epoch 2")

    monkeypatch.setitem(package_function.__globals__, "fit", diverging)
    result = train(Settings("iris", **SMALL), tmp_path / "run")
    assert (result.failure, len(result.epochs), result.interrupted) == ("the loss became inf in epoch 2", 1, False)
    assert {p.name for p in result.folder.iterdir()} == FILES


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_reached_nothing_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    def fail(setup: Any) -> None:
        assert setup.folder.is_dir()
        raise error

    with pytest.raises(error):
        train(Settings("iris", **SMALL), tmp_path / "a" / "b", on_start=fail)
    with pytest.raises(NonFiniteLossError):
        train(Settings("iris", optimizer="sgd", lr=1e38, **SMALL), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- settings and files


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dataset", "mnist"), ("activation", "step"), ("optimizer", "lion"), ("schedule", "linear"),
        ("hidden", (0,)), ("hidden", (2, -1)), ("hidden", 8), ("hidden", ("8",)), ("hidden", (True,)),
        ("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("lr", float("inf")), ("lr", "0.1"),
        ("momentum", 0.9), ("weight_decay", -1.0), ("weight_decay", float("nan")), ("dropout", 1.0), ("dropout", -0.1),
        ("dropout", float("nan")), ("batch_size", 0), ("batch_size", 2.0), ("epochs", 0), ("epochs", True),
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


def test_safetensors_of_arrays_that_are_not_in_c_order() -> None:
    from safetensors.numpy import load

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = gf.Tensor(np.asfortranarray(values), gf.get_backend("cpu"))
    found = load(weights_safetensors({"turned": turned, "view": gf.tensor(values).T, "scalar": gf.tensor(2.0)}))
    np.testing.assert_array_equal(found["turned"], values)
    np.testing.assert_array_equal(found["view"], values.T)
    assert found["scalar"].shape == ()


def test_metrics_keep_every_digit() -> None:
    epoch = Epoch(1, 2, 0.1, 1 / 3, 2 / 3, 1e-17, 0.1 + 0.2)
    row = metrics_csv([epoch], classification=True).decode().splitlines()[1]
    assert tuple(map(float, row.split(","))) == epoch


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", "unused") as folder, pytest.raises(TypeError):
        folder.write("metrics.csv", "text")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_default_folders_are_numbered(tmp_path: Path) -> None:
    for expected in ("iris", "iris-2", "iris-3"):
        with RunFolder(None, tmp_path / "runs" / "iris") as folder:
            folder.write("x", b"")
        assert folder.path.name == expected


def test_an_empty_folder_may_be_used_and_is_not_removed(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "unused"):
        pass
    assert tmp_path.is_dir()
