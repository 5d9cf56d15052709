"""The services of a device: copies from and to the host, waiting, memory, events, indexing, descriptions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Backend, Diagnosis, MemoryStats
from gradflow.dtypes import DTYPES
from gradflow.testing.conformance import REALS, SERVICES, about, test_array_functions, test_random, test_training
from gradflow.testing.conformance import test_kernels as test_kernels_module
from gradflow.testing.conformance.function_cases import ALL
from gradflow.testing.conformance.harness import LAYOUTS, Placed
from gradflow.testing.conformance.kernel_cases.inputs import name_of, normal
from gradflow.testing.conformance.kernel_cases.scatter import full_key
from gradflow.testing.tolerances import assert_agree

SHAPES: list[tuple[int, ...]] = [(3, 4), (), (0, 3), (5,), (2, 3, 4)]


def _values(shape: tuple[int, ...], dtype: str) -> Any:
    x = normal(shape, 80, 20.0)
    return np.asarray(x > 0 if dtype == "bool" else np.abs(x).astype(dtype))


# ---------------------------------------------------------------------- copies from and to the host


@about("from_host", "to_host", "host_values", "from_host_later", "pin")
@pytest.mark.parametrize("dtype", [*ALL])
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_values_come_back(backend: Backend, shape: tuple[int, ...], dtype: str) -> None:
    """Every way to the device and back keeps values bit for bit, dtype and shape."""
    x = _values(shape, dtype)
    for copied in (backend.from_host(x), backend.from_host_later(backend.pin(x))):
        assert copied.dtype == backend.dtypes[dtype]
        assert tuple(copied.shape) == shape
        assert copied.ndim == len(shape)
        assert_agree("to_host", backend.to_host(copied), x)
        assert_agree("host_values", backend.host_values(copied), x)
    assert type(backend.to_host(backend.from_host(x))) is np.ndarray


@about("from_host", "to_host")
@pytest.mark.parametrize("dtype", REALS)
def test_special_values_come_back(backend: Backend, dtype: str) -> None:
    """Bit for bit: the sign of 0, infinities, NaN, the smallest and the largest numbers."""
    limits = np.finfo(dtype)
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, limits.max, limits.tiny, limits.smallest_subnormal], dtype)
    assert backend.to_host(backend.from_host(x)).tobytes() == x.tobytes()


@about("from_host")
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_values_come_from_any_layout(backend: Backend, dtype: str) -> None:
    """The array on the host may be transposed, strided, reversed or broadcast."""
    x = _values((4, 6), dtype)
    for source in (x.T, x[:, ::2], x[::-1, ::-1], np.broadcast_to(x[:1], (4, 6)), np.asfortranarray(x)):
        assert_agree("from_host", backend.to_host(backend.from_host(source)), source)


@about("to_host", "host_values")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_come_back_from_any_layout(backend: Backend, layout: str) -> None:
    """The array on the device may have any layout."""
    x = _values((4, 6), "float32")
    placed = Placed(backend, [x], layout).arguments[0]
    for found in (backend.to_host(placed), backend.host_values(placed)):
        assert_agree("to_host", found, x)


@about("from_host", "to_host")
@pytest.mark.parametrize("dtype", [*ALL])
def test_values_of_another_byte_order_are_native_here(backend: Backend, dtype: str) -> None:
    """`gradflow.tensor` passes only arrays in this machine's byte order to the backend."""
    x = _values((4, 6), dtype)
    swapped = x.astype(x.dtype.newbyteorder("S"), order="F")
    made = gf.tensor(swapped, device=backend.device)
    assert made.array.dtype == backend.dtypes[dtype]
    assert_agree("to_host", backend.to_host(made.array), x)
    assert backend.to_host(made.array).dtype.isnative


