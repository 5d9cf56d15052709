"""The estimators learn, take what scikit-learn's tools give them, and refuse what does not fit."""

from __future__ import annotations

import contextlib
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", exc_type=ImportError)

from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier as TheirClassifier
from sklearn.neural_network import MLPRegressor as TheirRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info, threadpool_limits

import gradflow as gf
import gradflow.testing
from gradflow.sklearn import MLPClassifier, MLPRegressor, estimator
from gradflow.sklearn.inputs import hold_out
from gradflow.training.threads import thread_limit
from tests.devices import require
from tests.test_cli import child_environment

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK: dict[str, Any] = {"hidden_layer_sizes": (16,), "learning_rate_init": 0.02, "max_iter": 60, "random_state": 0}
X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
LINE = 2.0 * X[:, :1] - X[:, 2:3]


def classifier(**options: Any) -> Any:
    return MLPClassifier(**{**QUICK, **options})


def regressor(**options: Any) -> Any:
    return MLPRegressor(**{**QUICK, **options})


def table(rows: int = 200) -> dict[str, list[Any]]:
    """A color, a size with gaps, a day; the label depends on the first two."""
    random = np.random.default_rng(0)
    color, size = random.choice(["red", "green", "blue"], rows), random.normal(5.0, 2.0, rows)
    label = np.where((color == "red") ^ (size > 5), "yes", "no")
    day = np.datetime64("2024-01-01") + random.integers(0, 300, rows)
    return {
        "color": color.tolist(), "size": [None if i % 20 == 0 else x for i, x in enumerate(size.tolist())],
        "day": day.tolist(), "label": label.tolist(),
    }  # fmt: skip


def frames(library: str) -> tuple[Any, Any]:
    """The table as a frame of a library, without the label, and the label."""
    made = pytest.importorskip(library).DataFrame(table())
    return made[["color", "size", "day"]], made["label"]


# ---------------------------------------------------------------------- learning


def test_labels_are_learned_and_returned_as_they_are() -> None:
    model = classifier().fit(X, NAMES)
    assert model.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert set(model.predict(X)) == set(NAMES)
    assert model.score(X, NAMES) > 0.96
    probabilities = model.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), probabilities, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(("scale", "first"), [(1.0, 0.0), (1e6, 0.0), (1e100, 0.0), (1.0, 1.7e9)])
def test_values_are_predicted_in_their_units(scale: float, first: float) -> None:
    """Also times in seconds since 1970, of which float32 tells apart only those that are 128 seconds apart."""
    y = scale * LINE[:, 0] + first
    model = regressor().fit(X, y)
    assert model.predict(X).shape == (150,)
    assert model.score(X, y) > 0.98


def test_several_outputs_at_once() -> None:
    targets = np.hstack([LINE, 1e4 * X[:, 1:2]])
    model = regressor(max_iter=200).fit(X, targets)
    assert model.predict(X).shape == (150, 2)
    assert model.score(X, targets) > 0.97
    with pytest.raises(ValueError, match="y has 3 outputs; in training it had 2"):
        model.set_params(warm_start=True).fit(X, X[:, :3])


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity", "gelu"])
def test_activations(activation: str) -> None:
    assert classifier(activation=activation).fit(X, Y).score(X, Y) > 0.95


def test_identity_is_a_linear_model() -> None:
    model = regressor(activation="identity", hidden_layer_sizes=(8, 8)).fit(X, LINE[:, 0])
    zero, one, two = (model.predict(X[:1] + step) for step in (0.0, 0.1, 0.2))
    np.testing.assert_allclose(two - one, one - zero, rtol=1e-3)


def test_no_hidden_layer_and_one_width() -> None:
    assert [m.weight.shape for m in classifier(hidden_layer_sizes=()).fit(X, Y).model_[1].children()] == [(3, 4)]
    assert classifier(hidden_layer_sizes=7).fit(X, Y).model_[1].sizes == (4, 7, 3)


