"""`gradflow.testing`: comparisons, the fake device, counting of transfers, and training steps without transfers."""

from __future__ import annotations

import contextlib
import operator
import re
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from devices import GPU, require

import gradflow as gf
from gradflow import nn, optim
from gradflow.backend import Backend, discovery, registry
from gradflow.testing import (
    FakeArray,
    FakeBackend,
    SyncError,
    assert_agree,
    compare,
    count_transfers,
    eps,
    forbid_sync,
    product_bound,
    sum_bound,
    ulp_bound,
)
from gradflow.testing.plugin import pytest_configure

# ---------------------------------------------------------------------- agreement


def test_exact_agreement_is_of_values_shape_and_dtype() -> None:
    x = np.float32([1.0, -0.0, np.inf, np.nan])
    assert assert_agree("x", x, x.copy()) == 0.0
    assert assert_agree("x", gf.tensor(x), x) == 0.0
    assert assert_agree("nothing", x[:0], x[:0]) == 0.0
    words = np.array([2**64 - 1, 2**64 - 2], np.uint64)
    assert assert_agree("words", words, words) == 0.0
    for wrong, message in [
        (x.astype("f8"), "x: float64, not float32"),
        (x.reshape(2, 2), r"x: shape \(2, 2\), not \(4,\)"),
        (x + np.float32([0, 1, 0, 0]), r"x: 1 of 4 elements differ; the first at \(1,\): .*, not np.float32\(-0.0\)"),
        (
            np.float32([1, 0, np.inf, 0]),
            r"x: 1 of 4 elements differ; the first at \(3,\): .*the largest error is inf ulp",
        ),
        (np.float32([1, 0, -np.inf, np.nan]), r"x: 1 of 4 elements differ; the first at \(2,\)"),
    ]:
        with pytest.raises(AssertionError, match=message):
            assert_agree("x", wrong, x)
    with pytest.raises(AssertionError, match=r"words: 1 of 2 elements differ; the first at \(1,\)"):
        assert_agree("words", words, np.array([2**64 - 1, 2**64 - 3], np.uint64))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_agreement_in_ulp_counts_numbers_in_between(dtype: str) -> None:
    reference = np.array([1.5, -300.0, 0.0, 1e-7], dtype)
    above = reference
    for steps in range(1, 6):
        above = np.nextafter(above, np.asarray(np.inf, dtype))
        found = compare(above, reference, ulp=4)
        assert (found.ulp, found.share) == (steps, steps / 4)
        assert found.agrees == (steps <= 4)
    with pytest.raises(AssertionError, match=r"x: .* \(5 ulp\), 1.25 times its bound .*; 4 of 4 elements .* is 5 ulp"):
        assert_agree("x", above, reference, ulp=4)
    largest = np.finfo(dtype).max
    assert compare(np.asarray(np.nextafter(largest, largest / 2)), np.asarray(largest), ulp=4).ulp == 1


def test_agreement_by_a_bound_gives_the_share_that_is_used() -> None:
    actual, reference = np.float32([[1.0, 2.0]]), np.array([[1.0, 2.0 + 2.0**-20]])
    assert assert_agree("x", actual, reference, bound=2.0**-19) == 0.5
    assert assert_agree("x", actual, reference, bound=np.array([0.0, 2.0**-20])) == 1.0
    with pytest.raises(AssertionError, match=r"x: np.float32\(2.0\) at \(0, 1\), not .*\(4 ulp\), 2 times its bound"):
        assert_agree("x", actual, reference, bound=2.0**-21)
    with pytest.raises(AssertionError, match="inf times its bound of 0"):
        assert_agree("x", actual, reference, bound=0.0)
    with pytest.raises(TypeError, match="not both"):
        compare(actual, reference, bound=1.0, ulp=1)


