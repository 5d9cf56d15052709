"""The command `gradflow compare`: the differences between runs, and one-line errors for folders that are not runs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from gradflow.cli import main
from gradflow.training.runs.compare import averaged, best, figures, read_record
from gradflow.training.runs.settings import SettingsError
from tests.mutations import mutants
from tests.test_cli import Ended, assert_one_line


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process: `command("compare", "a", "b").status`."""

    def run(*words: str) -> Ended:
        return Ended(main(words), *capsys.readouterr())

    return run


METRICS = """\
epoch,step,learning_rate,train_loss,train_accuracy,validation_loss,validation_accuracy
1,10,0.002,1.5,0.5,1.25,0.625
2,20,0.001,0.75,0.75,0.5,0.875
3,30,0.0005,0.5,0.875,0.625,0.75
"""


def make(
    folder: str,
    metrics: str | None = METRICS,
    result: dict[str, Any] | None = None,
    environment: str = "cpu",
    **settings: Any,
) -> None:
    """Make the folder of a run."""
    Path(folder).mkdir(parents=True)
    reached = {"epochs": 3, "test_accuracy": 0.75, "test_log_loss": 0.5} if result is None else result
    tables = {
        "settings": {"dataset": "digits", "seed": 0, **settings},
        "environment": {"device": environment},
        "result": reached,
    }
    lines = [
        f"[{t}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in tables[t].items()) for t in tables if tables[t]
    ]
    Path(folder, "config.toml").write_text("\n".join(lines).replace('"INF"', "inf"), encoding="utf-8")
    if metrics is not None:
        Path(folder, "metrics.csv").write_text(metrics, encoding="utf-8")


def test_what_differs_is_shown_side_by_side_and_the_best_is_marked(command: Any) -> None:
    make("runs/digits-1", hidden=[256, 128], lr=0.002)
    make("runs/digits-2", hidden=[], lr=0.01, dropout=0.5, environment="cuda:0")
    Path("runs/digits-2/config.toml").write_text(
        Path("runs/digits-2/config.toml")
        .read_text()
        .replace("0.75", "0.875")
        .replace("log_loss = 0.5", "log_loss = 0.625")
    )
    status, out, err = command("compare", "runs/digits-1", "runs/digits-2")
    assert (status, err) == (0, "")
    assert (
        out
        == """\
                  digits-1   digits-2
state             finished   finished
settings: these differ
  hidden           256,128       none
  lr                 0.002       0.01
  dropout                -        0.5
data: all equal
environment: these differ
  device               cpu     cuda:0
figures (* best)
  test accuracy   75.00 %    87.50 %*
  test log loss       0.5*     0.625
  epochs                 3          3
"""
    )


def test_json_is_all_that_is_printed(command: Any) -> None:
    make("a", lr=0.002)
    make("b", lr=0.01, seed=1, result={"test_accuracy": 0.5, "test_log_loss": "INF"})
    status, out, err = command("compare", "a", "b/", "--json")
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert status == 0
    assert [(run["folder"], run["state"]) for run in found["runs"]] == [("a", "finished"), ("b/", "finished")]
    assert found["different"] == {"settings": {"seed": [0, 1], "lr": [0.002, 0.01]}, "data": {}, "environment": {}}
    assert found["figures"]["test_accuracy"] == {"values": [0.75, 0.5], "best": [0]}
    assert found["figures"]["test_log_loss"]["values"] == [0.5, None]
    assert found["comparable"] is False
    assert err.startswith("gradflow: note: the runs have other test samples")


def test_three_runs_one_of_them_unfinished_and_one_stopped(command: Any) -> None:
    make("one/run")
    make("two/run", result={}, metrics=None)
    make("three/run", result={"epochs": 2, "stopped": "interrupted"})
    out = command("compare", "one/run", "two/run", "three/run").out.splitlines()
    assert out[0].split() == ["one/run", "two/run", "three/run"]  # all are called "run"
    assert out[1].split(maxsplit=1)[1].split() == ["finished", "not", "finished", "interrupted"]
    assert "settings: all equal" in out
    assert re.fullmatch(r"  test accuracy +75.00 % +- +-", next(line for line in out if "accuracy" in line))


