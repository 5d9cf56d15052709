"""A captured step as programs of kernels: `lower`.

While a step is traced, `Trace` keeps each call of the backend, with its arrays and the kernels that it launched. From
then on, all arrays stay where they are. `lower` turns the calls into parts of the step by the first rule that fits:

- a call of a pure function on constants, such as the 1 that a backward pass begins with: nothing, its result is there;
- a call that launched kernels: the same launches, at the same addresses;
- a view, such as a reshape: nothing;
- a check of labels that are an input: a kernel that sets the status, and stops the step before it changes anything;
- another check of an input: Python makes it before all else;
- any other call: Python calls the function again, and copies its result to the place of the first one.

The launches between two Python calls are a `Program` of `levels`. It gets the addresses of the inputs, but those that
Python uses must be copied to their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Array
from gradflow_numpy.native import kernels
from gradflow_numpy.native.elementwise import ELEMENTWISE, launch_elementwise
from gradflow_numpy.native.kernels import Launch
from gradflow_numpy.native.levels import address, divide, levels, root
from gradflow_numpy.native.losses import check_labels
from gradflow_numpy.native.threads import Input, Program

_PURE = {*ARRAY_FUNCTIONS, "getitem", "copy", "seed"}
"""The functions whose results depend on their arguments alone, and which change nothing."""
_KERNELS = {*KERNELS, "setitem"}
"""The functions that may change arrays."""
_WAITING = {"to_host", "host_values", "synchronize", "event", "stream", "from_host_ahead", "from_host_later", "pin"}
"""The functions that read values or wait: what depends on them is not known to be the same later."""


class Call(NamedTuple):
    """A traced call, and what it launched."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    result: Any
    launches: list[Launch]


class PythonCall:
    """A call that each replay makes again. `may_raise`: whether nothing that the step keeps has been changed before."""

    def __init__(self, call: Call, may_raise: bool) -> None:
        self.call, self.may_raise = call, may_raise
        self._places = list(_arrays(call.result))

    def run(self) -> None:
        _, function, arguments, options, *_ = self.call
        for place, x in zip(self._places, _arrays(_placed(function(*arguments, **options))), strict=True):
            if x is not place:
                np.copyto(place, x)


class Lowered(NamedTuple):
    """A step as programs and Python calls, in this order.

    places: of each input that must be copied, where the trace had it; None for others, which programs read where they
    are. copied: the numbers of those that must; the number after the last one stands for the row of numbers. kept: the
    ids of what owns memory that the step changes, but does not own.
    """

    parts: list[Program | PythonCall]
    places: list[Array | None]
    copied: set[int]
    kept: set[int]

    def names_in_python(self) -> list[str]:
        return list(dict.fromkeys(part.call.name for part in self.parts if isinstance(part, PythonCall)))


# ---------------------------------------------------------------------- tracing


class Trace:
    """Makes the calls of a step, and keeps them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def make(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call a function; see `RecordedStep.trace`. NumPy scalars in its result become arrays, which have a place."""
        launches: list[Launch] = []
        kernels.recorders[get_ident()] = launches.append
        try:
            result = _placed(function(*arguments, **options))
            if not str(getattr(function, "__module__", "")).startswith(__package__):
                launches.clear()  # it also works on arrays itself
            if not launches and not options and name in ELEMENTWISE:
                launch_elementwise(name, arguments, result)
        finally:
            del kernels.recorders[get_ident()]
        self.calls.append(Call(name, function, arguments, options, result, launches))
        return result


