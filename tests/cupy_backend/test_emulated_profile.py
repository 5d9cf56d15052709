"""Profiles on the CuPy backend with an emulated CuPy: launches are those made, and device times are read at the end.

It says nothing about a GPU.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import emulated_cupy
import numpy as np
import pytest
from emulated_device import needs_compiler
from gradflow_cupy import cublaslt

import gradflow as gf
from gradflow.backend import ARRAY_FUNCTIONS
from gradflow.backend.graphs import Rows, taking_from

pytestmark = needs_compiler
State = emulated_cupy.State
LAUNCHES_NOTHING = {
    "empty", "asarray", "reshape", "broadcast_to", "permute_dims", "matrix_transpose", "squeeze", "expand_dims",
}  # fmt: skip


@pytest.fixture
def made(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what CuPy, cuBLASLt and the kernels launch, from now on."""
    launches: list[str] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *arguments, **options: (launches.append(name), function(*arguments, **options))[1]

    for name in {*ARRAY_FUNCTIONS, "array", "asnumpy"} - LAUNCHES_NOTHING:
        if (function := getattr(cupy, name)) is not None:
            monkeypatch.setattr(cupy, name, counted(name, function))
    array, launch = emulated_cupy.ndarray, emulated_cupy.Kernel.__call__
    monkeypatch.setattr(array, "__setitem__", counted("setitem", array.__setitem__))
    monkeypatch.setattr(
        emulated_cupy.Kernel, "__call__", lambda self, *arguments: counted(self.name, launch)(self, *arguments)
    )
    monkeypatch.setattr(cublaslt, "call", counted("product", cublaslt.call))
    return launches


