"""Plots for notebooks, as matplotlib figures: learning curves of a training, decision boundaries of a model.

They use matplotlib's default settings and open no window: a notebook shows the figure, and `figure.savefig(path)`
writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import gradflow as gf
from gradflow.environment import imported_extra
from gradflow.training.curves import Panel, own_settings, panels, png, run_figure
from gradflow.training.epoch import Epoch
from gradflow.training.evaluation import evaluating, naming

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["boundary", "epochs"]

_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c7a00", "#5a6272")
_MARKERS = "os^DvPX*"
_MOST_POINTS = 2000
_GRID = 240
_BATCH = 1 << 13  # points of the grid that are predicted at once


def epochs(epochs: Iterable[Epoch], title: str = "") -> Figure:
    """Return the learning curves of a training: the loss, each metric and the learning rate by epoch.

    epochs: such as `trainer.history`, or a list of what `trainer.epochs` yielded.
    title: above all plots (default: none).

    Training is dashed, validation solid; a circle marks the best epoch. Raises TypeError for anything but epochs,
    ValueError for none, ModuleNotFoundError without matplotlib, of the extra `train`.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> x = gf.random.normal((64, 2), generator=gf.Generator(0))
    >>> model = gf.nn.MLP([2, 4, 1])
    >>> optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = gf.training.Trainer(model, gf.mse_loss, optimizer, Batches(x, x[:, :1], 16))
    >>> figure = gf.plot.epochs(trainer.epochs(5))
    >>> [axes.get_title() for axes in figure.axes]
    ['loss', 'learning rate']
    """
    imported_extra("matplotlib", "matplotlib", "train", "gf.plot")
    if not isinstance(epochs, Iterable):
        hint = ": pass trainer.history" if hasattr(epochs, "history") else ""
        raise TypeError(f"plot.epochs takes a list of epochs; got {type(epochs).__name__}{hint}")
    history = list(epochs)
    wrong = [e for e in history if not isinstance(e, Epoch)]
    if wrong:
        raise TypeError(f"plot.epochs takes epochs, such as trainer.history; got {type(wrong[0]).__name__}")
    if not history:
        raise ValueError("plot.epochs needs at least one epoch; got none: train first")
    with own_settings():
        figure = run_figure([*panels([history]), Panel.of_rates(history)], title)
        figure.axes[-1].set_ylim(bottom=0.0)
        return _shown(figure)


def boundary(model: Any, x: Any, y: Any) -> Figure:
    """Return a picture of what a model of two inputs predicts in the plane, with samples over it.

    model: a module or another function of a tensor of shape (n, 2), on any device; or a `Predictor`, which takes inputs
        as they are in the data. A module is in evaluation mode meanwhile, and each of its modules then in its own.
    x: the inputs of the samples, (n, 2): a tensor, an array or lists.
    y: their targets, (n,) or (n, 1). Classes: integers from 0 for outputs of shape (n, classes); 0 and 1, or -1 and 1,
        for one logit per sample; labels as they are in the data for a `Predictor`. Other numbers are the values of a
        regression.

    Classes have colors that color-blind people can tell apart, and markers of their own. The paler a region, the less
    certain the model; lines are where the most probable class changes. Of more than 2000 samples, it shows some, evenly
    spaced.

    Raises ValueError for inputs other than two, targets that do not fit, and outputs that are not finite; TypeError if
    `model` is not a model or does not return a tensor; ModuleNotFoundError without matplotlib, of the extra `train`.

    >>> import gradflow as gf
    >>> x = gf.random.normal((50, 2), generator=gf.Generator(0))
    >>> figure = gf.plot.boundary(gf.nn.Linear(2, 3), x, [0, 1] * 25)
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['0', '1', '2']
    """
    imported_extra("matplotlib", "matplotlib", "train", "gf.plot")
    if isinstance(model, type):
        raise TypeError(f"boundary takes a model; got the class {model.__name__}: create one, {model.__name__}(...)")
    if not callable(model) and not hasattr(model, "predict_proba"):
        raise TypeError(f"boundary takes a module, a function of a tensor or a Predictor; got {type(model).__name__}")
    points, targets = _array("x", x), _array("y", y)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"boundary draws models of two inputs: x must have the shape (n, 2); got {points.shape}")
    if targets.shape not in ((len(points),), (len(points), 1)):
        raise ValueError(f"y must have one target for each of {len(points)} samples; got the shape {targets.shape}")
    if not np.isfinite(points).all():
        raise ValueError("x has a number that is not finite")
    targets = targets.reshape(-1)
    low, high = points.min(axis=0), points.max(axis=0)
    pad = np.where(high > low, (high - low) * 0.08, 0.5)
    columns, rows = (np.linspace(a, b, _GRID) for a, b in zip(low - pad, high + pad, strict=True))
    grid = np.stack([np.tile(columns, _GRID), np.repeat(rows, _GRID)], axis=1)
    predict, names, features = (
        _predictor(model) if hasattr(model, "predict_proba") else (partial(_outputs, model), (), ())
    )
    outputs = np.concatenate([predict(grid[i : i + _BATCH]) for i in range(0, len(grid), _BATCH)])
    outputs = outputs.reshape(len(grid), -1).astype(np.float64)
    if not np.isfinite(outputs).all():
        at = grid[int((~np.isfinite(outputs).all(axis=1)).argmax())]
        raise ValueError(f"the outputs of the model are not finite, such as at ({at[0]:.4g}, {at[1]:.4g})")
    probabilities, classes = _probabilities(outputs, targets, names)
    kept = slice(None, None, -(-len(points) // _MOST_POINTS))
    with own_settings():
        figure, axes = _empty(features)
        if probabilities is None:
            _draw_values(figure, axes, columns, rows, outputs[:, 0].reshape(_GRID, _GRID), points[kept], targets[kept])
        else:
            codes = np.array([classes.index(t) for t in targets.tolist()])
            _draw_classes(axes, columns, rows, probabilities, list(map(str, classes)), points[kept], codes[kept])
        axes.set_xlim(columns[0], columns[-1])
        axes.set_ylim(rows[0], rows[-1])
        return _shown(figure)


# ---------------------------------------------------------------------- predictions


def _array(name: str, values: Any) -> Any:
    try:
        found = values.detach().numpy() if isinstance(values, gf.Tensor) else np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is not an array: {error}") from None
    if name == "y":
        return found
    if found.dtype.kind not in "fiub":
        raise ValueError(f"x must have numbers; got an array of {found.dtype}")
    return found.astype(np.float64)


def _outputs(model: Callable[..., Any], points: Any) -> Any:
    """What a function of tensors returns for points, as an array."""
    first = next(iter(model.parameters()), None) if isinstance(model, gf.nn.Module) else None
    device, dtype = (None, "float32") if first is None else (first.device, first.dtype)
    mode = evaluating(model) if isinstance(model, gf.nn.Module) else gf.no_grad()
    with mode, naming("the model does not take two inputs"):
        out = model(gf.tensor(points, dtype, device))
    if not isinstance(out, gf.Tensor):
        raise TypeError(f"the model must return a tensor; got {type(out).__name__}")
    if out.ndim not in (1, 2) or len(out) != len(points):
        raise ValueError(f"the model must return one row for each sample; got {out.shape} for {len(points)} samples")
    return gf.astype(out, "float32").numpy() if out.dtype.itemsize < 4 else out.numpy()


def _predictor(model: Any) -> tuple[Callable[[Any], Any], tuple[Any, ...], tuple[str, ...]]:
    """How a `Predictor` predicts, its labels, and the names of its features."""
    if model.sizes[0] != 2:
        raise ValueError(f"boundary draws models of two inputs; this one has {model.sizes[0]}")
    return (model.predict_proba if model.classes else model.predict), tuple(model.labels), model.features


def _probabilities(outputs: Any, targets: Any, labels: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The probability of each class at each point of the grid, and the classes; None and [] for a regression."""
    n, present = outputs.shape[1], set(targets.tolist())
    if labels:
        unknown = [t for t in present if t not in labels]
        if unknown:
            raise ValueError(f"y has {unknown[0]!r}, which is no label of the model; there are {list(labels)}")
        return outputs, list(labels)
    if n > 1:
        if targets.dtype.kind not in "iub" or not present <= set(range(n)):
            raise ValueError(
                f"y must have integers in [0, {n}) for a model with {n} outputs; got {targets[:3].tolist()}"
            )
        scores = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True), list(range(n))
    for pair in ((0, 1), (-1, 1)):
        if present <= set(pair):
            second = 0.5 + 0.5 * np.tanh(outputs / 2)  # the sigmoid
            return np.concatenate([1 - second, second], axis=1), list(pair)
    if targets.dtype.kind not in "iuf":
        raise ValueError(f"y must have numbers for a model with one output; got {targets[:3].tolist()}")
    return None, []


