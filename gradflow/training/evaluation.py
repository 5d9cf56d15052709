"""The figures of batches: the mean loss and the metrics. What they are computed from stays on the device until then."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import numpy as np

import gradflow as gf
from gradflow.data import Batches
from gradflow.distributed import Communicator
from gradflow.interception import temporary_change
from gradflow.random.generator import restored
from gradflow.random.shares import sharing
from gradflow.training.checks import check_embedded, check_labels, generators_of
from gradflow.training.metrics import Metrics
from gradflow.training.objective import Loss, Objective, divides_by_weights
from gradflow.training.shares import Shares

Partial = tuple[gf.Tensor, ...]
"""What the metrics need of a batch; see `Metrics.partial`."""
_JOINED = 1024
"""After so many batches, their results are joined, so that few objects are kept."""


class Tally:
    """The losses of batches, and what the metrics need of them; all stays on the device."""

    def __init__(self, losses: gf.Tensor | None = None, partial: Partial = ()) -> None:
        self._joined = [] if losses is None else [(losses, *partial)]
        self._losses: list[gf.Tensor] = []  # those that are not joined yet
        self._partials: list[Partial] = []

    def add(self, loss: gf.Tensor, partial: Partial) -> None:
        """Add a batch; this runs between steps, so it does little."""
        self._losses.append(loss)
        self._partials.append(partial)
        if len(self._losses) == _JOINED:
            self._join()

    def add_stacked(self, losses: gf.Tensor, partials: Partial) -> None:
        """Add batches of equal sizes, whose losses and partials are stacked along a new first axis."""
        if self._losses:
            self._join()
        parts = [gf.reshape(x, (-1, *x.shape[2:])) for x in partials]
        self._joined.append((_wide(losses), *parts))
        if len(self._joined) == _JOINED:
            self._join_all()

    def _join(self) -> None:
        losses = _wide(gf.stack(self._losses))
        self._joined.append((losses, *(gf.concat(parts) for parts in zip(*self._partials, strict=True))))
        self._losses, self._partials = [], []

    def _join_all(self) -> None:
        losses, partial = _concatenated(self._joined)
        self._joined = [(losses, *partial)]

    def results(self) -> tuple[gf.Tensor | None, Partial]:
        """The losses of the batches, (batches,), and what the metrics need; None and () without batches."""
        if self._losses:
            self._join()
        if not self._joined:
            return None, ()
        if len(self._joined) > 1:
            self._join_all()
        losses, *partial = self._joined[0]
        return losses, tuple(partial)


def _wide(losses: gf.Tensor) -> gf.Tensor:
    return losses if losses.dtype is gf.float64 else gf.astype(losses, "float32")


class SharedTally(Tally):
    """A tally of the batches of which several ranks compute a share each.

    shares: those of this rank. losses, partial: what is known of the first batches as a whole.

    `results` exchanges what has been added since, so all ranks call it at the same time.
    """

    def __init__(self, shares: Shares, losses: gf.Tensor | None = None, partial: Partial = ()) -> None:
        super().__init__()
        self._shares, self._whole = shares, [] if losses is None else [(losses, *partial)]

    def results(self) -> tuple[gf.Tensor | None, Partial]:
        losses, partial = super().results()
        if losses is not None:
            first = sum(len(known[0]) for known in self._whole)
            self._whole.append(self._shares.joined(first, losses, partial))
            self._joined = []
        return _concatenated(self._whole) if self._whole else (None, ())


def _concatenated(several: Sequence[tuple[gf.Tensor, ...]]) -> tuple[gf.Tensor, Partial]:
    losses, *partial = [gf.concat(parts) for parts in zip(*several, strict=True)]
    return losses, tuple(partial)


class Figures:
    """How the figures of batches are computed: with their `objective` and their `metrics`.

    model: whose outputs are tried for two samples, see `trial`. loss, batches, class_weights: see `Objective`.
    names: see `Metrics`.
    communicator: of the ranks that compute a share of each batch (default None: one process computes all).

    Raises TypeError or ValueError for batches that the model does not take, targets that do not fit the outputs, a loss
    that is not one number, and labels out of range; IndexError for indices that an `Embedding` lacks. On a GPU, kernels
    check neither labels nor indices.
    """

    def __init__(
        self,
        model: gf.nn.Module,
        loss: Loss,
        batches: Batches,
        names: Sequence[str] = (),
        class_weights: Sequence[float] | None = None,
        communicator: Communicator | None = None,
    ) -> None:
        self.batches = batches
        self.objective = Objective(loss, batches, class_weights)
        self.metrics = Metrics(names, loss, batches)
        full, rest = divmod(batches.samples, batches.batch_size)
        self.sizes = [batches.batch_size] * full + [rest] * (rest > 0)
        """The number of samples in each batch of an epoch."""
        outputs, targets, *weights = trial(model, batches)
        check_indices(model, batches)
        check_labels(loss, outputs, batches)
        with (
            naming(f"the targets do not fit the outputs of the model (tried with {len(targets)} samples)"),
            gf.no_grad(),
        ):
            value = self.objective(outputs, targets, *weights)
            self.partial = self.metrics.partial(outputs, targets, *weights)
        if not isinstance(value, gf.Tensor) or value.shape != () or not value.dtype.is_floating:
            got = f"{value.dtype} of shape {value.shape}" if isinstance(value, gf.Tensor) else type(value).__name__
            raise ValueError(f"the loss must be one floating-point number, averaged over the batch; got {got}")
        self.loss_dtype = value.dtype
        self.shares: Shares | None = None
        """What this rank computes, if there are several."""
        if communicator is not None:
            self.shares = Shares(communicator, batches, [x.shape[0] != len(targets) for x in self.partial])
            self.batches = self.shares.batches
        self.flagged = False
        """Whether the flag of the device was up when results were last read."""

    def new_tally(self, losses: gf.Tensor | None = None, partial: Partial = ()) -> Tally:
        """A tally that has the results of some batches already."""
        return Tally(losses, partial) if self.shares is None else SharedTally(self.shares, losses, partial)

    def tally(self, model: gf.nn.Module) -> Tally:
        """The results of an epoch in evaluation mode. Random generators stay as they were."""
        return contextvars.copy_context().run(self._tally, model)  # also an interrupt leaves no mode set

    def _tally(self, model: gf.nn.Module) -> Tally:
        tally = self.new_tally()
        with without_draws(model), evaluating(model):
            for i, (inputs, targets, *weights) in enumerate(self.batches):
                with contextlib.nullcontext() if self.shares is None else sharing(self.shares.of(i)):
                    outputs = model(inputs)
                tally.add(self.objective(outputs, targets, *weights), self.metrics.partial(outputs, targets, *weights))
        return tally

    def read(self, tally: Tally) -> tuple[float, dict[str, float]]:
        """The mean loss over the samples, and the metrics. Reads the results of an epoch from the device.

        With the losses, it reads the flag `Backend.nonfinite` into `flagged`.
        """
        losses, partial = tally.results()
        assert losses is not None
        flag = losses.backend.nonfinite
        if flag is not None:
            flag = gf.astype(gf.Tensor(flag, losses.backend), losses.dtype)
            losses = gf.concat([losses, gf.reshape(flag, (1,))])
        values = losses.tolist()
        self.flagged = flag is not None and values.pop() != 0.0
        total = sum(loss * n for loss, n in zip(values, self.sizes, strict=True))
        return total / sum(self.sizes), self.metrics.figures([partial])


def check_adds_up(model: gf.nn.Module, figures: Figures, needed: str = "accumulate") -> None:
    """Raise ValueError unless the loss of a union of batches is the mean of their losses. Tries some samples.

    needed: what needs it (default "accumulate").
    """
    tried = trial(model, figures.batches, 16)
    n = len(tried[0])
    parts = [slice(0, n), slice(0, (n + 2) // 3), slice((n + 2) // 3, n)]
    with gf.no_grad():
        sums = [
            figures.objective(*(x[p] for x in tried)).item() * (p.stop - p.start) for p in parts if p.start < p.stop
        ]
    whole, apart, bound = sums[0], sum(sums[1:]), 1e-4 if figures.loss_dtype.itemsize > 2 else 0.05
    reason = ""
    if divides_by_weights(figures.objective.loss):
        reason = "this one divides by the weights of the classes in its batch"
    elif abs(whole - apart) > bound * sum(map(abs, sums[1:])):
        reason = f"this one is {whole / n:.4g} for {n} samples, but {apart / n:.4g} on average for two parts of them"
    if reason:
        raise ValueError(
            f"{needed} needs a loss whose mean over a union of batches is the mean of theirs; {reason}. For weights "
            "of classes, pass class_weight to the Trainer instead"
        )


def trial(model: gf.nn.Module, batches: Batches, samples: int = 2) -> tuple[gf.Tensor, ...]:
    """The outputs of the model for some samples, their targets, and their weights if there are any.

    samples: how many, evenly spaced (default 2).

    The model is in evaluation mode, and random generators stay as they were. Raises TypeError or ValueError for inputs
    that the model does not take.
    """
    spaced = slice(0, None, -(-len(batches.inputs) // samples))
    data = [x[spaced] for x in (batches.inputs, batches.targets, batches.weights) if x is not None]
    inputs, *others = [x if isinstance(x, gf.Tensor) else gf.tensor(x, device=batches.device) for x in data]
    refused = f"the model does not take the inputs (tried with {len(inputs)} samples)"
    with without_draws(model), evaluating(model), naming(refused):
        outputs = model(inputs)
    if not isinstance(outputs, gf.Tensor):
        raise TypeError(f"the model must return a tensor; got {type(outputs).__name__}")
    return outputs, *others


def check_indices(model: gf.nn.Module, batches: Batches) -> None:
    """Raise IndexError for inputs with indices out of the range of an `Embedding` in the model.

    The lowest and the highest value of each input are tried, as two samples, and the resulting indices are read.
    """
    embeddings = [module for module in model.modules() if isinstance(module, gf.nn.Embedding)]
    if not embeddings:
        return
    x = batches.inputs
    if isinstance(x, gf.Tensor):
        extremes = gf.stack([gf.min(x, axis=0), gf.max(x, axis=0)])
    else:
        extremes = gf.tensor(np.stack([x.min(axis=0), x.max(axis=0)]), device=batches.device)
    with without_draws(model), evaluating(model), temporary_change(*embeddings):
        before = [module._forward_hooks for module in embeddings]
        try:
            for module in embeddings:
                object.__setattr__(module, "_forward_hooks", {0: check_embedded})
            model(extremes)
        finally:
            for module, hooks in zip(embeddings, before, strict=True):
                object.__setattr__(module, "_forward_hooks", hooks)


def without_draws(model: gf.nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside this `with`, what the model draws leaves its random generators as they were."""
    return restored({g: (g.key, g.counter) for g in generators_of(model)})


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Make the message of a TypeError or ValueError begin with `what`; errors of other classes stay as they are."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if type(error) in (TypeError, ValueError):
            raise type(error)(f"{what}: {error}") from error
        raise


@contextlib.contextmanager
def evaluating(model: gf.nn.Module) -> Iterator[None]:
    """Set evaluation mode without gradients inside a `with`; then each module has its own mode again.

    Captured steps stay valid, since the modules are as they were.
    """
    modules = [module for module in model.modules() if module.training]
    with gf.no_grad(), temporary_change(*modules):
        try:
            for module in modules:
                object.__setattr__(module, "training", False)
            yield
        finally:
            for module in modules:
                object.__setattr__(module, "training", True)