def test_the_curves_are_in_one_picture(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    make("a")
    make("b", METRICS.replace("\n", ",member\n", 1).replace("75\n", "75,1\n").replace("25\n", "25,1\n"))
    make("c", metrics=None, result={})
    status, _, err = command("compare", "a", "c", "--out", "x.png")
    assert (status, err) == (0, "gradflow: the curves are in x.png; not in it, since no epoch is finished: c\n")
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")
    drawn: list[Any] = []
    monkeypatch.setattr("gradflow.training.curves.compare_png", lambda names, runs: drawn.append((names, runs)) or b"")
    assert command("compare", "a", "b", "--out", "x.png").status == 0  # replaces the picture
    ((names, runs),) = drawn
    assert names == ["a", "b"]
    assert [len(history) for run in runs for history in run] == [3, 3]
    assert [epoch.stale for epoch in runs[0][0]] == [0, 0, 1]
    assert runs[0][0][2].validation_metrics == {"accuracy": 0.75}


def test_members_are_histories_of_their_own() -> None:
    lines = METRICS.splitlines()
    rows = [f"{n},{line}" for n in (1, 2) for line in lines[1:]]
    make(
        "run", "\n".join([f"member,{lines[0]}", *rows]) + "\n", result={"validation_loss": [0.5, 1.0], "members_x": [1]}
    )
    record = read_record("run")
    assert [[e.epoch for e in history] for history in record.histories] == [[1, 2, 3], [1, 2, 3]]
    assert record.numbers == {"validation_loss": [0.5, 1.0]}
    assert (figures([record]), averaged([record])) == ({"validation_loss": [0.75]}, {"validation_loss"})


def test_an_unfinished_run_is_compared_by_its_best_epoch_so_far(command: Any) -> None:
    make("a", result={})
    make("b", result={"epochs": 3, "best_epoch": 3, "validation_loss": 0.75, "validation_accuracy": 0.75})
    out = command("compare", "a", "b").out.splitlines()
    found = {line[2:22].strip(): line[22:].split() for line in out if line.startswith("  ")}
    assert out[1].split(maxsplit=1)[1].split("  ")[0].strip() == "not finished"
    assert found["validation loss"] == ["0.5*", "0.75"]
    assert found["validation accuracy"] == ["87.50", "%*", "75.00", "%"]
    assert (found["best epoch"], found["epochs"], found["train loss"]) == (["2", "3"], ["3", "3"], ["0.75", "-"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"test_accuracy": [0], "train_loss": [1], "test_log_loss": [0]}),
        ({"class_weight": "balanced"}, {"test_accuracy": [0], "train_loss": [], "test_log_loss": [0]}),
        ({"dataset": "wine"}, {"test_accuracy": [], "train_loss": [], "test_log_loss": []}),
    ],
)
def test_only_what_compares_is_marked(settings: dict[str, str], expected: dict[str, list[int]], command: Any) -> None:
    make("a", result={"test_accuracy": 0.5, "train_loss": 0.75, "test_log_loss": 0.25})
    make("b", result={"test_accuracy": 0.25, "train_loss": 0.5, "test_log_loss": 0.5}, **settings)
    _, out, err = command("compare", "a", "b", "--json")
    assert {name: figure["best"] for name, figure in json.loads(out)["figures"].items()} == expected
    assert ("different data" in err) == ("dataset" in settings)


def test_figures_that_are_printed_alike_share_the_mark(command: Any) -> None:
    for name, accuracy, area in (("a", 0.75001, 0.99971), ("b", 0.75002, 0.99972), ("c", 0.5, 0.99969)):
        make(name, result={"test_accuracy": accuracy, "test_auroc": area})
    lines = command("compare", "a", "b", "c").out.splitlines()
    assert "  test accuracy   75.00 %*   75.00 %*   50.00 % ".rstrip() in lines
    assert next(line.split()[2:] for line in lines if "auroc" in line) == ["0.9997"] * 3


