"""The commands `gradflow predict` and `gradflow evaluate`."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.cli import build_parser, main
from gradflow.cli.predict import without_formula
from gradflow.data import load
from gradflow.training.runs.predictor import MODEL_FILE, Predictor, load_run
from tests.test_cli import Ended, assert_one_line, child_environment, posix
from tests.test_predictor import FLOWERS, NAMES, classifier, regressor, samples, scale

for package in ("safetensors", "sklearn"):
    pytest.importorskip(package)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADFLOW_DEVICE", "cpu")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process: `command("predict", "run", "new.npz").status`."""

    def run(*words: str) -> Ended:
        return Ended(main(words), *capsys.readouterr())

    return run


def run_of(predictor: Predictor, folder: str = "run") -> Predictor:
    """Write the model of a predictor into the folder of a run."""
    Path(folder).mkdir()
    gf.save(Path(folder, MODEL_FILE), predictor.tree())
    return predictor


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text), strict=True))


# ---------------------------------------------------------------------- predict


def test_predictions_are_the_names_of_classes_with_their_probabilities(command: Any) -> None:
    predictor = run_of(classifier(labels=[0, 1, 2]))
    np.savez("new.npz", X=samples(10), y=np.zeros(10))
    status, out, err = command("predict", "run", "new.npz")
    header, *found = rows(out)
    assert (status, header) == (0, ["prediction", *(f"p({name})" for name in NAMES)])
    probabilities = predictor.predict_proba(samples(10))
    assert (np.array([row[1:] for row in found], np.float32) == probabilities).all()  # to the bit
    assert [row[0] for row in found] == [NAMES[i] for i in probabilities.argmax(axis=1)]
    assert err == "gradflow: 10 predictions of run (4-8-3, relu, 3 classes, on cpu)\n"


@pytest.mark.parametrize(
    ("outputs", "columns", "header"),
    [
        (1, [], ["prediction"]),
        (1, ["height"], ["prediction"]),
        (2, [], ["prediction(0)", "prediction(1)"]),
        (2, ["height", "weight, kg"], ["prediction(height)", "prediction(weight, kg)"]),
    ],
)
def test_predictions_of_values(outputs: int, columns: list[str], header: list[str], command: Any) -> None:
    predictor = run_of(regressor(outputs, columns=columns))
    np.save("new.npy", samples(10))
    found = rows(command("predict", "run", "new.npy").out)
    assert found[0] == header
    assert (np.array(found[1:], np.float32) == predictor.predict(samples(10)).reshape(10, outputs)).all()


def test_any_name_of_a_class_survives(command: Any) -> None:
    names = ['say "a, b"', "two\nlines\r\n", " spaces ", "größer als €", "=1+1", "-1.5"]
    run_of(Predictor([nn.MLP([4, 6])], scale(4), classes=names))
    np.save("new.npy", samples(200))
    assert command("predict", "run", "new.npy", "--out", "p.csv").status == 0
    with open("p.csv", encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file, strict=True)
    shown = [name if name != "=1+1" else "'=1+1" for name in names]
    assert header == ["prediction", *(f"p({name})" for name in shown)]
    assert {row[0] for row in found} <= set(shown)
    assert "'=1+1" in {row[0] for row in found}


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_name_that_a_spreadsheet_would_run_gets_an_apostrophe(name: str) -> None:
    assert without_formula(name) == "'" + name
    for harmless in ("-1", "+", "-", "1e-3", "-1e5", "+0.5", "a=1", "", " =1"):
        assert without_formula(harmless) == harmless


def test_out_is_written_whole_and_replaces_only_predictions(command: Any) -> None:
    predictor = run_of(classifier())
    np.save("new.npy", samples(10))
    status, out, err = command("predict", "run", "new.npy", "--out", "p.csv")
    assert (status, out) == (0, "")
    assert err == "gradflow: 10 predictions of run (4-8-3, relu, 3 classes, on cpu); written to p.csv\n"
    first = Path("p.csv").read_bytes()
    assert first.decode() == command("predict", "run", "new.npy").out
    np.save("new.npy", samples(3))
    assert command("predict", "run", "new.npy", "--out", "p.csv").status == 0
    assert len(rows(Path("p.csv").read_text())) == 4
    assert set(os.listdir()) == {"run", "new.npy", "p.csv"}
    Path("data.csv").write_text("a,b\n1,2\n")
    message = "--out data.csv exists, and this command did not write it"
    assert_one_line(command("predict", "run", "new.npy", "--out", "data.csv"), message)
    assert Path("data.csv").read_text() == "a,b\n1,2\n"
    assert predictor.classes == tuple(NAMES)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("", "--out is empty"),
        ("no/p.csv", "there is no folder no"),
        ("run", "--out run cannot be replaced"),
        ("/dev/null", "not a regular file"),
    ],
)
def test_an_out_that_cannot_be_written_is_told_before_predicting(out: str, words: str, command: Any) -> None:
    run_of(classifier())
    assert_one_line(command("predict", "run", "absent.npy", "--out", out), words)