@about("to_host")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*ALL])
def test_values_leave_in_c_order(backend: Backend, dtype: str, layout: str) -> None:
    """For any layout on the device, and in this machine's byte order: files are written from them."""
    found = backend.to_host(Placed(backend, [_values((4, 6), dtype)], layout).arguments[0])
    assert found.flags.c_contiguous, "to_host returns an array that is not C-contiguous"
    assert found.dtype.isnative


@about("copy", "from_host", "reshape")
@pytest.mark.parametrize("layout", [*LAYOUTS, "broadcast"])
@pytest.mark.parametrize("dtype", [*ALL])
def test_copies_are_in_c_order(backend: Backend, dtype: str, layout: str) -> None:
    """`copy` and `from_host` return C-contiguous arrays for any layout, so reshaping them gives views."""
    x = _values((4, 6), dtype)
    if layout == "broadcast":
        x = np.broadcast_to(x[:1], x.shape)
        source = backend.broadcast_to(backend.from_host(x[:1]), x.shape)
    else:
        source = Placed(backend, [x], layout).arguments[0]
    for made in (backend.copy(source), backend.from_host(np.asfortranarray(x))):
        assert made.dtype == backend.dtypes[dtype]
        assert_agree("a copy", backend.to_host(made), x)
        backend.setitem(backend.reshape(made, (24,)), ..., backend.from_host(np.ones(24, dtype)))
        assert (backend.to_host(made) == 1).all(), "reshaping a copy gives no view: it is not C-contiguous"
    assert_agree("the source of a copy", backend.to_host(source), x)


@about("from_host")
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_from_host_copies(backend: Backend, dtype: str) -> None:
    """The array on the device and the one on the host do not share memory."""
    x = np.ones((3, 4), dtype)
    copied = backend.from_host(x)
    x[...] = 2
    assert (backend.to_host(copied) == 1).all(), "from_host shares memory with its argument"
    copied[...] = 3
    backend.synchronize()
    assert (x == 2).all(), "from_host shares memory with its argument"


@about("to_host")
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_to_host_copies(backend: Backend, dtype: str) -> None:
    """The array on the host can be changed, and does not share memory with the one on the device."""
    x = backend.from_host(np.ones((3, 4), dtype))
    found = backend.to_host(x)
    found[...] = 2
    assert (backend.to_host(x) == 1).all(), "to_host shares memory with its argument"
    x[...] = 3
    backend.synchronize()
    assert (found == 2).all(), "to_host shares memory with its argument"


@about("from_host_later", "synchronize")
def test_values_from_pinned_memory(backend: Backend) -> None:
    """`pin` returns a NumPy array of the same values; after `synchronize` the device has a copy of them."""
    x = _values((100, 7), "float32")
    pinned = backend.pin(x.copy())
    assert isinstance(pinned, np.ndarray)
    assert_agree("pin", pinned, x)
    copied = backend.from_host_later(pinned)
    backend.synchronize()
    pinned[...] = 0
    assert_agree("from_host_later", backend.to_host(copied), x)


@about("from_host", "pin")
@pytest.mark.parametrize("part", [slice(None), slice(3, 9)])
def test_values_from_pinned_memory_are_copied_at_once(backend: Backend, part: slice) -> None:
    """`from_host` copies: the pinned buffer may be overwritten after it returns, all of it or a part."""
    x = _values((500, 70), "float32")
    pinned = backend.pin(x.copy())
    copied = backend.from_host(pinned[part])
    pinned[...] = -1
    assert_agree("from_host", backend.to_host(copied), x[part])


