"""The backward pass: nodes that remember operations, and the walk that applies their rules in reverse.

A node holds an operation, the nodes that its inputs came from, and the tensors that its rules read. A walk visits
nodes from the newest to the oldest and hands each gradient on. It runs in one of two ways:

- on arrays, where a rule's `F` is the backend: nothing is recorded;
- on tensors (`create_graph=True`), where `F` is `gradflow.ops`: the same rule, recorded, so that the gradient can be
  differentiated in turn.

Either way it can go for many gradients at once (`gradflow.batching`): the same rules again, on batches of them.

What would otherwise stand in every rule is done here, once: running it in float32 where gradients are half floats, so
that no count or factor leaves their range, undoing broadcasts, casting gradients to the dtype of
their input, skipping what needs no gradient, buffers, and freeing.

Nodes and in-place changes draw their numbers from one clock, so that a node is newer than what it was made from, and
a tensor with a change newer than a node is not what that node saw.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from operator import attrgetter
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

from gradflow.backend import Array, Backend
from gradflow.modes import BareMode, entered
from gradflow.recording import forbid_replay, invalidate, opaque_call, read, recorders

if TYPE_CHECKING:
    from gradflow.tensor import Tensor

tick: Callable[[], int] = itertools.count(1).__next__
"""The clock of nodes and of in-place changes."""
_last_change = 0


def time_of_change() -> int:
    """The time of a change in place that happens now."""
    global _last_change
    _last_change = tick()
    return _last_change


grad_enabled: ContextVar[int] = ContextVar("gradflow_grad_enabled", default=True)
"""True or False; or 1, true but not `True`, while there is an observer: then no operation takes a shortcut past it."""


class Observer:
    """Sees every operation and every rule of a context: what `detect_anomaly` and `gradcheck` are made of."""

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor) -> None:
        """An operation gave `out` for `inputs` (tensors, numbers or None)."""

    def before_backward(self) -> None:
        """A backward pass begins; it may do so within another."""

    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        """The rules of a node are about to run; `values` are its inputs, as far as they were saved."""

    def after_rule(self, node: Node, argument: int, g: Any, out: Any, values: Sequence[Any], result: Any) -> None:
        """A rule gave the gradient of an argument, before broadcasts are undone and dtypes are cast."""

    def after_adding(self, node: Node | Leaf, gradient: Any) -> None:
        """The gradient of what a node stands for after it was summed over a broadcast, cast, or added to another."""

    def after_backward(self) -> None:
        """A backward pass is over, unless it failed."""


class Forwarder(Observer):
    """Forwards every call to another observer, if there is one: the base class of nested observers."""

    def __init__(self, other: Observer | None) -> None:
        self.other = Observer() if other is None else other

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor) -> None:
        self.other.forward(op, inputs, out)

    def before_backward(self) -> None:
        self.other.before_backward()

    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        self.other.before_rules(node, g, out, values)

    def after_rule(self, node: Node, argument: int, g: Any, out: Any, values: Sequence[Any], result: Any) -> None:
        self.other.after_rule(node, argument, g, out, values, result)

    def after_adding(self, node: Node | Leaf, gradient: Any) -> None:
        self.other.after_adding(node, gradient)

    def after_backward(self) -> None:
        self.other.after_backward()


current_observer: ContextVar[Observer | None] = ContextVar("gradflow_observer", default=None)


@contextlib.contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Have `observer` see what is computed inside a `with`."""
    first, second = current_observer.set(observer), grad_enabled.set(1 if grad_enabled.get() else False)
    try:
        yield
    finally:
        grad_enabled.reset(second)
        current_observer.reset(first)


class _GradMode(BareMode):
    variables = (grad_enabled,)
    recording: bool

    def _values(self) -> tuple[Any, ...]:
        return (self.recording,)

    def _enter(self, values: tuple[Any, ...]) -> None:
        super()._enter((_recording(values[0]),))

    def __enter__(self) -> None:  # `_enter` for one variable
        value = _recording(self.recording)
        entered.set((self, (value,), (grad_enabled.get(),), entered.get()))
        grad_enabled.set(value)

    def __exit__(self, *_: object) -> None:
        latest = entered.get()
        if latest is None or latest[0] is not self:
            super().__exit__(None, None, None)
        else:
            grad_enabled.set(latest[2][0])
            entered.set(latest[3])