@pytest.mark.parametrize("found", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_agrees_with_its_like_alone(found: float) -> None:
    for reference in (np.nan, np.inf, -np.inf, 1.0):
        same = found == reference or (np.isnan(found) and np.isnan(reference))
        for judge in ({"ulp": 4}, {"bound": 1e30}, {"bound": np.inf} if reference == 1.0 and found == 3e38 else {}):
            if judge != {"bound": np.inf}:
                assert compare(np.float32([found]), np.float32([reference]), **judge).agrees == same, judge


MISUSES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no name": (lambda: assert_agree(gf.ones(2), gf.ones(2), 1e-3), TypeError, "name is a str; got Tensor"),  # type: ignore[arg-type]
    "None": (lambda: compare(None, 1.0), TypeError, "all real; got NoneType"),
    "a dict": (lambda: compare({"a": 1.0}, {"a": 1.0}), TypeError, "all real; got dict"),
    "words": (lambda: compare("one", "one"), TypeError, "all real; got str"),
    "complex numbers": (lambda: compare([1j], [2j], ulp=4), TypeError, r"all real; got list \(complex128\)"),
    "a bound in words": (lambda: compare(1.0, 1.0, bound="small"), TypeError, "all real; got str"),
    "a negative bound": (lambda: compare(2.0, 1.0, bound=[-1.0]), ValueError, "a bound is 0 or more; got -1.0"),
    "negative ulp": (lambda: compare(2.0, 1.0, ulp=-1), ValueError, "ulp is 0 or more; got -1"),
    "ulp for each": (lambda: compare([2.0], [1.0], ulp=[4]), TypeError, r"one number for all .*; got \[4\]"),  # type: ignore[arg-type]
    "a bound of another shape": (
        lambda: compare(np.ones(2), np.ones(2), bound=np.ones(3)), ValueError, r"\(3,\), the result has shape \(2,\)",
    ),
    "eps of integers": (lambda: eps("int32"), ValueError, "float16, float32 or float64; got 'int32'"),
    "eps of an unknown dtype": (lambda: eps("nonsense"), ValueError, "float16, float32 or float64; got 'nonsense'"),
    "a device": (lambda: forbid_sync("cpu"), TypeError, "True or False, for all devices: .*; got 'cpu'"),
    "a class": (lambda: forbid_sync(type("Model", (), {})), TypeError, "`with forbid_sync.*; got <class "),
}  # fmt: skip


@pytest.mark.parametrize("what", MISUSES)
def test_a_misuse_is_an_error_that_says_what_is_expected(what: str) -> None:
    call, kind, message = MISUSES[what]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("dtype", ["bool", "int64"])
def test_there_are_no_ulp_between_integers(dtype: str) -> None:
    assert compare(np.ones(2, dtype), [1.0, 1.0], ulp=4).problem == f"{dtype}, which has no ulp"


def test_bounds_are_those_of_the_analysis() -> None:
    a, b = np.ones((2, 3)), np.full((3, 2), -2.0)
    assert np.array_equal(product_bound(a, b), np.full((2, 2), 3 * eps() * 6))
    assert np.array_equal(product_bound(gf.tensor(a), gf.tensor(b), "float64", c=2), np.full((2, 2), 36 * 2.0**-52))
    assert np.array_equal(sum_bound(b, axis=0), np.full(2, 3 * eps() * 6))
    assert np.array_equal(ulp_bound([1.0, -3.0], ulps=2), np.array([2, 4]) * eps())


@pytest.mark.parametrize(
    ("name", "modules", "message"),
    [
        ("nonsense", [], "--gradflow-backend=nonsense: ValueError: unknown device 'nonsense'; there are cpu, "),
        ("fake:7", [], "--gradflow-backend=fake:7: DeviceUnavailableError: device 'fake:7' does not exist"),
        ("fake", ["os", "nothing"], "--gradflow-backend-module=nothing: ModuleNotFoundError: .*type python -m"),
    ],
)
def test_the_conformance_kit_names_the_option_that_is_wrong(name: str, modules: list[str], message: str) -> None:
    options = {"gradflow_backend": name, "gradflow_backend_module": modules}
    config: Any = SimpleNamespace(getoption=lambda option, default=None: options[option])
    with pytest.raises(pytest.UsageError) as caught:
        pytest_configure(config)
    assert re.match(message, str(caught.value))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- the fake device


@pytest.fixture
def fake() -> Iterator[FakeBackend]:
    with gf.use_device("fake"):
        backend = gf.get_backend()
        assert isinstance(backend, FakeBackend)
        yield backend


ASKING: dict[str, Callable[[Any], Any]] = {
    "bool": bool, "float": float, "int": int, "complex": complex, "index": operator.index, "iter": list,
    "array": np.asarray, "contains": lambda x: 1.0 in x,
}  # fmt: skip


