"""The training loop as an iterator: `for epoch in trainer.epochs(200): ...`.

Within an epoch nothing is read from the device. Losses and what the metrics need are kept there, and are read at the
end of the epoch, so the host never waits for a GPU between two steps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import index
from typing import Any

import gradflow as gf
from gradflow.data import Batches
from gradflow.data.checks import SetOnce
from gradflow.distributed import Communicator
from gradflow.distributed.reduction import GradientReduction
from gradflow.environment import delayed_interrupts
from gradflow.optim.averaging import WeightAverage
from gradflow.optim.hyperparameters import checked_number
from gradflow.saving import load, save
from gradflow.training import checks, finiteness, ranks, trainer_state
from gradflow.training.bar import Bar, tqdm
from gradflow.training.epoch import Epoch, Step
from gradflow.training.evaluation import Figures, check_adds_up, naming, trial
from gradflow.training.metrics import ON_DEVICE, metric_names
from gradflow.training.objective import ClassWeight, Loss, check_loss, class_weights_of
from gradflow.training.precision import Precision
from gradflow.training.progress import Progress
from gradflow.training.step import TrainingStep, is_own
from gradflow.training.updates import Updates
from gradflow.training.watching import Watch
from gradflow.training.work import Work


class Trainer(SetOnce):
    """Trains a model: `epochs` and `steps` are iterators that go on from where the trainer stands.

    model, loss, optimizer: what to train; its loss, a function of outputs and targets that averages over the batch; and
        what updates its parameters.
    train: the batches of an epoch. validation: those that are evaluated after each epoch, all samples in order
        (default None: none).
    metrics: the names of figures besides the loss, such as "accuracy" (default: none); see
        `gradflow.training.metrics.METRICS`.
    monitor: the figure that decides which epoch is best, "loss" (default) or one of `metrics`: of the validation if
        there is one, else of the training. Of equal epochs the first is best; NaN never is.
    clip_norm: the largest global norm of the gradients (default None: any).
    accumulate: the number of batches whose union gives the gradient of a step (default 1). The last step of an epoch
        has the batches that are left.
    average: the decay, in (0, 1), of an exponential moving average of the weights (default None: no average). With it,
        the averaged weights are evaluated, and kept as the best.
    class_weight: the weights of the classes: "balanced", one number for each class, or a dict of numbers by class
        (others: 1; default None: all 1). They multiply the weights of the samples; together these have mean 1.
    autocast: "bfloat16" or "float16": passes compute their products in it, as in `gradflow.autocast` (default None: as
        the model is). With float16, losses are scaled by a `gradflow.optim.GradScaler`, the attribute `scaler`: a step
        whose gradients overflow changes nothing, and counts in `Epoch.skipped`. Half floats are slow on a CPU.
    schedule: the learning rate of each epoch: a function of the figures that `monitor` names, a list with one for each
        finished epoch, such as `gradflow.optim.schedules.plateau(0.1)`. It sets the "lr" of all parameter groups before
        the first step of an epoch (default None: the rates are the optimizer's, numbers or functions of the step).
    capture: whether to replay the step (see `gradflow.capture`). "auto" (default) does so if the model and the loss are
        made of gradflow's own, since a replay does not run a user's Python.
    progress: whether to show a bar within each epoch (default False; it needs tqdm, of the extra `train`).
    communicator: of the processes that train together, such as `gradflow.distributed.world()`: each has all data, and
        computes its share of each batch (default None: one process). All have the same figures; rank 0 writes files.

    `history` has the finished epochs, `best` is the best of them or None; `captures` says whether steps are captured.
    The arguments are attributes, which are set once; hyperparameters can change, in `optimizer.param_groups`.

    On CUDA, `epochs` starts up to 32 captured steps at once, as one graph, and fewer if they are large, so that
    they take a fraction of a second. Ctrl-C during a step ends the step, or those that were started with it, and the
    loop raises KeyboardInterrupt before it does another: an epoch that has ended meanwhile is yielded first. The
    trainer can be saved then, and can go on. After an error within a step, or a second Ctrl-C, the weights may be half
    updated: the trainer refuses to go on until a saved state is loaded.

    Raises TypeError or ValueError for arguments that do not fit, such as data with a NaN, or targets that do not fit
    the outputs of the model.

    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> from gradflow.training import Trainer
    >>> x = gf.random.normal((64, 1), generator=gf.Generator(0))
    >>> model = gf.nn.Linear(1, 1, generator=gf.Generator(0))
    >>> optimizer = gf.optim.SGD(model.parameters(), lr=0.5)
    >>> trainer = Trainer(model, gf.mse_loss, optimizer, Batches(x, 2 * x + 1, 16))
    >>> for epoch in trainer.epochs(5):
    ...     pass
    >>> epoch.step, epoch.train_loss < 1e-3, trainer.best == epoch
    (20, True, True)
    """

    def __init__(
        self,
        model: gf.nn.Module,
        loss: Loss,
        optimizer: gf.optim.Optimizer,
        train: Batches,
        validation: Batches | None = None,
        *,
        metrics: Sequence[str] = (),
        monitor: str = "loss",
        clip_norm: float | None = None,
        accumulate: int = 1,
        average: float | None = None,
        class_weight: ClassWeight = None,
        autocast: str | None = None,
        schedule: Callable[[Sequence[float]], float] | None = None,
        capture: bool | str = "auto",
        progress: bool = False,
        communicator: Communicator | None = None,
    ) -> None:
        check_loss(loss)
        checks.check_parts(model, optimizer, train, validation, accumulate)
        clip_norm, names = checks.norm_of(clip_norm), metric_names(metrics)
        checks.check_monitor(monitor, names)
        if capture not in (True, False, "auto"):
            raise ValueError(f"capture is True, False or 'auto'; got {capture!r}")
        checks.check_schedule(schedule, optimizer)
        if progress:
            tqdm()
        self.model, self.loss, self.optimizer, self.train, self.validation = model, loss, optimizer, train, validation
        self.monitor, self.clip_norm, self.accumulate, self.schedule = monitor, clip_norm, index(accumulate), schedule
        self.communicator, self.progress = communicator, progress and (communicator is None or not communicator.rank)
        self.captures = capture is True or (capture == "auto" and is_own(model, loss))
        self.metrics = names
        self._precision = Precision(autocast, train.device)
        self.autocast, self.scaler = self._precision.autocast, self._precision.scaler
        with self._precision.mode:
            self._try(class_weight)
        self._average = None if average is None else WeightAverage(optimizer, average, self.scaler)
        if communicator is not None:
            ranks.join(self, communicator)
        objective, metrics_on_train = self._on_train.objective, self._on_train.metrics
        self._step = TrainingStep(
            model, objective, optimizer, metrics_on_train.partial, clip_norm, self._average, self._precision,
            self.captures, train if self.accumulate == 1 and communicator is None else None,
            None if communicator is None else GradientReduction(communicator, optimizer),
        )  # fmt: skip
        finiteness.watch_device(train.device)
        self._updates = Updates(self._step, self._on_train, self.accumulate)
        self._progress = Progress(self._on_train.new_tally)
        self._bar = Bar(len(train))
        self._watch: Watch | None = None

    def _try(self, class_weight: ClassWeight) -> None:
        """Make the figures of training and validation, which tries the model with some samples of each."""
        model, loss, train, validation = self.model, self.loss, self.train, self.validation
        self.class_weights = (
            None if class_weight is None else class_weights_of(class_weight, loss, train, trial(model, train)[0])
        )
        """The weight of each class, or None."""
        names = self.metrics
        on_train = names if validation is None else [name for name in names if name in ON_DEVICE]
        self._on_train = Figures(model, loss, train, on_train, self.class_weights, self.communicator)
        self._on_validation = None
        if validation is not None:
            with naming("validation"):
                self._on_validation = Figures(
                    model, loss, validation.in_order(), names, self.class_weights, self.communicator
                )
        if self.accumulate > 1:
            check_adds_up(model, self._on_train)
        elif self.communicator is not None and self.communicator.size > 1:
            check_adds_up(model, self._on_train, "training by several ranks")

    # ------------------------------------------------------------------ where it stands

    @property
    def history(self) -> list[Epoch]:
        """The finished epochs, as a new list."""
        return [*self._progress.history]

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self._progress.history)

    @property
    def step(self) -> int:
        """The number of optimizer steps of this trainer."""
        return self._progress.step

    @property
    def best(self) -> Epoch | None:
        """The best epoch so far, or None."""
        return self._progress.best

    @property
    def best_weights(self) -> dict[str, gf.Tensor] | None:
        """The state dict of the model after the best epoch, with averaged weights if there are any; None before it."""
        return self._progress.best_weights

    # ------------------------------------------------------------------ training

    def epochs(self, n: int) -> Iterator[Epoch]:
        """Train until `n` epochs are finished in all, and yield the figures of each: `for epoch in trainer.epochs(9)`.

        You may leave the loop, and go on later with another; an epoch that has begun goes on where it was left.
        Raises NonFiniteLossError after an epoch with a loss that is not finite, RuntimeError after a step that was
        interrupted (see `Trainer`).
        """
        return self._epochs(checks.count("epochs", n))

    def _epochs(self, n: int) -> Iterator[Epoch]:
        with contextlib.closing(self._bar), self._together():
            while self.epoch < n:
                with delayed_interrupts() as interrupts, Work(self, interrupts) as work:
                    while not self._is_at_the_end() and not interrupts.pending:
                        self._update(at_once=True)
                    epoch = None if interrupts.pending else self._finish()
                if epoch is not None:
                    yield epoch
                if work.pressed:
                    raise KeyboardInterrupt

    def steps(self, n: int) -> Iterator[Step]:
        """Train until `n` optimizer steps are done in all, and yield each. Raises as `epochs`."""
        return self._steps(checks.count("steps", n))

    def _steps(self, n: int) -> Iterator[Step]:
        with (
            contextlib.closing(self._bar),
            self._together(),
            delayed_interrupts() as interrupts,
        ):  # once: it takes as long as a short step
            while self.step < n or self._is_at_the_end():
                with Work(self, interrupts) as work:
                    if self._is_at_the_end():  # an error ended the validation after the last step
                        self._finish()
                        continue
                    number, loss = self.epoch + 1, self._updates.union(self._progress, self._update())
                    finished = self._finish() if self._is_at_the_end() else None
                yield Step(self.step, number, loss, finished)
                if work.pressed:
                    raise KeyboardInterrupt

    def _together(self) -> contextlib.AbstractContextManager[None]:
        """Train with the other ranks inside a `with`, if there are any."""
        if self.communicator is None:
            return contextlib.nullcontext()
        ranks.check_together(self, self.communicator)
        return self.communicator.watching()

    def _is_at_the_end(self) -> bool:
        """Whether all batches of the epoch are done."""
        return self._progress.batches == len(self._on_train.sizes)

    def _check_whole(self) -> None:
        if self._progress.torn or (self._average is not None and self._average.is_swapped):
            raise RuntimeError(
                "a step was interrupted while it changed the weights: load a saved state, or make a new Trainer"
            )

    def _update(self, at_once: bool = False) -> list[gf.Tensor]:
        """Do one optimizer step and return the losses of its batches.

        at_once: whether to do several steps if they are captured together; then this is the loss of the last one.
        """
        progress = self._progress
        left = len(self._on_train.sizes) - progress.batches
        is_watched = self._watch is not None and not (self.epoch + 1) % self._watch.every  # the last step of the epoch
        watch = self._watch if is_watched and left <= self.accumulate else None
        progress.torn = True
        if not progress.batches:
            progress.applied = self.optimizer.steps
            self._set_rate()
        if not self.model.training:
            self.model.train()
        if self.progress:
            self._bar.open(self.epoch + 1, progress.batches)
        if watch is not None:
            watch.before_step()
        if self.communicator is not None:
            self.communicator.alive()
        losses = self._updates.do(progress, left - is_watched if at_once else 1)  # the watched step is done alone
        if watch is not None:
            watch.after_step()
        progress.torn = False
        if self.progress:
            self._bar.show(progress.batches, losses[-1])
        return losses

    def _set_rate(self) -> None:
        """Set the learning rates of the epoch that begins, if they depend on those before."""
        if self.schedule is not None:
            figures = [epoch.figure(self.monitor) for epoch in self._progress.history]
            rate = checked_number("the rate of the schedule", self.schedule(figures))
            for group in self.optimizer.param_groups:
                if group["lr"] != rate:
                    group["lr"] = rate

    def _finish(self) -> Epoch:
        """Validate, read the figures of the epoch, keep the weights if they are the best, and start the next epoch."""
        progress, number = self._progress, self.epoch + 1
        if self.communicator is not None:
            ranks.check_together(self, self.communicator)
        rate = self.optimizer.param_groups[0]["lr"]
        rate = float(rate(max(0, self.optimizer.steps - 1)) if callable(rate) else rate)
        if self._watch is not None:
            self._watch.finish_epoch(number, progress.step, rate)
        on_validation = self._on_validation
        with self._averaged():
            with self._precision.mode:
                validation = None if on_validation is None else on_validation.tally(self.model)
            train_loss, train_metrics = self._on_train.read(progress.tally)
            loss: float | None = None
            metrics: dict[str, float] = {}
            if on_validation is not None and validation is not None:
                loss, metrics = on_validation.read(validation)
            finiteness.check_losses(number, train_loss, loss, self.autocast)
            self._precision.check_scale(number)
            if self._on_train.flagged:
                finiteness.check_weights(number, self.optimizer)
            figures = {"loss": train_loss, **train_metrics} if loss is None else {"loss": loss, **metrics}
            is_best = progress.is_best(self.monitor, figures)
            weights = self.model.state_dict() if is_best else progress.best_weights
        stale = 0 if is_best else number - (0 if progress.best is None else progress.best.epoch)
        progress.count_time()
        seconds = progress.seconds
        speed = self.train.samples / seconds
        tried = progress.step - (progress.history[-1].step if progress.history else 0)
        skipped = self._precision.skipped(self.optimizer, progress.applied, tried)
        epoch = Epoch(
            number, progress.step, rate, train_loss, train_metrics, loss, metrics, stale, seconds, speed, skipped
        )
        progress.torn = True
        progress.finish_epoch(epoch, is_best, weights)
        self._updates.forget()
        progress.torn = False
        self._bar.close()
        return epoch

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """Give the model the averaged weights inside a `with`, if there are any."""
        return contextlib.nullcontext() if self._average is None else self._average.swapped()

    # ------------------------------------------------------------------ use

    def evaluate(self, batches: Batches) -> dict[str, float]:
        """Evaluate the model, with averaged weights if there are any: "loss", a mean over the samples, and metrics.

        Goes through all samples in order, in evaluation mode, also with `shuffle` or `drop_last`.
        Raises TypeError or ValueError for batches that do not fit.
        """
        checks.check_batches("batches", batches)
        with self._precision.mode:
            figures = Figures(self.model, self.loss, batches.in_order(), self.metrics, self.class_weights)
            with delayed_interrupts(), self._averaged():
                tally = figures.tally(self.model)
        loss, metrics = figures.read(tally)
        return {"loss": loss, **metrics}

    def watch(self, every: int = 1) -> Watch:
        """Watch the layers from now on, and return the `Watch`, which has a `Snapshot` of each epoch that is watched.

        every: how many epochs there are from one that is watched to the next (default 1).

        A snapshot tells how the weights and gradients of each parameter are spread after the last step of the epoch,
        how much this step changed them, and which units are dead, see `gradflow.training.layers`. It takes one transfer
        from the device and one forward pass of at most 1024 samples (of a user's model, in batches of the usual size),
        and changes nothing in the training. The snapshots are part of a saved state. Called again, it returns the same
        Watch. Raises ValueError unless `every` is an integer of at least 1.

        >>> import gradflow as gf
        >>> from gradflow.data import Batches
        >>> from gradflow.training import Trainer
        >>> model = gf.nn.MLP([2, 8, 1], generator=gf.Generator(0))
        >>> x = gf.random.normal((64, 2), generator=gf.Generator(1))
        >>> optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Trainer(model, gf.mse_loss, optimizer, Batches(x, x[:, :1], 16))
        >>> watch = trainer.watch()
        >>> for epoch in trainer.epochs(3):
        ...     large = watch[-1].ratios["0.weight"] > 0.1
        >>> len(watch), large, list(watch[-1].dead)
        (3, False, ['0'])
        """
        if isinstance(every, bool) or not hasattr(every, "__index__") or every < 1:
            raise ValueError(f"every is a number of epochs, an integer of at least 1; got {every!r}")
        if self._watch is None:
            self._watch = self._new_watch()
        self._watch.every = index(every)
        return self._watch

    def _new_watch(self) -> Watch:
        return Watch(self.model, self.train if self.validation is None else self.validation)

    def restore_best(self) -> None:
        """Give the model the weights of the best epoch. Raises RuntimeError if no epoch has been the best.

        Each module stays in its mode, in training mode after a loop: call `model.eval()` before you predict.
        """
        if self._progress.best_weights is None:
            raise RuntimeError("no epoch is the best yet: train for at least one, with a figure that is not NaN")
        with delayed_interrupts():
            self._progress.torn = True
            self.model.load_state_dict(self._progress.best_weights)
            if self._average is not None:
                self._average.restart()
            self._progress.torn = False

    # ------------------------------------------------------------------ saved states

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is needed to go on with the same bits to a file, which is then whole; see `gradflow.save`.

        At any step, in the middle of an epoch, too. Of random generators, it has the default one, that of `train` and
        those that are attributes of modules. With a communicator, all ranks call it, and rank 0 writes the file.
        Raises RuntimeError after a step that was interrupted.
        """
        state = self.state_dict()
        if self.communicator is None or not self.communicator.rank:
            save(path, state)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from the state in a file, which a trainer with the same arguments saved, here or on another device.

        The hyperparameters of the optimizer, which parameters require a gradient, how often layers are watched, and the
        mode of each module are those of the file; a schedule is the trainer's own. Everything is checked before
        anything changes.

        Raises InvalidFileError for a damaged file, ValueError for the state of another run, which says what differs.
        """
        self.load_state_dict(load(path, self.train.device))

    def state_dict(self) -> dict[str, Any]:
        """What `save` writes, a tree for `gradflow.save` that does not change with later steps."""
        self._check_whole()
        return trainer_state.collect(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned; see `load`."""
        trainer_state.restore(self, state)

    def _go_on_from(self, progress: Progress, watch: Watch | None) -> None:
        """Be where a saved state was; the weights, the optimizer and the watch are already."""
        self._bar.close()
        self._progress, self._watch = progress, watch
        self._updates.forget()
