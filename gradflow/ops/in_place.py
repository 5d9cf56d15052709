"""In-place changes: `copy_`, `zero_`, `x[key] = value`, and operators such as `x += y`.

In-place changes are not recorded. A tensor that is part of a graph can be changed only under `no_grad`; a gradient rule
that needs its earlier values then raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradflow.autograd.grad_mode import is_grad_enabled
from gradflow.dtypes import is_number, weak_number
from gradflow.ops.checks import is_foreign, mismatch
from gradflow.ops.creation import tensor
from gradflow.ops.indexing import explain_assignment, explain_index, raw_key
from gradflow.printing import describe
from gradflow.tensor import Tensor


def copy_(x: Tensor, /, source: Any) -> Tensor:
    """Overwrite the values with those of `source`, and return this tensor.

    source: of the shape of this tensor: a tensor on any device or other data that `gradflow.tensor` takes; or one
    number for all elements.

    Raises ValueError for another shape, RuntimeError for a tensor that requires grad outside `no_grad`, and as
    `gradflow.tensor` for numbers that the dtype cannot hold.

    >>> import gradflow as gf
    >>> weight = gf.zeros(2, requires_grad=True)
    >>> with gf.no_grad():
    ...     weight.copy_([1.0, 2.0])
    tensor([1., 2.], dtype=float32, device=cpu, requires_grad=True)
    """
    _refuse_recorded(x, "copy_")
    if not isinstance(source, Tensor):
        if is_number(source):
            x._assign(weak_number("copy_", source, x.dtype))
            return x
        source = tensor(source, x.dtype, x.device)
    if source.shape != x.shape:
        raise ValueError(f"copy_ needs a source of shape {x.shape}; got {source.shape}")
    array = source.array
    if source.backend is not x.backend:
        array = x.backend.from_host(source.backend.to_host(array))
    x._assign(x.backend.astype(array, x.array.dtype, copy=False))
    return x


def zero_(x: Tensor, /) -> Tensor:
    """Overwrite the values with zeros, and return this tensor. Raises RuntimeError as `copy_`.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 2.0])
    >>> x.zero_().tolist()
    [0.0, 0.0]
    """
    _refuse_recorded(x, "zero_")
    x._assign(0)
    return x


def _refuse_recorded(x: Tensor, what: str) -> None:
    """Raise RuntimeError for a tensor that requires grad, unless under `no_grad`."""
    if x._node is not None and is_grad_enabled():
        kind = "a leaf that requires grad" if x.is_leaf else "a tensor that is part of a graph"
        new = "make a changed copy with x = x.at[key].set(value), which is recorded, or "
        raise RuntimeError(
            f"{what} would change {kind} in place; {new * (what == 'item assignment')}"
            "do it inside `with gradflow.no_grad():`"
        )


def in_place_operator(function: Callable[[Any, Any], Tensor], symbol: str) -> Callable[[Tensor, Any], Any]:
    """The operator `symbol`, such as "+=", for a function of two operands.

    It changes its first operand in place. If an operand requires grad, it returns a new tensor instead.
    """

    def operate(x: Tensor, other: Any) -> Any:
        if is_foreign(other):
            return NotImplemented
        if is_grad_enabled() and (x._node is not None or (isinstance(other, Tensor) and other._node is not None)):
            if x._node is not None and x.is_leaf:
                _refuse_recorded(x, symbol)
            return function(x, other)
        out = function(x, other)
        if out.backend is not x.backend:
            raise mismatch(symbol, (x, out))
        if out.shape != x.shape or out.dtype != x.dtype:
            raise ValueError(
                f"{symbol} would turn a {describe(x)} into a {describe(out)}; write x = x {symbol[:-1]} ... instead"
            )
        x._assign(out.array)
        return x

    return operate


def set_item(x: Tensor, key: Any, value: Any, /) -> None:
    """`x[key] = value` for a tensor, a number, or what `gradflow.tensor` takes, broadcast to what the key selects.

    Raises IndexError for a key that does not fit, ValueError for a value that does not broadcast, RuntimeError as
    `copy_`, and where a gradient of the value is recorded.
    """
    _refuse_recorded(x, "item assignment")
    if isinstance(value, Tensor):
        if value._node is not None and is_grad_enabled():
            raise RuntimeError(
                "item assignment is not recorded, and the value requires grad: use x = x.at[key].set(value) or detach()"
            )
        if value.backend is not x.backend:
            raise mismatch("item assignment", (x, value))
        value = x.backend.astype(value.array, x.array.dtype, copy=False)
    elif is_number(value):
        value = weak_number("item assignment", value, x.dtype)
    else:
        value = tensor(value, x.dtype, x.device).array
    raw = raw_key(x, key)
    try:
        x._assign(value, raw)
    except IndexError:
        explain_index(x.backend, x.shape, raw)
        raise
    except ValueError:
        explain_assignment(x.backend, x.array, raw, value)
        raise
