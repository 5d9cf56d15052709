"""The recorder: runs a step once and records its backend calls and the objects that they depend on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, ValuesView
from functools import partial
from typing import Any

from gradflow.autograd.grad_mode import current_observer
from gradflow.autograd.graph import Node
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.memory import clock
from gradflow.backend import Backend
from gradflow.backend.registry import started_backends
from gradflow.interception import Snapshot, measured
from gradflow.replay.guards import GroupsGuard, Guards
from gradflow.replay.interception import NOT_REPLAYABLE, Interceptor
from gradflow.replay.reasons import Reason, describe, user_call_site
from gradflow.replay.recording import Call, Constant, Input, NewTensor, Recording, Ref
from gradflow.tensor import Tensor
from gradflow.tree import flatten, map_tree


def copy_results(result: Any) -> Any:
    """Copies of a step's results, without their graph. Raises TypeError unless they are tensors."""
    for path, value in flatten(result):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a captured step returns tensors, tuples, lists and dicts of them, or None; result{path} is "
                f"{type(value).__name__}: return the tensor, and read its value after the step"
            )
    return map_tree(_copy, result)


def _copy(x: Tensor) -> Tensor:
    out = Tensor(x.backend.copy(x.array), x.backend)
    observer = current_observer.get()
    if observer is not None:
        observer.stands_for(out, x)
    return out


class _Number(int):
    """An integer that a recorded call returned: an argument that is this object refers to the result of that call."""


