"""Guards: what a recorded step depends on, checked before each replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradflow.autograd.leaf import GradientState, Leaf
from gradflow.interception import Snapshot
from gradflow.replay.reasons import describe


class GroupsGuard:
    """The parameter groups of an optimizer when the guard is created.

    Parameters must stay the same objects in the same order. Hyperparameters may change, because `Optimizer.step` reads
    them in each replay, unless the step itself reads them too (`are_read`).
    """

    __slots__ = ("are_read", "optimizer", "parameters", "settings")

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.parameters = [list(group["params"]) for group in optimizer.param_groups]
        self.settings = _settings(optimizer)
        self.are_read = False

    def holds(self) -> bool:
        """Whether a replay is valid with the present groups of the optimizer."""
        return self.has_same_parameters() and (not self.are_read or self.has_same_settings())

    def has_same_parameters(self) -> bool:
        """Whether the groups have the same parameters."""
        same: bool = self.optimizer.holds(self.parameters)
        return same

    def has_same_settings(self) -> bool:
        """Whether the groups have the same hyperparameters."""
        return _settings(self.optimizer) == self.settings


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


class Guards:
    """What a recording depends on.

    snapshot: the versions of the objects that the step uses.
    groups: the parameter groups of the optimizers that it uses.
    leaves: the leaves whose gradients it computes. Each gradient must be in the same place when a replay begins
    (`gradient_state`) as when the recorded step began.
    recorded_at: the number of the call that was recorded.
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
        """Whether nothing has changed, apart from `gradient_states`."""
        return self.snapshot.is_current() and all(map(GroupsGuard.holds, self.groups))

    def gradient_states(self) -> list[GradientState | None]:
        """The state of each leaf's gradient now."""
        return [gradient_state(leaf) for leaf in self.leaves]

    def describe_change(self) -> str:
        """The first thing that has changed, in words."""
        changed = self.snapshot.first_changed()
        return "a parameter group" if changed is None else describe(changed)


def gradient_state(leaf: Leaf) -> GradientState | None:
    """Where a leaf's gradient is; None if other tensors share its buffer, which the step would have to copy first."""
    if leaf.slot is not None and leaf.slot.holders and leaf.is_held():
        return None
    return leaf.state