# ---------------------------------------------------------------------- drawing


def _empty(features: Sequence[str]) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    across, up = features or ("first input", "second input")
    axes.set_xlabel(across, parse_math=False)
    axes.set_ylabel(up, parse_math=False)
    return figure, axes


def _draw_classes(
    axes: Any, columns: Any, rows: Any, probabilities: Any, names: Sequence[str], points: Any, codes: Any
) -> None:
    from matplotlib.colors import to_rgb

    n = len(names)
    colors = np.array([to_rgb(_COLORS[c % len(_COLORS)]) for c in range(n)])
    best, winner = probabilities.max(axis=1), probabilities.argmax(axis=1)
    strength = 0.08 + 0.42 * np.clip((best - 1 / n) / (1 - 1 / n), 0, 1)[:, None]
    image = (1 - strength) + strength * colors[winner]
    extent = (columns[0], columns[-1], rows[0], rows[-1])
    axes.imshow(image.reshape(_GRID, _GRID, 3), extent=extent, origin="lower", aspect="auto", interpolation="bilinear")
    for c in range(n if n > 2 else 1):
        margin = probabilities[:, c] - np.delete(probabilities, c, axis=1).max(axis=1)
        if margin.min() < 0 < margin.max():
            axes.contour(columns, rows, margin.reshape(_GRID, _GRID), levels=[0.0], colors="#16191f", linewidths=1.2)
    for c, name in enumerate(names):
        own = points[codes == c]
        axes.scatter(
            own[:, 0], own[:, 1], s=26, color=[_COLORS[c % len(_COLORS)]], marker=_MARKERS[c % len(_MARKERS)],
            edgecolors="white", linewidths=0.7, label=name.lstrip("_") or "_", zorder=3,
        )  # fmt: skip
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, ncols=1 + (n - 1) // 16)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_values(figure: Any, axes: Any, columns: Any, rows: Any, values: Any, points: Any, targets: Any) -> None:
    from matplotlib.colors import Normalize

    known = targets[np.isfinite(targets)] if targets.dtype.kind == "f" else targets
    norm = Normalize(min(values.min(), known.min(initial=np.inf)), max(values.max(), known.max(initial=-np.inf)))
    shades = axes.pcolormesh(columns, rows, values, norm=norm, cmap="viridis", shading="gouraud", rasterized=True)
    if values.min() < values.max():
        lines = axes.contour(columns, rows, values, levels=8, colors="white", linewidths=0.7, alpha=0.8)
        axes.clabel(lines, fontsize=7)
    axes.scatter(
        points[:, 0], points[:, 1], s=30, c=targets, norm=norm, cmap="viridis", edgecolors="white", linewidths=1.0,
        zorder=3,
    )  # fmt: skip
    figure.colorbar(shades, ax=axes, label="value (areas: of the model; points: of the samples)")


def _shown(figure: Any) -> Figure:
    """The figure, which a notebook shows also where pyplot has not been imported."""

    def image() -> bytes:
        with own_settings():
            return png(figure)

    figure._repr_png_ = image
    shown: Figure = figure
    return shown