def _recording(value: int) -> int:
    """What `grad_enabled` is where operations are recorded, or not."""
    return (True if current_observer.get() is None else 1) if value else False


class _NoGrad(_GradMode):
    """Record no operation inside a `with`, or while a decorated function, generator or coroutine runs.

    Results need no gradient. `@no_grad` and `@no_grad()` are the same.

    >>> import gradflow as gf
    >>> w = gf.ones(2, requires_grad=True)
    >>> @gf.no_grad
    ... def predictions(batches):
    ...     for x in batches:
    ...         yield w * x
    >>> [(y.requires_grad, gf.is_grad_enabled()) for y in predictions([1.0, 2.0])]
    [(False, True), (False, True)]
    """

    recording = False


class _EnableGrad(_GradMode):
    """Record operations inside a `with`, or while a decorated function, generator or coroutine runs.

    Also within `no_grad`.
    """

    recording = True


no_grad = _NoGrad()
enable_grad = _EnableGrad()


def is_grad_enabled() -> bool:
    """Whether operations are recorded at this point."""
    return bool(grad_enabled.get())


class Operation:
    """A differentiable operation: its name, its value, and one VJP rule per argument.

    `forward(F, *arrays, **parameters)` gives the value, with a residual beside it where `residual` is true.
    Each of `rules` is `rule(F, g, out, *inputs, **parameters)`, or None for an argument without a gradient. A rule
    whose argument is called `_name` does not read its values: the array is not kept, and it gets a stand-in with
    `shape` and `dtype` where the argument needs a gradient, else None. A rule may give a `Part`. `widens`: for a result
    of half floats, rules run in float32. Not where they only move values, or round them once (`exact`).

    `joint` instead of `rules` gives the gradients of all arguments at once; it also takes `needs`; `residual`, if there
    is one (None when it runs on tensors or batches); and, where `writes_into` is true, `into`: for each argument a
    buffer to write its gradient to and return, or None. It reads all inputs unless `joint_reads_inputs` is false, and
    the result where `joint_reads_out(parameters)`. It is given half floats as they are when it runs on arrays: its
    kernels compute in float32. `saves_parameters`: they hold what is to be freed with the saved arrays.
    """

    __slots__ = (
        "forward", "joint", "joint_reads_inputs", "joint_reads_out", "name", "reads", "residual", "rules", "saves",
        "saves_parameters", "view", "widens", "writes_into",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        rules: Sequence[Callable[..., Any] | None] = (),
        joint: Callable[..., Any] | None = None,
        joint_reads_inputs: bool = True,
        joint_reads_out: Callable[[dict[str, Any]], bool] | None = None,
        residual: bool = False,
        writes_into: bool = False,
        saves_parameters: bool = False,
        view: bool = False,
        exact: bool = False,
    ) -> None:
        self.name = name
        self.forward = forward
        self.rules = tuple(rules)
        self.joint = joint
        self.joint_reads_inputs = joint_reads_inputs
        self.joint_reads_out = joint_reads_out
        self.residual = residual
        self.writes_into = writes_into
        self.saves_parameters = saves_parameters or residual
        self.view = view
        self.widens = not (exact or view)
        # for each rule, whether it reads `out`, and which inputs
        self.reads = tuple(None if rule is None else _reads(rule, len(self.rules)) for rule in self.rules)
        self.saves = _Saves(self.reads)

    def __repr__(self) -> str:
        return f"<operation {self.name}>"


class _Saves(dict[int, tuple[bool, tuple[bool, ...] | None]]):
    """For each set of arguments that need a gradient (a bit mask) whether to save `out`, and which inputs."""

    def __init__(self, reads: Sequence[tuple[bool, tuple[bool, ...]] | None]) -> None:
        self.reads = reads

    def __missing__(self, mask: int) -> tuple[bool, tuple[bool, ...] | None]:
        reads = [r for i, r in enumerate(self.reads) if r is not None and mask >> i & 1]
        inputs = tuple(any(r[1][i] for r in reads) for i in range(len(self.reads)))
        found = self[mask] = any(r[0] for r in reads), inputs if any(inputs) else None
        return found