@pytest.mark.parametrize("what", ASKING)
def test_a_fake_array_does_not_reveal_its_values(fake: FakeBackend, what: str) -> None:
    for shape in ((), (1,), (2, 3)):
        with pytest.raises(TypeError, match=f"__{what}__ would wait for fake:0 .* explicitly with Backend.to_host"):
            ASKING[what](fake.ones(shape, dtype=fake.dtypes["int64"]))


def test_a_fake_array_offers_no_more_than_the_contract(fake: FakeBackend) -> None:
    x = fake.ones((2, 3))
    assert (x.shape, x.ndim, x.dtype) == ((2, 3), 2, np.float64)
    assert repr(x) == "<FakeArray of shape (2, 3), float64 on fake:0>"
    assert [n for n in dir(x) if not n.startswith("_")] == ["dtype", "ndim", "shape"]
    for ask in (len, hash, np.sum, lambda x: x + np.ones((2, 3)), lambda x: np.ones((2, 3)) + x, lambda x: x.T):
        with pytest.raises((TypeError, AttributeError)):
            ask(x)


def test_arithmetic_indexing_and_assignment_of_fake_arrays(fake: FakeBackend) -> None:
    values = np.arange(1.0, 7.0).reshape(2, 3)
    x, i = fake.from_host(values), fake.from_host(np.array([1, 0, 1]))
    for name in ("add", "sub", "mul", "truediv", "pow", "floordiv", "mod", "eq", "ne", "lt", "le", "gt", "ge"):
        op = getattr(operator, name)
        for a, b in ((x, x), (x, 2.0), (2.0, x)):
            expected = op(*(values if y is x else y for y in (a, b)))
            assert_agree(name, fake.to_host(op(a, b)), expected)
    assert_agree("matmul", fake.to_host(x @ fake.matrix_transpose(x)), values @ values.T)
    assert_agree("rows", fake.to_host(x[i]), values[[1, 0, 1]])
    row = x[1]
    row[...] = row * 10.0  # a view
    row[0] = -1.0
    x[i] = 5.0
    assert_agree("changed", fake.to_host(x), np.full((2, 3), 5.0))
    assert_agree("signs", fake.to_host(abs(-x)), np.full((2, 3), 5.0))


def test_devices_do_not_mix_behind_gradflows_back(fake: FakeBackend) -> None:
    other = gf.get_backend("fake:1")
    with pytest.raises(TypeError, match="an array of fake:1 in an operation on fake:0"):
        fake.add(fake.ones(2), other.ones(2))
    with pytest.raises(TypeError, match="an array of fake:0 in an operation on fake:1"):
        other.to_host(fake.ones(2))
    for value in (np.ones(2), np.float64(1)):
        with pytest.raises(TypeError, match="a value of NumPy in an operation on fake:0"):
            fake.add(fake.ones(2), value)
        with pytest.raises(TypeError, match="goes to fake:0 with from_host"):
            fake.asarray(value)
    with pytest.raises(TypeError, match="to_host of fake:0 got a ndarray"):
        fake.to_host(np.ones(2))


def test_a_fake_device_counts_what_it_does(fake: FakeBackend) -> None:
    def counted(call: Callable[[], Any]) -> dict[str, int]:
        before = dict(vars(fake.counts))
        call()
        return {name: n - before[name] for name, n in vars(fake.counts).items() if n != before[name]}

    x, i = fake.ones((4, 3)), fake.from_host(np.array([0, 1]))
    assert counted(lambda: fake.add(x, 1.0)) == {"launches": 1, "allocations": 1}
    assert counted(lambda: x * x) == {"launches": 1, "allocations": 1}
    assert counted(lambda: fake.reshape(x, (3, 4))) == {"launches": 1}
    assert counted(lambda: x[1:]) == {}
    assert counted(lambda: x[i]) == {"launches": 1, "allocations": 1}
    assert counted(lambda: operator.setitem(x, 0, 1.0)) == {"launches": 1}
    assert counted(lambda: fake.empty((2,))) == {"allocations": 1}
    assert counted(lambda: fake.asarray([1.0])) == {"from_host": 1, "allocations": 1}
    assert counted(lambda: fake.asarray(x)) == {}
    assert counted(lambda: fake.from_host(np.ones(2))) == {"from_host": 1, "allocations": 1}
    assert counted(lambda: fake.to_host(x)) == {"to_host": 1, "synchronizations": 1}
    assert counted(fake.synchronize) == {"synchronizations": 1}


