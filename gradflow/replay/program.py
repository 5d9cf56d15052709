"""Recordings of a step, their comparison, and their compilation to a `Program`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest
from typing import Any

from gradflow.autograd.leaf import GradientState, mark_filled, places
from gradflow.backend.graphs import join
from gradflow.replay import tracing
from gradflow.replay.host_state import StepState, cells_of
from gradflow.replay.reasons import Reason, describe
from gradflow.replay.recording import Call, Constant, Input, NewTensor, Recording, Ref, leaves, parts_of
from gradflow.tensor import Tensor

OnReport = Callable[[str, str | None], None]
"""Gets the new status of a step that is replayed, and the reason for a warning, if there is one."""
_MARK_FILLED = mark_filled.__wrapped__  # type: ignore[attr-defined]

# ---------------------------------------------------------------------- comparison


def difference(before: Recording, after: Recording) -> Reason | None:
    """The first difference between two recordings of a step, or None."""
    for a, b in zip_longest(before.calls, after.calls):
        if a is None or b is None or not _is_same(a._replace(place=""), b._replace(place="")):
            return _difference_at((b or a).place, a, b)
    if not _is_same(before.result, after.result):
        return _difference_at("the results", before.result, after.result)
    return None


def _difference_at(place: str, a: Any, b: Any) -> Reason:
    texts = ["no call" if x is None else _text(x, _readable) for x in (a, b)]
    if texts[0] == texts[1]:  # two objects with the same description
        pairs = zip(leaves(a, Constant), leaves(b, Constant), strict=False)
        other = next((describe(y.value) for x, y in pairs if not _is_same(x, y)), "argument")
        texts[1] = f"the same with another {other.removeprefix('a ')}"
    return Reason("two recordings differ", f" at {place}: {texts[0]}, then {texts[1]}")


def _is_same(a: Any, b: Any) -> bool:
    """Whether two arguments are the same: plain values by type and repr (so that 0.0 and -0.0 differ)."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list, dict, slice)):
        parts, others = parts_of(a), parts_of(b)
        return len(parts) == len(others) and all(map(_is_same, parts, others))
    return _is_same_object(a.value, b.value) if isinstance(a, Constant) else repr(a) == repr(b)


def _is_same_object(a: Any, b: Any) -> bool:
    """Whether two constants are the same: arrays and tensors by identity, floats by their bits, others by equality."""
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, Tensor) or hasattr(a, "dtype"):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    try:
        return bool(a == b)
    except Exception:  # of a user's __eq__
        return False


# ---------------------------------------------------------------------- Python


def _text(x: Any, name: Callable[[Any], str]) -> str:
    """A call or an argument in Python. `name` gives the text for backend functions and the classes above."""
    if isinstance(x, Call):
        options = [f"{key}={_text(part, name)}" for key, part in x.options.items()]
        return f"{name(x.function)}({', '.join([_text(part, name) for part in x.arguments] + options)})"
    if isinstance(x, (Input, Ref, Constant)):
        return name(x)
    if isinstance(x, NewTensor):
        return f"Tensor({name(x.array)}, F)"
    parts = [_text(part, name) for part in parts_of(x)]
    if isinstance(x, tuple):
        return f"({', '.join(parts)}{',' * (len(parts) == 1)})"
    if isinstance(x, list):
        return f"[{', '.join(parts)}]"
    if isinstance(x, dict):
        return f"{{{', '.join(map(': '.join, zip(parts[: len(x)], parts[len(x) :], strict=True)))}}}"
    if isinstance(x, slice):
        return f"slice({', '.join(parts)})"
    return repr(x)


def _readable(x: Any) -> str:
    """The name of a backend function, reference or constant in a reason."""
    if isinstance(x, str):
        return x
    if isinstance(x, Input):
        return f"input {x.position}"
    return f"result {x.call + 1}{x.path}" if isinstance(x, Ref) else describe(x.value)


def compile_replay(recording: Recording, joined: Collection[int] = ()) -> Callable[..., Any]:
    """A function of the inputs' arrays that makes the recorded calls, and deletes each result after its last use.

    joined: the numbers of the calls before which it calls `join`.
    """
    scope: dict[str, Any] = {"F": recording.backend, "Tensor": Tensor, "join": join}
    constants: dict[int, str] = {}

    def name(x: Any) -> str:
        if isinstance(x, str):
            return f"F.{x}"
        if isinstance(x, Input):
            return f"i{x.position}"
        if isinstance(x, Ref):
            return f"r{x.call}{x.path}"
        constant = constants.setdefault(id(x.value), f"c{len(constants)}")
        scope[constant] = x.value
        return constant

    lines = [f"return {_text(recording.result, name)}"]  # the last line first, so that a result's last use comes first
    if len(recording.calls) in joined:
        lines.append("join()")
    live = {ref.call for ref in leaves(recording.result, Ref)}
    for i, call in reversed([*enumerate(recording.calls)]):
        used = {i, *(ref.call for ref in leaves((call.arguments, call.options), Ref))}
        if used - live:
            lines.append(f"del {', '.join(f'r{n}' for n in sorted(used - live))}")
        lines.append(f"r{i} = {_text(call, name)}")
        if i in joined:
            lines.append("join()")
        live |= used
    inputs = ", ".join(f"i{i}" for i in range(recording.input_count))
    source = "\n    ".join([f"def replay({inputs}):", *reversed(lines)])
    exec(compile(source, "<captured step>", "exec"), scope)
    replay: Callable[..., Any] = scope.pop("replay")  # otherwise the function and its globals form a cycle
    return replay


