"""Attaches the operations to `Tensor` as methods and operators."""

from __future__ import annotations

from types import FunctionType
from typing import Any

from gradflow.ops import namespace, transfer
from gradflow.ops.backpropagate import backward
from gradflow.ops.exchange import cuda_array_interface, dlpack, dlpack_device
from gradflow.ops.in_place import copy_, in_place_operator, set_item, zero_
from gradflow.ops.indexing import index
from gradflow.ops.places import At
from gradflow.ops.table import BINARY_OPERATORS, COMPARISONS
from gradflow.shapes import is_sequence
from gradflow.tensor import Tensor
from gradflow.tensor_methods import TensorMethods

_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "matmul": "matmul",
    "and": "logical_and", "or": "logical_or", "xor": "logical_xor",
}  # fmt: skip
_SYMBOLS = {"add": "+=", "sub": "-=", "mul": "*=", "truediv": "/=", "pow": "**="}
_MIRRORED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}
_REFLECTED = (
    {operation: f"__r{name}__" for name, operation in _OPERATORS.items()}
    | {operation: f"__{_MIRRORED.get(name, name)}__" for operation, name in COMPARISONS.items()}
    | {f"bitwise_{name}": f"__r{name}__" for name in ("and", "or", "xor")}  # NumPy's names of the operators & | ^
)
"""The reflected operators (methods of the second operand) by the names of NumPy's functions of two operands."""


def reshape(self: Tensor, *shape: Any) -> Tensor:
    """The tensor in another shape, given as a tuple or as integers. One length may be -1: it is computed.

    >>> import gradflow as gf
    >>> x = gf.tensor([1.0, 2.0, 3.0, 4.0])
    >>> x.reshape(2, 2).tolist(), x.reshape((4, -1)).shape
    ([[1.0, 2.0], [3.0, 4.0]], (4, 1))
    """
    return namespace.reshape(self, _sequence(shape))


def permute_dims(self: Tensor, *axes: Any) -> Tensor:
    """The tensor with its axes in another order, given as a tuple or as integers.

    >>> import gradflow as gf
    >>> gf.zeros((2, 3, 4)).permute_dims(2, 0, 1).shape
    (4, 2, 3)
    """
    return namespace.permute_dims(self, _sequence(axes))


def _sequence(values: tuple[Any, ...]) -> tuple[int, ...]:
    """The arguments of a method that takes integers or one sequence of them."""
    return tuple(values[0]) if len(values) == 1 and is_sequence(values[0]) else values


_METHODS: dict[str, Any] = {
    "__dlpack__": dlpack,
    "__dlpack_device__": dlpack_device,
    "__setitem__": set_item,
    "backward": backward,
    "clone": namespace.copy,
    "copy_": copy_,
    "permute_dims": permute_dims,
    "pin_memory": transfer.pin_memory,
    "reshape": reshape,
    "to": transfer.to,
    "zero_": zero_,
}
"""The methods that are not public operations of the same name and signature."""


def _set(name: str, function: Any) -> None:
    setattr(Tensor, name, function)


def _method(name: str, function: FunctionType) -> FunctionType:
    """The same function as a method defined in the class: errors, `repr` and pickles call it `Tensor.name`."""
    code, qualname = function.__code__, f"Tensor.{name}"
    x, *others = code.co_varnames
    code = code.replace(co_name=name, co_qualname=qualname, co_varnames=("self", *others), co_posonlyargcount=0)
    method = FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)
    method.__module__, method.__qualname__, method.__doc__ = Tensor.__module__, qualname, function.__doc__
    method.__annotations__ = {variable: text for variable, text in function.__annotations__.items() if variable != x}
    method.__kwdefaults__ = function.__kwdefaults__
    return method


def _reflected(operator: Any) -> Any:
    return lambda self, other: operator(other, self)


def _equality(operator: Any) -> Any:
    """The operator == or !=, which leaves lists and tuples to Python: they are unequal to any tensor."""

    def compare(self: Tensor, other: Any) -> Any:
        return NotImplemented if isinstance(other, (list, tuple)) else operator(self, other)

    return compare


def _array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    """For a NumPy scalar or array in `x * tensor`, the reflected operator; other functions of NumPy raise TypeError."""
    name, other = _REFLECTED.get(ufunc.__name__), inputs[0]
    if name is None or method != "__call__" or isinstance(other, Tensor) or options:
        raise _not_for_numpy(ufunc.__name__)
    if getattr(other, "shape", None) == ():
        other = other.item()  # NumPy made the scalar an array
    return getattr(self, name)(other)


def _array_function(self: Tensor, function: Any, types: Any, inputs: Any, options: Any) -> Any:
    try:
        return function._implementation(*inputs, **options)  # converts tensors through __array__
    except TypeError as error:
        raise _not_for_numpy(function.__name__) from error


def _not_for_numpy(name: str) -> TypeError:
    return TypeError(
        f"numpy.{name} does not take tensors: use a function of gradflow, or convert the tensor with .numpy()"
    )


for _name in vars(TensorMethods):
    if not _name.startswith("__") and _name not in {*_METHODS, "at"}:
        _set(_name, getattr(namespace, _name))
for _name, _function in _METHODS.items():
    _set(_name, _method(_name, _function))
for _name, _operation in _OPERATORS.items():
    _set(f"__{_name}__", BINARY_OPERATORS[_operation])
    _set(f"__r{_name}__", _reflected(BINARY_OPERATORS[_operation]))
for _name, _symbol in _SYMBOLS.items():
    _set(f"__i{_name}__", in_place_operator(getattr(namespace, _OPERATORS[_name]), _symbol))
for _operation, _name in COMPARISONS.items():
    _set(f"__{_name}__", BINARY_OPERATORS[_operation])
_set("__eq__", _equality(BINARY_OPERATORS["equal"]))
_set("__ne__", _equality(BINARY_OPERATORS["not_equal"]))
_set("__neg__", namespace.negative)
_set("__pos__", lambda self: self)
_set("__abs__", namespace.abs)
_set("__invert__", namespace.logical_not)
_set("at", property(At, doc=At.__doc__))
_set("__getitem__", index)
_set("__cuda_array_interface__", property(cuda_array_interface))
_set("__array_ufunc__", _array_ufunc)
_set("__array_function__", _array_function)