def test_memory_of_a_fake_device(fake: FakeBackend) -> None:
    before = fake.memory_stats().current
    x = fake.zeros((1000,))
    view = fake.reshape(x, (10, 100))[3]
    del x
    assert fake.memory_stats().current - before == 8000, "the view keeps the memory"
    big = fake.zeros((10000,))
    del view, big
    stats = fake.memory_stats()
    assert stats.current == before
    assert stats.peak is not None
    assert stats.peak - before >= 88000


def test_what_was_never_written_is_no_number(fake: FakeBackend) -> None:
    assert np.isnan(fake.to_host(fake.empty((2,), dtype=fake.dtypes["float32"]))).all()


def test_the_kernels_of_the_fake_device_are_the_composed_ones(fake: FakeBackend) -> None:
    assert set(fake.kernels().values()) == {"composed"}
    assert gf.diagnose("fake").usable
    assert "NumPy" in gf.get_backend("fake").describe()
    assert isinstance(gf.ones(2).array, FakeArray)


# ---------------------------------------------------------------------- counting and forbidding

EVERYWHERE = ["cpu", "fake", "strict", "torch", GPU]
every_device = pytest.mark.parametrize("name", EVERYWHERE)


@contextlib.contextmanager
def on(name: str) -> Iterator[None]:
    require(name)
    with gf.use_device(name):
        yield


WAYS: dict[str, Callable[[gf.Tensor], Any]] = {
    "item": lambda x: x[0].item(),
    "numpy": lambda x: x.numpy(),
    "tolist": lambda x: x.tolist(),
    "bool": lambda x: bool(x[0]),
    "if": lambda x: 1 if x[0] > 0 else 2,
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "index": lambda x: operator.index(x[0].astype("int64")),
    "format": lambda x: f"{x[0]:.2f}",
    "print": lambda x: str(x),
    "numbers of an iteration": lambda x: [float(v) for v in x],
    "to": lambda x: x.to("fake:1"),
    "copy_": lambda x: gf.zeros(2, device="fake:1").copy_(x),
    "synchronize": lambda x: gf.synchronize(x.device),
    "events": lambda x: _time_between_events(x.backend),
}
"""Ways to wait for a device. For two numbers, each waits once, except those in `TIMES`."""
TIMES = {"numbers of an iteration": 2, "events": 3}


def _time_between_events(backend: Backend) -> float:
    first, second = backend.event(), backend.event()
    first.record()
    second.record()
    return second.seconds_since(first)


@pytest.mark.parametrize("way", WAYS)
@every_device
def test_each_way_to_wait_is_counted_and_forbidden(name: str, way: str) -> None:
    with on(name):
        x = gf.ones(2)
        with count_transfers() as count:
            WAYS[way](x)
        if (name, way) == ("cpu", "to"):  # no copy: the memory of the CPU is read in place
            assert (count.to_host, count.from_host, count.synchronizations) == (0, 1, 0)
            return
        waits = TIMES.get(way, 1)
        if way == "events":
            assert 1 <= count.synchronizations <= waits
        else:
            assert count.synchronizations == waits
        assert count.to_host == (0 if way in ("synchronize", "events") else waits)
        assert (count.bytes_to_host > 0) == (count.to_host > 0)
        with pytest.raises(SyncError, match=rf"(waits for|from) {x.device}.*test_testing.py, line \d+"), forbid_sync():
            WAYS[way](x)
        WAYS[way](x)  # allowed again


@every_device
def test_what_waits_for_nothing_is_allowed_and_not_counted(name: str) -> None:
    with on(name):
        x, i = gf.ones((3, 2), requires_grad=True), gf.tensor([2, 0], dtype="int64")
        with forbid_sync(), count_transfers() as count:
            y = (x[i] * 2 + x.mean()).sum()
            y.backward()
            rows = list(x.detach())
            assert len(x) == len(rows) == 3
            gf.zeros(3), gf.full((2,), 4.0), gf.arange(5), gf.random.normal(3), gf.random.permutation(4)
            gf.manual_seed(3)
            assert (x.shape, x.dtype, y.size) == ((3, 2), "float32", 1)
            x.detach().clone()
            x.detach()[0] = 4.0
        assert vars(count) == dict.fromkeys(vars(count), 0)