def _reads(rule: Callable[..., Any], arity: int) -> tuple[bool, tuple[bool, ...]]:
    code = getattr(rule, "__wrapped__", rule).__code__
    names = code.co_varnames[: code.co_argcount]
    return not names[2].startswith("_"), tuple(not n.startswith("_") for n in names[3 : 3 + arity])


class Node:
    """A recorded operation. `shape`, `dtype` and `backend` are those of its result."""

    __slots__ = (
        "__weakref__", "backend", "dtype", "hooks", "id", "inputs", "op", "out", "parameters", "parents", "shape",
    )  # fmt: skip

    free = None  # see `Leaf`
    hooks: dict[int, Callable[[Any], Any]]  # only of `hooked_nodes`

    def __init__(
        self,
        op: Operation,
        backend: Backend,
        parents: tuple[Any, ...],
        inputs: tuple[Any, ...] | None,
        out: Array,
        array: Array,
        parameters: dict[str, Any] | None,
    ) -> None:
        self.op = op
        self.backend = backend
        self.parents = parents
        self.inputs = inputs
        self.out = out
        self.shape = array.shape
        self.dtype = array.dtype
        self.parameters = parameters
        self.id = tick()

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Memory:
    """What tensors that share memory have in common: when it last changed in place, and the node whose result it is.

    A tensor gets one when it is first changed or shared. That of an optimizer's buffer also knows its `tensors`.
    """

    __slots__ = ("changed", "most", "node", "tensors")

    def __init__(self, changed: int = 0, node: Node | None = None) -> None:
        self.changed = changed
        self.node = None if node is None else weakref.ref(node)
        self.tensors: list[weakref.ref[Tensor]] | None = None
        self.most = 64  # at this length, references to dead tensors are removed

    def add(self, tensor: Tensor) -> None:
        """Note that a tensor is in this memory."""
        tensor._memory = self
        if self.tensors is not None:
            if len(self.tensors) >= self.most:
                self.tensors[:] = [reference for reference in self.tensors if reference() is not None]
                self.most = 2 * len(self.tensors) + 64
            self.tensors.append(weakref.ref(tensor))

    def change(self) -> None:
        """Note a change in place."""
        self.changed = time_of_change()
        node = None if self.node is None else self.node()
        if node is not None and node.out is not None:
            node.out = Changed(self.changed)


class Changed:
    """What stands for a saved result that has been changed in place: the version that it has now."""

    __slots__ = ("version",)

    def __init__(self, version: int) -> None:
        self.version = version


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

    Walks of several threads may end at one leaf at once. Who holds its lock, one of `_adding`, adds a gradient. A walk
    that writes a gradient straight to the buffer has claimed it meanwhile: `free` is the sign of that walk, and what
    others add waits in `_grad` until it is done.
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


class Part:
    """The result of the rule of an indexing operation: a gradient that is `values` at `key` (as in `getitem`), else 0.

    Instead of a `key`, it may have a range along an `axis`: from `start` to `stop`, or where that is None, at `start`.
    """

    __slots__ = ("axis", "key", "start", "stop", "values")

    def __init__(self, values: Any, key: Any, axis: int = 0, start: int = 0, stop: int | None = None) -> None:
        self.values = values
        self.key = key
        self.axis = axis
        self.start = start
        self.stop = stop

    shape = dtype = None  # unequal to those of any array

    def whole(self, F: Any, shape: tuple[int, ...], into: Any = None) -> Any:
        """All of the gradient; or `into`, to which it is added."""
        key = key_of_range(self.axis, self.start, self.stop) if self.key is None else self.key
        return F.scatter_add(self.values, key, shape) if into is None else F.scatter_add(self.values, key, shape, into)


def key_of_range(axis: int, start: int, stop: int | None) -> Any:
    """The key, as of `getitem`, of a range along an axis, see `Part`."""
    return (slice(None),) * axis + (start if stop is None else slice(start, stop), ...)


_start: Callable[[Part], int] = attrgetter("start")


