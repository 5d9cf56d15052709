"""Devices by name, the registry of backends, and tensors on two devices at once.

The second device here, `lab`, wraps NumPy in an array type that refuses plain NumPy arrays: an array that gets from one
device to the other by mistake, in a rule, a sum or a gradient, raises an error.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import require, require_gpu

import gradflow as gf
from gradflow.backend import ARRAY_FUNCTIONS, Backend, Diagnosis, MemoryStats, discovery, registry
from gradflow.dtypes import DTYPES

ROOT = Path(__file__).resolve().parent.parent


class LabArray(np.ndarray):
    """An array that operates only with arrays of its own type and with numbers."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        outs = options.pop("out", ())
        for x in (*inputs, *outs):
            if type(x) is np.ndarray and x.ndim:
                raise TypeError(f"{ufunc.__name__}: an array of the cpu on the lab device")
        if outs:
            options["out"] = tuple(plain(o) for o in outs)
        return lab(getattr(ufunc, method)(*[plain(x) for x in inputs], **options))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if any(t is np.ndarray for t in types):
            raise TypeError(f"{function.__name__}: an array of the cpu on the lab device")
        return lab(function(*tree(args), **tree(kwargs)))


def plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, LabArray) else x


def lab(x: Any) -> Any:
    return np.asarray(x).view(LabArray) if isinstance(x, (np.ndarray, np.generic)) else x


