"""A stand-in for the part of CuPy that gradflow_cupy uses, on the CPU. EMULATED: nothing here ran on a GPU.

It lets the whole `CupyBackend` run in tests without a GPU. NumPy computes the values, and kernels are the CUDA sources
compiled for the host. It behaves like CuPy where CuPy differs from NumPy:

- signatures are CuPy's (`test_names.py` compares them with the installed CuPy);
- arrays do not convert to NumPy implicitly, refuse NumPy operands, and belong to the device that was current;
- reductions return arrays; indices out of range wrap; a fill with -0.0 gives 0.0;
- page-locked memory is copied later; numbers are passed to kernels in their own size;
- float32 subnormals are flushed to zero in arithmetic;
- bfloat16 becomes another dtype, or fails, where CuPy has no loop for it (`test_names.py` compares).

It is stricter than CuPy in one point: asking for the value or truth of an array, which a training step must not do,
raises an error.
"""

from __future__ import annotations

import functools
import math
import re
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import cublaslt_stand_in
import ml_dtypes
import numpy as np
import pytest
from emulated_cuda import (
    Copy,
    CUDARuntimeError,
    Device,
    Event,
    MemoryHook,
    PinnedPool,
    Pool,
    State,
    Stream,
    empty_pinned,
    get_current_stream,
    get_elapsed_time,
)
from emulated_graphs import Graphs, Memory, MemoryPool, allocate, queue, queued, queued_in_place, using_allocator
from host_kernels import host_kernel

from gradflow.backend import ARRAY_FUNCTIONS, Diagnosis


class Flags:
    def __init__(self, flags: Any) -> None:
        self.c_contiguous = flags.c_contiguous


class Pointer:
    """The address of an array."""

    def __init__(self, array: ndarray) -> None:
        self._array = array

    ptr = property(lambda self: int(self._array._values.ctypes.data))

    def copy_from_device_async(self, src: Pointer, size: int, stream: Any = None) -> None:
        target, source = _unwrap(self._array), _unwrap(src._array)
        assert target.nbytes == source.nbytes == size
        assert target.flags.c_contiguous
        assert source.flags.c_contiguous
        copy = functools.partial(np.copyto, target.reshape(-1).view("u1"), source.reshape(-1).view("u1"))
        queue("copy", "copy", copy, [source], [target])


class ndarray:  # noqa: N801
    """An opaque array: only this module reads its values, in `_values`."""

    __array_ufunc__ = None

    def __init__(self, values: Any, device: int | None = None) -> None:
        self._values = np.asarray(values)
        self._device = State.device if device is None else device
        self._allocated: Any = None  # the moment, for an array of `empty`
        self._memory = Memory.of(self._values)

    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    strides = property(lambda self: self._values.strides)
    flags = property(lambda self: Flags(self._values.flags))
    data = property(lambda self: Pointer(self))

    @property
    def T(self) -> ndarray:  # noqa: N802
        return ndarray(self._values.T, self._device)

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self._values.view(dtype), self._device)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        """The consumer's stream waits for the current one. The capsule is NumPy's, since the memory is the host's."""
        assert dl_device in (None, self.__dlpack_device__())
        if stream not in (None, -1):
            State.by_pointer[stream].wait_event(get_current_stream().record())
        return _unwrap(self).__dlpack__(max_version=max_version, copy=copy)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        values = _unwrap(self)
        strides = None if values.flags.c_contiguous else values.strides
        return {
            "shape": values.shape, "typestr": values.dtype.str, "data": (values.ctypes.data, False), "version": 3,
            "strides": strides, "stream": get_current_stream().ptr,
        }  # fmt: skip

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("the value of an array was asked for: that would wait for the GPU")

    __bool__ = __float__ = __int__ = __index__ = item = get = tolist = _refuse

    def __len__(self) -> int:
        return len(self._values)

    @queued
    def __getitem__(self, key: Any) -> ndarray:
        if not any(isinstance(part, ndarray) for part in (key if isinstance(key, tuple) else (key,))):
            parts = key if isinstance(key, tuple) else (key,)
            return ndarray(self._values[parts if Ellipsis in parts else (*parts, ...)], self._device)  # a view
        return ndarray(_unwrap(self)[_wrapped_key(self._values, key)])

    @queued_in_place
    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        raw = _wrapped_key(self._values, key)
        if not isinstance(value, ndarray):
            value = ndarray(_filled((), value, self.dtype))
        _unwrap(self)[raw] = _unwrap(value)

    @queued
    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        with np.errstate(all="ignore"):
            return ndarray(_unwrap(self).astype(dtype, order=order, copy=copy))

    @queued
    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(_unwrap(self).reshape(*shape))

    def set(self, arr: Any, stream: Any = None) -> None:
        assert (arr.shape, arr.dtype, arr.flags.c_contiguous) == (self.shape, self.dtype, True)
        Graphs.refuse("a copy from the host")
        stream = get_current_stream() if stream is None else stream
        made, moment = self._allocated
        assert made is stream or stream.before.get(made, 0) >= moment, (
            "a copy into memory that earlier work of another stream may still use"
        )
        State.transfers += 1
        if arr.size and State.is_pinned(arr.ctypes.data):
            State.in_flight.append(Copy(arr, self._values, stream))
        else:
            self._values[...] = arr

    def scatter_add(self, slices: Any, value: Any) -> None:
        text = "`ndarray.scatter_add` is deprecated. Please use `cupy.add.at` instead."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        _add_at(self, slices, value)