@every_device
def test_copies_to_a_device_are_counted_in_bytes(name: str) -> None:
    with on(name):
        for make, size in (
            (lambda: gf.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 24),
            (lambda: gf.tensor([True, False]), 2),
            (lambda: gf.ones((2, 3), device="fake:1").to(name), 24),
        ):
            with count_transfers() as count:
                make()
            assert (count.from_host, count.bytes_from_host) == (1, size)
        x = gf.ones(3)
        with count_transfers() as count:
            gf.tensor(x)
        assert count.from_host == 0
        with forbid_sync(), count_transfers() as count:
            gf.tensor(np.ones((2, 3), "float32"))  # does not wait
        # for NumPy on the CPU, an array is not a transfer
        assert (count.from_host, count.bytes_from_host) == ((0, 0) if name == "cpu" else (1, 24))


def test_the_error_names_what_waited_and_the_line() -> None:
    with gf.use_device("fake"):
        x = gf.ones((2, 1))
        with forbid_sync(), pytest.raises(SyncError) as caught:
            x.sum().item()
        message = str(caught.value)
        assert message.startswith("Tensor.item copies 4 bytes (shape (), float32) from fake:0 to the host: ")
        assert message.endswith(": x.sum().item()")
        assert "test_testing.py, line" in message
        with forbid_sync(), pytest.raises(SyncError, match=r"^synchronize waits for fake:0: .*gf\.synchronize\(\)"):
            gf.synchronize()
        with forbid_sync(), pytest.raises(SyncError, match=r"^FakeBackend.to_host copies 8 bytes .*: x\.backend\."):
            x.backend.to_host(array=x.array)


@pytest.mark.parametrize("name", ["__repr__", "__format__", "to", "copy_", "backward"])
def test_the_error_names_methods_as_users_call_them(name: str) -> None:
    x = gf.ones(1, device="fake")
    calls: dict[str, Callable[[], object]] = {
        "__repr__": lambda: repr(x),
        "__format__": lambda: f"{x:.1f}",
        "to": lambda: x.to("cpu"),
        "copy_": lambda: x.copy_(gf.ones(1, device="cpu")),
        "backward": gf.ones(1, device="cpu", requires_grad=True).to("fake").backward,
    }
    with pytest.raises(SyncError, match=rf"^Tensor\.{name} copies 4 bytes"), forbid_sync():
        calls[name]()


def test_counters_nest_and_a_part_may_be_allowed() -> None:
    x = gf.ones(1)
    with count_transfers() as outer:
        x.item()
        with forbid_sync(), count_transfers() as inner:
            with forbid_sync(False):
                x.item()
            with pytest.raises(SyncError):
                x.item()
        x.item()
    x.item()
    assert (outer.to_host, inner.to_host) == (3, 1)


def test_a_thread_of_its_own_is_not_watched() -> None:
    found: list[Any] = []
    with forbid_sync(), count_transfers() as count:
        thread = threading.Thread(target=lambda: found.append(gf.ones(1).item()))
        thread.start()
        thread.join()
    assert found == [1.0]
    assert count.to_host == 0


def test_a_backend_made_inside_is_watched_and_outside_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Backend.__getattribute__
    with count_transfers() as count:
        assert Backend.__getattribute__ is not plain

        class Late(FakeBackend):
            name = "late"

            def to_host(self, array: Any) -> Any:
                self.synchronize()  # a part of the copy
                return super().to_host(array)

        monkeypatch.setitem(discovery._registered, "late", Late)
        gf.ones(2, device="late").tolist()
    assert (count.to_host, count.synchronizations) == (1, 1)
    assert "__getattribute__" not in vars(Backend)
    assert Backend.__getattribute__ is plain
    with pytest.raises(KeyError), forbid_sync():
        raise KeyError
    assert "__getattribute__" not in vars(Backend)
    for device in [d for d in registry._backends if d.type == "late"]:
        del registry._backends[device]


