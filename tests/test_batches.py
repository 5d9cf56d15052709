"""Batches: the same on every device and wherever the data is kept; what they check of the data."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from twin import twin_device

import gradflow as gf
from gradflow.data import Batches
from gradflow.testing.counting import count_transfers, forbid_sync
from gradflow.training import Trainer, evaluate, fit


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, "and targets () int64, batch_size=8, shuffle=False, drop_last=False, device=cpu, kept on the device)"),
        ({"keep": "host", "weights": np.ones(30)}, "targets () int64 and weights () float32, batch_size=8, "
         "shuffle=False, drop_last=False, device=cpu, kept on the host)"),
    ],
)  # fmt: skip
def test_a_line_tells_what_they_are(options: Any, end: str) -> None:
    batches = Batches(np.zeros((30, 4), "float32"), np.arange(30), np.int64(8), shuffle=False, **options)  # type: ignore[arg-type]
    assert repr(batches).startswith("Batches(30 samples of inputs (4,) float32")
    assert repr(batches).endswith(end)


@pytest.mark.parametrize("integer", [np.int64, np.uint8, np.int16])
def test_batch_sizes_may_be_numpys(integer: Any) -> None:
    batches = numbered(10, integer(4), "cpu")
    assert type(batches.batch_size) is int
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    for wrong in (integer(0), np.float64(4.0), True, None, "4"):
        with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
            numbered(10, wrong, "cpu")  # type: ignore[arg-type]


def numbered(n: int, batch_size: int, device: str, **options: object) -> Batches:
    inputs = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return Batches(inputs, np.arange(n), batch_size, device=device, **options)  # type: ignore[arg-type]


def test_an_epoch_holds_every_sample_once_with_its_target(device: str) -> None:
    batches = numbered(10, 4, device, generator=gf.Generator(1))
    seen = []
    for inputs, targets in batches:
        assert str(inputs.device) == str(targets.device) == str(gf.current_device())
        np.testing.assert_array_equal(inputs.numpy()[:, 0], 2 * targets.numpy())
        seen += targets.tolist()
    assert sorted(seen) == list(range(10))
    assert len(batches) == 3


def test_epochs_differ_and_a_seed_repeats_them_on_every_device(device: str) -> None:
    def orders(where: str) -> list[list[int]]:
        batches = numbered(50, 7, where, generator=gf.Generator(5))
        return [[label for _, targets in batches for label in targets.tolist()] for _ in range(3)]

    first, second, third = orders(device)
    assert first != second != third
    assert orders("cpu") == [first, second, third]


def test_without_shuffle_the_order_stays(device: str) -> None:
    found = [targets.tolist() for _, targets in numbered(5, 2, device, shuffle=False)]
    assert found == [[0, 1], [2, 3], [4]]


def test_drop_last_leaves_whole_batches(device: str) -> None:
    batches = numbered(11, 4, device, drop_last=True)
    assert [len(targets) for _, targets in batches] == [4, 4]
    assert (len(batches), batches.samples) == (2, 8)


def test_a_batch_larger_than_the_data_is_all_of_it(device: str) -> None:
    assert [len(targets) for _, targets in numbered(5, 64, device)] == [5]


def test_batches_are_copies_of_the_data_given() -> None:
    inputs = np.zeros((3, 1), np.float32)
    batches = Batches(inputs, np.zeros(3, np.int64), 3, shuffle=False)
    inputs[:] = 1
    assert next(iter(batches))[0].tolist() == [[0.0], [0.0], [0.0]]


@pytest.mark.parametrize("labels", [[0, 3, 1], [0, -1, 1]])
@pytest.mark.parametrize("part", ["training", "test"])
def test_labels_without_an_output_are_refused_before_the_loss_sees_them(labels: list[int], part: str) -> None:
    """Also on a device whose kernels do not check labels."""

    def never(outputs: gf.Tensor, targets: gf.Tensor) -> gf.Tensor:
        raise AssertionError("the loss was computed")

    with twin_device() as twin:
        model = gf.nn.Linear(2, 3, device=twin)
        bad = Batches(np.zeros((3, 2), np.float32), np.array(labels), 2, device=twin)
        run = {
            "training": lambda: next(fit(model, never, gf.optim.SGD(model.parameters()), bad, bad, 1)),
            "test": lambda: evaluate(model, never, bad),
        }[part]
        with pytest.raises(ValueError, match=r"labels for 3 outputs must be in \[0, 3\)"):
            run()


@pytest.mark.parametrize(
    ("n", "targets", "batch_size", "options"),
    [(0, 0, 1, {}), (3, 2, 1, {}), (3, 3, 0, {}), (3, 3, 1.5, {}), (3, 3, 4, {"drop_last": True})],
)
def test_bad_batches_are_refused(n: int, targets: int, batch_size: int, options: dict[str, bool]) -> None:
    with pytest.raises(ValueError):
        Batches(np.zeros((n, 1)), np.zeros(targets), batch_size, **options)


@pytest.mark.parametrize("elements", [1, 64, 200, 10_000])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_the_same_however_many_are_gathered_at_once(
    elements: int, drop_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches() -> list[list[Any]]:
        x, y = np.arange(51 * 3, dtype=np.float32).reshape(51, 3), np.arange(51)
        loader = Batches(x, y, 8, generator=gf.Generator(0), drop_last=drop_last)
        return [[a.tolist(), b.tolist()] for a, b in loader]

    expected = batches()
    assert len(expected) == (6 if drop_last else 7)
    assert len(expected[-1][1]) == (8 if drop_last else 3)
    assert all(x[0] == 3.0 * label for inputs, labels in expected for x, label in zip(inputs, labels, strict=True))
    monkeypatch.setattr("gradflow.data.loader._GATHERED", elements)
    assert batches() == expected


@pytest.mark.parametrize("keep", ["device", "host"])
def test_few_rows_are_gathered_where_any_array_is_wide(device: str, keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets and weights count like inputs, so that data on the host needs little memory on the device."""
    monkeypatch.setattr("gradflow.data.loader._GATHERED", 64)
    batches = Batches(np.zeros((40, 1), "float32"), np.zeros((40, 15), "float32"), 2, keep=keep)
    gathered, sliced, backend = [], batches._sliced, gf.get_backend()
    take_rows = backend.take_rows
    monkeypatch.setattr(batches, "_sliced", lambda parts: sliced(gathered.append(p[1].shape[:1]) or p for p in parts))
    monkeypatch.setattr(backend, "take_rows", lambda x, rows: gathered.append(rows.shape) or take_rows(x, rows))
    assert len(list(batches)) == 20
    assert gathered == [(4,) if keep == "host" else (2, 2)] * 10


