"""Operations as operators and methods of `Tensor`."""

from __future__ import annotations

from typing import Any

from gradflow.ops import namespace as ops
from gradflow.ops.checks import is_foreign
from gradflow.ops.indexing import index
from gradflow.ops.table import BINARY_OPERATORS, COMPARISONS, as_operator
from gradflow.tensor import Tensor

_METHODS = [
    "abs",
    "all",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "astype",
    "broadcast_to",
    "ceil",
    "clip",
    "cos",
    "cumulative_sum",
    "elu",
    "exp",
    "expand_dims",
    "expm1",
    "flip",
    "floor",
    "gelu",
    "isfinite",
    "isinf",
    "isnan",
    "leaky_relu",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "matmul",
    "matrix_transpose",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "moveaxis",
    "prod",
    "relu",
    "round",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "softmax",
    "softplus",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "std",
    "sum",
    "swapaxes",
    "take",
    "take_along_axis",
    "tanh",
    "unbind",
    "var",
]
BINARY_OPERATORS["matmul"] = as_operator(ops.matmul)
_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "matmul": "matmul",
    "and": "logical_and", "or": "logical_or", "xor": "logical_xor",
}  # fmt: skip
_SYMBOLS = {"add": "+=", "sub": "-=", "mul": "*=", "truediv": "/=", "pow": "**="}
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_REFLECTED = (
    {operation: f"__r{name}__" for name, operation in _OPERATORS.items()}
    | {operation: f"__{_MIRRORED.get(name, name)}__" for operation, name in COMPARISONS.items()}
    | {f"bitwise_{name}": f"__r{name}__" for name in ("and", "or", "xor")}  # what NumPy calls the operators & | ^
)
"""The method that stands for a function of NumPy's with a tensor as its second operand."""


def _set(name: str, function: Any) -> None:
    setattr(Tensor, name, function)


def _reflected(operator: Any) -> Any:
    return lambda self, other: operator(other, self)


def _in_place(function: Any, symbol: str) -> Any:
    def operator(self: Tensor, other: Any) -> Any:
        return NotImplemented if is_foreign(other) else self._in_place(function, symbol, other)

    return operator


def _equality(operator: Any) -> Any:
    """Lists are as foreign as anything else here: Python then finds them unequal."""

    def compare(self: Tensor, other: Any) -> Any:
        return NotImplemented if isinstance(other, (list, tuple)) else operator(self, other)

    return compare


def _array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    """NumPy's functions are refused; but `numpy_number * tensor` also comes here, and goes on to the operator."""
    name, other = _REFLECTED.get(ufunc.__name__), inputs[0]
    if name is None or method != "__call__" or isinstance(other, Tensor) or options:
        raise _not_for_numpy(ufunc.__name__)
    return getattr(self, name)(other.item() if getattr(other, "shape", None) == () else other)  # a number made an array


def _array_function(self: Tensor, function: Any, types: Any, inputs: Any, options: Any) -> Any:
    try:
        return function._implementation(*inputs, **options)  # as for other classes: through __array__
    except TypeError as error:
        raise _not_for_numpy(function.__name__) from error


def _not_for_numpy(name: str) -> TypeError:
    return TypeError(
        f"numpy.{name} does not take tensors: use a function of gradflow, or the values as a NumPy array, .numpy()"
    )


for _name in _METHODS:
    _set(_name, getattr(ops, _name))
for _name, _operation in _OPERATORS.items():
    _set(f"__{_name}__", BINARY_OPERATORS[_operation])
    _set(f"__r{_name}__", _reflected(BINARY_OPERATORS[_operation]))
for _name, _symbol in _SYMBOLS.items():
    _set(f"__i{_name}__", _in_place(getattr(ops, _OPERATORS[_name]), _symbol))
for _operation, _name in COMPARISONS.items():
    _set(f"__{_name}__", BINARY_OPERATORS[_operation])
_set("__eq__", _equality(BINARY_OPERATORS["equal"]))
_set("__ne__", _equality(BINARY_OPERATORS["not_equal"]))
_set("__neg__", ops.negative)
_set("__pos__", lambda self: self)
_set("__abs__", ops.abs)
_set("__invert__", ops.logical_not)
_set("__getitem__", index)
_set("__array_ufunc__", _array_ufunc)
_set("__array_function__", _array_function)
