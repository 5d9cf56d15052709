"""Runs on tables: what they learn from, that they go on and repeat with the same bits, their models and reports."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.data import DataError
from gradflow.tables import Column, Columns, Table, read_table
from gradflow.tables.dataset import load_table, target_in
from gradflow.tables.inputs import InputSettings
from gradflow.training import Run, Settings, SettingsError, load_run, resume, train
from gradflow.training.runs import importance as shuffling
from gradflow.training.runs.importance import amount, dependence, importance
from gradflow.training.runs.predictor import MODEL_FILE, Predictor
from gradflow.training.runs.preparation import plan
from gradflow.training.runs.sources import VALIDATED_ROWS, table_defaults
from tests.mutations import changed_tree, mutants

for package in ("safetensors", "sklearn", "tomli_w"):
    pytest.importorskip(package)

SMALL: dict[str, Any] = {"epochs": 6, "hidden": (16,), "lr": 0.02, "dropout": 0.0, "device": "cpu", "batch_size": 32}


def table(rows: int = 300, seed: int = 0) -> dict[str, list[Any]]:
    """Columns to learn from: whether someone buys depends on the age and the town, the price on age and town."""
    draw = np.random.default_rng(seed)
    age = draw.integers(18, 90, rows)
    town = draw.choice(["Bonn", "Ulm", "Köln, am Rhein"], rows)
    noise = draw.normal(size=rows).round(3)
    score = (age - 50) / 20 + 2.0 * (town == "Ulm")
    return {
        "age": [None if i % 9 == 0 else int(a) for i, a in enumerate(age)],
        "town": [None if i % 17 == 3 else str(t) for i, t in enumerate(town)],
        "noise": noise.tolist(),
        "buys": ["yes" if s > 0.5 else "no" for s in score],
        "price": (10 * score + 100 + 0.1 * noise).round(2).tolist(),
    }


def write(path: Path, columns: dict[str, list[Any]], names: Sequence[str] | None = None, header: bool = True) -> str:
    """Write columns as CSV, and return the path."""
    names = list(columns) if names is None else names
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(names)
        writer.writerows(zip(*(columns[name] for name in names), strict=True))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, and a run on it for each task."""
    folder = tmp_path_factory.mktemp("tables")
    data = write(folder / "people.csv", table())
    train(Settings(data, target="buys", ignore=("price",), ensemble=2, **SMALL), folder / "classes")
    train(Settings(data, target="price", ignore=("buys",), **SMALL | {"epochs": 20}), folder / "values")
    return folder


# ---------------------------------------------------------------------- what is learned from what


def test_a_run_learns_classes_and_values(runs: Path) -> None:
    classes, values = load_run(runs / "classes"), load_run(runs / "values")
    assert (classes.classes, classes.features) == (("no", "yes"), ("age", "town", "noise"))
    assert classes.score["test_accuracy"] > 0.85  # 1 in 9 has no age
    assert classes.predict_proba({"age": [20, 89], "town": ["Bonn", "Ulm"], "noise": [0, 0]})[:, 1].round() == (
        pytest.approx([0.0, 1.0])
    )
    assert values.columns == ("price",)
    cheap, dear = values.predict({"age": [20, 89], "town": ["Bonn", "Ulm"], "noise": [0, 0]})
    assert (cheap, dear) == (pytest.approx(85, abs=6), pytest.approx(139.5, abs=6))  # in the units of the data


def test_everything_is_learned_from_the_training_rows_alone(tmp_path: Path) -> None:
    columns = table()
    settings = {"target": "buys", "ignore": ("price",), "validation": 0.1, **SMALL}
    split = plan(Settings(write(tmp_path / "a.csv", columns), **settings)).split
    held_out = [*split.test.indices, *split.validation.indices]  # type: ignore[union-attr]
    for row in held_out:
        columns["noise"][row], columns["town"][row] = 1e6, "Atlantis"
    changed = plan(Settings(write(tmp_path / "b.csv", columns), **settings)).split
    assert changed.input_scale.to_dict() == split.input_scale.to_dict()
    assert changed.train.inputs.tobytes() == split.train.inputs.tobytes()
    assert changed.test.inputs.tobytes() != split.test.inputs.tobytes()  # type: ignore[union-attr]
    whole = Columns.learn(read_table(tmp_path / "b.csv", ignore=["price"]), "buys")
    assert whole.to_dict() != split.input_scale.to_dict()


