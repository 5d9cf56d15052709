"""Exported models, run by ONNX's reference implementation, give what gradflow gives; onnxruntime too where it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.backend import ACTIVATIONS
from gradflow.cli import main
from gradflow.data import Dataset, Standardizer
from gradflow.onnx import export
from gradflow.onnx.modules import _EXPORTERS as EXPORTERS
from gradflow.tables import Columns, read_table
from gradflow.tables.inputs import ColumnInputs, InputSettings
from gradflow.training import Predictor
from tests.bounds import perceptron_bound

onnx = pytest.importorskip("onnx", reason="onnx, of the extra of that name, is not installed")
pytest.importorskip("safetensors")

BOUNDS = {"float32": 4e-6, "float64": 1e-12}
"""Of the differences of outputs, relative to the largest: sums of a few hundred products, in another order."""


def run(path: Path, feeds: dict[str, Any]) -> list[list[Any]]:
    """The outputs of a file, of each runtime that is installed."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):  # its sigmoid overflows on the way to the right value
        found = [ReferenceEvaluator(str(path)).run(None, feeds)]
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        found.append(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds))
    return found


def assert_equal(found: Any, expected: Any, dtype: str = "float32") -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUNDS[dtype] * max(1.0, np.abs(expected).max()))


def outputs(model: nn.Module, x: Any) -> Any:
    with gf.no_grad():
        return model.eval()(gf.tensor(x, dtype=str(x.dtype))).numpy()


def modules(dtype: str) -> dict[type, tuple[nn.Module, tuple[int, ...]]]:
    """A module of each kind, and the shape of one input."""
    edges = [[-1.0, 0.0, 2.0], [0.0, 1.0, 1.5]]
    plain = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Softplus, nn.Softmax, nn.LogSoftmax, nn.Identity)
    return {kind: (kind(), (5,)) for kind in (*plain, nn.SELU, nn.Mish, nn.Softsign)} | {
        nn.Hardtanh: (nn.Hardtanh(-0.5, 2), (5,)),
        nn.PReLU: (nn.PReLU(3, dtype=dtype), (3, 5)),
        nn.GLU: (nn.GLU(), (4,)),
        nn.LeakyReLU: (nn.LeakyReLU(0.3), (5,)),
        nn.ELU: (nn.ELU(1.7), (5,)),
        nn.Dropout: (nn.Dropout(0.5), (5,)),
        nn.Flatten: (nn.Flatten(), (2, 3)),
        nn.Sequential: (nn.Sequential(nn.Flatten(), nn.Linear(6, 2, bias=False, dtype=dtype)), (2, 3)),
        nn.MLP: (nn.MLP([5, 7, 3], "silu", 0.5, dtype=dtype), (5,)),
        nn.Linear: (nn.Linear(5, 3, activation="elu", dtype=dtype), (4, 5)),
        nn.LayerNorm: (nn.LayerNorm((3, 5), dtype=dtype), (3, 5)),
        nn.RMSNorm: (nn.RMSNorm((3, 5), dtype=dtype), (3, 5)),
        nn.BatchNorm1d: (nn.BatchNorm1d(3, dtype=dtype), (3, 5)),
        nn.Embedding: (nn.Embedding(6, 3, dtype=dtype), (4,)),
        nn.PiecewiseLinear: (nn.PiecewiseLinear(edges, dtype=dtype), (2,)),
        nn.ColumnLinear: (nn.ColumnLinear(3, 4, 2, dtype=dtype), (3, 4)),
        ColumnInputs: (
            ColumnInputs(2, 1, [3, 40, 35], edges, InputSettings(width=4, embedding_dim=5), dtype=dtype),
            (6,),
        ),
    }


def test_every_kind_of_module_has_an_example() -> None:
    assert set(modules("float32")) == set(EXPORTERS)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", EXPORTERS, ids=lambda kind: kind.__name__)
