"""Leaves of the graph: the gradient of a tensor that no operation computed, and the optimizer's buffer for it."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from enum import Enum
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

from gradflow.autograd.memory import ONE_REFERENCE, Memory, clock
from gradflow.autograd.wrapping import added, wrap
from gradflow.backend import Array, Backend
from gradflow.interception import invalidate, opaque_call

if TYPE_CHECKING:
    from gradflow.tensor import Tensor


class GradientState(Enum):
    """Where the gradient of a leaf is."""

    EMPTY = "no gradient; the next one is added by `accumulate`"
    RESERVED = "no gradient; a walk may claim the buffer to write the next one straight to it"
    CLAIMED = "a walk is writing to the buffer; what other walks add waits in `_grad`"
    IN_BUFFER = "in the buffer; `Leaf.grad` makes a tensor of it when read"
    ELSEWHERE = "in a tensor outside the buffer"


EMPTY, RESERVED, CLAIMED, IN_BUFFER, ELSEWHERE = GradientState


class _Places:
    """A version number of where the gradients of all leaves are stored, and of who may hold references to them.

    While `last_change` stays the same, a replay need not check each leaf again. Code that changes a `state`, a `_grad`
    or a `slot` calls `change` first, so that an interrupt in between is harmless. Code that hands out a tensor of a
    gradient calls it last, since another thread may do so during a replay.
    """

    __slots__ = ("last_change",)

    def __init__(self) -> None:
        self.last_change = 0

    def change(self) -> None:
        self.last_change = clock.tick()


places = _Places()

arrivals: ContextVar[Callable[[Leaf], None] | None] = ContextVar("gradflow_arrivals", default=None)
"""What a backward pass of this context calls with each leaf whose buffer holds the whole gradient of the pass, or None.

It is called during the pass, as soon as no other operation adds to the gradient. Leaves whose gradient is not written
straight to their buffer are left out.
"""


class GradientSlot(Memory):
    """The part of an optimizer's flat buffer that holds the gradient of one leaf.

    `array` is that part, in the shape of the leaf; `block()` returns the optimizer's block of flat arrays, or None once
    it is gone. The slot is also the `Memory` of all tensors that lie in it: `holders` are weak references to them.
    """

    __slots__ = ("_limit", "array", "block", "holders")

    def __init__(self, array: Array, block: Callable[[], Any]) -> None:
        super().__init__()
        self.array = array
        self.block = block
        self.holders: list[weakref.ref[Tensor]] = []
        self._limit = 64  # at this length, references to dead tensors are removed

    def add(self, tensor: Tensor) -> None:
        """Record that a tensor lies in this memory."""
        super().add(tensor)
        if len(self.holders) >= self._limit:
            self.holders[:] = [reference for reference in self.holders if reference() is not None]
            self._limit = 2 * len(self.holders) + 64
        self.holders.append(weakref.ref(tensor))
        places.change()

    def copy_out_holders(self) -> None:
        """Give each tensor that lies in this memory its own copy, before the memory is overwritten."""
        for reference in self.holders:
            tensor = reference()
            if tensor is not None:
                array = tensor.array
                tensor.array = tensor.backend.copy(array)
                invalidate(array)
                tensor._memory = Memory(self.changed)
        self.holders.clear()


class Leaf:
    """A leaf of the graph, for a tensor that was not computed and requires grad. Walks add to the gradients of leaves.

    `state` says where the gradient is; `slot` is the optimizer's buffer for it, or None. In a training step with an
    optimizer, a leaf is RESERVED after `clear`, CLAIMED by the walk that writes to its buffer, and IN_BUFFER once that
    walk has marked it filled; then the optimizer reads the buffer. All other gradients are added by `accumulate`.

    backend, shape, dtype: of the tensor.

    Walks of several threads may reach one leaf at the same time: see `locks`.
    """

    __slots__ = ("__weakref__", "_grad", "backend", "dtype", "hooks", "id", "shape", "slot", "state")

    op = None
    parents = ()
    hooks: dict[int, Any]  # unset until the first hook is added

    def __init__(self, backend: Backend, shape: tuple[int, ...], dtype: Any) -> None:
        self.backend = backend
        self.shape = shape
        self.dtype = dtype
        self.state = EMPTY
        self.slot: GradientSlot | None = None
        self._grad: Tensor | None = None
        self.id = clock.tick()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def grad(self) -> Tensor | None:
        """The gradient, or None."""
        if self.state is IN_BUFFER and self._grad is None:
            assert self.slot is not None
            self._grad = wrap(self.slot.array, self.backend)
            self.slot.add(self._grad)
        elif self._grad is not None:
            places.change()
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is None:
            self.clear()
        else:
            places.change()
            in_buffer = self.slot is not None and value.array is self.slot.array
            self._grad, self.state = value, IN_BUFFER if in_buffer else ELSEWHERE

    @property
    def array(self) -> Array | None:
        """The array of the gradient, or None."""
        if self.state is IN_BUFFER:
            assert self.slot is not None
            return self.slot.array
        return None if self._grad is None else self._grad.array

    def mark_gradient_changed(self) -> None:
        """Record an in-place change of the gradient."""
        if self.state is IN_BUFFER:
            assert self.slot is not None
            self.slot.change()
        elif self._grad is not None:
            self._grad._bump()

    def is_held(self) -> bool:
        """Return whether anything else refers to a tensor in the buffer: the gradient, an earlier one, or a view."""
        if self.slot is None:
            return False
        for reference in self.slot.holders:
            if reference() is not None and reference() is not self._grad:
                return True
        return self.state is IN_BUFFER and self._grad is not None and sys.getrefcount(self._grad) > ONE_REFERENCE

    def clear(self) -> None:
        """Drop the gradient, and reserve the buffer for the next one unless tensors that lie in it are still alive.

        Not allowed while another thread walks to this leaf: the next walk could write to the same buffer as that one.
        """
        places.change()
        self._grad = None
        if self.slot is None:
            self.state = EMPTY
        elif self.slot.holders and any(reference() is not None for reference in self.slot.holders):
            self.state = EMPTY  # they get copies when the next gradient is written
        else:
            self.slot.holders.clear()
            self.state = RESERVED

    def saved(self) -> Callable[[], None]:
        """Return a function that restores the gradient to its present values and place."""
        state, array = self.state, self.array
        elsewhere = None if state is IN_BUFFER else self._grad  # `grad` makes a new tensor of the buffer
        values = None if array is None else self.backend.copy(array)

        def restore() -> None:
            self.clear()
            if hasattr(array, "__setitem__"):
                self.backend.setitem(array, ..., values)
            elif elsewhere is not None:  # with a NumPy scalar, which stays as it is
                elsewhere.array = array
            self._grad, self.state = elsewhere, state

        return restore

    def attach(self, buffer: Array, block: Callable[[], Any]) -> None:
        """Make `buffer`, a part of `block()`, the one that walks write to. A present gradient stays where it is.

        Raises RuntimeError while a walk writes to the present buffer.
        """
        places.change()
        with locks.claims:
            if self.state is CLAIMED:
                raise RuntimeError(
                    "a parameter was passed to a new optimizer while a backward pass writes its gradient for another "
                    "one: create optimizers before or after backward()"
                )
            if self.state is RESERVED:
                self.state = EMPTY  # so that no walk claims the old buffer
        grad = self.grad
        if self.slot is not None:
            self.slot.copy_out_holders()
        self.slot = GradientSlot(buffer, block)
        self.state = RESERVED if grad is None else ELSEWHERE
        invalidate(self)

    def _stepped(self) -> Iterator[tuple[Any, str]]:
        """The attributes that a training step changes: see `gradflow.replay.host_state`."""
        yield self, "_grad"
        yield self, "state"
        if self.slot is not None:
            yield self.slot, "changed"

    def mark_filled(self) -> None:
        """Make the values in the buffer the gradient."""
        places.change()
        self._grad, self.state = None, IN_BUFFER


class _Locks:
    """The locks that walks of several threads hold while they change leaves.

    `claims` is held briefly, to claim and release buffers. `adding[leaf.id % 64]` is held to add to the gradient of a
    leaf. A forked child creates new locks, since threads that do not exist in it may have held the old ones.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.claims = Lock()
        self.adding = [RLock() for _ in range(64)]


