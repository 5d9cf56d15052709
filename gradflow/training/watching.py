"""Watching a model's layers while it trains: `Trainer.watch`.

What is watched is computed on the device around the last step of an epoch, and read at the end of the epoch, at once.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.autograd.grad_mode import current_observer
from gradflow.autograd.observers import Forwarder, observe
from gradflow.backend import Array, Backend
from gradflow.data import Batches
from gradflow.files import FilePath, write_file
from gradflow.training.evaluation import evaluating, without_draws
from gradflow.training.layers import EDGES, Snapshot, Spread, histograms
from gradflow.training.progress import damaged, listed, tensor_of
from gradflow.training.report import layers_html
from gradflow.training.step import is_own_model

_VALUES = 4096
"""How many values of a parameter, and of its gradient, a histogram is made of."""
_SAMPLES = 1024
"""How many samples say which units are dead."""
_LEAST = float(np.finfo(np.float32).tiny)
"""What the numbers of an array are divided by at least, before they are squared."""
_KEPT = 40
"""How many snapshots keep their histograms, at most; of more, every second, fourth, ... does, and the last."""


class Watch:
    """What `Trainer.watch` returns: a sequence of the `Snapshot`s so far; `watch[-1]` is that of the last epoch.

    `print(watch)` shows the last one as a table, `watch.save(path)` writes a page with all pictures, and a notebook
    shows that page.

    Histograms of long runs are thinned out: at most 40 snapshots have them, evenly spaced, and the last.
    """

    def __init__(self, model: gf.nn.Module, batches: Batches) -> None:
        self.every = 1
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._backend: Backend = gf.get_backend(batches.device)
        inputs = batches.inputs[:: -(-len(batches.inputs) // _SAMPLES)]
        self._inputs = inputs if isinstance(inputs, gf.Tensor) else gf.tensor(inputs, device=batches.device)
        self._pass = len(self._inputs) if is_own_model(model) else batches.batch_size  # a user's may take no more
        self._snapshots: list[Snapshot] = []
        self._full: list[int] = []  # the snapshots that have histograms
        self._before: list[Array] = []  # the parameters before the step that is being watched
        self._waiting: gf.Tensor | None = None  # what is known of that step, on the device

    def __len__(self) -> int:
        return len(self._snapshots)

    def __getitem__(self, index: int) -> Snapshot:
        return self._snapshots[index]

    def __iter__(self) -> Iterator[Snapshot]:
        return iter([*self._snapshots])

    def __str__(self) -> str:
        return str(self._snapshots[-1]) if self._snapshots else repr(self)

    def __repr__(self) -> str:
        n = len(self._snapshots)
        return f"<Watch of {len(self._parameters)} parameters, {n} snapshot{'' if n == 1 else 's'}>"

    def save(self, path: FilePath) -> None:
        """Write a page with the pictures of all snapshots, HTML that loads nothing, as in the report of a run.

        Raises ValueError for a path that does not end in .html, RuntimeError if there is no snapshot yet, OSError where
        the file cannot be written.
        """
        if not str(path).lower().endswith((".html", ".htm")):
            raise ValueError(f"the pictures of a watch are a page: save them as .html; got {str(path)!r}")
        if not self._snapshots:
            raise RuntimeError("nothing is watched yet: train for an epoch, then save the pictures of its layers")
        write_file(path, layers_html(self._snapshots).encode())

    def _repr_html_(self) -> str | None:
        """The page, for notebooks."""
        if not self._snapshots:
            return None
        page = escape(layers_html(self._snapshots))
        style = "width: 100%; height: 40rem; border: 0"
        return f'<iframe srcdoc="{page}" title="Inside the network" style="{style}"></iframe>'

    # ------------------------------------------------------------------ for the trainer

    def before_step(self) -> None:
        """Keep the weights before the step that is watched."""
        self._before = [self._backend.copy(p.array) for p in self._parameters.values()]

    def after_step(self) -> None:
        """Compute what is known of the step, which stays on the device."""
        F = self._backend
        kind = F.double if any(p.array.dtype == F.double for p in self._parameters.values()) else F.single
        samples, sizes = [], []
        with np.errstate(all="ignore"):
            for p, before in zip(self._parameters.values(), self._before, strict=True):
                leaf: Any = p._node
                gradient = None if leaf is None else leaf.array
                if gradient is None:
                    gradient = F.full(p.shape, math.nan, dtype=F.single)
                samples += [_some(F, p.array, kind), _some(F, gradient, kind)]
                for x in (p.array, gradient, before, F.subtract(p.array, before)):
                    sizes += _size(F, x, kind)
            self._waiting = gf.Tensor(F.concat([*samples, F.stack(sizes)]), F)
        self._before = []

    def finish_epoch(self, epoch: int, step: int, learning_rate: float) -> None:
        """Read what is known of the epoch's last step, if it was watched."""
        if self._waiting is None:
            return
        dead = contextvars.copy_context().run(self._dead)  # also an interrupt leaves no mode set
        F, n, waiting = self._backend, len(self._parameters), self._waiting.array
        if dead:
            waiting = F.concat([waiting, F.astype(F.stack([*dead.values()]), waiting.dtype)])
        values: Any = F.to_host(waiting)
        values, sizes, shares = np.split(values, [len(values) - len(dead) - 8 * n, len(values) - len(dead)])
        with np.errstate(all="ignore"):
            largest, means = sizes.astype(np.float64).reshape(n, 4, 2).transpose(2, 1, 0)
            weight, gradient, before, change = largest * np.sqrt(means)
            ratios = np.where(change == 0.0, 0.0, change / before).tolist()
        counts = histograms(values, [_sampled(p) for p in self._parameters.values() for _ in range(2)])
        self._waiting = None
        self._add(
            Snapshot(
                epoch,
                step,
                learning_rate,
                _spreads(self._parameters, weight, counts[::2]),
                _spreads(self._parameters, gradient, counts[1::2]),
                dict(zip(self._parameters, ratios, strict=True)),
                dict(zip(dead, shares.tolist(), strict=True)),
            )
        )

    def _dead(self) -> dict[str, Array]:
        """The share of dead units of each layer with rectified units, on the device."""
        F, size = self._backend, self._pass
        dead: dict[str, Array] = {}
        for start in range(0, len(self._inputs), size):
            seen = _Rectified(self._model)
            with without_draws(self._model), evaluating(self._model), observe(seen), np.errstate(all="ignore"):
                self._model(gf.Tensor(F.getitem(self._inputs.array, slice(start, start + size)), F))
            dead = {k: F.logical_and(dead[k], units) if k in dead else units for k, units in seen.dead.items()}
        return {name: F.mean(F.astype(units, F.single)) for name, units in dead.items()}

    def _add(self, snapshot: Snapshot) -> None:
        snapshots, step = self._snapshots, 1
        self._full.append(len(snapshots))
        snapshots.append(snapshot)
        while len(snapshots) > step * _KEPT:
            step *= 2
        for i in self._full[:-1]:
            if i % step:
                s = snapshots[i]
                snapshots[i] = replace(s, weights=_bare(s.weights), gradients=_bare(s.gradients))
        self._full = [i for i in self._full if i % step == 0 or i == len(snapshots) - 1]

    # ------------------------------------------------------------------ saved states

    def tree(self) -> dict[str, Any]:
        """A tree for `gradflow.save`."""
        snapshots = self._snapshots
        names = list(self._parameters)
        dead = list(dict.fromkeys(name for s in snapshots for name in s.dead))
        shares = [[s.dead.get(k, math.nan) for k in dead] for s in snapshots]
        figures = [[(s.weights[k].rms, s.gradients[k].rms, s.ratios[k]) for k in names] for s in snapshots]
        full = [snapshots[i] for i in self._full]
        counts = [[(s.weights[k].counts, s.gradients[k].counts) for k in names] for s in full]
        return {
            "every": self.every,
            "epochs": [[s.epoch, s.step, s.learning_rate] for s in snapshots],
            "figures": _tensor(figures, np.float64, (len(snapshots), len(names), 3)),
            "rectified": dead,
            "dead": _tensor(shares, np.float64, (len(snapshots), len(dead))),
            "with_histograms": [*self._full],
            "histograms": _tensor(counts, np.uint16, (len(full), len(names), 2, len(EDGES) - 1)),
            "waiting": self._waiting,
        }

    def clear(self) -> None:
        """Forget what was watched."""
        self._snapshots, self._full, self._before, self._waiting = [], [], [], None

    def loader(self, tree: Mapping[str, Any]) -> Callable[[], None]:
        """Check what `tree` returned, and return the function that goes on from it. Raises ValueError."""
        names, every, epochs = list(self._parameters), tree.get("every"), listed(tree, "epochs")
        if type(every) is not int or every < 1:
            raise damaged("every", every)
        for entry in epochs:
            if not isinstance(entry, list) or [*map(type, entry)] != [int, int, float] or min(entry[:2]) < 1:
                raise damaged("epochs", epochs)
        rectified, kept = listed(tree, "rectified"), listed(tree, "with_histograms")
        if not all(isinstance(name, str) for name in rectified) or len(set(rectified)) != len(rectified):
            raise damaged("rectified", rectified)
        if not all(type(i) is int and 0 <= i < len(epochs) for i in kept) or kept != sorted(set(kept)):
            raise damaged("with_histograms", kept)
        shapes = {
            "figures": ((len(epochs), len(names), 3), ("float64",)),
            "dead": ((len(epochs), len(rectified)), ("float64",)),
            "histograms": ((len(kept), len(names), 2, len(EDGES) - 1), ("uint16",)),
        }
        figures, dead, counts = (tensor_of(name, tree.get(name), *fits).numpy() for name, fits in shapes.items())
        waiting = tree.get("waiting")
        if waiting is not None:
            size = sum(2 * _sampled(p) + 8 for p in self._parameters.values())
            waiting = tensor_of("waiting", waiting, (size,), ("float32", "float64")).to(device=self._backend.device)
        with_counts = dict(zip(kept, counts, strict=True))
        snapshots = []
        for i, (epoch, step, rate) in enumerate(epochs):
            weight, gradient, ratio = figures[i].T
            of_both = with_counts[i] if i in with_counts else np.full((len(names), 2), None)
            snapshots.append(
                Snapshot(
                    epoch,
                    step,
                    rate,
                    _spreads(names, weight, of_both[:, 0]),
                    _spreads(names, gradient, of_both[:, 1]),
                    dict(zip(names, ratio.tolist(), strict=True)),
                    {k: v for k, v in zip(rectified, dead[i].tolist(), strict=True) if not math.isnan(v)},
                )
            )

        def load() -> None:
            self.every, self._snapshots, self._full = every, snapshots, kept
            self._before, self._waiting = [], waiting

        return load


