"""What a recording of a step is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gradflow.backend import Backend
from gradflow.replay.guards import Guards


class Input(NamedTuple):
    """The array of an input of the step."""

    position: int


class Ref(NamedTuple):
    """The result of a call, numbered from 0, or the part of it at `path`, Python source such as "[1]" or ".array"."""

    call: int
    path: str = ""


class NewTensor(NamedTuple):
    """A tensor without a graph, to be created around an array."""

    array: Input | Ref


class Constant:
    """An object from before the step, such as the array of a parameter or an optimizer."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Call(NamedTuple):
    """A call of a backend function, given by its name, or of an opaque function.

    Arguments are None, `...`, bools, numbers, strings, the classes above, and tuples, lists, dicts and slices of these.
    """

    function: str | Constant
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    place: str
    """The file and the line of the step that makes the call; ignored in comparisons."""


class Recording(NamedTuple):
    """What a step did in one call; the result has the form of an argument."""

    backend: Backend
    input_count: int
    calls: Sequence[Call]
    result: Any
    guards: Guards


def parts_of(x: Any) -> Sequence[Any]:
    """The elements of a tuple, list, dict (keys, then values) or slice; none for other objects."""
    if isinstance(x, slice):
        return x.start, x.stop, x.step
    if isinstance(x, dict):
        return *x, *x.values()
    return x if isinstance(x, (tuple, list)) else ()


def leaves(x: Any, cls: type) -> Iterator[Any]:
    """The instances of a class within an argument."""
    if isinstance(x, cls):
        yield x
    else:
        for part in parts_of(x):
            yield from leaves(part, cls)
