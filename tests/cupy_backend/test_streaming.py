"""Batches of data that stays on the host, on the emulated CuPy: the order of copies, work and refilled buffers."""

from __future__ import annotations

from typing import Any

import emulated_cupy
import numpy as np
import pytest
from emulated_device import needs_compiler
from gradflow_cupy.backend import CudaEvent

import gradflow as gf
from gradflow.data import Batches

pytestmark = needs_compiler
State = emulated_cupy.State


@pytest.fixture
def batches(backend: Any, monkeypatch: pytest.MonkeyPatch) -> Batches:
    """20 batches of 3, each copied on its own, in triples."""
    monkeypatch.setattr("gradflow.data.loader._GATHERED", 1)
    x = np.arange(120, dtype=np.float32).reshape(60, 2)
    return Batches(x, np.arange(60), 3, gf.Generator(0), device="emulated", weights=np.ones(60), keep="host")


def trained_on(batches: Batches) -> list[tuple[Any, Any]]:
    """What the work on each batch reads, queued before the host continues: no value is asked for until the end."""
    found = [(inputs * 1.0, targets * 1) for inputs, targets, _ in batches]
    return [(x.numpy(), y.numpy()) for x, y in found]


def as_expected(found: list[tuple[Any, Any]]) -> bool:
    order = gf.random.permutation(60, generator=gf.Generator(0)).numpy()
    x, y = (np.concatenate(each) for each in zip(*found, strict=True))
    return np.array_equal(y, order) and np.array_equal(x[:, 0], 2 * order)


def test_batches_are_right(batches: Batches) -> None:
    assert as_expected(trained_on(batches))


def test_work_waits_for_the_copy(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulation finds a wait that is left out."""
    monkeypatch.setattr(CudaEvent, "wait", lambda self: None)
    assert not as_expected(trained_on(batches))


def test_a_copy_waits_for_earlier_work_in_its_memory(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of an array comes from the stream of the work, which may still read what was there."""
    monkeypatch.setattr(emulated_cupy.Stream, "wait_event", lambda self, event: None)
    with pytest.raises(AssertionError, match="earlier work of another stream"):
        trained_on(batches)


def test_a_buffer_is_filled_again_after_its_copy(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaEvent, "synchronize", lambda self: None)
    with pytest.raises(AssertionError, match="page-locked memory was changed"):
        trained_on(batches)


def test_the_host_waits_only_for_a_buffer(batches: Batches) -> None:
    """Two buffers: the first two parts wait for nothing; after the last one, both are waited for."""
    waits, transfers = State.synchronizations, State.transfers
    for number, (inputs, _, _) in enumerate(batches):
        assert inputs.shape == (3, 2)
        assert State.synchronizations - waits == min(max(number, 0), 18), number
        assert len(State.in_flight) <= 6
    assert State.synchronizations - waits == 20
    assert State.transfers - transfers == 60
    assert not State.in_flight


def test_the_next_part_is_on_its_way(batches: Batches) -> None:
    """While the work on a part is queued, the next is being copied, without waiting for that work."""
    iterator = iter(batches)
    inputs, targets, _ = next(iterator)
    copier = gf.get_backend("emulated")._copier  # type: ignore[attr-defined]
    assert [copy.moment[0] for copy in State.in_flight] == [copier] * 6
    assert np.array_equal(inputs.numpy()[:, 0], 2 * targets.numpy())
    assert [copy.made for copy in State.in_flight] == [False] * 3, "the work has not waited for these"


def test_an_iterator_that_is_left_waits_for_its_copies(batches: Batches) -> None:
    """Then its buffers and arrays may be freed."""
    iterator = iter(batches)
    next(iterator)
    assert State.in_flight
    del iterator
    assert not State.in_flight


def test_the_second_device(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "devices", 2)
    x = np.arange(120, dtype=np.float32).reshape(60, 2)
    found = trained_on(
        Batches(x, np.arange(60), 7, gf.Generator(0), device="emulated:1", weights=np.ones(60), keep="host")
    )
    assert as_expected(found)
    assert State.device == 0


def test_what_fits_is_decided_by_the_free_memory(backend: Any) -> None:
    assert backend.available_memory() == 2**33 + 3096
    assert Batches(np.zeros((2, 2)), np.zeros(2), 1, device="emulated").kept == "device"
    wide = np.broadcast_to(np.float64(0.0), (2**30, 1))
    assert Batches(wide, wide, 1, device="emulated").kept == "host"