# ---------------------------------------------------------------------- a training step waits for nothing

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd with momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=1e-3),
    "sgd with nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
    "centred rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "amsgrad, up": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, maximize=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "lion": lambda p: optim.Lion(p, lr=0.01),
}
CLASSES = 4
LOSSES: dict[str, tuple[Callable[..., Any], str]] = {
    "cross_entropy": (gf.cross_entropy, "labels"),
    "cross_entropy, smoothed": (lambda x, t: gf.cross_entropy(x, t, label_smoothing=0.1), "labels"),
    "cross_entropy of probabilities": (gf.cross_entropy, "shares"),
    "nll_loss": (lambda x, t: gf.nll_loss(gf.log_softmax(x), t), "labels"),
    "binary_cross_entropy_with_logits": (gf.binary_cross_entropy_with_logits, "shares"),
    "mse_loss": (gf.mse_loss, "shares"),
    "l1_loss": (gf.l1_loss, "shares"),
    "huber_loss": (gf.huber_loss, "shares"),
    "smooth_l1_loss": (gf.smooth_l1_loss, "shares"),
    "gaussian_nll_loss": (lambda x, t: gf.gaussian_nll_loss(x, t, gf.exp(x)), "shares"),
    "binary_cross_entropy": (lambda x, t: gf.binary_cross_entropy(gf.sigmoid(x), t), "shares"),
}


def train(optimizer: str, loss: str, steps: int = 3) -> Callable[[], None]:
    """Return a function that trains for a few steps, with all parts of a training loop, on the current device."""
    model = nn.Sequential(nn.MLP([6, 16, 16], "gelu", 0.2), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, CLASSES))
    x = gf.random.normal((24, 6))
    target = {"labels": gf.tensor(np.arange(24) % CLASSES), "shares": gf.softmax(x @ gf.random.normal((6, CLASSES)))}
    rule = OPTIMIZERS[optimizer](model.parameters())
    rule.param_groups[0]["lr"] = optim.schedules.warmup(optim.schedules.cosine(0.05, steps), 2)
    function, kind = LOSSES[loss]
    total = gf.zeros(())

    def go() -> None:
        nonlocal total
        for _ in range(steps):
            order = gf.random.permutation(24)
            for start in range(0, 24, 8):
                rows = order[start : start + 8]
                rule.zero_grad()
                value = function(model(gf.take(x, rows, axis=0)), gf.take(target[kind], rows, axis=0))
                value.backward()
                optim.clip_grad_norm_(model.parameters(), 0.5)
                rule.step()
                total += value.detach()

    go.total = lambda: total.item()  # type: ignore[attr-defined]
    return go


CONTRACTS = [*((name, "cross_entropy") for name in OPTIMIZERS), *(("adam", loss) for loss in LOSSES)]


@pytest.mark.parametrize(("optimizer", "loss"), CONTRACTS)
@pytest.mark.parametrize("name", ["cpu", "fake", GPU])
def test_a_training_step_waits_for_nothing_and_moves_nothing(name: str, optimizer: str, loss: str) -> None:
    with on(name):
        go = train(optimizer, loss)
        with forbid_sync(), count_transfers() as count:
            go()
        assert vars(count) == dict.fromkeys(vars(count), 0)
        assert np.isfinite(go.total())  # type: ignore[attr-defined]


def test_a_training_step_on_the_fake_device_counts_nothing_there_either(fake: FakeBackend) -> None:
    go = train("adam", "cross_entropy")
    before = vars(fake.counts).copy()
    go()
    after = vars(fake.counts)
    for what in ("to_host", "from_host", "synchronizations"):
        assert after[what] == before[what], what
    assert after["launches"] > before["launches"]


def test_every_loss_and_optimizer_is_among_them() -> None:
    losses = {n for n in gf.__all__ if n.endswith("_loss") or "cross_entropy" in n}
    assert {n.split(",")[0].split(" of ")[0] for n in LOSSES} == losses
    classes = {c for c in vars(optim).values() if isinstance(c, type) and issubclass(c, optim.Optimizer)}
    made = {type(make([gf.ones(1, requires_grad=True)])) for make in OPTIMIZERS.values()}
    assert made == classes - {optim.Optimizer}


def test_subnormal_numbers_may_be_zero() -> None:
    """In float32, since GPUs flush them, if a result is judged by a bound or in ulp."""
    tiny = float(np.finfo(np.float32).smallest_normal)
    assert compare(np.float32([0.0, 0.0]), [tiny / 2, -tiny / 2], ulp=4) == (0.0, 0.0, "")
    assert compare(np.float32([0.0]), [tiny / 2], bound=0.0).agrees
    assert not compare(np.float32([0.0]), np.float32([tiny / 2])).agrees, "moves keep them"
    assert not compare(np.float32([0.0]), [tiny], ulp=4).agrees
    assert not compare(np.float64([0.0]), [1e-310], ulp=4).agrees
    assert not compare(np.float16([0.0]), [6e-8], ulp=0.5).agrees