class Parts:
    """The gradient of a tensor of which parts were taken.

    Each `Part` is kept until there are as many elements as in the tensor, or the gradient is needed. Ranges along one
    axis that make up the tensor are then joined by one call; others are added to zeros, in place.
    """

    __slots__ = ("found", "room", "shape", "sum")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.sum: Any = None
        self.found: list[Part] = []
        self.room = math.prod(shape)

    def add(self, part: Part, F: Any) -> None:
        """Note a part."""
        self.found.append(part)
        self.room -= math.prod(part.values.shape)
        if self.room <= 0:
            self.put_together(F)

    def put_together(self, F: Any) -> Any:
        """The gradient of all parts so far: an array, or tensor, that nobody else has."""
        found, self.found = self.found, []
        self.room = math.prod(self.shape)
        if self.sum is None and found[0].key is None:
            self.sum = self._joined(F, found)
            if self.sum is not None:
                return self.sum
        for part in found:
            self.sum = part.whole(F, self.shape, self.sum)
        return self.sum

    def _joined(self, F: Any, found: list[Part]) -> Any:
        """The parts one after another, if they are ranges along one axis that make up the tensor; else None."""
        found = sorted(found, key=_start)
        axis, single, end = found[0].axis, found[0].stop is None, 0
        for part in found:
            if part.key is not None or part.axis != axis or part.start != end or (part.stop is None) != single:
                return None
            end = part.start + 1 if part.stop is None else part.stop
        if end != self.shape[axis]:
            return None
        return (F.stack if single else F.concat)([part.values for part in found], axis=axis)


class _PartsOf(dict[Any, Parts]):
    """For each node or leaf the parts of its gradient."""

    def __missing__(self, parent: Node | Leaf) -> Parts:
        found = self[parent] = Parts(parent.shape)
        return found


_claims = Lock()
"""Held briefly to change which walk may write to a buffer."""

_adding = [RLock() for _ in range(64)]
"""Locks for adding to gradients; the leaf with number `id` uses `_adding[id % 64]`."""


def _renew_locks() -> None:
    """In a forked child, where other threads may have held the locks."""
    global _claims, _adding
    _claims = Lock()
    _adding = [RLock() for _ in _adding]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)

FREED: tuple[Any, ...] = ("freed",)
"""What stands for the inputs of a node whose saved arrays are gone."""

_id: Callable[[Any], int] = attrgetter("id")


