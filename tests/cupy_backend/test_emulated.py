"""The whole CuPy backend on an emulated CuPy (`emulated_cupy.py`), without a GPU.

Array functions compared with NumPy's backend, services, every operation with first and second derivatives, and a short
training run. This tests the backend's Python: names, shapes, arguments, fallbacks, devices.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import emulated_cupy
import numpy as np
import pytest
from cases import CASES
from emulated_device import EmulatedBackend, agree, needs_compiler, numbers
from gradflow_cupy import CupyBackend, kernels
from gradflow_cupy.backend import _SERVICES
from gradflow_cupy.linear import PRODUCTS
from test_operations import differentiate

import gradflow as gf
from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Device
from gradflow.backend import registry as device_module

pytestmark = needs_compiler

# ------------------------------------------------------------------ array functions

X, Y = numbers((3, 4)), numbers((3, 4), seed=1)
INTEGERS, INDICES = np.arange(-6, 6).reshape(3, 4), np.arange(12).reshape(3, 4) % 4
U = np.array([1, 2**63, 2**64 - 1], np.uint64)

CALLS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "asarray": [((X,), {}), ((X,), {"dtype": np.float64})],
    "empty": [], "zeros": [((3, 4),)], "ones": [((3,),)],
    "full": [((), 2**64 - 1, {"dtype": np.uint64}), ((2,), 0.5, {"dtype": np.float32})],
    "arange": [(5, {"dtype": np.int64}), (1, 8, 2, {"dtype": np.float32})],
    "zeros_like": [(X,)], "ones_like": [(INTEGERS,)],
    "astype": [(X, np.float64), (INTEGERS, np.float32, {"copy": False}), (X > 0, np.float32)],
    "clip": [(X, -0.5, 0.5), (X, None, 0.5), (X, {"min": 0.0})],
    "pow": [(np.abs(X), 2.0), (2.0, X), (np.abs(X), Y)],
    "where": [(X > 0, X, 0.0), (X > 0, 1.0, Y), (X > 0, X, Y)],
    "sum": [(X,), (X, {"axis": 0}), (X, {"axis": (0, 1), "keepdims": True}), (INTEGERS.astype(np.int32),),
            (X[0, 0:1],), (X > 0,)],
    "var": [(X, {"axis": (0,), "correction": 1.0}), (X, {"axis": None, "keepdims": True})],
    "std": [(X, {"axis": (1,), "correction": 0.5, "keepdims": True})],
    "any": [(X > 0, {"axis": None, "keepdims": False}), (INTEGERS, {"axis": (0, 1)})],
    "all": [(X > 0, {"axis": 0, "keepdims": True})],
    "argmax": [(X, {"axis": None, "keepdims": False}), (X, {"axis": 1, "keepdims": True})],
    "argmin": [(X, {"axis": 0, "keepdims": False})],
    "cumulative_sum": [(X, {"axis": 1}), (INTEGERS, {"axis": 0})],
    "argsort": [(INDICES, {"axis": 1}), (INDICES, {"axis": 0, "descending": True, "stable": True}),
                (U, {"axis": -1, "stable": True})],
    "reshape": [(X, (4, 3)), (X, (-1,)), (X, {"shape": (2, 6)})],
    "broadcast_to": [(X[0], (2, 4)), (X[0], {"shape": (2, 4)})],
    "permute_dims": [(X, (1, 0)), (X, {"axes": (1, 0)})], "matrix_transpose": [(X,)],
    "squeeze": [(X[:, :1], {"axis": (1,)}), (X[:, :1], {"axis": 1})],
    "expand_dims": [(X, {"axis": -1})], "concat": [([X, Y], {"axis": -1})], "stack": [([X, Y], {"axis": -1})],
    "flip": [(X, {"axis": (0, 1)}), (X, {"axis": 0})],
    "take_along_axis": [(X, INDICES[:, :2], {"axis": 1})],
    "matmul": [(X, Y.T), (X[None], Y.T), (np.ones((0, 3), np.float32), X), (X[:, :0], Y[:0])],
    "log2": [(np.abs(X),)], "log10": [(np.abs(X),)], "asin": [(np.tanh(X),)], "acos": [(np.tanh(X),)],
    "floor_divide": [(X, Y), (X, 0.5), (0.5, X)], "remainder": [(X, Y), (X, 0.5)], "atan2": [(X, Y), (X, 0.5)],
    "log": [(np.abs(X),)], "log1p": [(np.abs(X),)], "sqrt": [(np.abs(X),)],
    "logical_and": [(X > 0, Y > 0)], "logical_or": [(X > 0, Y > 0)], "logical_not": [(X > 0,)],
    "bitwise_and": [(U, U[:1])], "bitwise_xor": [(U, U[:1])],
    "bitwise_right_shift": [(U, U[:1])],
}  # fmt: skip
for _name in ("max", "min", "mean", "prod"):
    CALLS[_name] = [
        (X,),
        (X, {"axis": 0}),
        (X, {"axis": (0, 1), "keepdims": True}),
        (X[0, 0].reshape(()), {"axis": ()}),
    ]
for _name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "equal", "not_equal", "less", "less_equal",
              "greater", "greater_equal"):  # fmt: skip
    CALLS[_name] = [(X, Y), (X, 0.5), (0.5, X), (X, Y[0])]
for _name in ARRAY_FUNCTIONS:
    CALLS.setdefault(_name, [(X,)])


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_array_function(backend: Any, reference: Any, name: str) -> None:
    for call in CALLS[name]:
        options = call[-1] if isinstance(call[-1], dict) else {}
        arguments = [a for a in call if a is not options]
        if name == "asarray":
            arguments, options = list(call[0]), call[1]

        def move(a: Any) -> Any:
            return (
                [move(b) for b in a]
                if isinstance(a, list)
                else backend.from_host(a)
                if isinstance(a, np.ndarray)
                else a
            )

        expected = np.asarray(getattr(reference, name)(*arguments, **options))
        actual = getattr(backend, name)(*[move(a) for a in arguments], **options)
        assert isinstance(actual, emulated_cupy.ndarray)
        agree(backend, actual, expected, 4)


def test_copies_are_in_c_order(backend: Any) -> None:
    x = backend.from_host(numbers((3, 4)))
    for source in (x.T, backend.broadcast_to(x[:1], (3, 4)), x[:, ::2]):
        assert backend.copy(source).flags.c_contiguous
        assert backend.astype(source, np.float64).flags.c_contiguous
        assert backend.to_host(source).flags.c_contiguous


def test_bfloat16_is_there_with_ml_dtypes(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.supports("float16")
    assert not backend.supports("complex64")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert not CupyBackend(0).supports("bfloat16")


# ------------------------------------------------------------------ services


COMPOSED = {"logsumexp", "move_statistics", "put", "scatter_add_along_axis"}


def test_which_kernels_are_native(backend: Any) -> None:
    composed = {name for name, how in backend.kernels().items() if how == "composed"}
    assert composed == COMPOSED


def test_kernels_can_be_turned_off(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_FUSED", "0")
    plain = EmulatedBackend(0)
    assert set(plain.kernels().values()) == {"composed"}
    out = plain.random_bits(2**127 + 1, 2**64 - 2, 9)
    assert np.array_equal(plain.to_host(out), np.random.Philox(key=2**127 + 1, counter=2**64 - 2).random_raw(9))


def test_services(backend: Any) -> None:
    assert "EMULATED" in backend.describe()
    assert backend.memory_stats() == (1000, None, 4096)  # nothing counted yet
    backend.empty((1000,), dtype=backend.dtypes["float32"])
    assert backend.memory_stats() == (1000, 5000, 4096)
    with backend.stream() as stream:
        assert stream.waited_for
    first, last = backend.event(), backend.event()
    with pytest.raises(RuntimeError, match="recorded"):
        last.seconds_since(first)
    first.record()
    last.record()
    assert last.seconds_since(first) >= 0
    source = numbers((3, 4))
    array = backend.from_host(source)
    source[:] = 0
    assert backend.to_host(array).any()
    backend.synchronize()


def test_the_pool_gives_back_what_it_keeps(backend: Any) -> None:
    assert backend.memory_stats().reserved == 4096
    assert gf.free_memory("emulated") == 3096
    assert backend.memory_stats().reserved == 1000
    assert emulated_cupy.State.pinned_pool_freed, "the pool of page-locked memory, too"
    assert gf.free_memory("emulated") == 0


def test_streams_wait_for_each_other(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner stream waits for earlier work of the outer one, the outer then for the inner, also after an error."""
    stream = emulated_cupy.get_current_stream()
    recorded: list[Any] = []
    original = type(stream).record
    monkeypatch.setattr(type(stream), "record", lambda self: (recorded.append(self), original(self))[1])
    before = len(stream.waited_for)
    with contextlib.suppress(KeyError), backend.stream() as inner:
        assert emulated_cupy.get_current_stream() is inner
        assert inner is not stream
        assert recorded == [stream]
        assert len(inner.waited_for) == 1
        raise KeyError
    assert emulated_cupy.get_current_stream() is stream
    assert recorded == [stream, inner]
    assert len(stream.waited_for) == before + 1


