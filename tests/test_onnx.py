"""Exported models, run by ONNX's reference implementation, give what gradflow gives; onnxruntime too where it is."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
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

hypothesis = pytest.importorskip("hypothesis")
onnx = pytest.importorskip("onnx", reason="onnx, of the extra of that name, is not installed")
pytest.importorskip("safetensors")
from hypothesis import strategies as st  # noqa: E402

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
    return {kind: (kind(), (5,)) for kind in plain} | {
        nn.LeakyReLU: (nn.LeakyReLU(0.3), (5,)),
        nn.ELU: (nn.ELU(1.7), (5,)),
        nn.Dropout: (nn.Dropout(0.5), (5,)),
        nn.Flatten: (nn.Flatten(), (2, 3)),
        nn.Sequential: (nn.Sequential(nn.Flatten(), nn.Linear(6, 2, bias=False, dtype=dtype)), (2, 3)),
        nn.MLP: (nn.MLP([5, 7, 3], "silu", 0.5, dtype=dtype), (5,)),
        nn.Linear: (nn.Linear(5, 3, activation="elu", dtype=dtype), (4, 5)),
        nn.LayerNorm: (nn.LayerNorm((3, 5), dtype=dtype), (3, 5)),
        nn.Embedding: (nn.Embedding(6, 3, dtype=dtype), (4,)),
        nn.PiecewiseLinear: (nn.PiecewiseLinear(edges, dtype=dtype), (2,)),
        nn.ColumnLinear: (nn.ColumnLinear(3, 4, 2, dtype=dtype), (3, 4)),
        ColumnInputs: (ColumnInputs(2, 1, [3, 40], edges, InputSettings(width=4, embedding_dim=5), dtype=dtype), (5,)),
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
        x[:, 2:] = [[1, 0, 39], [0, 1, 0], [1, 2, 7], [0, 0, 1], [1, 1, 2], [0, 2, 3]]
    if not list(module.parameters()):  # their dtype is that of what is before them
        module = nn.Sequential(nn.Linear(shape[-1], shape[-1], dtype=dtype), module)
    module.train()
    export(module, tmp_path / "m.onnx", shape)
    assert all(each.training for each in module.modules())
    for (found,) in run(tmp_path / "m.onnx", {"input": x}):
        assert_equal(found, outputs(module, x), dtype)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_right_at_large_and_small_numbers(name: str, tmp_path: Path) -> None:
    layer = nn.Linear(1, 1, activation=name, dtype="float64")
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    export(layer, tmp_path / "m.onnx")
    x = np.array([[-1e4], [-90.0], [-1e-9], [0.0], [1e-9], [90.0], [1e4]])
    for (found,) in run(tmp_path / "m.onnx", {"input": x}):
        np.testing.assert_allclose(found, outputs(layer, x), rtol=1e-12, atol=1e-15)


@hypothesis.given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=5), name=st.sampled_from(list(ACTIVATIONS)),
    dtype=st.sampled_from(list(BOUNDS)), batch=st.integers(0, 5), seed=st.integers(0, 1000),
)  # fmt: skip
@hypothesis.settings(max_examples=25, deadline=None)
def test_a_random_perceptron_gives_the_same_outputs(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], name: str, dtype: str, batch: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    model = nn.MLP(sizes, name, 0.5, dtype=dtype, generator=gf.Generator(seed))
    export(model, path)
    x = np.random.default_rng(seed).normal(0, 3, (batch, sizes[0])).astype(dtype)
    found = run(path, {"input": x})[0][0]
    assert found.shape == (batch, sizes[-1])
    if batch:
        assert_equal(found, outputs(model, x), dtype)


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
        (nn.Sequential(nn.Linear(2, 2), Own()), "Own has no counterpart"),
        (nn.Sequential(nn.Linear(2, 2), hooked), "hooks"),
        (nn.Flatten(), "needs the shape of one input"),
        (nn.Sequential(nn.Linear(2, 2), nn.Flatten(1, 1)), "merges all axes from one on"),
        (3, "takes a module"),
    ]
    for model, message in refused:
        with pytest.raises(TypeError, match=message):
            export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


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


def test_a_run_gives_values_in_their_units(tmp_path: Path) -> None:
    predictor = of_arrays()
    export(predictor, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(1.7e9, 1e3, (9, 3))
    for (values,) in run(tmp_path / "m.onnx", {"input": x}):
        assert_equal(values.astype(np.float32), predictor.predict(x))


def test_a_run_on_images_takes_images(tmp_path: Path) -> None:
    predictor = Predictor(
        [nn.MLP([8, 4, 2])], Standardizer(np.zeros(8), np.ones(8)), classes=["a", "b"], image_shape=(2, 4)
    )
    export(predictor, tmp_path / "m.onnx")
    x = np.random.default_rng(1).normal(size=(5, 2, 4))
    for label, _ in run(tmp_path / "m.onnx", {"input": x}):
        assert label.tolist() == predictor.predict(x).tolist()


def a_table(n: int = 300) -> dict[str, list[Any]]:
    rng = np.random.default_rng(2)
    days = np.datetime64("1899-12-30T05:00:00", "us") + rng.integers(0, 7 * 10**15, n).astype("timedelta64[us]")
    days[-3:] = np.array(["2000-02-29", "1900-03-01T23:59:59.999999", "1600-01-01"], "datetime64[us]")
    return {
        "unix time": (1.7e9 + rng.integers(0, 10**6, n)).tolist(),
        "gap": [None if i % 7 == 0 else float(v) for i, v in enumerate(rng.normal(size=n))],
        "color": [None if i % 9 == 0 else str(c) for i, c in enumerate(rng.choice(["red", "green", "blue"], n))],
        "city": [f"c{int(c)}" for c in rng.integers(0, 40, n)],
        "code": rng.integers(1, 6, n).tolist(),
        "day": [None if i % 11 == 0 else str(d) for i, d in enumerate(days)],
        "target": rng.normal(7, 3, n).tolist(),
    }


@pytest.mark.parametrize("encoding", ["piecewise", "standard"])
def test_a_run_takes_the_columns_of_a_table_as_they_are(encoding: str, tmp_path: Path) -> None:
    """Also what training never saw: levels, gaps, and numbers and dates outside of the range."""
    table = read_table(a_table())
    columns = Columns.learn(table, "target", "values", categorical=["code"], encoding=encoding)
    assert columns.kinds["day"].startswith("date")
    model = nn.Sequential(columns.module(), nn.MLP([columns.module().out_features, 16, 1]))
    predictor = Predictor([model], columns, Standardizer(np.array([7.0]), np.array([3.0])))
    export(predictor, tmp_path / "m.onnx")

    new = a_table(60)
    new["color"][:2], new["city"][0] = ["violet", None], "nowhere"
    new["code"][:3], new["unix time"][:3] = [9, 1, 2], [0.0, 1e18, None]
    new["day"][:2] = ["2100-12-31T12:30:00", "0001-01-01"]
    rows = read_table(new, kinds=columns.kinds)
    for (values,) in run(tmp_path / "m.onnx", feeds(rows)):
        assert_equal(values[:, 0].astype(np.float32), predictor.predict(rows))


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
    (tmp_path / "mine.txt").write_text("mine")
    for words, message in (
        ([str(tmp_path), "--onnx", str(tmp_path / "mine.txt")], "this command did not write it"),
        ([str(tmp_path / "nothing"), "--onnx", str(tmp_path / "n.onnx")], "does not exist"),
        ([str(tmp_path)], "--onnx"),
    ):
        assert main(["export", *words]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "n.onnx").exists()
