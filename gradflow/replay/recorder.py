"""The recorder: runs a step once, and records which calls it makes and what they depend on."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, ValuesView
from threading import Lock, get_ident
from typing import Any

from gradflow.autograd.graph import Node
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.memory import clock
from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Backend
from gradflow.interception import Recorder, Snapshot, recorders, start, stop
from gradflow.replay.guards import GroupsGuard, Guards
from gradflow.replay.program import Call, Constant, Input, NewTensor, Recording, Ref
from gradflow.replay.reasons import Reason, caller, describe
from gradflow.tensor import Tensor
from gradflow.tree import flatten, map_tree

_NOT_REPLAYABLE = {
    "to_host": "reads a value ({})",
    "host_values": "reads a value ({})",
    "synchronize": "waits for the device ({})",
    "event": "uses an event of the device ({})",
    "stream": "uses a stream of the device ({})",
    "setitem": "changes a tensor in place ({})",
}
"""Backend calls that cannot be replayed, and why: they synchronise, or mutate an array visible outside the step."""
_RECORDED = (*ARRAY_FUNCTIONS, *KERNELS, "getitem", "copy", "from_host", "from_host_later", "pin", *_NOT_REPLAYABLE)
recording_lock = Lock()
"""Held by the thread that records. Use it as `recorder.recording_lock`, since a forked child replaces it."""
_undo: list[Callable[[], None]] = []
"""While a thread records, the function that restores its backend."""


def _forget_other_threads() -> None:
    """Clean up in a forked child, where only the current thread continues: another one may have been recording."""
    global recording_lock
    if get_ident() not in recorders:
        while _undo:
            _undo.pop()()
        recorders.clear()
        stop()
        recording_lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


def copy_results(result: Any) -> Any:
    """What a step returned, without its graph, in new arrays. TypeError unless it consists of tensors."""
    for path, value in flatten(result):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a captured step returns tensors, tuples, lists and dicts of them, or None; result{path} is "
                f"{type(value).__name__}: return the tensor, and read its value after the step"
            )
    return map_tree(lambda x: Tensor(x.backend.copy(x.array), x.backend), result)


class StepRecorder(Recorder):
    """Records one call of a step. After `run`, `reason` is None, or why the `recording` cannot be replayed.

    call_number: the number of this call among all calls of the step.
    optimizers: those of the previous recording; their groups are compared from the beginning of the step.
    """

    recording: Recording

    def __init__(self, backend: Backend, call_number: int, optimizers: Iterable[Any]) -> None:
        self.backend = backend
        self.call_number = call_number
        self.reason: Reason | None = None
        self._calls: list[Call] = []
        self._groups = list(map(GroupsGuard, optimizers))
        self._leaves: list[Leaf] = []
        # objects by id; each entry keeps its object alive, so that no other object gets the id
        self._references: dict[int, tuple[Input | Ref, Any]] = {}
        self._constants: dict[int, Any] = {}
        self._read: dict[int, Any] = {}
        self._created: dict[int, Any] = {}
        self._changed: list[Any] = []
        self._paused = False  # whether to ignore reports: they come from a recorded call, or from the recorder itself
        self._start = clock.tick()
        self._own_packages = {"gradflow", "contextlib", type(backend).__module__.partition(".")[0]}

    def run(self, step: Callable[..., Any], inputs: Sequence[Tensor], named: dict[str, Tensor]) -> Any:
        """Run the step and record it. Returns copies of its results; the copying is recorded, too."""
        given = [*inputs, *named.values()]
        views = self._views_of(given)
        with self._intercepting():
            result = step(*views[: len(inputs)], **dict(zip(named, views[len(inputs) :], strict=True)))
            makes_calls = bool(self._calls)
            result = copy_results(result)
            used = {**self._read, **self._constants}
            for leaf in self._leaves:  # not the buffers of gradients, which `gradient_state` guards
                if leaf.slot is not None:
                    used.pop(id(leaf.slot.array), None)
            snapshot = Snapshot(used.values())
        for x, view in zip(given, views, strict=True):
            if view._node is not None:  # the step has called requires_grad_
                x._node = view._node
        if not makes_calls:
            self._refuse(f"calls nothing on {self.backend.device}")
        for groups in self._groups:
            self._check_groups(groups)
        for obj in self._changed:
            if id(obj) in used:
                self._refuse(f"changes {describe(obj)}, which it also reads")
        guards = Guards(snapshot, self._groups, list(dict.fromkeys(self._leaves)), self.call_number)
        self.recording = Recording(self.backend, len(views), self._calls, self._argument(result), guards)
        return result

    def _views_of(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Views of the inputs, to be passed to the step: their arrays are new objects, so each is known as an input."""
        views = []
        for i, x in enumerate(given):
            memory = x._shared_memory()
            view = Tensor(self.backend.reshape(x.array, x.array.shape), self.backend)
            memory.add(view)
            self._references[id(view.array)] = Input(i), view.array
            views.append(view)
        return views

    @contextlib.contextmanager
    def _intercepting(self) -> Iterator[None]:
        """Receive reports, and record the calls of the backend's functions, until the end of the `with`."""
        own = vars(self.backend)
        before = {name: own[name] for name in _RECORDED if name in own}

        def undo() -> None:
            for name in _RECORDED:
                own.pop(name, None)
            own.update(before)

        _undo.append(undo)
        for name in _RECORDED:
            setattr(self.backend, name, self._intercepted(name, getattr(self.backend, name)))
        start(self)
        try:
            yield
        finally:
            stop()
            _undo.remove(undo)
            undo()

    def _intercepted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._paused or recorders.get(get_ident()) is not self:
                return function(*arguments, **options)
            if name in _NOT_REPLAYABLE:
                self._refuse(_NOT_REPLAYABLE[name])
            elif name in ("getitem", "scatter_add") and self._has_mask([*arguments[1:], *options.values()]):
                self._refuse("indexes with a mask")
            return self._call(name, function, arguments, options)

        return call

    def _has_mask(self, key: Any) -> bool:
        """Whether an index contains a mask, so that the size of the result depends on values."""
        if isinstance(key, (tuple, list)):
            return any(map(self._has_mask, key))
        return hasattr(key, "dtype") and self.backend.dtype_name(key.dtype) == "bool"

    # ------------------------------------------------------------------ reports

    def forbid_replay(self, reason: str) -> None:
        if not self._paused:
            self._refuse(reason)

    def on_read(self, obj: Any, attribute: str = "") -> None:
        if self._paused or id(obj) in self._references or id(obj) in self._created:
            return
        kind = type(obj)  # reading obj.__class__ would be reported, too
        if kind in (Leaf, Node) and obj.id > self._start:
            return
        if kind is Node:
            self._refuse("backpropagates through operations recorded before the step ({})")
        self._read[id(obj)] = obj
        if hasattr(kind, "add_param_group"):  # an optimizer
            if attribute == "steps":
                self._refuse("reads the step count of an optimizer")
            elif attribute in ("param_groups", "learning_rates"):
                self._paused = True
                self._groups_of(obj).are_read = True
                self._paused = False

    def on_create(self, obj: Any) -> None:
        self._created[id(obj)] = obj

    def on_change(self, obj: Any, here: bool) -> None:
        if id(obj) in self._created:
            return
        if here and not self._paused:
            self._refuse(f"changes {describe(obj)} ({{}})")
        self._changed.append(obj)

    def opaque_call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self._paused:
            return function(*arguments, **options)
        arguments, options = tuple(map(_listed, arguments)), {name: _listed(x) for name, x in options.items()}
        first = arguments[0] if arguments else None
        self._paused = True
        leaves = [x for x in (first if isinstance(first, list) else [first]) if isinstance(x, Leaf)]
        self._leaves += leaves
        if any(leaf.backend is not self.backend for leaf in leaves):
            self._refuse(f"uses other devices than {self.backend.device}")
        if hasattr(first, "param_groups"):
            self._check_groups(self._groups_of(first))
        if any(callable(x) for x in (*arguments[1:], *options.values())):
            self._refuse("passes a closure to an optimizer")
        self._paused = False
        return self._call(self._constant(function), function, arguments, options)

    def _groups_of(self, optimizer: Any) -> GroupsGuard:
        found = next((groups for groups in self._groups if groups.optimizer is optimizer), None)
        if found is None:
            found = GroupsGuard(optimizer)
            self._groups.append(found)
        return found

    def _check_groups(self, groups: GroupsGuard) -> None:
        name = type(groups.optimizer).__name__
        if not groups.has_same_parameters():
            self._refuse(f"changes the parameters of {name}")
        if not groups.has_same_settings():
            self._refuse(f"changes hyperparameters of {name}")

    def _refuse(self, reason: str) -> None:
        """Set the reason why the step cannot be replayed; the first one is kept."""
        if self.reason is None:
            name, place = caller(self._own_packages)
            self.reason = Reason(reason.replace("{}", name), f": {place}" if recorders else "")

    # ------------------------------------------------------------------ calls

    def _call(self, recorded: str | Constant, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        """Call `function` and record the call, with `recorded` as the `function` of the `Call`."""
        self._paused = True
        try:
            result = function(*arguments, **options)
            if _is_numpy_bool(result):
                result = self.backend.asarray(result)
        finally:
            self._paused = False
        given = tuple(map(self._argument, arguments)), {key: self._argument(x) for key, x in options.items()}
        self._name(result, Ref(len(self._calls)))
        self._calls.append(Call(recorded, *given, caller(self._own_packages)[1]))
        return result

    def _name(self, result: Any, ref: Ref) -> None:
        """Record that later arguments refer to a result and its parts by `ref`, unless it is one of the arguments."""
        if isinstance(result, Tensor):
            result, ref = result.array, Ref(ref.call, f"{ref.path}.array")
        if isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                self._name(part, Ref(ref.call, f"{ref.path}[{i}]"))
        elif not hasattr(result, "dtype"):
            return
        if _is_numpy_bool(result):
            self._refuse("computes a NumPy bool, an object that many results share")
        if id(result) not in self._references and id(result) not in self._constants:
            self._references[id(result)] = ref, result

    def _argument(self, x: Any) -> Any:
        """An argument in the form that `Call` takes."""
        if id(x) in self._references:
            return self._references[id(x)][0]
        if isinstance(x, Tensor) and id(x.array) in self._references and x._node is None:
            return NewTensor(self._references[id(x.array)][0])
        if x is None or x is ... or x.__class__ in (bool, int, str) or (x.__class__ is float and math.isfinite(x)):
            return x
        if x.__class__ in (tuple, list):
            return x.__class__(map(self._argument, x))
        if x.__class__ is dict:
            return {self._argument(key): self._argument(part) for key, part in x.items()}
        if x.__class__ is slice:
            return slice(self._argument(x.start), self._argument(x.stop), self._argument(x.step))
        if isinstance(x, (tuple, list, dict)):  # a subclass, whose constructor is unknown
            self._refuse(f"passes a {type(x).__name__} to the backend")
        return self._constant(x)

    def _constant(self, x: Any) -> Constant:
        if hasattr(x, "dtype") and not isinstance(x, Leaf) and not hasattr(x, "__setitem__"):
            self._refuse("uses a tensor that holds a NumPy scalar")  # the tensor may get an array
        self._constants[id(x)] = x
        return Constant(x)


def _listed(x: Any) -> Any:
    """x, or a list if x is an iterator, which can be read only once, or the values of a dict, which may change."""
    return list(x) if isinstance(x, (Iterator, ValuesView)) else x


def _is_numpy_bool(x: Any) -> bool:
    """Whether x is one of NumPy's two scalar bools, which many results share."""
    return type(x).__name__ == "bool" and hasattr(x, "dtype")
