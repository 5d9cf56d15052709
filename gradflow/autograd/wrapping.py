"""Makes tensors of arrays for the modules of `autograd`, which are below the class `Tensor` and cannot import it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from gradflow.backend import Array, Backend

if TYPE_CHECKING:
    from gradflow.autograd.graph import Node
    from gradflow.tensor import Tensor

_Class = TypeVar("_Class", bound=type)
_tensor_class: Any = None


def register_tensor_class(cls: _Class) -> _Class:
    """Decorate the class `Tensor`: `wrap` returns instances of it."""
    global _tensor_class
    _tensor_class = cls
    return cls


def wrap(array: Array, backend: Backend, node: Node | None = None) -> Tensor:
    """Return a tensor with this array; `node` records the operation that computed it (default None: none)."""
    tensor: Tensor = _tensor_class(array, backend, node)
    return tensor


def added(backend: Backend, total: Tensor | None, g: Any, namespace: Any = None, own: bool = False) -> Tensor:
    """Return the sum of the gradient so far (`total`, or None) and `g`, as a new tensor.

    namespace: `gradflow.ops.namespace` if `g` is a tensor and the sum is recorded; None (default) if `g` is an array.
    own: whether nothing else refers to that array, so that it need not be copied.
    """
    if namespace is not None:
        result: Tensor = namespace.copy(g) if total is None else namespace.add(total, g)
        return result
    if total is None:
        return wrap(g if own else backend.copy(g), backend)
    if total._node is not None:
        return total + wrap(g, backend)
    return wrap(backend.asarray(backend.add(total.array, g)), backend)  # without axes, NumPy's sum is a scalar
