"""The optimizer steps of an epoch: each from one batch, or from the union of several; or several steps at once."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import numpy as np

import gradflow as gf
from gradflow.data import Batches
from gradflow.dtypes import promote
from gradflow.random.generator import default_generator, restored
from gradflow.random.shares import sharing
from gradflow.replay.batches import RunningEpoch
from gradflow.training.evaluation import Figures
from gradflow.training.progress import Progress
from gradflow.training.step import TrainingStep


class Updates:
    """The steps of the epoch that runs. Each counts in the `Progress` that it is given.

    step: what does a step. figures: those of the batches of an epoch. accumulate: the batches of a step.
    """

    def __init__(self, step: TrainingStep, figures: Figures, accumulate: int) -> None:
        self._step, self._accumulate = step, accumulate
        self._train: Batches = figures.batches
        self._sizes, self._loss_dtype = figures.sizes, figures.loss_dtype
        self._shares = figures.shares
        if step.scales_loss:  # a scaled loss is at least float32
            self._loss_dtype = promote(self._loss_dtype, gf.float32)
        self._parts: dict[float, gf.Tensor] = {}
        self._batches: Iterator[tuple[gf.Tensor, ...]] | None = None  # what is left of the epoch

    def forget(self) -> None:
        """Let the next step be of the epoch in which the progress is then."""
        self._batches = None

    def do(self, progress: Progress, most: int = 1) -> list[gf.Tensor]:
        """Do one optimizer step and return the losses of its batches.

        most: do up to so many steps if they are captured together; then this is the loss of the last one.
        """
        if not self._step.scales_loss:
            return self._do(progress, most)
        with np.errstate(
            over="ignore", invalid="ignore", divide="ignore"
        ):  # a step whose gradients overflow is skipped
            return self._do(progress, most)

    def _do(self, progress: Progress, most: int) -> list[gf.Tensor]:
        batches = self._batches
        if batches is None:
            batches = self._batches = self._open(progress)
        if self._accumulate > 1:
            losses = self._accumulated(progress, batches)
        else:
            if isinstance(batches, RunningEpoch):
                several = self.together(progress, most) if most > 1 else None
                if several is not None:
                    return several
                loss, partial = batches.single()
            elif self._shares is not None:
                [scale] = self._scales(progress.batches)
                with sharing(self._shares.of(progress.batches)):
                    loss, partial = self._step.whole(*next(batches), scale=scale)
            else:
                loss, partial = self._step.whole(*next(batches))
            progress.tally.add(loss, partial)
            progress.batches += 1
            losses = [loss]
        progress.step += 1
        return losses

    def together(self, progress: Progress, most: int) -> list[gf.Tensor] | None:
        """Do the next steps at once, and return the loss of the last one; None if they must be done one by one."""
        running = self._batches
        assert isinstance(running, RunningEpoch)
        do = running.together(most)
        if do is None:
            return None
        losses, partials = do()
        progress.tally.add_stacked(losses, partials)
        progress.batches += len(losses)
        progress.step += len(losses)
        return [losses[-1]]

    def _accumulated(self, progress: Progress, batches: Iterator[tuple[gf.Tensor, ...]]) -> list[gf.Tensor]:
        """Do one optimizer step with the gradient of the union of several batches, and return their losses."""
        losses, scales = [], self._scales(progress.batches)
        self._step.zero_grad()
        for i, scale in enumerate(scales, progress.batches):
            with contextlib.nullcontext() if self._shares is None else sharing(self._shares.of(i)):
                loss, partial = self._step.gradient(*next(batches), scale=scale)
            progress.tally.add(loss, partial)
            losses.append(loss)
        self._step.update()
        progress.batches += len(losses)
        return losses

    def union(self, progress: Progress, losses: list[gf.Tensor]) -> gf.Tensor:
        """The loss of the union of the last batches."""
        if len(losses) == 1 and self._shares is None:
            return losses[0]
        loss = functools.reduce(gf.add, map(gf.multiply, losses, self._scales(progress.batches - len(losses))))
        return loss if self._shares is None else self._shares.loss(loss)

    def _scales(self, first: int) -> list[gf.Tensor]:
        """The part of each batch in the union of a step that begins with batch `first`, on the device.

        Of several ranks, each has a part of each batch.
        """
        sizes = self._sizes[first : first + self._accumulate]
        own = sizes if self._shares is None else [self._shares.of(first + i).counted for i in range(len(sizes))]
        for part in {n / sum(sizes) for n in own} - self._parts.keys():
            self._parts[part] = gf.tensor(part, self._loss_dtype, self._train.device)
        return [self._parts[n / sum(sizes)] for n in own]

    def _open(self, progress: Progress) -> Iterator[tuple[gf.Tensor, ...]]:
        """The batches of the epoch that are left, in the order that was drawn when it began."""
        generator = default_generator if self._train.generator is None else self._train.generator
        begin = self._train.epoch if self._step.run is None else self._step.run.begin
        if progress.order is None:
            progress.order = generator.key, generator.counter
            return begin(0)
        with restored({generator: progress.order}):
            return begin(progress.batches)
