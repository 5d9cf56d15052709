"""Names of values: the caller's variables, the names that were passed, and the paths of parameters in their modules."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping
from types import FrameType, ModuleType
from typing import Any

from gradflow.drawing.recorder import Recorder
from gradflow.nn.module import Module
from gradflow.tensor import Tensor

_OWN = 3
"""What `sys.getrefcount` returns for a dict that a variable and a frame refer to."""


def checked_names(function: str, names: dict[str, Any]) -> dict[str, Any]:
    """Return the names. Raise TypeError for a name that was passed for something else than a tensor or a module."""
    for name, value in names.items():
        if not isinstance(value, (Tensor, Module)):
            raise TypeError(
                f"{function} takes names of tensors and modules, as in {function}(x=x, model=model); "
                f"{name} is {type(value).__name__}"
            )
    return names


def variables(frame: FrameType) -> dict[str, Any]:
    """The variables of a frame that can be named: those of its function first, then those of its module."""
    local = frame.f_locals
    found = {**local, **{name: value for name, value in frame.f_globals.items() if name not in local}}
    if sys.version_info < (3, 13) and frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(local) <= _OWN:
        local.clear()  # a copy that the frame keeps: tensors in it would live until the function returns
    return {name: value for name, value in found.items() if name.isidentifier() and not name.startswith("_")}


def name_values(recorder: Recorder, given: Mapping[str, Any], found: Mapping[str, Any]) -> dict[int, str]:
    """Name the values of a recorder; returns the names of modules, by their ids.

    given: names that were passed, which win. found: variables of the caller.
    """
    free = {name: value for name, value in found.items() if name not in given}
    contained = [(name, x) for name, value in free.items() for name, x in _contained(name, value)]
    last = _loop_variables(free)
    free = {name: value for name, value in free.items() if id(value) not in last} | dict(contained)
    modules = _modules(recorder, given, free)
    paths: dict[int, str] = {}
    for name, module in modules:
        for path, inner in module.named_modules():
            paths.setdefault(id(inner), f"{name}.{path}" if path else name)
    owners = [
        (f"{name}.{path}" if len(modules) > 1 or name in given else path, parameter)
        for name, module in modules
        for path, parameter in (*module.named_parameters(), *module.named_buffers())
    ]
    for pairs in (_tensors(given), owners, _tensors(free)):
        for name, tensor in pairs:
            for index in recorder.all_of(tensor):
                if recorder.values[index].name is None:
                    recorder.values[index].name = name
    return paths


def _tensors(names: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in names.items() if isinstance(value, Tensor))


def _contained(name: str, value: Any) -> Iterator[tuple[str, Tensor | Module]]:
    """The tensors and modules in lists, tuples, dicts and attributes, with names such as "weights[0]" and "self.w"."""
    if isinstance(value, (Tensor, Module, ModuleType)):
        return
    if isinstance(value, (list, tuple, dict)):
        pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
        items = [(f"{name}[{key!r}]", x) for key, x in pairs if type(key) in (int, str)]
    else:
        try:
            attributes = dict(vars(value))
        except Exception:  # it has none, or a `__dict__` of its own
            return
        items = [(f"{name}.{key}", x) for key, x in attributes.items() if not str(key).startswith("_")]
    yield from ((name, x) for name, x in items if isinstance(x, (Tensor, Module)))


def _loop_variables(names: Mapping[str, Any]) -> set[int]:
    """The ids of what the variable of a finished loop holds: the last item of a list, the only one with a variable."""
    own = {id(value) for value in names.values() if isinstance(value, (Tensor, Module))}
    found = set()
    for name, value in names.items():
        if isinstance(value, (list, tuple, dict)):
            items = [id(x) for _, x in _contained(name, value)]
            if len(items) > 1 and items[-1] in own and own.isdisjoint(items[:-1]):
                found.add(items[-1])
    return found


def _modules(recorder: Recorder, given: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Module]]:
    """The modules that ran outermost, or hold a parameter of the graph, each with its name."""
    called = [step.place.calls[0].module for step in recorder.steps if step.place.calls]
    outermost = {id(module): module for module in called if module is not None}
    named = [(n, v) for names in (given, found) for n, v in names.items() if isinstance(v, Module)]
    inner = {id(child) for _, module in named for child in module.modules() if child is not module}
    result: dict[int, tuple[str, Module]] = {}
    for name, module in named:
        used = id(module) in outermost or any(recorder.all_of(p) for p in module.parameters())
        if used and id(module) not in inner:
            result.setdefault(id(module), (name, module))
    covered = {id(child) for _, module in result.values() for child in module.modules()}
    for key, module in outermost.items():
        if key not in covered:
            kind = type(module).__name__.lower()
            taken = {name for name, _ in result.values()}
            numbered = itertools.chain([kind], (f"{kind}_{n}" for n in itertools.count(2)))
            result[key] = next(name for name in numbered if name not in taken), module
    return list(result.values())
