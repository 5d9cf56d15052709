"""What a forward pass does and keeps, measured on a copy of a module, for `nn.summary`."""

from __future__ import annotations

import contextvars
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradflow import ops
from gradflow.autograd.grad_mode import current_observer, grad_enabled, mode_if
from gradflow.autograd.graph import Node, Operation, nodes_from
from gradflow.autograd.observers import Observer
from gradflow.backend import Backend
from gradflow.dtypes import DTYPES, DType
from gradflow.nn.hooks import HOOKS
from gradflow.nn.module import Module
from gradflow.random.generator import states_before
from gradflow.tensor import Tensor
from gradflow.tree import flatten

_PRODUCTS = ("linear", "matmul")
"""The operations whose multiply-adds are counted: each element of the result is a sum of products."""


@dataclass
class Calls:
    """What the calls of one module did in a forward pass.

    count: how many there were. outputs: the shapes of the tensors that the last one returned.
    multiply_adds: of products of matrices in this module, outside of its submodules.
    """

    count: int = 0
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    multiply_adds: int = 0


def calls(model: Module, inputs: Sequence[Tensor]) -> dict[str, Calls]:
    """Return what each module did in a forward pass in training mode, by name. The model stays as it is.

    Raises ValueError or TypeError, which names the module, for inputs that one does not take.
    """
    twin = _twin(model)
    found = {name: Calls() for name, _ in twin.named_modules()}
    inside: list[str] = []
    failed: tuple[BaseException, str, str] | None = None  # the latest error, and the innermost module that raised it

    class Counter(Observer):
        def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor, parameters: dict[str, Any]) -> None:
            if op.name in _PRODUCTS and inside:
                found[inside[-1]].multiply_adds += out.size * inputs[0].shape[-1]

    def watched(name: str, module: Module) -> Callable[..., Any]:
        forward = module.forward

        def call(*inputs: Any, **options: Any) -> Any:
            nonlocal failed
            inside.append(name)
            try:
                output = forward(*inputs, **options)
            except Exception as error:
                if failed is None or failed[0] is not error:
                    failed = error, name, type(module).__name__
                raise
            finally:
                inside.pop()
            found[name].count += 1
            found[name].outputs = [x.shape for _, x in flatten(output) if isinstance(x, Tensor)]
            return output

        return call

    for name, module in twin.named_modules():
        object.__setattr__(module, "forward", watched(name, module))
    try:
        _run(twin, inputs, Counter())
    except Exception as error:
        _, name, kind = failed if failed is not None and failed[0] is error else (error, "", "")
        where = f" (in {name}, a {kind})" if name else ""
        if not isinstance(error, (TypeError, ValueError)):
            error.add_note(f"raised by the model{where}, which summary called")
            raise
        shapes = " and ".join(f"{x.shape}, {x.dtype}" for x in inputs)
        raise (TypeError if isinstance(error, TypeError) else ValueError)(
            f"summary: the model does not take inputs of shape {shapes}, a batch of {len(inputs[0])}{where}: {error}"
        ) from error
    return found


def kept(model: Module, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Return the bytes that a forward pass in training mode keeps for the backward pass, by device.

    The inputs count where they are kept; parameters do not. Memory that several nodes keep counts once.
    """
    twin = _twin(model)
    owned = {id(_root(x.array)) for x in (*twin.parameters(), *twin.buffers())}
    output = _run(twin, inputs)
    roots = [x._node for _, x in flatten(output) if isinstance(x, Tensor) and x._node is not None]
    memories: dict[int, Any] = {}
    found: dict[str, int] = {}
    for node in nodes_from(roots):
        if isinstance(node, Node):
            for array, backend in _arrays([node.inputs, node.out, node.parameters], node.backend):
                root = _root(array)
                if id(root) not in memories and id(root) not in owned:
                    memories[id(root)] = root
                    device = str(backend.device)
                    found[device] = found.get(device, 0) + _bytes(root, backend)
    return found


def sample(shape: tuple[int, ...], dtype: DType, device: Any, batch: int) -> Tensor:
    """Return a batch of inputs of a shape: ones, or zeros for integers, which are valid indices."""
    return ops.full((batch, *shape), 1.0 if dtype.is_floating else 0, dtype=dtype, device=device)


def _twin(model: Module) -> Module:
    """Return a copy of a model that shares its parameters, in training mode and without hooks.

    Computed tensors that it keeps are copied without their graphs. It shares what cannot be copied, such as a file.
    """
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    memo |= {
        id(hooks): None for m in model.modules() for hooks in (getattr(m, kind) for kind in HOOKS) if hooks is not None
    }
    values = {id(x): x for m in model.modules() for _, x in flatten(vars(m)) if not isinstance(x, Module)}
    memo |= {key: x.detach().clone() for key, x in values.items() if isinstance(x, Tensor) and not x.is_leaf}
    for key in values.keys() - memo.keys():
        try:
            copy.deepcopy(values[key], {**memo})  # a copy that fails leaves parts of copies in the memo
        except Exception:
            memo[key] = values[key]
    twin: Module = copy.deepcopy(model, memo)
    return twin.train()


def _run(model: Module, inputs: Sequence[Tensor], observer: Observer | None = None) -> Any:
    """Return what a model returns, recorded; modes, observers and random generators stay as they were."""

    def run() -> Any:
        current_observer.set(observer)
        grad_enabled.set(mode_if(recording=True))
        return model(*inputs)

    with states_before() as states:
        try:
            return contextvars.copy_context().run(run)
        finally:
            for generator, (key, counter) in states.items():
                generator.key, generator.counter = key, counter


def _arrays(saved: Any, backend: Backend) -> Iterator[tuple[Any, Backend]]:
    """Yield the arrays in what a node saved, each with its backend."""
    if isinstance(saved, Tensor):
        yield saved.array, saved.backend
    elif isinstance(saved, (list, tuple)):
        for part in saved:
            yield from _arrays(part, backend)
    elif isinstance(saved, dict):
        yield from _arrays(list(saved.values()), backend)
    elif isinstance(getattr(saved, "shape", None), tuple) and hasattr(saved, "dtype"):
        yield saved, backend
    else:
        yield from _arrays(getattr(saved, "leaves", ()), backend)  # of a checkpoint: the arguments of its function


def _root(array: Any) -> Any:
    """Return the array that owns the memory of an array, as far as its library tells."""
    while isinstance(getattr(array, "base", None), type(array)):
        array = array.base
    return array


def _bytes(array: Any, backend: Backend) -> int:
    size: int = math.prod(array.shape)
    return size * DTYPES[backend.dtype_name(array.dtype)].itemsize
