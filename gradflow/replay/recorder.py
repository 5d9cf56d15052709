"""The recording of a step: the backend calls that it makes, and what they depend on."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence, ValuesView
from itertools import zip_longest
from threading import Lock, get_ident
from typing import Any, NamedTuple

from gradflow.autograd.graph import Node
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.saved import tick
from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Backend
from gradflow.interception import Recorder, Snapshot, recorders, start, stop
from gradflow.tensor import Tensor
from gradflow.tree import flatten, map_tree

_READS = {
    "to_host": "reads a value ({})",
    "host_values": "reads a value ({})",
    "synchronize": "waits for the device ({})",
    "event": "uses an event of the device ({})",
    "stream": "uses a stream of the device ({})",
    "setitem": "changes a tensor in place ({})",
}
"""Services that no replay can do, with the reason: they wait, or change an array that is seen from elsewhere."""
_SEEN = (*ARRAY_FUNCTIONS, *KERNELS, "getitem", "copy", "from_host", "from_host_later", "pin", *_READS)
one_at_a_time = Lock()
"""Held by who records. Others run their steps as they are meanwhile."""
_undo: list[Callable[[], None]] = []
"""What makes the backend of who records its own again."""


def _forget_other_threads() -> None:
    """In a forked child, where this thread alone goes on: if another was recording, nobody is."""
    global one_at_a_time
    if get_ident() not in recorders:
        while _undo:
            _undo.pop()()
        recorders.clear()
        stop()
        one_at_a_time = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)


class _Reason(NamedTuple):
    """Why a step runs as it is: of which kind that is, and what more is known. `usual`: nobody needs to be told."""

    kind: str
    more: str = ""
    usual: bool = False

    def __str__(self) -> str:
        return self.kind + self.more


def _copies(result: Any) -> Any:
    """What a step returned, without its graph, in arrays of its own."""
    for path, value in flatten(result):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a captured step returns tensors, tuples, lists and dicts of them, or None; result{path} is "
                f"{type(value).__name__}: return the tensor, and read its value after the step"
            )
    return map_tree(lambda x: Tensor(x.backend.copy(x.array), x.backend), result)


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


class _Groups:
    """The parameters and hyperparameters in the groups of an optimizer; `are_read`: by the step itself."""

    __slots__ = ("are_read", "optimizer", "parameters", "settings")

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.parameters = [list(group["params"]) for group in optimizer.param_groups]
        self.settings = _settings(optimizer)
        self.are_read = False

    def are_the_same(self) -> bool:
        """Whether they hold the same parameters, and, where the step reads them, the same hyperparameters."""
        same = self.optimizer.holds(self.parameters)
        return same and (not self.are_read or _settings(self.optimizer) == self.settings)


def _same_groups(before: Sequence[_Groups]) -> bool:
    return all(map(_Groups.are_the_same, before))


class _Recording(Recorder):
    """The calls of a step, as lines of Python, and the objects in them; or the reason why no replay can do the same.

    `made`: the number of the call. `unchanged`: all that the step depended on, as it was at its end; `groups`: of its
    optimizers.
    """

    unchanged: Snapshot

    def __init__(self, backend: Backend, made: int, before: Sequence[_Groups]) -> None:
        self.backend = backend
        self.made = made
        self.reason: _Reason | None = None
        self.leaves: list[Leaf] = []
        self.groups = [_Groups(groups.optimizer) for groups in before]
        self.lines: list[str] = []
        self.places: list[str] = []  # in the step, of each line
        self.constants: dict[int, Any] = {}  # by identity
        self._names: dict[int, str] = {}  # of what inputs and lines give
        self._kept: list[Any] = []  # so that no other object gets the identity of one of them
        self._read: dict[int, Any] = {}
        self._made: dict[int, Any] = {}
        self._changed: list[Any] = []
        self._own = {"gradflow", "contextlib", type(backend).__module__.partition(".")[0]}
        self._start = tick()
        self._inputs = 0
        self._busy = False

    # ------------------------------------------------------------------ recording

    def watch(self, step: Callable[..., Any], inputs: Sequence[Tensor], named: dict[str, Tensor]) -> Any:
        """Do a step and note what it does. Its inputs are views, so that their arrays are known from nowhere else.

        Returns copies of its results, which are noted, too.
        """
        given = [*inputs, *named.values()]
        views = []
        for x in given:
            memory = x._shared_memory()
            views.append(Tensor(self.backend.reshape(x.array, x.array.shape), self.backend))
            memory.add(views[-1])
        for i, x in enumerate(views):
            self._names[id(x.array)] = f"i{i}"
        self._inputs = len(views)
        self._kept = [x.array for x in views]
        seen = views[: len(inputs)], dict(zip(named, views[len(inputs) :], strict=True))
        with self._watching():
            result = step(*seen[0], **seen[1])
            nothing = not self.lines
            result = _copies(result)
            used = {**self._read, **self.constants}
            for leaf in self.leaves:  # nobody has tensors in their buffers where a program is made: see `_state_of`
                used.pop(id(leaf.buffer), None)
            self.unchanged = Snapshot(used.values())
        for x, view in zip(given, views, strict=True):
            if view._node is not None:  # the step told it to require a gradient
                x._node = view._node
        if nothing:
            self._refuse(f"calls nothing on {self.backend.device}")
        for groups in self.groups:
            self._check_groups(groups)
        for thing in self._changed:
            if id(thing) in used:
                self._refuse(f"changes what it uses, {_describe(thing)}")
        self.lines.append(f"return {self._text(result)}")
        self._names, self._kept = {}, []
        self._read, self._made, self._changed = {}, {}, []
        return result

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        own = vars(self.backend)
        before = {name: own[name] for name in _SEEN if name in own}

        def undo() -> None:
            for name in _SEEN:
                own.pop(name, None)
            own.update(before)

        _undo.append(undo)
        for name in _SEEN:
            setattr(self.backend, name, self._watched(name, getattr(self.backend, name)))
        start(self)
        try:
            yield
        finally:
            stop()
            _undo.remove(undo)
            undo()

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._busy or recorders.get(get_ident()) is not self:
                return function(*arguments, **options)
            if name in _READS:
                self._refuse(_READS[name])
            elif name in ("getitem", "scatter_add") and self._has_mask([*arguments[1:], *options.values()]):
                self._refuse("indexes with a mask")
            return self._do(f"F.{name}", function, arguments, options)

        return call

    def _has_mask(self, key: Any) -> bool:
        """Whether a mask is in a key: how much that selects is not known before."""
        if isinstance(key, (tuple, list)):
            return any(map(self._has_mask, key))
        return hasattr(key, "dtype") and self.backend.dtype_name(key.dtype) == "bool"

    def opaque_call(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self._busy:
            return function(*arguments, **options)
        arguments, options = tuple(map(_listed, arguments)), {name: _listed(x) for name, x in options.items()}
        first = arguments[0] if arguments else None
        self._busy = True  # what is looked at here the step has not read
        leaves = [x for x in (first if isinstance(first, list) else [first]) if isinstance(x, Leaf)]
        self.leaves += leaves
        if any(leaf.backend is not self.backend for leaf in leaves):
            self._refuse(f"works on other devices than {self.backend.device}")
        if hasattr(first, "param_groups"):
            self._check_groups(self._groups_of(first))
        if any(callable(x) for x in (*arguments[1:], *options.values())):
            self._refuse("gives an optimizer a closure")
        self._busy = False
        return self._do(self._constant(function), function, arguments, options)

    def _groups_of(self, optimizer: Any) -> _Groups:
        found = next((groups for groups in self.groups if groups.optimizer is optimizer), None)
        if found is None:
            found = _Groups(optimizer)
            self.groups.append(found)
        return found

    def _check_groups(self, groups: _Groups) -> None:
        name = type(groups.optimizer).__name__
        if not groups.optimizer.holds(groups.parameters):
            self._refuse(f"changes the parameters of {name}")
        if groups.settings != _settings(groups.optimizer):
            self._refuse(f"changes hyperparameters of {name}")

    def forbid_replay(self, reason: str) -> None:
        if not self._busy:
            self._refuse(reason)

    def _refuse(self, reason: str) -> None:
        if self.reason is None:
            name, place = self._caller()
            self.reason = _Reason(reason.replace("{}", name), f": {place}" if recorders else "")

    def _caller(self) -> tuple[str, str]:
        """The innermost function of gradflow that a user can call among those that run, and the line outside of it."""
        frame, name = sys._getframe(1), ""
        while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in self._own:
            function, module = frame.f_code.co_name, frame.f_globals["__name__"]
            told = (
                not module.startswith(("gradflow.replay", "gradflow.interception"))
                and function not in _UNTOLD
                and not re.match("<|_[^_]", function)
            )
            if told and not name:
                name = function
            frame = frame.f_back
        return name, f"{frame.f_code.co_filename}, line {frame.f_lineno}"

    def on_read(self, thing: Any, attribute: str = "") -> None:
        if self._busy or id(thing) in self._names or id(thing) in self._made:
            return
        kind = type(thing)  # not its __class__, which would be another attribute that is read
        if kind in (Leaf, Node) and thing.id > self._start:
            return
        if kind is Node:
            self._refuse("backpropagates through operations recorded before the step ({})")
        self._read[id(thing)] = thing
        if hasattr(kind, "add_param_group"):  # an optimizer
            if attribute == "steps":
                self._refuse("reads how many steps an optimizer has done")
            elif attribute in ("param_groups", "learning_rates"):
                self._busy = True  # what is looked at here the step has not read
                self._groups_of(thing).are_read = True
                self._busy = False

    def on_create(self, thing: Any) -> None:
        self._made[id(thing)] = thing

    def on_change(self, thing: Any, here: bool) -> None:
        if id(thing) in self._made:
            return
        if here and not self._busy:
            self._refuse(f"changes {_describe(thing)} ({{}})")
        self._changed.append(thing)

    def _do(self, name: str, function: Callable[..., Any], arguments: Any, options: Any) -> Any:
        """Call a function, and write down how."""
        self._busy = True
        try:
            result = function(*arguments, **options)
            if _is_shared(result):
                result = self.backend.asarray(result)
        finally:
            self._busy = False
        written = [self._text(x) for x in arguments] + [f"{key}={self._text(x)}" for key, x in options.items()]
        line = f"r{len(self.lines)}"
        self.places.append(self._caller()[1])
        self.lines.append(f"{line} = {name}({', '.join(written)})")
        self._name(result, line)
        return result

    def _name(self, result: Any, name: str) -> None:
        """Note what a line gives, and the parts of it; a buffer that it was given is known already."""
        if isinstance(result, Tensor):
            result, name = result.array, f"{name}.array"
        if isinstance(result, (tuple, list)):
            for i, part in enumerate(result):
                self._name(part, f"{name}[{i}]")
        elif not hasattr(result, "dtype"):
            return
        if _is_shared(result):
            self._refuse("uses one of NumPy's two bools")
        if id(result) not in self._names and id(result) not in self.constants:
            self._names[id(result)] = name
            self._kept.append(result)

    def _text(self, x: Any) -> str:
        """An argument as Python."""
        if id(x) in self._names:
            return self._names[id(x)]
        if isinstance(x, Tensor) and id(x.array) in self._names and x._node is None:
            return f"Tensor({self._names[id(x.array)]}, F)"
        if x is None or x.__class__ in (bool, int, str) or (x.__class__ is float and math.isfinite(x)):
            return repr(x)
        if x.__class__ is tuple:
            return f"({''.join(self._text(part) + ', ' for part in x)})"
        if x.__class__ is list:
            return f"[{', '.join(map(self._text, x))}]"
        if x.__class__ is dict:
            return f"{{{', '.join(f'{self._text(key)}: {self._text(part)}' for key, part in x.items())}}}"
        if isinstance(x, (tuple, list, dict)):  # of another class, whose making is not known
            self._refuse(f"gives the backend a {type(x).__name__}")
        if x.__class__ is slice:
            return f"slice({self._text(x.start)}, {self._text(x.stop)}, {self._text(x.step)})"
        return self._constant(x)

    def _constant(self, x: Any) -> str:
        if hasattr(x, "dtype") and not isinstance(x, Leaf) and not hasattr(x, "__setitem__"):
            self._refuse("uses a tensor whose values are a NumPy scalar")  # it may get an array
        self.constants.setdefault(id(x), x)
        return f"c{list(self.constants).index(id(x))}"

    # ------------------------------------------------------------------ replaying

    def difference(self, other: _Recording) -> _Reason | None:
        """Where two recordings do not say the same of the same objects: in which call."""
        for i, (ours, theirs) in enumerate(zip_longest(self.lines, other.lines)):
            if ours is None or theirs is None:
                return _Reason(f"two recordings differ: {len(other.lines) - 1} calls, then {len(self.lines) - 1}")
            for name in re.findall(r"\bc\d+\b", ours) if ours == theirs else ():
                a, b = (list(each.constants.values())[int(name[1:])] for each in (other, self))
                if not _are_the_same(a, b):
                    theirs = theirs.replace(name, f"another {_describe(a).removeprefix('a ')}")
            if ours != theirs:
                place = self.places[i] if i < len(self.places) else "the results"
                calls = [each._readable(line) for each, line in ((other, theirs), (self, ours))]
                return _Reason("two recordings differ", f" at {place}: {calls[0]}, then {calls[1]}")
        return None

    def _readable(self, line: str) -> str:
        """A line as a reason shows it."""
        constants = list(self.constants.values())
        line = re.sub(r"\bc(\d+)\b", lambda found: _describe(constants[int(found[1])]), line.partition(" = ")[2])
        line = re.sub(r"\br(\d+)\b", lambda found: f"result {int(found[1]) + 1}", line)
        return re.sub(r"\bi(\d+)\b", r"input \1", line.replace("F.", ""))

    def program(self) -> Callable[..., Any]:
        """A function of the arrays of the inputs that makes the recorded calls, and lets go of what was needed last."""
        lines = self.lines
        *calls, last = lines
        uses = [set(re.findall(r"\br\d+\b", line)) for line in lines]
        later = uses[-1]
        body = [last]
        for line, names in zip(reversed(calls), reversed(uses[:-1]), strict=True):
            body += [f"del {', '.join(sorted(names - later))}"] * bool(names - later) + [line]
            later = later | names
        scope: dict[str, Any] = {f"c{i}": x for i, x in enumerate(self.constants.values())}
        scope |= {"F": self.backend, "Tensor": Tensor}
        source = f"def replay({', '.join(f'i{i}' for i in range(self._inputs))}):\n    " + "\n    ".join(reversed(body))
        exec(compile(source, "<captured step>", "exec"), scope)
        replay: Callable[..., Any] = scope.pop("replay")  # else the two would keep each other
        return replay


def _listed(x: Any) -> Any:
    """An argument that can be read once, or that shows what a dict holds, as a list."""
    return list(x) if isinstance(x, (Iterator, ValuesView)) else x


def _is_shared(x: Any) -> bool:
    """Whether this is one of NumPy's two bools, which stand for many results."""
    return type(x).__name__ == "bool" and hasattr(x, "dtype")


def _are_the_same(a: Any, b: Any) -> bool:
    """Whether two objects are one, or stand for the same as dtypes do. Arrays and tensors do not."""
    if a is b:
        return True
    return type(a) is type(b) and not isinstance(a, Tensor) and not hasattr(a, "dtype") and bool(a == b)


_UNTOLD = {"__init__", "add_hook", "apply", "draw", "forward", "function", "nodes_from"}
"""Functions of gradflow that say nothing to who reads a reason."""


def _describe(x: Any) -> str:
    if isinstance(x, Leaf):
        return f"a leaf of shape {tuple(x.shape)}"
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"a tensor of shape {tuple(x.shape)}"
    if callable(x) and hasattr(x, "__qualname__"):
        return str(x.__qualname__)
    return type(x).__name__
