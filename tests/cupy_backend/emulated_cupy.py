"""A stand-in for the part of CuPy that gradflow_cupy uses, on the CPU. EMULATED: nothing here ran on a GPU.

It lets the whole `CupyBackend` run in tests without a GPU. The values come from NumPy, and the kernels from the CUDA
sources compiled for the host. It keeps to CuPy where CuPy is not NumPy: signatures (compared with the installed CuPy's
by `test_names.py`), arrays that do not turn into NumPy's by themselves, operands of NumPy refused, reductions that give
arrays, indices that wrap, arrays bound to the device that was current. It is stricter where a training step must not
go: the truth or the value of an array cannot be asked for.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from emulated_cuda import (
    CUDARuntimeError,
    Device,
    Event,
    MemoryHook,
    PinnedPool,
    Pool,
    State,
    Stream,
    get_current_stream,
)
from host_kernels import host_kernel

from gradflow.backend import ARRAY_FUNCTIONS


class Flags:
    def __init__(self, flags: Any) -> None:
        self.c_contiguous = flags.c_contiguous


class ndarray:  # noqa: N801
    """An array that is opaque: its values are in `_values`, which only this module reads."""

    __array_ufunc__ = None

    def __init__(self, values: Any, device: int | None = None) -> None:
        self._values = np.asarray(values)
        self._device = State.device if device is None else device

    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    flags = property(lambda self: Flags(self._values.flags))

    @property
    def T(self) -> ndarray:  # noqa: N802
        return ndarray(self._values.T, self._device)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("the value of an array was asked for: that would wait for the GPU")

    __bool__ = __float__ = __int__ = __index__ = item = get = tolist = _refuse

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, key: Any) -> ndarray:
        if not any(isinstance(part, ndarray) for part in (key if isinstance(key, tuple) else (key,))):
            return ndarray(self._values[key], self._device)  # a view
        return ndarray(_unwrap(self)[_wrapped_key(self._values, key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        _unwrap(self)[_wrapped_key(self._values, key)] = _unwrap(value)

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        with np.errstate(all="ignore"):
            return ndarray(_unwrap(self).astype(dtype, order=order, copy=copy))

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(_unwrap(self).reshape(*shape))

    def set(self, arr: Any, stream: Any = None) -> None:
        assert stream is not None, "CuPy's own choice of stream is not the contract"
        assert isinstance(arr, np.ndarray)
        assert (arr.dtype, arr.shape) == (self.dtype, self.shape)
        State.transfers += 1
        _unwrap(self)[...] = arr


def _unwrap(x: Any) -> Any:
    """The values of an operand, which must be an array of the current device, or a number."""
    if isinstance(x, ndarray):
        assert x._device == State.device, f"an array of device {x._device} in an operation on device {State.device}"
        return x._values
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(_unwrap(part) for part in x)
    return x


def _wrapped_key(values: Any, key: Any) -> Any:
    """A key with its integer arrays brought into range, as CuPy's kernels do instead of checking."""
    parts = key if isinstance(key, tuple) else (key,)
    raw, axis = [], 0
    for i, part in enumerate(parts):
        if part is Ellipsis:
            axis = values.ndim - sum(1 for later in parts[i + 1 :] if later is not None)
        elif isinstance(part, np.ndarray):
            raise AssertionError("an index of NumPy would be copied to the GPU")
        elif isinstance(part, ndarray):
            array = _unwrap(part)
            if array.dtype.kind == "b":
                axis += array.ndim
            else:
                array = array.astype(np.int64) % max(values.shape[axis], 1)
                axis += 1
            part = array
        elif part is not None:
            axis += 1
        raw.append(part)
    return tuple(raw) if isinstance(key, tuple) else raw[0]


def _elementwise(function: Callable[..., Any]) -> Callable[..., ndarray]:
    def ufunc(*args: Any) -> ndarray:
        if not any(isinstance(a, ndarray) for a in args):
            raise TypeError(f"{function.__name__} of CuPy needs an array among its operands")
        if any(isinstance(a, (list, tuple)) for a in args):
            raise TypeError("Unsupported type list")
        with np.errstate(all="ignore"):
            return ndarray(function(*(_unwrap(a) for a in args)))

    ufunc.__name__ = function.__name__
    return ufunc


for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "eq", "ne", "lt", "le", "gt", "ge",
):  # fmt: skip
    setattr(ndarray, f"__{_name}__", _elementwise(getattr(np.ndarray, f"__{_name}__")))