def test_data_files_are_told_by_their_names(command: Any) -> None:
    make("a", dataset="/data/of/the/first/project/first.npz")
    make("b", dataset="/data/of/the/first/project/second.npz")
    (line,) = [line for line in command("compare", "a", "b").out.splitlines() if "dataset" in line]
    assert line.split() == ["dataset", "first.npz", "second.npz"]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("test_accuracy", [0.5, 0.75, 0.75], [1, 2]),
        ("test_log_loss", [0.5, None, 0.25], [2]),
        ("validation_loss", [float("nan"), 1.0, 2.0], [1]),
        ("test_accuracy", [0.5, 0.5], []),
        ("epochs", [1, 2], []),
    ],
)
def test_better_depends_on_the_figure(name: str, values: list[float | None], expected: list[int]) -> None:
    assert best(name, values) == expected


def test_a_folder_of_an_earlier_version_is_compared_as_far_as_it_goes(command: Any) -> None:
    old = "epoch,step,learning_rate,train_loss,train_accuracy,test_loss,test_accuracy\n1,10,0.002,1.5,0.5,1.25,0.625\n"
    make("old", old)
    make("new")
    assert command("compare", "old", "new").status == 0
    (history,) = read_record("old").histories
    assert history[0].validation_loss is None
    assert history[0].train_metrics == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a",), "compare takes two or more runs; got a"),
        (("a", "a"), "a is given twice"),
        (("a", "./a/"), "./a/ is given twice"),
        (("a", "absent"), "absent does not exist; give the folder of a run"),
        (("a", "a/config.toml"), "a/config.toml is a file; give the folder of a run"),
        (("a", "empty"), "empty is not the folder of a run: it has no config.toml"),
        (("a", "damaged"), r"damaged/config.toml is not valid TOML"),
        (("a", "torn"), r"torn/metrics.csv is damaged: line 4 is not a row of figures"),
        (("a", "binary"), r"binary/metrics.csv is damaged"),
        (("a", "b", "--out", "a/config.toml"), "this command did not write it"),
        (("a", "b", "--out", "no/x.png"), "there is no folder no"),
        (("new", "newer", "--out", "x.png"), "none of the runs has finished an epoch"),
        ((), "required"),
    ],
)
def test_what_is_no_run_is_one_line(words: tuple[str, ...], message: str, command: Any) -> None:
    for folder in ("a", "b", "damaged"):
        make(folder)
    for folder in ("new", "newer"):
        make(folder, metrics=None, result={})
    make("torn", METRICS[:-20])
    make("binary")
    Path("binary/metrics.csv").write_bytes(b"\xff\xfe\x00")
    Path("damaged/config.toml").write_text("[settings")
    Path("empty").mkdir()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    ended = command("compare", *words)
    if "newer" in words:  # the tables are printed before the picture is drawn
        ended = ended._replace(out="")
    assert_one_line(ended, message)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.name != "posix", reason="FIFOs")
def test_a_fifo_for_a_file_is_refused(command: Any) -> None:
    make("a")
    make("b", metrics=None)
    os.mkfifo("b/metrics.csv")
    assert_one_line(command("compare", "a", "b"), "not a regular file")


def test_a_hostile_config_is_printed_safely(command: Any) -> None:
    make("a")
    make("b", result={"epochs": 3, "stopped": "\x1b[31mred\n" + "x" * 1000}, environment="y" * 1000)
    out = command("compare", "a", "b").out
    assert out.replace("\n", "").isprintable()
    assert max(map(len, out.splitlines())) < 80
    with pytest.raises(SettingsError):
        read_record("absent")


def test_damaged_figures_are_refused_in_one_line_or_read(random_examples: Any) -> None:
    make("a")
    read, messages = 0, []
    for _, content in mutants(METRICS.encode(), random_examples(200).max_examples):
        Path("a/metrics.csv").write_bytes(content)
        try:
            read += len(read_record("a").histories) <= 4
        except SettingsError as error:
            messages.append(str(error))
    assert read
    assert messages
    assert [m for m in messages if not m.startswith("a/metrics.csv is damaged: ") or not m.isprintable()] == []
