"""Modes, such as `no_grad` and `use_device`: context managers and decorators that set context variables.

The modes entered in a context form a stack of entries. An entry keeps the mode, the values that it set, the values that
they replaced, and the entry below. A mode object itself has no state, so that one object can be entered many times,
also within itself, and by several threads and tasks at once.

Leaving a mode pops its entry and puts the replaced values back. Modes are not always left in the reverse order of
entering: a generator may be closed while modes entered after its own are still active. So leaving first pops the
entries above, from the top down, and afterwards enters their modes again.

A decorated generator or coroutine is in the mode while its body runs, not while it is paused at a `yield` or `await`.
Its body may itself pause inside `with mode:`. So at each pause the decorator pops its own entry and all entries that
the body pushed above it, and remembers these; before the body resumes, the decorator pushes all of them again. The
caller thus never sees a mode of the body, and the body sees its modes on top of those that the caller is in then.
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
"""The top entry of this context's stack, (mode, values, replaced values, entry below), or None."""


class Mode:
    """A context manager and decorator that sets the context variables `variables`.

    Subclasses define `variables` and `_values`. They may override `_enter` and `_exited`, to do more when the mode is
    entered and left, and `_finish`, for work at the end.
    """

    variables: tuple[ContextVar[Any], ...]

    def _values(self) -> tuple[Any, ...]:
        """The values to set, one for each variable; computed once for each `with` and each call of a decorated body."""
        raise NotImplementedError

    def _enter(self, values: tuple[Any, ...]) -> None:
        """Push an entry and set the variables: on entering, and whenever a popped mode is entered again."""
        entered.set((self, values, [variable.get() for variable in self.variables], entered.get()))
        self._set(values)

    def _set(self, values: Iterable[Any]) -> None:
        for variable, value in zip(self.variables, values, strict=True):
            variable.set(value)

    def _exited(self) -> None:
        """Called after each pop, once the replaced values are back; undoes what an overridden `_enter` did."""

    def _finish(self, values: tuple[Any, ...], error: BaseException | None) -> None:
        """Called at the end of a `with` and at each pause and the end of a decorated body; may raise.

        `error` is the exception that ended the `with` or the body, if any.
        """

    def __enter__(self) -> Any:
        self._enter(self._values())

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        popped = _pop_through(self)
        if not popped:  # entered in another context, for example by a generator that is closed elsewhere
            self._exited()
            return
        _push(popped[1:])
        self._finish(popped[0][1], error)

    def __call__(self, function: _Function) -> _Function:
        """Decorate a function, generator or coroutine: its body runs in this mode."""
        if not callable(function) or isinstance(function, type):
            raise TypeError(
                "a mode (no_grad, use_device(...)) decorates functions, generators and coroutines, and in a class each "
                f"method by itself; got {function!r}"
            )

        call: Any
        if inspect.isasyncgenfunction(function):

            async def call(*arguments: Any, **options: Any) -> AsyncGenerator[Any, Any]:
                body, run = function(*arguments, **options), _PausingRun(self)
                step = body.asend(None)
                while True:
                    try:
                        result = await run.drive(step)
                    except StopAsyncIteration:
                        return
                    try:
                        step = body.asend((yield result))
                    except BaseException as error:
                        step = body.athrow(error)

        elif inspect.iscoroutinefunction(function):

            async def call(*arguments: Any, **options: Any) -> Any:
                return await _PausingRun(self).drive(function(*arguments, **options))

        elif inspect.isgeneratorfunction(function):

            def call(*arguments: Any, **options: Any) -> Generator[Any, Any, Any]:
                return (yield from _PausingRun(self).drive(function(*arguments, **options)))

        else:

            def call(*arguments: Any, **options: Any) -> Any:
                with self:
                    return function(*arguments, **options)

        return functools.wraps(function)(call)  # type: ignore[return-value]


class BareMode(Mode):
    """A mode without arguments: `with mode:` is `with mode():`, and `@mode` is `@mode()`."""

    @overload
    def __call__(self) -> Self: ...
    @overload
    def __call__(self, function: _Function) -> _Function: ...
    def __call__(self, function: Any = None) -> Any:
        """Decorate a function; without one, a new mode of this kind."""
        return type(self)() if function is None else super().__call__(function)


def _pop_through(mode: Mode) -> list[tuple[Mode, tuple[Any, ...]]]:
    """Pop the entries down to and including that of `mode`; returns their modes and values, `mode` first.

    Pops nothing and returns an empty list if `mode` is not on this context's stack.
    """
    entries, entry = [], entered.get()
    while entry is not None:
        entries.append(entry)
        if entry[0] is mode:
            break
        entry = entry[3]
    else:
        return []
    for each, _, replaced, below in entries:
        each._set(replaced)
        entered.set(below)
        each._exited()
    return [entry[:2] for entry in reversed(entries)]


def _push(popped: Sequence[tuple[Mode, tuple[Any, ...]]]) -> None:
    """Enter modes again that `_pop_through` returned."""
    for mode, values in popped:
        mode._enter(values)


class _PausingRun:
    """One call of a decorated generator or coroutine: enters the mode for each step of the body, and leaves at pauses.

    `inner` are the modes that the body had entered itself, and not left, when it last paused.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = copy.copy(mode)  # a copy, so that its entry is not mistaken for another entry of the same object
        self.values = mode._values()
        self.inner: Sequence[tuple[Mode, tuple[Any, ...]]] = ()

    @types.coroutine
    def drive(self, body: Any) -> Generator[Any, Any, Any]:
        """Run a generator, a coroutine, or an awaitable of an asynchronous generator to its end; returns its result."""
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
        """Run the body to its next pause: `step` is its `send` or `throw`."""
        error = None
        self.mode._enter(self.values)
        _push(self.inner)
        try:
            return step(given)
        except BaseException as raised:
            error = None if isinstance(raised, StopIteration) else raised
            raise
        finally:
            self.inner = _pop_through(self.mode)[1:]
            self.mode._finish(self.values, error)