def joins(calls: Sequence[Call]) -> set[int]:
    """The calls, by number, before which `join` is needed, the number of calls for the end.

    They are the first ones that use gradients which `linear_backward` has written into buffers.
    """
    found: set[int] = set()
    buffers: set[int] = set()
    for i, call in enumerate(calls):
        if call.function == "linear_backward":
            into = call.options["into"] if "into" in call.options else call.arguments[9]
            given: Any = call.arguments[:9]
        else:
            into, given = None, (call.arguments, call.options)
        if isinstance(call.function, Constant):  # which may read any gradient, unless it only counts them as filled
            uses = call.function.value is not _MARK_FILLED
        else:
            uses = not buffers.isdisjoint(id(x.value) for x in leaves(given, Constant))
        if buffers and uses:
            found.add(i)
            buffers = set()
        buffers |= {id(x.value) for x in leaves(into, Constant)}
    return {*found, len(calls)} if buffers else found


def split(recording: Recording) -> tuple[Recording, Recording]:
    """A recording in two parts: its calls, which end with a tuple of the results' arrays; and the results of these.

    The copies of the results at the end are left out.
    """
    calls, copied = list(recording.calls), {}
    while calls and calls[-1].function == "copy":
        source = calls.pop().arguments[0]
        copied[Ref(len(calls))] = source
    arrays: list[Any] = []
    result = _collected(recording.result, copied, arrays)
    return (
        recording._replace(calls=calls, result=tuple(arrays)),
        recording._replace(calls=[], result=result, input_count=len(arrays)),
    )


def _collected(x: Any, copied: dict[Ref, Any], arrays: list[Any]) -> Any:
    """A result whose arrays are inputs, which are appended to `arrays`, each the one that it is a copy of."""
    if isinstance(x, NewTensor):
        array: Any = x.array
        while array in copied:
            array = copied[array]
        arrays.append(array)
        return NewTensor(Input(len(arrays) - 1))
    if isinstance(x, dict):
        return {key: _collected(value, copied, arrays) for key, value in x.items()}
    return type(x)(_collected(part, copied, arrays) for part in x) if isinstance(x, (tuple, list)) else x


class Replayable:
    """A recording in the form that `Backend.graph` takes: see `RecordedStep`.

    `status`: what a call of the step does. `objects`: what the opaque calls of the step get.
    """

    def __init__(self, recording: Recording, on_report: OnReport) -> None:
        self.run = compile_replay(recording)
        self.status = "replaying"
        self._recording = recording
        self._on_report = on_report
        opaque = [call for call in recording.calls if isinstance(call.function, Constant)]
        constants = [x.value for call in opaque for x in leaves((call.arguments, call.options), Constant)]
        self.objects = list({id(x): x for x in constants}.values())

    def parts(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        calls, results = split(self._recording)
        return compile_replay(calls, joins(calls.calls)), compile_replay(results)

    def trace_obstacle(self) -> str | None:
        return tracing.obstacle(self._recording)

    def trace(self, make: tracing.Make, *inputs: Any) -> Any:
        return tracing.trace(split(self._recording)[0], make, inputs)

    def report(self, reason: str) -> None:
        self.note(f" call by call, since it {reason}")
        self._on_report(self.status, reason)

    def note(self, words: str) -> None:
        self.status = f"replaying{words}"
        self._on_report(self.status, None)

    def obstacle(self) -> str | None:
        found = (x._graph_obstacle() for x in self.objects if hasattr(x, "_graph_obstacle"))
        return next((x for x in found if x is not None), None)

    def host_state(self) -> StepState:
        return StepState(cells_of(self.objects))


class Program:
    """A replayable recording: `replay(*arrays)` makes its calls on other inputs. Only valid if `is_valid()`.

    inputs: the arrays of the inputs of the recorded call.
    states: the gradient states of `guards.leaves` when the recorded step began.
    on_report: gets the status once the backend has found out how it replays the recording.
    """

    __slots__ = ("_checked", "guards", "replay", "replayable", "states")

    def __init__(
        self,
        recording: Recording,
        inputs: Sequence[Any],
        states: list[GradientState | None],
        on_report: OnReport,
    ) -> None:
        self.guards = recording.guards
        self.states = states
        self._checked = -1  # `places.last_change` when the states were the same
        self.replayable = Replayable(recording, on_report)
        self.replay = recording.backend.graph(self.replayable, inputs)

    def is_valid(self) -> bool:
        """Whether the step would make the same calls now."""
        guards, now = self.guards, places.last_change
        if now != self._checked:
            if guards.gradient_states() != self.states:
                return False
            self._checked = now
        return guards.hold()