def _unwrap(x: Any) -> Any:
    """The values of an operand, which must be an array of the current device, or a number."""
    if isinstance(x, ndarray):
        assert x._device == State.device, f"an array of device {x._device} in an operation on device {State.device}"
        State.reach(get_current_stream().before)
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


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NO_BFLOAT16 = ("round", "where")
"""The elementwise functions without a loop for bfloat16, which they convert to float32."""
TINY = float(np.finfo(np.float32).smallest_normal)


def _flushed(values: Any) -> Any:
    """The values with float32 subnormals as zeros."""
    if values.dtype == np.float32:
        small = np.abs(values) < TINY
        if values[small].any():
            return np.where(small, np.copysign(np.float32(0), values), values)
    return values


def _elementwise(function: Callable[..., Any], flush: Callable[[Any], Any] = _flushed) -> Callable[..., ndarray]:
    def ufunc(*args: Any) -> ndarray:
        if not any(isinstance(a, ndarray) for a in args):
            raise TypeError(f"{function.__name__} of CuPy needs an array among its operands")
        if any(isinstance(a, (list, tuple)) for a in args):
            raise TypeError("Unsupported type list")
        given = [a.dtype if isinstance(a, (ndarray, np.generic)) else np.dtype(type(a)) for a in args]
        half = BFLOAT16 in given
        raw = [flush(x) if isinstance(x, np.ndarray) else x for x in (_unwrap(a) for a in args)]
        if half:  # a Python float takes it to float32, as another dtype would
            raw = [x.astype(np.float32) if getattr(x, "dtype", None) == BFLOAT16 else x for x in raw]
        with np.errstate(all="ignore"):
            out = flush(np.asarray(function(*raw)))
        if half and out.dtype == np.float32 and function.__name__ not in NO_BFLOAT16:
            strong = all(t.kind in "biu" or t == BFLOAT16 for t in given)
            out = out.astype(BFLOAT16) if strong else out
        return ndarray(out)

    ufunc.__name__ = function.__name__
    return ufunc


for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "eq", "ne", "lt", "le", "gt", "ge",
):  # fmt: skip
    setattr(ndarray, f"__{_name}__", queued(_elementwise(getattr(np.ndarray, f"__{_name}__"))))


# ------------------------------------------------------------------ functions with CuPy's signatures


def _filled(shape: Any, value: Any, dtype: Any) -> Any:
    """Filled with a number as CuPy does, which clears the memory for what equals 0, and flushes subnormal numbers."""
    out = np.empty(shape, dtype)
    number = np.asarray(value, dtype=out.dtype)
    if number.shape:
        raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
    out[...] = 0 if number == 0 else _flushed(number)
    return out


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", subok: bool = False, ndmin: int = 0,
          *, blocking: bool = False) -> ndarray:  # fmt: skip
    if isinstance(obj, ndarray):
        return _copied(obj, dtype, copy, order)
    Graphs.refuse("a copy from the host")
    State.transfers += 1
    values = np.array(obj, dtype=dtype, copy=None)
    if not values.ndim:
        return ndarray(_filled((), values, values.dtype))
    if values.size and values.flags.c_contiguous and State.is_pinned(values.ctypes.data):
        out = empty(values.shape, values.dtype)
        State.in_flight.append(Copy(values, out._values, get_current_stream()))
    else:
        out = ndarray(np.array(values, order=order))
    if blocking:
        get_current_stream().synchronize()
    return out