class _Rectified(Forwarder):
    """Finds the rectified units that are dead in a pass, by the name of their linear layer."""

    def __init__(self, model: gf.nn.Module) -> None:
        super().__init__(current_observer.get())
        layers = {name: m for name, m in model.named_modules() if isinstance(m, gf.nn.Linear)}
        self.layers = {id(m.weight): (name, m.activation == "relu") for name, m in layers.items()}
        self.latest = ""
        self.dead: dict[str, Array] = {}

    def forward(self, op: Any, inputs: Sequence[Any], out: gf.Tensor, parameters: dict[str, Any]) -> None:
        super().forward(op, inputs, out, parameters)
        rectified = op.name == "relu"
        if op.name == "linear":
            self.latest, rectified = self.layers.get(id(inputs[1]), ("", False))
        if not rectified or not out.ndim:
            return
        name = base = self.latest or "relu"
        n = 1
        while name in self.dead:
            n += 1
            name = f"{base} ({n})"
        F = out.backend
        units = F.reshape(out.array, (out.shape[0], -1))
        self.dead[name] = F.all(F.less_equal(units, 0.0), axis=0)  # not where a value is NaN


def _sampled(p: gf.Tensor) -> int:
    return -(-p.size // _stride(p.shape))


def _stride(shape: tuple[int, ...]) -> int:
    """The distance between the values of a sample, which has no factor in common with the length of a row."""
    step = max(1, -(-math.prod(shape) // _VALUES))
    while len(shape) > 1 and math.gcd(step, shape[-1]) > 1:
        step += 1
    return step


def _some(F: Backend, x: Array, kind: Any) -> Array:
    flat = F.reshape(x, (-1,))
    return F.astype(F.getitem(flat, slice(None, None, _stride(x.shape))), kind, copy=False)


def _size(F: Backend, x: Array, kind: Any) -> list[Array]:
    """The largest absolute value m, and the mean of (x / m)^2, neither of which overflows or vanishes as squares do."""
    if not math.prod(x.shape):
        return [F.full((), math.nan, dtype=kind)] * 2
    x = F.abs(F.astype(x, F.single, copy=False) if x.dtype in F.half_dtypes else x)
    largest = F.maximum(F.max(x), _LEAST)
    return [F.astype(v, kind, copy=False) for v in (largest, F.mean(F.square(F.divide(x, largest))))]


def _spreads(names: Iterable[str], figures: Any, counts: Any) -> dict[str, Spread]:
    return {name: Spread(rms, c) for name, rms, c in zip(names, figures.tolist(), counts, strict=True)}


def _bare(spreads: Mapping[str, Spread]) -> dict[str, Spread]:
    return {name: Spread(spread.rms, None) for name, spread in spreads.items()}


def _tensor(values: Any, dtype: Any, shape: tuple[int, ...]) -> gf.Tensor:
    return gf.tensor(np.asarray(values, dtype).reshape(shape), device="cpu")