@pytest.mark.slow
@pytest.mark.parametrize("load", [load_digits, load_breast_cancer, load_diabetes])
def test_not_behind_scikit_learn(load: Any) -> None:
    """With the same parameters, accuracy at most 0.01 below that of scikit-learn's on scaled data; R² not below."""
    data, targets = load(return_X_y=True)
    ours, theirs = (MLPRegressor, TheirRegressor) if load is load_diabetes else (MLPClassifier, TheirClassifier)
    scores = []
    for seed in range(3):
        train, test, y_train, y_test = train_test_split(data, targets, random_state=seed)
        models = [make(max_iter=60, random_state=seed) for make in (ours, theirs)]
        models[1] = make_pipeline(StandardScaler(), models[1])
        with threadpool_limits(1):  # with more, scikit-learn's takes a hundred times as long on a busy machine
            scores.append([model.fit(train, y_train).score(test, y_test) for model in models])
    own, other = np.mean(scores, axis=0)
    assert own > other - (0.01 if ours is MLPClassifier else 0.0)


def test_bins_are_learned_where_there_are_enough_rows() -> None:
    x = np.random.default_rng(0).uniform(-3, 3, (1500, 2))
    y = np.sin(6 * x[:, 0])
    auto, standard = (regressor(encoding=e, max_iter=20).fit(x, y) for e in ("auto", "standard"))
    assert (auto.columns_.encoding, standard.columns_.encoding) == ("piecewise", "standard")
    assert auto.score(x, y) > standard.score(x, y) + 0.3
    wide = regressor(max_iter=1).fit(np.random.default_rng(0).normal(size=(1500, 20)), y)
    assert wide.columns_.encoding == "standard"


@pytest.mark.parametrize("encoding", ["standard", "piecewise"])
def test_in_float64_numbers_keep_what_float32_cannot_tell_apart(encoding: str) -> None:
    x = 1.7e9 + np.arange(100.0)[:, None] * 1e6
    near = np.array([[x[50, 0]], [x[50, 0] + 1e-3]])
    for dtype, different in (("float32", False), ("float64", True)):
        model = regressor(encoding=encoding, dtype=dtype, max_iter=2).fit(x, np.arange(100.0))
        model = pickle.loads(pickle.dumps(model))
        one, other = model.predict(near)
        assert (one != other) == different
        assert {str(p.dtype) for p in model.model_.parameters()} == {dtype}


def test_weights_of_classes() -> None:
    x, y = make_moons(300, noise=0.4, random_state=0)
    rare = np.concatenate([np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:15]])
    x, y = x[rare], y[rare]
    plain, balanced = (classifier(class_weight=w).fit(x, y) for w in (None, "balanced"))
    assert (balanced.predict(x) == 1).sum() > 1.3 * (plain.predict(x) == 1).sum()
    counts = np.bincount(y)
    same = classifier(class_weight={0: len(y) / 2 / counts[0], 1: len(y) / 2 / counts[1]}).fit(x, y)
    np.testing.assert_allclose(same.predict_proba(x), balanced.predict_proba(x), rtol=1e-4, atol=1e-5)


def test_rows_of_weight_0_do_not_exist() -> None:
    weights = (NAMES != "virginica").astype(float)
    model = classifier(dtype="float64").fit(X, NAMES, sample_weight=weights)
    alone = classifier(dtype="float64").fit(X[weights > 0], NAMES[weights > 0])
    assert model.classes_.tolist() == ["setosa", "versicolor"]
    np.testing.assert_allclose(model.predict_proba(X), alone.predict_proba(X), rtol=1e-9)


# ---------------------------------------------------------------------- gaps and frames


def test_gaps_are_filled_and_told() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 2))
    x[random.random(300) < 0.3, 0] = np.nan
    y = np.isnan(x[:, 0])
    assert classifier().fit(x, y).score(x, y) == 1.0
    without = classifier().fit(X, Y)
    assert without.predict(np.full((1, 4), np.nan)).shape == (1,)


def test_a_column_that_cannot_be_used_is_to_be_dropped() -> None:
    """No message names an argument or a flag that the estimators do not have."""
    frame = pytest.importorskip("pandas").DataFrame(table())
    for column in ([f"name {i}" for i in range(200)], [1, "x"] * 100, [[1]] * 200):
        with pytest.raises(gf.data.DataError, match=r"column 'new'.*: leave (it|the column) out") as error:
            classifier().fit(frame.assign(new=column), frame["color"])
        assert not re.search("ignore|categorical", str(error.value))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_with_texts_and_dates(library: str) -> None:
    x, y = frames(library)
    model = classifier(max_iter=100).fit(x, y)
    assert model.feature_names_in_.tolist() == ["color", "size", "day"]
    assert model.columns_.kinds == {"color": "text", "size": "number", "day": "date Y-m-d"}
    assert model.score(x, y) > 0.9
    part = model.predict(x[:3])
    assert part.tolist() == model.predict(x)[:3].tolist()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    with pytest.raises(ValueError, match="names should match those that were passed during fit"):
        model.predict(x[["size", "color", "day"]])
    with (
        pytest.raises(ValueError, match="columns of texts or dates are needed: color, day"),
        pytest.warns(UserWarning, match="valid feature names"),
    ):
        model.predict(np.zeros((2, 3)))


