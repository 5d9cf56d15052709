"""KeyboardInterrupt at every line of a trainer's work: it goes on with the same bits, or it refuses to go on."""

from __future__ import annotations

import contextvars
import sys
from pathlib import Path
from typing import Any

import pytest
from test_resume import Case, losses, outcome

import gradflow as gf
from gradflow.autograd import grad_mode
from gradflow.optim import averaging
from gradflow.training import Trainer, evaluation, progress, step, trainer

pytestmark = pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or a coverage tool traces the tests")
FILES = {str(Path(str(module.__file__))) for module in (averaging, evaluation, grad_mode, progress, step, trainer)}


class Interruption:
    """Raises KeyboardInterrupt at the line with this number, of those that run in the trainer's files, in a `with`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self

    def __enter__(self) -> Interruption:
        sys.settrace(self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)


CASE = Case(capture=False, average=0.9, accumulate=2, clip_norm=0.5, shuffle="default")


def attempt(at: int) -> tuple[Any, Any] | None:
    """Interrupt a run at a line, and go on: the last two losses and the outcome, or None if it refuses to go on."""
    run: Trainer = CASE.trainer()
    list(run.steps(1))
    with pytest.raises(KeyboardInterrupt), Interruption(at):
        list(run.steps(3))
    assert gf.is_grad_enabled()
    try:
        return losses(run, 6)[-2:], outcome(run)
    except RuntimeError as error:
        if "load a saved state" in str(error):
            return None
        raise


@pytest.mark.slow
def test_an_interrupt_at_any_line() -> None:
    """From the last step of an epoch with its validation to the first of the next; an epoch has 2 steps."""
    whole = CASE.trainer()
    list(whole.steps(1))
    with Interruption(0) as lines:
        list(whole.steps(3))
    expected = losses(whole, 6)[-2:], outcome(whole)
    found = [contextvars.copy_context().run(attempt, at) for at in range(1, -lines.left + 1)]
    assert [at for at, each in enumerate(found, 1) if each not in (None, expected)] == []
    assert expected in found
    assert None in found