def training_step(activation: str = "gelu") -> Any:
    model = gf.nn.Sequential(
        gf.nn.Linear(7, 5, activation=activation), gf.nn.LayerNorm(5), gf.nn.Dropout(0.2), gf.nn.Linear(5, 3)
    )
    optimizer = gf.optim.Adam(model.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = gf.cross_entropy(model(x), y)
        loss.backward()
        gf.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def test_launches_are_those_that_are_made(made: list[str]) -> None:
    with gf.use_device("emulated"):
        step = training_step()
        x, y = gf.random.normal((4, 7)), gf.tensor(np.arange(4) % 3)
        for _ in range(3):
            step(x, y)
        made.clear()
        with gf.profile() as p:
            for _ in range(2):
                step(x, y)
    assert p.total.launches == len(made), sorted(made)
    assert len(made) > 30
    assert {row.device for row in p.rows} <= {"emulated:0", ""}


def test_a_step_that_is_one_graph(cupy: Any) -> None:
    """Four launches: copies of both inputs to their places, the graph, and a copy of the result."""
    with gf.use_device("emulated"):
        step = gf.capture(training_step())
        x, y = gf.random.normal((4, 7)), gf.tensor(np.arange(4) % 3)
        for _ in range(6):
            step(x, y)
        with gf.profile() as p:
            for _ in range(2):
                step(x, y)
    assert step.status == "replaying"
    (row,) = [row for row in p.rows if row.phase == "replay" and row.name == "step"]
    tables = sum(part.calls for part in row.parts if part.name == "from_host_later")  # sent and copied to their place
    assert (row.calls, row.launches - 2 * tables, row.device) == (2, 8, "emulated:0")
    assert row.device_seconds > 0


def test_a_capture_in_a_profile(cupy: Any) -> None:
    """What is captured is in the profile, without launches and times; the losses are those without a profile."""
    x, y = gf.random.normal((4, 7), device="emulated"), gf.tensor(np.arange(4) % 3, device="emulated")
    losses = []
    for profiled in (False, True):
        gf.manual_seed(1)
        with gf.use_device("emulated"):
            step = gf.capture(training_step())
            with gf.profile() if profiled else contextlib.nullcontext() as p:
                found = [step(x, y) for _ in range(6)]
            assert step.status == "replaying"
            losses.append([loss.item() for loss in found])
    assert losses[0] == losses[1]
    (replays,) = [row for row in p.rows if row.phase == "replay" and row.name == "step"]
    (update,) = [part for part in replays.parts if part.name == "adam_step"]
    assert (update.calls, update.launches) == (2, 1)  # once before the graph is captured, and once into it


def test_a_step_that_may_be_skipped_is_timed(cupy: Any) -> None:
    x = gf.tensor([1.0, 2.0], device="emulated", requires_grad=True)
    optimizer, scaler = gf.optim.Adam([x], lr=0.1), gf.optim.GradScaler(init_scale=4.0)
    for _ in range(2):
        optimizer.zero_grad()
        with gf.profile() as p:
            scaler.scale((x * x).sum()).backward()
            scaler.step(optimizer)
        scaler.update()
    updates = [part for row in p.rows for part in row.parts if part.name == "adam_step"]
    updates += [row for row in p.rows if row.phase == "update"]
    assert updates
    assert all(row.device_seconds > 0 for row in updates if row.launches)


def test_device_times_are_read_at_the_end(made: list[str]) -> None:
    with gf.use_device("emulated"):
        step = training_step()
        x, y = gf.random.normal((4, 7)), gf.tensor(np.arange(4) % 3)
        step(x, y)
        with gf.profile() as p:
            before = State.synchronizations, State.transfers
            step(x, y)
            assert (State.synchronizations, State.transfers) == before
        waited = State.synchronizations
        rows = {(row.name, row.phase): row for row in p.rows}
    assert waited - before[0] == 1  # at the end of the profile
    assert State.synchronizations > waited  # for the events
    for row in rows.values():
        assert 0 <= row.device_seconds <= p.total.host_seconds
        assert (row.device_seconds > 0) == (row.launches > 0), row
    assert rows["linear", "backward"].device_seconds > 0
    assert p.total.device_seconds == pytest.approx(sum(row.device_seconds for row in p.rows))
    longest = max(p.rows, key=lambda row: row.device_seconds)
    assert str(p).splitlines()[1].startswith(longest.name)


def test_a_device_that_does_nothing_does_not_sort_the_table(backend: Any) -> None:
    """What ran on the CPU alone is sorted by the time on the host, though another device could be timed."""
    pause = gf.operation("pause", lambda F, x: (time.sleep(0.02), F.copy(x))[1], lambda F, g, _out, _x: g)
    x = gf.ones(200_000)
    with gf.profile() as p:
        pause(gf.ones(1))
        x.exp()
    rows = {row.name: row for row in p.rows}
    assert rows["pause"].device_seconds < rows["exp"].device_seconds  # the order by the device's time would differ
    assert str(p).splitlines()[1].startswith(max(p.rows, key=lambda row: row.self_seconds).name)


def test_a_trace_has_a_track_for_the_device(backend: Any, tmp_path: Path) -> None:
    with gf.use_device("emulated"):
        step = training_step()
        x, y = gf.random.normal((4, 7)), gf.tensor(np.arange(4) % 3)
        with gf.profile() as p:
            step(x, y)
    p.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {(e["pid"], e["args"]["name"]) for e in events if e["ph"] == "M"}
    assert {(1, "host"), (2, "device"), (2, "emulated:0")} <= names
    calls = [e for e in events if e["ph"] == "X" and e["pid"] == 1 and e["args"].get("launches")]
    on_device = [e for e in events if e["ph"] == "X" and e["pid"] == 2]
    assert [e["name"] for e in on_device] == [e["name"] for e in calls]
    for call, work in zip(calls, on_device, strict=True):  # the emulated device works while the host calls
        assert call["ts"] - 100 <= work["ts"]
        assert work["ts"] + work["dur"] <= call["ts"] + call["dur"] + 100


def test_a_device_that_is_late_is_late_in_a_trace(
    backend: Any, cupy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No work begins before its call, also if the device was busy with other programs when the profile began."""
    record, wait = cupy.cuda.Event.record, State.wait
    busy_until = 0.0

    def recorded(event: Any, *arguments: Any) -> None:
        nonlocal busy_until
        record(event, *arguments)
        busy_until = busy_until or event.time + 0.05
        event.time = max(event.time, busy_until)

    def waited(*arguments: Any) -> None:
        time.sleep(max(0.0, busy_until - time.perf_counter()))
        wait(*arguments)

    monkeypatch.setattr(cupy.cuda.Event, "record", recorded)
    monkeypatch.setattr(State, "wait", waited)
    with gf.profile() as p:
        x = gf.ones((2, 3), device="emulated")
        _ = x + x
    p.save(tmp_path / "trace.json")
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    calls, works = ([e for e in events if e["pid"] == pid and e["args"].get("launches")] for pid in (1, 2))
    assert [e["name"] for e in works] == [e["name"] for e in calls] == ["ones", "add"]
    assert all(call["ts"] <= work["ts"] for call, work in zip(calls, works, strict=True))


def test_a_trace_has_no_track_for_a_device_that_does_nothing(backend: Any, tmp_path: Path) -> None:
    with gf.profile() as p:
        gf.ones(3)
    p.save(tmp_path / "trace.json")
    assert {e["pid"] for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]} == {1}


def test_ranges_of_nvtx(cupy: Any) -> None:
    """They are nested as the spans are, and all end, also those that an exception leaves."""
    open_ranges: list[str] = []
    seen: list[str] = []

    def push(name: str) -> None:
        open_ranges.append(name)
        seen.append("/".join(open_ranges))

    cupy.cuda.nvtx = SimpleNamespace(RangePush=push, RangePop=open_ranges.pop)
    with gf.use_device("emulated"):
        layer = gf.nn.Linear(2, 3)
        with gf.profile() as p, p.region("part"):
            layer(gf.ones((4, 2))).sum().backward()
            with pytest.raises(ValueError, match="shape"):
                layer(gf.ones((4, 5)))
    assert open_ranges == []
    assert "part/Linear/linear/linear" in seen
    assert "part/backward/linear/linear_backward" in seen


def test_a_backend_that_starts_in_a_region_ends_no_range_of_others(cupy: Any) -> None:
    open_ranges = ["the user's"]
    cupy.cuda.nvtx = SimpleNamespace(RangePush=open_ranges.append, RangePop=open_ranges.pop)
    with gf.profile() as p:
        with p.region("part"):
            gf.ones(2, device="emulated")
        with p.region("next"):
            assert open_ranges == ["the user's", "next"]
    assert open_ranges == ["the user's"]


def test_a_range_ends_where_it_began(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a backend with ranges of its own starts inside it."""
    monkeypatch.setattr(State, "devices", 2)
    first, second = ["the user's"], ["another's"]
    cupy.cuda.nvtx = SimpleNamespace(RangePush=first.append, RangePop=first.pop)
    gf.get_backend("emulated:0")
    with gf.profile() as p:
        with p.region("part"):
            cupy.cuda.nvtx = SimpleNamespace(RangePush=second.append, RangePop=second.pop)
            gf.ones(2, device="emulated:1")
            assert first == ["the user's", "part"]
        with p.region("next"):
            assert (first, second) == (["the user's"], ["another's", "next"])
    assert (first, second) == (["the user's"], ["another's"])


def test_a_backend_that_starts_in_a_profile_is_measured(cupy: Any) -> None:
    with gf.profile() as p:
        x = gf.ones((2, 3), device="emulated")
        _ = x + x
    assert [(row.name, row.device, row.launches) for row in p.rows][-1] == ("add", "emulated:0", 1)
    assert "matmul" not in vars(x.backend)  # but in its class: the wrappers are gone


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_start_of_a_backend_is_no_call(cupy: Any, elsewhere: bool) -> None:
    """Nor does it matter which thread starts it."""
    with gf.profile() as p:
        if elsewhere:
            thread = threading.Thread(target=gf.get_backend, args=("emulated",))
            thread.start()
            thread.join()
        gf.ones(3, device="emulated")
    assert [(row.name, row.device_seconds > 0) for row in p.rows] == [("ones", True)]


def test_what_is_captured_is_not_between_events(backend: Any) -> None:
    """The work of a graph is done later: an event in it would have no time."""

    class NoRows(Rows):
        captures = True

        def array(self, source: Any, numbers: Any) -> Any:
            raise AssertionError

    with gf.use_device("emulated"), gf.profile() as p:
        with taking_from(NoRows()):
            gf.ones(2)
        gf.zeros(2)
    assert [(row.name, row.launches, row.device_seconds > 0) for row in p.rows] == [
        ("ones", 0, False),
        ("zeros", 1, True),
    ]


def test_a_replay_has_the_time_between_its_events(cupy: Any) -> None:
    """And not those of its parts, which are within it."""
    with gf.use_device("emulated"):
        step = gf.capture(lambda x: (x * 2.0).sum())
        for _ in range(3):
            step(gf.ones(3))
        x = gf.ones(3)
        with gf.profile() as p:
            step(x)
    (row,) = [row for row in p.rows if row.phase == "replay"]
    assert row.device_seconds > sum(part.device_seconds for part in row.parts) > 0
