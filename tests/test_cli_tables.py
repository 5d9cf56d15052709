"""`gradflow train`, `predict` and `evaluate` on tables."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradflow import tables
from gradflow.cli import main
from gradflow.training import Settings, load_run, read_config
from gradflow.training.runs.preparation import plan
from tests.test_cli import Ended, assert_one_line, settings_of
from tests.test_table_runs import table, write

for package in ("safetensors", "sklearn", "tomli_w", "tqdm", "matplotlib"):
    pytest.importorskip(package)

QUICK = ("--epochs", "4", "--hidden", "16", "--lr", "0.02", "--batch-size", "32", "--device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with people.csv, and a run on it, whose target is a column of texts."""
    folder = tmp_path_factory.mktemp("people")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        write(Path("people.csv"), table())
        words = ("train", "people.csv", "--target", "buys", "--ignore", "price", *QUICK, "--out", "run", "--quiet")
        assert main(words) == 0
    return folder


@pytest.fixture(autouse=True)
def _in_a_copy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained, tmp_path / "people")
    monkeypatch.chdir(tmp_path / "people")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process: `command("predict", "run", "new.csv").status`."""

    def run(*words: str) -> Ended:
        return Ended(main(words), *capsys.readouterr())

    return run


def notes(ended: Ended) -> list[str]:
    """The notes on stderr."""
    return re.findall(r"^gradflow: note: (.+)$", ended.err, re.M)


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text), strict=True))


# ---------------------------------------------------------------------- train


def test_train_tells_what_it_understood(command: Any) -> None:
    columns = table() | {"id": list(range(300)), "same": ["x"] * 300}
    write(Path("a.csv"), columns, ["id", "age", "town", "noise", "same", "buys"])
    ended = command("train", "a.csv", *QUICK, "--seed", "3")
    first, *lines = ended.out.splitlines()
    assert ended.status == 0, ended
    assert first == "training on a.csv: predicting buys, the last column (another: --target NAME), seed 3"
    assert "data: a.csv, 300 rows of 5 columns, 2 classes" in lines
    assert "task: buys is predicted as one of 2 classes" in lines
    assert "columns: left out: id, same; numbers: age, noise; texts: town" in lines
    assert "parts: 240 samples to train on, 60 to test on" in lines
    assert "model: 3 columns, 7-16-2, relu, 162 parameters" in lines
    assert [note.partition(":")[0] for note in notes(ended) if " is left out" in note] == [
        "id is left out",
        "same is left out",
    ]
    assert lines[-1].startswith("test accuracy ")


def test_a_target_that_is_given_is_told_and_recorded(command: Any) -> None:
    ended = command("train", "people.csv", "--target", "price", *QUICK, "--out", "run2", "--ignore", 'buys, "noise"')
    first, *lines = ended.out.splitlines()
    assert first == "training on people.csv: predicting price, seed 0"
    assert "task: price is predicted as a number" in lines
    settings = settings_of("run2")
    assert {name: settings[name] for name in ("target", "task", "ignore")} == {
        "target": "price",
        "task": "values",
        "ignore": ["buys", "noise"],
    }
    assert load_run("run2").features == ("age", "town")


def test_a_task_that_could_be_another_names_the_flag(command: Any) -> None:
    write(
        Path("a.csv"),
        {"x": list(range(100, 300, 2)), "z": [i % 3 for i in range(100)], "y": [i % 4 for i in range(100)]},
    )
    ended = command("train", "a.csv", *QUICK, "--ignore", "x")
    assert re.search(r"^task: .*4 classes.*--task values", ended.out, re.M), ended.out
    ended = command("train", "a.csv", *QUICK, "--ignore", "x", "--task", "values")
    assert "task: y is predicted as a number" in ended.out
    assert re.search(r"^test R² ", ended.out, re.M)
    found = plan(Settings("a.csv", categorical=("z",), ignore=("x",), device="cpu"))
    assert found.split.input_scale.kinds == {"z": "text"}


def test_config_repeats_a_run_on_a_table(command: Any) -> None:
    assert command("train", "--config", "run", "--out", "again").status == 0
    for name in ("metrics.csv", "model.safetensors"):
        assert Path("again", name).read_bytes() == Path("run", name).read_bytes()
    assert settings_of("again") == settings_of("run")
    ended = command("train", "--config", "run", "--target", "price", "--task", "values", "--ignore", "buys")
    assert "predicting price" in ended.out


def test_a_table_without_a_header(command: Any) -> None:
    columns = {name: values for name, values in table().items() if name != "price"}
    write(Path("a.csv"), columns, header=False)
    assert_one_line(
        command("train", "a.csv", *QUICK, "--no-header", "--target", "buys"), "no column 'buys'; it has column1"
    )
    ended = command("train", "a.csv", *QUICK, "--no-header", "--out", "run2", "--quiet")
    assert ended.status == 0, ended
    assert settings_of("run2")["target"] == "column4"
    assert settings_of("run2")["header"] is False
    write(Path("new.csv"), columns, ["age", "town", "noise"], header=False)
    ended = command("predict", "run2", "new.csv", "--no-header")
    assert len(rows(ended.out)) == 301
    assert_one_line(command("predict", "run2", "new.csv"), "seem to be values, not names.+--no-header")


@pytest.mark.parametrize("kind", ["tsv", "gz", "parquet"])
def test_other_files_hold_the_same_table(kind: str, command: Any) -> None:
    text = Path("people.csv").read_text("utf-8")
    if kind == "gz":
        Path("people.gz").write_bytes(gzip.compress(text.encode()))
    elif kind == "tsv":
        cells = list(csv.reader(text.splitlines()))
        Path("people.tsv").write_text("".join("\t".join(row) + "\n" for row in cells), "utf-8")
    else:
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(arrow.table(table()), "people.parquet")
    settings = settings_of("run") | {"dataset": f"people.{kind}"}
    assert plan(Settings(**settings)).data_hash == read_config("run")["data"]["hash"]
    assert command("predict", "run", f"people.{kind}").out == command("predict", "run", "people.csv").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--target", "buy"),
            r"people\.csv has no column 'buy'; it has age, town, noise, buys, price; did you mean buys\?",
        ),
        (("--ignore", "nois"), r"no column 'nois'.+did you mean noise\?"),
        (("--categorical", "nois"), r"no column 'nois'.+did you mean noise\?"),
        (("--weight-column", "weight"), "no column 'weight'"),
        (("--target", "age", "--ignore", "age"), "age is to be predicted, so it cannot be left out"),
        (("--ignore", "age,town,noise,buys,price"), "all columns are left out"),
        (("--task", "regression"), r"unknown task 'regression'; did you mean values\?$"),
        (("--task", "classification"), r"unknown task 'classification'; did you mean classes\?$"),
        (("--task", "numbers"), "unknown task 'numbers'; there are classes, values$"),
        (("--ignore", "age", "town"), "got people.csv and town; names are joined by commas: --ignore age,town$"),
        (("--numeric", "a b", "age", "--quiet"), "got people.csv and age; .+: --numeric 'a b,age'$"),
        (("--target", "price", "age"), "train takes one dataset; got people.csv and age$"),
        (
            ("--target", "price", "--ignore", "buys", "--task", "classes"),
            r"no classes: predict a number \(--task values\)$",
        ),
        (("--target", "buys", "--task", "values"), "the target 'buys' holds texts"),
        (("--target", "buys", "--weight-column", "town"), "the weights in town must be numbers"),
        (("--target", "price", "--class-weight", "balanced"), "class_weight needs classes"),
        (("--target", "buys", "--test-file", "none.csv"), r"none\.csv does not exist"),
        (("--numeric", "nois"), r"no column 'nois'.+did you mean noise\?"),
        (("--numeric", "town"), "column 'town' holds texts, so it cannot be numeric"),
        (("--weight-column", "noise", "--ignore", "noise"), "noise weighs the rows, so it cannot be ignored, too"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(words: tuple[str, ...], message: str, command: Any) -> None:
    assert_one_line(command("train", "people.csv", *QUICK, *words), message)
    assert not Path("runs").exists()


def test_a_target_or_weights_without_values_are_said_to_be_empty(command: Any) -> None:
    write(Path("a.csv"), table() | {"none": [None] * 300})
    assert_one_line(command("train", "a.csv", "--target", "none", *QUICK), r"a\.csv: column 'none' is empty")
    words = ("--target", "buys", "--weight-column", "none", *QUICK)
    assert_one_line(command("train", "a.csv", *words), r"a\.csv: column 'none' is empty")
    assert not Path("runs").exists()


def test_a_column_that_numbers_the_rows_is_kept_where_it_is_named(command: Any) -> None:
    days = list(range(1, 301))
    write(Path("a.csv"), {"day": days, "noise": table()["noise"], "sold": [0.5 * day for day in days]})
    note = "day is left out: it seems to number the rows (--numeric day keeps it)"
    assert note in notes(command("train", "a.csv", *QUICK, "--out", "without"))
    assert notes(command("train", "a.csv", *QUICK, "--numeric", "day", "--out", "with")) == []
    assert load_run("with").features == ("day", "noise")
    assert settings_of("with")["numeric"] == ["day"]
    assert command("train", "--config", "with", "--out", "again").status == 0
    assert Path("with", "model.safetensors").read_bytes() == Path("again", "model.safetensors").read_bytes()


def test_weights_are_not_among_the_columns(command: Any) -> None:
    write(Path("a.csv"), table() | {"trust": [1.0, 2.0, 3.0] * 100})
    words = ("--target", "buys", "--ignore", "price", "--weight-column", "trust", *QUICK, "--out", "weighted")
    assert [note for note in notes(command("train", "a.csv", *words)) if "trust" in note] == []
    assert load_run("weighted").features == ("age", "town", "noise")


def test_a_bad_cell_is_told_with_its_line(command: Any) -> None:
    text = Path("people.csv").read_text("utf-8").splitlines()
    cells = text[250].split(",")
    text[250] = ",".join(["about 40", *cells[1:]])
    Path("bad.csv").write_text("\n".join(text) + "\n", "utf-8")
    assert_one_line(command("train", "bad.csv", "--target", "buys", *QUICK), r"bad\.csv.+line 251.+'about 40'")
    ended = command("predict", "run", "bad.csv", "--out", "p.csv")
    assert_one_line(ended, r"bad\.csv.+line 251.+'about 40'")
    assert not Path("p.csv").exists()


def test_what_helps_is_named_as_it_is_typed(command: Any) -> None:
    names = [f"name {i}" for i in range(100)]
    write(Path("a.csv"), {"full name": names, "a": list(range(100)), "y": [i % 7 / 2 for i in range(100)]})
    ended = command("train", "a.csv", *QUICK)
    assert_one_line(
        ended,
        r"in column 'full name', all 80 texts of the training rows differ.+leave it out \(--ignore 'full name'\)$",
    )
    with pytest.raises(ValueError, match=r"leave it out \(ignore=\['full name'\]\)$"):
        plan(Settings("a.csv", device="cpu"))
    write(Path("b.csv"), {'a,"b"': [1, 2, "x"], "y": [1, 2, 3]})
    assert_one_line(command("train", "b.csv", *QUICK), re.escape("""(--ignore '"a,""b""\"')"""))


def test_blanks_around_names_are_left_out_unless_they_are_in_quotes(command: Any) -> None:
    words = ("train", "people.csv", "--target", "buys", *QUICK, "--quiet")
    assert command(*words, "--ignore", " price , noise", "--out", "run2").status == 0
    assert settings_of("run2")["ignore"] == ["price", "noise"]
    assert_one_line(command(*words, "--ignore", '" price",noise'), "has no column ' price'")


def test_a_workbook_is_not_taken_for_arrays(command: Any) -> None:
    with zipfile.ZipFile("book.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")
    what = r"book\.xlsx is an Excel workbook or another zip archive: export the table as CSV$"
    assert_one_line(command("train", "book.xlsx"), what)
    assert_one_line(command("train", "book.xlsx", "--target", "churn"), what)
    assert_one_line(command("predict", "run", "book.xlsx"), what)
    np.savez("a.npz", a=np.ones(3))
    assert_one_line(command("train", "a.npz"), r"a\.npz has no array X.+numpy\.savez")
    np.savez("none.npz")
    assert_one_line(command("train", "none.npz"), r"none\.npz has no array X.+numpy\.savez")


def test_a_note_on_a_file_that_is_given_twice_is_told_once(command: Any) -> None:
    words = ("train", "people.csv", "--target", "buys", "--test-file", "people.csv", *QUICK)
    told = notes(command(*words))
    assert [note for note in told if " missing in " in note] == ["people.csv: 34 missing in age, 18 missing in town"]
    assert len(told) == 2  # the other: it is what is trained on


@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_a_run_after_its_data_is_told(name: str, command: Any) -> None:
    for run in ("run", "run/model.safetensors"):
        right = f"gradflow {name} {run} people.csv"
        assert_one_line(command(name, "people.csv", run), f"error: people.csv is data, not a run; .+: {right}$")
    assert_one_line(command(name, "iris", "run"), f"the run comes first: gradflow {name} run iris$")
    assert_one_line(command(name, "none", "run"), "none does not exist; it must be the folder of a run")


def test_settings_of_tables_are_refused_for_arrays(command: Any) -> None:
    assert_one_line(command("train", "iris", "--ignore", "a"), "ignore is a setting of tables, and iris holds arrays")


# ---------------------------------------------------------------------- predict


def test_predictions_are_those_of_the_rows_in_order(command: Any) -> None:
    columns = table(50, seed=7)
    write(Path("new.csv"), columns | {"extra": [1] * 50}, ["noise", "extra", "town", "age"])
    ended = command("predict", "run", "new.csv", "--out", "p.csv")
    assert (ended.status, ended.out) == (0, "")
    assert "new.csv: not used: extra" in notes(ended)
    assert ended.err.endswith(
        "gradflow: 50 predictions of run (3 columns, 7-16-2, relu, 2 classes, on cpu); written to p.csv\n"
    )
    header, *found = rows(Path("p.csv").read_text("utf-8"))
    assert header == ["prediction", "p(no)", "p(yes)"]
    probabilities = load_run("run").predict_proba(columns)
    assert (np.array([row[1:] for row in found], np.float32) == probabilities).all()
    assert [row[0] for row in found] == [("no", "yes")[i] for i in probabilities.argmax(axis=1)]


def read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands read 300 rows in parts of 70."""
    reading = tables.read_chunks

    def in_parts(*arguments: Any, **options: Any) -> Any:
        (part,) = reading(*arguments, **options)
        return (part.take(slice(start, start + 70)) for start in range(0, 300, 70))

    monkeypatch.setattr(tables, "read_chunks", in_parts)


