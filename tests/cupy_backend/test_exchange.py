"""Memory that CuPy's arrays share with other libraries, on the emulated CuPy. EMULATED: no GPU."""

from __future__ import annotations

from typing import Any

import emulated_cupy
import numpy as np
import pytest
from emulated_cuda import Device, Stream, get_current_stream

import gradflow as gf
from gradflow.ops import exchange


class Foreign:
    """An array of another library on a GPU: it exports that of CuPy, and tells what it was asked for."""

    def __init__(self, array: Any, place: tuple[int, int] = (2, 0)) -> None:
        self.array, self.place = array, place
        self.asked: dict[str, Any] = {}

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, **options: Any) -> Any:
        self.asked = options
        return self.array.__dlpack__(**{**options, "stream": -1})


@pytest.fixture
def cuda(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The emulated CuPy, whose device is the one of DLPack's number for CUDA."""
    monkeypatch.setitem(exchange._PREFIXES, 2, "emulated")
    return cupy


def test_memory_is_shared_both_ways(cuda: Any) -> None:
    x = gf.arange(12, dtype="float32", device="emulated").reshape(3, 4)
    assert x.__dlpack_device__() == (2, 0)
    for source in (x, x.T, x[::2], x[1:1], x[0, 0]):
        theirs = cuda.from_dlpack(source)
        assert theirs.data.ptr == source.array.data.ptr
        assert (theirs.shape, theirs.strides) == (source.shape, source.array.strides)
        y = gf.from_dlpack(Foreign(theirs))
        assert (y.device, y.tolist()) == (gf.Device("emulated"), source.tolist())
        assert y.array.data.ptr == source.array.data.ptr
    y = gf.from_dlpack(Foreign(x.array, (13, 0)))  # managed memory
    y[0] = 7.0
    assert x[0].tolist() == [7.0] * 4
    assert gf.from_dlpack(Foreign(x.array), copy=True).array.data.ptr != x.array.data.ptr


def test_streams_wait_for_each_other(cuda: Any) -> None:
    """The consumer's stream waits for the work here; the producer is told the stream that is current here."""
    x = gf.ones(3, device="emulated")
    theirs, ours = Stream(non_blocking=True), Stream(non_blocking=True)
    with ours:
        y = x * 2
        assert ours not in theirs.before
        y.__dlpack__(stream=theirs.ptr)
        assert ours in theirs.before
        taken = Foreign(x.array)
        gf.from_dlpack(taken, device="emulated")
        assert taken.asked["stream"] == ours.ptr
    assert get_current_stream().ptr != ours.ptr


def test_other_devices_need_a_copy(cuda: Any) -> None:
    x = gf.tensor([1.0, 2.0], device="emulated")
    for found in (gf.from_dlpack(x, device="cpu"), gf.from_dlpack(np.array([1.0, 2.0], "f4"), device="emulated")):
        assert found.tolist() == [1.0, 2.0]
    assert np.from_dlpack(x, device="cpu").tolist() == [1.0, 2.0]
    with pytest.raises(BufferError, match="the array is on emulated:0, so cpu needs a copy of it"):
        gf.from_dlpack(x, device="cpu", copy=False)
    with pytest.raises(BufferError, match=r"to DLPack's device \(1, 0\) without a copy"):
        np.from_dlpack(x, device="cpu", copy=False)


def test_each_gpu_has_its_number(monkeypatch: pytest.MonkeyPatch, cuda: Any) -> None:
    monkeypatch.setattr(emulated_cupy.State, "devices", 2)
    x = gf.ones(3, device="emulated:1")
    assert x.__dlpack_device__() == (2, 1)
    y = gf.from_dlpack(x)
    assert (y.device, y.tolist()) == (gf.Device("emulated:1"), [1.0] * 3)
    assert y.array._device == 1
    assert emulated_cupy.State.device == 0
    with pytest.raises(BufferError, match="the array is on emulated:1, so emulated:0 needs a copy of it"):
        gf.from_dlpack(x, device="emulated", copy=False)
    assert gf.from_dlpack(x, device="emulated").device == "emulated:0"
    assert Device().id == 0


def test_without_cupy_an_array_of_a_gpu_is_refused_with_the_diagnosis() -> None:
    if gf.diagnose("cuda").usable:
        pytest.skip("there is a GPU")
    with pytest.raises(gf.DeviceUnavailableError, match="device 'cuda:0' cannot be used"):
        gf.from_dlpack(Foreign(None))


def test_what_is_not_exported(cuda: Any) -> None:
    x = gf.ones(3, device="emulated", requires_grad=True)
    for export in (lambda: cuda.from_dlpack(x), lambda: x.__cuda_array_interface__):
        with pytest.raises(BufferError, match=r"use \.detach\(\)"):
            export()
    with pytest.raises(BufferError, match="reversed axes"):
        cuda.from_dlpack(gf.ones(3, device="emulated").flip())


def test_the_cuda_array_interface_is_that_of_the_array(cuda: Any) -> None:
    x = gf.arange(6, dtype="float32", device="emulated").reshape(2, 3)
    for y in (x, x.T):
        found = y.__cuda_array_interface__
        assert found == y.array.__cuda_array_interface__
        assert (found["shape"], found["typestr"], found["data"]) == (y.shape, "<f4", (x.array.data.ptr, False))


def test_an_optimizer_keeps_the_memory_of_another_library(cuda: Any) -> None:
    theirs = cuda.ones((1, 2), dtype=np.float32)
    layer = gf.nn.Linear(2, 1, device="emulated")
    layer.weight = gf.nn.Parameter(gf.from_dlpack(Foreign(theirs)))
    optimizer = gf.optim.SGD(layer.parameters(), lr=0.5)
    layer(gf.ones((1, 2), device="emulated")).sum().backward()
    optimizer.step()
    assert cuda.asnumpy(theirs).tolist() == layer.weight.tolist() == [[0.5, 0.5]]