@pytest.mark.parametrize("keep", ["device", "host"])
def test_batches_in_order_are_all_samples_and_draw_nothing(device: str, keep: str) -> None:
    generator = gf.Generator(0)
    batches = Batches(np.arange(10.0), np.arange(10), 4, generator, drop_last=True, weights=np.ones(10), keep=keep)
    ordered = batches.in_order()
    assert [y.tolist() for _, y, _ in ordered] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert generator.counter == 0
    assert ordered.inputs is batches.inputs
    assert (batches.shuffle, batches.samples, ordered.samples) == (True, 8, 10)
    assert ordered.fingerprint() == batches.fingerprint()


@pytest.mark.parametrize("name", ["inputs", "targets", "weights", "batch_size", "shuffle", "drop_last", "generator"])
def test_the_attributes_of_batches_are_set_once(name: str) -> None:
    batches = Batches(np.zeros((10, 2), "float32"), np.zeros(10, "int64"), 5)
    before = getattr(batches, name)
    with pytest.raises(AttributeError, match=f"{name} of a Batches cannot change: make a new one"):
        setattr(batches, name, 2)
    assert getattr(batches, name) is before


# ---------------------------------------------------------------------- where the data is kept


def values_of(batches: Any) -> list[list[tuple[str, bytes]]]:
    """The dtype and the bits of each array of each batch."""
    return [[(str(x.dtype), x.numpy().tobytes()) for x in batch] for batch in batches]


def as_memmap(x: Any, folder: Path) -> Any:
    made = np.memmap(folder / f"{x.dtype.str[1:]}{x.ndim}{x.size}", x.dtype, "w+", shape=x.shape)
    made[...] = x
    made.flush()
    made.flags.writeable = False
    return made


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda x: x, "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "columns first": np.asfortranarray, "other bytes": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2], "tensor": gf.tensor,
    "wrapped": lambda x: type("Frame", (), {"__array__": lambda self: x})(),
}  # fmt: skip


