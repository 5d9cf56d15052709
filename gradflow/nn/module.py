"""Modules: functions with parameters, and the bookkeeping that finds them by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from gradflow.backend import Device
from gradflow.device import DeviceLike, get_backend
from gradflow.dtypes import DTYPES, DType, as_dtype
from gradflow.engine import Handle, no_grad
from gradflow.ops import asarray
from gradflow.tensor import Tensor


class Parameter(Tensor):
    """A tensor that a module trains: a leaf that requires a gradient.

    Made from a floating-point tensor, whose values it shares.

    Raises TypeError for values that are no tensor or carry no gradient.
    """

    __slots__ = ()

    def __init__(self, values: Any, backend: Any = None, node: Any = None) -> None:
        if backend is not None:  # as Tensor's own functions make copies
            super().__init__(values, backend, node)
            return
        if not isinstance(values, Tensor):
            raise TypeError(f"a Parameter is made of a tensor; got {type(values).__name__}")
        super().__init__(values.array, values.backend)
        self._memory = values._shared_memory()
        self.requires_grad_()


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
    _modules: dict[str, Module]
    _forward_hooks: dict[Handle, Callable[..., Any]] | None = None

    def __init__(self) -> None:
        object.__setattr__(self, "_parameters", {})
        object.__setattr__(self, "_modules", {})
        object.__setattr__(self, "training", True)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None:
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning attributes")
        is_parameter = isinstance(value, Parameter) or (value is None and name in self._parameters)
        is_module = isinstance(value, Module)
        if not is_parameter and not is_module and (name in self._parameters or name in self._modules):
            raise TypeError(f"{name!r} holds a parameter or a module and cannot become a {type(value).__name__}")
        if is_parameter:
            self._modules.pop(name, None)
            self._parameters[name] = value
        elif is_module:
            self._parameters.pop(name, None)
            self._modules[name] = value
        object.__setattr__(self, name, value)  # beside the registry, so that reading it costs nothing more

    def __delattr__(self, name: str) -> None:
        self._parameters.pop(name, None)
        self._modules.pop(name, None)
        object.__delattr__(self, name)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assign a parameter, or None where a module of this kind may have one."""
        self._parameters[name] = parameter
        object.__setattr__(self, name, parameter)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Compute `forward` of the inputs, and let the forward hooks see it."""
        output = self.forward(*inputs, **options)
        if self._forward_hooks:
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
        handle = Handle(hooks)
        hooks[handle] = hook
        return handle

    # ------------------------------------------------------------------ finding

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all inside it, with dotted names, each once."""
        yield from self._walk(prefix, set())

    def _walk(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
        if id(self) in seen:
            return
        seen.add(id(self))
        yield prefix, self
        for name, module in self._modules.items():
            yield from module._walk(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with dotted names, each once."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield (f"{prefix}.{name}" if prefix else name), parameter

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        for _, parameter in self.named_parameters():
            yield parameter

    # ------------------------------------------------------------------ state

    def train(self, mode: bool = True) -> Self:
        """Set training mode (dropout at work) here and below; returns the module."""
        for module in self.modules():
            object.__setattr__(module, "training", mode)
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

    def to(self, target: DeviceLike | DType | Any) -> Self:
        """Move all parameters to a device, or convert them to a floating-point dtype, in place; returns the module.

        Gradients are dropped. Make optimizers afterwards. Raises TypeError for a dtype that carries no gradient.
        """
        if isinstance(target, Device) or (isinstance(target, str) and target not in DTYPES):
            get_backend(target)
        elif not as_dtype(target).is_floating:
            raise TypeError(f"parameters are floating-point; got {target}")
        with no_grad():
            moved = [(p, p.detach().to(target)) for p in self.parameters()]
        for parameter, values in moved:
            if values.backend is parameter.backend and values.dtype == parameter.dtype:
                continue
            required = parameter.requires_grad
            parameter._node = None
            parameter.array, parameter.backend, parameter._memory = values.array, values.backend, None
            parameter.requires_grad_(required)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The values of all parameters by name, copied: what `load_state_dict` takes."""
        with no_grad():
            return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Overwrite the parameters with values by name: tensors of any device, or NumPy arrays.

        All is checked before anything is changed. Raises KeyError for missing or unexpected names (unless `strict` is
        false), ValueError for another shape, TypeError for values that are no floating-point numbers.
        """
        own = dict(self.named_parameters())
        missing, unexpected = [n for n in own if n not in state], [n for n in state if n not in own]
        if strict and (missing or unexpected):
            problems = [
                f"{what}: {', '.join(n)}" for what, n in (("missing", missing), ("unexpected", unexpected)) if n
            ]
            raise KeyError(f"load_state_dict of {type(self).__name__}: {'; '.join(problems)}")
        values: dict[str, Tensor] = {}
        for name, parameter in own.items():
            if name not in state:
                continue
            given = state[name]
            value = given if isinstance(given, Tensor) else asarray(given, device=parameter.device)
            if value.shape != parameter.shape:
                raise ValueError(f"load_state_dict: {name} has shape {parameter.shape}; got {value.shape}")
            if not value.dtype.is_floating:
                raise TypeError(f"load_state_dict: {name} is {parameter.dtype}; got {value.dtype}")
            values[name] = value
        with no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    # ------------------------------------------------------------------ as text

    def extra_repr(self) -> str:
        """What to write between the parentheses of the repr; subclasses define it."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self._modules.items()]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


def functional_call(module: Module, parameters: Mapping[str, Tensor], *inputs: Any, **options: Any) -> Any:
    """`module(*inputs)` with tensors in place of the parameters of those names; the module is left as it was.

    Makes a function of the parameters of a module, for `gradflow.grad` and its like. A name stands for every place that
    shares its parameter. Raises KeyError for an unknown name, ValueError for another shape.

    >>> import gradflow as gf
    >>> layer = gf.nn.Linear(2, 1)
    >>> loss = lambda p, x: gf.nn.functional_call(layer, p, x).square().sum()
    >>> sorted(gf.grad(loss)(dict(layer.named_parameters()), gf.ones((3, 2))))
    ['bias', 'weight']
    """
    own = dict(module.named_parameters())
    for name, value in parameters.items():
        if name not in own:
            raise KeyError(f"{type(module).__name__} has no parameter {name!r}; it has {', '.join(own) or 'none'}")
        if value.shape != own[name].shape:
            raise ValueError(f"functional_call: {name} has shape {own[name].shape}; got {value.shape}")
    replaced = {id(own[name]): value for name, value in parameters.items()}
    places = [
        (owner, attribute, parameter)
        for owner in module.modules()
        for attribute, parameter in owner._parameters.items()
        if id(parameter) in replaced
    ]
    try:
        for owner, attribute, parameter in places:
            object.__setattr__(owner, attribute, replaced[id(parameter)])
        return module(*inputs, **options)
    finally:
        for owner, attribute, parameter in places:
            object.__setattr__(owner, attribute, parameter)