class StepRecorder(Interceptor):
    """Records one call of a step. After `run`, `reason` says why `recording` cannot be replayed, or is None.

    call_number: the number of the call, among all calls of the step.
    optimizers: those that the previous recording used. If the step changes their groups, it cannot be replayed.
    """

    recording: Recording

    def __init__(self, backend: Backend, call_number: int, optimizers: Iterable[Any]) -> None:
        super().__init__()
        self.backend = backend
        self.call_number = call_number
        self.reason: Reason | None = None
        self._calls: list[Call] = []
        self._groups = list(map(GroupsGuard, optimizers))
        self._leaves: list[Leaf] = []
        # Objects by id. Each entry keeps its object alive, so that no other object gets the id.
        self._references: dict[int, tuple[Input | Ref, Any]] = {}
        self._constants: dict[int, Any] = {}
        self._read: dict[int, Any] = {}  # objects from before the step
        self._created: dict[int, Any] = {}  # modules and other objects that the step creates
        self._changed: list[Any] = []
        self._start = clock.tick()

    def run(self, step: Callable[..., Any], inputs: Sequence[Tensor], named: dict[str, Tensor]) -> Any:
        """Run the step and record it. Returns copies of its results; the copying is recorded, too."""
        given = [*inputs, *named.values()]
        views = self._views_of(given)
        try:
            with self.intercepting(dict.fromkeys([self.backend, *started_backends()])):
                result = step(*views[: len(inputs)], **dict(zip(named, views[len(inputs) :], strict=True)))
                if not self._calls:
                    self._refuse(f"calls nothing on {self.backend.device}", with_line=False)
                result = copy_results(result)
                used = self._used()
                snapshot = Snapshot(used.values())
        finally:
            for x, view in zip(given, views, strict=True):
                _set_leaf(x, view)
        for groups in self._groups:
            self._check_groups(groups, with_line=False)
        if any(x._shared_memory().changed > self._start for x in given):
            self._refuse("changes the memory of an input", with_line=False)
        for obj in self._changed:
            if id(obj) in used:
                self._refuse(f"changes {describe(obj)}, which it also reads", with_line=False)
        guards = Guards(snapshot, self._groups, list(dict.fromkeys(self._leaves)), self.call_number)
        self.recording = Recording(self.backend, len(views), self._calls, self._described_result(result), guards)
        return result

    def _used(self) -> dict[int, Any]:
        """The objects whose changes invalidate the recording, by id."""
        used = {**self._read, **self._constants}
        for leaf in self._leaves:
            if leaf.slot is not None:  # `gradient_state` watches this array; it changes when a tensor leaves the buffer
                used.pop(id(leaf.slot.array), None)
        return used

    def _views_of(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Views of the inputs, to be passed to the step. Their arrays are new objects, so each identifies its input.

        A tensor that is given twice has one view.
        """
        views: dict[int, Tensor] = {}
        for i, x in enumerate(given):
            if id(x) not in views:
                memory = x._shared_memory()
                view = Tensor(self.backend.reshape(x.array, x.array.shape), self.backend)
                memory.add(view)
                _set_leaf(view, x)
                self._references[id(view.array)] = Input(i), view.array
                views[id(x)] = view
        return [views[id(x)] for x in given]

    def on_call(
        self, backend: Backend, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], options: Any
    ) -> Any:
        """Call a function of a backend and record the call; calls of other backends forbid the replay."""
        if backend is not self.backend:
            self._refuse(f"also uses {backend.device} ({{}})")
            return function(*arguments, **options)
        if name in NOT_REPLAYABLE:
            self._refuse(NOT_REPLAYABLE[name])
        elif name in ("getitem", "put", "scatter_add") and self._has_mask([*arguments[1:], *options.values()]):
            self._refuse("indexes with a mask")
        return self._call(name, function, arguments, options)

    def _has_mask(self, key: Any) -> bool:
        """Whether an index contains a mask, which makes the size of the result depend on values."""
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
        cls = type(obj)  # reading obj.__class__ would be reported, too
        if cls in (Leaf, Node) and obj.id > self._start:
            return
        if cls is Node:
            self._refuse("backpropagates through operations recorded before the step ({})")
        self._read[id(obj)] = obj
        if hasattr(cls, "add_param_group"):  # an optimizer
            if attribute == "steps":
                self._refuse("reads the step count of an optimizer")
            elif attribute in ("param_groups", "learning_rates"):
                with self.ignoring_reports():
                    self._groups_of(obj).hyperparameters_read = True

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
        with self.ignoring_reports():
            leaves = [x for x in (first if isinstance(first, list) else [first]) if isinstance(x, Leaf)]
            self._leaves += leaves
            for leaf in leaves:
                if leaf.backend is not self.backend:
                    self._refuse(f"also uses {leaf.backend.device} ({{}})")
            for x in (*arguments, *options.values()):
                if hasattr(x, "param_groups"):  # such as what a `GradScaler` steps
                    self._check_groups(self._groups_of(x))
            if any(callable(x) for x in (*arguments[1:], *options.values())):
                self._refuse("passes a closure to an optimizer")
        call = partial(measured, "opaque", function, function)
        return self._call(self._constant(function), call, arguments, options)

    def _groups_of(self, optimizer: Any) -> GroupsGuard:
        found = next((groups for groups in self._groups if groups.optimizer is optimizer), None)
        if found is None:
            found = GroupsGuard(optimizer)
            self._groups.append(found)
        return found

    def _check_groups(self, groups: GroupsGuard, with_line: bool = True) -> None:
        name = type(groups.optimizer).__name__
        if not groups.has_same_parameters():
            self._refuse(f"changes the parameters of {name}", with_line)
        if not groups.has_same_hyperparameters():
            self._refuse(f"changes hyperparameters of {name}", with_line)

    def _refuse(self, reason: str, with_line: bool = True) -> None:
        """Set the reason why the step cannot be replayed, unless there is one.

        with_line: whether the line of the step that is running now is the cause.
        """
        if self.reason is None:
            function, line = user_call_site()
            self.reason = Reason(reason.replace("{}", function), f": {line}" if with_line else "")

    # ------------------------------------------------------------------ calls

    def _call(self, recorded: str | Constant, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        """Call `function` and record the call, with `recorded` as the `function` of the `Call`."""
        given = tuple(map(self._argument, arguments)), {key: self._argument(x) for key, x in options.items()}
        with self.ignoring_reports():
            result = function(*arguments, **options)
            if _is_numpy_bool(result):
                result = self.backend.asarray(result)
        if isinstance(recorded, Constant):
            result = _numbers_marked(result)
        self._register(result, Ref(len(self._calls)))
        self._calls.append(Call(recorded, *given, user_call_site()[1]))
        return result

    def _register(self, result: Any, ref: Ref) -> None:
        """Register a result, so that later arguments resolve to `ref`. A result that is an argument keeps its entry."""
        if isinstance(result, Tensor):
            result, ref = result.array, Ref(ref.call, f"{ref.path}.array")
        if isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                self._register(part, Ref(ref.call, f"{ref.path}[{i}]"))
        elif not hasattr(result, "dtype") and result.__class__ is not _Number:
            return
        if _is_numpy_bool(result):
            self._refuse("computes a NumPy bool, an object that many results share")
        if id(result) not in self._references and id(result) not in self._constants:
            self._references[id(result)] = ref, result

    def _argument(self, x: Any) -> Any:
        """Translate an argument to the form that `Call` takes."""
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

    def _described_result(self, result: Any) -> Any:
        """Translate the result of the step to the form that `Recording` takes."""
        subclass = _container_subclass(result)
        if subclass is None:
            return self._argument(result)
        self._refuse(f"returns a {subclass.__name__}: return a tuple, list or dict", with_line=False)
        return None

    def _constant(self, x: Any) -> Constant:
        if hasattr(x, "dtype") and not isinstance(x, Leaf) and not hasattr(x, "__setitem__"):
            self._refuse("uses a tensor that holds a NumPy scalar")  # which the tensor may later replace by an array
        self._constants[id(x)] = x
        return Constant(x)


def _set_leaf(target: Tensor, source: Tensor) -> None:
    """Give a tensor the leaf of another one, and the one that it had before `requires_grad` was set to False."""
    target._node = source._node
    if hasattr(source, "_frozen"):
        target._frozen = source._frozen


def _container_subclass(x: Any) -> type | None:
    """The class of the first container in a tree that is an instance of a subclass of tuple, list or dict, or None."""
    if not isinstance(x, (tuple, list, dict)):
        return None
    if x.__class__ not in (tuple, list, dict):
        return x.__class__
    parts = x.values() if isinstance(x, dict) else x
    return next(filter(None, map(_container_subclass, parts)), None)


def _listed(x: Any) -> Any:
    """Convert an iterator or a view of a dict's values to a list, which can be read in each replay."""
    return list(x) if isinstance(x, (Iterator, ValuesView)) else x


def _numbers_marked(result: Any) -> Any:
    """The result of an opaque call with the integers in it as `_Number`s."""
    if result.__class__ is tuple:
        return tuple(map(_numbers_marked, result))
    return _Number(result) if result.__class__ is int else result


def _is_numpy_bool(x: Any) -> bool:
    """Whether x is one of NumPy's two scalar bools. Many results share each of them."""
    return type(x).__name__ == "bool" and hasattr(x, "dtype")
