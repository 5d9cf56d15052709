"""Operations as operators and methods of `Tensor`."""

from __future__ import annotations

from typing import Any

from gradflow import ops
from gradflow.tensor import Tensor

_METHODS = [
    "abs",
    "all",
    "any",
    "argmax",
    "argmin",
    "astype",
    "broadcast_to",
    "clip",
    "cos",
    "cumulative_sum",
    "exp",
    "expand_dims",
    "expm1",
    "flip",
    "isfinite",
    "isnan",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "matmul",
    "matrix_transpose",
    "max",
    "mean",
    "min",
    "prod",
    "relu",
    "sigmoid",
    "sign",
    "sin",
    "softmax",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "std",
    "sum",
    "take",
    "take_along_axis",
    "tanh",
    "var",
]
_OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power"}
_SYMBOLS = {"add": "+=", "sub": "-=", "mul": "*=", "truediv": "/=", "pow": "**="}
_COMPARISONS = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"
}  # fmt: skip


def _set(name: str, function: Any) -> None:
    setattr(Tensor, name, function)


def _reflected(function: Any) -> Any:
    return lambda self, other: function(other, self)


def _in_place(function: Any, symbol: str) -> Any:
    return lambda self, other: self._in_place(function, symbol, other)


def _equality(function: Any, otherwise: bool) -> Any:
    def compare(self: Tensor, other: Any) -> Any:
        return otherwise if other is None or isinstance(other, str) else function(self, other)

    return compare


for _name in _METHODS:
    _set(_name, getattr(ops, _name))
for _name, _operation in _OPERATORS.items():
    _function = getattr(ops, _operation)
    _set(f"__{_name}__", _function)
    _set(f"__r{_name}__", _reflected(_function))
    _set(f"__i{_name}__", _in_place(_function, _SYMBOLS[_name]))
for _name, _operation in _COMPARISONS.items():
    _set(f"__{_name}__", getattr(ops, _operation))
_set("__eq__", _equality(ops.equal, False))
_set("__ne__", _equality(ops.not_equal, True))
_set("__matmul__", ops.matmul)
_set("__rmatmul__", _reflected(ops.matmul))
_set("__neg__", ops.negative)
_set("__pos__", lambda self: self)
_set("__abs__", ops.abs)
_set("__invert__", ops.logical_not)
_set("__and__", ops.logical_and)
_set("__or__", ops.logical_or)
_set("__getitem__", ops.index)