@pytest.mark.parametrize("gathered", [1, 40, 1 << 18])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_batches_are_the_same_wherever_the_data_is_kept(
    device: str, dtype: str, shuffle: bool, gathered: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradflow.data.loader._GATHERED", gathered)
    rng = np.random.default_rng(0)
    x, y, w = (rng.standard_normal((53, 3)) * 50).astype(dtype), np.arange(53), rng.random(53)

    def epochs(x: Any, y: Any, **options: Any) -> Any:
        batches = Batches(x, y, 8, gf.Generator(3), shuffle, weights=w, **options)
        assert batches.kept == options["keep"]
        return [values_of(batches), values_of(batches.epoch(2)), values_of(batches)]

    expected = epochs(x, y, keep="device")
    assert expected[0] != expected[2] or not shuffle
    assert {name for batch in expected[0] for name, _ in batch[:1]} == {dtype}
    for layout in LAYOUTS.values():
        assert epochs(layout(x), layout(y), keep="host") == expected
        assert epochs(layout(x), layout(y), keep="device") == expected
    assert epochs(as_memmap(x, tmp_path), as_memmap(y, tmp_path), keep="host") == expected


@pytest.mark.parametrize("keep", ["host", "device"])
def test_batches_may_be_kept_and_iterators_left(device: str, keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer is filled again under a batch, and two iterators do not disturb each other."""
    monkeypatch.setattr("gradflow.data.loader._GATHERED", 1)
    batches = numbered(60, 7, device, shuffle=False, keep=keep)
    left = iter(batches)
    next(left)
    found = [targets for pair in zip(batches, batches, strict=True) for _, targets in pair]
    del left
    for each in (found[::2], found[1::2]):
        assert gf.concat(each).tolist() == list(range(60))


@pytest.mark.parametrize(("free", "kept"), [(None, "device"), (2400, "device"), (2399, "host"), (0, "host")])
def test_data_is_kept_on_the_device_if_half_of_its_memory_suffices(
    device: str, free: int | None, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gf.get_backend(device), "available_memory", lambda: free, raising=False)
    batches = Batches(np.zeros((50, 4), "float32"), np.zeros(50), 10, weights=None)
    assert batches.kept == kept
    assert isinstance(batches.inputs, gf.Tensor) == (kept == "device")
    assert Batches(np.zeros((50, 4), "float32"), np.zeros(50), 10, keep="device").kept == "device"
    there = gf.zeros((50, 4))
    stays = Batches(there, there, 10)
    assert stays.kept == "device", "it needs no memory"
    assert stays.inputs.array is there.array


def test_the_memory_of_the_cpu_is_that_of_the_machine() -> None:
    available = gf.get_backend("cpu").available_memory()
    assert available is None or 1 << 20 < available < 1 << 50


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 90 kB\nMemAvailable:   70 kB\n"}, 70 << 10),
        ({"/proc/meminfo": "MemAvailable: 70 kB\n", "/sys/fs/cgroup/memory.max": "max\n"}, 70 << 10),
        ({"/proc/meminfo": "MemAvailable: 70 kB\n", "/sys/fs/cgroup/memory.max": "4096\n"}, 4096),
        ({"/proc/meminfo": "MemTotal: 90 kB\n"}, 6 * 6), ({}, 6 * 6),
    ],
)  # fmt: skip
def test_how_the_system_tells_its_memory(files: Any, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: str) -> Any:
        if path not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[path])

    monkeypatch.setattr("gradflow_numpy.backend.open", opened, raising=False)
    monkeypatch.setattr("os.sysconf", lambda name: 6, raising=False)
    assert gf.get_backend("cpu").available_memory() == expected
    monkeypatch.delattr("os.sysconf")
    if expected == 36:
        assert gf.get_backend("cpu").available_memory() is None


def test_a_file_is_read_in_parts(tmp_path: Path) -> None:
    """Of a file of 64 MB, in another byte order, no more than a few MB are in memory at once."""
    x = np.memmap(tmp_path / "x", ">f4", "w+", shape=(1 << 16, 256))
    x[5, 7] = 1.5
    batches = Batches(x, np.zeros(len(x), "int8"), 100, keep="host")
    tracemalloc.start()
    try:
        total = sum(float(inputs.sum().item()) for inputs, _ in batches)
        batches.check_finite()
        batches.fingerprint()
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()
    assert total == 1.5


@pytest.mark.parametrize("keep", ["host", "device"])
def test_an_epoch_reads_nothing_from_the_device(device: str, keep: str) -> None:
    batches = numbered(60, 7, device, keep=keep, weights=np.ones(60))
    with forbid_sync(), count_transfers() as count:
        assert sum(len(targets) for _, targets, _ in batches) == 60
    assert count.to_host == 0
    assert count.from_host == (1 if keep == "host" else 0), "all arrays of a part in one copy"
    assert count.bytes_from_host == (60 * (2 * 4 + 8 + 4) if keep == "host" else 0)


@pytest.mark.parametrize("capture", [False, True])
def test_training_is_the_same_wherever_the_data_is_kept(
    device: str, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradflow.data.loader._GATHERED", 100)
    rng = np.random.default_rng(0)
    x, y, w = rng.standard_normal((70, 5)).astype("float32"), rng.integers(0, 3, 70), rng.random(70)

    def figures(keep: str) -> tuple[Any, Any]:
        gf.manual_seed(0)
        model = gf.nn.MLP([5, 8, 3], dropout=0.2)
        optimizer = gf.optim.Adam(model.parameters())
        train = Batches(x, y, 8, gf.Generator(1), weights=w, keep=keep)
        held_out = Batches(x[:30], y[:30], 7, shuffle=False, keep=keep)
        trainer = Trainer(model, gf.cross_entropy, optimizer, train, held_out, metrics=["accuracy"], capture=capture)
        history = list(trainer.epochs(3))
        return history, [p.tolist() for p in model.parameters()]

    assert figures("host") == figures("device")


# ---------------------------------------------------------------------- epochs from any batch


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"drop_last": True}, {"keep": "host"}])
def test_an_epoch_goes_on_from_any_batch(device: str, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradflow.data.loader._GATHERED", 40)
    generator = gf.Generator(1)
    batches = numbered(60, 7, device, generator=generator, **options)
    before = generator.state_dict()
    whole, after = values_of(batches), generator.state_dict()
    for first in range(len(batches) + 1):
        generator.load_state_dict(before)
        rest = batches.epoch(first)
        assert generator.state_dict() == after, "the order is drawn at once"
        assert values_of(rest) == whole[first:]
    for wrong in (-1, len(batches) + 1, 1.0, True, None):
        with pytest.raises(ValueError, match=f"an epoch has {len(batches)} batches"):
            batches.epoch(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": False}, {"drop_last": True, "weights": np.ones(60)}, {"keep": "host"}]
)
def test_an_order_is_that_of_the_epoch_whose_numbers_it_draws(device: str, options: Any) -> None:
    generator = gf.Generator(1)
    batches = numbered(60, 7, device, generator=generator, **options)
    before = generator.state_dict()
    epoch = [label for _, labels, *_ in batches for label in labels.tolist()]
    after = generator.state_dict()
    generator.load_state_dict(before)
    order = batches.order()
    assert generator.state_dict() == after
    assert order.tolist()[: batches.samples] == epoch
    kept = batches.on_device()
    if batches.kept == "host":
        assert (kept, str(order.device)) == (None, "cpu")
    else:
        assert kept is not None
        assert kept[:2] == (batches.inputs, batches.targets)
        assert (len(kept), order.device) == (2 + ("weights" in options), batches.device)


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_weights_come_with_their_samples(device: str, dtype: str) -> None:
    batches = Batches(np.zeros((20, 1), dtype), np.arange(20), 6, weights=list(range(20)))
    for inputs, targets, weights in batches:
        assert len(inputs) == len(targets)
        assert weights.tolist() == targets.tolist()
        assert weights.dtype == ("float64" if dtype == "float64" else "float32")
    given = Batches(np.zeros(2), np.zeros(2), 1, weights=gf.tensor([1.0, 0.0])).weights
    assert given is not None
    assert given.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("weights", "error"),
    [
        ([1.0, 2.0], r"need the shape \(3,\), one for each sample; got \(2,\)"),
        (np.ones((3, 1)), r"need the shape \(3,\)"), (1.0, "are an array, a list of numbers or a tensor; got float"),
        ([1.0, -2.0, 1.0], "at least 0; that of row 1 is -2.0"), ([1.0, 2.0, np.inf], "finite.*row 2 is inf"),
        ([np.nan, 2.0, 1.0], "row 0 is nan"), ([0.0, 0, 0], "all weights are 0"), (["a", "b", "c"], "numbers"),
        ([1.0, 1e39, 1.0], "row 1 is inf"),
    ],
)  # fmt: skip
def test_bad_weights_are_refused(weights: Any, error: str) -> None:
    with np.errstate(over="ignore"), pytest.raises((ValueError, TypeError), match=error):
        Batches(np.zeros((3, 1), "float32"), np.zeros(3), 1, weights=weights)


# ---------------------------------------------------------------------- what is wrong with the data


@pytest.mark.parametrize(
    ("inputs", "targets", "error"),
    [
        (np.zeros(3), None, "needs targets; got None"), (None, np.zeros(3), "needs inputs; got None"),
        ([(np.zeros((2, 2)), np.zeros(2))] * 2, np.zeros(2), "inputs of Batches are one array.*concatenate"),
        ([np.zeros((2, 2))] * 3, np.zeros(3), "concatenate"), ([gf.zeros(2)] * 3, np.zeros(3), "concatenate"),
        (iter([1, 2]), np.zeros(2), "got list_iterator"), (np.float32(1.0), np.zeros(1), "a single number"),
        (np.array(["a"]), np.zeros(1), "numbers"), (np.array([None]), np.zeros(1), "numbers"),
        (np.ma.masked_array([1.0], [True]), np.zeros(1), "masked"), (np.zeros(1), np.zeros(1, "M8[s]"), "dates"),
        (np.zeros(1), np.zeros(1, np.dtype("M8[s]").newbyteorder("S")), "dates"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keep", ["host", "device"])
def test_what_is_no_array_of_numbers_is_refused(inputs: Any, targets: Any, error: str, keep: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        Batches(inputs, targets, 1, keep=keep)


def test_another_place_is_refused() -> None:
    with pytest.raises(ValueError, match="keep is 'device', 'host' or None; got 'gpu'"):
        numbered(3, 1, "cpu", keep="gpu")


@pytest.mark.parametrize("keep", ["host", "device"])
def test_a_number_that_is_not_finite_is_found(device: str, keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradflow.data.checks._CHUNK", 64)
    x, y = np.zeros((50, 3), "float32"), np.zeros(50)
    good = Batches(x, np.arange(50), 7, keep=keep)
    with count_transfers() as count:
        good.check_finite()
        good.check_finite()
    assert count.to_host == (keep == "device" and device != "cpu"), "one read, once"
    x[33, 2], x[40, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"^row 33, column 2, of the inputs is nan: .*leave out"):
        Batches(x, y, 7, keep=keep).check_finite()
    y[7] = -np.inf
    with pytest.raises(ValueError, match=r"^row 7 of the targets is -inf"):
        Batches(np.zeros((50, 2, 2), "float64"), y, 7, keep=keep).check_finite()
    pictures = np.zeros((50, 2, 2), np.float64)
    pictures[49, 1, 0] = np.inf
    with pytest.raises(ValueError, match=r"^row 49, column 1, 0, of the inputs is inf"):
        Batches(pictures, np.zeros(50), 7, keep=keep).check_finite()


def test_a_fingerprint_tells_data_apart_and_nothing_else(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, w = np.random.default_rng(0).standard_normal((50, 4)).astype("float32"), np.arange(50), np.ones(50)
    expected = Batches(x, y, 7, device="cpu").fingerprint()
    monkeypatch.setattr("gradflow.data.checks._CHUNK", 64)
    for layout in LAYOUTS.values():
        for keep in ("host", "device"):
            assert Batches(layout(x), layout(y), 3, keep=keep).fingerprint() == expected
    assert Batches(as_memmap(x, tmp_path), y, 7, keep="host").fingerprint() == expected
    changed = x.copy()
    changed[49, 3] = np.nextafter(changed[49, 3], 2)
    zero = np.where(np.arange(200).reshape(50, 4) == 7, np.float32(0.0), x)
    others = [
        (changed, y, None), (x.astype("float64"), y, None), (x.reshape(50, 2, 2), y, None), (x, y, w), (x, y, 2 * w),
        (x[::-1], y, None), (x, y.astype("int32"), None), (y, x, None), (zero, y, None), (x, y.view("float64"), None),
        (np.where(zero, zero, -zero), y, None),
    ]  # fmt: skip
    found = {Batches(a, b, 7, weights=c).fingerprint() for a, b, c in others}
    assert len(found) == len(others)
    assert expected not in found


def test_a_number_that_is_not_finite_is_told_each_time() -> None:
    batches = Batches(np.full((10, 2), np.nan, "float32"), np.zeros(10), 2)
    for _ in range(2):
        with pytest.raises(ValueError, match="row 0, column 0, of the inputs is nan"):
            batches.check_finite()


def test_a_batch_that_is_changed_in_place_is_noticed(device: str) -> None:
    """A gradient that needs the old values of a batch is refused, as for any view."""
    batches = numbered(8, 4, device, shuffle=False)
    w = gf.ones((2,), requires_grad=True)
    loss = (batches.inputs * w).sum()
    for inputs, _ in batches:
        inputs += 1.0
    with pytest.raises(RuntimeError, match="changed"):
        loss.backward()
