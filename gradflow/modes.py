"""Modes: what holds inside a `with`, or while the body of a decorated function, generator or coroutine runs.

A mode is a set of context variables and their values. One object may be entered many times, within itself, and by
several threads and tasks at once: what it found on entering is kept in their context, not in the object.
"""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Self, TypeVar, overload

_Function = TypeVar("_Function", bound=Callable[..., Any])

entered: ContextVar[Any] = ContextVar("gradflow_modes_entered", default=None)
"""The mode entered last in this context, the values it set, those it found, and the same of the one before it."""


class Mode:
    """A context manager and decorator. Subclasses name their `variables` and the values that these get."""

    variables: tuple[ContextVar[Any], ...]

    def _values(self) -> tuple[Any, ...]:
        """The values of the variables for a `with`, or a call of a decorated function, that begins."""
        raise NotImplementedError

    def _enter(self, values: tuple[Any, ...]) -> None:
        """Set the variables. A generator or coroutine that goes on after a pause enters its modes again."""
        entered.set((self, values, [variable.get() for variable in self.variables], entered.get()))
        self._set(values)

    def _set(self, values: Iterable[Any]) -> None:
        for variable, value in zip(self.variables, values, strict=True):
            variable.set(value)

    def _left(self) -> None:
        """Called after the variables were set back: undoes what a subclass does in `_enter`."""

    def _finish(self, values: tuple[Any, ...], error: BaseException | None) -> None:
        """Called at the end of a `with` and at each pause of a decorated body; may raise."""

    def __enter__(self) -> Any:
        self._enter(self._values())

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        undone = _undo(self)
        if not undone:  # entered in another context, as by a generator that is closed elsewhere
            self._left()
            return
        _redo(undone[1:])
        self._finish(undone[0][1], error)

    def __call__(self, function: _Function) -> _Function:
        """`function` in this mode: while its body runs, if it is a generator or coroutine, and not between."""
        if not callable(function) or isinstance(function, type):
            raise TypeError(
                "a mode (no_grad, use_device(...)) decorates functions, generators and coroutines, and in a class each "
                f"method by itself; got {function!r}"
            )

        call: Any
        if inspect.isasyncgenfunction(function):

            async def call(*arguments: Any, **options: Any) -> AsyncGenerator[Any, Any]:
                body, run = function(*arguments, **options), _Run(self)
                step = body.asend(None)
                while True:
                    try:
                        result = await run.through(step)
                    except StopAsyncIteration:
                        return
                    try:
                        step = body.asend((yield result))
                    except BaseException as error:
                        step = body.athrow(error)

        elif inspect.iscoroutinefunction(function):

            async def call(*arguments: Any, **options: Any) -> Any:
                return await _Run(self).through(function(*arguments, **options))

        elif inspect.isgeneratorfunction(function):

            def call(*arguments: Any, **options: Any) -> Generator[Any, Any, Any]:
                return (yield from _Run(self).through(function(*arguments, **options)))

        else:

            def call(*arguments: Any, **options: Any) -> Any:
                with self:
                    return function(*arguments, **options)

        return functools.wraps(function)(call)  # type: ignore[return-value]


class BareMode(Mode):
    """A mode without arguments: `with mode():`, `@mode()` and `@mode` are the same."""

    @overload
    def __call__(self) -> Self: ...
    @overload
    def __call__(self, function: _Function) -> _Function: ...
    def __call__(self, function: Any = None) -> Any:
        """A mode of this kind, or a function in it."""
        return type(self)() if function is None else super().__call__(function)


def _undo(mode: Mode) -> list[tuple[Mode, tuple[Any, ...]]]:
    """Leave a mode, and first all that were entered since: all of them and their values, `mode` in front.

    Nothing is left, and the list is empty, where `mode` was not entered in this context.
    """
    undone, entry = [], entered.get()
    while entry is not None:
        undone.append(entry)
        if entry[0] is mode:
            break
        entry = entry[3]
    else:
        return []
    for each, _, found, before in undone:
        each._set(found)
        entered.set(before)
        each._left()
    return [entry[:2] for entry in reversed(undone)]


def _redo(undone: Sequence[tuple[Mode, tuple[Any, ...]]]) -> None:
    for mode, values in undone:
        mode._enter(values)


class _Run:
    """A call of a generator or coroutine in a mode: the mode, and those that its body has entered and not left."""

    def __init__(self, mode: Mode) -> None:
        self.mode = copy.copy(mode)  # which nobody else enters
        self.values = mode._values()
        self.inner: Sequence[tuple[Mode, tuple[Any, ...]]] = ()

    @types.coroutine
    def through(self, body: Any) -> Generator[Any, Any, Any]:
        """Run all steps of a generator, a coroutine, or one of the awaitables of an asynchronous generator."""
        step, given = body.send, None
        while True:
            try:
                result = self._step(step, given)
            except StopIteration as end:
                return end.value
            try:
                step, given = body.send, (yield result)
            except BaseException as error:
                step, given = body.throw, error

    def _step(self, step: Callable[[Any], Any], given: Any) -> Any:
        error = None
        self.mode._enter(self.values)
        _redo(self.inner)
        try:
            return step(given)
        except BaseException as raised:
            error = None if isinstance(raised, StopIteration) else raised
            raise
        finally:
            self.inner = _undo(self.mode)[1:]
            self.mode._finish(self.values, error)
