"""Modes: what holds inside a `with`, or while the body of a decorated function, generator or coroutine runs.

A mode is a set of context variables and their values. One object may be entered many times, within itself, and by
several threads and tasks at once: what it found on entering is kept in their context, not in the object.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import ContextVar
from typing import Any, Self, TypeVar, overload

_Function = TypeVar("_Function", bound=Callable[..., Any])

entered: ContextVar[Any] = ContextVar("gradflow_modes_entered", default=None)
"""The mode entered last in this context, the values it set, those it found, and the same of the one before it."""


class Mode:
    """A context manager and decorator. Subclasses name their `variables` and the values that these shall have."""

    variables: tuple[ContextVar[Any], ...]

    def _values(self) -> tuple[Any, ...]:
        """The values of the variables for a `with`, or a call of a decorated function, that begins."""
        raise NotImplementedError

    def _enter(self, values: tuple[Any, ...]) -> None:
        found = [variable.get() for variable in self.variables]
        for variable, value in zip(self.variables, values, strict=True):
            variable.set(value)
        entered.set((self, values, found, entered.get()))

    def _take_back(self) -> tuple[tuple[Any, ...] | None, list[Any]]:
        """Forget that this mode was entered, and all that was entered since; both, the latest first."""
        latest, later = entered.get(), []
        while latest is not None and latest[0] is not self:
            later.append(latest[:3])
            latest = latest[3]
        if latest is not None:
            entered.set(latest[3])
        return latest, later

    def _leave(self) -> tuple[Any, ...]:
        """Undo `_enter`; the values that it set."""
        latest, later = self._take_back()
        if latest is None:  # entered in another context, as by a generator that is closed elsewhere: nothing to undo
            return self._changed()
        for variable, value in zip(self.variables, latest[2], strict=True):
            for i in reversed(range(len(later))):
                mode, values, found = later[i]
                if variable in mode.variables:  # it holds, and what it shall go back to is no longer what it found
                    place = mode.variables.index(variable)
                    later[i] = mode, values, [*found[:place], value, *found[place + 1 :]]
                    break
            else:
                variable.set(value)
        for each in reversed(later):
            entered.set((*each, entered.get()))
        result: tuple[Any, ...] = latest[1]
        return result

    def _finish(self, values: tuple[Any, ...], error: BaseException | None) -> None:
        """What remains to be done after leaving; may raise."""

    def _changed(self) -> tuple[Any, ...]:
        """The values with which a body shall go on after a pause: what they are now."""
        return tuple([variable.get() for variable in self.variables])

    def __enter__(self) -> Any:
        self._enter(self._values())

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._finish(self._leave(), error)

    def __call__(self, function: _Function) -> _Function:
        """`function` in this mode: while its body runs, if it is a generator or coroutine, and not between."""
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"{self!r} decorates functions, generators and coroutines; got {function!r}")

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
                    except GeneratorExit:
                        await run.through(body.aclose())
                        raise
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


class _Run:
    """A call of a generator or coroutine in a mode: what its body does to the mode stays with it between the steps."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.values = mode._values()
        self.inner: list[Any] = []  # the modes that the body has entered and not left

    @types.coroutine
    def through(self, body: Any) -> Generator[Any, Any, Any]:
        """Run all steps of a generator, a coroutine, or one of the awaitables of an asynchronous generator."""
        step, given = body.send, None
        while True:
            ended, result = self._step(step, given)
            if ended:
                return result
            try:
                step, given = body.send, (yield result)
            except GeneratorExit:
                self._step(lambda _: body.close(), None)
                raise
            except BaseException as error:
                step, given = body.throw, error

    def _step(self, step: Callable[[Any], Any], given: Any) -> tuple[bool, Any]:
        """A step of a body: whether it has returned, and what it returned or yielded."""
        mode, error = self.mode, None
        mode._enter(self.values)
        for each in self.inner:
            entered.set((*each, entered.get()))
        try:
            return False, step(given)
        except StopIteration as end:
            return True, end.value
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.values = mode._changed()
            latest, later = mode._take_back()
            if latest is not None:
                self.inner = later[::-1]
                for variable, value in zip(mode.variables, latest[2], strict=True):
                    variable.set(value)
                mode._finish(latest[1], error)
