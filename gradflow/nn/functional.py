"""Modules: functions with parameters, and the bookkeeping that finds them by name."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from gradflow.autograd.grad_mode import no_grad
from gradflow.autograd.hooks import Handle
from gradflow.autograd.saved import Memory, time_of_change
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import DType
from gradflow.interception import forbid_replay, invalidate, report_creation, report_reads, temporary_change
from gradflow.ops import all as all_
from gradflow.ops import asarray, equal, isnan, where
from gradflow.tensor import Tensor, device_and_dtype
from gradflow.tree import check_state


class Parameter(Tensor):
    """A tensor that a module trains: a leaf that requires a gradient, unless it is told not to.

    Made from a floating-point tensor, whose values it shares.

    Raises TypeError for values that are not tensors or carry no gradient.
    """

    __slots__ = ()

    def __init__(self, values: Any, backend: Any = None, node: Any = None, *, requires_grad: bool = True) -> None:
        if backend is not None:  # as Tensor's own functions make copies
            super().__init__(values, backend, node)
            return
        if not isinstance(values, Tensor):
            raise TypeError(f"a Parameter is made of a tensor; got {type(values).__name__}")
        super().__init__(values.array, values.backend)
        values._shared_memory().add(self)
        self.requires_grad_().requires_grad_(requires_grad)  # first the one that refuses integers


class StateError(KeyError):
    """Names are missing from a state or unexpected in it; the message lists them."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError shows the repr of what was looked up


class Incompatible(NamedTuple):
    """The names that a state lacks, and those that it has in excess."""

    missing_keys: list[str]
    unexpected_keys: list[str]


