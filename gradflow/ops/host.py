"""Data from the host (Python numbers, nested lists and arrays), checked before it is copied to a device.

It is converted to a plain NumPy array in native byte order. A number that the dtype cannot hold is an error here, since
devices do not check for it. NumPy's functions are called through the CPU backend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from itertools import chain
from numbers import Integral, Real
from typing import Any

from gradflow.autograd.mapping import device_backend
from gradflow.backend import Backend
from gradflow.backend.registry import get_backend
from gradflow.dtypes import DTYPES, DType, bool_, default_dtype, weak_number
from gradflow.tensor import Tensor

_LISTS = (list, tuple, range)


@functools.cache
def _cpu() -> Backend:
    return get_backend("cpu")


@functools.cache
def numpy_array() -> type:
    """The class `numpy.ndarray`."""
    return type(_cpu().empty((0,)))


@functools.lru_cache
def dtype_of(native: Any) -> Any:
    """The gradflow dtype of a NumPy dtype in any byte order, or None."""
    return DTYPES.get(native.name)


def checked_cast(values: Any, dtype: DType) -> Any:
    """A NumPy array cast to a dtype, or itself. Raises as `weak_number` for the first number that does not fit."""
    cpu, found = _cpu(), dtype_of(values.dtype)
    if found is dtype or not cpu.supports(dtype.name):  # bfloat16: the device rounds
        return values
    if dtype.kind in ("int", "uint") and found.kind != "bool" and values.size:
        low, high = dtype.limits
        fits = low <= values.min().item() and values.max().item() <= high  # false where there is a NaN
        if not fits or (found.is_floating and (cpu.floor(values) != values).any()):
            for value in values.reshape(-1).tolist():
                weak_number("a tensor", value, dtype)
    return cpu.astype(values, cpu.dtypes[dtype.name], copy=False)


def array_from_numbers(data: Any, dtype: DType | None) -> Any:
    """A new NumPy array of a number or nested lists of numbers; by default of the default dtype, or of bool for bools.

    Raises TypeError or ValueError for anything but numbers, and as `weak_number`.
    """
    kinds = _kinds(data) if isinstance(data, _LISTS) else {type(data)}
    for kind in kinds:
        if issubclass(kind, Tensor):
            raise TypeError("a list of tensors is not converted: join them with gradflow.stack or gradflow.concat")
        if not (issubclass(kind, (int, float)) or hasattr(kind, "__array__")):
            fix = _FIXES.get(kind, "convert it with float()")
            raise TypeError(f"a tensor is made of numbers; got {_first(data, kind)!r} among them: {fix}")
        _refuse_masked(kind)
    cpu = _cpu()
    try:
        array = cpu.asarray(data)
    except ValueError:
        raise ValueError(f"a tensor cannot be made of lists of unequal lengths: {_uneven(data)}") from None
    if dtype_of(array.dtype) is None:
        for item in chain.from_iterable(_levels(data)):
            if isinstance(item, int) and not -(1 << 63) <= item < 1 << 64:
                raise ValueError(f"an integer in a tensor has at most 64 bits; for {item}, write a float")
        _refuse(array, array)
    if dtype is None:
        dtype = bool_ if array.dtype.kind == "b" else default_dtype.get()
    rounded = array.dtype.kind == "f" and any(issubclass(kind, Integral) for kind in kinds)  # by NumPy, to float64
    if rounded and dtype.kind in ("int", "uint") and array.size and not cpu.abs(array).max() < 1 << 53:
        numbers = chain.from_iterable(_levels(data))
        exact = [weak_number("a tensor", x, dtype) for x in numbers if not isinstance(x, _LISTS)]
        return cpu.reshape(cpu.asarray(exact, dtype=cpu.dtypes[dtype.name]), array.shape)
    return checked_cast(array, dtype)


def array_from_host(data: Any) -> Any:
    """An object with `__array__` as a plain NumPy array, which shares its memory where possible.

    Raises TypeError, with the fix, for masked arrays and for arrays of anything but numbers.
    """
    _refuse_masked(type(data))
    values = data.__array__()  # for numpy.matrix, a plain array
    if dtype_of(values.dtype) is None:
        _refuse(data, values)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


def host_operand(name: str, other: Any, x: Tensor) -> Any:
    """What the operation `name` takes for `other` beside the tensor x: a tensor for a NumPy array, else `other` itself.

    An array without axes is a number, as NumPy's scalars are. The array is copied if the graph may keep it, so that it
    can be changed before the backward pass.

    Raises TypeError for an array beside a tensor on another device, and for one that does not hold numbers.
    """
    if type(other).__name__ != "ndarray" or type(other) is not numpy_array():  # subclasses have other operators
        return other
    values = array_from_host(other)
    if not values.ndim:
        return values.item()
    cpu = _cpu()
    if device_backend(x.backend) is not cpu:
        raise TypeError(
            f"{name} got a NumPy array and a tensor on {x.device}: copy the array to the device, once and not in each "
            f"step, with gradflow.tensor(..., device='{x.device}')"
        )
    return Tensor(cpu.copy(values) if x._node is not None else values, cpu)


# ---------------------------------------------------------------------- error messages


def _levels(data: Any) -> Iterable[list[Any]]:
    """The elements of nested lists, level by level from the outermost."""
    level = [data]
    while level:
        yield level
        level = list(chain.from_iterable(x for x in level if isinstance(x, _LISTS)))


def _kinds(data: Any) -> set[type]:
    """The types of the elements of nested lists, without a Python loop over the innermost lists."""
    found: set[type] = set()
    level = [data]
    while True:
        kinds = set(map(type, chain.from_iterable(level)))
        lists = {kind for kind in kinds if issubclass(kind, _LISTS)}
        found |= kinds - lists
        if not lists:
            return found
        level = [x for x in chain.from_iterable(level) if isinstance(x, _LISTS)]


def _first(data: Any, kind: type) -> Any:
    return next(x for level in _levels(data) for x in level if type(x) is kind)


def _uneven(data: Any) -> str:
    """Where nested lists first differ in length."""
    level = [("data", data)]
    while level:
        lengths = [len(x) if isinstance(x, _LISTS) or (hasattr(x, "shape") and x.shape) else None for _, x in level]
        sizes = ["is a number" if n is None else f"has {n} element{'s' * (n != 1)}" for n in lengths]
        for (path, _), size in zip(level, sizes, strict=True):
            if size != sizes[0]:
                return f"{level[0][0]} {sizes[0]}, {path} {size}; pad them to one length"
        level = [(f"{path}[{i}]", x[i]) for (path, x), n in zip(level, lengths, strict=True) for i in range(n or 0)]
    return "arrays in it have different shapes"


def _refuse_masked(kind: type) -> None:
    if hasattr(kind, "filled") and hasattr(kind, "mask"):
        raise TypeError("a masked array has no values where it is masked: fill them first, for example with .filled(0)")


_FIXES: dict[type, str] = {
    str: "convert numbers with float(), and encode words as numbers",
    type(None): "for a missing number write math.nan",
    complex: "gradflow has no complex numbers; take .real and .imag",
}


def _text(example: Any) -> str:
    number = "encode words with numpy.unique(..., return_inverse=True)"
    return f"text ({example}): convert numbers with .astype('float32'), {number}"


def _objects(values: Any) -> str:
    objects = values.reshape(-1).tolist()
    odd = next((x for x in objects if not isinstance(x, Real)), objects[0] if objects else None)
    if isinstance(odd, str):
        return _text(repr(odd))
    return f"Python objects like {odd!r}: convert numbers with .astype('float32') (None becomes NaN)"


def _records(values: Any) -> str:
    fields = values.dtype.names or ("...",)
    return (
        f"records with the fields {', '.join(fields)}: take one, as in x[{fields[0]!r}], or all with "
        "numpy.lib.recfunctions.structured_to_unstructured"
    )


_KINDS_OF_NUMPY: dict[str, Callable[[Any], str]] = {
    "O": _objects,
    "U": lambda x: _text(x.dtype),
    "S": lambda x: _text(x.dtype),
    "T": lambda x: _text(x.dtype),
    "M": lambda x: f"dates ({x.dtype}): count from one of them, as in (x - x[0]) / numpy.timedelta64(1, 'D')",
    "m": lambda x: f"durations ({x.dtype}): divide by a unit, as in x / numpy.timedelta64(1, 's')",
    "c": lambda x: f"complex numbers ({x.dtype}): gradflow has none; take .real and .imag",
    "V": _records,
}


def _refuse(data: Any, values: Any) -> None:
    """Raise TypeError for an array, or a table of columns, that does not hold numbers of one dtype."""
    columns, dtypes = getattr(data, "columns", None), getattr(data, "dtypes", None)
    if columns is not None and dtypes is not None:  # of pandas or polars
        named = [(column, str(kind)) for column, kind in zip(columns, dtypes, strict=True)]
        wrong = [pair for pair in named if pair[1].lower() not in DTYPES] or named
        each = ", ".join(f"{column!r} ({kind})" for column, kind in wrong)
        raise TypeError(
            f"a tensor is made of numbers of one dtype; it cannot hold columns {each}: leave them out, encode words as "
            "numbers, or convert with .astype('float32')"
        )
    what = _KINDS_OF_NUMPY.get(values.dtype.kind, lambda x: f"{x.dtype}: convert with .astype('float64')")(values)
    raise TypeError(f"a tensor is made of numbers; got {what}")
