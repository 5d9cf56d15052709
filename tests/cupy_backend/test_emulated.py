"""The whole CuPy backend on an emulated CuPy (`emulated_cupy.py`): never a GPU run.

Its array functions against NumPy's backend, its services, every operation with both derivatives, and a short training
run. It proves the Python of the backend: names, shapes, arguments, fallbacks, devices.
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
from gradflow_cupy import CupyBackend
from test_operations import differentiate

import gradflow as gf
from gradflow import device as device_module
from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, Device

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


def test_which_kernels_are_native(backend: Any) -> None:
    composed = {name for name, how in backend.kernels().items() if how == "composed"}
    assert composed == {"logsumexp", "scatter_add_along_axis"}


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
    assert emulated_cupy.State.pinned == ["freed"], "the pool of page-locked memory, too"
    assert gf.free_memory("emulated") == 0


def test_streams_wait_for_each_other(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner one for the work before it, the outer one for the inner one's, also after an error."""
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


# ------------------------------------------------------------------ moving without waiting


@pytest.fixture
def sets(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The source and the stream of each copy that goes to the device without a copy before it."""
    found: list[Any] = []
    original = emulated_cupy.ndarray.set

    def listed(self: Any, arr: Any, stream: Any = None) -> None:
        found.append((arr, stream))
        original(self, arr, stream)

    monkeypatch.setattr(emulated_cupy.ndarray, "set", listed)
    return found


def test_a_pinned_tensor_moves_without_waiting(backend: Any, sets: list[Any]) -> None:
    x = gf.tensor(numbers((3, 4)).T)
    pinned = x.pin_memory("emulated")
    assert pinned.device == gf.Device("cpu")
    assert pinned.array is not x.array
    assert pinned.array.flags.c_contiguous
    assert np.array_equal(pinned.numpy(), x.numpy())
    waits = emulated_cupy.State.synchronizations
    with backend.stream() as stream:
        moved = pinned.to("emulated", non_blocking=True)
    ((source, used),) = sets
    assert source is pinned.array, "no copy before the copy"
    assert used is stream, "in the order of the work at hand"
    assert emulated_cupy.State.synchronizations == waits
    assert moved.device == gf.Device("emulated")
    assert np.array_equal(moved.numpy(), x.numpy())


@pytest.mark.parametrize("values", [np.ones(3), np.ones(()), np.ones((0, 3)), np.ones((2, 3)).T])
def test_other_tensors_move_as_ever(backend: Any, sets: list[Any], values: Any) -> None:
    """What is not pinned, and what is and is not contiguous, goes through the copy that CuPy makes first."""
    x = gf.tensor(values)
    for source in (x, x.sum(), x.pin_memory("emulated").T if values.size > 1 else x):
        before = len(sets)
        moved = source.to("emulated", non_blocking=True)
        contiguous_pin = source.array.ctypes.data in emulated_cupy.State.pinned if source.ndim else False
        assert len(sets) - before == int(contiguous_pin and source.array.flags.c_contiguous)
        assert np.array_equal(moved.numpy(), source.numpy())
    y = gf.tensor(values).pin_memory("emulated")
    before = len(sets)
    y.to("emulated")
    assert len(sets) == before, "only when it is asked for"


def test_pinned_memory_lives_until_the_copy_is_over(
    backend: Any, sets: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy would give the memory of a dead array to the next, while the GPU still reads it."""
    import gc
    import weakref

    monkeypatch.setattr(emulated_cupy.State, "events_done", False)

    def move() -> Any:
        pinned = gf.ones(5).pin_memory("emulated")
        pinned.to("emulated", non_blocking=True)
        sets.clear()
        return weakref.ref(pinned.array)

    first, second = move(), move()
    gc.collect()
    assert first() is not None
    assert second() is not None
    monkeypatch.setattr(emulated_cupy.State, "events_done", True)
    third = move()
    gc.collect()
    assert (first(), second()) == (None, None)
    assert third() is not None
    gf.synchronize("emulated")
    gc.collect()
    assert third() is None


def test_a_gradient_comes_back_from_a_tensor_that_moved_without_waiting(backend: Any) -> None:
    x = gf.ones(3, requires_grad=True)
    (x.to("emulated", non_blocking=True) * 2).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0, 2.0]
    assert x.grad.device == gf.Device("cpu")


@pytest.mark.parametrize("name", [*ARRAY_FUNCTIONS, *KERNELS])
def test_everything_runs_on_its_own_device(cupy: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With two devices, each function is wrapped, and its arrays are made on the backend's device."""
    monkeypatch.setattr(emulated_cupy.State, "devices", 2)
    second = EmulatedBackend(1)
    assert second.kernels() == {
        k: ("composed" if k in ("logsumexp", "scatter_add_along_axis") else "native") for k in KERNELS
    }
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


# ------------------------------------------------------------------ operations and training


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operation(backend: Any, case: Any, dtype: str) -> None:
    """Value, first and second derivative of every case: as on the CPU."""
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


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_training(backend: Any, optimizer: str) -> None:
    """Ten steps of a network with dropout and normalisation: the CPU's losses, and nothing goes through the host."""

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
    found, transfers = train("emulated")
    assert transfers == [0] * 10
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[-1] < found[0]
    assert gf.get_backend("emulated").device == Device("emulated", 0)


def test_the_stand_in_keeps_to_itself() -> None:
    for name in ("cupy", "cupyx"):
        module = sys.modules.get(name)
        assert module is None or "EMULATED" not in getattr(module, "__version__", "")
    assert "emulated" not in {d.type for d in device_module._backends}
