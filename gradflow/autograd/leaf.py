"""Leaves of the graph: the gradient of a tensor that was not computed, and the buffer that it is written to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

from gradflow.autograd import saved
from gradflow.autograd.saved import Memory, _wrap, tick
from gradflow.backend import Array, Backend
from gradflow.interception import invalidate, opaque_call

if TYPE_CHECKING:
    from gradflow.tensor import Tensor


class _Sample:
    __slots__ = ("attribute",)

    def __init__(self) -> None:
        self.attribute = object()


_sample = _Sample()
ONE_REFERENCE = sys.getrefcount(_sample.attribute)
"""The count of references to `x.attribute`, in just this form, where nothing else refers to it. (Of a local variable,
the count depends on the version of Python.)"""


class Leaf:
    """The end of a walk: holds the gradient of a tensor that was not computed, and the buffer to write it to.

    Walks of several threads may end at one leaf at once. A walk adds a gradient while it holds one of
    `locks.adding`. A walk that writes a gradient straight to the buffer has claimed it meanwhile: `free` is the sign of
    that walk, and what others add waits in `_grad` until it is done.
    """

    __slots__ = (
        "__weakref__",
        "_grad",
        "backend",
        "block",
        "buffer",
        "dtype",
        "filled",
        "free",
        "hooks",
        "id",
        "memory",
        "shape",
    )

    op = None
    parents = ()
    hooks: dict[int, Callable[[Any], Any]]  # only of `hooked_nodes`

    def __init__(self, backend: Backend, shape: tuple[int, ...], dtype: Any) -> None:
        self.backend = backend
        self.shape = shape
        self.dtype = dtype
        self._grad: Tensor | None = None
        self.filled = False  # whether the buffer holds the gradient, for which there is no tensor yet
        self.buffer: Array | None = None
        self.free: Array | None = None  # the buffer, where the next gradient may be written straight to it
        self.block: Any = None  # the optimizer's block of flat arrays that the buffer is a part of
        self.memory = Memory()  # of the buffer
        self.memory.tensors = []
        self.id = tick()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def grad(self) -> Tensor | None:
        """The gradient, or None. The tensor is made when it is asked for: an optimizer needs the buffer alone."""
        if self.filled:
            assert self.buffer is not None
            self._grad = _wrap(self.buffer, self.backend, None)
            self.filled = False
            self.memory.add(self._grad)
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is None:
            self.clear()
        else:
            self._grad, self.filled, self.free = value, False, None

    @property
    def array(self) -> Array | None:
        """The array of the gradient, or None."""
        if self.filled:
            return self.buffer
        return None if self._grad is None else self._grad.array

    def mark_gradient_changed(self) -> None:
        """Note a change in place of the gradient."""
        if self.filled:
            self.memory.change()
        elif self._grad is not None:
            self._grad._bump()

    def is_claimed(self) -> bool:
        """Whether a walk is writing to the buffer."""
        return self.free is not None and self.free is not self.buffer

    def is_held(self) -> bool:
        """Whether a tensor in the buffer is still referenced: the gradient, an earlier gradient, or a view of one."""
        for reference in self.memory.tensors or ():
            if reference() is not None and reference() is not self._grad:
                return True
        in_buffer = self._grad is not None and self._grad.array is self.buffer
        return in_buffer and sys.getrefcount(self._grad) > ONE_REFERENCE

    def clear(self) -> None:
        """Forget the gradient."""
        self._grad = None
        self.filled = False
        tensors = self.memory.tensors
        if tensors and any(reference() is not None for reference in tensors):
            self.free = None  # they get copies when there is another gradient to write
        else:
            self.memory.tensors = []
            self.free = self.buffer

    def saved(self) -> Callable[[], None]:
        """A function that restores the gradient as it is now."""
        array, free = self.array, self.free
        elsewhere = None if array is None or array is self.buffer else self._grad
        values = None if array is None else self.backend.copy(array)

        def put_back() -> None:
            self.clear()
            if array is not None:
                self.backend.setitem(array, ..., values)
            self._grad, self.free = elsewhere, free
            self.filled = array is not None and elsewhere is None  # the tensor itself is not kept alive

        return put_back

    def give(self, buffer: Array, block: Any) -> None:
        """Have backward passes write to `buffer`, which is a part of `block`. A gradient stays where it is."""
        held = self.grad  # made now, if it lies in the buffer that was
        self.take_back()
        self.buffer, self.block = buffer, block
        self.free = buffer if held is None else None
        invalidate(self)

    def hand_out(self) -> None:
        """Make what the buffer holds the gradient."""
        self._grad = self.free = None
        self.filled = True

    def take_back(self) -> None:
        """Before the buffer is written anew: who still holds the gradient that it held, or a view, gets a copy."""
        tensors = self.memory.tensors
        assert tensors is not None
        for reference in tensors:
            held = reference()
            if held is not None:
                array = held.array
                held.array = self.backend.copy(array)
                invalidate(array)
                held._memory = Memory(self.memory.changed)
        tensors.clear()


class _Locks:
    """`claims` is held briefly to change which walk may write to a buffer. `adding`: to add to gradients; the leaf with
    number `id` uses `adding[id % 64]`. A forked child renews them, since other threads may have held them.
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
def _hand_out(leaves: Sequence[Leaf]) -> None:
    """Make what the leaves' buffers hold their gradients."""
    waiting = []
    with locks.claims:
        for leaf in leaves:
            if leaf._grad is not None:
                waiting.append((leaf, leaf._grad.array))
                leaf._grad = None
            leaf.free = None
            leaf.filled = True
    for leaf, g in waiting:
        _accumulate(leaf, g, False)


@opaque_call
def _accumulate(leaf: Leaf, g: Any, create_graph: bool, own: bool = False) -> None:
    """Add g to the gradient of a leaf, in its own buffer, which no other leaf shares. `own`: nobody else has g."""
    with locks.adding[leaf.id % 64]:
        while True:
            with locks.claims:
                claimed, waiting = leaf.is_claimed(), leaf._grad
                if not claimed:
                    leaf.free = None
            if not claimed:
                break
            if create_graph:
                total = saved.tensor_functions.copy(g) if waiting is None else saved.tensor_functions.add(waiting, g)
            else:
                array = leaf.backend.copy(g) if waiting is None else leaf.backend.add(waiting.array, g)
                total = _wrap(leaf.backend.asarray(array), leaf.backend, None)
            with locks.claims:
                if leaf.is_claimed():
                    leaf._grad = total
                    return
        _add_to(leaf, g, create_graph, own)


def _add_to(leaf: Leaf, g: Any, create_graph: bool, own: bool) -> None:
    grad = leaf.grad
    if grad is None and create_graph:
        leaf.grad = saved.tensor_functions.copy(g)
    elif grad is None and leaf.buffer is None:
        leaf.grad = _wrap(g if own else leaf.backend.copy(g), leaf.backend, None)
    elif grad is None:
        leaf.take_back()
        if g is not leaf.buffer:
            leaf.backend.setitem(leaf.buffer, ..., g)
        leaf.hand_out()
    elif create_graph:
        leaf.grad = saved.tensor_functions.add(grad, g)
    elif grad._node is not None:
        leaf.grad = saved.tensor_functions.add(grad, _wrap(g, leaf.backend, None))
    elif grad.array is leaf.buffer:
        leaf.backend.setitem(grad.array, ..., leaf.backend.add(grad.array, g))
        grad._bump()
    else:  # an array that may be someone else's
        leaf.grad = _wrap(leaf.backend.asarray(leaf.backend.add(grad.array, g)), leaf.backend, None)