def test_a_full_disk_leaves_no_file(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of(classifier())
    np.save("new.npy", samples(10))

    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    assert_one_line(
        command("predict", "run", "new.npy", "--out", "p.csv"), r"cannot write p\.csv: No space left on device", 1
    )
    assert set(os.listdir()) == {"run", "new.npy"}


def test_inputs_on_another_scale_are_one_line(command: Any) -> None:
    run_of(classifier())
    np.savez("new.npz", X=samples(20) / 1000, y=[NAMES[0]] * 20)
    for name in ("predict", "evaluate"):
        status, out, err = command(name, "run", "new.npz")
        assert (status, bool(out)) == (0, True)
        (told,) = [line for line in err.splitlines() if "warning" in line]
        assert told.startswith("gradflow: warning: the inputs vary ")


def test_a_test_part_is_what_is_predicted_and_is_named(command: Any) -> None:
    run_of(classifier())
    np.savez("parts.npz", X=samples(20), y=[NAMES[0]] * 20, X_test=samples(5), y_test=[NAMES[1]] * 5)
    assert command("predict", "run", "parts.npz").err.startswith(
        "gradflow: 5 predictions for the test part of parts.npz"
    )
    assert "on 5 samples of the test part of parts.npz" in command("evaluate", "run", "parts.npz").out


def test_images_are_predicted_from_idx_files(command: Any) -> None:
    predictor = run_of(Predictor([nn.MLP([64, 2])], scale(64), classes=["even", "odd"], image_shape=(8, 8)))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    Path("images").write_bytes(
        bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (5, 8, 8)) + images.tobytes()
    )
    found = rows(command("predict", "run", "images").out)
    assert [row[0] for row in found[1:]] == predictor.predict(images).tolist()


def test_a_dataset_is_predicted_by_its_name(command: Any) -> None:
    run_of(classifier())
    assert len(rows(command("predict", "run", "iris").out)) == 151