def nodes_from(roots: Sequence[Node | Leaf], ends: Collection[Node | Leaf] = (), through: bool = False) -> list[Any]:
    """All nodes that the roots depend on, the newest first; with `ends`, only as far as can lead to one of them.

    `through`: also beyond ends that are reached.
    """
    seen = set(roots)
    oldest = min(map(_id, ends)) if ends else 0
    order: list[Any] = list(seen)
    leaves: list[Any] = []
    for node in order:  # which grows meanwhile
        if through or not oldest or node not in ends:
            for parent in node.parents:
                if parent is not None and parent not in seen and (not oldest or parent.id >= oldest):
                    seen.add(parent)
                    (leaves if parent.op is None else order).append(parent)
    if len(order) > 1:
        order.sort(key=_id, reverse=True)  # nearly so already, which makes it quick
    order += leaves
    if recorders:
        read(*order)
    return order


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether an array of `shape` can be repeated along new axes and axes of length 1 to the shape `to`."""
    aligned = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, m) for n, m in aligned)


def _sum_to_shape(F: Any, g: Any, shape: tuple[int, ...], native: Any, backend: Backend) -> Any:
    """The VJP of broadcasting from `shape`: g summed over what was repeated, half floats in float32."""
    extra = g.ndim - len(shape)
    axes = tuple(i for i, n in enumerate(g.shape) if i < extra or (shape[i - extra] == 1 and n != 1))
    if axes:
        if native in backend.half_dtypes:
            g = F.astype(g, backend.dtypes["float32"])
        g = F.sum(g, axis=axes, keepdims=True)
    return F.reshape(g, shape)


tensor_functions: Any = None
"""`gradflow.ops`, which sets this when it is imported: the `F` of a walk on tensors."""


def backward(
    roots: Sequence[Node | Leaf],
    gradients: Sequence[Any],
    retain_graph: bool,
    create_graph: bool,
    wanted: set[Node | Leaf] | None = None,
    batched: Callable[[Any], Any] | None = None,
    through: bool = False,
) -> dict[Any, Any]:
    """Walk back from `roots` with their `gradients` (arrays, or tensors with `create_graph`).

    Adds to the gradients of the leaves; or, with `wanted`, leaves them alone, ends at those nodes (or goes on
    `through` them to others), and returns their gradients. `batched` turns an `F` into one for batches, which the
    gradients then are.
    Raises RuntimeError where saved arrays have been freed or changed.
    """
    observer = current_observer.get()
    hooked = hooked_nodes if hooked_nodes else None
    if not create_graph and wanted is None and batched is None and observer is None and hooked is None:
        _backward_to_buffers(roots, gradients, retain_graph)
        return {}
    on_path: set[Any] | None = None
    if wanted is None:
        order = nodes_from(roots)
    else:
        order = nodes_from(roots, wanted, through)
        on_path = set(wanted)
        for node in reversed(order):
            if node not in on_path and any(p in on_path for p in node.parents):
                on_path.add(node)
    on_tensors = create_graph and batched is None
    if observer is not None:
        observer.before_backward()
    pending: dict[Any, Any] = {}
    parts = _PartsOf()
    for root, g in zip(roots, gradients, strict=True):
        if root in pending:
            F = tensor_functions if create_graph else root.backend
            g = (F if batched is None else batched(F)).add(pending[root], g)
        pending[root] = g
    found: dict[Any, Any] = {}
    for node in order:
        g = pending.pop(node, None)
        if node in parts:
            F = tensor_functions if create_graph else node.backend
            g = _with_parts(g, parts.pop(node), F if batched is None else batched(F))
            if observer is not None:
                observer.after_adding(node, g)
        if g is None:
            continue
        if hooked is not None and weakref.ref(node) in hooked and (on_path is None or node in on_path):
            g = _run_hooks(node, g, create_graph, batched)
            if wanted is None:
                _retain(node, g, create_graph)
        if on_path is not None:
            if node not in on_path:
                continue
            if node in wanted:  # type: ignore[operator]
                found[node] = g
                if not (through and any(parent in on_path for parent in node.parents)):
                    continue
        op = node.op
        if op is None:
            if wanted is None:
                _accumulate(node, g, create_graph)
                if observer is not None:
                    observer.after_adding(node, node.grad)
            continue
        values, out = _saved(node, create_graph)
        F = tensor_functions if create_graph else node.backend
        if batched is not None:
            F = batched(F)
        whole = op.joint is None or create_graph or batched is not None  # else its kernels see to half floats
        if op.widens and whole and node.dtype in node.backend.half_dtypes:
            g, out, values = _widened(F, g, out, values, node)
        if observer is not None:
            observer.before_rules(node, g, out, values)
        parents, parameters = node.parents, node.parameters or {}
        if op.joint is not None:
            needs = [p is not None and (on_path is None or p in on_path) for p in parents]
            if op.writes_into:
                parameters = {**parameters, "into": [None] * len(parents)}
            if op.residual and (create_graph or batched is not None):
                parameters = {**parameters, "residual": None}
            results = op.joint(F, g, out, *values, needs=needs, **parameters)
        else:
            results = op.rules
        for i, parent in enumerate(parents):
            result = results[i]
            if result is None or parent is None or (on_path is not None and parent not in on_path):
                continue
            if op.joint is None:
                result = result(F, g, out, *values, **parameters)
            if result.__class__ is Part:
                parts[parent].add(result, F)
                if observer is not None:
                    observer.after_rule(node, i, g, out, values, result.whole(F, parent.shape))
                continue
            given = result
            if observer is not None:
                observer.after_rule(node, i, g, out, values, result)
            result = _fitted(result, F, node, i, on_tensors)
            total, earlier = result, pending.get(parent)
            if earlier is not None:
                there = tensor_functions if create_graph else parent.backend  # F, unless the node moved its input
                total = (there if batched is None else batched(there)).add(earlier, result)
            pending[parent] = total
            if observer is not None and total is not given:
                observer.after_adding(parent, total)
        if not retain_graph:
            _free(node)
    if observer is not None:
        observer.after_backward()
    return found


def _backward_to_buffers(roots: Sequence[Node | Leaf], gradients: Sequence[Any], retain_graph: bool) -> None:
    """`backward` of a training step: on arrays, to all leaves, without observers.

    Gradients are written straight to the buffers where possible. All are added up in the same order as in any other
    walk, so that the sums are equal to the bit.
    """
    pending: dict[Any, Any] = {}
    parts: _PartsOf | None = None
    for root, g in zip(roots, gradients, strict=True):
        pending[root] = root.backend.add(pending[root], g) if root in pending else g
    order = nodes_from(roots)
    written: list[Leaf] = []  # leaves whose buffers hold their only gradient so far
    claims = 0
    try:
        for node in order:
            op = node.op
            if op is None:  # a leaf, whose gradient waits until the end
                continue
            g = pending.pop(node, None)
            if parts and node in parts:
                g = _with_parts(g, parts.pop(node), node.backend)
            if g is None:
                continue
            F, parents, parameters = node.backend, node.parents, node.parameters
            saves = node.inputs is not None or node.out is not None or op.saves_parameters
            values, out = _saved(node, False) if saves else (parents, None)
            joint, into = op.joint, parents
            if joint is None:
                results = op.rules
                if op.widens and node.dtype is not F.single and node.dtype in F.half_dtypes:
                    g, out, values = _widened(F, g, out, values, node)
            elif op.writes_into:
                into = []
                with _claims:
                    for parent in parents:
                        buffer = None if parent is None else parent.free
                        if buffer is not None:  # it is written once
                            if buffer is parent.buffer:
                                parent.free = pending  # marks it as claimed by this walk
                                claims += 1
                            else:
                                buffer = None
                        into.append(buffer)
                needs = [p is not None for p in parents]
                results = joint(F, g, out, *values, needs=needs, into=into, **(parameters or {}))
            else:
                results = joint(F, g, out, *values, needs=[p is not None for p in parents], **(parameters or {}))
            for i, parent in enumerate(parents):
                result = results[i]
                if result is None or parent is None:
                    continue
                if joint is None:
                    result = result(F, g, out, *values, **parameters) if parameters else result(F, g, out, *values)
                elif result is into[i] and not (pending and parent in pending):
                    written.append(parent)
                    continue
                if result.shape != parent.shape or result.dtype is not parent.dtype:
                    if result.__class__ is Part:
                        if parts is None:
                            parts = _PartsOf()
                        parts[parent].add(result, F)
                        continue
                    result = _fitted(result, F, node, i, False)
                earlier = pending.get(parent)
                if earlier is None and parent.free is pending and parent in written:
                    earlier = parent.buffer
                pending[parent] = result if earlier is None else parent.backend.add(earlier, result)
            if saves and not retain_graph:
                _free(node)
        for leaf, found in parts.items() if parts else ():
            g = pending.get(leaf, leaf.buffer if leaf in written else None)
            pending[leaf] = _with_parts(g, found, leaf.backend)
        if pending:
            written = [leaf for leaf in written if leaf not in pending]
        if written:
            _hand_out(written)
            claims -= len(written)
    finally:
        if claims:  # a buffer was not written or another gradient was added to it, or a rule has raised
            with _claims:
                for node in order:
                    if node.free is pending:
                        node.free = None
    for leaf, g in pending.items():
        own = parts is not None and leaf in parts and leaf.shape != ()  # without axes, NumPy's sum is a number
        _accumulate(leaf, g, False, own)


def _with_parts(g: Any, found: Parts, F: Any) -> Any:
    """A gradient, or None, and that of parts."""
    total = found.put_together(F)
    return total if g is None else F.add(g, total)


def _saved(node: Node, as_tensors: bool) -> tuple[Sequence[Any], Any]:
    """What the rules of a node read: its inputs, and its result. RuntimeError where they have been freed or changed."""
    parents, inputs, out = node.parents, node.inputs, node.out
    if inputs is FREED:
        raise RuntimeError(
            f"the arrays that {node.op.name} saved for the backward pass were freed by an earlier one; "
            "call the first backward with retain_graph=True to go through the same graph twice"
        )
    values: Sequence[Any] = parents  # a parent stands in for what its rule does not read
    if inputs is not None:
        if node.id < _last_change:
            _check_unchanged(node)
        values = [
            parent if x is None else x if as_tensors or x.__class__ in _NUMBERS else x.array
            for x, parent in zip(inputs, parents, strict=True)
        ]
    if out is not None:
        if out.__class__ is Changed:
            kind = f"the result of {node.op.name}, a tensor of shape {tuple(node.shape)}, {node.dtype}"
            raise _changed_error(kind, node, out.version)
        if as_tensors:
            out = _wrap(out, node.backend, node)
    return values, out


def _widened(F: Any, g: Any, out: Any, values: Sequence[Any], node: Node) -> tuple[Any, Any, Sequence[Any]]:
    """What the rules of a node read, with half floats in float32."""
    half, single = node.backend.half_dtypes, node.backend.single

    def wide(x: Any) -> Any:
        native = getattr(getattr(x, "array", x), "dtype", None)
        return x if native not in half or x.__class__ in (Node, Leaf) else F.astype(x, single)

    return wide(g), wide(out), [wide(x) for x in values]


def _fitted(result: Any, F: Any, node: Node, argument: int, on_tensors: bool) -> Any:
    """What a rule gave as the gradient of an argument, in the shape and the dtype of this."""
    parent = node.parents[argument]
    native = result.array.dtype if on_tensors else result.dtype
    if result.shape != parent.shape:
        _check_broadcast(node, argument, result.shape, parent.shape)
        result = _sum_to_shape(F, result, parent.shape, native, node.backend)
        native = result.array.dtype if on_tensors else result.dtype
    if native is not parent.dtype and native != parent.dtype:
        result = F.astype(result, parent.dtype)
    return result


def _free(node: Node) -> None:
    """Let go of what a node saved."""
    if node.inputs is not None or node.out is not None or node.op.saves_parameters:
        node.inputs = FREED
        node.out = node.parameters = None


_NUMBERS = (float, int)


def _check_unchanged(node: Node) -> None:
    """Raise RuntimeError where a saved input has been changed in place since."""
    assert node.inputs is not None
    for i, x in enumerate(node.inputs):
        memory = getattr(x, "_memory", None)
        if memory is not None and memory.changed > node.id:
            what = f"input {i} of {node.op.name}, a tensor of shape {x.shape}, {x.dtype}"
            raise _changed_error(what, node, memory.changed)


def _check_broadcast(node: Node, argument: int, shape: Any, expected: Any) -> None:
    """Raise ValueError for a gradient that is not a broadcast of its argument: a rule is wrong."""
    if len(shape) > max(len(expected), len(node.shape)) or not broadcasts(expected, shape):
        raise ValueError(
            f"the rule of {node.op.name} for argument {argument} gave a gradient of shape {tuple(shape)}; "
            f"the argument has shape {tuple(expected)}"
        )


hooked_nodes: set[weakref.ref[Any]] = set()
"""The nodes that have `hooks`: what to do with the gradient of their tensors."""


def _hooks_of(node: Node | Leaf, make: bool = False) -> dict[int, Any] | None:
    """The hooks of a node, None if it has none; or from now on a place for them."""
    if weakref.ref(node) in hooked_nodes:
        return node.hooks
    if not make:
        return None
    node.hooks = {}  # here, not beside the set: a hook may well hold the tensor and with it the node
    hooked_nodes.add(weakref.ref(node, hooked_nodes.discard))
    return node.hooks


def add_hook(node: Node | Leaf, hook: Callable[[Any], Any]) -> Handle:
    """Have `hook` see, and perhaps replace, the gradient of the tensor of a node."""
    hooks = _hooks_of(node, make=True)
    assert hooks is not None
    return Handle(hooks, hook, node)


_RETAINED = 0
"""The key in `Node.hooks` of the place for a retained gradient."""


class Retained:
    """Holds the gradient of a computed tensor after `Tensor.retain_grad`."""

    __slots__ = ("grad",)

    def __init__(self) -> None:
        self.grad: Tensor | None = None


def retained(node: Node, make: bool = False) -> Retained | None:
    """Where the gradient of the tensor of a node is kept, if it is; or from now on."""
    hooks = _hooks_of(node, make)
    if hooks is None:
        return None
    if make and _RETAINED not in hooks:
        hooks[_RETAINED] = Retained()
    found: Retained | None = hooks.get(_RETAINED)
    return found


def _retain(node: Any, g: Any, create_graph: bool) -> None:
    """Add g, the gradient after all hooks, to the retained gradient of a node, if it has one."""
    kept = node.hooks.get(_RETAINED)
    if kept is None:
        return
    forbid_replay("keeps the gradient of a computed tensor (retain_grad)")
    if kept.grad is None:
        kept.grad = tensor_functions.copy(g) if create_graph else _wrap(node.backend.copy(g), node.backend, None)
    elif create_graph or kept.grad._node is not None:
        kept.grad = tensor_functions.add(kept.grad, g if create_graph else _wrap(g, node.backend, None))
    else:
        kept.grad = _wrap(node.backend.asarray(node.backend.add(kept.grad.array, g)), node.backend, None)


class Handle:
    """What registering a hook returns: `remove()` takes the hook back, once; so does leaving a `with` on it."""

    def __init__(self, hooks: dict[int, Any], hook: Callable[..., Any], owner: Any) -> None:
        self._hooks = hooks
        self._key = tick()  # not the handle itself, which would close a cycle
        hooks[self._key] = hook
        invalidate(owner)

    def remove(self) -> None:
        """Take the hook back; nothing happens if that has been done."""
        self._hooks.pop(self._key, None)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _run_hooks(node: Any, g: Any, create_graph: bool, batched: Any) -> Any:
    if batched is not None:
        each = [_run_hooks(node, g.values[i, ...], create_graph, None) for i in range(g.values.shape[0])]
        F = tensor_functions if create_graph else node.backend
        return type(g)(F.stack(each, axis=0))
    for key, hook in list(node.hooks.items()):
        if key == _RETAINED:
            continue
        forbid_replay("calls a hook on a gradient")
        given = g if create_graph else _wrap(g, node.backend, None)
        memory = given._shared_memory()
        before = memory.changed
        result = hook(given)
        if memory.changed != before:
            raise RuntimeError("a hook changed the gradient in place, which others may share; return a new one instead")
        if result is None:
            continue
        fits = isinstance(result, type(given)) and result.backend is node.backend
        if not fits or (result.shape, result.array.dtype) != (tuple(node.shape), node.dtype):
            raise TypeError(
                f"a hook returns None or a gradient of shape {tuple(node.shape)}, {node.dtype} on "
                f"{node.backend.device}; got {result!r}"
            )
        g = result if create_graph else result.array
    return g


def _wrap(array: Array, backend: Backend, node: Any) -> Tensor:
    tensor: Tensor = tensor_functions.Tensor(array, backend, node)
    return tensor


def _changed_error(tensor: str, node: Node, changed: int) -> RuntimeError:
    return RuntimeError(
        f"{tensor} on {node.backend.device}, was changed in place after it was saved for the backward pass (saved at "
        f"version {node.id}, changed at version {changed}): change a copy of it, or change it after backward()"
    )


@opaque_call
def _hand_out(leaves: Sequence[Leaf]) -> None:
    """Make what the leaves' buffers hold their gradients."""
    waiting = []
    with _claims:
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
    with _adding[leaf.id % len(_adding)]:
        while True:
            with _claims:
                claimed, waiting = leaf.is_claimed(), leaf._grad
                if not claimed:
                    leaf.free = None
            if not claimed:
                break
            if create_graph:
                total = tensor_functions.copy(g) if waiting is None else tensor_functions.add(waiting, g)
            else:
                array = leaf.backend.copy(g) if waiting is None else leaf.backend.add(waiting.array, g)
                total = _wrap(leaf.backend.asarray(array), leaf.backend, None)
            with _claims:
                if leaf.is_claimed():
                    leaf._grad = total
                    return
        _add_to(leaf, g, create_graph, own)


def _add_to(leaf: Leaf, g: Any, create_graph: bool, own: bool) -> None:
    grad = leaf.grad
    if grad is None and create_graph:
        leaf.grad = tensor_functions.copy(g)
    elif grad is None and leaf.buffer is None:
        leaf.grad = _wrap(g if own else leaf.backend.copy(g), leaf.backend, None)
    elif grad is None:
        leaf.take_back()
        if g is not leaf.buffer:
            leaf.backend.setitem(leaf.buffer, ..., g)
        leaf.hand_out()
    elif create_graph:
        leaf.grad = tensor_functions.add(grad, g)
    elif grad._node is not None:
        leaf.grad = tensor_functions.add(grad, _wrap(g, leaf.backend, None))
    elif grad.array is leaf.buffer:
        leaf.backend.setitem(grad.array, ..., leaf.backend.add(grad.array, g))
        grad._bump()
    else:  # an array that may be someone else's
        leaf.grad = _wrap(leaf.backend.asarray(leaf.backend.add(grad.array, g)), leaf.backend, None)
