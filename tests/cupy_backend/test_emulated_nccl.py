"""`NCCLCommunicator` on an emulated CuPy, with a stand-in for NCCL: what is called, in which stream and order.

It says nothing about a GPU. The emulation refuses a capture in which two streams use the same memory in no order.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from emulated_device import needs_compiler
from emulated_graphs import queue

import gradflow as gf
from gradflow.data import Batches
from gradflow.distributed import Communicator, reduction
from gradflow.distributed.nccl import NCCLCommunicator
from gradflow.training import Trainer
from tests.trainers import INPUTS, LABELS

pytestmark = needs_compiler


class Done:
    def wait(self) -> None: ...


class Host(Communicator):
    """One process."""

    rank, size = 0, 1

    def start_sum(self, array: Any) -> Any:
        assert isinstance(array, np.ndarray)
        return Done()

    def broadcast(self, array: Any, root: int = 0) -> None: ...
    def barrier(self) -> None: ...


class Doubling(Host):
    """One process whose sums on the device have a second summand, equal to the first."""

    def __init__(self, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ("FLOAT16", "BFLOAT16", "FLOAT32", "FLOAT64", "INT32", "INT64", "UINT8", "SUM")
        module: Any = SimpleNamespace(
            available=True, get_unique_id=lambda: b"\x00\xff" * 64, NcclCommunicator=self.open
        )
        for i, name in enumerate(names):
            setattr(module, f"NCCL_{name}", i)
        monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", module)
        self.array: Any = None
        self.calls: list[str] = []
        self.device = NCCLCommunicator(Host())

    def open(self, size: int, identifier: bytes, rank: int) -> Any:
        assert (size, identifier, rank) == (1, b"\x00\xff" * 64, 0)
        return self

    def allReduce(self, source: int, target: int, count: int, dtype: int, op: int, stream: int) -> None:  # noqa: N802
        values = self.array._values
        assert source == target == self.array.data.ptr
        assert (count, dtype, op) == (values.size, {"float32": 2, "float64": 3}[values.dtype.name], 7)
        assert stream == self.device._stream.ptr
        self.calls.append("sum")
        with self.device._stream:
            queue("allReduce", "sum", lambda: np.multiply(values, 2, out=values), [values], [values])

    def start_sum(self, array: Any) -> Any:
        if isinstance(array, np.ndarray):
            return super().start_sum(array)
        self.array = array
        return self.device.start_sum(array)

    def broadcast(self, array: Any, root: int = 0) -> None:
        self.calls.append("broadcast")


def trained(lr: float, capture: bool, communicator: Any, norm: bool = False) -> tuple[Trainer, list[float]]:
    model: Any = gf.nn.MLP([4, 8, 3], "tanh", generator=gf.Generator(1))
    if norm:
        model = gf.nn.Sequential(model[0], gf.nn.BatchNorm1d(8), *model[1:])
    train = Batches(INPUTS, LABELS, 14, gf.Generator(2))
    optimizer = gf.optim.SGD(model.parameters(), lr=lr)
    trainer = Trainer(model, gf.cross_entropy, optimizer, train, capture=capture, communicator=communicator)
    return trainer, [epoch.train_loss for epoch in trainer.epochs(3)]


@pytest.mark.parametrize("capture", [False, True])
def test_gradients_are_summed_before_the_step(cupy: Any, capture: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the gradient is twice the rate. In a captured step, the sums are in the graph."""
    monkeypatch.setattr(reduction, "BUCKET", 1)
    with gf.use_device("emulated"):
        alone, expected = trained(0.2, capture, None)
        communicator = Doubling(cupy, monkeypatch)
        trainer, losses = trained(0.1, capture, communicator)
    assert losses == pytest.approx(expected, rel=1e-6)
    for p, q in zip(trainer.model.parameters(), alone.model.parameters(), strict=True):
        np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=0, atol=1e-6)
    assert communicator.calls[:4] == ["broadcast"] * 4
    sums = communicator.calls.count("sum")
    if capture:
        assert trainer._step.whole.status == "replaying"  # type: ignore[attr-defined]
        assert sums < 4 * trainer.step
    else:
        assert sums == 4 * trainer.step


def test_statistics_of_a_batch_are_summed_in_the_graph(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With them, 4 sums more in each step, a captured training has the bits of one that is not."""
    found = []
    with gf.use_device("emulated"):
        for capture in (False, True):
            communicator = Doubling(cupy, monkeypatch)
            trainer, losses = trained(0.1, capture, communicator, norm=True)
            found.append([losses, *[x.numpy().tolist() for x in trainer.model.state_dict().values()]])
            if not capture:
                assert communicator.calls.count("sum") == (4 + 1) * trainer.step
    assert trainer._step.whole.status == "replaying"  # type: ignore[attr-defined]
    assert communicator.calls.count("sum") < 5 * trainer.step
    assert found[0] == found[1]


def test_values_of_any_dtype_are_broadcast_as_bytes(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    communicator = Doubling(cupy, monkeypatch)
    monkeypatch.setattr(communicator, "broadcast", lambda *call: calls.append(call))
    with gf.use_device("emulated"):
        for dtype in ("bool", "float64"):
            communicator.device.broadcast(gf.ones(3, dtype=dtype).array)
    assert [call[2:5] for call in calls] == [(3, 6, 0), (24, 6, 0)]  # 6: UINT8


def test_values_on_a_device_are_summed(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with gf.use_device("emulated"):
        assert Doubling(cupy, monkeypatch).all_reduce(gf.tensor([1.0, 2.0])).tolist() == [2.0, 4.0]
        assert Doubling(cupy, monkeypatch).all_reduce(gf.tensor(3.0, dtype="float64")).item() == 6.0
