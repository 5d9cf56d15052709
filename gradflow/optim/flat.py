"""Flat buffers: all parameters of an optimizer in one array per device and dtype, and their gradients in another.

The tensors of the model become views of the buffer, and backward passes write gradients straight into the other, so
that an optimizer step is one pass over whole arrays. Each parameter starts at a multiple of 256 bytes; the gaps hold
zeros, which no step changes.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow.dtypes import DTYPES
from gradflow.engine import Leaf, Memory, tick
from gradflow.tensor import Tensor

_ALIGNMENT = 256  # bytes


class Member:
    """A parameter's place in a block: its tensor, its group, [start, stop), the two views, its count of steps.

    `filled` names the arrays of the block's state in which a step has left something of this parameter.
    """

    __slots__ = ("filled", "gradient", "group", "index", "start", "step", "stop", "tensor", "values")

    def __init__(self, tensor: Tensor, index: int, group: int, start: int) -> None:
        self.tensor = tensor
        self.index = index
        self.group = group
        self.start = start
        self.stop = start + tensor.size
        self.step = 0
        self.filled: frozenset[str] = frozenset()
        self.values: Array = None
        self.gradient: Array = None

    def follows(self, other: Member) -> bool:
        """Whether a step treats this member and the other alike: one group, one count of steps, one kind of state."""
        return self.group == other.group and self.step == other.step and self.filled == other.filled


class Block:
    """The parameters of one device and dtype: `values` and `gradients` are flat arrays, and so is each of `state`."""

    def __init__(self, backend: Backend, native: Any, members: Sequence[tuple[int, int, Tensor]]) -> None:
        self.backend = backend
        self.native = native
        step = _ALIGNMENT // DTYPES[backend.dtype_name(native)].itemsize
        self.members: list[Member] = []
        end = 0
        for index, group, tensor in members:
            member = Member(tensor, index, group, math.ceil(end / step) * step)
            self.members.append(member)
            end = member.stop
        self.size = end
        self.values = backend.zeros((end,), dtype=native)
        self.gradients = backend.zeros((end,), dtype=native)
        self.state: dict[str, Array] = {}
        for member in self.members:
            member.values = self.view(self.values, member)
            member.gradient = self.view(self.gradients, member)
            self._adopt(member)

    def view(self, flat: Array, member: Member) -> Array:
        """The part of a flat array that belongs to a member, in its shape."""
        return self.backend.reshape(flat[member.start : member.stop], member.tensor.shape)

    def state_array(self, name: str) -> Array:
        """The flat array `name` of the state; zeros at first, as where a hyperparameter that needs it is set later."""
        if name not in self.state:
            self.state[name] = self.backend.zeros((self.size,), dtype=self.native)
        return self.state[name]

    def _adopt(self, member: Member) -> None:
        """Make the member's tensor a view of this block, its values unchanged."""
        tensor = member.tensor
        if tensor.backend is not self.backend or tensor.array.dtype != self.native:
            raise RuntimeError(
                f"parameter {member.index} was moved to {tensor.dtype} on {tensor.device} after the optimizer was "
                "made; make the optimizer after model.to(...)"
            )
        self.backend.setitem(member.values, ..., tensor.array)
        tensor.array = member.values
        changed = 0 if tensor._memory is None else tensor._memory.changed
        tensor._memory = Memory(changed)  # of its own: views made before stay with the old one

    def refresh(self) -> None:
        """Bring in what was changed outside: values and gradients that are not in the buffers."""
        outside: list[tuple[Member, Leaf, Array]] = []
        for member in self.members:
            tensor = member.tensor
            if tensor.array is not member.values:
                self._adopt(member)
            leaf = tensor._node
            if leaf is None:
                continue
            assert isinstance(leaf, Leaf)
            if leaf.buffer is not member.gradient:
                leaf.take_back()  # what lies in another optimizer's buffer
                leaf.buffer = member.gradient
                leaf.block = weakref.ref(self)  # a strong one would close a cycle through the tensor
            if leaf.grad is not None and leaf.grad.array is not member.gradient:
                outside.append((member, leaf, self.backend.asarray(leaf.grad.array, copy=True)))
        for member, leaf, gradient in outside:  # only now: one may have been in the place of another
            leaf.take_back()
            self.backend.setitem(member.gradient, ..., gradient)
            leaf.hand_out()

    def runs(self) -> Iterator[tuple[int, slice, list[Member]]]:
        """The members that have a gradient, in runs of one group and one past: (group, range, members)."""
        run: list[Member] = []
        for member in self.members:
            leaf = member.tensor._node
            ready = leaf is not None and leaf.grad is not None  # type: ignore[union-attr]
            if run and not (ready and member.follows(run[0])):
                yield run[0].group, slice(run[0].start, run[-1].stop), run
                run = []
            if ready:
                run.append(member)
        if run:
            yield run[0].group, slice(run[0].start, run[-1].stop), run

    def changed(self, members: Sequence[Member], filled: frozenset[str]) -> None:
        """Note a change in place of the members' values, count a step of each, and what is now `filled` of them."""
        now = tick()
        for member in members:
            member.tensor._memory.changed = now  # type: ignore[union-attr]  # `_adopt` made it
            member.step += 1
            member.filled = filled


def make_blocks(groups: Sequence[Sequence[Tensor]], first: int = 0) -> list[Block]:
    """Blocks for the groups from the `first` on, each parameter in one block; those of a group stand together."""
    sorted_out: dict[tuple[int, str], tuple[Backend, Any, list[tuple[int, int, Tensor]]]] = {}
    index = 0
    for g, tensors in enumerate(groups):
        for tensor in tensors:
            if g < first:
                index += 1
                continue
            key = (id(tensor.backend), tensor.dtype.name)
            entry = sorted_out.setdefault(key, (tensor.backend, tensor.array.dtype, []))
            entry[2].append((index, g, tensor))
            index += 1
    blocks = [Block(*entry) for entry in sorted_out.values()]
    for block in blocks:
        block.refresh()
    return blocks