@queued
def _copied(obj: ndarray, dtype: Any, copy: bool, order: str) -> ndarray:
    return ndarray(np.array(_unwrap(obj), dtype=dtype, copy=copy or None, order=order))


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None, blocking: bool = False
) -> ndarray:
    if isinstance(a, ndarray) and not copy and (dtype is None or a.dtype == dtype):
        return a
    return array(a, dtype=dtype, order=order or "K", blocking=blocking)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> Any:
    Graphs.refuse("a copy to the host")
    State.transfers += 1
    State.wait(get_current_stream().before)
    State.synchronizations -= 1  # counted as a transfer
    return np.array(_unwrap(a), order="C")


class _Capsule:
    def __init__(self, capsule: Any) -> None:
        self.__dlpack__ = lambda **_: capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def from_dlpack(array: Any, *, device: Any = None, copy: bool | None = None) -> ndarray:
    kind, index = array.__dlpack_device__()
    if kind not in (2, 13):
        raise RuntimeError("CuPy is built against CUDA, different from the backend of the incoming tensor")
    stream = get_current_stream().ptr
    capsule = array.__dlpack__(stream=stream, max_version=(1, 0), dl_device=device, copy=copy)
    return ndarray(np.from_dlpack(_Capsule(capsule)), index)


@queued
def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    out = np.asarray(_unwrap(a), dtype=dtype, order="C")
    return ndarray(out)