def test_a_file_goes_through_in_parts(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = table()
    columns["age"][0] = columns["age"][299] = 200
    write(Path("new.csv"), columns, ["age", "town", "noise"])
    whole = command("predict", "run", "new.csv")
    evaluated = json.loads(command("evaluate", "run", "people.csv", "--json").out)
    read_in_parts(monkeypatch)
    parts = command("predict", "run", "new.csv")
    assert rows(parts.out)[0] == rows(whole.out)[0]
    numbers = [np.array([row[1:] for row in rows(ended.out)[1:]], float) for ended in (whole, parts)]
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=1e-4)
    assert parts.err == whole.err
    assert [note for note in notes(parts) if note.endswith(": 2 of 300 rows")]
    again = json.loads(command("evaluate", "run", "people.csv", "--json").out)
    for name, figure in evaluated["figures"].items():
        assert again["figures"][name]["value"] == pytest.approx(figure["value"], rel=1e-4)
    assert (again["samples"], again["classes"]) == (300, evaluated["classes"])


def test_rows_without_a_target_are_counted_over_all_parts(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = table()
    columns["buys"][:100] = [None] * 100  # the first part, and some of the second
    columns["buys"][250:] = [None] * 50  # the last
    write(Path("gaps.csv"), columns)
    read_in_parts(monkeypatch)
    ended = command("evaluate", "run", "gaps.csv", "--json")
    assert json.loads(ended.out)["samples"] == 150
    assert "gaps.csv: rows without buys are left out: 150 of 300" in notes(ended)
    columns["buys"] = [None] * 300
    write(Path("gaps.csv"), columns)
    assert_one_line(command("evaluate", "run", "gaps.csv"), r"gaps\.csv: no row has a value in the column of .+'buys'")


def test_what_training_never_saw_is_counted(command: Any) -> None:
    columns: dict[str, list[Any]] = {
        "age": [30, 120, 200, None],
        "town": ["Ulm", "Rom", None, "Bonn"],
        "noise": [0.1, None, None, 0.2],
    }
    write(Path("new.csv"), columns)
    told = notes(command("predict", "run", "new.csv"))
    for words in (
        "age is outside of the training range, .+: 2 of 4 rows",
        "town .+: 1 of 4 rows",
        "noise is missing, which it never was in training.+: 2 of 4 rows",
    ):
        assert any(re.fullmatch(f"new.csv: {words}", note) for note in told), told
    assert len(told) == 3
    assert notes(command("predict", "run", "people.csv")) == ["people.csv: not used: price"]


@pytest.mark.parametrize("out", ["p.parquet", "p.csv.gz", "P.XLSX"])
def test_predictions_are_not_written_as_csv_under_the_name_of_another_format(out: str, command: Any) -> None:
    assert_one_line(command("predict", "run", "people.csv", "--out", out), "predictions are written as CSV")
    assert not Path(out).exists()


def test_values_are_predicted_in_their_units(command: Any) -> None:
    words = ("--target", "price", "--ignore", "buys", *QUICK, "--out", "run2", "--quiet")
    assert command("train", "people.csv", *words).status == 0
    header, *found = rows(command("predict", "run2", "people.csv").out)
    assert header == ["prediction"]
    assert 90 < np.mean([float(row[0]) for row in found]) < 130


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("other.csv", r"other\.csv has no column 'age'; it has a, b"),
        ("none.csv", r"none\.csv does not exist|cannot read none\.csv"),
        ("empty.csv", r"empty\.csv"),
        ("arrays.npz", r"arrays\.npz"),
    ],
)
def test_a_file_that_cannot_be_predicted_is_one_line(file: str, message: str, command: Any) -> None:
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("empty.csv").write_text("")
    np.savez("arrays.npz", X=np.ones((3, 3)))
    for name in ("predict", "evaluate"):
        assert_one_line(command(name, "run", file), message)