locks = _Locks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=locks.renew)


@opaque_call
def mark_filled(leaves: Sequence[Leaf]) -> None:
    """Make the values that a walk wrote to the buffers of leaves their gradients. Add what other walks left waiting."""
    waiting = []
    places.change()
    with locks.claims:
        for leaf in leaves:
            if leaf._grad is not None:
                waiting.append((leaf, leaf._grad.array))
                leaf._grad = None
            leaf.state = IN_BUFFER
    for leaf, g in waiting:
        accumulate(leaf, g)


def claim(parents: Sequence[Any], claimed: list[Leaf]) -> list[Array | None]:
    """Claim the RESERVED leaves among the parents of a node; return their buffers, with None for the other parents.

    The leaves are also appended to `claimed`, for `release`.
    """
    buffers: list[Array | None] = []
    places.change()
    with locks.claims:
        for parent in parents:
            if parent is not None and parent.state is RESERVED:
                claimed.append(parent)  # first, so that an interrupt leaves no claim that is not in the list
                parent.state = CLAIMED
                buffers.append(parent.slot.array)
            else:
                buffers.append(None)
    return buffers


def release(leaves: Sequence[Leaf]) -> None:
    """Release the claims of a walk that did not fill the buffers of these leaves. Others stay unchanged."""
    places.change()
    with locks.claims:
        for leaf in leaves:
            if leaf.state is CLAIMED:
                leaf.state = EMPTY if leaf._grad is None else ELSEWHERE


@opaque_call
def accumulate(leaf: Leaf, g: Any, namespace: Any = None, own: bool = False) -> None:
    """Add g to the gradient of a leaf, in an array of its own. For `namespace` and `own` see `added`."""
    places.change()
    with locks.adding[leaf.id % 64]:
        while True:
            with locks.claims:
                claimed, waiting = leaf.state is CLAIMED, leaf._grad
                if leaf.state is RESERVED:
                    leaf.state = EMPTY  # so that no walk claims the buffer while this adds
            if not claimed:
                _add_to(leaf, g, namespace, own)
                return
            total = added(leaf.backend, waiting, g, namespace)
            with locks.claims:
                if leaf.state is CLAIMED:  # else that walk has finished and added what waited: try again
                    leaf._grad = total
                    return


def _add_to(leaf: Leaf, g: Any, namespace: Any, own: bool) -> None:
    F, slot = leaf.backend, leaf.slot
    if namespace is None and leaf.state is IN_BUFFER and (leaf._grad is None or leaf._grad._node is None):
        assert slot is not None
        F.setitem(slot.array, ..., F.add(slot.array, g))
        slot.change()
    elif namespace is None and slot is not None and leaf.state is EMPTY:
        slot.copy_out_holders()
        if g is not slot.array:
            F.setitem(slot.array, ..., g)
        leaf.mark_filled()
    else:
        leaf.grad = added(F, leaf.grad, g, namespace, own)
