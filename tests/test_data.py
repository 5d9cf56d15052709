"""Batches: every device has the same ones."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from twin import twin_device

import gradflow as gf
from gradflow.data import Batches
from gradflow.training import evaluate, fit


def test_batches_have_a_line_that_tells_what_they_are() -> None:
    batches = Batches(np.zeros((30, 4), "float32"), np.arange(30), np.int64(8), shuffle=False)  # type: ignore[arg-type]
    assert repr(batches) == (
        "Batches(30 samples of inputs (4,) float32 and targets () int64, batch_size=8, shuffle=False, drop_last=False, "
        "device=cpu, kept on the device)"
    )


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


def test_a_shallow_copy_of_batches_has_settings_of_its_own() -> None:
    batches = Batches(np.zeros((10, 2), "float32"), np.zeros(10, "int64"), 5, generator=gf.Generator(0))
    twin = copy.copy(batches)
    twin.batch_size, twin.shuffle, twin.inputs = 2, False, gf.ones((10, 2))
    assert len(batches) == 2
    assert len(twin) == 5
    assert all(not x.any() for x, _ in batches)
    assert all(x.all() for x, _ in twin)