GUARD = 64
"""Guard bytes after the memory of an array of `empty`, NaN as floating-point numbers: no kernel may write there."""
_memories: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""The memory of arrays of `empty`, with its guard bytes, by id."""


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    native, size = np.dtype(dtype), math.prod(shape) if isinstance(shape, tuple) else shape
    root, _memory = allocate(size * native.itemsize + GUARD)
    _memories[id(root)] = root
    out = root[:-GUARD].view(native).reshape(shape, order=order)  # type: ignore[call-overload]
    if Graphs.recording() is None:
        out.fill(np.nan if out.dtype.kind == "f" else 1)  # uninitialized memory must not look like zeros
    made = ndarray(out)
    made._allocated = get_current_stream().queue()
    return _counted(made)


def _guarded(values: Any) -> bool:
    """Whether the guard bytes after the memory of `values` are unchanged."""
    while isinstance(values.base, np.ndarray):
        values = values.base
    return id(values) not in _memories or bool((values[-GUARD:] == 0xFF).all())


def _counted(x: ndarray) -> ndarray:
    for hook in State.hooks.values():
        hook.malloc_postprocess(device_id=x._device, size=x.nbytes, mem_size=x.nbytes, mem_ptr=1, pmem_id=1)
    return x


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    made = empty(shape, dtype, order)
    made._values[...] = 0
    return made


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(np.ones(shape, dtype, order))


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    return ndarray(_filled(shape, fill_value, np.dtype(type(fill_value)) if dtype is None else dtype))


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    return ndarray(np.arange(start, stop, step, dtype) if stop is not None else np.arange(0, start, step, dtype))


def zeros_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return ndarray(np.zeros_like(_unwrap(a), dtype=dtype))


def ones_like(a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return ndarray(np.ones_like(_unwrap(a), dtype=dtype))


def round(a: Any, decimals: int = 0, out: Any = None) -> ndarray:
    assert decimals == 0
    return _elementwise(np.round)(a)


def where(condition: Any, x: Any = None, y: Any = None) -> ndarray:
    assert x is not None, "where with a condition alone waits for the GPU"
    assert y is not None, "where with a condition alone waits for the GPU"
    return _where(condition.astype("?"), x, y)


_where = _elementwise(np.where, flush=np.asarray)  # a selection is not arithmetic


def _widened(a: Any) -> Any:
    """The values of an operand, bfloat16 as float32: what CuPy computes with."""
    values = _flushed(_unwrap(a))
    return values.astype(np.float32) if values.dtype == BFLOAT16 else values


def _reduced(name: str, a: Any, **options: Any) -> ndarray:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no elements
        out = _flushed(np.asarray(getattr(np, name)(_widened(a), **options)))
    return ndarray(out.astype(BFLOAT16) if a.dtype == BFLOAT16 and out.dtype == np.float32 else out)


def _reduction(name: str) -> Callable[..., ndarray]:
    def reduce(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        options = {"dtype": dtype} if dtype is not None else {}
        return _reduced(name, a, axis=axis, keepdims=keepdims, **options)

    return reduce


def _plain_reduction(name: str) -> Callable[..., ndarray]:
    def reduce(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(name, a, axis=axis, keepdims=keepdims)

    return reduce


def _arg_reduction(name: str) -> Callable[..., ndarray]:
    def reduce(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduced(name, a, axis=axis, keepdims=keepdims)

    return reduce


def _spread(name: str, a: Any, options: dict[str, Any]) -> ndarray:
    out = _reduced(name, a, **options)
    return out.astype(np.float64) if a.dtype == BFLOAT16 else out  # which CuPy has no kernel for


def var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, keepdims: bool = False
) -> ndarray:
    return _spread("var", a, {"axis": axis, "ddof": ddof, "keepdims": keepdims})


def std(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: float = 0, keepdims: bool = False
) -> ndarray:
    return _spread("std", a, {"axis": axis, "ddof": ddof, "keepdims": keepdims})


def argsort(a: Any, axis: Any = -1, kind: Any = None) -> ndarray:
    assert kind in (None, "stable")
    if a.dtype == BFLOAT16:
        raise NotImplementedError("Sorting arrays with dtype 'bfloat16' is not supported")
    return ndarray(np.argsort(_unwrap(a), axis=axis, kind="stable"))


def cumulative_sum(
    x: Any, /, *, axis: Any = None, dtype: Any = None, out: Any = None, include_initial: bool = False
) -> ndarray:
    if x.dtype == BFLOAT16:
        raise RuntimeError("CompileException: no operator += matches these operands (bfloat16)")
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
    if Graphs.recording() is not None:
        raise NotImplementedError("calling cublas API during stream capture is currently unsupported")
    a, b = args
    if a.dtype == BFLOAT16 and max(a.ndim, b.ndim) > 2:
        raise RuntimeError("the kernel for products of integers, which bfloat16 is taken for, does not compile")
    if a.ndim == b.ndim == 2 and (a.shape[0], b.shape[1]) == (1, 1) and a.dtype.itemsize == 2:  # rounds each term
        product = (_unwrap(a)[0] * _unwrap(b)[:, 0]).astype(np.float32).sum(keepdims=True)[None].astype(a.dtype)
    else:
        product = np.matmul(_widened(a), _widened(b)).astype(np.result_type(a.dtype, b.dtype))
    if out is None:
        return ndarray(product)
    assert not np.shares_memory(_unwrap(out), _unwrap(a))
    assert out.shape == product.shape
    _unwrap(out)[...] = product
    return out


@queued_in_place
def _add_at(a: Any, slices: Any, value: Any) -> None:
    known = (np.int32, np.int64, np.float16, np.float32, np.float64, np.uint32, np.uint64)
    if a.dtype.type not in known:
        raise TypeError(
            "cupy.add.at only supports int32, int64, float16, float32, float64, uint32, uint64 as data type"
        )
    np.add.at(_unwrap(a), _wrapped_key(a._values, slices), _unwrap(value))


def scatter_add(a: Any, slices: Any, value: Any) -> None:
    a.scatter_add(slices, value)


# ------------------------------------------------------------------ kernels, and the modules


def pointer_attributes(ptr: int) -> Any:
    return types.SimpleNamespace(type=1 if State.is_pinned(ptr) else 0)


_ELEMENTS: dict[str, tuple[Any, ...]] = {
    "float": ("float32",), "double": ("float64",), "half_t": ("float16", BFLOAT16), "bool": ("bool",),
    "int": ("int32",), "index_t": ("int64",), "word_t": ("uint64",), "__half": ("float16",),
    "__nv_bfloat16": (BFLOAT16,),
}  # fmt: skip


class Kernel:
    """A RawKernel, and the function of its module on the only device, which need not ask for the device."""

    def __init__(self, name: str, kinds: tuple[str, ...]) -> None:
        self.name, self.kinds, self.run = name, kinds, host_kernel(name)

    @property
    def kernel(self) -> Kernel:
        assert State.devices == 1, "this is the function on the device that is current now"
        return self

    def _pointer(self, value: Any, kind: str) -> int:
        """The address of an array. A kernel does not see its dtype and strides, so they are checked here."""
        values = _unwrap(value)
        kind = kind.removeprefix("const ").rstrip("*")
        assert kind == "void" or values.dtype in _ELEMENTS[kind], (self.name, kind, values.dtype)
        assert values.flags.c_contiguous, (self.name, kind)
        return int(values.ctypes.data)

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        assert type(grid) is type(block) is tuple
        assert len(args) == len(self.kinds)
        held = []
        for a, kind in zip(args, self.kinds, strict=True):
            assert kind.endswith("*") == (a is None or isinstance(a, ndarray)), (self.name, kind, a)
            held.append(self._pointer(a, kind) if isinstance(a, ndarray) else a)
        pairs = [(a._values, kind) for a, kind in zip(args, self.kinds, strict=True) if isinstance(a, ndarray)]
        written = [values for values, kind in pairs if not kind.startswith("const ")]

        def run() -> None:
            self.run(grid, block, tuple(held))
            assert all(_guarded(values) for values, _ in pairs), f"{self.name} writes beyond an array"

        queue(self.name, "kernel", run, [values for values, _ in pairs], written)


class RawModule:
    """Runs the sources of gradflow_cupy compiled for the host."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), name_expressions: Any = None) -> None:
        from gradflow_cupy.kernels import SOURCES, source_text

        assert code in [source_text(source) for source in SOURCES]
        assert not any("fast" in option for option in options)
        self.names = name_expressions

    def get_function(self, name: str) -> Kernel:
        from gradflow_cupy.kernels import SOURCES, parameter_types

        assert name in self.names
        plain, _, real = name.rstrip(">").partition("<")
        kinds = next(parameter_types(source)[plain] for source, names in SOURCES.items() if plain in names)
        return Kernel(name, tuple(_concrete(kind, real) for kind in kinds))


