"""Whether operations are recorded, and how: `no_grad`, `enable_grad`, and the observer and dtype of the context."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Any

from gradflow.modes import BareMode, entered

if TYPE_CHECKING:
    from gradflow.autograd.observers import Observer
    from gradflow.dtypes import DType


class GradMode(Enum):
    """The values of `grad_enabled`. All are truthy: compare them by `is`."""

    OFF = "operations are not recorded"
    FAST = "operations are recorded, and may take fast paths"
    CAST = "operations are recorded without fast paths, since `autocast` converts their inputs"
    OBSERVED = "operations are recorded without fast paths, so that an observer sees each of them"


OFF, FAST, CAST, OBSERVED = GradMode

grad_enabled: ContextVar[GradMode] = ContextVar("gradflow_grad_enabled", default=FAST)
"""The mode of the current context."""
current_observer: ContextVar[Observer | None] = ContextVar("gradflow_observer", default=None)
autocast_dtype: ContextVar[DType | None] = ContextVar("gradflow_autocast", default=None)
"""The dtype of the products of this context, or None outside `autocast`."""
repeating: ContextVar[bool] = ContextVar("gradflow_repeating", default=False)
"""Whether this context computes again what it has computed before, so that it must not count as another batch."""


class _SetsGradMode(BareMode):
    variables = (grad_enabled,)
    recording: bool

    def _values(self) -> tuple[Any, ...]:
        return (mode_if(self.recording),)

    def _enter(self, values: tuple[Any, ...]) -> None:
        super()._enter(self._values())  # an observer may have come or gone since a generator paused

    def __enter__(self) -> None:  # the same as `_enter`, faster because there is one variable
        value = mode_if(self.recording)
        entered.set((self, (value,), (grad_enabled.get(),), entered.get()))
        grad_enabled.set(value)

    def __exit__(self, *_: object) -> None:
        latest = entered.get()
        if latest is None or latest[0] is not self:
            super().__exit__(None, None, None)
        else:
            grad_enabled.set(latest[2][0])
            entered.set(latest[3])


def mode_if(recording: bool) -> GradMode:
    """Return the mode of a context that records operations, or does not: OFF."""
    if not recording:
        return OFF
    if current_observer.get() is not None:
        return OBSERVED
    return CAST if autocast_dtype.get() is not None else FAST


class _NoGrad(_SetsGradMode):
    """Disables recording inside a `with`, or while a decorated function, generator or coroutine runs.

    Results do not require a gradient. `@no_grad` and `@no_grad()` are the same.

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


class _EnableGrad(_SetsGradMode):
    """Enables recording inside a `with`, or while a decorated function, generator or coroutine runs.

    Also inside `no_grad`.
    """

    recording = True


no_grad = _NoGrad()
enable_grad = _EnableGrad()


def is_grad_enabled() -> bool:
    """Return whether operations are recorded in the current context.

    >>> import gradflow as gf
    >>> with gf.no_grad():
    ...     gf.is_grad_enabled()
    False
    >>> gf.is_grad_enabled()
    True
    """
    return grad_enabled.get() is not OFF
