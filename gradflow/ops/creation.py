"""New tensors: from data on the host, or filled with numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from gradflow.backend import Array, Backend
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import DType, as_dtype, default_dtype, weak_number
from gradflow.interception import opaque_call
from gradflow.ops.checks import check_tensors, number
from gradflow.ops.host import array_from_host, array_from_numbers, checked_cast, dtype_of, numpy_array
from gradflow.ops.table import cast
from gradflow.ops.transfer import native_dtype, to_device
from gradflow.shapes import shape_from
from gradflow.tensor import Tensor

__all__ = [
    "arange", "asarray", "eye", "full", "full_like", "linspace", "one_hot", "ones", "ones_like", "tensor",
    "zeros", "zeros_like",
]  # fmt: skip


def tensor(data: Any, dtype: Any = None, device: DeviceLike | None = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a C-contiguous copy of `data`.

    data: a number, nested sequences of numbers, a NumPy array, or a tensor.
    dtype: by default that of `use_dtype` (float32) for Python numbers, also integers, bool for bools, else the dtype of
    the array or tensor.
    device: by default that of a tensor, else the current device.
    requires_grad: whether the tensor requires grad (default False).

    Raises TypeError or ValueError for data that is not an array of numbers. Data on the host must fit an integer dtype:
    NaN and fractions raise ValueError, numbers out of range OverflowError. A tensor is converted as by `astype`.

    >>> import gradflow
    >>> gradflow.tensor([1, 2.5], requires_grad=True)
    tensor([1. , 2.5], dtype=float32, device=cpu, requires_grad=True)
    """
    out = asarray(data, dtype=dtype, device=device, copy=True)
    return out.requires_grad_(requires_grad)


def asarray(data: Any, /, dtype: Any = None, device: DeviceLike | None = None, copy: bool | None = None) -> Tensor:
    """`data` as a tensor, without a copy where possible.

    data: as for `gradflow.tensor`, or an array of the backend's own library.
    dtype, device: as for `gradflow.tensor`.
    copy: True to always copy (default: only if necessary).

    Raises like `gradflow.tensor`.

    >>> import gradflow as gf
    >>> import numpy as np
    >>> values = np.array([1.0, 2.0])
    >>> x = gf.asarray(values)
    >>> values[0] = 5.0
    >>> x.tolist()
    [5.0, 2.0]
    """
    if isinstance(data, Tensor):
        if device is not None:
            data = to_device(data.detach(), device)
        out = data.detach() if dtype is None else cast(data.detach(), dtype)
        return Tensor(out.backend.copy(out.array), out.backend) if copy else out
    backend = get_backend(device)
    wanted = None if dtype is None else as_dtype(dtype)
    if wanted is not None:
        native_dtype(backend, wanted)
    own = type(backend.empty((0,)))
    if isinstance(data, (bool, int, float, list, tuple, range)) and not hasattr(data, "__array__"):
        return Tensor(_from_numbers(backend, data, wanted), backend)  # numpy.float64 is a float
    if isinstance(data, own) and own is not numpy_array():
        as_dtype(data.dtype)
        array = data if dtype is None else backend.astype(data, native_dtype(backend, dtype), copy=False)
        return Tensor(backend.copy(array) if copy and array is data else array, backend)
    if not hasattr(data, "__array__"):
        raise TypeError(f"a tensor is made of numbers, nested lists, arrays or tensors; got {type(data).__name__}")
    values = array_from_host(data)
    target = dtype_of(values.dtype) if wanted is None else wanted
    native_dtype(backend, target)
    made = checked_cast(values, target)
    if own is numpy_array():
        return Tensor(backend.copy(made) if copy and made is values else made, backend)
    return Tensor(_on_device(backend, made, wanted), backend)


@opaque_call
def _from_numbers(backend: Backend, data: Any, dtype: DType | None) -> Array:
    return _on_device(backend, array_from_numbers(data, dtype), dtype)


