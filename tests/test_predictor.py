"""Predictors: what they take and refuse, what they return, and the model files they are read from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.data import DATASETS, Dataset, load
from gradflow.data.inputs import DataError
from gradflow.data.scaling import Standardizer
from gradflow.training.runs.plausible import doubt
from gradflow.training.runs.predictor import Predictor

NAMES = ["setosa", "versicolor", "virginica"]


def scale(width: int, limit: float = 3.0, seed: int = 0) -> Standardizer:
    random = np.random.default_rng(seed)
    return Standardizer(random.normal(5, 3, width), random.uniform(0.5, 2.0, width), limit)


def classifier(members: int = 1, **options: Any) -> Predictor:
    models = [nn.MLP([4, 8, 3], dropout=0.5) for _ in range(members)]
    return Predictor(models, scale(4), **{"classes": NAMES, **options})


def regressor(outputs: int = 1, **options: Any) -> Predictor:
    return Predictor([nn.MLP([4, 8, outputs], "tanh")], scale(4), scale(outputs, math.inf, 1), **options)


def samples(n: int, width: int = 4) -> Any:
    return np.random.default_rng(7).normal(5, 3, (n, width)).astype(np.float32)


def by_hand(predictor: Predictor, x: Any) -> Any:
    """The probabilities, or the standardised values, of each member, in float64."""
    z = np.clip((x - predictor.inputs.mean) / predictor.inputs.deviation, -3, 3)
    found = []
    for member in predictor.members:
        w = {name: np.float64(value.numpy()) for name, value in member.state_dict().items()}
        hidden = z @ w["0.weight"].T + w["0.bias"]
        hidden = np.maximum(hidden, 0) if predictor.activation == "relu" else np.tanh(hidden)
        out = hidden @ w["1.weight"].T + w["1.bias"]
        found.append(out if predictor.targets else np.exp(out) / np.exp(out).sum(axis=1, keepdims=True))
    return found


# ---------------------------------------------------------------------- predictions


@pytest.mark.parametrize("members", [1, 3])
def test_labels_are_those_of_the_highest_averaged_probability(members: int, device: str) -> None:
    predictor, x = classifier(members), samples(50)
    expected = np.mean(by_hand(predictor, x), axis=0)
    found = predictor.predict_proba(x)
    assert (found.dtype, found.shape) == (np.float32, (50, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    labels = predictor.predict(x)
    assert labels.tolist() == [NAMES[i] for i in expected.argmax(axis=1)]
    assert len(set(labels.tolist())) > 1


def test_integer_labels_are_predicted_as_they_are_in_the_data(device: str) -> None:
    labels = classifier(classes=np.array([7, -1, 40])).predict(samples(20))
    assert labels.dtype == np.int64
    assert set(labels.tolist()) <= {7, -1, 40}
    assert classifier(labels=[True, False, "unknown"]).predict(samples(20)).dtype == object


def test_labels_may_have_other_names() -> None:
    predictor = classifier(labels=[0, 1, 2])
    assert predictor.classes == tuple(NAMES)
    assert (predictor.predict(samples(20)) == predictor.predict_proba(samples(20)).argmax(axis=1)).all()


@pytest.mark.parametrize("outputs", [1, 2])
def test_values_are_in_the_units_of_the_targets(outputs: int, device: str) -> None:
    predictor, x = regressor(outputs), samples(30)
    assert predictor.targets is not None
    expected = by_hand(predictor, x)[0] * predictor.targets.deviation + predictor.targets.mean
    found = predictor.predict(x)
    assert (found.dtype, found.shape) == (np.float32, (30,) if outputs == 1 else (30, 2))
    np.testing.assert_allclose(found.reshape(30, outputs), expected, rtol=1e-4)
    with pytest.raises(TypeError, match=r"values, not classes.*call predict"):
        predictor.predict_proba(x)


def test_values_with_a_large_mean_keep_their_digits(device: str) -> None:
    """Such as times in seconds since 1970: in float32, 1.7e9 and 1.7e9 + 50 are the same."""
    members = regressor().members
    predictor = Predictor(members, scale(4), Standardizer(np.array([1.7e9]), np.array([100.0])))
    wanted = by_hand(predictor, samples(30))[0][:, 0] * 100 + 1.7e9
    found = predictor.predict(samples(30))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found - 1.7e9, wanted - 1.7e9, atol=1e-3)
    assert predictor.evaluate(samples(30), wanted)["r2"] > 1 - 1e-6
    huge = Predictor(members, scale(4), Standardizer(np.array([1e300]), np.array([1e299])))
    assert np.isfinite(huge.predict(samples(30))).all()


def test_dropout_is_off_and_the_models_given_are_left_alone(device: str) -> None:
    model = nn.MLP([4, 8, 3], dropout=0.5)
    drawn = gf.random.normal((2,)).tolist()
    gf.manual_seed(0)
    nn.MLP([4, 8, 3], dropout=0.5)
    predictor = Predictor([model], scale(4), classes=NAMES)
    assert model.training
    before = predictor.predict_proba(samples(20))
    assert gf.random.normal((2,)).tolist() == drawn  # the global generator is not used
    with gf.no_grad():
        model[0].weight.copy_(gf.zeros((8, 4)))
    assert (predictor.predict_proba(samples(20)) == before).all()
    assert before.std(axis=0).min() > 0
    assert predictor.dropout == 0.5


def test_batches_bound_the_memory_and_give_the_same_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, x = classifier(), samples(1000)
    whole, sizes = predictor.predict_proba(x), []
    monkeypatch.setattr("gradflow.training.runs.predictor._BATCH_VALUES", 15 * 100)
    forward = nn.MLP.forward
    monkeypatch.setattr(nn.MLP, "forward", lambda self, x: sizes.append(len(x)) or forward(self, x))
    np.testing.assert_allclose(predictor.predict_proba(x), whole, rtol=1e-6)
    assert sizes == [100] * 10
    sizes.clear()
    monkeypatch.setattr("gradflow.training.runs.predictor._BATCH_VALUES", 1)
    predictor.predict_proba(x[:3])
    assert sizes == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:.*the same scale")
@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float16", "float64", ">f4", ">i2"])
def test_inputs_may_be_numbers_of_any_dtype(dtype: str) -> None:
    predictor = classifier()
    x = samples(10).astype(np.int8).astype(dtype)
    expected = predictor.predict_proba(x.astype(np.float32))
    assert (predictor.predict_proba(x) == expected).all()
    assert (predictor.predict_proba(x.tolist()) == expected).all()
    assert (predictor.predict_proba(x[:, ::-1][:, ::-1]) == expected).all()


def test_images_may_have_their_shape(device: str) -> None:
    predictor = classifier(image_shape=(2, 2))
    x = samples(10)
    assert (predictor.predict_proba(x.reshape(10, 2, 2)) == predictor.predict_proba(x)).all()
    with pytest.raises(DataError, match=re.escape("one sample of shape (2, 2)")):
        predictor.predict(x[0].reshape(2, 2))


def test_a_model_of_another_dtype_predicts(device: str) -> None:
    if not gf.get_backend(device).supports("float64"):
        pytest.skip("no float64")
    predictor = Predictor([nn.MLP([4, 8, 3], dtype="float64")], scale(4), classes=NAMES)
    x = samples(10)
    np.testing.assert_allclose(predictor.predict_proba(x), by_hand(predictor, x)[0], rtol=1e-6)
    assert Predictor.from_tree(predictor.tree()).members[0][0].weight.dtype is gf.float64


def with_value(value: float, row: int, column: int) -> Any:
    x = samples(10).astype(np.float64)
    x[row, column] = value
    return x


FLOWERS = ["sepal length", "sepal width", "petal length", "petal width"]


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (samples(5, 3), "4 features are expected; got 3; the first that is missing is 'petal width'"),
        (samples(5, 5), "4 features are expected; got 5"),
        (samples(5)[0], "one sample of shape (4,); predict takes several: add an axis, as in x[None]"),
        (samples(5)[:, 0], "4 features are expected; got 1"),
        (3.0, "shape ()"),
        ([], "shape (0,)"),
        (samples(0), "shape (0, 4)"),
        (with_value(math.nan, 7, 2), "the input in row 7, column 2 ('petal length')"),
        (with_value(-math.inf, 0, 3), "column 3 ('petal width'), both counted from 0, is -inf"),
        (np.array([["a"] * 4]), "text"),
        ([[1, 2, 3, 4], [1]], "unequal lengths"),
        (np.array([[1, 2, 3, None]], dtype=object), "None"),
        ([["1", "2", "3", "4"]], "text"),
        (samples(2) + 1j, "complex"),
        (np.ma.masked_array(samples(2), samples(2) > 5), "masked"),
        (None, "None"),
        ("digits", "text"),
    ],
)
def test_inputs_that_do_not_fit_are_named(x: Any, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)) as raised:
        classifier(features=FLOWERS).predict(x)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("x")


def test_a_predictor_of_a_split_takes_its_scales_and_names(device: str) -> None:
    pytest.importorskip("sklearn")
    x, y = samples(60), np.array(["b", "a", "c"] * 20)
    split = Dataset.from_arrays(x, y, features=FLOWERS).split(0)
    predictor = Predictor.from_split([nn.MLP([4, 8, 3])], split)
    assert (predictor.classes, predictor.features) == (("a", "b", "c"), tuple(FLOWERS))
    assert predictor.device == gf.current_device()
    with gf.no_grad():
        outputs = gf.softmax(predictor.members[0](gf.tensor(split.train.inputs)), axis=-1).numpy()
    np.testing.assert_allclose(predictor.predict_proba(split.train.raw_inputs), outputs, rtol=1e-6)
    regression = Dataset.from_arrays(x, x.sum(axis=1) * 100).split(0)
    values = Predictor.from_split([nn.MLP([4, 8, 1])], regression)
    assert values.targets is regression.target_scale
    with pytest.raises(ValueError, match="3 classes; got 2"):
        Predictor.from_split([nn.MLP([4, 8, 3])], Dataset.from_arrays(x, y == "a").split(0))


# ---------------------------------------------------------------------- parts that do not fit


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": []}, "0 architectures"),
        ({"members": [nn.MLP([4, 3]), nn.MLP([4, 8, 3])]}, "2 architectures"),
        ({"inputs": scale(5)}, "4 means of inputs; got 5"),
        ({"classes": ["a", "b"]}, "3 classes; got 2"),
        ({"classes": ["a", "b", "a"]}, "3 different labels; got 2"),
        ({"classes": ["1", "2", "1"], "labels": [1, 2, 3]}, "3 different classes; got 2"),
        ({"labels": [0, 1]}, "3 labels; got 2"),
        ({"labels": [True, 1, 2]}, "3 different labels; got 2"),
        ({"classes": [1.5, 2.5, 3.5]}, "a label is a string, an integer or a bool; got 1.5"),
        ({"targets": scale(3)}, "either classes or a scale of its targets"),
        ({"classes": ()}, "either classes or a scale of its targets"),
        ({"targets": scale(2), "classes": ()}, "3 means of targets; got 2"),
        ({"features": ["a"]}, "4 names of features; got 1"),
        ({"columns": ["a"]}, "3 names of target columns; got 1"),
        ({"image_shape": (3, 2)}, "images of shape (3, 2) do not fit 4 inputs"),
        ({"image_shape": (-2, -2)}, "images of shape (-2, -2) do not fit"),
        ({"image_shape": (4,)}, "images of shape (4,) do not fit"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    parts = {"members": [nn.MLP([4, 8, 3])], "inputs": scale(4), "classes": NAMES}
    with pytest.raises(ValueError, match=re.escape(words)):
        Predictor(**{**parts, **options})


def test_models_that_a_file_would_not_describe_are_refused() -> None:
    """Their predictions would be others than those of the model that was trained."""
    tanh, hooked, replaced, patched = (nn.MLP([4, 8, 3]) for _ in range(4))
    tanh[0].activation = "tanh"
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    setattr(replaced, "1", nn.Identity())
    patched[0].forward = lambda x: x
    for model in (tanh, hooked, replaced, patched):
        with pytest.raises(ValueError, match="as it was made"):
            Predictor([model], scale(4), classes=NAMES)
    with pytest.raises(TypeError, match=re.escape("class nn.MLP; got Sequential")):
        Predictor([nn.Sequential(nn.Linear(4, 3))], scale(4), classes=NAMES)  # type: ignore[list-item]
    tanh.activation = "tanh"
    assert Predictor([tanh], scale(4), classes=NAMES).activation == "tanh"


# ---------------------------------------------------------------------- figures


def test_figures_are_those_of_labels_or_of_names(device: str) -> None:
    predictor, x = classifier(labels=[7, 8, 9]), samples(60)
    codes = np.random.default_rng(0).integers(0, 3, 60)
    found = predictor.evaluate(x, codes + 7)
    assert found["accuracy"] == (predictor.predict(x) == codes + 7).mean()
    p = predictor.predict_proba(x).astype(np.float64)
    assert found["log_loss"] == pytest.approx(-np.log(p[np.arange(60), codes]).mean(), rel=1e-6)
    assert predictor.evaluate(x, np.array(NAMES)[codes]) == found
    assert predictor.evaluate(x, [NAMES[c] for c in codes]) == found


def test_figures_of_values_are_in_their_units(device: str) -> None:
    for outputs in (1, 2):
        predictor, x = regressor(outputs), samples(60)
        y = np.random.default_rng(0).normal(10, 4, (60, outputs))
        errors = predictor.predict(x).reshape(60, outputs).astype(np.float64) - y
        found = predictor.evaluate(x, y)
        assert found["rmse"] == pytest.approx(math.sqrt((errors**2).mean()), rel=1e-6)
        assert found["r2"] == pytest.approx((1 - (errors**2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)).mean(), rel=1e-6)
        if outputs == 1:
            assert predictor.evaluate(x, y[:, 0]) == found


@pytest.mark.parametrize(
    ("make", "y", "words"),
    [
        (classifier, ["setosa", "rose", "rose"], "y: there is no class 'rose'"),
        (classifier, [0.5, 1.0, 2.0], "labels of classes are expected"),
        (classifier, ["setosa"] * 2, "got 3 inputs and 2 targets"),
        (regressor, [1.0, 2.0], "got 3 inputs and 2 targets"),
        (regressor, [[1.0, 2.5]] * 3, "y must be numbers in 1 column; got float64 of shape (3, 2)"),
        (regressor, ["a", "b", "c"], "y must be numbers in 1 column; got <U1"),
        (regressor, [1.0, math.nan, 2.0], "the target in row 1"),
        (regressor, np.ma.masked_array([1, 2, 3], [0, 0, 1]), "masked array"),
    ],
)
def test_targets_that_do_not_fit_are_named(make: Callable[[], Predictor], y: Any, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        make().evaluate(samples(3), y)


def test_values_that_are_whole_are_values() -> None:
    predictor, y = regressor(), np.arange(60)
    assert predictor.evaluate(samples(60), y) == predictor.evaluate(samples(60), y.astype(np.float64))


# ---------------------------------------------------------------------- inputs on another scale


def pixels(n: int, seed: int = 0) -> Any:
    """Pictures as bytes, most of whose pixels are rarely bright, as those at the edge of MNIST's are."""
    random = np.random.default_rng(seed)
    return (random.integers(0, 256, (n, 100)) * (random.random((n, 100)) < np.linspace(0.001, 0.9, 100))).astype("u1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda x: x / 255,
            "the inputs vary 25[0-9] times less than those of the training: are they on the same scale?",
        ),
        (lambda x: x * 100.0, "the inputs vary 1[0-9]{2} times more"),
        (lambda x: x + 1000.0, "100% of the inputs lie more than 3 standard deviations from the training means"),
    ],
)
def test_inputs_on_another_scale_are_warned_of(change: Callable[[Any], Any], words: str) -> None:
    predictor = Predictor([nn.MLP([100, 8, 3])], Standardizer.fit(pixels(2000), limit=3.0), classes=NAMES)
    x = change(pixels(200, 1))
    for use in (predictor.predict, predictor.predict_proba):
        with pytest.warns(UserWarning, match=words) as caught:
            use(x)
        assert [Path(warning.filename) for warning in caught] == [Path(__file__)]  # the line of the caller


