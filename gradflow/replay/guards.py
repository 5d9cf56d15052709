"""Guards: what a recorded step depends on, checked before each replay."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from gradflow.autograd.leaf import GradientState, Leaf
from gradflow.interception import Snapshot
from gradflow.replay.reasons import describe
from gradflow.tensor import Tensor

_STATE, _HOLDERS = attrgetter("state"), attrgetter("slot.holders")


class GroupsGuard:
    """The parameter groups of an optimizer when the guard is created.

    Parameters must stay the same objects in the same order, with the same arrays. Hyperparameters may change, because
    `Optimizer.step` reads them in each replay, unless the step itself reads them too (`hyperparameters_read`).
    """

    __slots__ = ("_followed", "arrays", "hyperparameters", "hyperparameters_read", "optimizer", "parameters", "tensors")

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        given = [group["params"] for group in optimizer.param_groups]
        self.parameters = [list(each) if isinstance(each, list) else each for each in given]
        self.tensors = [x for each in self.parameters if isinstance(each, list) for x in each if isinstance(x, Tensor)]
        self.arrays = [x.array for x in self.tensors]
        self.hyperparameters = _hyperparameters(optimizer)
        self.hyperparameters_read = False
        self._followed: Any = None  # what the groups had when the guard last held

    def hold(self) -> bool:
        """Whether the guard allows a replay now."""
        optimizer = self.optimizer
        try:
            if optimizer._is_edited():
                if not optimizer.has_parameters(optimizer._params_in_blocks):  # the step makes blocks after its start
                    return False
                optimizer._apply_edits()  # as the step will do: afterwards, a replay need not look for edits again
        except Exception:  # the step raises it
            return False
        if optimizer._unedited is not self._followed:
            if not self.has_same_parameters() or (self.hyperparameters_read and not self.has_same_hyperparameters()):
                return False
            self._followed = optimizer._unedited
        for x, array in zip(self.tensors, self.arrays):  # noqa: B905, SIM110 (the fastest: it runs in every replay)
            if x.array is not array:
                return False
        return True

    def has_same_parameters(self) -> bool:
        """Whether the groups have the same parameters."""
        try:
            same: bool = self.optimizer.has_parameters(self.parameters)
        except TypeError:  # `params` is not a list; the error of `Optimizer.step` says so
            return False
        return same

    def has_same_hyperparameters(self) -> bool:
        """Whether the groups have the same hyperparameters."""
        return _hyperparameters(self.optimizer) == self.hyperparameters


def _hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


class Guards:
    """What a recording depends on.

    snapshot: the versions of the objects that the step uses.
    groups: the parameter groups of the optimizers that it uses.
    leaves: the leaves whose gradients it computes.
    recorded_at: the number of the recorded call among all calls of the step.
    """

    __slots__ = ("groups", "leaves", "recorded_at", "snapshot")

    def __init__(
        self, snapshot: Snapshot, groups: Sequence[GroupsGuard], leaves: Sequence[Leaf], recorded_at: int
    ) -> None:
        self.snapshot = snapshot
        self.groups = groups
        self.leaves = leaves
        self.recorded_at = recorded_at

    def hold(self) -> bool:
        """Whether nothing has changed; ignores gradient states, which `Program.is_valid` compares."""
        return self.snapshot.is_current() and all(map(GroupsGuard.hold, self.groups))

    def gradient_states(self) -> list[GradientState | None]:
        """The state of each leaf's gradient now: see `gradient_state`."""
        try:
            if not any(map(_HOLDERS, self.leaves)):
                return [*map(_STATE, self.leaves)]
        except AttributeError:  # a leaf without a slot
            pass
        return [gradient_state(leaf) for leaf in self.leaves]

    def describe_change(self) -> str:
        """The first thing that has changed, in words."""
        changed = self.snapshot.first_changed()
        return "a parameter group" if changed is None else describe(changed)


def gradient_state(leaf: Leaf) -> GradientState | None:
    """Where a leaf's gradient is; None if other tensors share its buffer, which a replay would overwrite."""
    if leaf.slot is not None and leaf.slot.holders and leaf.is_held():
        return None
    return leaf.state
