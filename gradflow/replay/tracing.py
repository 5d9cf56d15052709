"""Traces: a recorded step whose calls of the backend are made by somebody else, who sees all arrays (`trace`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradflow.backend import Backend
from gradflow.dtypes import DType
from gradflow.replay import interception
from gradflow.replay.interception import Interceptor
from gradflow.replay.recording import Call, Constant, Input, NewTensor, Recording, Ref, leaves
from gradflow.tensor import Tensor

Make = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Calls a function, whose name is given, and returns its result."""


def obstacle(recording: Recording) -> str | None:
    """Why a recording cannot be traced, in words that follow "it": an opaque call with unknown effects; or None."""
    for call in recording.calls:
        if isinstance(call.function, Constant) and not _is_stepped(call) and not _only_checks(call):
            return f"calls {_name(call.function.value)}, whose changes are not known"
    return None


def trace(recording: Recording, make: Make, inputs: Sequence[Any]) -> Any:
    """What a recording returns for these inputs; `make` makes its calls of the backend, also those in opaque calls.

    An opaque call of an object that lists what it changes on the host (`_stepped`) is made as it is; others, which
    check values, are made by `make`. Returns None, at once, if another thread records.
    """
    with interception.recording() as is_free:
        if not is_free:
            return None
        tracer = _Tracer(make)
        with tracer.intercepting([recording.backend]):
            return _Evaluation(recording.backend, inputs).run(recording, tracer)


class _Tracer(Interceptor):
    """Gives the calls of the backend to `make`."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.make = make

    def on_call(
        self, backend: Backend, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: Any
    ) -> Any:
        with self.ignoring_reports():
            return self.make(name, function, arguments, options)

    def opaque_call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return function(*arguments, **options)

    def forbid_replay(self, reason: str) -> None:
        pass

    def on_read(self, obj: Any, attribute: str = "") -> None:
        pass

    def on_create(self, obj: Any) -> None:
        pass

    def on_change(self, obj: Any, here: bool) -> None:
        pass


class _Evaluation:
    """Makes the calls of a recording one by one."""

    def __init__(self, backend: Backend, inputs: Sequence[Any]) -> None:
        self._backend, self._inputs = backend, inputs
        self._results: list[Any] = []

    def run(self, recording: Recording, tracer: _Tracer) -> Any:
        for call in recording.calls:
            arguments, options = self._value(call.arguments), self._value(call.options)
            if not isinstance(call.function, Constant):
                result = getattr(self._backend, call.function)(*arguments, **options)
            elif _is_stepped(call):
                result = call.function.value(*arguments, **options)
            else:
                with tracer.ignoring_reports():
                    function = call.function.value
                    result = tracer.make(_name(function), function, arguments, options)
            self._results.append(result)
        return self._value(recording.result)

    def _value(self, x: Any) -> Any:
        """What an argument in a recording stands for."""
        if isinstance(x, Input):
            return self._inputs[x.position]
        if isinstance(x, Ref):
            return eval(f"result{x.path}", {"result": self._results[x.call]}) if x.path else self._results[x.call]
        if isinstance(x, NewTensor):
            return Tensor(self._value(x.array), self._backend)
        if isinstance(x, Constant):
            return x.value
        if isinstance(x, dict):
            return {key: self._value(part) for key, part in x.items()}
        if isinstance(x, slice):
            return slice(self._value(x.start), self._value(x.stop), self._value(x.step))
        return type(x)(map(self._value, x)) if isinstance(x, (tuple, list)) else x


def _is_stepped(call: Call) -> bool:
    """Whether an opaque call gets an object whose changes on the host are known: see `host_state`."""
    return any(hasattr(_leaf_of(x), "_stepped") for x in _constants(call))


def _only_checks(call: Call) -> bool:
    """Whether an opaque call gets arrays and plain values only."""
    return all(hasattr(x, "dtype") or isinstance(x, (Backend, DType)) for x in _constants(call))


def _constants(call: Call) -> list[Any]:
    return [x.value for x in leaves((call.arguments, call.options), Constant)]


def _leaf_of(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x._frozen_leaf() if x._node is None else x._node


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