@about("from_host_ahead", "pin")
@pytest.mark.parametrize("dtype", [*ALL])
def test_values_are_copied_ahead(backend: Backend, dtype: str) -> None:
    """Work after the event's `wait` reads them; after its `synchronize`, the buffers may be overwritten."""
    sources = [_values((50, 7), dtype), _values((0, 3), dtype), _values((50,), dtype)]
    buffers = [backend.pin(np.empty(x.shape, x.dtype)) for x in sources]
    made: list[tuple[Any, Any]] = []
    for turn in range(3):
        for buffer, x in zip(buffers, sources, strict=True):
            buffer[...] = np.roll(x, turn)
        arrays, copied = backend.from_host_ahead([*buffers, buffers[0][3:9]])
        copied.wait()
        made += zip([backend.copy(array) for array in arrays], arrays, strict=True)
        copied.synchronize()
    rolled = [[np.roll(x, turn) for x in sources] for turn in range(3)]
    expected = [x for each in rolled for x in (*each, each[0][3:9])]
    for (copy, array), x in zip(made, expected, strict=True):
        assert array.dtype == backend.dtypes[dtype]
        assert_agree("a copy of it", backend.to_host(copy), x)
        assert_agree("from_host_ahead", backend.to_host(array), x)


class _Capsule:
    """An array of another library, as `from_dlpack` sees it."""

    def __init__(self, backend: Backend, array: Any) -> None:
        self.backend, self.array = backend, array

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: bool | None = None
    ) -> Any:
        return self.backend.to_dlpack(self.array, stream, max_version, copy)

    def __dlpack_device__(self) -> tuple[int | None, int]:
        return self.backend.dlpack_type, self.backend.device.index


@about("to_dlpack", "from_dlpack")
@pytest.mark.parametrize("dtype", [*ALL])
def test_memory_is_exchanged_through_dlpack(backend: Backend, dtype: str) -> None:
    """An array comes back with its values, dtype and layout, in the same memory, which what took it keeps alive."""
    if backend.dlpack_type is None:
        pytest.skip("the backend has no dlpack_type")
    for shape in SHAPES:
        x = _values(shape, dtype)
        given = backend.from_host(x)
        taken = backend.from_dlpack(_Capsule(backend, given))
        assert taken.dtype == backend.dtypes[dtype]
        assert_agree("from_dlpack", backend.to_host(taken), x)
        if x.size:
            backend.setitem(taken, ..., backend.from_host(np.zeros_like(x)))
            assert not backend.to_host(given).any(), "from_dlpack has copied"
        turned = backend.permute_dims(backend.from_host(x), tuple(range(len(shape)))[::-1])
        taken = backend.from_dlpack(_Capsule(backend, turned))
        del given, turned
        assert_agree("from_dlpack", backend.to_host(taken), x.T)


# ---------------------------------------------------------------------- waiting, memory, time


@about("synchronize")
def test_synchronize(backend: Backend) -> None:
    """With and without work to wait for."""
    backend.synchronize()
    x = backend.from_host(normal((50, 50), 81))
    backend.matmul(x, x)
    backend.synchronize()


@about("prepare")
def test_prepare(backend: Backend) -> None:
    """It may be called repeatedly."""
    for _ in range(2):
        backend.prepare()


@about("memory_stats")
def test_memory_of_two_objects(backend: Backend) -> None:
    """Two backend objects of one device both report; their peaks are at least the memory in use."""
    other = type(backend)(backend.device.index)
    for _ in range(2):
        for each in (backend, other):
            stats = each.memory_stats()
            assert stats.peak is None or stats.peak >= stats.current


@about("memory_stats", "free_memory")
def test_memory(backend: Backend) -> None:
    """The figures are bytes, and the peak is at least the memory in use."""
    before = backend.memory_stats()
    x = backend.zeros((1000, 100), dtype=backend.dtypes["float32"])
    backend.synchronize()
    during = backend.memory_stats()
    for stats in (before, during):
        assert isinstance(stats, MemoryStats)
        current, peak, reserved = stats
        assert isinstance(current, int)
        assert isinstance(reserved, int)
        assert current >= 0
        assert reserved >= 0
        assert peak is None or (isinstance(peak, int) and peak >= current)
    assert (backend.to_host(x) == 0).all()
    del x
    freed = backend.free_memory()
    assert isinstance(freed, int)
    assert freed >= 0


