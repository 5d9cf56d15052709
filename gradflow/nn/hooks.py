"""Calling a module, and the hooks of such calls: before and after `forward`, and on the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from gradflow.autograd.batching import Batch
from gradflow.autograd.grad_mode import is_grad_enabled
from gradflow.autograd.graph import Operation
from gradflow.autograd.hooks import Handle, run_hooks
from gradflow.interception import forbid_replay, measured, profilers
from gradflow.ops import concat, namespace, reshape, zeros_like
from gradflow.ops.table import apply
from gradflow.tensor import Tensor
from gradflow.tree import flatten, rebuild

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
"""The attributes of a module that hold its hooks: dicts, or None before the first."""


class Hookable:
    """The methods of `Module` that call it, and register functions for such calls."""

    _forward_pre_hooks: dict[int, Callable[..., Any]] | None = None
    _forward_hooks: dict[int, Callable[..., Any]] | None = None
    _backward_hooks: dict[int, Callable[..., Any]] | None = None
    forward: Callable[..., Any]

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call `forward`, with the hooks before and after it; returns the result."""
        if self._forward_pre_hooks or self._backward_hooks or self._forward_hooks:
            return self._call_with_hooks(inputs, options)
        if profilers:
            return measured("module", self, self.forward, *inputs, **options)
        return self.forward(*inputs, **options)

    def _call_with_hooks(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        forbid_replay(f"calls a hook of {type(self).__name__}")
        for hook in list((self._forward_pre_hooks or {}).values()):
            result = hook(self, inputs)
            if result is not None:
                inputs = result if isinstance(result, tuple) else (result,)
        call = None
        if self._backward_hooks and is_grad_enabled():
            call = _Call(self, list(self._backward_hooks.values()))
            inputs = call.with_inputs(inputs)
        output = measured("module", self, self.forward, *inputs, **options)
        for hook in list((self._forward_hooks or {}).values()):
            result = hook(self, inputs, output)
            if result is not None:
                output = result
        return output if call is None else call.with_outputs(output)

    @property
    def _hooked(self) -> bool:
        """Whether the module has hooks."""
        return any(getattr(self, kind) for kind in HOOKS)

    def register_forward_pre_hook(self, hook: Callable[[Any, tuple[Any, ...]], Any]) -> Handle:
        """Call `hook(module, inputs)` before each `forward`, with its positional arguments as a tuple.

        A result other than None replaces these: a tuple of all of them, or the only one.

        Returns a handle, as `register_forward_hook` does.

        >>> import gradflow as gf
        >>> layer = gf.nn.Identity()
        >>> with layer.register_forward_pre_hook(lambda module, inputs: inputs[0] * 10):
        ...     layer(gf.ones(2)).tolist()
        [10.0, 10.0]
        """
        return self._register_hook("_forward_pre_hooks", hook)

    def register_forward_hook(self, hook: Callable[[Any, tuple[Any, ...], Any], Any]) -> Handle:
        """Call `hook(module, inputs, output)` after each `forward`; a result other than None replaces the output.

        Returns a handle. Its `remove()`, or the end of a `with` statement on it, removes the hook.

        >>> import gradflow as gf
        >>> layer, sizes = gf.nn.Linear(2, 3), []
        >>> with layer.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape)):
        ...     _ = layer(gf.ones((4, 2)))
        >>> sizes
        [(4, 3)]
        """
        return self._register_hook("_forward_hooks", hook)

    def register_full_backward_hook(self, hook: Callable[[Any, tuple[Any, ...], tuple[Any, ...]], Any]) -> Handle:
        """Call `hook(module, grad_input, grad_output)` when the gradients of a call's inputs have been computed.

        grad_input has an entry for each positional argument of the call, grad_output one for each tensor of the result:
        gradients, or None for what does not require grad. A result other than None replaces grad_input: a tuple, in
        which None stands for zeros, or the only gradient. If no argument requires grad, the hook is called when the
        gradients of the result have been computed, and returns None.

        Hooks apply to calls after their registration. The tensors that require grad among the arguments, and those
        among the results, must be of one dtype and on one device: TypeError. A hook must not change gradients in place,
        and a result must fit: RuntimeError, TypeError.

        Returns a handle, as `register_forward_hook` does.

        >>> import gradflow as gf
        >>> layer, x = gf.nn.Tanh(), gf.zeros(2, requires_grad=True)
        >>> with layer.register_full_backward_hook(lambda module, grad_input, grad_output: grad_input[0] * 10):
        ...     y = layer(x)
        >>> y.sum().backward()
        >>> x.grad.tolist()
        [10.0, 10.0]
        """
        return self._register_hook("_backward_hooks", hook)

    def _register_hook(self, kind: str, hook: Callable[..., Any]) -> Handle:
        if not callable(hook):
            raise TypeError(f"a hook is a function; got {type(hook).__name__}")
        hooks = {} if getattr(self, kind) is None else getattr(self, kind)
        object.__setattr__(self, kind, hooks)
        return Handle(hooks, hook, self)


# ---------------------------------------------------------------------- backward hooks


class _Call:
    """A call of a module that has backward hooks.

    The tensors among its arguments, and those among its results, each go through one operation, whose rules run the
    hooks. Several of them go as one, joined. It keeps their shapes and not themselves, since their nodes refer to it.
    """

    def __init__(self, module: Any, hooks: Sequence[Callable[..., Any]]) -> None:
        self.module = module
        self.hooks = hooks
        self.grad_output: Any = None  # from its rule until that of the inputs
        self.inputs_hold: list[tuple[int, ...] | None] = []
        self.outputs_hold: list[tuple[int, ...] | None] = []

    def with_inputs(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments to call `forward` with, connected to the hooks."""
        self.inputs_hold, through = self._through(_INPUTS, "arguments", inputs)
        return tuple(through)

    def with_outputs(self, output: Any) -> Any:
        """The output of the module, connected to the hooks."""
        self.outputs_hold, through = self._through(_OUTPUTS, "results", [x for _, x in flatten(output)])
        return rebuild(output, through)

    def _through(
        self, op: Operation, what: str, values: Sequence[Any]
    ) -> tuple[list[tuple[int, ...] | None], list[Any]]:
        """The shapes of those that require grad, None for others; and the values after the operation."""
        shapes = [x.shape if isinstance(x, Tensor) and x.requires_grad else None for x in values]
        tensors = [x for x, shape in zip(values, shapes, strict=True) if shape is not None]
        if not tensors:
            return shapes, list(values)
        if len({(x.dtype, x.device) for x in tensors}) > 1:
            kinds = ", ".join(f"{x.dtype} on {x.device}" for x in tensors)
            raise TypeError(
                f"a backward hook of {type(self.module).__name__} needs {what} of one dtype and on one device; "
                f"got {kinds}"
            )
        joined = apply(op, (_joined(tensors),), {"call": self})
        pieces = _pieces(joined, shapes)
        return shapes, [x if piece is None else piece for x, piece in zip(values, pieces, strict=True)]

    def run(self, given: Tensor | None, grad_output: Tensor) -> Tensor | None:
        """Call the hooks with the joined gradients; returns those of the inputs, or None if no hook replaced them."""
        grad_input: tuple[Any, ...] = (
            (None,) * len(self.inputs_hold) if given is None else tuple(_pieces(given, self.inputs_hold))
        )
        changed = False
        for hook in self.hooks:
            result = hook(self.module, grad_input, tuple(_pieces(grad_output, self.outputs_hold)))
            if result is None:
                continue
            result = result if isinstance(result, tuple) else (result,)
            expected = [None if g is None else g.shape for g in grad_input]
            if len(result) != len(expected) or any(
                g is not None and (not isinstance(g, Tensor) or g.shape != shape)
                for g, shape in zip(result, expected, strict=True)
            ):
                raise TypeError(
                    f"a backward hook of {type(self.module).__name__} must return None, or gradients of the shapes "
                    f"{expected}; got {result!r}"
                )
            pairs = zip(result, grad_input, strict=True)
            grad_input = tuple(zeros_like(old) if g is None and old is not None else g for g, old in pairs)
            changed = True
        return _joined([g for g in grad_input if g is not None]) if changed and given is not None else None


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else concat([reshape(x, (x.size,)) for x in tensors])


def _pieces(joined: Tensor, shapes: Sequence[tuple[int, ...] | None]) -> list[Tensor | None]:
    """For each shape its part of a joined tensor; None for None."""
    if sum(shape is not None for shape in shapes) == 1:
        return [None if shape is None else joined for shape in shapes]
    pieces: list[Tensor | None] = []
    start = 0
    for shape in shapes:
        if shape is None:
            pieces.append(None)
            continue
        stop = start + math.prod(shape)
        pieces.append(reshape(joined[start:stop], shape))
        start = stop
    return pieces


def _of_outputs(F: Any, g: Any, _out: Any, _x: Any, call: _Call) -> Any:
    call.grad_output = g
    return g if any(shape is not None for shape in call.inputs_hold) else _run(g, _x, call, given=False)


def _of_inputs(F: Any, g: Any, _out: Any, _x: Any, call: _Call) -> Any:
    return g if call.grad_output is None else _run(g, _x, call)


def _run(g: Any, x: Any, call: _Call, given: bool = True) -> Any:
    """`call.run` of a gradient for x: an array, a tensor, or a batch of one of them. given: whether x is an input."""
    grad_output, call.grad_output = call.grad_output, None
    batch = isinstance(g, Batch)
    recorded = isinstance(g.values if batch else g, Tensor)
    rows: Iterator[Any] = iter([grad_output])
    if batch:
        rows = (grad_output.values[i, ...] for i in range(grad_output.values.shape[0]))

    def hook(one: Tensor) -> Tensor | None:
        of_output = next(rows)
        return call.run(one if given else None, of_output if recorded else Tensor(of_output, x.backend))

    node = SimpleNamespace(hooks={1: hook}, shape=x.shape, dtype=x.dtype, backend=x.backend)
    return run_hooks(node, g, namespace if recorded else None, batch)


_OUTPUTS = Operation("identity", lambda F, x, call: x, [_of_outputs], view=True)
_INPUTS = Operation("identity", lambda F, x, call: x, [_of_inputs], view=True)