# ------------------------------------------------------------------ functions with CuPy's signatures


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False, ndmin: int = 0,
          *, blocking: bool = False) -> ndarray:  # fmt: skip
    if isinstance(obj, ndarray):
        return ndarray(np.array(_unwrap(obj), dtype=dtype, copy=copy or None, order=order))
    State.transfers += 1
    return ndarray(np.array(obj, dtype=dtype, order=order))


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    if isinstance(a, ndarray) and not copy and (dtype is None or a.dtype == dtype):
        return a
    return array(a, dtype=dtype, order=order or "K")


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> Any:
    State.transfers += 1
    return np.array(_unwrap(a), order="C")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    out = np.asarray(_unwrap(a), dtype=dtype, order="C")
    return ndarray(out)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    out = np.empty(shape, dtype, order)
    out.fill(np.nan if out.dtype.kind == "f" else 1)  # that nobody takes for zeros what was never written
    return _counted(ndarray(out))


def _counted(x: ndarray) -> ndarray:
    for hook in State.hooks:
        hook.malloc_postprocess(device_id=x._device, size=x.nbytes, mem_size=x.nbytes, mem_ptr=1, pmem_id=1)
    return x


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(np.zeros(shape, dtype, order))


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(np.ones(shape, dtype, order))


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    return ndarray(np.full(shape, fill_value, dtype, order))


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    return ndarray(np.arange(start, stop, step, dtype) if stop is not None else np.arange(0, start, step, dtype))


def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return ndarray(np.zeros_like(_unwrap(a), dtype=dtype))


def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return ndarray(np.ones_like(_unwrap(a), dtype=dtype))


def round(a: Any, decimals: int = 0, out: Any = None) -> ndarray:
    return ndarray(np.round(_unwrap(a), decimals))


def where(condition: Any, x: Any = None, y: Any = None) -> ndarray:
    assert x is not None, "where with a condition alone waits for the GPU"
    assert y is not None, "where with a condition alone waits for the GPU"
    return ndarray(np.where(_unwrap(condition).astype("?"), _unwrap(x), _unwrap(y)))