@pytest.mark.parametrize("n", [1, 9, 10, 200])
def test_inputs_like_those_of_the_training_are_not(n: int) -> None:
    predictor = Predictor([nn.MLP([100, 8, 3])], Standardizer.fit(pixels(2000), limit=3.0), classes=NAMES)
    predictor.predict(pixels(n, 2))  # a warning is an error here
    predictor.predict(np.repeat(pixels(1, 2), n, axis=0))  # the same picture again and again
    one_feature = np.repeat(pixels(1, 2), n, axis=0)
    one_feature[:, 99] = np.linspace(0, 255, n)
    predictor.predict(one_feature)


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("seed", range(3))
def test_no_test_part_of_a_dataset_is_taken_for_one_on_another_scale(name: str, seed: int) -> None:
    split = load(name).split(seed)
    assert split.test is not None
    x = split.test.raw_inputs
    for rows in (x, x[:10], x[-10:]):
        assert doubt(rows, split.input_scale) == ""


def test_the_scaled_diabetes_of_scikit_learn_is_on_another_scale() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    scale_of_ours = load("diabetes").split(0).input_scale
    assert doubt(datasets.load_diabetes(return_X_y=True, scaled=False)[0], scale_of_ours) == ""
    assert "times less" in doubt(datasets.load_diabetes(return_X_y=True)[0], scale_of_ours)
