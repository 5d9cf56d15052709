"""Ctrl-C at any moment of a recording leaves a process in which steps are captured as before."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.replay import interception


def captured() -> Any:
    w = gf.ones((2, 2), requires_grad=True)
    optimizer = gf.optim.SGD([w], lr=0.1)

    def step(x: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    return gf.capture(step)


def replays() -> bool:
    step, x = captured(), gf.ones((2, 2))
    for _ in range(4):
        step(x)
    return str(step.status).startswith("replaying")


def calls_until_interrupted(line: int) -> int:
    """Call a captured step, and interrupt it at a line, by number, of what intercepts calls; how many there were."""
    lines = 0

    def on_line(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == line:
                raise KeyboardInterrupt
        return on_line

    def on_call(frame: Any, event: str, _: Any) -> Any:
        return on_line if frame.f_code.co_filename == interception.__file__ else None

    step, x, before = captured(), gf.ones((2, 2)), sys.gettrace()
    sys.settrace(on_call)
    try:
        for _ in range(4):
            step(x)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.slow
def test_steps_are_captured_after_an_interrupt_anywhere_in_an_interception() -> None:
    own = dict(vars(gf.get_backend("cpu")))
    lines = calls_until_interrupted(0)
    assert lines > 200
    for line in np.linspace(1, lines, 40, dtype=int).tolist():
        calls_until_interrupted(line)
        assert replays(), line
        assert vars(gf.get_backend("cpu")) == own, line


@pytest.mark.parametrize("interrupted", [False, True])
def test_other_threads_record_after_an_interrupt(interrupted: bool) -> None:
    if interrupted:  # between the lock and what would release it
        interception.recording_lock.acquire()
    assert replays()
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(replays()))
    thread.start()
    thread.join()
    assert found == [True]