def _reduction(name: str) -> Callable[..., ndarray]:
    def reduce(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        options = {"dtype": dtype} if dtype is not None else {}
        with np.errstate(all="ignore"):
            return ndarray(getattr(np, name)(_unwrap(a), axis=axis, keepdims=keepdims, **options))

    return reduce


def _plain_reduction(name: str) -> Callable[..., ndarray]:
    def reduce(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return ndarray(getattr(np, name)(_unwrap(a), axis=axis, keepdims=keepdims))

    return reduce


def var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, keepdims: bool = False
) -> ndarray:
    return ndarray(np.var(_unwrap(a), axis=axis, ddof=ddof, keepdims=keepdims))


def std(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, keepdims: bool = False
) -> ndarray:
    return ndarray(np.std(_unwrap(a), axis=axis, ddof=ddof, keepdims=keepdims))


def argsort(a: Any, axis: Any = -1, kind: Any = None) -> ndarray:
    assert kind in (None, "stable")
    return ndarray(np.argsort(_unwrap(a), axis=axis, kind="stable"))


def cumulative_sum(
    x: Any, /, *, axis: Any = None, dtype: Any = None, out: Any = None, include_initial: bool = False
) -> ndarray:
    return ndarray(np.cumulative_sum(_unwrap(x), axis=axis, dtype=dtype))


def reshape(a: Any, newshape: Any, order: str = "C", *, copy: Any = None) -> ndarray:
    return ndarray(np.reshape(_unwrap(a), newshape, order))


def broadcast_to(array: Any, shape: Any) -> ndarray:
    return ndarray(np.broadcast_to(_unwrap(array), shape))


def permute_dims(a: Any, axes: Any = None) -> ndarray:
    return ndarray(np.transpose(_unwrap(a), axes))


def matrix_transpose(x: Any, /) -> ndarray:
    return ndarray(np.matrix_transpose(_unwrap(x)))


def squeeze(a: Any, axis: Any = None) -> ndarray:
    return ndarray(np.squeeze(_unwrap(a), axis))


def expand_dims(a: Any, axis: Any) -> ndarray:
    return ndarray(np.expand_dims(_unwrap(a), axis))


def concat(tup: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    return ndarray(np.concat(_unwrap(tup), axis=axis))


def stack(tup: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    return ndarray(np.stack(_unwrap(tup), axis=axis))


def flip(a: Any, axis: Any = None) -> ndarray:
    return ndarray(np.flip(_unwrap(a), axis))


def take_along_axis(a: Any, indices: Any, axis: Any) -> ndarray:
    return ndarray(np.take_along_axis(_unwrap(a), _unwrap(indices) % a.shape[axis], axis))


def matmul(*args: Any, axes: Any = None, axis: Any = None, keepdims: bool = False, casting: str = "same_kind",
           dtype: Any = None, signature: Any = None, order: str = "K", out: Any = None) -> ndarray:  # fmt: skip
    a, b = args
    product = np.matmul(_unwrap(a), _unwrap(b))
    if out is None:
        return ndarray(product)
    assert not np.shares_memory(_unwrap(out), _unwrap(a))
    assert out.shape == product.shape
    _unwrap(out)[...] = product
    return out


def _gemm(transa: str, transb: str, a: Any, b: Any, out: Any = None, alpha: float = 1.0, beta: float = 0.0) -> ndarray:
    assert (transa, transb) == ("N", "N")
    assert a.ndim == b.ndim == out.ndim == 2
    assert a.dtype == b.dtype == out.dtype
    assert a.dtype.char in "fd"
    values = _unwrap(out)
    values[...] = alpha * (_unwrap(a) @ _unwrap(b)) + beta * values
    return out


def scatter_add(a: Any, slices: Any, value: Any) -> None:
    assert a.dtype.type in (np.int32, np.int64, np.float16, np.float32, np.float64, np.uint32, np.uint64)
    np.add.at(_unwrap(a), _wrapped_key(a._values, slices), _unwrap(value))


# ------------------------------------------------------------------ kernels, and the modules


def empty_pinned(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    out = np.empty(shape, dtype, order)
    State.pinned.append(out.ctypes.data)
    return out


def pointer_attributes(ptr: int) -> Any:
    return types.SimpleNamespace(type=1 if ptr in State.pinned else 0)


class RawModule:
    """Runs the sources of gradflow_cupy compiled for the host."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), name_expressions: Any = None) -> None:
        from gradflow_cupy.kernels import SOURCES, source_text

        assert code in [source_text(source) for source in SOURCES]
        assert not any("fast" in option for option in options)
        self.names = name_expressions

    def get_function(self, name: str) -> Any:
        assert name in self.names
        kernel = host_kernel(name)

        def launch(grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
            # a view is handed over as its address: strides are the caller's business
            kernel(grid, block, tuple(_unwrap(a).ctypes.data if isinstance(a, ndarray) else a for a in args))

        return launch


def modules() -> dict[str, types.ModuleType]:
    """New modules `cupy` and `cupyx`."""
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    cupy.__dict__["__version__"] = "14.2.0 (EMULATED)"
    for name in ARRAY_FUNCTIONS:
        own = globals().get(name)
        if own is None and name in ("sum", "prod", "mean", "argmax", "argmin"):
            own = _reduction(name)
        elif own is None and name in ("max", "min", "any", "all"):
            own = _plain_reduction(name)
        elif own is None and name not in ("clip", "astype"):
            own = _elementwise(getattr(np, name))
        if own is not None:
            setattr(cupy, name, own)
    cupy.clip = cupy.astype = None  # type: ignore[attr-defined]  # CuPy's differ from the Array API's: adapted
    for own in (array, asnumpy, ascontiguousarray, RawModule, ndarray):
        setattr(cupy, own.__name__, own)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
                 "float32", "float64", "dtype"):  # fmt: skip
        setattr(cupy, name, getattr(np, name))
    pool, pinned_pool = Pool(), PinnedPool()
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: State.devices,
        getDeviceProperties=lambda i: {"name": b"EMULATED on the CPU", "totalGlobalMem": 2**34},
        driverGetVersion=lambda: 12090,
        runtimeGetVersion=lambda: 12090,
        CUDARuntimeError=CUDARuntimeError,
        memoryTypeHost=1,
        pointerGetAttributes=pointer_attributes,
    )
    cupy.__dict__["get_default_memory_pool"] = lambda: pool
    cupy.__dict__["get_default_pinned_memory_pool"] = lambda: pinned_pool
    cupy.__dict__["cublas"] = types.SimpleNamespace(gemm=_gemm)
    cupy.__dict__["cuda"] = types.SimpleNamespace(
        Device=Device, Event=Event, Stream=Stream, MemoryHook=MemoryHook, runtime=runtime,
        get_current_stream=get_current_stream,
        get_elapsed_time=lambda start, end: (end.time - start.time) * 1000,
    )  # fmt: skip
    cupyx.__dict__["scatter_add"] = scatter_add
    cupyx.__dict__["empty_pinned"] = empty_pinned
    return {"cupy": cupy, "cupyx": cupyx}


def install(monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> None:
    """Put the stand-in in the place of CuPy until the end of the test. Its kernels are kept apart."""
    from gradflow_cupy import kernels

    monkeypatch.setattr(State, "devices", devices)
    monkeypatch.setattr(State, "hooks", [])
    monkeypatch.setattr(State, "pinned", [])
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "_module", kernels._module.__wrapped__)
