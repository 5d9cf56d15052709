"""Plans: when to record a step for one kind of inputs, and how many calls run normally after a failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradflow.backend import Backend
from gradflow.replay.guards import Guards
from gradflow.replay.program import Program, Recording, difference
from gradflow.replay.reasons import Reason
from gradflow.replay.recorder import StepRecorder

PATIENCE = 3
"""After this many failures in a row, the step is recorded less often, and the reason is logged."""
_LONGEST_WAIT = 1024
"""The greatest number of calls that run normally between two recordings."""
_WORTHWHILE = 16
"""A program that was valid for this many calls was worth recording: its invalidation does not count as a failure."""
RECORDING = Reason("recording", expected=True)
_EXCEPTION = Reason("raises an exception", expected=True)
_OTHER_STATE = Reason("other tensors share the buffer of a gradient, or the first recording stored it elsewhere")


class Plan:
    """The state of a step for one kind of inputs: its last recording, its program, or the reason why it has none.

    failures: how many recordings in a row led to no program, or to one that was soon invalidated.
    next: the number of the first call that may be recorded.
    """

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self.program: Program | None = None
        self.reason = RECORDING
        self.failures = 0
        self.next = 0

    def is_due(self, call: int) -> bool:
        """Whether this call is to be recorded."""
        return call >= self.next

    def _fail(self, call: int) -> None:
        """Count a failure, and wait from `call` on: 0 calls at first, then 1, 2, 4 and so on."""
        self.failures += 1
        self.next = call + min(1 << self.failures >> PATIENCE, _LONGEST_WAIT)

    def drop_invalid(self, call: int) -> None:
        """Drop the program and the recording if what they depend on has changed."""
        if self.program is not None and not self.program.guards.hold():
            self._report_change(self.program.guards, call)
            self.program = None
        if self.recording is not None and not self.recording.guards.hold():
            self._report_change(self.recording.guards, call)
            self.recording = None

    def _report_change(self, guards: Guards, call: int) -> None:
        self.reason = Reason(f"{guards.describe_change()}, which it uses, changes between calls")
        if call - guards.recorded_at < _WORTHWHILE:
            self._fail(call)
        else:
            self.failures = self.next = 0

    def record(
        self, step: Callable[..., Any], call: int, backend: Backend, inputs: Sequence[Any], named: dict[str, Any]
    ) -> Any:
        """Run the step and record it. Returns copies of its results."""
        before, self.recording = self.recording, None
        states = [] if before is None else before.guards.gradient_states()
        recorder = StepRecorder(backend, call, [] if before is None else [g.optimizer for g in before.guards.groups])
        self.reason = _EXCEPTION  # this recording has failed unless it ends with a success
        self._fail(call + 1)
        result = recorder.run(step, inputs, named)
        reason = recorder.reason
        if reason is None:
            self.recording = recorder.recording
            if before is not None:
                reason = _OTHER_STATE if None in states else difference(before, self.recording)
        if reason is None:
            if self.program is None:  # otherwise a step that alternates between two gradient states is always recorded
                self.failures -= 1
            if before is None:
                self.next = call + 1
            else:
                self.program, self.recording = Program(recorder.recording, states), None
        self.reason = RECORDING if reason is None else reason
        return result