def _on_device(backend: Backend, values: Any, dtype: DType | None) -> Array:
    """Values on the host as an array of the device, cast to `dtype` there if NumPy does not have that dtype."""
    array = backend.from_host(values)
    return array if dtype is None else backend.astype(array, native_dtype(backend, dtype), copy=False)


def _filled(
    name: str, shape: int | Sequence[int], dtype: Any, device: DeviceLike | None, requires_grad: bool, *fill: Any
) -> Tensor:
    if isinstance(dtype, Real):
        raise TypeError(f"{name} takes its shape as one tuple, like (2, 3); got the number {dtype} as the dtype")
    backend = get_backend(device)
    dtype = as_dtype(default_dtype.get() if dtype is None else dtype)
    numbers = [weak_number(name, x, dtype) for x in fill]
    array = getattr(backend, name)(shape_from(shape), *numbers, dtype=native_dtype(backend, dtype))
    return Tensor(array, backend).requires_grad_(requires_grad)


def zeros(
    shape: int | Sequence[int], dtype: Any = None, device: DeviceLike | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of zeros.

    shape: an integer or a sequence of integers. dtype: that of `use_dtype` by default (float32). device: the current
    one by default.
    requires_grad: whether the tensor requires grad (default False).

    >>> import gradflow as gf
    >>> gf.zeros((2, 3), dtype="int64")
    tensor([[0, 0, 0],
            [0, 0, 0]], dtype=int64, device=cpu)
    """
    return _filled("zeros", shape, dtype, device, requires_grad)


def ones(
    shape: int | Sequence[int], dtype: Any = None, device: DeviceLike | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor of ones. Arguments as for `zeros`.

    >>> import gradflow as gf
    >>> gf.ones(2, requires_grad=True)
    tensor([1., 1.], dtype=float32, device=cpu, requires_grad=True)
    """
    return _filled("ones", shape, dtype, device, requires_grad)


def full(
    shape: int | Sequence[int],
    fill_value: float,
    dtype: Any = None,
    device: DeviceLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor filled with `fill_value`. Other arguments as for `zeros`.

    Raises TypeError for anything but a number, ValueError or OverflowError for one that an integer dtype cannot hold.

    >>> import gradflow as gf
    >>> gf.full((2, 2), 0.5).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    return _filled("full", shape, dtype, device, requires_grad, fill_value)


def zeros_like(x: Tensor, /, dtype: Any = None) -> Tensor:
    """Zeros of the shape of x, on its device, by default in its dtype.

    >>> import gradflow as gf
    >>> gf.zeros_like(gf.tensor([[1, 2]], dtype="int8"))
    tensor([[0, 0]], dtype=int8, device=cpu)
    """
    check_tensors("zeros_like", x)
    return zeros(x.shape, x.dtype if dtype is None else dtype, x.device)


def ones_like(x: Tensor, /, dtype: Any = None) -> Tensor:
    """Ones of the shape of x, on its device, by default in its dtype.

    >>> import gradflow as gf
    >>> gf.ones_like(gf.tensor([[1, 2]], dtype="int8"), dtype="float64")
    tensor([[1., 1.]], dtype=float64, device=cpu)
    """
    check_tensors("ones_like", x)
    return ones(x.shape, x.dtype if dtype is None else dtype, x.device)


def full_like(x: Tensor, /, fill_value: float, dtype: Any = None) -> Tensor:
    """`fill_value` in the shape of x, on its device, by default in its dtype.

    >>> import gradflow as gf
    >>> gf.full_like(gf.zeros((2, 1)), 7).tolist()
    [[7.0], [7.0]]
    """
    check_tensors("full_like", x)
    return full(x.shape, fill_value, x.dtype if dtype is None else dtype, x.device)


def eye(n_rows: int, n_cols: int | None = None, /, dtype: Any = None, device: DeviceLike | None = None) -> Tensor:
    """The matrix with 1 on the diagonal and 0 elsewhere.

    n_cols: `n_rows` by default. dtype: float32 by default. device: the current one by default.

    >>> import gradflow as gf
    >>> gf.eye(2, 3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    backend = get_backend(device)
    rows, columns = shape_from((n_rows, n_rows if n_cols is None else n_cols))
    i64 = backend.dtypes["int64"]
    hit = backend.equal(backend.reshape(backend.arange(rows, dtype=i64), (-1, 1)), backend.arange(columns, dtype=i64))
    return Tensor(backend.astype(hit, native_dtype(backend, default_dtype.get() if dtype is None else dtype)), backend)


def linspace(start: float, stop: float, /, num: int, dtype: Any = None, device: DeviceLike | None = None) -> Tensor:
    """`num` evenly spaced numbers from start to stop, both included, computed in float64.

    dtype: float32 by default. device: the current one by default.

    >>> import gradflow as gf
    >>> gf.linspace(0, 1, 5).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    backend = get_backend(device)
    (n,) = shape_from((num,), "num of linspace")
    low, high = number("start of linspace", start), number("stop of linspace", stop)
    if dtype is not None and as_dtype(dtype).kind in ("int", "uint"):
        low, high = (float(weak_number("linspace", x, as_dtype(dtype))) for x in (start, stop))
    steps = backend.arange(n, dtype=backend.dtypes["float64"])
    fraction = backend.divide(steps, float(max(n - 1, 1)))
    # a weighted mean, so that both ends are exact
    first, last = (
        backend.multiply(backend.subtract(1.0, fraction), low),
        backend.multiply(fraction, high),
    )
    native = native_dtype(backend, default_dtype.get() if dtype is None else dtype)
    return Tensor(backend.astype(backend.add(first, last), native), backend)


def arange(
    start: float, /, stop: float | None = None, step: float = 1, dtype: Any = None, device: DeviceLike | None = None
) -> Tensor:
    """start, start + step, ... up to `stop`, which is excluded; `arange(stop)` starts at 0.

    dtype: by default int64 for integers, else float32. device: the current one by default.

    Raises ValueError for a step of 0 or non-finite numbers, OverflowError for numbers that the dtype cannot hold.

    >>> import gradflow as gf
    >>> gf.arange(3), gf.arange(1, 0, -0.25).tolist()
    (tensor([0, 1, 2], dtype=int64, device=cpu), [1.0, 0.75, 0.5, 0.25])
    """
    backend = get_backend(device)
    if stop is None:
        start, stop = 0, start
    for given in (start, stop, step):
        number("an argument of arange", given)
    if not step:
        raise ValueError("arange needs a step other than 0")
    whole = all(isinstance(v, Integral) for v in (start, stop, step))
    chosen: DType = as_dtype(dtype) if dtype is not None else as_dtype("int64") if whole else default_dtype.get()
    if chosen.kind in ("int", "uint"):
        start, step = weak_number("arange", start, chosen), weak_number("arange", step, as_dtype("int64"))
        if not math.isfinite(stop):
            weak_number("arange", stop, chosen)  # raises
        n = math.ceil((stop - start) / step)
        if n > 0:
            weak_number("arange", start + (n - 1) * step, chosen)
    elif not all(map(math.isfinite, (start, stop, step))):
        raise ValueError(f"arange takes finite numbers; got start {start}, stop {stop}, step {step}")
    return Tensor(backend.arange(start, stop, step, dtype=native_dtype(backend, chosen)), backend)


def one_hot(labels: Tensor, classes: int, dtype: Any = None) -> Tensor:
    """1 at each label and 0 elsewhere, of shape (..., classes).

    labels: integers in [0, classes); their values are not checked. classes: the number of classes. dtype: float32 by
    default. Raises TypeError for labels that are not integers.

    >>> import gradflow as gf
    >>> gf.one_hot(gf.tensor([2, 0], dtype="int64"), 3).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    check_tensors("one_hot", labels)
    (classes,) = shape_from((classes,), "classes of one_hot")
    if labels.dtype.kind not in ("int", "uint"):
        raise TypeError(f"one_hot takes integer labels; got {labels.dtype}")
    native = native_dtype(labels.backend, default_dtype.get() if dtype is None else dtype)
    return Tensor(labels.backend.one_hot(labels.array, classes, native), labels.backend)
