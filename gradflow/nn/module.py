"""The base class of modules, which registers parameters, buffers and submodules by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from gradflow.autograd.grad_mode import no_grad
from gradflow.autograd.memory import Memory, clock
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import DType
from gradflow.interception import invalidate, report_creation, report_mode, report_reads
from gradflow.nn.hooks import HOOKS, Hookable
from gradflow.nn.parameter import Parameter
from gradflow.nn.state import Stateful
from gradflow.ops.transfer import device_and_dtype
from gradflow.pytorch_names import MODULE_METHODS, hints_at
from gradflow.tensor import Tensor

_REGISTRIES = {"_parameters": "a parameter", "_buffers": "a buffer", "_modules": "a module"}
"""The dicts of a module that hold its parameters, buffers and modules by name, and what error messages call these."""
_OWN = {*_REGISTRIES, "_transient", *HOOKS}
"""The attributes that a copy of a module does not share with it."""


@hints_at(MODULE_METHODS)
@report_reads
class Module(Stateful, Hookable):
    """A function with parameters: the base class of all layers, losses and models.

    Subclasses call `super().__init__()`, assign parameters and modules to attributes, and define `forward`. The
    attribute `training` says whether the module is in training mode (initially True; see `train` and `eval`).

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
    _modules: dict[str, Module | None]

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
        """Assign an attribute, and register it in the registry `kind` (None: in no registry) and no other."""
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning attributes")
        if kind is not None:
            for other in _REGISTRIES:
                if other != kind:
                    self.__dict__[other].pop(name, None)
            self.__dict__[kind][name] = value
        object.__setattr__(self, name, value)  # also a plain attribute, which is faster to read
        invalidate(self)

    def __delattr__(self, name: str) -> None:
        for kind in _REGISTRIES:
            self.__dict__[kind].pop(name, None)
        object.__delattr__(self, name)
        invalidate(self)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assign a parameter to the attribute `name`, or None if this instance has no such parameter.

        Raises TypeError for another value.

        >>> import gradflow as gf
        >>> layer = gf.nn.Linear(2, 1, bias=False)
        >>> layer.register_parameter("bias", gf.nn.Parameter(gf.zeros(1)))
        >>> layer
        Linear(in_features=2, out_features=1, bias=True)
        """
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(f"{name!r} must be a Parameter or None; got {type(parameter).__name__}")
        self._register("_parameters", name, parameter)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Assign to the attribute `name` a tensor that is not trained but moves with the module (`to`), or None.

        persistent: whether it is part of the state dict (default True).

        Raises TypeError for a value that is neither a tensor nor None.

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
        """Compute the result of the module; subclasses define it.

        >>> import gradflow as gf
        >>> class Double(gf.nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> Double()(gf.tensor([1.0, 2.0])).tolist()
        [2.0, 4.0]
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __copy__(self) -> Self:
        """A shallow copy: it shares parameters, buffers and modules, but has its own registries of them."""
        out = type(self).__new__(type(self))
        kept = {name: copy.copy(value) for name, value in self.__dict__.items() if name in _OWN}
        out.__dict__.update({**self.__dict__, **kept})
        return out

    # ------------------------------------------------------------------ modules, parameters and buffers by name

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules with their names, each once.

        >>> import gradflow as gf
        >>> model = gf.nn.Sequential(gf.nn.Linear(2, 2), gf.nn.Sequential(gf.nn.Tanh()))
        >>> [(name, type(child).__name__) for name, child in model.named_children()]
        [('0', 'Linear'), ('1', 'Sequential')]
        """
        seen = set()
        for name, module in self._modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once.

        >>> import gradflow as gf
        >>> [type(child).__name__ for child in gf.nn.Sequential(gf.nn.Linear(2, 2), gf.nn.Tanh()).children()]
        ['Linear', 'Tanh']
        """
        for _, module in self.named_children():
            yield module

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module and all its submodules, with dotted names that start with `prefix`.

        remove_duplicate: whether a module that is used in several places appears only once (default True).

        >>> import gradflow as gf
        >>> model = gf.nn.Sequential(gf.nn.Linear(2, 2), gf.nn.Sequential(gf.nn.Tanh()))
        >>> [name for name, _ in model.named_modules()]
        ['', '0', '1', '1.0']
        """
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
        """This module and all its submodules, each once.

        >>> import gradflow as gf
        >>> model = gf.nn.Sequential(gf.nn.Linear(2, 2), gf.nn.Dropout(0.1))
        >>> [module.p for module in model.modules() if isinstance(module, gf.nn.Dropout)]
        [0.1]
        """
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
        """All parameters, with dotted names.

        remove_duplicate: whether a parameter that is used in several places appears only once (default True).

        >>> import gradflow as gf
        >>> model = gf.nn.Sequential(gf.nn.Linear(2, 3), gf.nn.ReLU(), gf.nn.Linear(3, 1, bias=False))
        >>> [(name, p.shape) for name, p in model.named_parameters()]
        [('0.weight', (3, 2)), ('0.bias', (3,)), ('2.weight', (1, 3))]
        """
        return self._named("_parameters", remove_duplicate)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once.

        >>> import gradflow as gf
        >>> sum(p.size for p in gf.nn.MLP([784, 128, 10]).parameters())
        101770
        """
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """All buffers, with dotted names; `remove_duplicate` as for `named_parameters`.

        >>> import gradflow as gf
        >>> loss = gf.nn.CrossEntropyLoss(weight=gf.tensor([1.0, 3.0]))
        >>> [name for name, _ in loss.named_buffers()]
        ['weight']
        """
        return self._named("_buffers", remove_duplicate)

    def buffers(self) -> Iterator[Tensor]:
        """All buffers, each once.

        >>> import gradflow as gf
        >>> loss = gf.nn.CrossEntropyLoss(weight=gf.tensor([1.0, 3.0]))
        >>> [buffer.tolist() for buffer in loss.buffers()]
        [[1.0, 3.0]]
        """
        for _, buffer in self.named_buffers():
            yield buffer

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call `function` with each submodule, then with this module; returns the module.

        >>> import gradflow as gf
        >>> def reset(module):
        ...     if isinstance(module, gf.nn.Linear):
        ...         gf.nn.init.zeros_(module.bias)
        >>> model = gf.nn.MLP([2, 3, 1]).apply(reset)
        >>> model(gf.zeros((1, 2))).tolist()
        [[0.0]]
        """
        for module in self.children():
            module.apply(function)
        function(self)
        return self

    # ------------------------------------------------------------------ training, gradients, device

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which dropout is active, here and in all submodules; returns the module.

        >>> import gradflow as gf
        >>> model = gf.nn.Sequential(gf.nn.Dropout(0.5))
        >>> model.train(False)[0].training, model.train()[0].training
        (False, True)
        """
        for module in self.modules():
            if module.training != mode:
                object.__setattr__(module, "training", mode)
                report_mode(module)
        return self

    def eval(self) -> Self:
        """Set evaluation mode, without dropout, here and in all submodules; returns the module.

        >>> import gradflow as gf
        >>> model = gf.nn.Sequential(gf.nn.Linear(2, 2), gf.nn.Dropout(0.9)).eval()
        >>> (model(gf.ones((1, 2))) == model[0](gf.ones((1, 2)))).all().item()
        True
        """
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients of all parameters to None, or to zeros with `set_to_none=False`.

        An optimizer passes over a parameter whose gradient is None, and updates one whose gradient is zero.

        >>> import gradflow as gf
        >>> layer = gf.nn.Linear(2, 1)
        >>> layer(gf.ones(2)).sum().backward()
        >>> layer.bias.grad.tolist()
        [1.0]
        >>> layer.zero_grad(set_to_none=False)
        >>> layer.bias.grad.tolist()
        [0.0]
        """
        for parameter in self.parameters():
            parameter.zero_grad(set_to_none)

    def requires_grad_(self, value: bool = True) -> Self:
        """Set `requires_grad` of all parameters to `value` (default True); returns the module.

        >>> import gradflow as gf
        >>> model = gf.nn.Sequential(gf.nn.Linear(2, 2), gf.nn.Linear(2, 1))
        >>> model[0].requires_grad_(False)
        Linear(in_features=2, out_features=2, bias=True)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias']
        """
        for parameter in self.parameters():
            parameter.requires_grad_(value)
        return self

    def to(
        self, target: DeviceLike | DType | Any = None, dtype: Any = None, *, device: DeviceLike | None = None
    ) -> Self:
        """Move parameters and buffers to a device, or convert them to a floating-point dtype; returns the module.

        target: a device or a dtype; or pass `device=`, `dtype=`, or both.

        Parameters stay the same objects, but lose their gradients if they move; buffers are replaced. A dtype does not
        apply to buffers of integers and bools. Create optimizers after moving the module. Raises TypeError for a dtype
        that is not floating-point.

        >>> import gradflow as gf
        >>> model = gf.nn.Linear(2, 1).to("cpu", dtype="float64")
        >>> model.weight.dtype, model(gf.ones((1, 2), dtype="float64")).dtype
        (gradflow.float64, gradflow.float64)
        """
        device, dtype = device_and_dtype(target, dtype, device)
        if device is not None:
            get_backend(device)
        if dtype is not None and not dtype.is_floating:
            raise TypeError(f"parameters must be floating-point; got {dtype}")
        with no_grad():
            moved = [(p, p.detach().to(device=device, dtype=dtype)) for p in self.parameters()]
        for parameter, values in moved:
            if values.backend is parameter.backend and values.dtype == parameter.dtype:
                continue
            required = parameter.requires_grad
            array, parameter._node, parameter._frozen = parameter.array, None, None
            parameter.array, parameter.backend = values.array, values.backend
            invalidate(array)
            parameter._memory = Memory(clock.change())  # graphs recorded before refer to the old values
            parameter.requires_grad_(required)
        for module in self.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.dtype.is_floating:
                    setattr(module, name, buffer.to(device=device, dtype=dtype))
                elif buffer is not None and device is not None:
                    setattr(module, name, buffer.to(device=device))
        return self

    # ------------------------------------------------------------------ as text

    def extra_repr(self) -> str:
        """The text between the parentheses of the repr; subclasses define it.

        >>> import gradflow as gf
        >>> gf.nn.Dropout(0.1).extra_repr(), gf.nn.Dropout(0.1)
        ('p=0.1', Dropout(p=0.1))
        """
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self._modules.items()]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"