def _placed(result: Any) -> Any:
    if isinstance(result, np.generic):
        return np.asarray(result)
    if isinstance(result, tuple):
        parts = [_placed(x) for x in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return result


def _arrays(x: Any) -> Iterator[Array]:
    """The arrays in an argument or a result."""
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from _arrays(part)
    elif isinstance(x, dict):
        yield from _arrays(list(x.values()))
    elif hasattr(x, "array"):  # a tensor
        yield x.array


# ---------------------------------------------------------------------- lowering


def lower(calls: Sequence[Call], places: list[Array], row: Array, results: Sequence[Array]) -> Lowered:
    """The parts of a step. Raises NotImplementedError, whose message follows "it", if the trace cannot be repeated.

    places: the inputs as the calls got them. row: what had the numbers that change; programs get the address of the
    present ones after the inputs. results: the results of the step.
    """
    lowering = _Lowering(calls, places, row)
    for i, call in enumerate(calls):
        lowering.add(i, call)
    return lowering.finish(results)


class _Lowering:
    """Memory is known by what owns it: see `root`."""

    def __init__(self, calls: Sequence[Call], places: list[Array], row: Array) -> None:
        self._places = [*places, row]
        self._input_of = {id(x): i for i, x in enumerate(self._places)}
        self._writers: dict[int, set[int]] = {}
        self._kept: set[int] = set()
        made: set[int] = set()
        for i, call in enumerate(calls):
            changed = _owners(_changed(call))
            for owner in changed:
                self._writers.setdefault(owner, set()).add(i)
            self._kept |= changed & _owners(call.arguments, call.options) - made
            made |= _owners(call.result)
        if not self._writers.keys().isdisjoint(self._input_of):
            raise NotImplementedError("changes an input")
        self._constants: set[int] = set()
        self._segments: list[list[Launch] | PythonCall] = [[]]
        self._checks: list[Launch] = []
        self._python_checks: list[PythonCall] = []
        self._status = np.zeros(1, np.int64)
        self._copied: set[int] = set()
        self._has_changed = False  # whether a call before has written to memory that the step does not own

    def add(self, i: int, call: Call) -> None:
        """Lower a call, the i-th."""
        given, made = _owners(call.arguments, call.options), _owners(call.result)
        if call.name in _PURE and given <= self._constants and all(self._writers.get(x, {i}) == {i} for x in made):
            self._constants |= made
        elif call.launches:
            last = self._segments[-1]
            if isinstance(last, PythonCall):
                self._segments.append(last := [])
            last += call.launches
        elif not ((call.name in _PURE and made <= given) or self._is_check(call)):
            self._in_python(call, given)
        self._has_changed |= any(i in self._writers.get(owner, ()) for owner in self._kept)

    def _is_check(self, call: Call) -> bool:
        """Whether a call checks labels that are an input; then a kernel does it before all else."""
        if call.name != "_check_label_values":
            return False
        _, target, classes, ignored = call.arguments
        labels = target.array
        if labels.dtype != np.int64 or not labels.flags.c_contiguous or id(root(labels)) not in self._input_of:
            return False
        ignored = ignored if abs(ignored) < 1 << 63 else 0  # 0 is no wrong label anyway
        arguments = labels, self._status, labels.size, classes, ignored
        self._checks.append(Launch(check_labels, np.dtype(np.float32), 1, labels.size, arguments))
        return True

    def _in_python(self, call: Call, given: set[int]) -> None:
        if call.name in _WAITING:
            raise NotImplementedError(f"calls {call.name}")
        if any(isinstance(x, np.generic) for x in _leaves((call.arguments, call.options))):
            raise NotImplementedError(f"passes a number of NumPy to {call.name}")
        if any(x.__class__ in (int, float) for x in _leaves(call.result)):
            raise NotImplementedError(f"computes a number of Python by {call.name}")
        self._copied |= {self._input_of[owner] for owner in given if owner in self._input_of}
        if call.name in _PURE or call.name in _KERNELS:
            self._segments.append(PythonCall(call, not self._has_changed))
        elif given <= self._input_of.keys() | self._constants:  # a check that can come before all else
            self._python_checks.append(PythonCall(call, True))
        elif self._has_changed:  # what it raises would leave another state than in the plain step
            raise NotImplementedError(f"calls {call.name} after it has changed something")
        else:
            self._segments.append(PythonCall(call, True))

    def finish(self, results: Sequence[Array]) -> Lowered:
        self._copied |= {self._input_of[id(root(x))] for x in results if id(root(x)) in self._input_of}
        first = self._segments[0]
        assert isinstance(first, list)
        first[:0] = self._checks
        parts = [self._program(x) if isinstance(x, list) else x for x in self._segments if x]
        places = [x if i in self._copied else None for i, x in enumerate(self._places[:-1])]
        return Lowered([*self._python_checks, *parts], places, self._copied, self._kept)

    def _program(self, traced: list[Launch]) -> Program:
        launches = divide(traced)
        held = [i for i, each in enumerate(launches) if not self._kept.isdisjoint(_owners(_written(each)))]
        found = levels(launches, len(self._checks) if traced is self._segments[0] else 0, held)
        given = [each._replace(arguments=tuple(map(self._argument, each.arguments))) for each in launches]
        return Program([[[given[i] for i in group] for group in level] for level in found], self._status)

    def _argument(self, x: Any) -> Any:
        """An argument of a launch: an `Input` for an array that is part of one."""
        i = self._input_of.get(id(root(x))) if isinstance(x, np.ndarray) else None
        return x if i is None else Input(i, address(x) - address(self._places[i]))


def _written(launch: Launch) -> list[Array]:
    return [x for x, letter in zip(launch.arguments, launch.kernel.access, strict=True) if letter in "wuWU"]


def _changed(call: Call) -> Any:
    """What has the arrays that a call may change."""
    if call.launches:
        return [_written(each) for each in call.launches]
    if call.name in _PURE or call.name not in _KERNELS:
        return ()
    if call.name == "batch_norm":  # the running statistics
        return call.arguments[4:], call.options
    if call.name == "setitem":
        return call.arguments[0]
    if call.result is None or call.name == "clip_global_norm":
        return call.arguments, call.options
    given_owners = _owners(call.arguments, call.options)
    return [x for x in _arrays(call.result) if id(root(x)) in given_owners]


def _owners(*given: Any) -> set[int]:
    return {id(root(x)) for x in _arrays(given)}


def _leaves(x: Any) -> Iterator[Any]:
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else None
    if parts is None:
        yield x
    else:
        for part in parts:
            yield from _leaves(part)
