"""Data types, the same on every backend.

Each array library has its own dtype objects. gradflow's are names that a backend maps to them, so that
`t.dtype == gradflow.float32` works for every array library.
"""

from __future__ import annotations

from contextvars import ContextVar
from numbers import Real
from typing import Any


class DType:
    """A data type: its `name`, its `kind` ("bool", "int", "uint" or "float") and its `itemsize` in bytes.

    `limits` are the smallest and the largest number of an integer type. A dtype equals its name,
    `gradflow.float32 == "float32"`, and dtypes of the same name from other libraries.

    >>> import gradflow as gf
    >>> gf.int8.kind, gf.int8.itemsize, gf.int8.limits
    ('int', 1, (-128, 127))
    >>> gf.zeros(2).dtype == "float32"
    True
    """

    __slots__ = ("itemsize", "kind", "limits", "name")

    def __init__(self, name: str, kind: str, itemsize: int) -> None:
        self.name = name
        self.kind = kind
        self.itemsize = itemsize
        if kind in ("int", "uint"):
            bits = 8 * itemsize
            self.limits = (0, (1 << bits) - 1) if kind == "uint" else (-(1 << bits - 1), (1 << bits - 1) - 1)

    @property
    def is_floating(self) -> bool:
        """Whether this is a floating-point type, whose tensors can require grad."""
        return self.kind == "float"

    def __repr__(self) -> str:
        return f"gradflow.{self.name}"

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DType):
            return self is other
        try:
            return as_dtype(other) is self
        except TypeError:
            return False

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return as_dtype, (self.name,)


bool_ = DType("bool", "bool", 1)
int8 = DType("int8", "int", 1)
int16 = DType("int16", "int", 2)
int32 = DType("int32", "int", 4)
int64 = DType("int64", "int", 8)
uint8 = DType("uint8", "uint", 1)
uint16 = DType("uint16", "uint", 2)
uint32 = DType("uint32", "uint", 4)
uint64 = DType("uint64", "uint", 8)
float16 = DType("float16", "float", 2)
bfloat16 = DType("bfloat16", "float", 2)
float32 = DType("float32", "float", 4)
float64 = DType("float64", "float", 8)

DTYPES: dict[str, DType] = {
    d.name: d
    for d in (
        bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float16, bfloat16, float32, float64,
    )
}  # fmt: skip

default_dtype: ContextVar[DType] = ContextVar("gradflow_dtype", default=float32)
"""The default dtype of the context: that of Python numbers, and of integers in floating-point operations."""

_PYTHON_TYPES: dict[object, DType] = {float: float32, int: int64, bool: bool_}


def as_dtype(dtype: Any) -> DType:
    """The gradflow dtype that `dtype` names.

    dtype: a gradflow dtype, a name, a dtype of another library, or a Python type: float, for the default dtype, int or
    bool.

    Raises TypeError for unknown dtypes and for complex ones.

    >>> as_dtype("float64")
    gradflow.float64
    """
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, type) and dtype in _PYTHON_TYPES:
        return default_dtype.get() if dtype is float else _PYTHON_TYPES[dtype]
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", None)
    if not isinstance(name, str):
        name = str(dtype)
    found = DTYPES.get(name.rpartition(".")[2])
    if found is None:
        raise TypeError(f"unknown dtype {name!r}; there are {', '.join(DTYPES)}")
    return found


def is_number(x: Any) -> bool:
    """Whether x is a Python number or a NumPy scalar, bools included."""
    return (
        x.__class__ in _PYTHON_TYPES
        or isinstance(x, Real)
        or (x.__class__.__name__ == "bool" and getattr(x, "shape", None) == ())
    )


def weak_number(name: str, value: Any, dtype: DType) -> Any:
    """A number that the operation `name` combines with a tensor of `dtype`, as a bool, an int or a float.

    Raises TypeError for anything but a number. For an integer dtype, NaN and fractions raise ValueError, numbers out of
    range OverflowError.
    """
    if not is_number(value):
        raise TypeError(f"{name} takes a number; got {type(value).__name__}")
    if dtype.kind == "float":
        return float(value)
    if dtype.kind == "bool":
        return bool(value)
    try:
        whole = int(value)
    except ValueError:
        raise ValueError(f"{name}: {dtype} cannot hold NaN: replace it, or choose another dtype") from None
    except OverflowError:
        raise OverflowError(f"{name}: {dtype} cannot hold infinity: {_REMEDY}") from None
    low, high = dtype.limits
    if not low <= whole <= high:
        raise OverflowError(f"{name}: {value} is beyond {dtype}, which holds {low} to {high}: {_REMEDY}")
    if whole != value:
        raise ValueError(f"{name}: {value} is not an integer, and {dtype} holds only integers: {_REMEDY}")
    return whole


_REMEDY = "round or clip it, or choose another dtype"


def promote(a: DType, b: DType) -> DType:
    """The dtype of an operation on tensors of dtypes `a` and `b`: floating-point before integer, wider before narrower.

    As in PyTorch, an integer tensor never widens a floating one: int64 with float32 is float32.
    float16 with bfloat16 is float32; a signed with an unsigned integer is the next wider signed one.

    >>> promote(int64, float32), promote(float32, float64)
    (gradflow.float32, gradflow.float64)
    """
    if a is b:
        return a
    order = ("bool", "uint", "int", "float")
    low, high = sorted((a, b), key=lambda d: (order.index(d.kind), d.itemsize))
    if low.kind == high.kind:
        return float32 if low.itemsize == high.itemsize else high
    if high.kind == "int" and low.kind == "uint" and low.itemsize >= high.itemsize:
        if low.itemsize == 8:
            raise TypeError("uint64 and a signed integer have no common dtype; convert one with astype")
        return DTYPES[f"int{low.itemsize * 16}"]
    return high
