"""The models of a run, trained one after another: one, or the members of an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gradflow as gf
from gradflow.training.epoch import Epoch, Step
from gradflow.training.layers import Snapshot
from gradflow.training.progress import damaged, history_of, listed, part, weights_of
from gradflow.training.runs.predictor import Predictor
from gradflow.training.runs.preparation import Plan, make_trainer, steps_per_epoch
from gradflow.training.watching import Watch


@dataclass(frozen=True)
class Member:
    """A model that is trained: the weights of its best epoch, and its epochs."""

    weights: dict[str, gf.Tensor]
    history: list[Epoch]


_WATCHED = 20
"""The number of the first epochs that are watched. Then every second is until twice that many, and so on."""


class Members:
    """The models of a plan. `steps` trains them; the state of all of them can be saved between two steps.

    trainer: of the model that is being trained. finished: the models before it.

    Raises SettingsError if there is not enough memory.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.finished: list[Member] = []
        self.trainer = make_trainer(plan, 0)
        self._watch: Watch | None = self.trainer.watch()  # None after the first model, whose memory it would keep
        self._watched: tuple[list[Snapshot], dict[str, Any]] = [], {}  # what is known of the first model then

    @property
    def number(self) -> int:
        """The number of the member that is being trained, from 1."""
        return len(self.finished) + 1

    @property
    def histories(self) -> list[list[Epoch]]:
        """The epochs of each member that has some."""
        return [m.history for m in self.finished] + ([self.trainer.history] if self.trainer.history else [])

    @property
    def snapshots(self) -> list[Snapshot]:
        """What is known of the layers of the first model."""
        return self._watched[0] if self._watch is None else [*self._watch]

    def steps(self) -> Iterator[Step]:
        """Train what is left to train, and yield each step."""
        settings = self.plan.settings
        while True:
            total = settings.epochs * steps_per_epoch(settings, self.trainer.train)
            if not self._is_trained():
                for step in self.trainer.steps(total):
                    if step.finished is not None:
                        self._watch_less()
                    yield step
                    if step.finished is not None and self._is_trained():  # by its patience
                        break
            if self.number == settings.ensemble:
                return
            if self._watch is not None:
                self._watched, self._watch = ([*self._watch], self._watch.tree()), None
            self.finished.append(Member(self.weights()[-1], self.trainer.history))
            self.trainer = make_trainer(self.plan, len(self.finished))

    def _watch_less(self) -> None:
        """Watch fewer of the later epochs."""
        while self._watch is not None and self.trainer.epoch >= _WATCHED * self._watch.every:
            self.trainer.watch(2 * self._watch.every)

    def _is_trained(self) -> bool:
        settings, history = self.plan.settings, self.trainer.history
        patience = settings.epochs if settings.patience is None else settings.patience
        return len(history) == settings.epochs or bool(history and history[-1].stale >= patience)

    def best_weights(self) -> list[dict[str, gf.Tensor]]:
        """Return the weights of the best epoch so far of each member that has one."""
        best = self.trainer.best_weights
        return [*(member.weights for member in self.finished), *([] if best is None else [best])]

    def weights(self) -> list[dict[str, gf.Tensor]]:
        """Return the weights of the best epoch so far of each member that has one; before that, the current weights."""
        return self.best_weights() or [self.trainer.model.state_dict()]

    def predictor(self, weights: Sequence[dict[str, gf.Tensor]]) -> Predictor:
        """Return what predicts with these weights of one or more models."""
        return Predictor.from_split(list(map(self._model, weights)), self.plan.split)

    def _model(self, weights: dict[str, gf.Tensor]) -> gf.nn.Module:
        settings, how = self.plan.settings, {"device": self.plan.settings.device, "generator": gf.Generator(0)}
        model = self.plan.inputs.model(self.plan.sizes, settings.activation, settings.dropout, **how)
        model.load_state_dict(weights)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all members, for `gradflow.save`."""
        finished = [{"weights": m.weights, "history": [asdict(epoch) for epoch in m.history]} for m in self.finished]
        return {"finished": finished, "trainer": self.trainer.state_dict(), "watched": self._watched[1]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state_dict`. Raises ValueError for any other."""
        own, finished = self.trainer.model.state_dict(), listed(state, "finished")
        if len(finished) >= self.plan.settings.ensemble or not all(isinstance(member, dict) for member in finished):
            raise damaged("finished", finished)
        self.finished = [
            Member(weights_of("weights", member.get("weights"), own), history_of(member)) for member in finished
        ]
        self.trainer = make_trainer(self.plan, len(self.finished))
        if self.finished:
            watch = Watch(self.trainer.model, self.trainer.train)
            watch.loader(part(state, "watched"))()
            self._watched, self._watch = ([*watch], watch.tree()), None
        else:
            self._watch = self.trainer.watch()
        self.trainer.load_state_dict(part(state, "trainer"))