@report_reads
class Module:
    """A function with parameters. Subclasses assign parameters and modules to attributes and define `forward`.

    >>> from gradflow import nn
    >>> class Twice(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(2, 2)
    ...     def forward(self, x):
    ...         return self.layer(self.layer(x))
    >>> [name for name, _ in Twice().named_parameters()]
    ['layer.weight', 'layer.bias']
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _transient: set[str]  # the buffers that are not in the state
    _forward_hooks: dict[int, Callable[..., Any]] | None = None

    def __init__(self) -> None:
        report_creation(self)
        object.__setattr__(self, "_parameters", {})
        object.__setattr__(self, "_buffers", {})
        object.__setattr__(self, "_modules", {})
        object.__setattr__(self, "_transient", set())
        object.__setattr__(self, "training", True)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None:
        kind = "_parameters" if isinstance(value, Parameter) else "_modules" if isinstance(value, Module) else None
        if kind is None:
            kind = next((k for k in _REGISTRIES if name in self.__dict__.get(k, ())), None)
            if kind is not None and value is not None and not (kind == "_buffers" and isinstance(value, Tensor)):
                raise TypeError(f"{name!r} holds {_REGISTRIES[kind]} and cannot become a {type(value).__name__}")
        self._register(kind, name, value)

    def _register(self, kind: str | None, name: str, value: Any) -> None:
        """Assign an attribute, and enter it in the registry `kind` and no other."""
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning attributes")
        if kind is not None:
            for other in _REGISTRIES:
                if other != kind:
                    self.__dict__[other].pop(name, None)
            self.__dict__[kind][name] = value
        object.__setattr__(self, name, value)  # beside the registry, so that reading it costs nothing more
        invalidate(self)

    def __delattr__(self, name: str) -> None:
        for kind in _REGISTRIES:
            self.__dict__[kind].pop(name, None)
        object.__delattr__(self, name)
        invalidate(self)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assign a parameter, or None where a module of this kind may have one. TypeError for anything else."""
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(f"{name!r} must be a Parameter or None; got {type(parameter).__name__}")
        self._register("_parameters", name, parameter)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Assign a tensor that `to` moves and no optimizer changes, or None; part of the state if `persistent`.

        Raises TypeError for anything else.

        >>> import gradflow as gf
        >>> module = gf.nn.Module()
        >>> module.register_buffer("mean", gf.zeros(3))
        >>> module.to("float64").mean.dtype, list(module.state_dict())
        (gradflow.float64, ['mean'])
        """
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"the buffer {name!r} must be a tensor or None; got {type(tensor).__name__}")
        self._register("_buffers", name, tensor)
        (self._transient.discard if persistent else self._transient.add)(name)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Compute `forward` of the inputs, and let the forward hooks see it."""
        output = self.forward(*inputs, **options)
        if self._forward_hooks:
            forbid_replay(f"calls a forward hook of {type(self).__name__}")
            for hook in list(self._forward_hooks.values()):
                result = hook(self, inputs, output)
                if result is not None:
                    output = result
        return output

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> Handle:
        """Call `hook(module, inputs, output)` after each forward; what it returns, if not None, becomes the output.

        The handle takes the hook back with `remove()`, or at the end of a `with` on it.

        >>> import gradflow as gf
        >>> layer, sizes = gf.nn.Linear(2, 3), []
        >>> with layer.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape)):
        ...     _ = layer(gf.ones((4, 2)))
        >>> sizes
        [(4, 3)]
        """
        hooks = {} if self._forward_hooks is None else self._forward_hooks
        object.__setattr__(self, "_forward_hooks", hooks)
        return Handle(hooks, hook, self)

    def __copy__(self) -> Self:
        """A module of the same parameters, buffers and modules, in registries of its own."""
        out = type(self).__new__(type(self))
        kept = {name: copy.copy(value) for name, value in self.__dict__.items() if name in _OWN}
        out.__dict__.update({**self.__dict__, **kept})
        return out

    # ------------------------------------------------------------------ finding

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules right inside this one, by name, each once."""
        seen = set()
        for name, module in self._modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules right inside this one, each once."""
        for _, module in self.named_children():
            yield module

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all inside it, with dotted names: each once, or in every place that it has."""
        yield from self._walk(prefix, set() if remove_duplicate else None)

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                yield from module._walk(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once."""
        for _, module in self.named_modules():
            yield module

    def _named(self, kind: str, remove_duplicate: bool) -> Iterator[tuple[str, Any]]:
        seen = set()
        for prefix, module in self.named_modules(remove_duplicate=remove_duplicate):
            for name, tensor in module.__dict__[kind].items():
                if tensor is not None and not (remove_duplicate and id(tensor) in seen):
                    seen.add(id(tensor))
                    yield (f"{prefix}.{name}" if prefix else name), tensor

    def named_parameters(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """All parameters with dotted names: each once, or in every place that it has."""
        return self._named("_parameters", remove_duplicate)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """All buffers with dotted names: each once, or in every place that it has."""
        return self._named("_buffers", remove_duplicate)

    def buffers(self) -> Iterator[Tensor]:
        """All buffers, each once."""
        for _, buffer in self.named_buffers():
            yield buffer

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call `function` with every module inside this one, then with this; returns the module."""
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    # ------------------------------------------------------------------ state

    def train(self, mode: bool = True) -> Self:
        """Set training mode (dropout at work) here and below; returns the module."""
        for module in self.modules():
            if module.training != mode:
                object.__setattr__(module, "training", mode)
                invalidate(module)
        return self

    def eval(self) -> Self:
        """Set evaluation mode (no dropout) here and below; returns the module."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def requires_grad_(self, value: bool = True) -> Self:
        """Set whether the parameters need gradients; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad_(value)
        return self

    def to(
        self, target: DeviceLike | DType | Any = None, dtype: Any = None, *, device: DeviceLike | None = None
    ) -> Self:
        """Move all parameters to a device, or convert them to a floating-point dtype, in place; returns the module.

        Buffers are replaced by moved ones; a dtype is for those that are floating-point. Gradients are dropped. Make
        optimizers afterwards. Raises TypeError for a dtype that carries no gradient.
        """
        device, dtype = device_and_dtype(target, dtype, device)
        if device is not None:
            get_backend(device)
        if dtype is not None and not dtype.is_floating:
            raise TypeError(f"parameters are floating-point; got {dtype}")
        with no_grad():
            moved = [(p, p.detach().to(device=device, dtype=dtype)) for p in self.parameters()]
        for parameter, values in moved:
            if values.backend is parameter.backend and values.dtype == parameter.dtype:
                continue
            required = parameter.requires_grad
            array, parameter._node = parameter.array, None
            parameter.array, parameter.backend = values.array, values.backend
            invalidate(array)
            parameter._memory = Memory(time_of_change())  # what was recorded before is not of these values
            parameter.requires_grad_(required)
        for module in self.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.dtype.is_floating:
                    setattr(module, name, buffer.to(device=device, dtype=dtype))
                elif buffer is not None and device is not None:
                    setattr(module, name, buffer.to(device=device))
        return self

    def _state(self) -> dict[str, Tensor]:
        """What is in the state, by every name that it has."""
        found: dict[str, Tensor] = {}
        for prefix, module in self.named_modules(remove_duplicate=False):
            kept = {name: buffer for name, buffer in module._buffers.items() if name not in module._transient}
            for name, tensor in (module._parameters | kept).items():
                if tensor is not None:
                    found[f"{prefix}.{name}" if prefix else name] = tensor
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """The values of all parameters and persistent buffers by name, copied: what `load_state_dict` takes.

        What is in several places is there by each of its names, with one copy for all.
        """
        state = self._state()
        with no_grad():
            copies = {id(tensor): tensor.detach().clone() for tensor in state.values()}
        return {name: copies[id(tensor)] for name, tensor in state.items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Incompatible:
        """Overwrite parameters and buffers with values by name: tensors of any device, or NumPy arrays.

        All is checked before anything is changed. Raises StateError, a KeyError, for missing or unexpected names, or,
        unless `strict`, returns them; ValueError for another shape, or for differing values of one parameter that has
        several names (which PyTorch takes the last of); TypeError for integers in place of floating-point numbers, and
        the reverse.
        """
        check_state(state)
        own = self._state()
        names = Incompatible([n for n in own if n not in state], [n for n in state if n not in own])
        if strict and (names.missing_keys or names.unexpected_keys):
            problems = [
                f"{what}: {', '.join(n)}" for what, n in zip(("missing", "unexpected"), names, strict=True) if n
            ]
            raise StateError(f"load_state_dict of {type(self).__name__}: {'; '.join(problems)}")
        values: dict[int, tuple[str, Tensor, Tensor]] = {}
        for name, tensor in own.items():
            if name not in state:
                continue
            given = state[name]
            value = given if isinstance(given, Tensor) else asarray(given, device=tensor.device)
            if value.shape != tensor.shape:
                raise ValueError(f"load_state_dict: {name} has shape {tensor.shape}; got {value.shape}")
            if value.dtype.is_floating != tensor.dtype.is_floating:
                raise TypeError(f"load_state_dict: {name} is {tensor.dtype}; got {value.dtype}")
            if not isinstance(given, Tensor):
                value = asarray(given, tensor.dtype, tensor.device)  # or raise, if it does not fit into integers
            first, _, before = values.setdefault(id(tensor), (name, tensor, value))
            if value is not before and not _same(value, before):
                raise ValueError(f"load_state_dict: {first} and {name} share one tensor; got two with other values")
        with no_grad():
            for _, tensor, value in values.values():
                tensor.copy_(value)
        return names

    # ------------------------------------------------------------------ as text

    def extra_repr(self) -> str:
        """What to write between the parentheses of the repr; subclasses define it."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self._modules.items()]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


_REGISTRIES = {"_parameters": "a parameter", "_buffers": "a buffer", "_modules": "a module"}
_OWN = {*_REGISTRIES, "_transient", "_forward_hooks"}

_ELSEWHERE = {
    "inplace": "operations make new tensors, so leave it out",
    "dim": "call it axis",
    "start_dim": "call it start_axis",
    "end_dim": "call it end_axis",
    "size_average": "use reduction=",
    "reduce": "use reduction=",
}
"""Arguments of modules in other libraries, and what to do instead."""


def speaks_for_itself(cls: type[Module]) -> None:
    """Make the constructor's errors about unexpected arguments name the class, and say what to do."""
    init = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Module, *arguments: Any, **options: Any) -> None:  # noqa: N807
        try:
            init(self, *arguments, **options)
        except TypeError:
            try:
                signature.bind(self, *arguments, **options)
            except TypeError as error:
                own = list(signature.parameters)[1:]
                advice = "".join(f"; {name}: {_ELSEWHERE[name]}" for name in options if name in _ELSEWHERE)
                takes = f"takes {', '.join(own)}" if own else "takes no settings"
                raise TypeError(f"{cls.__name__} {takes}: {error}{advice}") from None
            raise

    cls.__init__ = __init__  # type: ignore[method-assign]