def test_the_split_keeps_the_share_of_each_class(tmp_path: Path) -> None:
    data = write(
        tmp_path / "a.csv", {"x": list(range(100)), "z": [i % 7 for i in range(100)], "y": ["a"] * 90 + ["b"] * 10}
    )
    parts = load_table(data).split(seed=3)
    assert [int((part.targets == 1).sum()) for part in (parts.test, parts.train)] == [2, 6]  # type: ignore[union-attr]


def test_rows_without_a_target_are_left_out_and_counted(tmp_path: Path) -> None:
    columns = table(100)
    columns["buys"][3] = columns["buys"][50] = None
    found = plan(Settings(write(tmp_path / "a.csv", columns), target="buys", **SMALL))
    assert len(found.dataset.targets) == 98
    assert found.notes[-1].endswith("a.csv: rows without buys are left out: 2 of 100")


def test_weights_decide_what_is_learned_and_are_no_input(tmp_path: Path) -> None:
    columns = table(400)
    columns["trust"] = [float(i % 2) for i in range(400)]
    columns["buys"] = [
        label if trusted else {"yes": "no", "no": "yes"}[label]
        for label, trusted in zip(columns["buys"], columns["trust"], strict=True)
    ]
    data = write(tmp_path / "a.csv", columns)
    settings = {"target": "buys", "ignore": ("price",), "test": 0, "weight_column": "trust", **SMALL, "epochs": 15}
    predictor = train(Settings(data, **settings), tmp_path / "run").predictor
    assert "trust" not in predictor.features
    clean = table(200, seed=9)
    assert predictor.evaluate(clean)["accuracy"] > 0.8  # without weights: 0.5


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (["a"] * 100, "the weights in w must be numbers; the column holds texts"),
        ([1.0] * 99 + [-2.0], "must be finite and at least 0; one is -2"),
        ([1.0] * 99 + [None], "must be finite and at least 0; one is missing"),
        ([0] * 100, "are all 0: there is nothing to train on"),
    ],
)
def test_weights_that_are_none_are_refused(weights: list[Any], words: str, tmp_path: Path) -> None:
    data = write(tmp_path / "a.csv", table(100) | {"w": weights})
    with pytest.raises(DataError, match=words):
        plan(Settings(data, target="buys", weight_column="w", **SMALL))


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["a", "Label", "b"], {}, ("Label", "by its name")),
        (["y", "target", "b"], {}, ("target", "by its name")),
        (["a", "b", "c"], {}, ("c", "the last column")),
        (["a", "b", "c"], {"unused": ["c"]}, ("b", "the last column")),
        (["a", "y"], {"target": "a"}, ("a", "")),
    ],
)
def test_the_target_is_found_by_its_name_or_is_the_last_column(
    names: list[str], options: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert target_in({name: [1, 2] for name in names}, **options) == expected


def test_data_of_its_own_tests_and_validates(tmp_path: Path) -> None:
    columns, names = table(), ["price", "extra", "buys", "town", "age", "noise"]
    other = table(80, seed=5) | {"extra": list(range(80))}
    files = {
        "test_file": write(tmp_path / "test.csv", other, names),
        "validation_file": write(tmp_path / "validation.csv", other, names[2:]),
    }
    settings: dict[str, Any] = {"target": "buys", "ignore": ("price",), **SMALL, **files}
    found = plan(Settings(write(tmp_path / "a.csv", columns), **settings))
    assert [len(part) for part in (found.split.train, found.split.validation, found.split.test)] == [300, 80, 80]  # type: ignore[arg-type]
    write(tmp_path / "test.csv", other, ["age", "town", "noise"])
    with pytest.raises(DataError, match=r"test\.csv has no column 'buys'; it has age, town, noise"):
        plan(Settings(str(tmp_path / "a.csv"), **settings))


# ---------------------------------------------------------------------- the same bits


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, runs: Path) -> None:
    settings = Settings(str(runs / "people.csv"), target="buys", ignore=("price",), ensemble=2, **SMALL)
    run = Run.new(settings, tmp_path / "run")
    with run:
        for _ in itertools.islice(run.steps(save_every=0), 40):  # in the second model
            pass
        run.finish("interrupted")
    resume(tmp_path / "run")
    for name in ("metrics.csv", MODEL_FILE):
        assert (tmp_path / "run" / name).read_bytes() == (runs / "classes" / name).read_bytes()