def tree(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return type(x)(tree(i) for i in x)
    return {k: tree(v) for k, v in x.items()} if isinstance(x, dict) else plain(x)


class LabNamespace:
    """The Array-API functions: NumPy's, with results of the device's own type."""

    def __getattr__(self, name: str) -> Any:
        if name in DTYPES:
            return getattr(np, name)
        function = getattr(np, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            for x in args:
                if type(x) is np.ndarray and x.ndim and name != "asarray":
                    raise TypeError(f"{name}: an array of the cpu on the lab device")
            return lab(function(*tree(args), **tree(kwargs)))

        return staticmethod(call).__func__


class LabBackend(Backend):
    name = "lab"

    def __init__(self, index: int = 0) -> None:
        super().__init__(LabNamespace(), index)

    @classmethod
    def device_count(cls) -> int:
        return 2

    @classmethod
    def diagnose(cls) -> Diagnosis:
        return Diagnosis(True, "the lab is open")

    def to_host(self, array: Any) -> Any:
        assert isinstance(array, LabArray), f"to_host of the lab got a {type(array).__name__}"
        return np.array(array.view(np.ndarray))

    def from_host(self, values: Any) -> Any:
        assert not isinstance(values, LabArray)
        return lab(np.array(values))

    def synchronize(self) -> None:
        pass

    def memory_stats(self) -> MemoryStats:
        return MemoryStats(0, None, 0)


@pytest.fixture
def second_device() -> Iterator[str]:
    gf.register_backend("lab", LabBackend)
    yield "lab"
    registry.unregister_backend("lab")


# ---------------------------------------------------------------------- names


def test_names_of_devices() -> None:
    assert registry.parse_device("cpu") == gf.Device("cpu", 0)
    assert registry.parse_device("cuda:3") == gf.Device("cuda", 3)
    assert registry.parse_device(gf.Device("cuda", 1)) == gf.Device("cuda", 1)
    assert (str(gf.Device("cpu")), str(gf.Device("cuda")), repr(gf.Device("cuda", 2))) == (
        "cpu", "cuda:0", "Device('cuda:2')",
    )  # fmt: skip
    assert gf.tensor(1.0).device == gf.Device("cpu")


def test_a_device_equals_its_names() -> None:
    device = gf.tensor(1.0).device
    assert device == "cpu"
    assert "cpu" == device == "cpu:0"
    assert device in ("cuda", "cpu")
    assert device != "cuda"
    assert gf.Device("cuda") == "cuda" == gf.Device("cuda:0") == "cuda:0"
    assert gf.Device("cuda", 1) == "cuda:1"
    assert gf.Device("cuda", 1) != "cuda"
    for other in ("", "cuda:", "cpu:x", "auto", None, 0, ("cpu", 0)):
        assert (device == other) is False
        assert (device != other) is True
    by_device = {gf.Device("cuda"): 1, gf.Device("cpu"): 2}
    assert (by_device[gf.Device("cuda", 0)], by_device["cuda:0"], by_device["cpu"]) == (1, 1, 2)  # type: ignore[index]
    assert {str(d) for d in by_device} == set(by_device)


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cuda:-1", "cuda:1:2", "cuda:1.0", "cuda: 1", ""])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a device is .*'cpu', 'cuda' or 'cuda:0'; got '{name}'"):
        gf.zeros(1, device=name)


@pytest.mark.parametrize("name", ["gpu", "CPU", "cud", "mps:0"])
def test_an_unknown_name_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(ValueError, match="cpu, cuda"):
        gf.zeros(1, device=name)


@pytest.mark.parametrize("name", [0, None, 1.5, b"cpu"])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(TypeError, match="a name like 'cpu'"):
        registry.parse_device(name)


def test_a_device_beyond_the_last_is_refused() -> None:
    with pytest.raises(gf.DeviceUnavailableError, match=r"'cpu:1'|there are 1 of type 'cpu'"):
        gf.zeros(1, device=gf.Device("cpu", 1))


# ---------------------------------------------------------------------- diagnosis and choice


def test_the_cpu_is_there_and_first() -> None:
    assert gf.diagnose("cpu").usable
    assert gf.devices()[0] == gf.Device("cpu")
    gf.synchronize("cpu")
    assert set(gf.memory_stats("cpu")) == {"current", "peak", "reserved"}
    assert "cores" in gf.get_backend("cpu").describe()


def test_diagnose_never_raises() -> None:
    for name in ("cpu", "cuda", "nothing", "", "cuda:0", "cpu:0"):
        diagnosis = gf.diagnose(name)
        assert isinstance(diagnosis.usable, bool)
        assert diagnosis.state
        assert str(diagnosis).startswith(diagnosis.state)


def test_a_device_that_cannot_be_used_is_refused_with_the_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(LabBackend):
        @classmethod
        def diagnose(cls) -> Diagnosis:
            return Diagnosis(False, "the lab is closed", "ask for the key")

    monkeypatch.setattr(discovery, "_registered", {"lab": Closed})
    with pytest.raises(gf.DeviceUnavailableError, match="'lab:0' cannot be used: the lab is closed; ask for the key"):
        gf.zeros(1, device="lab")
    assert all(d.type != "lab" for d in gf.devices())


def test_cuda_never_falls_back() -> None:
    diagnosis = gf.diagnose("cuda")
    if diagnosis.usable:
        assert gf.zeros(1, device="cuda").device.type == "cuda"
    else:
        with pytest.raises(gf.DeviceUnavailableError) as caught:
            gf.zeros(1, device="cuda")
        assert diagnosis.state in str(caught.value)


def test_auto_takes_what_the_environment_names(monkeypatch: pytest.MonkeyPatch, second_device: str) -> None:
    monkeypatch.setenv("GRADFLOW_DEVICE", "lab:1")
    device, reason = gf.choose_device()
    assert device == gf.Device("lab", 1)
    assert "GRADFLOW_DEVICE" in reason
    with gf.use_device("auto"):
        assert gf.current_device() == gf.Device("lab", 1)


@pytest.mark.parametrize(
    ("named", "kind", "problem"),
    [
        ("nonsense", ValueError, "unknown device 'nonsense'; there are cpu, cuda"),
        ("lab:x", ValueError, "a device is a name like .*; got 'lab:x'"),
        ("lab:2", gf.DeviceUnavailableError, "device 'lab:2' does not exist: there are 2"),
    ],
)
def test_what_the_environment_names_wrongly_is_said_to_be_its(
    monkeypatch: pytest.MonkeyPatch, second_device: str, named: str, kind: type[Exception], problem: str
) -> None:
    monkeypatch.setenv("GRADFLOW_DEVICE", named)
    with pytest.raises(kind, match=f"auto selects the device of GRADFLOW_DEVICE: {problem}"):
        gf.zeros(1, device="auto")


@pytest.mark.parametrize(("usable", "expected"), [(True, "cuda"), (False, "cpu")])
@pytest.mark.parametrize("named", ["", "auto"])
def test_auto_without_a_name_takes_cuda_if_it_works(
    monkeypatch: pytest.MonkeyPatch, usable: bool, expected: str, named: str, second_device: str
) -> None:
    monkeypatch.setenv("GRADFLOW_DEVICE", named)
    monkeypatch.setattr(registry, "diagnose", lambda prefix: Diagnosis(usable, f"the state of {prefix}"))
    device, reason = gf.choose_device()
    assert device == gf.Device(expected), "a third party's backend is chosen by name only"
    assert "the state of cuda" in reason


def test_the_environment_does_not_move_new_tensors_by_itself() -> None:
    code = "import gradflow as gf; print(gf.zeros(1).device, gf.choose_device()[0])"
    environment = {**os.environ, "GRADFLOW_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["cpu", "cpu"]
    environment["GRADFLOW_DEVICE"] = "nothing"
    code = "import gradflow as gf; gf.zeros(1); gf.zeros(1, device='auto')"
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert out.returncode == 1
    assert "unknown device 'nothing'" in out.stderr


def test_use_device_nests_and_restores(second_device: str) -> None:
    assert gf.current_device() == gf.Device("cpu")
    with gf.use_device("lab") as outer:
        assert outer == gf.Device("lab")
        assert gf.zeros(1).device == outer
        with gf.use_device("cpu"):
            assert gf.zeros(1).device == gf.Device("cpu")
            with gf.use_device("lab:1"):
                assert gf.tensor([1.0]).device == gf.Device("lab", 1)
        assert gf.random.normal(1).device == outer
        assert gf.zeros(1, device="cpu").device == gf.Device("cpu")
    assert gf.current_device() == gf.Device("cpu")
    with pytest.raises(KeyError), gf.use_device("lab"):
        raise KeyError
    assert gf.current_device() == gf.Device("cpu")
    with pytest.raises(ValueError), gf.use_device("nothing"):
        pass
    assert gf.current_device() == gf.Device("cpu")


# ---------------------------------------------------------------------- two devices


def test_mixing_devices_is_refused_with_everything_one_needs_to_know(second_device: str) -> None:
    a, b = gf.ones((2, 3)), gf.ones(3, dtype="float64", device="lab")
    message = r"add got tensors .*\(2, 3\) float32 on cpu, \(3,\) float64 on lab:0.*\.to\('cpu'\)"
    with pytest.raises(gf.DeviceMismatchError, match=message):
        a + b
    i = gf.tensor(np.array([0]), device="lab")
    calls: dict[str, Any] = {
        "matmul": lambda: a @ b,
        "maximum": lambda: gf.maximum(a, b),
        "less": lambda: a < b,
        "where": lambda: gf.where(a > 0, a, b),
        "concat": lambda: gf.concat([a, gf.ones((2, 3), device="lab")]),
        "indexing": lambda: a[i],
        "take_along_axis": lambda: gf.take_along_axis(a, i, axis=0),
        "linear": lambda: gf.linear(a, gf.ones((2, 3), device="lab")),
        "layer_norm": lambda: gf.layer_norm(a, (3,), gf.ones(3, device="lab")),
        "mse_loss": lambda: gf.mse_loss(a, gf.ones((2, 3), device="lab")),
        "cross_entropy": lambda: gf.cross_entropy(a, gf.tensor(np.array([0, 1]), device="lab")),
        "nll_loss": lambda: gf.nll_loss(a, gf.tensor(np.array([0, 1]), device="lab")),
        "binary_cross_entropy_with_logits": lambda: gf.binary_cross_entropy_with_logits(
            a, a, weight=gf.ones(3, device="lab")
        ),
        "item assignment": lambda: a.__setitem__(0, gf.ones(3, device="lab")),
    }
    for name, call in calls.items():
        with pytest.raises(gf.DeviceMismatchError, match="on different devices") as caught:
            call()
        assert "lab:0" in str(caught.value), name


def test_two_devices_of_one_backend_do_not_mix(second_device: str) -> None:
    with pytest.raises(gf.DeviceMismatchError, match=r"lab:0, .* on lab:1"):
        gf.ones(1, device="lab:0") + gf.ones(1, device="lab:1")


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_travel_back_between_devices(second_device: str, create_graph: bool) -> None:
    """In both directions, with gradients from both devices for one tensor, and with broadcasts and casts."""
    x = gf.tensor(np.array([[1.0, 2.0, 3.0]]), requires_grad=True)
    w = gf.tensor(np.array([2.0, 3.0, 4.0], "float32"), device="lab", requires_grad=True)
    there = x.to("lab")
    assert there.device == gf.Device("lab")
    assert x.to("cpu") is x
    y = there * w + there
    back = y.to("cpu") * x + x
    (back * back).sum().backward(create_graph=create_graph)
    assert isinstance(w.grad.array, LabArray)
    assert w.grad.device == gf.Device("lab")
    assert w.grad.dtype == gf.float32
    assert not isinstance(x.grad.array, LabArray)
    values, weights = np.array([[1.0, 2.0, 3.0]]), np.array([2.0, 3.0, 4.0])
    z = values**2 * (weights + 1) + values
    np.testing.assert_allclose(x.grad.detach().numpy(), 2 * z * (2 * values * (weights + 1) + 1), rtol=1e-12)
    np.testing.assert_allclose(w.grad.detach().numpy(), (2 * z * values**2)[0], rtol=1e-6)
    if create_graph:
        first = x.grad
        x.zero_grad()
        w.zero_grad()
        first.sum().backward()
        slope = 2 * values * (weights + 1) + 1
        np.testing.assert_allclose(x.grad.numpy(), 2 * slope**2 + 4 * z * (weights + 1), rtol=1e-12)


def test_moving_a_gradient_gives_each_leaf_one_on_its_own_device(second_device: str) -> None:
    x = gf.ones((2, 2), device="lab", requires_grad=True)
    x.cpu().backward(gf.ones((2, 2)))
    x.cpu().T.backward(gf.ones((2, 2)))
    assert isinstance(x.grad.array, LabArray)
    assert x.grad.cpu().tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_nothing_turns_into_numpy_by_itself(second_device: str) -> None:
    x = gf.ones(2, device="lab")
    with pytest.raises(TypeError, match=r"lab:0 .* use \.cpu\(\)\.numpy\(\)"):
        np.asarray(x)
    with pytest.raises(IndexError, match=r"gradflow\.tensor\(index, device='lab:0'\)"):
        x[np.array([0])]
    assert x.numpy().tolist() == [1.0, 1.0]
    assert repr(x) == "tensor([1., 1.], dtype=float32, device=lab:0)"
    assert x.to("cpu").device == gf.Device("cpu")
    assert x.to("float64").dtype == gf.float64
    y = gf.zeros(2)
    y.copy_(x)
    assert y.tolist() == [1.0, 1.0]


def test_pinning_for_a_device_without_pinned_memory_is_nothing(second_device: str) -> None:
    x = gf.tensor([1.0, 2.0])
    for device in ("cpu", "lab"):
        assert x.pin_memory(device) is x
        moved = x.to(device, non_blocking=True)
        assert moved.device == gf.Device(device)
        assert moved.tolist() == [1.0, 2.0]
    assert x.to("lab").to("cpu", non_blocking=True).tolist() == [1.0, 2.0]
    assert gf.free_memory("lab") == 0


def test_what_cannot_be_pinned(second_device: str) -> None:
    with pytest.raises(RuntimeError, match=r"on lab:0: use \.cpu\(\) first"):
        gf.ones(2, device="lab").pin_memory("cpu")
    with pytest.raises(RuntimeError, match=r"\.detach\(\) first"):
        gf.ones(2, requires_grad=True).pin_memory("cpu")
    if not gf.diagnose("cuda").usable:
        with pytest.raises(gf.DeviceUnavailableError, match="'cuda:0' cannot be used"):
            gf.ones(2).pin_memory()


@pytest.mark.gpu
def test_pinned_memory_on_a_gpu() -> None:
    require_gpu()
    buffer = gf.zeros((64, 3)).pin_memory()
    for value in (1.0, 2.0, 3.0):
        buffer.copy_(gf.full((64, 3), value))
        moved = buffer.to("cuda", non_blocking=True)
        gf.synchronize("cuda")
        assert moved.sum().item() == 192 * value
    backend = gf.get_backend("cuda")
    assert backend._is_pinned(buffer.array)
    assert not backend._is_pinned(gf.zeros((64, 3)).array)
    del moved
    assert gf.free_memory("cuda") >= 0


@pytest.mark.parametrize("non_blocking", [False, True])
def test_a_copy_on_another_device_shares_nothing(second_device: str, non_blocking: bool) -> None:
    x = gf.tensor([1.0, 2.0])
    moved = x.to("lab", non_blocking=non_blocking)
    with gf.no_grad():
        x += 1
    assert moved.tolist() == [1.0, 2.0]


FREE = """
import numpy as np, gradflow as gf
keep = [np.ones(2000) for _ in range(4000)]  # 64 MB in small pieces
last = np.ones(2000)
del keep
before = gf.memory_stats("cpu")["current"]
freed = gf.free_memory("cpu")
print(before, freed, gf.memory_stats("cpu")["current"], last.sum())
"""


def test_memory_that_was_freed_goes_back() -> None:
    """glibc keeps freed blocks below one in use until `malloc_trim`. With other C libraries, the result is 0."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "backends")))}
    out = subprocess.run([sys.executable, "-c", FREE], env=environment, capture_output=True, text=True, check=True)
    before, freed, after, total = (float(word) for word in out.stdout.split())
    assert total == 2000
    if platform.libc_ver()[0] == "glibc" and before:
        assert 32e6 < freed < 80e6
        assert after <= before - 32e6
    else:
        assert freed >= 0


def test_events_and_streams_of_a_device_without_them() -> None:
    backend = gf.get_backend("cpu")
    with backend.stream():
        first, last = backend.event(), backend.event()
        first.record()
        with pytest.raises(RuntimeError, match="both events must be recorded"):
            last.seconds_since(first)
        with pytest.raises(RuntimeError, match="both events must be recorded"):
            first.seconds_since(last)
        last.record()
        assert last.seconds_since(first) >= 0
        assert first.seconds_since(last) <= 0


@pytest.mark.gpu
def test_events_and_streams_on_a_gpu() -> None:
    require_gpu()
    backend = gf.get_backend("cuda")
    x = gf.ones((1024, 1024), device="cuda")
    first, last = backend.event(), backend.event()
    with backend.stream():
        first.record()
        y = x @ x
        last.record()
    assert last.seconds_since(first) > 0
    assert y.sum().item() == 1024.0**3


def test_pickled_tensors_come_back_to_their_device(second_device: str) -> None:
    import copy
    import pickle

    x = gf.ones(2, device="lab:1", requires_grad=True)
    for y in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert y.device == gf.Device("lab", 1)
        assert isinstance(y.array, LabArray)


def test_a_model_trains_on_a_backend_of_composed_kernels(second_device: str) -> None:
    """Every array of a training step keeps the device's type, and the numbers equal those of the CPU."""

    def train(device: str) -> list[float]:
        gf.manual_seed(0)
        with gf.use_device(device):
            w1 = gf.random.normal((8, 4)).requires_grad_()
            b1 = gf.zeros(8, requires_grad=True)
            w2 = gf.random.normal((3, 8)).requires_grad_()
            x, t = gf.random.normal((6, 4)), gf.tensor(np.array([0, 1, 2, 0, 1, 2]))
            losses = []
            for _ in range(5):
                h = gf.layer_norm(gf.dropout(gf.linear(x, w1, b1, activation="gelu"), 0.2), (8,))
                loss = gf.cross_entropy(gf.linear(h, w2), t)
                losses.append(loss.item())
                for p in (w1, b1, w2):
                    p.zero_grad()
                loss.backward()
                with gf.no_grad():
                    for p in (w1, b1, w2):
                        p -= p.grad * 0.1
        return losses

    np.testing.assert_allclose(train("lab"), train("cpu"), rtol=1e-5)


# ---------------------------------------------------------------------- plug-ins


def test_a_backend_of_a_namespace_and_the_services_needs_nothing_else() -> None:
    require("strict")
    assert set(gf.get_backend("strict").kernels().values()) == {"composed"}
    with gf.use_device("strict"):
        x = gf.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        loss = (gf.sigmoid(x @ x.T) * gf.softmax(x) + x[0] ** 2).mean()
        loss.backward()
    reference = gf.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    (gf.sigmoid(reference @ reference.T) * gf.softmax(reference) + reference[0] ** 2).mean().backward()
    np.testing.assert_allclose(x.grad.numpy(), reference.grad.numpy(), rtol=1e-5)


def test_a_backend_that_lacks_functions_names_them() -> None:
    class Poor:
        def __getattr__(self, name: str) -> Any:
            if name in ("matmul", "expm1"):
                raise AttributeError(name)
            return getattr(np, name)

    class PoorBackend(LabBackend):
        name = "poor"

        def __init__(self, index: int = 0) -> None:
            Backend.__init__(self, Poor(), index)

    with pytest.raises(NotImplementedError, match="backend 'poor' lacks required array functions: expm1, matmul"):
        PoorBackend()


def test_a_backend_that_lacks_a_service_cannot_be_made() -> None:
    class Half(Backend):
        name = "half"

    with pytest.raises(TypeError, match=r"from_host.*to_host"):
        Half(np)  # type: ignore[abstract]


def test_a_function_that_no_backend_has_is_named() -> None:
    with pytest.raises(AttributeError, match="backend 'cpu' has no function 'einsum_of_doom'"):
        _ = gf.get_backend("cpu").einsum_of_doom


@pytest.mark.parametrize("prefix", ["cpu", "cuda", "auto", "a b", "x:0", ""])
def test_a_prefix_that_is_taken_or_no_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="identifier other than"):
        gf.register_backend(prefix, LabBackend)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        (3, "derived from gradflow.backend.Backend; it is of type int"),
        (gf.Device, "derived from gradflow.backend.Backend; it is the class Device"),
        (type("Half", (Backend,), {"name": "half"}), "the backend Half lacks required services: .*memory_stats"),
    ],
)
def test_only_a_complete_backend_class_is_registered(backend: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        gf.register_backend("half", backend)
    assert "half" not in discovery.backend_prefixes()


def test_every_array_function_is_numpys_own() -> None:
    assert [n for n in ARRAY_FUNCTIONS if not hasattr(np, n)] == []


def test_a_backend_is_registered_under_its_own_name() -> None:
    with pytest.raises(ValueError, match="devices, 'laboratory'; it is 'cpu': set name = \"laboratory\""):
        gf.register_backend("laboratory", type(gf.get_backend("cpu")))
    assert "laboratory" not in discovery.backend_prefixes()