def fixed(name: str, value: Callable[[Any], Any], doc: str) -> Any:
    """A read-only property for a setting that was fixed when the module was made."""

    def refuse_(module: Module, _: Any) -> None:
        raise AttributeError(f"{name} of a {type(module).__name__} is read-only: make a new module")

    return property(value, refuse_, doc=doc)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape, on any devices, hold the same numbers. Waits for the devices."""
    a, b = a.detach(), b.detach().to(a.device)
    return bool(all_(where(isnan(a), isnan(b), equal(a, b))))


def functional_call(module: Module, parameters: Mapping[str, Tensor], *inputs: Any, **options: Any) -> Any:
    """`module(*inputs)` with tensors in place of the parameters and buffers of those names; the module stays as it was.

    Makes a function of the parameters of a module, for `gradflow.grad` and its like. A name stands for every place that
    shares its parameter. NumPy arrays become tensors on the module's device. Raises KeyError for an unknown name,
    ValueError for another shape.

    >>> import gradflow as gf
    >>> layer = gf.nn.Linear(2, 1)
    >>> loss = lambda p, x: gf.nn.functional_call(layer, p, x).square().sum()
    >>> sorted(gf.grad(loss)(dict(layer.named_parameters()), gf.ones((3, 2))))
    ['bias', 'weight']
    """
    own: dict[str, Tensor] = {**dict(module.named_parameters(False)), **dict(module.named_buffers(False))}
    given: dict[str, Tensor] = {}
    for name, value in parameters.items():
        if name not in own:
            raise KeyError(f"{type(module).__name__} has no parameter {name!r}; it has {', '.join(own) or 'none'}")
        given[name] = value = value if isinstance(value, Tensor) else asarray(value, device=own[name].device)
        if value.shape != own[name].shape:
            raise ValueError(f"functional_call: {name} has shape {own[name].shape}; got {value.shape}")
    replaced = {id(own[name]): value for name, value in given.items()}
    places = [
        (owner, attribute, tensor)
        for owner in module.modules()
        for attribute, tensor in (owner._parameters | owner._buffers).items()
        if id(tensor) in replaced
    ]
    with temporary_change(*{id(owner): owner for owner, _, _ in places}.values()):
        try:
            for owner, attribute, tensor in places:
                object.__setattr__(owner, attribute, replaced[id(tensor)])
            return module(*inputs, **options)
        finally:
            for owner, attribute, tensor in places:
                object.__setattr__(owner, attribute, tensor)
