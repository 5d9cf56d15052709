"""Where operations are called: the line of user code, and the modules that it is in."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from gradflow.nn.module import Module
from gradflow.transforms.recompute import checkpoint

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_CALL = Module.__call__.__code__
_CHECKPOINT = checkpoint.__code__


class Call(NamedTuple):
    """A call of a module, or with `module` None of `checkpoint`. `number` tells two calls of a module apart."""

    module: Module | None
    number: int


class Place(NamedTuple):
    """Where an operation was called: the calls of modules around it, the outermost first, and the line."""

    calls: tuple[Call, ...]
    line: str | None


class Places:
    """Finds places by the frames of the interpreter, so that nothing is paid where no graph is recorded."""

    def __init__(self) -> None:
        self._frames: list[tuple[FrameType, Call]] = []  # those of the last operation: while they are kept, `is` tells
        self._count = 0  # calls so far

    def current(self) -> Place:
        """The place that the calling function was called from."""
        frame: FrameType | None = sys._getframe(1)
        line = None
        found = []
        while frame is not None:
            if frame.f_code is _CALL or frame.f_code is _CHECKPOINT:
                found.append(frame)
            if line is None and not _inside(frame):
                line = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
            frame = frame.f_back
        found.reverse()
        kept: list[tuple[FrameType, Call]] = []
        for i, frame in enumerate(found):
            if len(kept) == i and i < len(self._frames) and self._frames[i][0] is frame:
                kept.append(self._frames[i])
            else:
                self._count += 1
                module: Any = frame.f_locals["self"] if frame.f_code is _CALL else None
                kept.append((frame, Call(module, self._count)))
        self._frames = kept
        return Place(tuple([call for _, call in kept]), line)

    def forget(self) -> None:
        """Drop the frames of the last operation."""
        self._frames = []


def user_frame() -> FrameType:
    """The innermost frame that is neither gradflow's nor `contextlib`'s."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _inside(frame):
        frame = frame.f_back
    return frame


def _inside(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(_PACKAGE) or file == contextlib.__file__
