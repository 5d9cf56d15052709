"""Flat buffers: all parameters of one device and dtype in one array, their gradients in another.

The model's tensors become views of the first array, and backward passes write gradients directly into the second, so
that an optimizer step is one pass over whole arrays. Each optimizer state is an array of the same layout.

Each parameter starts at a multiple of 256 bytes. The padding in between holds zeros, and steps must keep them: clipping
includes the padding of the gradients in the norm, and NumPy warns of numbers that are not finite, wherever they are.

A parameter whose memory is shared (with a parameter that is a view of it, a detached alias, the NumPy array behind
`asarray`) keeps its own memory as long as it is shared: each step copies its values into the buffer and the updated
values back. Whether it is shared is decided when the optimizer is made, when `param_groups` gets other parameters, and,
for a parameter outside of the buffer, in each step.

Nothing here takes a lock: threads may run backward passes at the same time, but only one may call `step`, and none may
use the parameters meanwhile.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from gradflow.autograd.leaf import ELSEWHERE, IN_BUFFER
from gradflow.autograd.memory import ONE_REFERENCE, ForeignMemory
from gradflow.backend import Array, Backend
from gradflow.backend.graphs import current_rows
from gradflow.dtypes import DTYPES
from gradflow.interception import invalidate, opaque_call
from gradflow.optim.cohorts import Cohort, History, Membership, SliceMemory, Steps, as_cohort, joined
from gradflow.tensor import Tensor, is_read_only

_ALIGNMENT = 256  # bytes


class FlatArrays(NamedTuple):
    """The arrays of an update, flat and of one length: part of a block.

    They belong to parameters of one group that have had equally many steps, and to the padding between them, where all
    of them are zero: `update` must map zeros to zeros.

    backend: the `Backend` of the arrays.
    parameters: the values, to be changed in place.
    gradients: the gradients, to be left unchanged.
    state: the state arrays by name, to be changed in place.
    options: further keyword arguments for the step kernels of the backend.

    >>> import gradflow as gf
    >>> class Descent(gf.optim.Optimizer):
    ...     def update(self, flat, group, lr, step, first):
    ...         flat.parameters[...] -= lr * flat.gradients
    >>> x, y = gf.tensor([1.0, 2.0], requires_grad=True), gf.tensor(3.0, requires_grad=True)
    >>> optimizer = Descent([x, y], {"lr": 0.5})
    >>> (x.sum() + y).backward()
    >>> optimizer.step()
    >>> x.tolist(), y.item()
    ([0.5, 1.5], 2.5)
    """

    backend: Backend
    parameters: Array
    gradients: Array
    state: Mapping[str, Array]
    options: Mapping[str, Any] = MappingProxyType({})


class Slice:
    """A parameter's place [start, stop) in a block, counted in elements.

    index: its position among all parameters of the optimizer.
    membership: the cohort of slices that steps update together with this one, which has its history.
    values, gradient: views of the block's arrays, in the parameter's shape.
    outside: whether the tensor keeps its own memory, because that memory is shared.
    half, half_at: a view of the block's half copy, and the number of the change of the values that it has.
    """

    __slots__ = ("gradient", "half", "half_at", "index", "membership", "outside", "start", "stop", "tensor", "values")

    def __init__(self, tensor: Tensor, index: int, start: int, cohort: Cohort) -> None:
        self.tensor = tensor
        self.index = index
        self.start = start
        self.stop = start + tensor.size
        self.membership = Membership(cohort)
        self.outside = False
        self.values: Array = None
        self.gradient: Array = None
        self.half: Array = None
        self.half_at = -1

    @property
    def history(self) -> History:
        """Its group, steps and written state arrays."""
        return self.membership.cohort.history


def _is_shared(tensor: Tensor) -> bool:
    """Whether another live object refers to a tensor's memory: a tensor, an array, or an array that it is a view of.

    Writable memory of another library (a torch tensor, a bytearray, a file) counts as shared: its users are unknown.
    """
    if not hasattr(tensor.array, "__setitem__"):  # a NumPy scalar
        return False
    if isinstance(tensor._memory, ForeignMemory):
        return not is_read_only(tensor.array)
    if tensor._memory is not None and sys.getrefcount(tensor._memory) > ONE_REFERENCE:  # aliases and views share it
        return True
    if isinstance(tensor._memory, SliceMemory):  # in a block, without an alias
        return False
    if sys.getrefcount(tensor.array) > ONE_REFERENCE:
        return True
    view = tensor.array
    while getattr(view, "base", None) is not None:
        if not isinstance(view.base, type(tensor.array)):
            return not is_read_only(tensor.array)
        if sys.getrefcount(view.base) > ONE_REFERENCE:
            return True
        view = view.base
    return False


def _check_writable(tensor: Tensor, index: int) -> None:
    if is_read_only(tensor.array) and _is_shared(tensor):
        raise ValueError(
            f"parameter {index}, of shape {tensor.shape}, cannot be trained: its memory is read-only: it belongs to an "
            "array of another library or a broadcast; make the parameter with gradflow.tensor(...) or .clone()"
        )


class FlatBlock:
    """All parameters of one device and dtype: `values`, `gradients` and each array of `state` are flat.

    backend, native_dtype: the backend of the device, and the dtype as an object of its library.
    parameters: the index, the parameter group and the tensor of each.

    Raises ValueError for a parameter that requires grad and is in shared read-only memory: it cannot be trained.
    """

    def __init__(self, backend: Backend, native_dtype: Any, parameters: Sequence[tuple[int, int, Tensor]]) -> None:
        self.backend = backend
        self.native_dtype = native_dtype
        alignment = _ALIGNMENT // DTYPES[backend.dtype_name(native_dtype)].itemsize
        self.slices: list[Slice] = []
        self.size = 0
        cohorts = {group: Cohort((group, 0, frozenset())) for _, group, _ in parameters}
        for index, group, tensor in parameters:
            if tensor.requires_grad:
                _check_writable(tensor, index)
            start = math.ceil(self.size / alignment) * alignment
            self.slices.append(Slice(tensor, index, start, cohorts[group]))
            cohorts[group].size += 1
            self.size = self.slices[-1].stop
        self.whole = slice(0, self.size)
        self.values = backend.zeros((self.size,), dtype=native_dtype)
        self.gradients = backend.zeros((self.size,), dtype=native_dtype)
        self.state: dict[str, Array] = {}
        self.half: Array = None
        """The values in a half float, for `autocast`, from its first use on: see `half_copy`."""
        self._slice_of = {id(s.tensor): s for s in self.slices}
        self._whole_arrays: dict[tuple[str, ...], FlatArrays] = {}
        stops = [0, *(s.stop for s in self.slices)]
        between = [i for stop, s in zip(stops, self.slices, strict=False) for i in range(stop, s.start)]
        self.padding: Array = backend.asarray(between, dtype=backend.dtypes["int64"]) if between else None
        """The indices of the padding, None if there is none."""
        self.any_outside = False
        for s in self.slices:
            s.values, s.gradient = self.view(self.values, s), self.view(self.gradients, s)
            self._adopt(s)

    def view(self, flat: Array, s: Slice) -> Array:
        """A parameter's part of a flat array, in the parameter's shape."""
        return self.backend.reshape(flat[s.start : s.stop], s.tensor.shape)

    def state_array(self, name: str) -> Array:
        """The flat state array of this name; zeros at first."""
        if name not in self.state:
            self.state[name] = self.backend.zeros((self.size,), dtype=self.native_dtype)
        return self.state[name]

    def arrays(self, part: slice, names: tuple[str, ...]) -> FlatArrays:
        """A part of the values, of the gradients, and of the state arrays of these names."""
        if part is self.whole and (known := self._whole_arrays.get(names)) is not None:
            return known
        state = {name: self.state_array(name)[part] for name in names}
        options: dict[str, Any] = {} if self.half is None else {"half": self.half[part]}
        arrays = FlatArrays(self.backend, self.values[part], self.gradients[part], state, options)
        if part is self.whole:
            self._whole_arrays[names] = arrays
        return arrays

    def slice_with_half(self, tensor: Tensor) -> Slice | None:
        """The slice of a parameter of which this block can have a half copy; None for other tensors."""
        s = self._slice_of.get(id(tensor))
        return s if s is not None and tensor.array is s.values and self.native_dtype == self.backend.single else None

    @opaque_call
    def half_copy(self, s: Slice, dtype: str) -> Array:
        """The values of a slice in a half float. Steps of the optimizer write it; other changes are copied here."""
        native = self.backend.dtypes[dtype]
        if self.half is None or self.half.dtype != native:
            if self.half is not None:
                invalidate(*[each.values for each in self.slices])  # graphs read and write the last copy
            self.half = self.backend.zeros((self.size,), dtype=native)
            self._whole_arrays.clear()
            for each in self.slices:
                each.half, each.half_at = self.view(self.half, each), -1
        rows = current_rows()
        if rows is not None:
            rows.before_launch(self._update_half)
        if s.half_at != s.tensor._memory.changed:  # type: ignore[union-attr]  # a slice has one
            self._update_half()
        return s.half

    def _update_half(self, steps: int = 1) -> bool:
        """Cast the values again if a parameter was changed otherwise than by a step."""
        inside = [(s, s.tensor._memory.changed) for s in self.slices if s.tensor.array is s.values]  # type: ignore[union-attr]
        if any(s.half_at != changed for s, changed in inside):
            self.backend.setitem(self.half, ..., self.backend.astype(self.values, self.half.dtype))
            for s, changed in inside:
                s.half_at = changed
        return True

    def set_history(self, s: Slice, step: int, initialised: frozenset[str]) -> None:
        """Set the steps of a slice so far, and the names of the state arrays that they initialised."""
        joined([s], (s.history[0], step, initialised))

    def copy_state(self, s: Slice, block: FlatBlock, source: Slice) -> None:
        """Copy the steps and the state arrays of a slice of another block."""
        _, steps, initialised = source.history
        self.set_history(s, steps, initialised)
        for name in initialised:
            self.backend.setitem(self.view(self.state_array(name), s), ..., block.view(block.state[name], source))

    def check_not_moved(self, s: Slice) -> None:
        """Raise RuntimeError if the tensor of a slice has got another device or dtype."""
        tensor = s.tensor
        if tensor.backend is not self.backend or tensor.array.dtype != self.native_dtype:
            raise RuntimeError(
                f"parameter {s.index} was moved to {tensor.dtype} on {tensor.device} after the optimizer was "
                "created; create the optimizer after model.to(...)"
            )

    def _adopt(self, s: Slice) -> None:
        """Make a tensor that is not a view of this block one, its values unchanged, unless its memory is shared."""
        self.check_not_moved(s)
        tensor = s.tensor
        s.outside = _is_shared(tensor)
        self.any_outside |= s.outside
        if s.outside:
            tensor._shared_memory()  # so that `record_step` can mark it changed
            return
        self.backend.setitem(s.values, ..., tensor.array)
        s.half_at = -1
        array, tensor.array = tensor.array, s.values
        invalidate(array)
        tensor._memory = SliceMemory(0 if tensor._memory is None else tensor._memory.changed, s.membership)

    def collect_ready(self) -> list[Slice]:
        """The slices that have a gradient, with their gradients in the block.

        Also makes views of this block of parameters that are none, such as one whose array was replaced, and attaches
        the gradient buffers of new leaves. Raises RuntimeError for a parameter that was moved, ValueError for one that
        requires grad now and is in shared read-only memory.
        """
        ready = []
        self.any_outside = False
        for s in self.slices:
            tensor = s.tensor
            if tensor.array is not s.values:
                self._adopt(s)
            leaf: Any = tensor._node
            if leaf is None:
                continue
            slot = leaf.slot
            if slot is None or slot.array is not s.gradient:
                _check_writable(tensor, s.index)
                leaf.attach(s.gradient, weakref.ref(self))  # a strong reference would be a cycle through the tensor
            if leaf.state is IN_BUFFER:
                ready.append(s)
            elif leaf.state is ELSEWHERE:  # it stays there: the user may write the next gradient to the same tensor
                ready.append(s)
                leaf.slot.copy_out_holders()  # another parameter's `grad`, or this one, may be in this slice
                self.backend.setitem(s.gradient, ..., leaf.array)
        return ready

    def contiguous_runs(self, ready: list[Slice]) -> list[tuple[slice, list[Slice]]]:
        """The slices of `ready` in maximal runs that one update can cover: the range and the slices of each run.

        The slices of a run have equal histories, and no other slice lies between them. A parameter outside of the block
        is a run of its own: it may overlap another one in memory, whose update it must see.
        """
        n = len(self.slices)
        if len(ready) == n == ready[0].membership.cohort.size and not self.any_outside:
            return [(self.whole, ready)]
        chosen = set(ready)
        runs: list[list[Slice]] = []
        open_run: list[Slice] = []  # the run that the next slice may join
        for s in self.slices:
            if s not in chosen:
                open_run = []
            elif open_run and open_run[0].history == s.history and not (s.outside or open_run[0].outside):
                open_run.append(s)
            else:
                open_run = [s]
                runs.append(open_run)
        return [(slice(run[0].start, run[-1].stop), run) for run in runs]

    def copy_in(self, run: Sequence[Slice]) -> None:
        """Copy the values of parameters outside of the block to their slices."""
        for s in run:
            if s.outside:
                self.backend.setitem(s.values, ..., s.tensor.array)

    def copy_out(self, run: Sequence[Slice]) -> None:
        """Copy the updated values of parameters outside of the block to their own memory."""
        for s in run:
            if s.outside:
                self.backend.setitem(s.tensor.array, ..., s.values)
                s.tensor._bump()

    def record_step(self, run: list[Slice], initialised: frozenset[str]) -> None:
        """Record a step of a run of slices: their new history, and that their parameters change in place.

        This precedes the update. One that is interrupted counts as a step, as in PyTorch: some values have changed.
        """
        as_cohort(run).advance(1, initialised)
        if run[0].outside:  # a run of its own, whose memory is not that of a slice
            run[0].tensor._memory.change()  # type: ignore[union-attr]  # `_adopt` has set it

    @property
    def histories(self) -> list[tuple[Cohort, History, int, int]]:
        """The cohort of each slice, its history, its last change, and its size; set them to go back to them."""
        cohorts = [s.membership.cohort for s in self.slices]
        return [(cohort, cohort.history, cohort.changed, cohort.size) for cohort in cohorts]

    @histories.setter
    def histories(self, values: Sequence[tuple[Cohort, History, int, int]]) -> None:
        for s in self.slices:
            s.membership.cohort.size = 0
        for s, (cohort, history, changed, size) in zip(self.slices, values, strict=True):
            s.membership.cohort = cohort
            cohort.history, cohort.changed, cohort.size = history, changed, size

    def steps_between(self, before: Sequence[Any], after: Sequence[Any]) -> list[Steps]:
        """The steps between two values of `histories`, to be counted again."""
        found: dict[tuple[Cohort, int, frozenset[str]], list[Slice]] = {}
        for s, (_, (_, old, _), *_), (cohort, (_, new, written), *_) in zip(self.slices, before, after, strict=True):
            if new != old:
                found.setdefault((cohort, new - old, written), []).append(s)
        return [Steps(slices, steps, written) for (_, steps, written), slices in found.items()]


def make_blocks(groups: Sequence[Sequence[Tensor]], first_group: int = 0) -> list[FlatBlock]:
    """One block for each device and dtype among the parameters of the groups from index `first_group` on, in order."""
    parameters: dict[tuple[int, str], tuple[Backend, Any, list[tuple[int, int, Tensor]]]] = {}
    index = 0
    for g, tensors in enumerate(groups):
        for tensor in tensors:
            if g >= first_group:
                key = (id(tensor.backend), tensor.dtype.name)
                entry = parameters.setdefault(key, (tensor.backend, tensor.array.dtype, []))
                entry[2].append((index, g, tensor))
            index += 1
    blocks = [FlatBlock(*entry) for entry in parameters.values()]
    for block in blocks:
        block.collect_ready()
    return blocks
