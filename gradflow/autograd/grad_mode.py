"""Whether operations are recorded: `no_grad`, `enable_grad`, and the observer of the current context."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from gradflow.modes import BareMode, entered

if TYPE_CHECKING:
    from gradflow.autograd.observers import Observer

grad_enabled: ContextVar[int] = ContextVar("gradflow_grad_enabled", default=True)
"""True or False; or 1, true but not `True`, while there is an observer: then no operation takes a shortcut past it."""
current_observer: ContextVar[Observer | None] = ContextVar("gradflow_observer", default=None)


class _GradMode(BareMode):
    variables = (grad_enabled,)
    recording: bool

    def _values(self) -> tuple[Any, ...]:
        return (self.recording,)

    def _enter(self, values: tuple[Any, ...]) -> None:
        super()._enter((_recording(values[0]),))

    def __enter__(self) -> None:  # `_enter` for one variable
        value = _recording(self.recording)
        entered.set((self, (value,), (grad_enabled.get(),), entered.get()))
        grad_enabled.set(value)

    def __exit__(self, *_: object) -> None:
        latest = entered.get()
        if latest is None or latest[0] is not self:
            super().__exit__(None, None, None)
        else:
            grad_enabled.set(latest[2][0])
            entered.set(latest[3])


def _recording(value: int) -> int:
    """What `grad_enabled` is where operations are recorded, or not."""
    return (True if current_observer.get() is None else 1) if value else False


class _NoGrad(_GradMode):
    """Record no operation inside a `with`, or while a decorated function, generator or coroutine runs.

    Results need no gradient. `@no_grad` and `@no_grad()` are the same.

    >>> import gradflow as gf
    >>> w = gf.ones(2, requires_grad=True)
    >>> @gf.no_grad
    ... def predictions(batches):
    ...     for x in batches:
    ...         yield w * x
    >>> [(y.requires_grad, gf.is_grad_enabled()) for y in predictions([1.0, 2.0])]
    [(False, True), (False, True)]
    """

    recording = False


class _EnableGrad(_GradMode):
    """Record operations inside a `with`, or while a decorated function, generator or coroutine runs.

    Also within `no_grad`.
    """

    recording = True


no_grad = _NoGrad()
enable_grad = _EnableGrad()


def is_grad_enabled() -> bool:
    """Whether operations are recorded at this point."""
    return bool(grad_enabled.get())