def test_a_module_gives_the_same_outputs(kind: type, dtype: str, tmp_path: Path) -> None:
    module, shape = modules(dtype)[kind]
    rng = np.random.default_rng(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = rng.normal(0, 3, (6, *shape)).astype(dtype)
    if kind is nn.Embedding:
        x = rng.integers(0, 6, (6, *shape))
    if kind is ColumnInputs:
        x[:, 2:] = [[1, 0, 39, 2], [0, 1, 0, 34], [1, 2, 7, 0], [0, 0, 1, 1], [1, 1, 2, 5], [0, 2, 3, 7]]
    if not list(module.parameters()):  # their dtype is that of what is before them
        module = nn.Sequential(nn.Linear(shape[-1], shape[-1], dtype=dtype), module)
    module.train()
    if kind is nn.BatchNorm1d:
        module(gf.tensor(x, dtype=dtype))  # moves its running statistics
    export(module, tmp_path / "m.onnx", shape)
    assert all(each.training for each in module.modules())
    operators = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert dtype == "float32" or "Transpose" not in operators  # as for "Sigmoid" and "Mul" below
    for (found,) in run(tmp_path / "m.onnx", {"input": x}):
        assert_equal(found, outputs(module, x), dtype)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.GELU(approximate="none")), 3),
        (nn.Sequential(nn.Linear(3, 3), nn.Softmax((1, 2))), (2, 3)),
        (nn.Sequential(nn.Linear(3, 3), nn.LogSoftmax((-1, -2))), (2, 3)),
        (nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(3), nn.Flatten(-1)), None),
        (nn.Sequential(nn.BatchNorm1d(3), nn.RMSNorm(3)), None),
        (nn.Sequential(nn.Flatten(1, 2), nn.Linear(3, 2)), (4, 2, 3)),
        (nn.Sequential(nn.Flatten(-2), nn.Linear(6, 2)), (4, 2, 3)),
        (nn.Sequential(nn.Embedding(1, 3), nn.Flatten(), nn.Linear(6, 2)), (2,)),
        (nn.Sequential(nn.MLP([3, 4, 2], device="fake"), nn.BatchNorm1d(2, device="fake")), None),
    ],
    ids=str,
)
def test_other_forms_of_modules(module: nn.Module, shape: Any, tmp_path: Path) -> None:
    export(module, tmp_path / "m.onnx", shape)
    x = np.random.default_rng(0).normal(0, 3, (5, *np.atleast_1d(3 if shape is None else shape))).astype("float32")
    x = np.zeros_like(x, "int64") if isinstance(next(module.children()), nn.Embedding) else x
    for (found,) in run(tmp_path / "m.onnx", {"input": x}):
        assert_equal(found, outputs(module.to("cpu"), x))