def test_unknown_levels_are_predicted() -> None:
    pandas = pytest.importorskip("pandas")
    x, y = frames("pandas")
    model = classifier().fit(x, y)
    new = pandas.DataFrame({"color": ["violet", None], "size": [5.0, None], "day": [None, None]})
    assert model.predict(new).shape == (2,)


def test_a_frame_of_numbers_is_an_array_with_names() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=list("abcd"))
    ours, named = classifier().fit(X, Y), classifier().fit(frame, Y)
    np.testing.assert_array_equal(ours.predict_proba(X), named.predict_proba(frame))
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        assert named.predict(X).shape == (150,)
    with pytest.warns(UserWarning, match="X has feature names"):
        assert ours.predict(frame).shape == (150,)


def test_whole_numbers_that_number_the_rows_stay() -> None:
    x = np.arange(100.0)[:, None]
    assert regressor(max_iter=200).fit(x, np.sin(x[:, 0] / 10)).score(x, np.sin(x[:, 0] / 10)) > 0.5


# ---------------------------------------------------------------------- training


def test_early_stopping_keeps_the_best_weights() -> None:
    x, y = make_moons(1200, noise=0.5, random_state=0)
    model = classifier(max_iter=200, n_iter_no_change=3).fit(x, y)
    assert model.n_iter_ < 200
    assert len(model.validation_scores_) == len(model.loss_curve_) == model.n_iter_
    assert model.loss_ == model.loss_curve_[-1]
    whole = classifier(max_iter=5, early_stopping=False).fit(x, y)
    assert whole.validation_scores_ == []


def test_training_ends_when_the_loss_no_longer_falls() -> None:
    early, late = (classifier(tol=tol, max_iter=60).fit(X, Y) for tol in (0.05, 0.0))
    assert early.n_iter_ < late.n_iter_ == 60
    with pytest.warns(ConvergenceWarning, match="max_iter=2 epochs"):
        classifier(max_iter=2).fit(X, Y)


def test_a_share_of_each_class_is_held_out() -> None:
    labels = np.array(["a"] * 50 + ["b"] * 30 + ["c"])
    stay, held = hold_out(labels, 0.1, gf.Generator(0))
    assert sorted([*stay, *held]) == list(range(81))
    assert [(labels[held] == name).sum() for name in "abc"] == [5, 3, 0]
    with pytest.raises(ValueError, match=r"validation_fraction=0\.01 of 81 samples leaves none"):
        hold_out(labels, 0.01, gf.Generator(0))