def test_a_run_on_other_rows_does_not_go_on(tmp_path: Path) -> None:
    columns = table()
    data, test = write(tmp_path / "a.csv", columns), write(tmp_path / "test.csv", table(80, seed=5))
    run = Run.new(Settings(data, target="buys", test_file=test, **SMALL), tmp_path / "run")
    with run:
        next(run.steps())
        run.finish("interrupted")
    columns["noise"][0] += 0.001
    write(tmp_path / "a.csv", columns)
    with pytest.raises(SettingsError, match=r"a\.csv with .+test\.csv is not the data that .+: its hash differs"):
        resume(tmp_path / "run")


def test_the_defaults_of_tables_depend_on_their_rows(tmp_path: Path) -> None:
    data = write(tmp_path / "a.csv", table())
    found = plan(Settings(data, target="buys", device="cpu", hidden=(8,))).settings
    defaults = table_defaults(240, classes=True, hidden=(8,))
    assert {name: getattr(found, name) for name in defaults} == defaults
    assert found.hidden == (8,)
    assert (defaults["validation"], defaults["weight_decay"], defaults["dropout"]) == (0.0, 0.12, 0.5)
    assert defaults["average"] == round(1 - 10 / (8 * 60), 3)
    decays = [table_defaults(240, True, hidden)["weight_decay"] for hidden in [(), (64, 32), (256, 128), (512,)]]
    assert decays == [0.1, 1.0, 4.0, 4.0]
    california, adult = table_defaults(16_512, classes=False), table_defaults(39_073, classes=True)
    names = ("validation", "batch_size", "epochs", "lr", "weight_decay", "dropout", "average")
    assert [california[name] for name in names] == [0.1, 128, 54, 0.003, 0.1, 0.1, 0.995]
    assert [adult[name] for name in names] == [0.1, 256, 23, 0.003, 0.1, 0.3, 0.995]


@pytest.mark.parametrize("classes", [False, True])
def test_the_defaults_of_tables_change_little_by_little(classes: bool) -> None:
    """From a row more, no number changes by more than a tenth, but where validation begins, or batches double."""
    before = table_defaults(1, classes)
    for rows in range(2, 20_000):
        now = table_defaults(rows, classes)
        if rows != VALIDATED_ROWS:
            steady = [name for name in now if name not in ("batch_size", "average")]
            assert all(now[name] == pytest.approx(before[name], rel=0.1) for name in steady)
            assert now["weight_decay"] <= before["weight_decay"]
        assert 0.8 < now["average"] <= 0.995
        before = now


def test_what_is_given_stays_as_it_is_for_a_table(tmp_path: Path) -> None:
    data = write(tmp_path / "a.csv", table())
    given = dict.fromkeys(("validation", "dropout", "lr", "weight_decay"), 0.25) | {"epochs": 3, "average": 0.0}
    found = plan(Settings(data, target="buys", device="cpu", **given)).settings  # type: ignore[arg-type]
    assert {name: getattr(found, name) for name in given} == given
    assert plan(Settings(data, target="buys", device="cpu", optimizer="sgd")).settings.lr == 0.05
    again = Settings(**found.to_dict())
    assert (again, again.left_open) == (found, frozenset())
    other = plan(Settings(data, target="buys", device="cpu", validation_file=data)).settings
    assert (other.validation, other.batch_size) == (0.0, 32)