@pytest.mark.parametrize("name", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("absent", "new.npz"), "absent does not exist; it must be the folder of a run"),
        (("empty", "new.npz"), "empty is not the folder of a run"),
        (("unfinished", "new.npz"), "gradflow train --resume unfinished"),
        (("old", "new.npz"), "gradflow train --config old/config.toml"),
        (("new.npz", "new.npz"), "new.npz is not a whole safetensors file, but a zip archive"),
        (("run", "absent.npz"), "absent.npz does not exist"),
        (("run", "run/model.safetensors"), "of an unknown kind; give an npz"),
        (("run", "empty"), "empty has no files"),
        (("run", "narrow.npz"), "4 features are expected; got 3; the first that is missing is 'petal width'"),
        (("run", "swapped.npz"), "swapped.npz: the feature 'sepal width' stands where 'sepal length' is expected"),
        (("run", "nan.npz"), "nan.npz: the input in row 2, column 1 ('sepal width').*is nan"),
        (("run", "objects.npz"), "pickled Python objects, which are never loaded"),
        (("run", "text.npz"), "text.npz: the inputs are no numbers: got text"),
        (("run", "none.npz"), "shape (0, 4)"),
        (("run", "unnamed.npz"), "has no array X, .*it has a"),
        (("run", "new.npz", "--device", "cuda:99"), "cuda"),
        (("run", "new.npz", "--device", "gpu"), "gpu"),
        (("run",), "required"),
        ((), "required"),
        (("run", "new.npz", "extra"), "does not know 'extra'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(name: str, words: tuple[str, ...], message: str, command: Any) -> None:
    run_of(classifier(features=FLOWERS))
    for folder, file in (("empty", None), ("unfinished", "config.toml"), ("old", "weights.safetensors")):
        Path(folder).mkdir()
        if file:
            Path(folder, file).touch()
    x, y = samples(5), np.array(["setosa"] * 5)
    holed = samples(5)
    holed[2, 1] = math.nan
    for file, inputs in {"new": x, "narrow": x[:, :3], "nan": holed, "text": x.astype(str), "none": x[:0]}.items():
        np.savez(f"{file}.npz", X=inputs, y=y[: len(inputs)])
    np.savez("swapped.npz", X=x, y=y, feature_names=[FLOWERS[i] for i in (1, 0, 2, 3)])
    np.savez("objects.npz", X=np.array([[1, None]], object), y=y[:1])
    np.savez("unnamed.npz", a=x)
    assert_one_line(command(name, *words), re.escape(message).replace(r"\.\*", ".*"))


@pytest.mark.parametrize("name", ["predict", "evaluate", "compare"])
def test_help_fits_80_columns_and_its_examples_are_accepted(name: str, command: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = command(name, "--help")
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    examples = re.findall(rf"^  gradflow ({name} .*)$", out, re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        assert build_parser().parse_args(example.split()).command == name


@posix
def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    run_of(classifier())
    np.save("new.npy", samples(100_000))
    words = [sys.executable, "-m", "gradflow", "predict", "run", "new.npy"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# ---------------------------------------------------------------------- evaluate


@pytest.fixture
def evaluated() -> tuple[Predictor, Any, Any]:
    """A run, and labelled samples in the file data.npz."""
    predictor, x = run_of(classifier()), samples(80)
    y = np.array(NAMES)[np.random.default_rng(1).integers(0, 3, 80)]
    np.savez("data.npz", X=x, y=y)
    return predictor, x, y


def test_a_run_that_has_not_ended_and_arrays_that_are_not_used_are_noted(evaluated: Any, command: Any) -> None:
    _, x, y = evaluated
    np.savez("weighted.npz", X=x, y=y, w=np.ones(80))
    Path("run/config.toml").write_text('[settings]\ndataset = "data.npz"\n')
    killed = "gradflow: note: run has not ended: it was killed; this is its best epoch so far\n"
    assert command("evaluate", "run", "data.npz").err == killed
    status, _, err = command("predict", "run", "weighted.npz")
    assert status == 0
    assert err.startswith(f"{killed}gradflow: note: weighted.npz: not used: w\ngradflow: 80 predictions of run")
    with Path("run/config.toml").open("a") as file:
        file.write("[result]\n")
    assert command("evaluate", "run", "data.npz").err == ""


def test_the_table_has_the_figures_with_intervals_and_a_row_for_each_class(evaluated: Any, command: Any) -> None:
    predictor, x, y = evaluated
    status, out, err = command("evaluate", "run", "data.npz")
    expected = predictor.evaluate(x, y)
    head, *lines = out.splitlines()
    assert (status, err) == (0, "")
    assert head == "run (4-8-3, relu, 3 classes, on cpu) on 80 samples of data.npz"
    interval = r" +\(\d+\.\d\d % to \d+\.\d\d %\)"
    assert re.fullmatch(rf"accuracy +{100 * expected['accuracy']:.2f} %{interval}", lines[0])
    assert re.fullmatch(rf"log loss +{expected['log_loss']:.4f} +\(\d\.\d+ to \d\.\d+\)", lines[4])
    assert len(lines) == len(expected) + 2 + 3
    right = ((predictor.predict(x) == y) & (y == "setosa")).sum()
    assert lines[8].split()[:4] == [
        "setosa", str((y == "setosa").sum()), f"{right / (predictor.predict(x) == 'setosa').sum():.4f}",
        f"{right / (y == 'setosa').sum():.4f}",
    ]  # fmt: skip


def test_json_is_all_that_is_printed_and_has_the_same_figures(evaluated: Any, command: Any) -> None:
    predictor, x, y = evaluated
    status, out, err = command("evaluate", "run", "data.npz", "--json")
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert (status, err) == (0, "")
    assert {key: found[key] for key in ("folder", "data", "samples")} == {
        "folder": "run",
        "data": "data.npz",
        "samples": 80,
    }
    assert {name: figure["value"] for name, figure in found["figures"].items()} == predictor.evaluate(x, y)
    for name in ("accuracy", "balanced_accuracy", "f1", "log_loss"):
        figure = found["figures"][name]
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert found["figures"]["calibration_error"]["low"] is None
    assert [row["class"] for row in found["classes"]] == NAMES
    assert sum(row["samples"] for row in found["classes"]) == 80


def test_a_model_that_is_always_right_has_a_bound_for_no_interval(evaluated: Any, command: Any) -> None:
    predictor, x, _ = evaluated
    np.savez("right.npz", X=x, y=predictor.predict(x))
    first, second, *_ = command("evaluate", "run", "right.npz").out.splitlines()[1:]
    assert re.fullmatch(r"accuracy +100.00 % +\(with 95 % confidence, above 96.32 %\)", first)  # 0.05 ** (1 / 80)
    assert re.fullmatch(r"balanced accuracy +100.00 %", second)


@pytest.mark.parametrize("outputs", [1, 2])
def test_values_are_evaluated_in_their_units(outputs: int, command: Any) -> None:
    predictor, x = run_of(regressor(outputs)), samples(50)
    y = np.random.default_rng(1).normal(10, 3, (50, outputs))
    np.savez("data.npz", X=x, y=y if outputs > 1 else y[:, 0])
    out = command("evaluate", "run", "data.npz").out
    figures = predictor.evaluate(x, y)
    assert [re.sub(r" +\(.*", "", line).split() for line in out.splitlines()[1:]] == [
        [label, f"{figures[name]:.4f}"] for label, name in (("R²", "r2"), ("RMSE", "rmse"), ("MAE", "mae"))
    ]
    assert ("(" in out.splitlines()[1]) == (outputs == 1)


def test_figures_with_an_interval_are_those_of_the_report(evaluated: Any, command: Any) -> None:
    """Two modules compute them; they must agree, or a value would lie outside its interval."""
    from gradflow.training.report.numbers import classification_figures, regression_figures

    two = Predictor([nn.MLP([4, 2])], scale(4), classes=["no", "yes"])
    values = np.random.default_rng(0).normal(10, 3, 80)
    for predictor, y in ((evaluated[0], evaluated[2]), (two, ["no", "yes"] * 40), (regressor(), values)):
        outputs, targets = predictor.with_targets(evaluated[1], y)
        drawn = (
            classification_figures(targets, outputs)
            if predictor.classes
            else regression_figures(targets, outputs, [""])
        )
        names = {"R²": "r2"}
        figures = predictor.figures(outputs, targets)
        for figure in drawn:
            name = names.get(figure.name, figure.name.lower().replace(" ", "_"))
            assert figure.value == pytest.approx(figures[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": samples(3)}, "data.npz has no labels or values to compare with"),
        ({"X": samples(3), "y": ["setosa", "rose", "rose"]}, "data.npz: y: .*'rose'"),
        ({"X": samples(3), "y": ["setosa", "setosa"]}, "data.npz: each input needs one target; got 3 inputs and 2"),
        ({"X": samples(3), "y": [0.5, 1.5, 2.5]}, "data.npz: y: labels .*are expected"),
    ],
)
def test_targets_that_cannot_be_used_are_one_line(arrays: dict[str, Any], message: str, command: Any) -> None:
    run_of(classifier())
    np.savez("data.npz", **arrays)
    assert_one_line(command("evaluate", "run", "data.npz"), message)


def test_the_data_of_the_training_is_noted(command: Any) -> None:
    run_of(classifier())
    for recorded, noted in ((load("iris").fingerprint, True), ("0" * 64, False)):
        Path("run/config.toml").write_text(f'[settings]\ndataset = "iris"\n[data]\nhash = "{recorded}"\n')
        status, out, err = command("evaluate", "run", "iris", "--json")
        assert status == 0
        assert json.loads(out)["samples"] == 150
        assert ("gradflow: note: run was trained on a part of iris" in err) == noted


def test_load_run_predicts_what_the_command_prints(command: Any) -> None:
    run_of(classifier(3))
    np.save("new.npy", samples(20))
    assert [row[0] for row in rows(command("predict", "run", "new.npy").out)[1:]] == load_run("run").predict(
        samples(20)
    ).tolist()


@pytest.mark.slow
def test_a_run_of_the_command_is_used_by_the_others(command: Any) -> None:
    for package in ("matplotlib", "tomli_w", "tqdm"):
        pytest.importorskip(package)
    for k in ("1", "2"):
        words = ("--hidden", "16", "--epochs", "3", "--ensemble", k, "--out", k, "--quiet")
        assert command("train", "iris", *words).status == 0
        settings = tomllib.loads(Path(k, "config.toml").read_text(encoding="utf-8"))
        data = load("iris")
        part = data.split(0).test
        assert part is not None
        np.savez("test.npz", X=part.raw_inputs, y=part.raw_targets)
        found = json.loads(command("evaluate", k, "test.npz", "--json").out)["figures"]
        assert {f"test_{name}": figure["value"] for name, figure in found.items()}.items() <= settings["result"].items()
        assert len(rows(command("predict", k, "test.npz").out)) == 31
        assert load_run(k).score["test_accuracy"] == found["accuracy"]["value"]
    ended = command("compare", "1", "2", "--out", "curves.png")
    assert ended.status == 0
    assert re.search(r"  ensemble +1 +2\n", ended.out)
    assert "note" not in ended.err