def test_streams_are_used_again(backend: Any) -> None:
    """CuPy's pool has a separate arena for each stream; nested streams differ."""
    with backend.stream() as first, backend.stream() as second:
        assert first is not second
    made = emulated_cupy.State.made_streams
    for _ in range(5):
        with backend.stream() as again, backend.stream() as other:
            assert {id(again), id(other)} == {id(first), id(second)}
    assert emulated_cupy.State.made_streams == made


def test_another_thread_may_take_the_last_stream(backend: Any) -> None:
    """Between the question whether there is one, and taking it."""

    class Emptied(list[Any]):
        def __len__(self) -> int:
            return 1

    backend._streams = Emptied()
    with backend.stream() as stream:
        assert emulated_cupy.get_current_stream() is stream


def test_the_seed_is_there_for_every_stream(backend: Any) -> None:
    """The device has made it before another stream can read it. Nothing else is waited for, and that once."""
    waits, values = emulated_cupy.State.synchronizations, backend.pin(np.arange(3.0))
    with backend.stream():
        later = backend.from_host_later(values)
        seed = backend.seed(backend.single)
    assert emulated_cupy.State.synchronizations == waits + 1
    assert not emulated_cupy.State.in_flight[-1].made
    with backend.stream():
        assert backend.seed(backend.single) is seed
    assert emulated_cupy.State.synchronizations == waits + 1
    assert backend.to_host(seed) == 1
    assert backend.to_host(later).tolist() == [0, 1, 2]


