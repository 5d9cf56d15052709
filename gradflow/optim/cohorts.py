"""Cohorts: slices of a block that steps update together share one record of it.

What a step changes on the host is then one history and one number, however many parameters it updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from gradflow.autograd.memory import Memory, clock

if TYPE_CHECKING:
    from gradflow.optim.flat import Slice

History = tuple[int, int, frozenset[str]]
"""The history of a slice: the index of its parameter group; how many steps it has had; which state arrays they wrote.

One call of `update` covers adjacent slices of equal histories, since these have the same hyperparameters and step; for
this, the group is part of it. A state array that is not in the history of a slice is still zero there.
"""


class Cohort:
    """Slices of one history.

    changed: the number of the last change of their values by a step.
    size: the number of slices; 0 until all have joined, and again once one of them has joined another cohort. While it
    is not 0, the cohort has exactly the slices that joined it.
    """

    __slots__ = ("changed", "history", "size")

    def __init__(self, history: History, changed: int = 0) -> None:
        self.history = history
        self.changed = changed
        self.size = 0

    def advance(self, steps: int, written: frozenset[str]) -> None:
        """Count steps of all slices, which have changed their values now. written: as in `History`."""
        self.changed = clock.change()
        group, before, _ = self.history
        self.history = group, before + steps, written


class Membership:
    """The cohort that a slice is in, for the slice and for the memory of its tensor."""

    __slots__ = ("cohort",)

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort


_COHORT = attrgetter("membership.cohort")


def cohort_of(slices: Sequence[Slice]) -> Cohort | None:
    """The cohort of exactly these slices, or None."""
    cohort: Cohort = _COHORT(slices[0])
    is_theirs = cohort.size == len(slices) == [*map(_COHORT, slices)].count(cohort)
    return cohort if is_theirs else None


def as_cohort(slices: Sequence[Slice]) -> Cohort:
    """The cohort of exactly these slices of one history, which leave theirs if it has others."""
    return cohort_of(slices) or joined(slices, slices[0].history)


def joined(slices: Sequence[Slice], history: History) -> Cohort:
    """A new cohort of these slices, with this history."""
    cohort = Cohort(history, max(_COHORT(s).changed for s in slices))
    for s in slices:
        s.membership.cohort.size = 0
        s.membership.cohort = cohort
    cohort.size = len(slices)  # last: an interrupt leaves no cohort that lacks some
    return cohort


class Steps:
    """Steps of the same slices, to be counted again and again.

    slices: which have one history, before each time. steps: how many each time. written: as in `History`.
    """

    __slots__ = ("_cohort", "_slices", "_steps", "_written")

    def __init__(self, slices: Sequence[Slice], steps: int, written: frozenset[str]) -> None:
        self._cohort = as_cohort(slices)
        self._slices, self._steps, self._written = slices, steps, written

    def count(self) -> None:
        """Count the steps once more."""
        if not self._cohort.size:  # a slice has left it
            self._cohort = as_cohort(self._slices)
        self._cohort.advance(self._steps, self._written)


class SliceMemory(Memory):
    """Marks a tensor as a slice of a block, whose steps change it. Aliases made later share this record.

    The slices of a block are views of one array, so the number of references to that array says nothing.
    """

    __slots__ = ("_changed_otherwise", "_membership")

    def __init__(self, changed: int, membership: Membership) -> None:
        self._membership = membership
        super().__init__(changed)

    @property
    def changed(self) -> int:
        by_step, otherwise = self._membership.cohort.changed, self._changed_otherwise
        return by_step if by_step > otherwise else otherwise

    @changed.setter
    def changed(self, number: int) -> None:
        self._changed_otherwise = number
