"""Plots for notebooks: what their lines, regions and points say, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.data.scaling import Standardizer
from gradflow.training import Predictor
from tests.test_curves import history, lines

pytest.importorskip("matplotlib")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2)).astype(np.float32)


def linear(weight: Any, bias: Any) -> nn.Linear:
    """A layer with these values on the current device."""
    layer = nn.Linear(2, len(bias))
    layer.load_state_dict({"weight": np.array(weight, np.float32), "bias": np.array(bias, np.float32)})
    return layer


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def color_at(figure: Any, x: float, y: float) -> Any:
    """The colour of the region at a point."""
    (image,) = figure.axes[0].get_images()
    left, right, bottom, top = image.get_extent()
    pixels = image.get_array()
    row, column = (y - bottom) / (top - bottom), (x - left) / (right - left)
    return pixels[round(row * (len(pixels) - 1)), round(column * (pixels.shape[1] - 1))]


def edges_of(figure: Any) -> Any:
    """All points on the lines between regions."""
    from matplotlib.contour import ContourSet

    found = [
        s for c in figure.axes[0].collections if isinstance(c, ContourSet) for p in c.get_paths() for s in p.vertices
    ]
    return np.array(found)


# ---------------------------------------------------------------------- learning curves


def test_epochs_draws_the_loss_each_metric_and_the_rate() -> None:
    figure = gf.plot.epochs(history([0.5, 0.7, 0.6], [1.0, 0.5, 0.8], auroc=0.9), "my run")
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy (%)", "AUROC", "learning rate"]
    loss, accuracy, _, rate = figure.axes
    assert list(lines(loss, "validation")[0].get_ydata()) == [1.0, 0.5, 0.8]
    assert list(lines(loss, "training")[0].get_ydata()) == pytest.approx([0.9, 0.45, 0.72])
    assert list(lines(accuracy, "validation")[0].get_ydata()) == pytest.approx([50, 70, 60])
    assert list(rate.get_lines()[0].get_ydata()) == [0.1, 0.1, 0.1]
    assert rate.get_ylim()[0] == 0.0
    assert figure.get_suptitle() == "my run"


def test_epochs_takes_what_a_loop_yields(tmp_path: Path) -> None:
    figure = gf.plot.epochs(epoch for epoch in history([0.5], validated=False))
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy (%)", "learning rate"]
    figure.savefig(tmp_path / "epochs.png")
    assert (tmp_path / "epochs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([], ValueError, "at least one epoch; got none"),
        ([1, 2], TypeError, "takes epochs, such as trainer.history; got int"),
        (5, TypeError, "takes a list of epochs; got int"),
    ],
)
def test_epochs_refuses_other_things(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        gf.plot.epochs(given)


def test_a_trainer_has_a_history() -> None:
    from tests.trainers import make

    with pytest.raises(TypeError, match=r"got Trainer: pass trainer\.history"):
        gf.plot.epochs(make())  # type: ignore[arg-type]


# ---------------------------------------------------------------------- boundaries


@pytest.mark.parametrize("targets", [np.arange(60) % 2, (np.arange(60) % 2)[:, None].astype(np.float32),
                                     np.arange(60) % 2 * 2 - 1, np.arange(60) % 2 == 1])  # fmt: skip
def test_one_logit_splits_the_plane_where_it_is_0(device: str, targets: Any) -> None:
    with gf.use_device(device):
        figure = gf.plot.boundary(linear([[4.0, 0.0]], [2.0]), gf.tensor(X), targets)  # 0 where x = -0.5
    assert legend(figure) == (["-1", "1"] if targets.min() < 0 else ["0", "1"])
    assert np.allclose(edges_of(figure)[:, 0], -0.5, atol=0.03)
    left, right = color_at(figure, -1.5, 0), color_at(figure, 1.5, 0)
    assert left[2] > left[0] + 0.2  # blue
    assert right[0] > right[2] + 0.2  # orange
    assert min(color_at(figure, -0.5, 0)) > 0.9  # pale where it is uncertain


def test_several_classes_have_regions_markers_and_names(device: str) -> None:
    targets = np.argmax(X @ np.array([[1, -1, 0], [0, 0, 2]]), axis=1)
    with gf.use_device(device):
        figure = gf.plot.boundary(linear([[1, 0], [-1, 0], [0, 2]], [0, 0, 0]), X, targets)
    assert legend(figure) == ["0", "1", "2"]
    scatters = [c for c in figure.axes[0].collections if c.get_label() in ("0", "1", "2")]
    assert [len(c.get_offsets()) for c in scatters] == np.bincount(targets).tolist()
    shapes = {c.get_paths()[0].vertices.tobytes() for c in scatters}
    assert len(shapes) == 3
    blue, orange, green = (color_at(figure, *at) for at in ((1.8, -1.5), (-1.8, -1.5), (0, 1.5)))
    assert np.argmax(blue) == 2
    assert np.argmax(orange) == 0
    assert np.argmax(green) == 1


def test_a_predictor_takes_inputs_and_labels_as_they_are_in_the_data() -> None:
    with gf.use_device("cpu"):
        model = nn.MLP([2, 2], generator=gf.Generator(0))
    model[0].load_state_dict({"weight": np.array([[-4, 0], [4, 0]], np.float32), "bias": np.zeros(2, np.float32)})
    scale = Standardizer(np.array([100.0, 0.0]), np.array([50.0, 1.0]), limit=3.0)
    predictor = Predictor([model], scale, classes=["cat", "dog"], features=["width", "height"])
    x = X * [50, 1] + [100, 0]
    y = np.where(x[:, 0] > 100, "dog", "cat")
    figure = gf.plot.boundary(predictor, x, y)
    assert legend(figure) == ["cat", "dog"]
    assert np.allclose(edges_of(figure)[:, 0], 100, atol=1.5)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("width", "height")
    with pytest.raises(ValueError, match=r"y has 'bird', which is no label of the model; there are \['cat', 'dog'\]"):
        gf.plot.boundary(predictor, x, ["bird"] * 60)


def test_a_regression_is_drawn_with_its_values(device: str) -> None:
    with gf.use_device(device):
        model = linear([[1.0, 2.0]], [3.0])
        figure = gf.plot.boundary(model, X, X @ [1.0, 2.0] + 3)
    axes, bar = figure.axes
    mesh = next(c for c in axes.collections if type(c).__name__ == "QuadMesh")
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    values = np.asarray(mesh.get_array()).reshape(240, 240)
    assert values[0, 0] == pytest.approx(left + 2 * bottom + 3, rel=1e-4)
    assert values[-1, -1] == pytest.approx(right + 2 * top + 3, rel=1e-4)
    assert values[0, -1] == pytest.approx(right + 2 * bottom + 3, rel=1e-4, abs=1e-4)
    assert bar.get_ylabel().startswith("value")


def test_a_function_will_do_and_modules_keep_their_modes() -> None:
    figure = gf.plot.boundary(lambda x: gf.stack([x[:, 0], -x[:, 0]], axis=1), X, np.arange(60) % 2)
    assert np.allclose(edges_of(figure)[:, 0], 0, atol=0.03)
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    model[1].train(False)
    gf.plot.boundary(model, X, np.arange(60) % 2)
    assert [m.training for m in model.modules()] == [True, True, False, True]


def test_of_many_samples_some_are_drawn() -> None:
    x = RNG.normal(size=(9000, 2))
    figure = gf.plot.boundary(nn.Linear(2, 2), x, np.arange(9000) % 2)
    shown = sum(len(c.get_offsets()) for c in figure.axes[0].collections if c.get_label() in "01")
    assert 1000 < shown <= 2000


def test_one_class_and_one_sample_have_no_boundary() -> None:
    figure = gf.plot.boundary(linear([[0.0, 0.0]], [1.0]), [[1.0, 2.0]], [1])
    assert edges_of(figure).size == 0


@pytest.mark.parametrize(
    ("model", "x", "y", "words"),
    [
        (nn.Linear(3, 2), np.ones((5, 3)), [0] * 5, r"x must have the shape \(n, 2\); got \(5, 3\)"),
        (nn.Linear(3, 2), X, [0] * 60, "the model does not take two inputs: linear: "),
        (nn.Linear(2, 2), [1.0, 2.0], [0], r"got \(2,\)"),
        (nn.Linear(2, 2), np.ones((0, 2)), [], r"got \(0, 2\)"),
        (nn.Linear(2, 2), X, [0] * 59, r"one target for each of 60 samples; got the shape \(59,\)"),
        (nn.Linear(2, 2), X, [2] * 60, r"integers in \[0, 2\) for a model with 2 outputs; got \[2, 2, 2\]"),
        (nn.Linear(2, 2), X, [0.5] * 60, r"integers in \[0, 2\)"),
        (nn.Linear(2, 1), X, ["a"] * 60, "numbers for a model with one output"),
        (nn.Linear(2, 1), [[1.0, np.nan]], [0], "x has a number that is not finite"),
        (nn.Linear(2, 1), [["a", "b"]], [0], "x must have numbers; got an array of <U1"),
        (nn.Linear(2, 1), [[None, {}]], [0], "x must have numbers; got an array of object"),
        (nn.Linear(2, 1), [[1.0], [2.0, 3.0]], [0], "x is not an array"),
        (lambda x: gf.log(x[:, 0]), np.ones((5, 2)) - 1, [0] * 5, r"not finite, such as at \(-0.5, -0.5\)"),
        (lambda x: gf.sum(x), X, [0] * 60, "one row for each sample"),
    ],
)  # fmt: skip
def test_boundary_refuses_what_it_cannot_draw(model: Any, x: Any, y: Any, words: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=words):
        gf.plot.boundary(model, x, y)


def test_boundary_needs_a_function_of_tensors() -> None:
    with pytest.raises(TypeError, match="must return a tensor; got ndarray"):
        gf.plot.boundary(lambda x: x.numpy(), X, [0] * 60)
    with pytest.raises(TypeError, match=r"got the class MLP: create one, MLP\(...\)"):
        gf.plot.boundary(nn.MLP, X, [0] * 60)
    with pytest.raises(TypeError, match="a function of a tensor or a Predictor; got NoneType"):
        gf.plot.boundary(None, X, [0] * 60)


def test_a_predictor_of_more_inputs_is_refused() -> None:
    with gf.use_device("cpu"):
        model = nn.MLP([3, 2])
    predictor = Predictor([model], Standardizer(np.zeros(3), np.ones(3), limit=3.0), classes=["a", "b"])
    with pytest.raises(ValueError, match="models of two inputs; this one has 3"):
        gf.plot.boundary(predictor, X, ["a"] * 60)


# ---------------------------------------------------------------------- the module


def test_a_notebook_shows_the_figure() -> None:
    assert gf.plot.epochs(history([0.5]))._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_plot_is_there_and_imported_when_it_is_used() -> None:
    code = """
import sys, gradflow as gf
assert "plot" in dir(gf) and "gradflow.plot" not in sys.modules and "matplotlib" not in sys.modules
from gradflow import plot
assert gf.plot is plot and "matplotlib" not in sys.modules
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
for call in (lambda: plot.epochs([]), lambda: plot.boundary(None, None, None)):
    try:
        call()
    except ModuleNotFoundError as error:
        assert str(error).startswith('gf.plot needs matplotlib from the extra "train" of gradflow-autograd;'), error
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
