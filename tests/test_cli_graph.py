"""The commands `gradflow graph` and `gradflow summary`: what they print and write, and that a mistake is one line."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradflow.cli import main
from gradflow.cli.graph import options_first
from gradflow.training import load_run
from gradflow.training.runs.folder import CONFIG, MODEL
from tests.test_cli import Ended, assert_one_line

EXAMPLE = ("(x+y)*z", "x=-2", "y=5", "z=-4")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADFLOW_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process: `command("graph", "x^2", "x=3").out`."""

    def run(*words: str) -> Ended:
        return Ended(main(words), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of three runs: classes, values, and an ensemble with SGD."""
    for package in ("sklearn", "safetensors", "tomli_w", "tqdm", "matplotlib"):
        pytest.importorskip(package, exc_type=ImportError)
    folder = tmp_path_factory.mktemp("runs")
    for name, words in {
        "iris": ["iris", "--hidden", "5,4", "--batch-size", "8"],
        "diabetes": ["diabetes", "--hidden", "3"],
        "both": ["iris", "--hidden", "2", "--ensemble", "2", "--optimizer", "sgd", "--average", "0.9", "--test", "0"],
    }.items():
        given = ["train", *words, "--epochs", "1", "--device", "cpu", "--quiet", "--out", str(folder / name)]
        assert main(given) == 0
    return folder


def lines(text: str) -> dict[str, str]:
    """What is left of the last = of each line, by what is left of the first: "df/dq" and "-4"."""
    pairs = [
        (line.split(" = ")[0].strip(), line.split(" = ")[-1].strip()) for line in text.splitlines() if " = " in line
    ]
    return {name: value.split("=")[-1].strip() for name, value in pairs}


# ---------------------------------------------------------------------- an expression


def test_an_expression_is_a_table_of_steps(command: Any) -> None:
    status, out, err = command("graph", *EXAMPLE)
    assert (status, err) == (0, "")
    assert lines(out) == {
        "v1": "3", "f": "-12", "df/df": "1", "df/dv1": "-4", "df/dz": "3", "df/dx": "-4", "df/dy": "-4"
    }  # fmt: skip


def test_steps_have_the_names_they_are_given(command: Any) -> None:
    out = command("graph", "q = x + y; out = q * z", *EXAMPLE[1:]).out
    assert lines(out) == {
        "q": "3", "out": "-12", "dout/dout": "1", "dout/dq": "-4", "dout/dz": "3", "dout/dx": "-4", "dout/dy": "-4"
    }  # fmt: skip


def test_the_sigmoid_neuron_has_the_gradients_of_the_lecture_notes(command: Any) -> None:
    values = ("w0=2", "x0=-1", "w1=-3", "x1=-2", "w2=-3")
    gates = lines(command("graph", "1/(1 + exp(-(w0*x0 + w1*x1 + w2)))", *values).out)
    one = lines(command("graph", "sigmoid(w0*x0 + w1*x1 + w2)", *values).out)
    expected = {"dw0": "-0.1966", "dx0": "0.3932", "dw1": "-0.3932", "dx1": "-0.5898", "dw2": "0.1966"}
    for found in (gates, one):
        assert found["f"] == "0.7311"
        assert {name: found[f"df/{name}"] for name in expected} == expected
    assert {"-0.5344", "-0.1966", "0.1966"} <= set(gates.values())


def test_matrices_and_vectors_are_json(command: Any) -> None:
    found = lines(command("graph", "sum((W @ x)^2)", "W=[[0.1,0.5],[-0.3,0.8]]", "x=[0.2,0.4]").out)
    assert found["f"] == "0.116"
    assert found["df/dW"] == "[[0.088 0.176] [0.104 0.208]]"
    assert found["df/dx"] == "[-0.112 0.636]"


def test_a_result_that_is_no_number_is_summed_and_says_so(command: Any) -> None:
    status, out, err = command("graph", "x*x", "x=[1,2]")
    assert (status, lines(out)["df/dx"]) == (0, "[2 4]")
    assert err == "gradflow: note: the result has shape (2,): the gradients are those of the sum of its elements\n"


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (("1/x", "x=0"), "not all values are finite; the first that is not: f = 1 / x"),
        (("log(x)*0", "x=-1"), "not all values are finite; the first that is not: v1 = log(x)"),
        (("x^99999999999", "x=3"), "not all values are finite; the first that is not: f = x ^ 1e+11"),
        (("sqrt(x)", "x=0"), "the gradient of x is not finite"),
    ],
)
def test_a_division_by_0_is_drawn_with_a_warning(words: tuple[str, ...], warning: str, command: Any) -> None:
    status, out, err = command("graph", *words)
    assert status == 0
    assert "f = " in out
    assert err == f"gradflow: warning: {warning}\n"
    assert command("graph", *words, "-o", "graph.dot").status == 0


@pytest.mark.parametrize(
    "words",
    [
        ("-x^2", "x=3"),
        ("x=3", "-x^2")[::-1],
        ("--device", "cpu", "-x^2", "x=3"),
        ("--", "-x^2", "x=3"),
        ("가중치^2 * -1", "가중치=3"),
        ("x * x * -1", "x=sqrt(9)"),
        ("y = -x^2", "x = 6/2"),
    ],
)
def test_words_come_in_any_order_and_a_minus_sign_is_no_option(words: tuple[str, ...], command: Any) -> None:
    found = command("graph", *words)
    assert (found.status, found.err) == (0, "")
    assert "-9" in lines(found.out).values()


def test_options_are_told_from_expressions() -> None:
    assert options_first(["-x", "-ox.svg", "x=1", "--sample=3"]) == ["-ox.svg", "--sample=3", "--", "-x", "x=1"]
    assert options_first(["-o*x", "-o", "-x.svg", "--help"]) == ["-o", "-x.svg", "--help", "--", "-o*x"]
    assert options_first(["-h"]) == ["-h"]


def test_deep_parentheses_and_long_sums_are_computed(command: Any) -> None:
    deep = command("graph", "(" * 10_000 + "x*x" + ")" * 10_000, "x=2")
    assert (deep.status, lines(deep.out)["f"]) == (0, "4")
    nested = command("graph", "(x+" * 1_000 + "x" + ")" * 1_000, "x=2")
    assert (nested.status, lines(nested.out)["f"]) == (0, "2002")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r'graph takes an expression, such as "\(x\+y\)\*z" x=-2 y=5 z=-4, or the folder of a run'),
        (("",), "the expression is empty"),
        (("1+2",), "the expression has no names, so there is no gradient"),
        (("x", "x=1"), "the expression is a single name: there is no step to draw"),
        (("q = x", "x=1"), "the expression is a single name: there is no step to draw"),
        (("greater(x, 1)", "x=1"), "the result has no gradient"),
        (("x+y", "x=1"), "y has no value at character 3 of 'x\\+y': give it one: y=2"),
        (("x+weigth", "x=1", "weight=2"), "weigth has no value .*; did you mean weight\\?"),
        (("x", "x=1", "y=2"), "y has a value, but the expression does not use it"),
        (("x*2", "x=1", "x=2"), "x has two values"),
        (("x*2", "2"), "'2' is not NAME=VALUE, such as x=-2; an expression with spaces needs quotes"),
        (("x*2", "<b>=2"), "'<b>=2' is not NAME=VALUE"),
        (("x*2", "x="), "x: the expression is empty"),
        (("x*2", "x=y"), "x must be a number, such as -2 or pi/4, or a list in brackets; got 'y'"),
        (("x*2", "x=[1,2"), r"x is not a list of numbers such as \[1,2\] or .*: see at character 5 of '\[1,2'"),
        (("x*2", "x=1,2"), r'at character 2 of .*; a vector needs brackets: x="\[1,2\]"'),
        (("x*2", "x=[1e400]"), "x is not an array of numbers: 1e400 is too large for float64"),
        (("+".join("x" * 2002), "x=1", "-o", "big.svg"), "big.svg: a picture has at most 2000 steps"),
        (("x*2", "x=[1,[2]]"), "x is not an array of numbers: .* unequal lengths"),
        (("x*2", 'x=["a"]'), "x is not an array of numbers: .*'a'"),
        (("x*2", "x=[NaN]"), "x is not an array of numbers: NaN is not a number"),
        (("x*2", f"x={'[' * 20_000}"), "x has too many brackets"),
        (("x*2", "x=1e999"), "x: this number is too large for float64"),
        (("x.real", "x=1"), "attributes cannot be used at character 2"),
        (("f(x)", "x=1"), "unknown function f, at character 1 of 'f\\(x\\)'"),
        (("x(2)", "x=1"), "unknown function x, .*; a product is x \\* \\(...\\)"),
        (("(" * 10_000 + "x", "x=1"), "this \\( is never closed, at character 10000 of"),
        (("x+" * 500_000 + "x", "x=1"), "the expression has 1,000,001 characters; at most 100,000 are allowed"),
        (("x @ y", "x=1", "y=2"), "matmul needs at least one axis on each side; .*at character 3 of 'x @ y'"),
        (("__import__('os')", "x=1"), "cannot be used at character 12"),
        (
            ("runs/digits-1",),
            "there is no folder runs/digits-1; as an expression: runs has no value",
        ),
        (("x*2", "x=1", "--sample", "1"), "--sample is for a run"),
        (("x*2", "x=1", "--device", "nonsense"), "unknown device 'nonsense'"),
        (("x*2", "x=1", "--nonsense"), "gradflow graph does not know '--nonsense'"),
        (("x*2", "x=1", "-o"), "argument -o/--out: expected one argument"),
        (("x*2", "x=1", "-o", "graph.jpg"), "-o graph.jpg: the name of a picture ends in .svg"),
        (("x*2", "x=1", "-o", "there/is/none.svg"), "there is no folder there/is"),
        (("none", "--sample", "1"), "none does not exist; it must be the folder of a run"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words: tuple[str, ...], message: str, command: Any) -> None:
    assert_one_line(command("graph", *words), message)
    assert list(Path().iterdir()) == []


def test_a_misspelt_folder_gets_the_name_of_one_beside_it(command: Any) -> None:
    Path("runs/first").mkdir(parents=True)
    assert_one_line(command("graph", "runs/frist"), r"there is no folder runs/frist; did you mean runs/first\?")


def test_without_a_picture_local_prints_the_local_derivatives(command: Any) -> None:
    ended = command("graph", "(x+y)*z", "x=-2", "y=5", "z=-4", "--local")
    assert "  df/dz = df/df * v1 = 1 * 3 = 3\n" in ended.out


# ---------------------------------------------------------------------- pictures


def test_the_dot_and_the_page_have_the_values(command: Any) -> None:
    status, out, err = command("graph", *EXAMPLE, "-o", "graph.dot", "--out", "graph.html", "--local", "--roles")
    assert (status, out) == (0, "")
    assert err == "gradflow: the graph is in graph.dot\ngradflow: the graph is in graph.html\n"
    assert re.search(r"-12\b", Path("graph.dot").read_text("utf-8"))
    assert "<!doctype html" in Path("graph.html").read_text("utf-8").lower()
    before = Path("graph.dot").read_bytes()
    assert command("graph", *EXAMPLE, "-o", "graph.dot").status == 0  # replaces its own
    assert Path("graph.dot").read_bytes() != before


def test_an_svg_has_the_values_as_text(command: Any) -> None:
    pytest.importorskip("pygraphviz", exc_type=ImportError)
    assert command("graph", *EXAMPLE, "-o", "graph.svg").status == 0
    texts = ["".join(e.itertext()) for e in ET.parse("graph.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"-12", "3", "-4"} <= set(" ".join(texts).split())


@pytest.mark.parametrize("name", ["graph.svg", "graph.png", "graph.pdf", "graph.html", "graph.dot"])
def test_a_file_of_something_else_is_not_replaced(name: str, command: Any) -> None:
    Path(name).write_text("my notes")
    assert_one_line(command("graph", *EXAMPLE, "-o", name), f"{name} exists, and this command did not write it")
    assert Path(name).read_text() == "my notes"


def test_names_are_escaped_in_pictures(command: Any) -> None:
    assert command("graph", "가_나 = 1/x; 가_나 * x", "x=2", "-o", "graph.dot", "-o", "graph.html").status == 0
    assert "가_나" in Path("graph.dot").read_text("utf-8")


# ---------------------------------------------------------------------- a run


def test_a_sample_of_the_test_part_goes_through_the_model(runs: Path, command: Any) -> None:
    folder = str(runs / "iris")
    status, out, err = command("graph", folder, "--sample", "3")
    assert (status, err) == (0, "")
    heading = re.match(r"iris, sample 3 of the test part \(30 samples\): label (\d), predicted (\d)\n", out)
    assert heading
    split = gf_split()
    assert int(heading[1]) == split.test.raw_targets[3]
    predictor = load_run(folder)
    assert int(heading[2]) == predictor.predict(split.test.raw_inputs[3:4])[0]
    probability = predictor.predict_proba(split.test.raw_inputs[3:4])[0][int(heading[1])]
    assert float(lines(out)["loss"]) == pytest.approx(-np.log(probability), rel=1e-3)
    assert "dloss/d(0.weight)" in out
    assert command("graph", folder).out.startswith("iris, sample 0 of")


def gf_split() -> Any:
    from gradflow.data import load

    return load("iris").split(0)


def test_a_regression_and_a_member_of_an_ensemble(runs: Path, command: Any) -> None:
    out = command("graph", str(runs / "diabetes"), "-o", "graph.dot").out
    assert re.search(r"sample 0 of the test part \(89 samples\): value \d+, predicted \d", out)
    out = command("graph", str(runs / "both"), "-o", "graph.dot").out
    assert re.search(r"sample 0 of the validation part \(30 samples\), member 1 of 2: label", out)
    drawn = Path("graph.dot").read_text("utf-8").replace("&#160;", " ")
    assert "member 1 of 2: label" in drawn  # in the title


def test_a_mistake_about_a_run_is_one_line(runs: Path, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    assert_one_line(
        command("graph", "iris", "--sample", "30"), "--sample must be from 0 to 29, in the test part; got 30"
    )
    assert_one_line(
        command("graph", "iris", "--sample", "-1"), "--sample must be from 0 to 29, in the test part; got -1"
    )
    assert_one_line(command("graph", "iris", "--sample", "x"), "argument --sample: invalid int value: 'x'")
    assert_one_line(command("graph", f"iris/{MODEL}"), "has no samples: give the folder of the run")
    assert_one_line(command("graph", "iris", "x=1"), r"iris is a run, which takes no values .*: \(iris\)")
    assert lines(command("graph", "(iris) + 1", "iris=1").out)["f"] == "2"


def test_other_data_than_that_of_the_run_is_refused(command: Any, runs: Path, tmp_path: Path) -> None:
    Path("run").mkdir()
    for name in (CONFIG, MODEL):
        content = (runs / "iris" / name).read_bytes()
        Path("run", name).write_bytes(re.sub(rb'\nhash = "\w', b'\nhash = "', content))
    assert_one_line(command("graph", "run"), "iris is not the data that run was trained on: its hash differs")


# ---------------------------------------------------------------------- summary


def test_the_summary_of_a_run_has_its_batch_and_optimizer(runs: Path, command: Any) -> None:
    status, out, err = command("summary", str(runs / "iris"))
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines()[1:])) <= 80
    table = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert ["0", "Linear", "(8, 5)", "25", "100 B", "20"] in table
    assert ["total", "64", "256 B", "52"] in [[c for c in row if c] for row in table]
    assert ["state of AdamW", "512 B"] in table


def test_the_summary_as_json(runs: Path, command: Any) -> None:
    found = json.loads(command("summary", str(runs / "both" / MODEL), "--json").out)
    assert (found["members"], found["parameters"], found["optimizer"], found["batch_size"]) == (2, 19, "SGD", 64)
    assert [layer["name"] for layer in found["layers"]] == ["0", "dropout0", "1"]
    memory = found["memory"]["cpu"]
    assert memory["optimizer"] == 76  # a velocity
    assert memory["total"] == sum(memory.values()) - memory["total"]
    err = command("summary", str(runs / "both")).err
    assert err == (
        "gradflow: note: this is one of 2 models, which are trained one after another\n"
        "gradflow: note: the moving average of the weights takes as much memory again as the parameters\n"
    )


def test_a_model_alone_has_a_summary_too(runs: Path, command: Any) -> None:
    Path(MODEL).write_bytes((runs / "iris" / MODEL).read_bytes())
    ended = command("summary", MODEL)
    assert ended.status == 0
    assert "(1, 4), float32" in ended.out
    assert ended.err.startswith(f"gradflow: note: there is no {CONFIG} beside the model, so the batch is one sample")


def test_no_run_has_no_summary(command: Any) -> None:
    assert_one_line(command("summary", "none"), "none does not exist; it must be the folder of a run")
    assert_one_line(command("summary"), "the following arguments are required: FOLDER")
    assert_one_line(command("summary", "."), "is not the folder of a run")


@pytest.mark.parametrize("name", ["graph", "summary"])
def test_help_fits_80_columns(name: str, command: Any) -> None:
    ended = command(name, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 80
    assert f"gradflow {name}" in command("--help").out


def test_the_commands_of_the_help_of_graph_run(command: Any) -> None:
    pytest.importorskip("pygraphviz", exc_type=ImportError)
    import shlex

    examples = re.findall(r"^  gradflow (graph [\"].+)$", command("graph", "--help").out, re.M)
    assert len(examples) == 4
    for example in examples:
        assert command(*shlex.split(example)).status == 0, example