def test_the_settings_of_arrays_are_as_they_were(tmp_path: Path) -> None:
    settings = Settings("digits").to_dict()
    assert not {"target", "task", "ignore", "categorical", "weight_column", "header", "encoding"} & set(settings)
    with pytest.raises(SettingsError, match="target is a setting of tables, and iris holds arrays"):
        plan(Settings("iris", target="kind"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "sorting"}, "unknown task 'sorting'; there are classes, values"),
        ({"encoding": "fourier"}, "unknown encoding 'fourier'; there are auto, piecewise, standard"),
        ({"ignore": "name"}, "ignore must be a list of names of columns; got 'name'"),
        ({"target": 3}, "target must be the name of a column; got 3"),
        ({"header": 1}, "header must be true or false; got 1"),
    ],
)
def test_invalid_settings_of_tables(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings("a.csv", **settings)


# ---------------------------------------------------------------------- models


def test_a_model_takes_tables_in_any_form(runs: Path) -> None:
    predictor, columns = load_run(runs / "classes"), table(60, seed=4)
    expected = predictor.predict_proba(columns)
    path = write(runs / "again.csv", columns, ["noise", "town", "age"])
    for x in (path, Path(path), read_table(path), {name: columns[name] for name in ("town", "noise", "age")}):
        assert predictor.predict_proba(x).tobytes() == expected.tobytes()
    assert predictor.predict(path).tolist() == ["yes" if p > 0.5 else "no" for p in expected[:, 1]]
    assert predictor.evaluate(columns) == predictor.evaluate(path, columns["buys"])
    alone = [Predictor([m], predictor.inputs, classes=["no", "yes"]).predict_proba(path) for m in predictor.members]
    np.testing.assert_allclose(expected, (alone[0].astype(float) + alone[1]) / 2, rtol=1e-6)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_model_takes_frames(library: str, runs: Path) -> None:
    frames, columns = pytest.importorskip(library), table(60, seed=4)
    predictor = load_run(runs / "values")
    frame = frames.DataFrame(columns)
    assert predictor.predict(frame).tobytes() == predictor.predict(columns).tobytes()
    assert predictor.evaluate(frame)["r2"] > 0.8


def test_what_a_model_does_not_take_is_refused(runs: Path) -> None:
    predictor = load_run(runs / "classes")
    with pytest.raises(DataError, match="the dict has no column 'town'; it has age, noise"):
        predictor.predict({"age": [1], "noise": [1]})
    with pytest.raises(TypeError, match="a table is read from a path, a frame of pandas or polars, or a dict"):
        predictor.predict(np.ones((2, 3)))
    with pytest.raises(DataError, match="no class 'perhaps' in the training data; its classes are no, yes"):
        predictor.evaluate(table(20) | {"buys": ["perhaps"] * 20})
    perceptron = gf.nn.MLP([5, 2])
    with pytest.raises(TypeError, match=r"a Predictor of tables takes a ColumnInputs and an nn\.MLP; got MLP"):
        Predictor([perceptron], predictor.inputs, classes=["no", "yes"])
    with pytest.raises(ValueError, match="the labels of the model are not those of its columns"):
        Predictor(predictor.members, predictor.inputs, classes=["yes", "no"])


def test_a_model_file_holds_the_columns_and_no_buffers(runs: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    predictor = load_run(runs / "values")
    tree = gf.load(runs / "values" / MODEL_FILE, "cpu")
    assert (tree["version"], tree["inputs"]) == (2, predictor.inputs.to_dict())  # type: ignore[union-attr]
    weights = numpy.load_file(runs / "values" / MODEL_FILE)
    assert sorted(weights) == [f"members.0.1.{i}.{kind}" for i in (0, 1) for kind in ("bias", "weight")]
    gf.save(runs / "again.safetensors", predictor.tree())
    assert (runs / "again.safetensors").read_bytes() == (runs / "values" / MODEL_FILE).read_bytes()


def rich(rows: int = 1600, **options: Any) -> Predictor:
    """A model with bins, an indicator of missing values, one-hot levels and an embedding. options: of `Columns`."""
    draw = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "size": [None if i % 50 == 0 else float(v) for i, v in enumerate(draw.normal(size=rows))],
        "kind": draw.choice(["a", "b", "c"], rows).tolist(),
        "street": [f"street {i % 40}" for i in range(rows)],
        "y": draw.integers(0, 2, rows).tolist(),
    }
    learned = Columns.learn(read_table(columns), "y", **options)
    first = learned.module(generator=gf.Generator(0))
    perceptron = gf.nn.MLP([first.out_features, 8, 2], dtype=learned.dtype, generator=gf.Generator(1))
    return Predictor([gf.nn.Sequential(first, perceptron)], learned, labels=[0, 1], classes=["0", "1"])


def test_bins_and_embeddings_come_back_from_a_model_file(tmp_path: Path) -> None:
    predictor = rich()
    gf.save(tmp_path / MODEL_FILE, predictor.tree())
    found = load_run(tmp_path)
    x = {"size": [0.5, None, 9.0], "kind": ["a", "z", None], "street": ["street 3", "elsewhere", None]}
    assert found.predict_proba(x).tobytes() == predictor.predict_proba(x).tobytes()
    assert {"0.linear.weight", "0.linear.bias", "0.embed.weight"} < set(predictor.tree()["members"][0])
    assert repr(found) == repr(predictor)
    shapes = predictor.inputs.module_shapes()  # type: ignore[union-attr]
    assert shapes == {name: p.shape for name, p in predictor.members[0][0].named_parameters()}  # type: ignore[index]


@pytest.mark.parametrize("encoding", ["piecewise", "standard"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_file_of_other_widths_opens(encoding: str, dtype: str, tmp_path: Path) -> None:
    settings = InputSettings(width=5, embedding_dim=3, most_one_hot=3, limit=0.5)
    predictor = rich(encoding=encoding, dtype=dtype, settings=settings)
    gf.save(tmp_path / MODEL_FILE, predictor.tree())
    found = load_run(tmp_path)
    assert found.inputs.settings == settings  # type: ignore[union-attr]
    assert found.sizes[0] == (5 if encoding == "piecewise" else 1) + 1 + 3 + 3  # size, its indicator, kind, street
    x = {"size": [0.7, 0.9, 0.3, None], "kind": ["a"] * 4, "street": ["street 3"] * 4}
    expected = predictor.predict_proba(x)
    assert found.predict_proba(x).tobytes() == expected.tobytes()
    assert (expected[0] == expected[1]).all() == (encoding == "standard")  # beyond the limit
    assert expected[0, 0] != expected[2, 0]


def test_a_model_file_that_does_not_tell_its_widths_opens() -> None:
    predictor = rich()
    tree = predictor.tree()
    settings, dtype = tree["inputs"].pop("settings"), tree["inputs"].pop("dtype")
    assert (settings, dtype) == ({"width": 24, "embedding_dim": 16, "most_one_hot": 32, "limit": 10.0}, "float32")
    x = {"size": [0.5, None, 9.0], "kind": ["a", "z", None], "street": ["street 3", "elsewhere", None]}
    assert Predictor.from_tree(tree).predict_proba(x).tobytes() == predictor.predict_proba(x).tobytes()


def test_a_file_that_tells_of_huge_widths_is_refused_before_its_model_is_built() -> None:
    tree = rich().tree()
    for name in ("width", "embedding_dim"):
        changed = {**tree["inputs"], "settings": {**tree["inputs"]["settings"], name: 10**12}}
        with pytest.raises(gf.InvalidFileError, match="must be a tensor of shape"):
            Predictor.from_tree({**tree, "inputs": changed})


@pytest.mark.parametrize("way", ["tree", "bytes"])
def test_a_changed_or_damaged_model_of_a_table_is_refused_in_one_line_or_predicts(
    way: str, tmp_path: Path, random_examples: Any
) -> None:
    predictor, random = rich(), np.random.default_rng(0)
    tree, path = predictor.tree(), tmp_path / MODEL_FILE
    gf.save(path, tree)
    x = {"size": [0.5, None], "kind": ["a", "z"], "street": ["street 3", None]}
    messages, n = [], random_examples(100).max_examples
    expected = predictor.predict(x).tolist()
    changed = [("", changed_tree(tree, random)) for _ in range(n)] if way == "tree" else mutants(path.read_bytes(), n)
    for what, content in changed:
        try:
            if way == "bytes":
                path.write_bytes(content)
            found = load_run(path) if way == "bytes" else Predictor.from_tree(content)
        except gf.InvalidFileError as error:
            messages.append(str(error))
            continue
        try:
            predicted = found.predict(x).tolist()
        except DataError:  # other names of columns
            assert way == "tree"
        else:
            assert way == "tree" or predicted == expected, what
    assert len(messages) > n / 3
    assert [m for m in messages if len(m) > 600 or not m.isprintable()] == []


# ---------------------------------------------------------------------- reports


def test_importance_finds_the_columns_that_matter(runs: Path) -> None:
    predictor, columns = load_run(runs / "values"), read_table(runs / "people.csv")
    targets = columns["price"].values[:, None]
    found = {each.column: each.losses for each in importance(predictor, columns, targets)}
    assert list(found)[2] == "noise"
    assert min(found["age"].min(), found["town"].min()) > 5.0
    assert np.abs(found["noise"]).max() < 1.0  # the deviation of prices is 14
    again = importance(predictor, columns, targets)
    assert all((each.losses == found[each.column]).all() for each in again)  # seeded


def test_large_models_of_many_columns_are_shuffled_less(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = load_run(runs / "values")
    parameters = sum(p.size for p in predictor.members[0].parameters())
    assert [len(amount(predictor, rows)[0]) for rows in (60, 5000)] == [60, 2000]
    monkeypatch.setattr(shuffling, "_PRODUCTS", 1000 * parameters * 3)
    rows, times = amount(predictor, 5000)
    assert (len(rows), times, rows[0], rows[-1]) == (500, 2, 0, 4999)
    monkeypatch.setattr(shuffling, "_TOO_MANY", 0)
    train(Settings(str(runs / "people.csv"), target="price", **SMALL | {"epochs": 1}), tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "There are too many columns to find out how much each of them matters." in page
    assert "How predictions depend" not in page


def test_dependence_is_the_mean_prediction_by_value(runs: Path) -> None:
    predictor, columns = load_run(runs / "values"), table()
    town = dependence(predictor, read_table(runs / "people.csv"), "town")
    assert town is not None
    for level, mean in zip(town.values, town.means[:, 0], strict=True):
        x = columns | {"town": [level] * 300}
        np.testing.assert_allclose(mean, predictor.predict(x).mean(), rtol=1e-4)
    age = dependence(predictor, read_table(runs / "people.csv"), "age")
    assert age is not None
    assert (np.diff(age.values) > 0).all()
    assert (np.diff(age.means[:, 0]) > 0).all()  # older, dearer
    nothing = {"age": [None, None], "town": ["Ulm", "Ulm"], "noise": [0, 0]}
    gaps = read_table(nothing, kinds=predictor.inputs.kinds)  # type: ignore[union-attr]
    assert dependence(predictor, gaps, "age") is None


def test_the_report_tells_of_the_table(runs: Path) -> None:
    page = (runs / "classes" / "report.html").read_text("utf-8")
    for words in (
        "300 samples of 3 columns, with 2 classes",
        "How much each column matters",
        "if the values of one column are shuffled among 60 test rows",
        "The mean probability of <bdi>yes</bdi>",
        "Köln, am Rhein",
    ):
        assert words in page
    assert page.count("<figure><h3><bdi>") == 3  # age, town, noise
    values = (runs / "values" / "report.html").read_text("utf-8")
    assert "growth of the RMSE" in values
    assert "mean price" in values


def test_dates_are_tried_on_all_weekdays() -> None:
    days = np.datetime64("2021-01-04", "us") + np.arange(420) * np.timedelta64(1, "D")
    data = Table([Column("day", "date", days), Column("y", "number", np.arange(420.0))], "days")
    columns = Columns.learn(data, "y", encoding="standard")
    sunday = columns.encode(data.take([6]))[:, -2:]  # sine and cosine of the weekday

    def averages(encoded: Any) -> Any:  # of a model that predicts 1 on Sundays, else 0
        return np.isclose(encoded[:, -2:], sunday, atol=1e-3).all(axis=1)[:, None].astype(float)

    found = dependence(SimpleNamespace(inputs=columns, targets=None, averages=averages), data, "day")  # type: ignore[arg-type]
    assert found is not None
    assert (found.dates, len(found.values)) == (True, 21)
    np.testing.assert_allclose(found.means, 1 / 7, atol=0.06)  # a single day each: 0 or 1