@about("available_memory")
def test_available_memory(backend: Backend) -> None:
    """Bytes, or None."""
    found = backend.available_memory()
    assert found is None or (isinstance(found, int) and found >= 0)


@about("event")
def test_event(backend: Backend) -> None:
    """Seconds between two events, which must both have been recorded."""
    first, second = backend.event(), backend.event()
    with pytest.raises(RuntimeError):
        second.seconds_since(first)
    first.record()
    with pytest.raises(RuntimeError):
        second.seconds_since(first)
    x = backend.from_host(normal((50, 50), 82))
    backend.matmul(x, x)
    second.record()
    seconds = second.seconds_since(first)
    assert isinstance(seconds, float)
    assert 0.0 <= seconds < 60.0
    second.wait()
    second.synchronize()


@about("stream")
def test_stream(backend: Backend) -> None:
    """Arrays made before the `with` can be used inside it, and those made inside can be used after it."""
    x = backend.from_host(np.arange(12.0).reshape(3, 4))
    with backend.stream():
        y = backend.add(x, 1.0)
    z = backend.multiply(y, 2.0)
    assert_agree("stream", backend.to_host(z), (np.arange(12.0).reshape(3, 4) + 1) * 2)


# ---------------------------------------------------------------------- descriptions


@about("describe")
def test_describe(backend: Backend) -> None:
    """One line of text."""
    text = backend.describe()
    assert isinstance(text, str)
    assert text.strip()
    assert "\n" not in text


@about("diagnose")
def test_diagnose(backend: Backend) -> None:
    """A class method that says, in words, that the device can be used."""
    diagnosis = type(backend).diagnose()
    assert isinstance(diagnosis, Diagnosis)
    assert diagnosis.usable is True
    assert diagnosis.state.strip()


@about("device_count")
def test_device_count(backend: Backend) -> None:
    """A class method that counts at least this device."""
    count = type(backend).device_count()
    assert isinstance(count, int)
    assert count > backend.device.index


def test_name(backend: Backend, device: str) -> None:
    """The device is found by its name, and one backend object serves it."""
    assert backend.device == gf.Device(device)
    assert backend.device.type == type(backend).name
    assert gf.get_backend(device) is backend
    assert backend.device in gf.devices()


@about("supports", "dtype_name")
def test_dtypes(backend: Backend) -> None:
    """The dtypes in `dtypes` are supported and have their names; other names and complex dtypes are not."""
    assert set(backend.dtypes) <= set(DTYPES)
    assert {"bool", "int64", "uint64", "float32", "float64"} <= set(backend.dtypes), "gradflow needs these"
    for name, native in backend.dtypes.items():
        assert backend.supports(name)
        assert backend.dtype_name(native) == name
        assert backend.empty((0,), dtype=native).dtype == native
    for wrong in ("complex64", "float8", "", "float"):
        assert not backend.supports(wrong)
    with pytest.raises(TypeError):
        backend.dtype_name(np.dtype("complex64"))


@about("named_ranges")
def test_named_ranges(backend: Backend) -> None:
    """There are none, or they begin with a name and end."""
    ranges = backend.named_ranges()
    if ranges is not None:
        begin, end = ranges
        begin("a range")
        end()


@about("kernels")
def test_kernels(backend: Backend) -> None:
    """Each is "composed", or a word for how it is native."""
    found = backend.kernels()
    assert list(found) == KERNELS
    assert all(isinstance(kind, str) and kind for kind in found.values())


def test_an_unknown_name_raises(backend: Backend) -> None:
    """It raises AttributeError, which names the backend and the function."""
    with pytest.raises(AttributeError, match=f"'{backend.name}'.*'einsum_of_doom'"):
        _ = backend.einsum_of_doom


