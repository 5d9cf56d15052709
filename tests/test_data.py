"""Datasets and batches: the test split stays unseen, and every device has the same batches."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from twin import twin_device

import gradflow as gf
from gradflow.data import DATASETS, Batches, Dataset, load
from gradflow.training import evaluate, fit

pytest.importorskip("sklearn")

SHAPES = {
    "digits": (1797, 64, 10),
    "breast-cancer": (569, 30, 2),
    "wine": (178, 13, 3),
    "iris": (150, 4, 3),
    "diabetes": (442, 10, 1),
}


@pytest.mark.parametrize("name", DATASETS)
def test_each_dataset_is_whole(name: str) -> None:
    data = load(name)
    assert (*data.inputs.shape, data.outputs) == SHAPES[name]
    assert data.inputs.dtype == np.float32
    assert data.is_classification == (name != "diabetes")


@pytest.mark.parametrize("name", DATASETS)
def test_split_is_stratified_and_standardised_by_its_training_part(name: str) -> None:
    data = load(name)
    split = data.split(seed=3)
    assert len(split.train_inputs) + len(split.test_inputs) == len(data.inputs)
    assert len(split.test_inputs) == pytest.approx(0.2 * len(data.inputs), abs=1)
    assert split.train_inputs.dtype == split.test_inputs.dtype == np.float32
    assert np.isfinite(split.train_inputs).all()
    assert np.isfinite(split.test_inputs).all()
    if data.is_classification:
        whole, held_out = (np.bincount(t, minlength=data.outputs) for t in (data.targets, split.test_targets))
        np.testing.assert_allclose(held_out, 0.2 * whole, atol=1)
    else:
        np.testing.assert_allclose(split.train_targets.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(split.train_targets.std(0), 1, atol=1e-5)


def test_held_out_samples_do_not_reach_the_training_part() -> None:
    from sklearn.model_selection import train_test_split

    data = load("iris")
    _, held_out = train_test_split(np.arange(150), test_size=0.2, stratify=data.targets, random_state=0)
    changed = data.inputs.copy()
    changed[held_out] = 1000.0
    after = Dataset("changed", changed, data.targets, data.classes).split(0)
    np.testing.assert_array_equal(after.train_inputs, data.split(0).train_inputs)


def test_seed_decides_the_split() -> None:
    data = load("wine")
    np.testing.assert_array_equal(data.split(1).test_inputs, data.split(1).test_inputs)
    assert not np.array_equal(data.split(1).test_targets, data.split(2).test_targets)


def test_constant_feature_is_harmless() -> None:
    inputs = np.ones((20, 2), np.float32)
    inputs[:, 1] = np.arange(20)
    split = Dataset("flat", inputs, np.arange(20, dtype=np.int64) % 2, ("even", "odd")).split(0)
    assert (split.train_inputs[:, 0] == 0).all()
    assert (split.test_inputs[:, 0] == 0).all()


@pytest.mark.parametrize(
    ("targets", "error"),
    [
        (np.array([0, 1, 2]), ValueError),
        (np.array([0, 1, -1]), ValueError),
        (np.array([0, 1, 1], np.int32), TypeError),
        (np.array([0, 1]), ValueError),
        (np.array([0.0, 1.0, np.nan], np.float32)[:, None], ValueError),
        (np.array([0.0, 1.0, 2.0], np.float32), TypeError),
    ],
)
def test_bad_targets_are_refused_on_the_host(targets: np.ndarray, error: type[Exception]) -> None:
    with pytest.raises(error):
        Dataset("bad", np.zeros((3, 2), np.float32), targets, ("a", "b"))


def test_unknown_dataset_names_the_known() -> None:
    with pytest.raises(ValueError, match=r"'mnist'.*digits"):
        load("mnist")


# ---------------------------------------------------------------------- batches


def test_each_has_a_line_that_tells_what_it_is() -> None:
    data = load("iris")
    batches = Batches(np.zeros((30, 4), "float32"), np.arange(30), np.int64(8), shuffle=False)  # type: ignore[arg-type]
    assert repr(batches) == (
        "Batches(30 samples of inputs (4,) float32 and targets () int64, batch_size=8, shuffle=False, drop_last=False, "
        "device=cpu, kept on the device)"
    )
    assert repr(data) == "Dataset('iris', 150 samples of 4 features, 3 classes)"
    assert repr(data.split(0)) == "Split(120 samples to train on, 30 to test, 4 features, targets () int64)"
    assert repr(load("diabetes")) == "Dataset('diabetes', 442 samples of 10 features, targets (1,) for regression)"


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
    split = load("iris").split(0)
    assert copy.copy(split) is not split