def _concrete(kind: str, real: str) -> str:
    """The type of a parameter of a kernel for elements of `real`."""
    wide = "double" if real == "double" else "float"
    return re.sub(r"\bT\b", real, kind.replace("wide<T>", wide))


def modules() -> dict[str, types.ModuleType]:
    """New modules `cupy` and `cupyx`."""
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    cupy.__dict__["__version__"] = "14.2.0 (EMULATED)"
    for name in ARRAY_FUNCTIONS:
        own = globals().get(name)
        if own is None and name in ("sum", "prod", "mean"):
            own = _reduction(name)
        elif own is None and name in ("argmax", "argmin"):
            own = _arg_reduction(name)
        elif own is None and name in ("max", "min", "any", "all"):
            own = _plain_reduction(name)
        elif own is None and name not in ("clip", "astype"):
            own = _elementwise(getattr(np, name))
        if own is not None:
            setattr(cupy, name, own if name in ("empty", "asarray", "matmul") else queued(own))
    cupy.add.at = _add_at  # type: ignore[attr-defined]
    cupy.clip = cupy.astype = None  # type: ignore[attr-defined]  # CuPy's differ from the Array API's: adapted
    for own in (array, asnumpy, ascontiguousarray, from_dlpack, RawModule, ndarray):
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
        memGetInfo=lambda: (2**33, 2**34),
        memoryTypeHost=1,
        pointerGetAttributes=pointer_attributes,
    )
    cupy.__dict__["get_default_memory_pool"] = lambda: pool
    cupy.__dict__["get_default_pinned_memory_pool"] = lambda: pinned_pool
    cupy.__dict__["cuda"] = types.SimpleNamespace(
        Device=Device, Event=Event, Stream=Stream, MemoryHook=MemoryHook, runtime=runtime,
        get_current_stream=get_current_stream, MemoryPool=MemoryPool, using_allocator=using_allocator,
        get_elapsed_time=get_elapsed_time,
    )  # fmt: skip
    cupyx.__dict__["scatter_add"] = scatter_add
    cupyx.__dict__["empty_pinned"] = empty_pinned
    return {"cupy": cupy, "cupyx": cupyx}


def install(monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> None:
    """Replace CuPy by the stand-in until the end of the test. Its compiled kernels are kept apart."""
    from gradflow_cupy import diagnosis, kernels

    monkeypatch.setattr(State, "devices", devices)
    # the diagnosis is cached: that of the emulation must not remain for the real CuPy
    monkeypatch.setattr(diagnosis, "diagnose", lambda: Diagnosis(False, "CuPy is EMULATED in this test"))
    for name, value in (("hooks", {}), ("pinned", []), ("in_flight", []), ("streams", {}), ("device", 0)):
        monkeypatch.setattr(State, name, value)
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(kernels, "_kernels", {})
    monkeypatch.setattr(kernels, "_module", kernels._module.__wrapped__)
    cublaslt_stand_in.install(monkeypatch)
