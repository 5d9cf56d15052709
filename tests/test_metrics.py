"""The metrics of training: kinds, figures equal to scikit-learn's, weights, captured steps, errors."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.data import Batches
from gradflow.testing import count_transfers, forbid_sync
from gradflow.training import host_metrics
from gradflow.training.metrics import KINDS, METRICS, ON_DEVICE, Metrics, better, default_metric, figures_of, kind_of
from tests.devices import replays

sklearn_metrics = pytest.importorskip("sklearn.metrics")

N = 90
CLASSIFICATION = [name for name, (task, _) in METRICS.items() if task == "classification"]
REGRESSION = [name for name, (task, _) in METRICS.items() if task == "regression"]
BINARY = gf.binary_cross_entropy_with_logits


def figures(
    names: Any, loss: Any, outputs: Any, targets: Any, weights: Any = None, size: int = 16, device: Any = None
) -> dict[str, float]:
    """The figures of these outputs, in batches."""
    batches = Batches(outputs, targets, size, shuffle=False, weights=weights, device=device)
    metrics = Metrics(names, loss, batches)
    return metrics.figures([metrics.partial(*batch) for batch in batches])


def draw(shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def labels_like(outputs: Any, classes: int) -> Any:
    """Labels that the outputs predict better than chance."""
    n = len(outputs)
    return np.where(np.random.default_rng(5).random(n) < 0.4, outputs.argmax(1), np.arange(n) % classes)


def softmax(x: Any) -> Any:
    from scipy.special import softmax

    return softmax(x.astype("float64"), axis=1)


# ---------------------------------------------------------------------- scikit-learn's figures


def expected_of_labels(p: Any, y: Any, w: Any) -> dict[str, float]:
    """Figures as scikit-learn documents them, of probabilities (n, C) and labels."""
    m, two = sklearn_metrics, p.shape[1] == 2
    label, average = p.argmax(1), "binary" if two else "macro"
    hot = np.eye(p.shape[1])[y]
    return {
        "accuracy": m.accuracy_score(y, label, sample_weight=w),
        "auroc": m.roc_auc_score(y, p[:, 1] if two else p, multi_class="ovr", sample_weight=w),
        "average_precision": m.average_precision_score(*(v[:, 1] if two else v for v in (hot, p)), sample_weight=w),
        "balanced_accuracy": m.balanced_accuracy_score(y, label, sample_weight=w),
        "calibration_error": calibration_error(p, y, w),
        "f1": m.f1_score(y, label, average=average, sample_weight=w),
        "log_loss": m.log_loss(y, p, sample_weight=w),
        "precision": m.precision_score(y, label, average=average, sample_weight=w),
        "recall": m.recall_score(y, label, average=average, sample_weight=w),
    }


def calibration_error(p: Any, y: Any, w: Any) -> float:
    """Guo et al. 2017, equation 3, written out bin by bin."""
    w = np.ones(len(y)) if w is None else w
    confidence, right, error = p.max(1), p.argmax(1) == y, 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if w[inside].sum():
            accuracy, mean = (
                np.average(right[inside], weights=w[inside]),
                np.average(confidence[inside], weights=w[inside]),
            )
            error += w[inside].sum() / w.sum() * abs(accuracy - mean)
    return float(error)


def expected_of_values(values: Any, targets: Any, w: Any) -> dict[str, float]:
    values, targets = values.astype("float64"), targets.astype("float64")
    return {
        "mae": sklearn_metrics.mean_absolute_error(targets, values, sample_weight=w),
        "r2": sklearn_metrics.r2_score(targets, values, sample_weight=w),
        "rmse": math.sqrt(sklearn_metrics.mean_squared_error(targets, values, sample_weight=w)),
    }


@pytest.fixture(params=[False, True], ids=["equal", "weighted"])
def weights(request: pytest.FixtureRequest) -> Any:
    """None, or weights with some zeros."""
    return np.arange(N, dtype="float32") % 5 if request.param else None


@pytest.fixture(params=["float16", "float32", "float64"])
def dtype(request: pytest.FixtureRequest, device: str) -> Any:
    """A floating-point dtype that the device supports."""
    if not gf.get_backend(device).supports(request.param):
        pytest.skip(f"{device} has no {request.param}")
    return request.param


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("integer", ["int64", "uint8"])
def test_figures_of_labels_are_those_of_scikit_learn(
    classes: int, integer: str, weights: Any, dtype: str, device: str
) -> None:
    outputs = draw((N, classes), dtype=dtype)
    labels = labels_like(outputs, classes).astype(integer)
    found = figures(CLASSIFICATION, gf.cross_entropy, outputs, labels, weights)
    assert list(found) == CLASSIFICATION
    assert found == pytest.approx(expected_of_labels(softmax(outputs), labels, weights), rel=1e-6)


@pytest.mark.parametrize("one_hot", [True, False])
def test_figures_of_probability_rows_are_those_of_their_largest(one_hot: bool, weights: Any, device: str) -> None:
    outputs = draw((N, 3))
    labels = labels_like(outputs, 3)
    rows = np.eye(3, dtype="float32")[labels]
    rows = rows if one_hot else 0.5 * rows + 0.5 * softmax(draw((N, 3), 1)).astype("float32")
    found = figures(CLASSIFICATION, gf.cross_entropy, outputs, rows, weights)
    assert found == pytest.approx(expected_of_labels(softmax(outputs), rows.argmax(1), weights), rel=1e-6)


@pytest.mark.parametrize("integer", ["bool", "int64", "uint8", "float32"])
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_figures_of_binary_logits_are_those_of_scikit_learn(
    shape: tuple[int, ...], integer: str, weights: Any, dtype: str, device: str
) -> None:
    outputs = draw(shape, dtype=dtype)
    z = outputs.reshape(N).astype("float64")
    p = 1 / (1 + np.exp(-z))
    labels = labels_like(np.stack([-z, z], 1), 2)
    found = figures(CLASSIFICATION, BINARY, outputs, labels.reshape(shape).astype(integer), weights)
    assert found == pytest.approx(expected_of_labels(np.stack([1 - p, p], 1), labels, weights), rel=1e-6)


def test_figures_of_probabilities_of_two_classes_are_those_of_their_logits(weights: Any, device: str) -> None:
    p = np.array([0.0, 1.0, 0.5, *np.random.default_rng(0).random(N - 3)])
    with np.errstate(divide="ignore"):
        logits = np.log(p) - np.log1p(-p)
    targets = np.arange(N) % 3 == 1
    found = figures(CLASSIFICATION, nn.BCELoss(), p, targets, weights)
    assert found == figures(CLASSIFICATION, BINARY, logits, targets, weights)
    assert 0.0 < found["accuracy"] < 1.0


def test_figures_of_several_binary_columns_are_their_means(weights: Any, device: str) -> None:
    outputs, targets = draw((N, 3)), draw((N, 3), 1) > 0
    found = figures(CLASSIFICATION, BINARY, outputs, targets, weights)
    columns = [figures(CLASSIFICATION, BINARY, outputs[:, j], targets[:, j], weights) for j in range(3)]
    assert found == pytest.approx({name: np.mean([c[name] for c in columns]) for name in found}, rel=1e-6)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3)])
def test_figures_of_values_are_those_of_scikit_learn(
    shape: tuple[int, ...], weights: Any, dtype: str, device: str
) -> None:
    targets = 3 + draw(shape, dtype=dtype)
    outputs = targets + draw(shape, 1, dtype) / 2
    found = figures(REGRESSION, gf.mse_loss, outputs, targets, weights)
    expected = expected_of_values(outputs, targets, weights)
    assert found == pytest.approx(expected, rel=1e-12 if dtype == "float64" and weights is None else 1e-5)


def test_labels_of_the_points_of_a_sequence(weights: Any, device: str) -> None:
    outputs, labels = draw((N, 3, 2)), np.arange(2 * N).reshape(N, 2) % 3
    each = None if weights is None else np.repeat(weights, 2)
    found = figures(CLASSIFICATION, gf.cross_entropy, outputs, labels, weights)
    expected = expected_of_labels(softmax(outputs).transpose(0, 2, 1).reshape(-1, 3), labels.reshape(-1), each)
    assert found == pytest.approx(expected, rel=1e-6)
    rows = np.eye(3, dtype="float32")[labels].transpose(0, 2, 1)
    assert figures(CLASSIFICATION, gf.cross_entropy, outputs, rows, weights) == found
    right = 9 * rows - 4
    assert figures(["accuracy"], gf.cross_entropy, right, labels, weights) == {"accuracy": 1.0}


@pytest.mark.parametrize("loss", [gf.cross_entropy, gf.mse_loss])
def test_a_weight_of_two_is_a_row_that_comes_twice(loss: Any, device: str) -> None:
    outputs, targets = draw((N, 3)), draw((N, 3), 1)
    wanted = targets.argmax(1) if loss is gf.cross_entropy else targets
    names = CLASSIFICATION if loss is gf.cross_entropy else REGRESSION
    w = np.arange(N) % 3
    found = figures(names, loss, outputs, wanted, w)
    assert found == pytest.approx(figures(names, loss, outputs.repeat(w, 0), wanted.repeat(w, 0)), rel=1e-5)


# ---------------------------------------------------------------------- what the loss and the shapes tell


def test_accuracy_is_a_share_whatever_the_targets_of_binary_cross_entropy(device: str) -> None:
    """Targets that broadcast against the outputs once scored 21,700 %, -1129 and -53."""
    z = draw((217, 1))
    ones, rows = (z > 0).astype("int64"), np.eye(2, dtype="float32")[(z[:, 0] > 0).astype(int)]
    for loss, outputs, targets in (
        (BINARY, z, ones), (BINARY, z, ones.astype("float32")), (gf.cross_entropy, np.hstack([-z, z]), rows)
    ):  # fmt: skip
        assert default_metric(loss, targets) == "accuracy"
        assert figures(["accuracy"], loss, outputs, targets) == {"accuracy": 1.0}
        assert figures(["accuracy"], loss, -outputs, targets) == {"accuracy": 0.0}


def test_kinds() -> None:
    whole, real, truth = np.zeros(3, "int64"), np.zeros(3, "float32"), np.zeros(3, "bool")
    for loss, targets, kind in (
        (gf.cross_entropy, whole, "classes"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), whole, "classes"),
        (functools.partial(functools.partial(gf.cross_entropy), label_smoothing=0.1), real, "probabilities"),
        (gf.nll_loss, gf.tensor(whole), "classes"),
        (nn.NLLLoss(), whole, "classes"),
        (nn.BCEWithLogitsLoss(), whole, "binary"),
        (BINARY, truth, "binary"),
        (nn.BCELoss(), real, "binary"),
        (gf.mse_loss, whole, "values"),
        (nn.L1Loss(), real, "values"),
        (functools.partial(gf.huber_loss, delta=2.0), real, "values"),
        (lambda outputs, targets: gf.mse_loss(outputs, targets), gf.tensor(real), "values"),
        (lambda outputs, targets: gf.cross_entropy(outputs, targets), whole.astype("uint8"), "classes"),
    ):
        assert kind_of(loss, targets) == kind
        assert default_metric(loss, targets) == ("r2" if kind == "values" else "accuracy")
    for kind in KINDS:
        assert kind_of(kind, whole) == kind


LOSSES = [gf.cross_entropy, gf.nll_loss, BINARY, gf.mse_loss, gf.l1_loss, gf.huber_loss]
SHAPES = [(8,), (8, 1), (8, 3), (8, 2), (8, 3, 2), (8, 2, 3)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("target_dtype", ["bool", "uint8", "int64", "uint64", "float16", "float32", "float64"])
def test_metrics_take_what_the_losses_take(loss: Any, target_dtype: str) -> None:
    """All shapes of outputs and targets: either both raise an error or none does; but metrics need two classes."""

    def accepts(action: Callable[[], Any]) -> bool:
        try:
            action()
        except (TypeError, ValueError):
            return False
        return True

    for shape in SHAPES:
        for wanted in SHAPES:
            outputs, targets = draw(shape), np.zeros(wanted, target_dtype)
            taken = accepts(lambda o=outputs, t=targets: loss(gf.tensor(o), gf.tensor(t)))  # type: ignore[misc]
            if loss in (gf.cross_entropy, gf.nll_loss):
                taken = taken and len(shape) > 1 and shape[1] > 1
            name = "rmse" if loss in (gf.mse_loss, gf.l1_loss, gf.huber_loss) else "accuracy"
            scored = accepts(lambda o=outputs, t=targets, name=name: figures([name], loss, o, t))  # type: ignore[misc]
            assert scored == taken, (shape, wanted)


@pytest.mark.parametrize(
    ("loss", "shape", "targets", "words"),
    [
        (gf.mse_loss, (8, 1), np.zeros(8), r"values need outputs and targets of the same shape; got outputs \(8, 1\) "
         r"and float64 targets \(8,\): reshape the targets with targets.reshape\(\(-1, 1\)\)"),
        (BINARY, (8,), np.zeros((8, 1), int), r"binary logits need .*reshape the targets with .*\(\(-1,\)\)"),
        (BINARY, (8, 2), np.zeros(8, int), r"same shape; got outputs \(8, 2\) and int64 targets \(8,\)$"),
        (gf.cross_entropy, (8, 3), np.zeros((8, 1), int), r"integer labels of shape \(n, ...\); got outputs \(8, 3\)"),
        (gf.cross_entropy, (8, 1), np.zeros(8, int), "at least 2 classes"),
        (gf.cross_entropy, (8, 3), np.zeros((8, 2)), "class probabilities need outputs .* of the same shape"),
        (lambda o, t: o, (8, 1), np.zeros((8, 1), int), "use gradflow.binary_cross_entropy_with_logits itself"),
    ],
)  # fmt: skip
def test_another_shape_is_an_error(loss: Any, shape: tuple[int, ...], targets: Any, words: str, device: str) -> None:
    name = default_metric(loss, targets)
    with pytest.raises(ValueError, match=words) as caught:
        figures([name], loss, draw(shape), targets)
    assert "\n" not in str(caught.value)


def test_targets_that_tell_no_kind_are_an_error() -> None:
    truth, real = np.zeros(3, bool), np.zeros(3, "float32")
    with pytest.raises(TypeError, match="nll_loss needs integer labels as targets; got float32"):
        kind_of(gf.nll_loss, real)
    with pytest.raises(TypeError, match="cross_entropy needs integer labels or floating-point class probabilities"):
        kind_of(nn.CrossEntropyLoss(), truth)
    with pytest.raises(TypeError, match="not one of gradflow's need integer labels or floating-point values"):
        kind_of(lambda o, t: o, truth)
    with pytest.raises(TypeError, match="classes needs integer labels"):
        kind_of("classes", real)
    with pytest.raises(ValueError, match="unknown kind 'class'; there are classes, prob"):
        kind_of("class", real)


# ---------------------------------------------------------------------- names


def make(names: Any, loss: Any = gf.cross_entropy, integer: bool = True) -> Metrics:
    return Metrics(names, loss, Batches(draw((4, 2)), np.zeros(4, int) if integer else draw((4, 2)), 2))


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (["acuracy"], {}, "unknown metric 'acuracy'; did you mean accuracy"),
        (["xyz"], {}, "unknown metric 'xyz'; there are accuracy, auroc"),
        ([3], {}, "unknown metric 3; there are accuracy"),
        (["r2"], {}, "r2 does not suit class labels; there are accuracy, .*recall$"),
        (["r2"], {"loss": BINARY}, "r2 does not suit binary logits; there are accuracy"),
        (["auroc"], {"loss": gf.mse_loss}, "auroc does not suit values; there are r2, rmse, mae"),
        (["accuracy"], {"loss": lambda o, t: o, "integer": False},
         "suit values, which float32 targets are for a loss that is not gradflow's own; there are r2"),
    ],
)  # fmt: skip
def test_names_that_do_not_fit_are_errors(names: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(names, **options)


def test_a_string_of_names_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"write \['accuracy'\]"):
        make("accuracy")


def test_figures_are_in_the_order_of_the_names_each_once() -> None:
    metrics = make(["f1", "accuracy", "f1"])
    assert metrics.names == ("f1", "accuracy")
    outputs, labels = gf.tensor([[0.0, 1.0], [1.0, 0.0]] * 2), gf.tensor([1] * 4, dtype="int64")
    assert list(metrics.figures([metrics.partial(outputs, labels)]).items()) == [("f1", 2 / 3), ("accuracy", 0.5)]


def test_without_names_every_loss_will_do() -> None:
    metrics = make([], loss=lambda o, t: o)
    assert metrics.partial(gf.zeros((4, 2)), gf.zeros((4, 7, 7))) == ()
    assert metrics.figures([(), ()]) == {}


def test_which_figures_are_better() -> None:
    assert [name for name in METRICS if better(name) < 0] == ["calibration_error", "log_loss", "rmse", "mae"]
    assert better("loss") == -1
    assert set(ON_DEVICE) <= set(METRICS)
    assert set(host_metrics.FIGURES) == set(METRICS) - set(ON_DEVICE)
    with pytest.raises(ValueError, match="unknown metric 'f2'; there are"):
        better("f2")


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    make(["accuracy", "calibration_error"])
    with pytest.raises(ModuleNotFoundError, match=r'the metrics f1 need scikit-learn, from the extra "train" .*; type'):
        make(["accuracy", "calibration_error", "f1"])


# ---------------------------------------------------------------------- undefined figures


def test_classes_without_samples(device: str) -> None:
    outputs, labels = draw((N, 4)), np.arange(N) % 3
    found = figures(CLASSIFICATION, gf.cross_entropy, outputs, labels)
    assert {name for name, figure in found.items() if math.isnan(figure)} == {"auroc", "average_precision"}
    p, label = softmax(outputs), outputs.argmax(1)
    recalls = [(label[labels == c] == c).mean() for c in range(3)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["log_loss"] == pytest.approx(-np.log(p[np.arange(N), labels]).mean())
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(labels, label, average="macro"))


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_alone(only: int, device: str) -> None:
    found = figures(CLASSIFICATION, BINARY, draw((N,)), np.full(N, only))
    assert {name for name, figure in found.items() if math.isnan(figure)} == {"auroc", "average_precision"}
    never = figures(["f1", "precision", "recall"], BINARY, np.full(N, -1.0), np.zeros(N, int))
    assert set(never.values()) == {0.0}


def test_samples_of_weight_zero_do_not_count(device: str) -> None:
    labels, weights = np.arange(N) % 3, (np.arange(N) % 3 > 0).astype("float32")
    found = figures(["auroc", "log_loss"], gf.cross_entropy, draw((N, 3)), labels, weights)
    assert math.isnan(found["auroc"])  # class 0 has no samples
    assert found["log_loss"] > 0
    metrics = Metrics([*CLASSIFICATION], "classes", Batches(draw((4, 2)), np.zeros(4, int), 4))
    nothing = metrics.partial(gf.zeros((4, 2)), gf.zeros(4, "int64"), gf.zeros(4))
    assert all(map(math.isnan, metrics.figures([nothing]).values()))


@pytest.mark.parametrize(("loss", "wrong"), [(gf.cross_entropy, math.inf), (BINARY, math.nan), (gf.mse_loss, math.nan)])
def test_figures_of_outputs_that_are_not_finite_are_nan(loss: Any, wrong: float, device: str) -> None:
    outputs = draw((N, 2))
    outputs[3] = wrong
    targets = np.arange(N) % 2 if loss is gf.cross_entropy else draw((N, 2), 1)
    names = REGRESSION if loss is gf.mse_loss else [name for name in CLASSIFICATION if name != "accuracy"]
    assert all(map(math.isnan, figures(names, loss, outputs, targets).values()))


def test_logits_of_any_size_have_figures(device: str) -> None:
    outputs = np.array([[1e4, -1e4], [-1e4, 1e4], [0, 3e38]], "float32")
    found = figures(["auroc", "log_loss"], gf.cross_entropy, outputs, np.array([0, 1, 1]))
    assert found == pytest.approx({"auroc": 1.0, "log_loss": 0.0}, abs=1e-12)
    assert figures(["auroc", "log_loss"], BINARY, outputs[:, 1], np.array([0, 1, 1])) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("constant", [0.1, -7.0, 1e6])
def test_r2_of_equal_targets_is_that_of_scikit_learn(constant: float, dtype: str, device: str) -> None:
    targets = np.full((N, 2), min(constant, 6e4), dtype)
    assert figures(["r2"], gf.mse_loss, targets, targets) == {"r2": 1.0}
    outputs = targets.copy()
    outputs[:2, 0] = 1
    assert figures(["r2"], gf.mse_loss, outputs, targets) == {"r2": 0.5}  # 0 and 1


def test_r2_of_one_sample_is_undefined(device: str) -> None:
    found = figures(["r2", "rmse"], gf.mse_loss, np.ones((1, 1)), np.zeros((1, 1)))
    assert math.isnan(found["r2"])
    assert found["rmse"] == 1.0


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # NumPy's own, of float32
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_r2_and_rmse_of_values_whose_squares_overflow(wrong: float, device: str) -> None:
    targets = draw((N, 2))
    outputs = targets.copy()
    outputs[3, 1] = wrong
    found = figures(["r2", "rmse"], gf.mse_loss, outputs, targets)
    assert math.isnan(found["r2"])
    assert not math.isfinite(found["rmse"])
    assert figures(["rmse"], gf.mse_loss, 1e30 * targets, -1e30 * targets) == {"rmse": math.inf}
    assert math.isnan(figures(["r2"], gf.mse_loss, 1e30 * targets, 1e30 * targets)["r2"])


# ---------------------------------------------------------------------- sums


def test_r2_keeps_its_digits_far_from_zero(device: str) -> None:
    targets = (1e4 + draw((20_000, 1))).astype("float32")
    outputs = targets + draw((20_000, 1), 1)
    expected = sklearn_metrics.r2_score(targets.astype("float64"), outputs.astype("float64"))
    assert figures(["r2"], gf.mse_loss, outputs, targets, size=999)["r2"] == pytest.approx(expected, abs=1e-5)
    shuffled = np.sort(targets, axis=0)  # the first targets are no sample of all
    found = figures(["r2"], gf.mse_loss, shuffled + draw((20_000, 1), 1), shuffled, size=999)
    assert found["r2"] == pytest.approx(expected, abs=0.05)


def test_counts_are_exact_beyond_float32_and_float16(device: str) -> None:
    if gf.get_backend(device).supports("float16"):
        outputs = np.zeros((5000, 2), "float16")
        outputs[1:, 1] = 1
        found = figures(["accuracy"], gf.cross_entropy, outputs, np.ones(5000, int), size=4999)
        assert found == {"accuracy": 4999 / 5000}
    metrics = make(["accuracy"])
    (right,) = metrics.partial(gf.zeros((2, 2)), gf.tensor([0, 1], dtype="int64"))
    assert right.tolist() == [True, False]
    big = float(1 << 24)
    partials = [(gf.tensor([n]), gf.tensor([n])) for n in (big, 1.0, 1.0, 1.0)]  # weights, and those of the right ones
    partials.append((gf.tensor([1.0]), gf.tensor([0.0])))
    assert metrics.figures(partials) == {"accuracy": (big + 3) / (big + 4)}


def test_a_device_without_float64_has_figures_too(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets = draw((N, 3)), draw((N, 3), 1)
    expected = figures(REGRESSION, gf.mse_loss, outputs, targets)
    backend = gf.get_backend("cpu")
    monkeypatch.setattr(type(backend), "supports", lambda self, dtype: dtype != "float64")
    assert figures(REGRESSION, gf.mse_loss, outputs, targets) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [gf.cross_entropy, gf.mse_loss])
def test_partials_may_be_joined(loss: Any, weights: Any, device: str) -> None:
    """As they are when they were saved within an epoch: the figures are equal bit for bit."""
    names = CLASSIFICATION if loss is gf.cross_entropy else REGRESSION
    targets = draw((N, 3), 1)
    wanted = targets.argmax(1) if loss is gf.cross_entropy else targets
    batches = Batches(draw((N, 3)), wanted, 7, gf.Generator(3), weights=weights)
    metrics = Metrics(names, loss, batches)
    partials = [metrics.partial(*batch) for batch in batches]
    joined = tuple(gf.tensor(gf.concat(parts).numpy()) for parts in zip(*partials[:8], strict=True))
    found = metrics.figures(partials)
    assert metrics.figures([joined, *partials[8:]]) == found
    split = [gf.split(x, len(x)) for x in joined]
    if all(len(parts) == 8 for parts in split):
        assert metrics.figures([*zip(*split, strict=True), *partials[8:]]) == found


@pytest.mark.parametrize("names", [["accuracy"], CLASSIFICATION, ["r2", "rmse"], REGRESSION])
def test_nothing_is_read_before_the_end_and_then_once(names: list[str], weights: Any, device: str) -> None:
    values = names[0] in REGRESSION
    targets = draw((N, 3), 1)
    batches = Batches(draw((N, 3)), targets if values else targets.argmax(1), 16, weights=weights)
    with forbid_sync():
        metrics = Metrics(names, gf.mse_loss if values else gf.cross_entropy, batches)
        partials = [metrics.partial(*batch) for batch in batches]
    with count_transfers() as transfers:
        metrics.figures(partials)
    assert transfers.to_host == 1


@pytest.mark.parametrize("loss", [gf.cross_entropy, BINARY, gf.mse_loss])
def test_partials_come_from_a_captured_step(loss: Any, weights: Any, device: str) -> None:
    names = REGRESSION if loss is gf.mse_loss else CLASSIFICATION
    targets = draw((N, 3), 1)
    wanted = targets.argmax(1) if loss is gf.cross_entropy else targets
    batches = Batches(draw((N, 3)), wanted, 15, shuffle=False, weights=weights)
    metrics = Metrics(names, loss, batches)

    def make_step() -> Callable[..., tuple[gf.Tensor, ...]]:
        gf.manual_seed(0)
        model = nn.Linear(3, 3)
        optimizer = gf.optim.SGD(model.parameters(), lr=0.1)

        def step(inputs: gf.Tensor, targets: gf.Tensor, *weights: gf.Tensor) -> tuple[gf.Tensor, ...]:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss(outputs, targets).backward()
            optimizer.step()
            return metrics.partial(outputs, targets, *weights)

        return step

    plain, captured = make_step(), gf.capture(make_step())
    expected = metrics.figures([plain(*batch) for batch in batches])
    assert metrics.figures([captured(*batch) for batch in batches]) == expected
    assert replays(captured.status)  # type: ignore[attr-defined]


def test_data_kept_on_the_host(device: str) -> None:
    outputs, targets = draw((N, 3)), draw((N, 3), 1)
    batches = Batches(outputs, targets, 16, shuffle=False, keep="host")
    metrics = Metrics(REGRESSION, gf.mse_loss, batches)
    found = metrics.figures([metrics.partial(*batch) for batch in batches])
    assert found == figures(REGRESSION, gf.mse_loss, outputs, targets)


def test_weights_of_another_shape_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"one weight for each of the 4 samples; got shape \(4, 1\)"):
        make(["accuracy"]).partial(gf.zeros((4, 2)), gf.zeros(4, "int64"), gf.ones((4, 1)))


# ---------------------------------------------------------------------- predictions on the host


def test_predictions_have_the_figures_of_the_outputs(weights: Any) -> None:
    logits, labels = draw((N, 3)), np.arange(N) % 3
    found = figures_of(CLASSIFICATION, "classes", softmax(logits), labels, weights)
    assert found == pytest.approx(figures(CLASSIFICATION, gf.cross_entropy, logits, labels, weights), rel=1e-6)
    rows = np.eye(3)[labels]
    assert figures_of(CLASSIFICATION, "probabilities", softmax(logits), rows, weights) == found
    p = 1 / (1 + np.exp(-logits.astype("float64")))
    found = figures_of(CLASSIFICATION, "binary", p, logits > labels[:, None], weights)
    expected = figures(CLASSIFICATION, BINARY, logits, logits > labels[:, None], weights)
    assert found == pytest.approx(expected, rel=1e-6)
    values = draw((N, 3), 1)
    assert figures_of(REGRESSION, "values", logits, values, weights) == pytest.approx(
        figures(REGRESSION, gf.mse_loss, logits, values, weights), rel=1e-5
    )


def test_probabilities_of_zero_and_one() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    names = ["accuracy", "auroc", "calibration_error", "log_loss"]
    expected = [2 / 3, 0.75, 1 / 3, -math.log(np.finfo(float).eps) / 3]
    assert list(figures_of(names, "classes", certain, [0, 1, 1]).values()) == pytest.approx(expected)
    assert list(figures_of(names, "binary", certain[:, 1], [0, 1, 1]).values()) == pytest.approx(expected)


def test_predictions_that_are_no_probabilities_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"probabilities must be in \[0, 1\]; got -0.5 to 2.0"):
        figures_of(["accuracy"], "classes", [[2.0, -0.5]], [0])
    with pytest.raises(ValueError, match=r"labels of 2 classes must be in \[0, 2\); got 0 to 2"):
        figures_of(["f1"], "classes", [[0.5, 0.5], [0.5, 0.5]], [0, 2])
    with pytest.raises(TypeError, match="classes needs integer labels as targets; got float64"):
        figures_of(["f1"], "classes", [[0.5, 0.5]], [0.5])