def test_a_table_is_not_for_a_run_on_arrays(command: Any) -> None:
    assert command("train", "iris", *QUICK, "--out", "iris", "--quiet").status == 0
    assert_one_line(command("predict", "iris", "people.csv"), "of an unknown kind")
    assert_one_line(command("predict", "iris", "iris", "--no-header"), "--no-header is for tables")


# ---------------------------------------------------------------------- evaluate, and the other commands


def test_evaluate_gives_the_figures_of_a_table(command: Any) -> None:
    columns = table(80, seed=11)
    columns["buys"][5] = None
    write(Path("held_out.csv"), columns, ["buys", "noise", "town", "age"])
    ended = command("evaluate", "run", "held_out.csv", "--json")
    document = json.loads(ended.out)
    assert document["samples"] == 79
    expected = load_run("run").evaluate("held_out.csv")
    assert {name: figure["value"] for name, figure in document["figures"].items()} == pytest.approx(expected)
    assert any(note.endswith("rows without buys are left out: 1 of 80") for note in notes(ended))
    ended = command("evaluate", "run", "people.csv")
    assert "run was trained on a part of people.csv, so these are not figures of unseen data" in notes(ended)
    write(Path("new.csv"), columns, ["age", "town", "noise"])
    assert_one_line(command("evaluate", "run", "new.csv"), "no column 'buys'")


def test_a_run_on_a_table_has_a_summary_and_a_graph(command: Any) -> None:
    ended = command("summary", "run")
    assert (ended.status, "Sequential on (32, 4), float32" in ended.out) == (0, True)
    assert "1.0" in ended.out
    ended = command("graph", "run", "--out", "g.dot")
    assert ended.status == 0, ended
