"""What is known of a captured step for one kind of inputs: a recording, a program, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradflow.autograd.leaf import Leaf
from gradflow.backend import Backend
from gradflow.replay.recorder import _describe, _Reason, _Recording, _same_groups

_TRIES = 3
"""Recordings in a row that may come to nothing at once; then each next one waits twice as long as the one before."""
_LONGEST_WAIT = 1024
"""Calls that run as they are between two recordings, at most."""
_WORTHWHILE = 16
"""Calls after which a program has been worth its recording, so that a change is no reason to wait with the next."""
_RECORDING, _REPLAYING = _Reason("recording", usual=True), "replaying"
_OTHER_STATE = _Reason("a gradient is held, or lies elsewhere than when the step was recorded")


class _Program:
    """What to call with the arrays of the inputs, as long as all is unchanged and leaves are in these states."""

    __slots__ = ("groups", "leaves", "made", "replay", "states", "unchanged")

    def __init__(self, recording: _Recording, states: list[int | None]) -> None:
        self.replay = recording.program()
        self.unchanged = recording.unchanged
        self.groups = recording.groups
        self.leaves = recording.leaves
        self.states = states
        self.made = recording.made


class _Plan:
    """What is known of a step for one kind of inputs: its last recording, a program where two agreed, else the reason.

    `failures`: recordings in a row that came to nothing; `next`: the call that may record again.
    """

    def __init__(self) -> None:
        self.recording: _Recording | None = None
        self.program: _Program | None = None
        self.reason = _RECORDING
        self.failures = 0
        self.next = 0

    def is_due(self, call: int) -> bool:
        """Whether this call records the step."""
        return call >= self.next

    def _fail(self, call: int) -> None:
        """Count a failure; try again from `call` on, the later the more there were."""
        self.failures += 1
        self.next = call + min(1 << self.failures >> _TRIES, _LONGEST_WAIT)

    def forget(self, call: int) -> None:
        """Let go of what was recorded before a change."""
        for each in (self.program, self.recording):
            if each is not None and not (each.unchanged.is_current() and _same_groups(each.groups)):
                changed = each.unchanged.first_changed()
                thing = "a parameter group" if changed is None else _describe(changed)
                self.reason = _Reason(f"{thing}, which it uses, changes between calls")
                if call - each.made < _WORTHWHILE:
                    self._fail(call)
                else:
                    self.failures = self.next = 0
                if each is self.program:
                    self.program = None
                else:
                    self.recording = None

    def record(
        self, step: Callable[..., Any], call: int, backend: Backend, inputs: Sequence[Any], named: dict[str, Any]
    ) -> Any:
        """Do a step and record it; copies of what it returns."""
        before, self.recording = self.recording, None
        states = [] if before is None else [_state_of(leaf) for leaf in before.leaves]
        recording = _Recording(backend, call, [] if before is None else before.groups)
        self.reason = _Reason("raises an exception", usual=True)
        self._fail(call + 1)
        result = recording.watch(step, inputs, named)
        reason = recording.reason
        if reason is None:
            self.recording = recording
            if before is not None:
                reason = _OTHER_STATE if None in states else recording.difference(before)
        if reason is None:
            if self.program is None:  # otherwise two gradient states would replace each other's program by turns
                self.failures -= 1
            if before is None:
                self.next = call + 1
            else:
                self.program, self.recording = _Program(recording, states), None
        self.reason = _RECORDING if reason is None else reason
        return result


def _state_of(leaf: Leaf) -> int | None:
    """How a leaf begins a step: without a gradient, its buffer free (0) or not (1); with one, in its buffer (2) or
    elsewhere (3). None where somebody holds tensors in the buffer, which a step would have to copy.
    """
    if leaf.memory.tensors and leaf.is_held():
        return None
    if leaf._grad is not None:
        return 2 if leaf._grad.array is leaf.buffer else 3
    return 2 if leaf.filled else 0 if leaf.free is not None else 1
