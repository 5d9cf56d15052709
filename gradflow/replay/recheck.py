"""The `check` of `capture`: runs a replay and the step itself from the same state and compares them bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

from gradflow.autograd.leaf import Leaf
from gradflow.random.generator import Generator, set_states, states_before
from gradflow.shapes import unravel
from gradflow.tensor import Tensor
from gradflow.tree import flatten


@runtime_checkable
class Stateful(Protocol):
    """What a step changes besides tensors and optimizers, such as an average of weights or a `GradScaler`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> None: ...


def run_both(
    replay: Callable[[], Any],
    step: Callable[[], Any],
    optimizers: Sequence[Any],
    leaves: Sequence[Leaf],
    objects: Sequence[Stateful],
) -> tuple[Any, str | None]:
    """What `step` returns, and a description of the first difference between `replay` and `step`, or None.

    Compares what they return, the parameters and states of `optimizers`, the gradients of `leaves` and of these
    parameters, and the states of `objects`, without generators and `optimizers` among them. Afterwards all of these
    have the values that `step` gave them.
    """
    own = (p._frozen_leaf() if p._node is None else p._node for each in optimizers for p in _parameters(each))
    leaves = list({*leaves, *(x for x in own if isinstance(x, Leaf))})
    others = [x for x in objects if x not in optimizers and not isinstance(x, Generator)]
    restore_all = [*map(_saved, optimizers), *[leaf.saved() for leaf in leaves]]
    restore_all += [partial(x.load_state_dict, x.state_dict()) for x in others]
    with states_before() as states:
        replayed = dict(_values(replay(), optimizers, leaves, others))
    set_states(states)
    for restore in restore_all:
        restore()
    result = step()
    expected = dict(_values(result, optimizers, leaves, others))
    names = [*expected, *(name for name in replayed if name not in expected)]
    differences = (_difference(name, replayed.get(name), expected.get(name)) for name in names)
    return result, next((each for each in differences if each is not None), None)


def _parameters(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _saved(optimizer: Any) -> Callable[[], None]:
    """A function that restores the present parameters and state of an optimizer."""
    groups, state = optimizer.param_groups, optimizer.state_dict()
    parameters = [(p, p.backend.copy(p.array)) for p in _parameters(optimizer)]

    def restore() -> None:
        optimizer.load_state_dict(state)
        optimizer.param_groups = groups  # the same dicts, which the user may hold
        for p, values in parameters:
            p._assign(values)  # which also tells those that keep a copy of the values

    return restore


def _values(
    result: Any, optimizers: Sequence[Any], leaves: Sequence[Leaf], others: Sequence[Stateful]
) -> Iterator[tuple[str, Any]]:
    """Everything that a step returns or changes, by name, on the host."""
    for path, x in flatten(result, "result"):
        yield path, x.backend.to_host(x.array)
    names: dict[Any, str] = {}
    for i, each in enumerate(optimizers):
        optimizer = type(each).__name__ + (f" {i}" if len(optimizers) > 1 else "")
        for j, p in enumerate(_parameters(each)):
            names[p._node] = f"parameter {j} of {optimizer}"
            yield f"parameter {j} of {optimizer}", p.backend.to_host(p.array)
        yield from _entries(each.state_dict()["state"], f"the state of {optimizer}, ")
    for i, leaf in enumerate(leaves):
        array = leaf.array
        name = names.get(leaf, f"leaf {i} of shape {tuple(leaf.shape)}")
        yield f"the gradient of {name}", None if array is None else leaf.backend.to_host(array)
    for i, each in enumerate(others):
        name = type(each).__name__ + (f" {i}" if len(others) > 1 else "")
        yield from _entries(each.state_dict(), f"the state of {name}, ")


def _entries(state: Any, name: str) -> Iterator[tuple[str, Any]]:
    for path, x in flatten(state, name):
        yield path, x.backend.to_host(x.array) if isinstance(x, Tensor) else x


def _difference(name: str, replayed: Any, expected: Any) -> str | None:
    """Describe where a value differs between a replay and the step; None if nowhere. NaNs with equal bits are equal."""
    a, b = replayed, expected
    if not (hasattr(a, "tobytes") and hasattr(b, "tobytes") and (a.shape, a.dtype) == (b.shape, b.dtype)):
        return None if a is b or (type(a) is type(b) and a == b) else f"{name} is {a} in a replay and {b} in the step"
    one, two, size = a.tobytes(), b.tobytes(), a.dtype.itemsize
    if one == two:
        return None
    place = next(i for i in range(0, len(one), size) if one[i : i + size] != two[i : i + size])
    where = unravel(place // size, a.shape)
    return f"{name} at index {where} is {a[where]!s} in a replay and {b[where]!s} in the step"
