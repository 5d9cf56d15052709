"""What a step changes on the host: gradient states, step counts, numbers of changes (`HostState`).

All of it is attributes of objects that opaque calls get. A class whose instances change in such a call lists these
attributes in `_stepped()`: pairs of an object and the name of an attribute. With each step,

- a `counter` of a generator advances by the numbers that the step draws,
- another integer grows by the same difference, but `Memory.changed` gets the number of the present change, and the
  `half_at` of a slice of an optimizer that of the last change of its values,
- the `histories` of a block of an optimizer count the step, as its `steps_between` says,
- any other attribute has the same value after each step that begins with the same value.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from gradflow.autograd.leaf import IN_BUFFER, places
from gradflow.autograd.memory import clock
from gradflow.autograd.wrapping import wrap
from gradflow.tensor import Tensor

Cell = tuple[Any, str]
"""An object, and the name of an attribute of it."""


def cells_of(objects: Iterable[Any]) -> list[Cell]:
    """The attributes that a step may change of objects that opaque calls get, each once."""
    found: dict[tuple[int, str], Cell] = {}
    for obj in objects:
        if isinstance(obj, Tensor):
            obj = obj._frozen_leaf() if obj._node is None else obj._node
        if hasattr(obj, "_stepped"):
            for owner, name in obj._stepped():
                found[id(owner), name] = owner, name
    return list(found.values())


def _is_unread(leaf: Any) -> bool:
    """Whether the gradient of a leaf is in a buffer, and no tensor is made of it."""
    return leaf.state is IN_BUFFER and not leaf.is_held()


class StepState:
    """The state of some cells, as it is now."""

    def __init__(self, cells: list[Cell]) -> None:
        self._cells = cells
        # every gradient in a buffer is a tensor until the end, so that `difference` sees where a step drops it; not one
        # that lies in the slot, for which `Leaf.clear` would not reserve the buffer
        self._made = [(x, wrap(x.slot.array, x.backend)) for x, name in cells if name == "_grad" and _is_unread(x)]
        for leaf, grad in self._made:
            leaf.slot.holders.clear()
            leaf._grad = grad
        self._before = [getattr(x, name) for x, name in cells]

    def restore(self) -> None:
        """As in the contract."""
        for (x, name), value in zip(self._cells, self._before, strict=True):
            setattr(x, name, value)
        self._drop_made()

    def _drop_made(self) -> None:
        for leaf, grad in self._made:
            if leaf._grad is grad:
                leaf._grad = None

    def difference(self) -> Difference:
        """As in the contract. Raises NotImplementedError for a gradient outside of a buffer, a new array each time."""
        changes = [
            (x, name, before, getattr(x, name))
            for (x, name), before in zip(self._cells, self._before, strict=True)
        ]  # fmt: skip
        self._drop_made()
        for _, name, before, after in changes:
            if name == "_grad" and after is not None and after is not before:
                raise NotImplementedError("keeps a gradient outside of the buffers of an optimizer")
        return Difference(changes)


_HELD = attrgetter("slot.holders")


class Difference:
    """The changes of a step, as (object, attribute, value before, value after): `apply()` makes them once more."""

    def __init__(self, changes: Iterable[tuple[Any, str, Any, Any]]) -> None:
        expected: dict[str, list[tuple[Any, Any]]] = {}
        self._changed: list[Any] = []
        self._half_at: list[Any] = []
        self._cleared: list[Any] = []
        self._elsewhere: list[tuple[Any, Any]] = []  # gradients that the step may read outside of buffers
        self._generators: list[tuple[Any, int]] = []
        self._counts: list[tuple[Any, str, int]] = []
        self._constants: list[tuple[Any, str, Any]] = []
        self._steps: list[Any] = []  # of optimizers
        for x, name, before, after in changes:
            if name == "_grad":
                if after is None:
                    self._cleared.append(x)
                if before is not None and (x.slot is None or before.array is not x.slot.array):
                    self._elsewhere.append((x, before.array))
                continue
            if name in ("state", "_node", "_unscaled"):
                expected.setdefault(name, []).append((x, before))
            if after is before or after == before:
                continue
            if name == "changed":
                self._changed.append(x)
            elif name == "half_at":
                self._half_at.append(x)
            elif name == "counter":
                self._generators.append((x, 4 * (after - before)))
            elif name == "histories":
                self._steps += x.steps_between(before, after)
            elif type(after) is int:
                self._counts.append((x, name, after - before))
            else:
                self._constants.append((x, name, after))
        self._with_slots = [leaf for leaf in self._cleared if leaf.slot is not None]
        self._unscaled = expected.pop("_unscaled", [])
        self._expected = [
            (attrgetter(name), [x for x, _ in pairs], [value for _, value in pairs]) for name, pairs in expected.items()
        ]
        self._moves = any(name in ("state", "_node") for _, name, _ in self._constants)
        self._checked = -1  # `places.last_change` in the last check
        self._left = -1  # and while all gradients are where `apply` leaves them

    def applies(self) -> bool:
        """As in the contract."""
        for scaler, before in self._unscaled:
            if scaler._unscaled != before:
                return False
        self._checked = places.last_change
        return self._checked == self._left or self._are_in_place()

    def _are_in_place(self) -> bool:
        """Whether the gradients are where they were before the first step, and are not held."""
        for get, objects, values in self._expected:
            if [*map(get, objects)] != values:
                return False
        for leaf, array in self._elsewhere:
            if leaf._grad is None or leaf._grad.array is not array:
                return False
        return not (any(map(_HELD, self._with_slots)) and any(leaf.is_held() for leaf in self._with_slots))

    def apply(self) -> None:
        """As in the contract."""
        for steps in self._steps:
            steps.count()
        if self._changed:
            now = clock.change()
            for x in self._changed:
                x.changed = now
        for s in self._half_at:
            s.half_at = s.tensor._memory.changed
        if self._checked != self._left:
            for leaf in self._cleared:
                leaf._grad = None
            for leaf in self._with_slots:
                leaf.slot.holders.clear()
            if self._moves:
                places.change()
            elif not self._elsewhere:  # whose arrays may be others without a change of place
                self._left = self._checked
        for x, name, value in self._constants:
            setattr(x, name, value)
        for x, name, count in self._counts:
            setattr(x, name, getattr(x, name) + count)
        for generator, words in self._generators:
            generator.draw(words)
