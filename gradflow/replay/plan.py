"""Plans: when to record a step for one signature of inputs, and how many calls run normally after a failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gradflow.autograd.leaf import GradientState
from gradflow.backend import Backend
from gradflow.replay.program import OnReport, Program, difference
from gradflow.replay.reasons import Reason
from gradflow.replay.recorder import StepRecorder
from gradflow.replay.recording import Recording

PATIENCE = 3
"""From this many failures in a row on, the step is recorded less and less often, and the reason is logged."""
_LONGEST_WAIT = 1024
"""The largest number of calls that run normally between two recordings."""
_MIN_USEFUL_CALLS = 16
"""If a recording was valid for this many calls of the step, with any inputs, its invalidation is not a failure."""
_MAX_STATES = 4
"""The largest number of programs, and of recordings that wait for a second one, for different gradient states."""
RECORDING = Reason("recording", expected=True)
_EXCEPTION = Reason("raises an exception", expected=True)
_SHARED = Reason("other tensors share the buffer of a gradient")
_TOO_MANY_STATES = Reason(f"begins with gradients in more than {_MAX_STATES} combinations of places")


class _Candidate(NamedTuple):
    """A recording that becomes a program if a second one agrees with it.

    states: the gradient states in which the recorded step began; None for the first recording, whose leaves were not
    known before.
    """

    recording: Recording
    states: list[GradientState | None] | None


class Plan:
    """The state of a step for one signature of inputs.

    on_report: as for `Program`.

    programs: the programs, each for one list of gradient states. Gradient accumulation, for example, alternates
    between calls that begin without gradients and calls that add to them.
    candidates: the recordings since the step last ran normally that have not become programs.
    reason: why the last call that was recorded, or a change since, led to no program; otherwise `RECORDING`.
    failures: how many recordings in a row failed or were soon invalidated. A success does not reset it: it may be
    invalidated just as soon. It is reset when a recording has been useful.
    next_attempt: the number of the first call that may be recorded.
    """

    def __init__(self, on_report: OnReport) -> None:
        self._on_report = on_report
        self.programs: tuple[Program, ...] = ()
        self.candidates: list[_Candidate] = []
        self.reason = RECORDING
        self.failures = 0
        self.next_attempt = 0

    def is_due(self, call: int) -> bool:
        """Whether to record this call."""
        return call >= self.next_attempt

    def _fail(self, call: int, reason: Reason) -> None:
        """Count a failure. The calls from `call` on run normally: none for the first two failures, then 1, 2, 4, ..."""
        self.reason = reason
        self.failures += 1
        self.next_attempt = call + min(1 << self.failures >> PATIENCE, _LONGEST_WAIT)

    def drop_invalid(self, call: int) -> None:
        """Drop the programs and recordings that depend on something that has changed."""
        guards = [*[each.guards for each in self.programs], *[each.recording.guards for each in self.candidates]]
        invalid = [each for each in guards if not each.hold()]
        if not invalid:
            return
        self.programs = tuple(each for each in self.programs if each.guards not in invalid)
        self.candidates = [each for each in self.candidates if each.recording.guards not in invalid]
        reason = Reason(f"uses {invalid[0].describe_change()}, which changes between calls")
        if call - min(each.recorded_at for each in invalid) < _MIN_USEFUL_CALLS:
            self._fail(call, reason)
        else:
            self.reason, self.failures, self.next_attempt = reason, 0, call

    def record(
        self, step: Callable[..., Any], call: int, backend: Backend, inputs: Sequence[Any], named: dict[str, Any]
    ) -> Any:
        """Run the step and record it. Returns copies of its results."""
        candidates, self.candidates = self.candidates, []  # a failed recording leaves none
        states = [each.recording.guards.gradient_states() for each in candidates]
        optimizers = [groups.optimizer for groups in candidates[-1].recording.guards.groups] if candidates else []
        recorder = StepRecorder(backend, call, optimizers)
        try:
            result = recorder.run(step, inputs, named)
        except BaseException:
            self._fail(call + 1, _EXCEPTION)
            raise
        reason = recorder.reason
        if reason is None:
            arrays = [x.array for x in (*inputs, *named.values())]
            reason = self._add(recorder.recording, arrays, candidates, states)
        if reason is None:
            self.reason, self.next_attempt = RECORDING, call + 1
        else:
            self._fail(call + 1, reason)
        return result

    def _add(
        self,
        recording: Recording,
        inputs: Sequence[Any],
        candidates: list[_Candidate],
        states: list[list[GradientState | None]],
    ) -> Reason | None:
        """Make a program of a recording if it agrees with a candidate; otherwise make it a candidate.

        inputs: the arrays of the inputs.
        states: for each candidate, the states of its gradients at the beginning of the new recording. The recording is
        compared with the last candidate and with the one that began in the same states. Returns the reason if this is a
        failure. A recording in new states is not, since the next one in these states may agree.
        """
        self.candidates = candidates
        if not candidates:
            candidates.append(_Candidate(recording, None))
            return None
        last, began = candidates[-1], states[-1]
        reason = None
        for i in reversed(range(len(candidates))):
            candidate, now = candidates[i], states[i]
            if candidate is not last and candidate.states != now:
                continue
            found = difference(candidate.recording, recording)
            if found is None and None not in now:
                del candidates[i]
                program = Program(recording, inputs, now, self._on_report)
                return self._add_program(program)  # both have the same leaves, in the same order
            if candidate.states is None or candidate.states == now:
                del candidates[i]
                reason = found or _SHARED
                break
        is_known = last.recording.guards.leaves == recording.guards.leaves
        candidates.append(_Candidate(recording, began if is_known else None))
        if len(candidates) > _MAX_STATES:
            del candidates[0]
            return _TOO_MANY_STATES
        return reason

    def _add_program(self, program: Program) -> Reason | None:
        self.programs += (program,)
        if len(self.programs) <= _MAX_STATES:
            return None
        self.programs = self.programs[1:]
        return _TOO_MANY_STATES