def test_two_objects_of_a_device_count_their_memory(cupy: Any) -> None:
    first, second = EmulatedBackend(0), EmulatedBackend(0)
    assert first.memory_stats().peak is None
    assert second.memory_stats().peak is None
    first.empty((1000,), dtype=first.dtypes["float32"])
    assert first.memory_stats() == second.memory_stats() == (1000, 5000, 4096)


def test_events_and_streams_of_the_second_device(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events and streams use their own device, whichever is current."""
    monkeypatch.setattr(emulated_cupy.State, "devices", 2)
    first, second = EmulatedBackend(0), EmulatedBackend(1)
    start, end = second.event(), second.event()
    start.record()
    with first.stream(), second.stream() as stream:
        assert stream.device_id == 1
        end.record()
    assert end.seconds_since(start) >= 0
    assert emulated_cupy.State.device == 0
    second.memory_stats()
    first.empty((1000,), dtype=first.dtypes["float32"])
    assert second.memory_stats().peak == 1000
    second.empty((1000,), dtype=first.dtypes["float32"])
    assert second.memory_stats().peak == 5000


# ------------------------------------------------------------------ kernels' arguments


def test_numbers_are_converted_to_the_types_of_a_kernel(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy passes a number of NumPy in its own size: of a float32 for a double, four bytes would be garbage."""
    given: list[Any] = []
    monkeypatch.setattr(emulated_cupy, "host_kernel", lambda name: lambda grid, block, values: given.extend(values))
    x = cupy.zeros((4,), dtype=np.float32)
    for numbers_of in ((np.int64(4), np.int8(1), np.float32(0.5)), (4, True, 0.5), (np.uint8(4), np.bool_(1), 0.5)):
        n, code, parameter = numbers_of
        given.clear()
        kernels.launch("activate", "f", (1,), (32,), x, x, n, code, parameter)
        assert [(type(v), v) for v in given[2:]] == [(int, 4), (int, 1), (float, 0.5)]
    words = [2**64 - 1, np.uint64(2**63), 0, np.int64(7), 1, 2, None]
    given.clear()
    kernels.launch("random_bits", None, (1,), (32,), cupy.zeros((4,), dtype=np.uint64), 4, *words)
    assert given[2:] == words
    assert {type(v) for v in given[2:-1]} == {int}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((2**63, 1, 0.5), OverflowError), ((4, 2**31, 0.5), OverflowError), ((4, 1.0, 0.5), TypeError),
        ((4, 1, None), TypeError), ((4, 1), TypeError), ((4, None, 0.5), TypeError), ((4, 1, 0.5, 1), TypeError),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(cupy: Any, arguments: Any, error: type[Exception]) -> None:
    x = cupy.zeros((4,), dtype=np.float32)
    with pytest.raises(error):
        kernels.launch("activate", "f", (1,), (32,), x, x, *arguments)
    with pytest.raises(AssertionError, match="activate<float>"):
        kernels.launch("activate", "f", (1,), (32,), x, 5, 4, 1, 0.5)


def test_a_kernel_is_for_arrays_of_one_compiled_dtype(cupy: Any) -> None:
    single, double, half = (cupy.zeros((2,), dtype=dtype) for dtype in (np.float32, np.float64, np.float16))
    assert kernels.kernel_dtype(single, None, single) == "f"
    assert kernels.kernel_dtype(double) == "d"
    assert kernels.kernel_dtype(single, double) is None
    assert kernels.kernel_dtype(half, half) is None


def test_every_parameter_of_a_kernel_has_a_known_type() -> None:
    for source, names in kernels.SOURCES.items():
        found = kernels.parameter_types(source)
        assert set(found) == set(names)
        for types in found.values():
            assert all(t.endswith("*") or t in kernels.SCALARS for t in types), types


@pytest.mark.slow
def test_labels_are_cast_once(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step, the backward pass uses the gradient that the forward pass has computed."""
    logits, labels = backend.from_host(numbers((6, 9))), backend.from_host(np.arange(6, dtype=np.int32))
    casts: list[Any] = []
    original = emulated_cupy.ndarray.astype
    monkeypatch.setattr(
        emulated_cupy.ndarray,
        "astype",
        lambda self, dtype, **how: (casts.append(self), original(self, dtype, **how))[1],
    )
    _, residual = backend.softmax_cross_entropy(logits, labels, "mean")
    backend.softmax_cross_entropy_backward(
        backend.seed(backend.single), logits, labels, "mean", residual, [True, False]
    )
    assert [x for x in casts if x is labels] == [labels]


# ------------------------------------------------------------------ moving without waiting


def test_a_pinned_tensor_moves_without_waiting(backend: Any) -> None:
    x = gf.tensor(numbers((3, 4)).T)
    pinned = x.pin_memory("emulated")
    assert pinned.device == gf.Device("cpu")
    assert pinned.array is not x.array
    assert pinned.array.flags.c_contiguous
    assert np.array_equal(pinned.numpy(), x.numpy())
    waits = emulated_cupy.State.synchronizations
    with backend.stream():
        moved = pinned.to("emulated", non_blocking=True)
    (copy,) = emulated_cupy.State.in_flight
    assert copy.source is pinned.array, "no copy before the copy; and CuPy keeps it alive"
    assert emulated_cupy.State.synchronizations == waits
    assert moved.device == gf.Device("emulated")
    assert np.array_equal(moved.numpy(), x.numpy())


@pytest.mark.parametrize("values", [np.ones(3), np.ones(()), np.ones((0, 3)), np.ones((2, 3)).T])
def test_other_tensors_move_as_ever(backend: Any, values: Any) -> None:
    """Memory that is not pinned, or pinned but not contiguous, goes through a copy that CuPy makes first."""
    x = gf.tensor(values)
    for source in (x, x.sum(), x.pin_memory("emulated").T if values.size > 1 else x):
        moved = source.to("emulated", non_blocking=True)
        direct = source.size > 1 and source.array.flags.c_contiguous and source is not x
        assert len(emulated_cupy.State.in_flight) == direct
        assert np.array_equal(moved.numpy(), source.numpy())


@pytest.mark.parametrize("part", [slice(None), slice(1, None)])
def test_a_pinned_buffer_may_be_refilled_after_a_blocking_move(backend: Any, part: slice) -> None:
    """CuPy copies page-locked memory directly and asynchronously, unless told to block."""
    pinned = backend.pin(numbers((4, 3)))
    expected = pinned[part].copy()
    moved = gf.tensor(pinned[part], device="emulated")
    other = gf.tensor(pinned[part]).pin_memory("emulated").to("emulated")
    one = backend.from_host(pinned[0, :1].reshape(()))
    pinned[...] = -1.0
    assert backend.to_host(one) == numbers((4, 3))[0, 0]
    assert np.array_equal(moved.numpy(), expected)
    assert np.array_equal(other.numpy(), expected)


def test_a_move_of_other_memory_does_not_wait(backend: Any) -> None:
    waits = emulated_cupy.State.synchronizations
    gf.tensor(numbers((4, 3)), device="emulated")
    gf.tensor(backend.pin(numbers((3, 4))).T, device="emulated")
    assert emulated_cupy.State.synchronizations == waits


def test_a_buffer_that_is_filled_too_early_is_found(backend: Any) -> None:
    pinned = backend.pin(numbers((4, 3)))
    backend.from_host_later(pinned)
    pinned[0] = 0.0
    with pytest.raises(AssertionError, match="page-locked memory was changed"):
        gf.synchronize("emulated")


def test_a_gradient_comes_back_from_a_tensor_that_moved_without_waiting(backend: Any) -> None:
    x = gf.ones(3, requires_grad=True)
    (x.to("emulated", non_blocking=True) * 2).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 2.0]
    assert x.grad.device == gf.Device("cpu")


@pytest.mark.parametrize("name", [*ARRAY_FUNCTIONS, *KERNELS])
def test_everything_runs_on_its_own_device(cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With two devices, each function is wrapped, and creates its arrays on the backend's device."""
    monkeypatch.setattr(emulated_cupy.State, "devices", 2)
    second = EmulatedBackend(1)
    made_by = dict.fromkeys(PRODUCTS, "cublaslt") | dict.fromkeys(COMPOSED, "composed")
    assert second.kernels() == {name: made_by.get(name, "native") for name in KERNELS}
    array = second.ones((2, 2), dtype=np.float32)
    assert array._device == 1
    assert emulated_cupy.State.device == 0
    function = getattr(second, name)
    assert "on_device" in getattr(function, "__func__", function).__code__.co_name
    if name == "multiply":
        assert function(array, array)._device == 1
        with pytest.raises(AssertionError, match="device"):
            cupy.multiply(array, array)
        assert second.linear(array, array, None, "gelu", 0.0)[0]._device == 1


@pytest.mark.slow
def test_services_run_on_their_own_device(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two devices, of which the first is the current one."""
    monkeypatch.setattr(emulated_cupy.State, "devices", 2)
    second = EmulatedBackend(1)
    x = second.from_host(numbers((3, 4)))
    made = [
        x, second.from_host(np.float32(1.0)), second.from_host_later(second.pin(numbers((3, 4)))), second.copy(x),
        second.getitem(x, second.from_host(np.array([2, 0]))), second.sigmoid(x), second.dropout_factors(x, 0.5, 1, 2),
    ]  # fmt: skip
    second.setitem(x, 0, -0.0)
    second.setitem(x, second.from_host(np.array([2, 0])), second.copy(x)[:2])
    assert second.uint64_works
    found = second.to_host(x)  # whose rows 2 and 0 were set to what 0 and 1 were
    assert np.signbit(found[2]).all()
    assert np.array_equal(found[:2], numbers((3, 4))[[1, 1]])
    for call in (second.synchronize, second.free_memory, second.prepare, second.describe):
        call()
    second.event().record()
    with second.stream():
        made.append(second.copy(x))
    assert {array._device for array in made} == {1}
    assert emulated_cupy.State.device == 0


WITHOUT_ARRAYS = {
    "available_memory", "describe", "device_count", "diagnose", "dtype_name", "find_dtypes", "host_values", "kernels",
    "memory_stats", "num_threads", "prepare", "set_num_threads", "stream", "supports", "synchronize", "sigmoid",
    "dropout_factors", "free_stream", "graph", "named_ranges", "native_dtype", "seed",
}  # fmt: skip
"""The methods that create no array and launch no kernel themselves."""


def test_what_runs_on_its_own_device_is_complete() -> None:
    """A new method either runs with its device as the current one, or is listed as not needing that."""
    public = {name for name in dir(CupyBackend) if not name.startswith("_") and callable(getattr(CupyBackend, name))}
    assert public - {*ARRAY_FUNCTIONS, *KERNELS, *_SERVICES} == WITHOUT_ARRAYS


# ------------------------------------------------------------------ operations and training


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation(backend: Any, case: Any, dtype: str) -> None:
    """Value, first and second derivative of every case equal the CPU's."""
    with np.errstate(all="ignore"):
        expected = differentiate(case, "cpu", dtype)
    gf.manual_seed(0)
    found = differentiate(case, "emulated", dtype)
    for kind in ("values", "first", "second"):
        for a, e in zip(getattr(found, kind), getattr(expected, kind), strict=True):
            assert np.shape(a) == np.shape(e)
            assert np.asarray(a).dtype == np.asarray(e).dtype
            eps = np.finfo(dtype).eps
            assert np.allclose(a, e, rtol=512 * eps, atol=512 * eps * np.abs(e).max(initial=1), equal_nan=True), kind


@pytest.mark.slow
@pytest.mark.parametrize("place", ["emulated", "emulated:1"])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_training(cupy: Any, monkeypatch: pytest.MonkeyPatch, optimizer: str, place: str) -> None:
    """Ten steps of a network with dropout and normalization: the CPU's losses, and nothing goes through the host.

    Only the first step waits, for the seed of its backward pass alone.
    On the second device, too, while the first one is the current one.
    """
    monkeypatch.setattr(emulated_cupy.State, "devices", 1 + Device(place).index)

    def train(device: str) -> tuple[list[Any], list[int]]:
        gf.manual_seed(3)
        with gf.use_device(device):
            model = gf.nn.Sequential(
                gf.nn.Linear(20, 32, activation="gelu"), gf.nn.LayerNorm(32), gf.nn.Dropout(0.2),
                gf.nn.Linear(32, 16, activation="relu"), gf.nn.Linear(16, 4),
            )  # fmt: skip
            step = getattr(gf.optim, optimizer)(model.parameters(), lr=0.001 if optimizer == "RMSprop" else 0.01)
            x, y = gf.random.normal((64, 20)), gf.tensor(np.arange(64) % 4)
            losses, transfers = [], []
            for _ in range(10):
                before = emulated_cupy.State.transfers + emulated_cupy.State.synchronizations
                loss = gf.cross_entropy(model(x), y)
                step.zero_grad()
                loss.backward()
                gf.optim.clip_grad_norm_(model.parameters(), 1.0)
                step.step()
                transfers.append(emulated_cupy.State.transfers + emulated_cupy.State.synchronizations - before)
                losses.append(loss.detach())
            return [loss.item() for loss in losses], transfers

    expected, _ = train("cpu")
    found, transfers = train(place)
    assert transfers == [2] + [0] * 9  # the labels, and a trial of the product with ReLU
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[-1] < found[0]
    assert gf.get_backend(place).device == Device(place)


def test_gradients_of_each_sample(backend: Any) -> None:
    """`vmap` runs the operations and their rules on batches of CuPy's arrays."""

    def gradients(device: str) -> Any:
        w, x = gf.tensor(X, device=device), gf.tensor(Y, device=device)
        loss = gf.grad(lambda w, x: gf.cross_entropy((w @ x)[None], gf.argmax(x)[None] % 3))
        return gf.vmap(loss, (None, 0))(w, x).tolist()

    assert np.allclose(gradients("emulated"), gradients("cpu"), rtol=1e-5, atol=1e-6)


def test_the_stand_in_keeps_to_itself() -> None:
    for name in ("cupy", "cupyx"):
        module = sys.modules.get(name)
        assert module is None or "EMULATED" not in getattr(module, "__version__", "")
    assert "emulated" not in {d.type for d in device_module._backends}