def test_warm_start_goes_on() -> None:
    model = classifier(max_iter=5, warm_start=True)
    losses = [model.fit(X, Y).loss_ for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    assert model.n_iter_ == len(model.loss_curve_) == 15
    with pytest.raises(ValueError, match="hidden_layer_sizes has changed"):
        clone(model).fit(X, Y).set_params(hidden_layer_sizes=(8,)).fit(X, Y)
    with pytest.raises(ValueError, match="dropout has changed"):
        clone(model).fit(X, Y).set_params(dropout=0.1).partial_fit(X, Y)
    with pytest.raises(ValueError, match=r"no classes: \[9\]"):
        model.fit(X, np.full(150, 9))
    assert model.score(X, Y) > 0.5
    assert len(model.set_params(warm_start=False).fit(X, Y).loss_curve_) == 5


def test_partial_fit_learns_part_by_part() -> None:
    order = np.random.default_rng(0).permutation(150)
    model = classifier()
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        model.partial_fit(X, Y)
    for _ in range(20):
        for part in np.split(order, 5):
            model.partial_fit(X[part], Y[part], classes=[0, 1, 2])
    assert model.score(X, Y) > 0.95
    assert model.n_iter_ == 100
    with pytest.raises(ValueError, match="is not the same as on the last call"):
        model.partial_fit(X, Y, classes=[0, 1])
    model = regressor()
    for _ in range(40):
        model.partial_fit(X, LINE[:, 0])
    assert model.score(X, LINE[:, 0]) > 0.95


def test_partial_fit_goes_on_after_a_pickle_with_the_same_bits() -> None:
    model = classifier(dropout=0.2).partial_fit(X, Y, classes=[0, 1, 2])
    model.partial_fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    for each in (model, again):
        each.partial_fit(X, Y)
    np.testing.assert_array_equal(model.predict_proba(X), again.predict_proba(X))


# ---------------------------------------------------------------------- seeds, pickles, devices


def test_seeds() -> None:
    def found(state: Any) -> Any:
        return classifier(max_iter=2, dropout=0.1, random_state=state).fit(X, Y).predict_proba(X)

    np.testing.assert_array_equal(found(3), found(3))
    np.testing.assert_array_equal(found(np.random.RandomState(3)), found(np.random.RandomState(3)))
    assert (found(3) != found(4)).any()
    assert (found(None) != found(None)).any()
    with pytest.raises(ValueError, match="cannot be used to seed"):
        found("x")


@pytest.mark.parametrize("state", [None, 0])
def test_global_generators_are_neither_read_nor_changed(state: int | None) -> None:
    def states() -> list[Any]:
        _, words, *rest = np.random.get_state()
        return [words.tolist(), rest, gf.random.default_generator.state_dict()]

    np.random.seed(5)
    before = states()
    first = classifier(random_state=state, max_iter=2, dropout=0.2, early_stopping=True).fit(X, Y).predict_proba(X)
    assert states() == before
    np.random.seed(6)
    gf.random.normal(3)
    second = classifier(random_state=state, max_iter=2, dropout=0.2, early_stopping=True).fit(X, Y).predict_proba(X)
    assert (first == second).all() == (state == 0)


def test_a_pickle_has_the_bytes_of_a_saved_state() -> None:
    for model in (
        classifier(dropout=0.2).fit(X, NAMES),
        regressor().fit(X, LINE[:, 0]),
        classifier(activation="identity").fit(X, Y),
    ):
        content = pickle.dumps(model)
        assert b"Tensor" not in content
        assert b'"gradflow' in content
        again = pickle.loads(content)
        np.testing.assert_array_equal(model._outputs(X), again._outputs(X))
        assert again.get_params() == model.get_params()
        assert again.loss_curve_ == model.loss_curve_
    new = classifier()
    assert pickle.loads(pickle.dumps(new)).get_params() == new.get_params()


def test_a_changed_parameter_does_not_change_what_is_pickled() -> None:
    model = classifier().fit(X, Y)
    model.set_params(hidden_layer_sizes=(3,), activation="tanh", dtype="float64")
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(model.predict_proba(X), again.predict_proba(X))


OPEN = """
import pathlib, pickle, sys, warnings
import numpy as np
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
print(*[str(w.message) for w in caught], sep="|")
print(model.predict(np.load(sys.argv[2])).tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", ["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_a_device_trained_opens_where_it_is_missing(device: str, tmp_path: Path) -> None:
    """The device "fake" is only there after `gradflow.testing` is imported."""
    require(device)
    model = classifier(device=device, max_iter=20).fit(X, NAMES)
    assert model.model_[1][0].weight.device.type == device
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "x.npy", X)
    words = [sys.executable, "-c", OPEN, str(tmp_path / "model.pickle"), str(tmp_path / "x.npy")]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env=child_environment(CUDA_VISIBLE_DEVICES="")
    )
    told, labels = done.stdout.splitlines()
    assert told == f"there is no usable device {device!r} here: the estimator is on the CPU"
    assert labels == str(model.predict(X).tolist())


@pytest.mark.parametrize("device", ["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_same_on_a_device(device: str) -> None:
    require(device)
    here, there = (classifier(device=d, max_iter=5, dropout=0.1).fit(X, Y) for d in ("cpu", device))
    np.testing.assert_allclose(there.predict_proba(X), here.predict_proba(X), rtol=1e-3, atol=1e-4)
    with pytest.raises((ValueError, gf.DeviceUnavailableError), match="nowhere"):
        classifier(device="nowhere").fit(X, Y)


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_small_networks_train_on_one_thread() -> None:
    """The last of several that overlap restores what the first one found."""
    with threadpool_limits(2, "blas"):
        first, second = (thread_limit("cpu", (4, 16, 3), 150) for _ in range(2))
        with contextlib.ExitStack() as stack:
            with first:
                stack.enter_context(second)
                assert blas_threads() == {1}
            assert blas_threads() == {1}
        assert blas_threads() == {2}
        with thread_limit("cpu", (1000, 1000, 3), 150), thread_limit("cuda:0", (4, 3), 1):
            assert blas_threads() == {2}
        classifier(max_iter=1).fit(X, Y)
        assert blas_threads() == {2}


def test_threads_may_train_at_once() -> None:
    found = {}

    def work(seed: int) -> None:
        found[seed] = classifier(random_state=seed, max_iter=20, dropout=0.1).fit(X, Y).predict_proba(X)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for seed, probabilities in found.items():
        alone = classifier(random_state=seed, max_iter=20, dropout=0.1).fit(X, Y).predict_proba(X)
        np.testing.assert_allclose(probabilities, alone, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- scikit-learn's tools


def test_in_a_pipeline_and_in_cross_validation() -> None:
    pipeline = make_pipeline(StandardScaler(), classifier(max_iter=30))
    assert cross_val_score(pipeline, X, NAMES, cv=3).mean() > 0.9
    probabilities = cross_val_predict(classifier(max_iter=20), X, Y, cv=3, method="predict_proba")
    assert probabilities.shape == (150, 3)


@pytest.mark.slow
def test_a_grid_in_two_processes() -> None:
    grid = {"hidden_layer_sizes": [(8,), (16, 8)], "activation": ["relu"], "learning_rate_init": [0.02]}
    search = GridSearchCV(classifier(max_iter=30), grid, cv=2, n_jobs=2).fit(X, NAMES)
    assert search.best_score_ > 0.9
    assert search.predict(X[:2]).shape == (2,)


def test_calibration() -> None:
    model = CalibratedClassifierCV(classifier(), cv=3).fit(X, NAMES)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0, rtol=1e-6)
    assert model.score(X, NAMES) > 0.9


def test_a_clone_has_the_parameters_alone() -> None:
    model = classifier(dropout=0.1, class_weight={0: 2.0}).fit(X, Y)
    copied = clone(model)
    assert copied.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        copied.predict(X)
    assert repr(copied).startswith("MLPClassifier(")


def test_parameters_have_the_names_and_defaults_of_scikit_learn() -> None:
    """All that both have, but for `early_stopping`."""
    for ours, theirs in ((MLPClassifier(), TheirClassifier()), (MLPRegressor(), TheirRegressor())):
        own, other = ours.get_params(), theirs.get_params()
        shared = own.keys() & other.keys()
        assert len(shared) == 13
        assert {name for name in shared if own[name] != other[name]} == {"early_stopping"}


@pytest.mark.filterwarnings("ignore:.*sample size. It is going to be clipped:UserWarning")
def test_a_grid_for_scikit_learn_serves_as_it_is() -> None:
    """All values that scikit-learn takes for the parameters that both have, but for a share of 0 to validate on."""
    grid = {
        "hidden_layer_sizes": [(8,), [8, 4], np.array([8, 4]), 8, ()],
        "activation": ["identity", "logistic", "tanh", "relu"],
        "learning_rate_init": [0.1, np.float32(0.01)],
        "batch_size": ["auto", 32, np.int64(1000)],
        "max_iter": [1, np.int64(2)],
        "validation_fraction": [0.1, 0.3],
        "early_stopping": [True, False, np.True_],
        "random_state": [None, 3, np.int64(3), np.random.RandomState(3)],
        "n_iter_no_change": [5, np.inf],
        "tol": [0.0, 1],
        "shuffle": [True, False],
        "warm_start": [True, False],
        "verbose": [False, 0],
    }
    theirs, ours = (make_pipeline(StandardScaler(), make(max_iter=2)) for make in (TheirClassifier, MLPClassifier))
    for name, values in grid.items():
        for value in values:
            for model in (theirs, ours):
                clone(model).set_params(**{f"mlpclassifier__{name}": value}).fit(X, NAMES)


def test_parameters_of_scikit_learn_that_are_not_here_name_what_to_use() -> None:
    words = "parameters of scikit-learn's that MLPClassifier does not have: "
    with pytest.raises(TypeError, match=re.escape(words + "alpha (use weight_decay), solver (leave it out: ")):
        MLPClassifier(solver="adam", alpha=1e-4)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=re.escape(words + "alpha (use weight_decay)")):
        make_pipeline(MLPClassifier()).set_params(mlpclassifier__alpha=1e-4)
    for ours, theirs in ((MLPClassifier(), TheirClassifier()), (MLPRegressor(), TheirRegressor())):
        for name in theirs.get_params().keys() - ours.get_params().keys():
            with pytest.raises(TypeError, match=rf"does not have: {name} \("):
                type(ours)(**{name: 1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'alhpa'"):
        MLPClassifier(alhpa=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="Invalid parameter 'alhpa'"):
        MLPClassifier().set_params(alhpa=1)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_layer_sizes": (8, 0)}, "hidden_layer_sizes must be"),
        ({"hidden_layer_sizes": "8"}, "hidden_layer_sizes must be"),
        ({"activation": "step"}, "activation must be one of relu"),
        ({"batch_size": 0}, "batch_size must be 'auto' or at least 1; got 0"),
        ({"max_iter": 0}, "max_iter must be an integer of at least 1; got 0"),
        ({"n_iter_no_change": 1.5}, "n_iter_no_change must be"),
        ({"shuffle": "no"}, "shuffle must be True or False; got 'no'"),
        ({"tol": -1}, "tol must be a number of at least 0; got -1"),
        ({"early_stopping": "yes"}, "early_stopping must be"),
        ({"validation_fraction": 1.0}, "validation_fraction must be above 0 and below 1"),
        ({"encoding": "bins"}, "encoding must be one of auto, piecewise, standard"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'float64'"),
        ({"dropout": 1.0}, "p < 1|below 1"),
        ({"learning_rate_init": -1.0}, "lr must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"class_weight": "even"}, "class_weight"),
        ({"class_weight": {7: 1.0}}, "are not in class_weight"),
        ({"class_weight": {1: -1.0}}, "class_weight must hold finite numbers of at least 0"),
        ({"random_state": -1}, "Seed must be"),
    ],
)
def test_a_parameter_that_is_invalid_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**options).fit(X, Y)


def test_data_that_does_not_fit() -> None:
    model = classifier()
    with pytest.raises(NotFittedError, match="not fitted yet"):
        model.predict(X)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(X, Y[:-1])
    with pytest.raises(ValueError, match=r"at least two classes are needed; all samples are of the class 0\.0$"):
        model.fit(X, np.zeros(150))
    with pytest.raises(ValueError, match="infinity"):
        model.fit(np.where(X > 5, np.inf, X), Y)
    with pytest.raises(ValueError, match="y has values that are too large for their deviation: divide them first"):
        regressor().fit(X, LINE[:, 0] * 1e200)
    with pytest.raises(ValueError, match="there are no columns to learn from: x0 is left out"):
        model.fit(np.ones((150, 2)), Y)
    model.fit(X, Y)
    with pytest.raises(ValueError, match="X has 3 features, but MLPClassifier is expecting 4"):
        model.predict(X[:, :3])
    with pytest.raises(ValueError, match="at least two classes"):
        model.fit(X, np.zeros(150))
    with pytest.raises(NotFittedError):  # not half of one and half of the other
        model.predict(X)
    with pytest.raises(ValueError, match="partial_fit a dict"):
        classifier(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])


def test_a_training_that_diverges_leaves_no_estimator() -> None:
    model = regressor(warm_start=True).fit(X, LINE[:, 0]).set_params(learning_rate_init=1e30)
    with pytest.raises(gf.training.NonFiniteLossError):
        model.fit(X, LINE[:, 0])
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_ctrl_c_keeps_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def press(_model: Any, epoch: Any) -> None:
        if epoch.epoch == 20:
            raise KeyboardInterrupt

    model = classifier()
    monkeypatch.setattr(MLPClassifier, "_tell", press)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    assert model.score(X, Y) > 0.8
    assert not model.model_.training


def test_warm_start_validates_on_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(estimator, "hold_out", lambda *words: found.append(hold_out(*words)) or found[-1])
    model = classifier(warm_start=True, early_stopping=True, max_iter=2)
    model.fit(X, Y).fit(X, Y)
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import gradflow.sklearn as s; s.MLPClassifier"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment())
    assert 'gradflow.sklearn needs scikit-learn from the extra "train"' in done.stderr.splitlines()[-1]