def test_half_floats_become_float32(tmp_path: Path) -> None:
    module = nn.MLP([3, 8, 2], dtype="float16")
    export(module, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    for (found,) in run(tmp_path / "m.onnx", {"input": x}):
        assert_equal(found, outputs(module.to("float32"), x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_right_at_large_and_small_numbers(name: str, tmp_path: Path) -> None:
    layer = nn.Linear(1, 1, activation=name, dtype="float64")
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    export(layer, tmp_path / "m.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "Erf" not in operators  # which onnxruntime does not have in float64
    assert not {"Sigmoid", "Mul"} <= operators  # which onnxruntime 1.20 makes one operator that float64 does not have
    x = np.array([[-1e4], [-90.0], [-1e-9], [0.0], [1e-9], [90.0], [1e4]])
    for (found,) in run(tmp_path / "m.onnx", {"input": x}):
        np.testing.assert_allclose(found, outputs(layer, x), rtol=1e-12, atol=1e-15)


def test_random_perceptrons_give_the_same_outputs(random_examples: Callable[[int], Any], tmp_path: Path) -> None:
    from hypothesis import given
    from hypothesis import strategies as st

    @random_examples(25)
    @given(
        sizes=st.lists(st.integers(1, 12), min_size=2, max_size=5), name=st.sampled_from(list(ACTIVATIONS)),
        dtype=st.sampled_from(list(BOUNDS)), batch=st.integers(0, 5), seed=st.integers(0, 1000),
    )  # fmt: skip
    def check(sizes: list[int], name: str, dtype: str, batch: int, seed: int) -> None:
        model = nn.MLP(sizes, name, 0.5, dtype=dtype, generator=gf.Generator(seed))
        export(model, tmp_path / "m.onnx")
        x = np.random.default_rng(seed).normal(0, 3, (batch, sizes[0])).astype(dtype)
        expected, bound = perceptron_bound(model, x, dtype)
        for (found,) in run(tmp_path / "m.onnx", {"input": x}):
            assert (found.shape, found.dtype) == (expected.shape, dtype)
            assert (np.abs(found - expected) <= (bound if dtype == "float32" else 2 * bound)).all()  # of both

    check()


def test_the_versions_are_those_that_older_runtimes_read(tmp_path: Path) -> None:
    export(nn.MLP([2, 3, 1]), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    assert model.ir_version == 8
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]


def test_a_model_that_onnx_cannot_hold_is_refused(tmp_path: Path) -> None:
    class Own(nn.Module):
        def forward(self, x: Any) -> Any:
            return x

    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda *_: None)
    refused: list[tuple[Any, str]] = [
        (Own(), "Own has no counterpart"),
        (nn.Sequential(nn.Linear(2, 2), Own()), "Own has no counterpart"),
        (nn.Sequential(nn.Linear(2, 2), hooked), "hooks"),
        (nn.Flatten(), "needs the shape of one input of a model that begins with Flatten"),
        (nn.Sequential(), "needs the shape of one input of a model that begins with Sequential"),
        (nn.Sequential(nn.Linear(2, 2), nn.Flatten(0)), r"one output for each sample; for 2, .* the shape \(4,\)"),
        (3, "takes a module"),
    ]
    for model, message in refused:
        with pytest.raises(TypeError, match=message):
            export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_of_more_than_2_gib_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradflow.onnx.graph.MOST_BYTES", 40)
    export(nn.Linear(4, 2), tmp_path / "m.onnx")  # 10 numbers of 4 bytes
    with pytest.raises(ValueError, match=r"holds less than 2 GiB; the numbers of this model take 60 bytes"):
        export(nn.Linear(4, 3), tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()


# ---------------------------------------------------------------------- runs


def of_arrays(labels: Sequence[Any] | None = None, shape: tuple[int, ...] = (), members: int = 1) -> Predictor:
    rng = np.random.default_rng(0)
    x = rng.normal(1.7e9, 1e3, (40, *(shape or (3,))))  # only float64 tells them apart
    y = rng.normal(5, 2, (40, 2)) if labels is None else np.array([*labels] * 40)[:40]
    split = Dataset.from_arrays(x, y).split(seed=0)
    outs = 2 if labels is None else len(set(labels))
    return Predictor.from_split([nn.MLP([int(np.prod(shape or (3,))), 8, outs]) for _ in range(members)], split)


@pytest.mark.parametrize("labels", [["a", "b", "c"], [3, 5], [False, True]], ids=["texts", "integers", "bools"])
def test_a_run_gives_labels_and_probabilities_of_raw_arrays(labels: list[Any], tmp_path: Path) -> None:
    predictor = of_arrays(labels, members=2)
    export(predictor, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(1.7e9, 1e3, (9, 3))
    for label, probabilities in run(tmp_path / "m.onnx", {"input": x}):
        assert label.tolist() == predictor.predict(x).tolist()
        assert_equal(probabilities, predictor.predict_proba(x))


def test_the_file_of_a_run_has_the_names_of_the_classes(tmp_path: Path) -> None:
    predictor = Predictor(
        [nn.MLP([2, 3])], Standardizer(np.zeros(2), np.ones(2)), classes=["a", "b", "c"], labels=[7, 8, 9],
        features=["x", "y"],
    )  # fmt: skip
    export(predictor, tmp_path / "m.onnx")
    metadata = {each.key: each.value for each in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata == {"classes": '["a", "b", "c"]', "features": '["x", "y"]'}
    with pytest.raises(TypeError, match="takes a shape for a module only"):
        export(predictor, tmp_path / "n.onnx", (2,))


def test_a_run_gives_values_in_their_units(tmp_path: Path) -> None:
    predictor = of_arrays()
    export(predictor, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(1.7e9, 1e3, (9, 3))
    for (values,) in run(tmp_path / "m.onnx", {"input": x}):
        assert_equal(values.astype(np.float32), predictor.predict(x))


def test_a_run_on_images_takes_images(tmp_path: Path) -> None:
    predictor = Predictor(
        [nn.MLP([8, 4, 2])], Standardizer(np.zeros(8), np.ones(8), limit=0.5), classes=["a", "b"], image_shape=(2, 4)
    )
    export(predictor, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(size=(5, 2, 4))
    for label, probabilities in run(tmp_path / "m.onnx", {"input": x}):
        assert label.tolist() == predictor.predict(x).tolist()
        assert_equal(probabilities, predictor.predict_proba(x))


def a_table(n: int = 300) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    days = np.datetime64("1899-12-30T05:00:00", "us") + rng.integers(0, 7 * 10**15, n).astype("timedelta64[us]")
    days[-3:] = np.array(["2000-02-29", "1900-03-01T23:59:59.999999", "1600-01-01"], "datetime64[us]")
    return {
        "unix time": (1.7e9 + rng.integers(0, 10**6, n)).tolist(),
        "gap": [None if i % 7 == 0 else float(v) for i, v in enumerate(rng.normal(size=n))],
        "color": [None if i % 9 == 0 else str(c) for i, c in enumerate(rng.choice(["red", "green", "blue"], n))],
        "city": [f"c{int(c)}" for c in rng.zipf(1.5, n).clip(0, 60)],  # of which many are rare
        "code": rng.integers(1, 6, n).tolist(),
        "label": [None if i % 8 == 0 else bool(v) for i, v in enumerate(rng.random(n) < 0.5)],
        "holiday": rng.choice(np.array(["2020-12-25", "2021-01-01", "NaT", "2021-04-04"], "datetime64[us]"), n),
        "sub_1": rng.normal(size=n).tolist(),
        "day": [None if i % 11 == 0 else str(d) for i, d in enumerate(days)],
        "target": rng.normal(7, 3, n).tolist(),
    }


@pytest.mark.parametrize("encoding", ["piecewise", "standard"])
def test_a_run_takes_the_columns_of_a_table_as_they_are(encoding: str, tmp_path: Path) -> None:
    """Also what training never saw: levels, gaps, and numbers and dates outside of the range."""
    table = read_table(a_table())
    columns = Columns.learn(table, "target", "values", categorical=["code", "holiday"], encoding=encoding)
    assert columns.kinds["day"].startswith("date")
    assert any(getattr(treatment, "rare", False) for treatment in columns.used)
    model = nn.Sequential(columns.module(), nn.MLP([columns.module().out_features, 16, 1]))
    predictor = Predictor([model], columns, Standardizer(np.array([7.0]), np.array([3.0])))
    export(predictor, tmp_path / "m.onnx")
    versions = [(each.domain, each.version) for each in onnx.load(tmp_path / "m.onnx").opset_import]
    assert versions == [("", 17), ("ai.onnx.ml", 3)]

    new = a_table(60)
    new["holiday"][:2] = ["2022-12-25", "NaT"]
    new["color"][:2], new["city"][0] = ["violet", None], "nowhere"
    new["code"][:3], new["unix time"][:3] = [9, 1, 2], [0.0, 1e18, None]
    new["day"][:2] = ["2100-12-31T12:30:00", "0001-01-01"]
    rows = read_table(new, kinds=columns.kinds)
    for (values,) in run(tmp_path / "m.onnx", feeds(rows)):
        assert_equal(values[:, 0].astype(np.float32), predictor.predict(rows))


def test_an_output_with_the_name_of_a_column_is_renamed(tmp_path: Path) -> None:
    table = read_table(
        {"label": [1.5, 2.5, 4.0, 0.5] * 3, "constant_0": [2.0, 1.0, 7.0, 5.0] * 3, "y": list("abab") * 3}
    )
    columns = Columns.learn(table, "y")
    module = nn.Sequential(columns.module(), nn.MLP([columns.module().out_features, 2]))
    predictor = Predictor([module], columns, classes=["a", "b"])
    export(predictor, tmp_path / "m.onnx")
    assert [each.name for each in onnx.load(tmp_path / "m.onnx").graph.output] == ["label_", "probabilities"]
    for label, _ in run(tmp_path / "m.onnx", {name: x for name, x in feeds(table).items() if name != "y"}):
        assert label.tolist() == predictor.predict(table).tolist()


def feeds(rows: Any) -> dict[str, Any]:
    """The columns of a table as the inputs of an exported run."""
    found = {}
    for column in rows.columns:
        values = column.values.view(np.int64) if column.kind == "date" else column.values
        found[column.name] = np.array([t or "" for t in column.texts()], object) if column.kind == "text" else values
    return {name: values[:, None] for name, values in found.items()}


# ---------------------------------------------------------------------- the command


def test_the_command_exports_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gf.save(tmp_path / "model.safetensors", of_arrays(["a", "b"]).tree())
    out = tmp_path / "m.onnx"
    words = ["export", str(tmp_path), "--onnx", str(out)]
    assert main(words) == main(words) == 0  # the second replaces the file of the first
    assert "input input: double (batch, 3)\noutput label: string (batch)\n" in capsys.readouterr().out
    onnx.checker.check_model(out, full_check=True)
    (tmp_path / "mine.onnx").write_text("mine")
    for words, message in (
        ([str(tmp_path), "--onnx", str(tmp_path / "mine.onnx")], "this command did not write it"),
        ([str(tmp_path), "--onnx", str(tmp_path / "m.txt")], "the name of an ONNX file ends in .onnx"),
        ([str(tmp_path / "nothing"), "--onnx", str(tmp_path / "n.onnx")], "does not exist"),
        ([str(tmp_path)], "--onnx"),
    ):
        assert main(["export", *words]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert (tmp_path / "mine.onnx").read_text() == "mine"
    assert {each.name for each in tmp_path.iterdir()} == {"model.safetensors", "m.onnx", "mine.onnx"}
