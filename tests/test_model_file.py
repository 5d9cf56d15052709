"""Model files: they predict the same bits on any device, and a file that is not one is refused in one line."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.data.scaling import Standardizer
from gradflow.training.runs.predictor import MODEL_FILE, Predictor, load_run
from tests.mutations import changed_tree, mutants
from tests.test_predictor import FLOWERS, NAMES, classifier, regressor, samples, scale

pytest.importorskip("safetensors")


def saved(path: Path, predictor: Predictor) -> Path:
    gf.save(path, predictor.tree())
    return path


PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "labels": lambda: classifier(3, features=FLOWERS, labels=[1, 5, -9], score={"accuracy": 0.5}),
    "bools": lambda: Predictor(
        [nn.MLP([4, 2], "gelu")], scale(4, math.inf), labels=[False, True], classes=["no", "yes"]
    ),
    "images": lambda: Predictor(
        [nn.MLP([12, 5, 2])],
        Standardizer.fit(samples(40, 12), limit=3.0),
        classes=["cat", "dog"],
        image_shape=(2, 2, 3),
    ),
    "values": lambda: regressor(2, columns=["height", "weight"]),
    "float64": lambda: Predictor([nn.MLP([4, 3, 3], dtype="float64")], scale(4), classes=NAMES),
}


@pytest.mark.parametrize("kind", PREDICTORS)
def test_a_model_file_predicts_the_same_bits(kind: str, tmp_path: Path, device: str) -> None:
    if not gf.get_backend(device).supports("float64"):
        pytest.skip("no float64")
    predictor = PREDICTORS[kind]()
    found = load_run(saved(tmp_path / MODEL_FILE, predictor))
    x = samples(40, predictor.sizes[0])
    expected = predictor.predict(x)
    assert found.predict(x).dtype == expected.dtype
    assert (found.predict(x) == expected).all()
    if predictor.classes:
        assert found.predict_proba(x).tobytes() == predictor.predict_proba(x).tobytes()
    assert repr(found) == repr(predictor)
    for name in ("classes", "labels", "features", "columns", "image_shape", "score", "dropout", "device"):
        assert getattr(found, name) == getattr(predictor, name)
    assert saved(tmp_path / "again", found).read_bytes() == (tmp_path / MODEL_FILE).read_bytes()


def test_a_model_of_another_device_predicts_on_the_cpu(other_device: str, tmp_path: Path) -> None:
    predictor = classifier(2)
    assert predictor.device == gf.get_backend(other_device).device
    found = load_run(saved(tmp_path / MODEL_FILE, predictor), device="cpu")
    assert found.device == gf.Device("cpu")
    np.testing.assert_allclose(found.predict_proba(samples(20)), predictor.predict_proba(samples(20)), rtol=1e-5)


def test_other_programs_read_the_weights_by_name(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    predictor = classifier(2)
    weights = numpy.load_file(saved(tmp_path / MODEL_FILE, predictor))
    assert sorted(weights) == [
        f"members.{i}.{layer}.{kind}" for i in (0, 1) for layer in (0, 1) for kind in ("bias", "weight")
    ]
    assert (weights["members.1.0.weight"] == predictor.members[1].state_dict()["0.weight"].numpy()).all()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "runs/one does not exist; it must be the folder of a run"),
        ([], "runs/one is not the folder of a run: it has neither model.safetensors nor config.toml"),
        (
            ["config.toml", "checkpoint.safetensors"],
            "has not ended yet; if it was stopped: gradflow train --resume runs/one",
        ),
        (["config.toml", "weights.safetensors"], "earlier gradflow.*: gradflow train --config runs/one/config.toml"),
    ],
)
def test_a_folder_without_a_model_says_what_to_do(
    files: list[str] | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if files is not None:
        Path("runs/one").mkdir(parents=True)
    for name in files or []:
        Path("runs/one", name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=words):
        load_run("runs/one")


def test_a_run_is_its_folder_or_its_file(tmp_path: Path) -> None:
    predictor = classifier()
    saved(tmp_path / MODEL_FILE, predictor)
    for path in (tmp_path, str(tmp_path), tmp_path / MODEL_FILE):
        assert (load_run(path).predict(samples(9)) == predictor.predict(samples(9))).all()


@pytest.mark.parametrize("content", [b"", b"not a model", {"epoch": 3}, [1, 2], {"0.weight": gf.ones((2, 2))}])
def test_another_file_is_not_a_model(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else gf.save(path, content)
    with pytest.raises(gf.InvalidFileError, match=r"file.safetensors.*(whole|not a model file)"):
        load_run(path)


def changed(tree: Any, *path: Any, value: Any) -> Any:
    tree = copy.deepcopy(tree)
    part = tree
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return tree


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["format"], "something", "not a model file"),
        (["version"], 3, "format 3, written by gradflow 0.1.0; upgrade"),
        (["version"], "1", "'version' is str, not int"),
        (["architecture"], [], "'architecture' is list, not dict"),
        (["architecture", "sizes"], [4, 9, 3], "0.weight must be a tensor of shape (9, 4); got (8, 4)"),
        (["architecture", "sizes"], [4, 1 << 40, 3], "must be a tensor of shape (1099511627776, 4)"),
        (["architecture", "sizes"], [4, 8, 8, 3], "the weights do not fit 3 layers: 2.bias, 2.weight"),
        (["architecture", "sizes"], [4], "at least two"),
        (["architecture", "sizes"], [4, 8.0, 3], "list of int; got 8.0"),
        (["architecture", "sizes"], [4, True, 3], "list of int; got True"),
        (["architecture", "sizes"], [4, -8, 3], "at least 1"),
        (["architecture", "activation"], "__import__", "unknown activation '__import__'"),
        (["architecture", "dropout"], 1.0, "below 1"),
        (["architecture", "dropout"], math.nan, "below 1"),
        (["members"], [], "0 architectures"),
        (["members", 0], [], "a dict of weights"),
        (["members", 0, "1.bias"], "zeros", "1.bias must be a tensor of shape (3,); got str"),
        (["members", 0, "1.bias"], gf.zeros(4), "1.bias must be a tensor of shape (3,); got (4,)"),
        (["members", 0, "1.bias"], gf.zeros(3, dtype="int64"), "one floating-point dtype; 1.bias is int64"),
        (["members", 0, "1.bias"], gf.zeros(3, dtype="float64"), "one floating-point dtype; 1.bias"),
        (["members", 0, "1.bias"], gf.tensor([1, math.nan, 2]), "1.bias contains a non-finite number"),
        (["members", 0, "extra"], gf.zeros(3), "do not fit 2 layers: extra"),
        (["inputs"], None, "'inputs' is NoneType, not dict"),
        (["inputs", "kind"], "table", "not the state of a Standardizer"),
        (["inputs", "mean"], [0.0] * 3, "one length"),
        (["inputs", "deviation"], [1.0, 1.0, 0.0, 1.0], "above 0"),
        (["inputs", "mean"], [0.0, math.inf, 0.0, 0.0], "finite"),
        (["inputs", "limit"], -3.0, "finite"),
        (["targets"], {"kind": "standardizer", "limit": 1.0, "mean": [0.0], "deviation": [1.0]}, "either classes or"),
        (["classes"], ["a", "b"], "3 classes; got 2"),
        (["classes"], "abc", "'classes' is str, not list"),
        (["labels"], [0, 1, 1.5], "a label is a string, an integer or a bool; got 1.5"),
        (["features"], [1, 2, 3, 4], "list of str; got 1"),
        (["image_shape"], [2, 3], "do not fit 4 inputs"),
        (["image_shape"], 4, "'image_shape' is int, not list"),
        (["score"], None, "'score' is NoneType, not dict"),
    ],
)  # fmt: skip
def test_the_content_of_a_model_file_is_checked(path: list[Any], value: Any, words: str) -> None:
    tree = changed(classifier().tree(), *path, value=value)
    with pytest.raises(gf.InvalidFileError, match=re.escape(words)) as raised:
        Predictor.from_tree(tree, "m.safetensors")
    assert str(raised.value).startswith("m.safetensors: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", list(classifier().tree()))
def test_every_entry_of_a_model_file_is_required(name: str) -> None:
    tree = classifier().tree()
    del tree[name]
    if name in ("gradflow", "targets", "image_shape"):
        Predictor.from_tree(tree)
    else:
        with pytest.raises(gf.InvalidFileError):
            Predictor.from_tree(tree)


@pytest.mark.parametrize("kind", ["labels", "values"])
def test_a_changed_tree_is_refused_in_one_line_or_predicts(kind: str, random_examples: Any) -> None:
    predictor = PREDICTORS[kind]()
    tree, x, random = predictor.tree(), samples(5), np.random.default_rng(0)
    messages = []
    for _ in range(random_examples(200).max_examples):
        try:
            found = Predictor.from_tree(changed_tree(tree, random), "m.safetensors")
        except gf.InvalidFileError as error:
            messages.append(str(error))
        else:
            assert len(found.predict(x)) == 5
            assert np.isfinite(found.predict_proba(x) if found.classes else found.predict(x)).all()
    assert len(messages) > 100
    assert [m for m in messages if not re.fullmatch(r"m\.safetensors: .{1,400}", m) or not m.isprintable()] == []


@pytest.mark.parametrize("kind", ["labels", "values"])
def test_a_damaged_file_is_refused_in_one_line_or_predicts_the_same_bits(
    kind: str, tmp_path: Path, random_examples: Any
) -> None:
    predictor, x, path = PREDICTORS[kind](), samples(5), tmp_path / MODEL_FILE
    content, expected = saved(path, predictor).read_bytes(), predictor.predict(x).tolist()
    messages = []
    for what, damaged in mutants(content, random_examples(100).max_examples):
        path.write_bytes(damaged)
        try:
            found = load_run(tmp_path)
        except gf.InvalidFileError as error:
            messages.append(str(error))
        else:
            assert found.predict(x).tolist() == expected, what
    assert len(messages) > 50
    assert [m for m in messages if str(path) not in m or not m.isprintable()] == []
