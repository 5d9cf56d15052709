"""Flat buffers: all parameters of an optimizer in one array per device and dtype, and their gradients in another.

The tensors of the model become views of the buffer, and backward passes write gradients straight into the other, so
that an optimizer step is one pass over whole arrays. Each parameter starts at a multiple of 256 bytes; the gaps hold
zeros, which no step changes.

A parameter whose memory others see (another parameter that is a view of it, a detached alias, the NumPy array behind
`asarray`) stays where it is as long as they do: a step copies it into the buffer, and its new values back.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Sequence
from typing import Any

from gradflow.autograd.leaf import ELSEWHERE, IN_BUFFER
from gradflow.autograd.memory import ONE_REFERENCE, Memory, clock
from gradflow.backend import Array, Backend
from gradflow.dtypes import DTYPES
from gradflow.interception import invalidate
from gradflow.tensor import Tensor, is_read_only

_ALIGNMENT = 256  # bytes


class Past:
    """What `count` members of one group have in common: their steps so far, and which state arrays these `filled`."""

    __slots__ = ("count", "filled", "group", "step")

    def __init__(self, group: int, step: int = 0, filled: frozenset[str] = frozenset(), count: int = 0) -> None:
        self.group = group
        self.step = step
        self.filled = filled
        self.count = count


class Member:
    """A parameter's place in a block: its tensor, [start, stop), the views of values and gradients, and its past.

    `outside`: whether the tensor is not in its place, because others see its memory.
    """

    __slots__ = ("gradient", "index", "outside", "past", "start", "stop", "tensor", "values")

    def __init__(self, tensor: Tensor, index: int, start: int) -> None:
        self.tensor = tensor
        self.index = index
        self.start = start
        self.stop = start + tensor.size
        self.past: Past
        self.outside = False
        self.values: Array = None
        self.gradient: Array = None


class _Place(Memory):
    """The memory of a place in a block: used by its own tensor alone, though its array is a view of a larger one."""

    __slots__ = ()


def _is_seen_elsewhere(tensor: Tensor) -> bool:
    """Whether anything else that is alive refers to the memory of a tensor: a tensor, an array, the array's base.

    Of memory that another library made (a torch tensor, a bytearray) that cannot be known: it counts as seen.
    """
    if not hasattr(tensor.array, "__setitem__"):  # a NumPy scalar
        return False
    if tensor._memory is not None and sys.getrefcount(tensor._memory) > ONE_REFERENCE:
        return True
    if isinstance(tensor._memory, _Place):
        return False
    if sys.getrefcount(tensor.array) > ONE_REFERENCE:
        return True
    if getattr(tensor.array, "base", None) is None:
        return False
    if not isinstance(tensor.array.base, type(tensor.array)):
        return not is_read_only(tensor.array)
    return sys.getrefcount(tensor.array.base) > ONE_REFERENCE


class Block:
    """The parameters of one device and dtype: `values` and `gradients` are flat arrays, and so is each of `state`."""

    def __init__(self, backend: Backend, native: Any, members: Sequence[tuple[int, int, Tensor]]) -> None:
        self.backend = backend
        self.native = native
        step = _ALIGNMENT // DTYPES[backend.dtype_name(native)].itemsize
        self.members: list[Member] = []
        groups, end = [], 0
        for index, group, tensor in members:
            if is_read_only(tensor.array) and _is_seen_elsewhere(tensor):
                raise ValueError(
                    f"parameter {index}, of shape {tensor.shape}, cannot be trained: its memory is read-only, that of "
                    "a NumPy array or of a broadcast; make the parameter with gradflow.tensor(...) or .clone()"
                )
            member = Member(tensor, index, math.ceil(end / step) * step)
            self.members.append(member)
            end = member.stop
            groups.append(group)
        self.size = end
        self.whole = slice(0, end)
        self.some_outside = False
        self.values = backend.zeros((end,), dtype=native)
        self.gradients = backend.zeros((end,), dtype=native)
        self.state: dict[str, Array] = {}
        for member in self.members:
            member.values = self.view(self.values, member)
            member.gradient = self.view(self.gradients, member)
            self._adopt(member)
        self.set_pasts([(group, 0, frozenset()) for group in groups])

    def view(self, flat: Array, member: Member) -> Array:
        """The part of a flat array that belongs to a member, in its shape."""
        return self.backend.reshape(flat[member.start : member.stop], member.tensor.shape)

    def state_array(self, name: str) -> Array:
        """The flat array `name` of the state; zeros at first, as where a hyperparameter that needs it is set later."""
        if name not in self.state:
            self.state[name] = self.backend.zeros((self.size,), dtype=self.native)
        return self.state[name]

    def _adopt(self, member: Member) -> None:
        """Make the member's tensor a view of this block, its values unchanged, unless its memory is seen elsewhere."""
        tensor = member.tensor
        if tensor.backend is not self.backend or tensor.array.dtype != self.native:
            raise RuntimeError(
                f"parameter {member.index} was moved to {tensor.dtype} on {tensor.device} after the optimizer was "
                "made; make the optimizer after model.to(...)"
            )
        member.outside = _is_seen_elsewhere(tensor)
        self.some_outside |= member.outside
        if member.outside:
            tensor._shared_memory()  # a step records its change there
            return
        self.backend.setitem(member.values, ..., tensor.array)
        array, tensor.array = tensor.array, member.values
        invalidate(array)
        changed = 0 if tensor._memory is None else tensor._memory.changed
        tensor._memory = _Place(changed)

    def set_pasts(self, pasts: Sequence[tuple[int, int, frozenset[str]]]) -> None:
        """Give each member its group, its count of steps, and the names of the state arrays that these have filled."""
        shared: dict[tuple[int, int, frozenset[str]], Past] = {}
        for member, key in zip(self.members, pasts, strict=True):
            member.past = shared.setdefault(key, Past(*key))
            member.past.count += 1

    def refresh(self) -> list[Member]:
        """Bring in what was changed outside, values and gradients; the members that have a gradient."""
        ready = []
        self.some_outside = False
        outside: list[tuple[Member, Any, Array]] = []
        for member in self.members:
            tensor = member.tensor
            if tensor.array is not member.values:
                self._adopt(member)
            leaf: Any = tensor._node
            if leaf is None:
                continue
            slot = leaf.slot
            if slot is None or slot.array is not member.gradient:
                leaf.attach(member.gradient, weakref.ref(self))  # a strong one would close a cycle through the tensor
            if leaf.state is IN_BUFFER:
                ready.append(member)
            elif leaf.state is ELSEWHERE:
                ready.append(member)
                outside.append((member, leaf, self.backend.copy(leaf.array)))
        for member, leaf, gradient in outside:  # only now: one may have been in the place of another
            leaf.slot.copy_out_holders()
            self.backend.setitem(member.gradient, ..., gradient)
            leaf.mark_filled()
        return ready

    def runs(self, ready: list[Member]) -> list[tuple[slice, list[Member]]]:
        """Members that have a gradient, in runs of one past without a gap: the range and the members of each."""
        if len(ready) == len(self.members) and ready[0].past.count == len(ready) and not self.some_outside:
            return [(self.whole, ready)]
        chosen = set(ready)
        runs: list[tuple[slice, list[Member]]] = []
        run: list[Member] = []
        for member in self.members:
            alone = member.outside or (run and run[0].outside)
            if run and (alone or not (member in chosen and member.past is run[0].past)):
                runs.append((slice(run[0].start, run[-1].stop), run))
                run = []
            if member in chosen:
                run.append(member)
        if run:
            runs.append((slice(run[0].start, run[-1].stop), run))
        return runs

    def part(self, flat: Array, part: slice) -> Array:
        """A part of a flat array."""
        return flat if part is self.whole else flat[part]

    def bring_in(self, members: Sequence[Member]) -> None:
        """Copy the values of members that are outside to their places."""
        for member in members:
            if member.outside:
                self.backend.setitem(member.values, ..., member.tensor.array)

    def changed(self, members: Sequence[Member], filled: frozenset[str]) -> None:
        """Note a change in place of the members' values, count a step of each, and what is now `filled` of them.

        Members that are outside get the values of their places.
        """
        now = clock.change()
        past = members[0].past
        if past.count > len(members):  # the others stay as they were
            past.count -= len(members)
            past = Past(past.group, past.step, past.filled, len(members))
            for member in members:
                member.past = past
        past.step += 1
        past.filled = filled
        for member in members:
            member.tensor._memory.changed = now  # type: ignore[union-attr]  # `_adopt` made it
        if self.some_outside:
            for member in members:
                if member.outside:
                    self.backend.setitem(member.tensor.array, ..., member.values)
                    member.tensor._bump()


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