def test_declarations(backend: Backend) -> None:
    """Every key of `unsupported` names an existing check and has a reason."""
    known = {*ARRAY_FUNCTIONS, *KERNELS, *SERVICES, *DTYPES}
    modules = (test_array_functions, test_kernels_module, test_random, test_training)
    tests = {name for module in modules for name in vars(module)} | set(globals())
    for key, reason in backend.unsupported.items():
        name, _, rest = key.partition("[")
        assert name in known or (name.startswith("test_") and name in tests), f"`unsupported` names {key!r}: no check"
        assert not rest or rest.endswith("]"), f"`unsupported` names {key!r}: no check"
        assert isinstance(reason, str)
        assert reason.strip(), f"`unsupported` gives no reason for {key!r}"


# ---------------------------------------------------------------------- indexing

KEYS: dict[str, Any] = {
    "integer": 1, "negative": -1, "integers": (1, 2), "slice": slice(1, None),
    "step": (slice(None), slice(None, None, 2)),
    "reversed": (slice(None), slice(None, None, -1)), "none": (None, 1), "ellipsis": (..., 1), "all": ...,
    "empty tuple": (), "nothing": slice(0, 0), "array": np.array([2, 0, 2]), "table": np.array([[0, 1], [2, -1]]),
    "two arrays": (np.array([0, 2]), np.array([1, 3])), "broadcast": (np.array([[0], [2]]), np.array([1, 3])),
    "array and slice": (slice(None), np.array([3, 0])), "array and integer": (np.array([2, 0]), 1),
    "no elements": np.array([], np.int64), "narrow": np.array([2, 0], np.int32),
    "mask": np.arange(12).reshape(3, 4) % 3 == 0, "rows": np.array([True, False, True]),
}  # fmt: skip


def _on(backend: Backend, key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_on(backend, k) for k in key)
    return backend.from_host(key) if isinstance(key, np.ndarray) else key


@about("getitem")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("title", KEYS)
def test_getitem(backend: Backend, title: str, layout: str) -> None:
    """Every kind of key in the contract."""
    x = np.arange(12, dtype="float32").reshape(3, 4)
    placed = Placed(backend, [x], layout)
    found = backend.getitem(placed.arguments[0], _on(backend, full_key(KEYS[title])))
    assert_agree(title, backend.to_host(found), x[full_key(KEYS[title])])
    placed.check_unchanged(title)


@about("setitem")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("title", KEYS)
def test_setitem(backend: Backend, title: str, layout: str) -> None:
    """Every kind of key in the contract, with an array, an array that is broadcast, and a number."""
    x = np.arange(12, dtype="float32").reshape(3, 4)
    key: Any = full_key(KEYS[title])
    several = [np.asarray(-1.0 - np.arange(x[key].size, dtype="float32").reshape(x[key].shape))]
    if title in ("array", "table"):  # of two values for one element, either may win
        several = []
    for values in (*several, np.asarray(-5.0, "float32"), -7.0):
        expected = x.copy()
        expected[key] = values
        placed = Placed(backend, [x], layout)
        moved = backend.from_host(values) if isinstance(values, np.ndarray) else values
        backend.setitem(placed.arguments[0], _on(backend, key), moved)
        assert_agree(title, backend.to_host(placed.arguments[0]), expected)
        placed.check_unchanged(title, changes=[0])


WAYS: dict[str, Any] = {"rows": (slice(1, None), ...), "columns": (..., slice(1, 3)), "row": (0, ...), "whole": ...}


@about("getitem")
@pytest.mark.parametrize("way", WAYS)
def test_a_slice_is_a_view(backend: Backend, way: str) -> None:
    """Assigning to a slice changes the array."""
    x, expected = backend.from_host(np.zeros((3, 4), "float32")), np.zeros((3, 4), "float32")
    backend.setitem(backend.getitem(x, WAYS[way]), ..., 1.0)
    expected[WAYS[way]] = 1.0
    assert_agree(way, backend.to_host(x), expected)
