"""`gradflow.profile`: which calls are measured, what is counted, and that the program runs as it does without."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import gradflow as gf
from gradflow import nn
from gradflow.backend import ARRAY_FUNCTIONS, KERNELS, launch_counters
from gradflow.backend.registry import on_start, started_backends
from gradflow.data import Batches
from gradflow.interception import profilers
from gradflow.profiling import Row
from gradflow.profiling.spans import is_asynchronous
from gradflow.profiling.table import table
from gradflow.replay.batches import has_graphs
from gradflow.testing import count_transfers
from gradflow.training import Trainer
from tests.devices import replays

VIEWS = {"empty", "reshape", "broadcast_to", "permute_dims", "matrix_transpose", "squeeze", "expand_dims"}


def network() -> Any:
    return nn.Sequential(nn.Linear(4, 8, activation="tanh"), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3)))


def training_step(model: Any) -> Any:
    optimizer = gf.optim.Adam(model.parameters(), lr=0.01)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = gf.cross_entropy(model(x), y)
        loss.backward()
        gf.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return step


def batch(n: int = 6) -> tuple[gf.Tensor, gf.Tensor]:
    return gf.random.normal((n, 4)), gf.tensor([i % 3 for i in range(n)], dtype="int64")


def calls(p: Any) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for row in p.rows:
        found[row.name, row.phase] = found.get((row.name, row.phase), 0) + row.calls
    return found


def row(p: Any, name: str, phase: str = "forward") -> Row:
    (found,) = [row for row in p.rows if (row.name, row.phase) == (name, phase)]
    assert isinstance(found, Row)
    return found


def sleeping(seconds: float) -> Any:
    def forward(F: Any, x: Any) -> Any:
        time.sleep(seconds)
        return F.multiply(x, 2.0)

    def rule(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        time.sleep(2 * seconds)
        return F.multiply(g, 2.0)

    return gf.operation("sleeping", forward, rule)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Any:
    yield
    assert not profilers
    assert not launch_counters
    assert not on_start
    for backend in started_backends():
        for name in (*ARRAY_FUNCTIONS, *KERNELS, "getitem", "to_host"):
            assert "profiling" not in getattr(getattr(backend, name), "__module__", "gradflow"), name


# ---------------------------------------------------------------------- calls


def test_calls_of_a_training_step(device: str) -> None:
    step, (x, y) = training_step(network()), batch()
    with gf.profile() as p:
        for _ in range(3):
            step(x, y)
    found = calls(p)
    for name in ("linear", "layer_norm", "cross_entropy"):
        times = 6 if name == "linear" else 3
        assert (found.pop((name, "forward")), found.pop((name, "backward"))) == (times, times)
    assert {name: n for (name, phase), n in found.items() if phase == "update"} == {
        "Adam.zero_grad": 3, "clip_grad_norm_": 3, "Adam.step": 3
    }  # fmt: skip
    assert {name for name, phase in found if phase == "backward"} <= {"add", "copy", "setitem"}  # of gradients
    assert {row.device for row in p.rows if row.launches} == {str(gf.get_backend().device)}


def test_elementwise_operations(device: str) -> None:
    """They take a fast path if they are recorded, and a general one otherwise."""
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    z = gf.tensor([3.0, 4.0])
    with gf.profile() as p:
        y = (x * z + z * z).exp()
        y.sum().backward()
    found = calls(p)
    assert {name: n for name, n in found.items() if name[0] in ("multiply", "add", "exp", "sum")} == {
        ("multiply", "forward"): 2, ("add", "forward"): 1, ("exp", "forward"): 1, ("sum", "forward"): 1,
        ("sum", "backward"): 1, ("exp", "backward"): 1, ("add", "backward"): 1, ("multiply", "backward"): 1,
    }  # fmt: skip
    assert row(p, "multiply").bytes_read == 2 * 8 + 8  # z * z reads z once
    assert row(p, "multiply").bytes_written == 2 * 8
    assert row(p, "exp").launches == 1
    assert row(p, "multiply", "backward").launches == 1  # only for x


def test_launches_are_calls_of_array_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device whose kernels are composed."""
    with gf.use_device("fake"):
        step, (x, y), backend = training_step(network()), batch(), gf.get_backend()
        made = []

        def counted(name: str, function: Any) -> Any:
            return lambda *arguments, **options: (made.append(name), function(*arguments, **options))[1]

        for function in {*ARRAY_FUNCTIONS, "copy", "setitem"} - VIEWS:
            monkeypatch.setattr(backend, function, counted(function, getattr(backend, function)))
        with gf.profile() as p:
            step(x, y)
    assert p.total.launches == len(made)
    assert p.total.launches > 40


def test_views_launch_and_move_nothing(device: str) -> None:
    x = gf.ones((4, 6))
    with gf.profile() as p:
        y = x.reshape((6, 4)).T[1:, 2]
    assert y.shape == (3,)
    assert sum(row.calls for row in p.rows) >= 3
    assert (p.total.launches, p.total.bytes_read, p.total.bytes_written) == (0, 0, 0)


def test_bytes(device: str) -> None:
    layer, x = nn.Linear(3, 5).requires_grad_(False), gf.ones((4, 3))
    weights = 4 * (3 * 5 + 5)
    index = gf.tensor([2, 0], dtype="int64")
    with gf.profile() as p:
        y = layer(x)
        y[index] = 1.0
        total = y.sum()
        total.tolist()
    found = row(p, "linear")
    assert (found.bytes_read, found.bytes_written) == (4 * 4 * 3 + weights, 4 * 4 * 5)
    assert (row(p, "sum").bytes_read, row(p, "sum").bytes_written) == (4 * 4 * 5, 4)
    assert row(p, "to_host").bytes_read == 4


def test_an_output_is_not_read() -> None:
    """Neither one that is a keyword, nor one that is a position."""
    F = gf.get_backend("cpu")
    a, out = F.ones((2, 2)), F.zeros((2, 2))
    index, size = F.asarray([1, 0]), 4 * a.dtype.itemsize
    with gf.profile() as p:
        F.gemm(a, a, out)
        F.scatter_add(a, index, (2, 2), into=out)
    assert (row(p, "gemm").bytes_read, row(p, "gemm").bytes_written) == (size, size)  # a once
    assert (row(p, "scatter_add").bytes_read, row(p, "scatter_add").bytes_written) == (size + index.nbytes, size)


def test_an_optimizer_writes_what_it_changes() -> None:
    weights = gf.ones((10,), requires_grad=True)
    optimizer = gf.optim.Adam([weights])
    weights.sum().backward()
    with gf.profile() as p:
        optimizer.step()
    found, flat = row(p, "Adam.step", "update"), 4 * optimizer._blocks[0].gradients.size
    assert (found.bytes_read, found.bytes_written) == (4 * flat, 3 * flat)


# ---------------------------------------------------------------------- times


def test_sums_of_times(device: str) -> None:
    step, (x, y) = training_step(network()), batch()
    with gf.profile() as p:
        for _ in range(2):
            step(x, y)
    assert p.total.self_seconds == pytest.approx(sum(row.self_seconds for row in p.rows))
    assert p.total.self_seconds <= p.total.host_seconds
    for each in p.rows:
        assert 0 <= each.self_seconds <= each.host_seconds + 1e-12
        if not is_asynchronous(gf.get_backend(device)):
            assert each.device_seconds <= each.self_seconds + 1e-9  # a clock for both
        assert each.device_seconds == pytest.approx(
            sum(part.device_seconds for part in each.parts) or each.device_seconds
        )
        assert each.launches == (sum(part.launches for part in each.parts) or each.launches)
    assert math.fsum(row.launches for row in p.rows) == p.total.launches
    # one after another, and the end waits for the last; an event of CUDA is exact to about 0.5 us
    assert p.total.device_seconds <= p.total.host_seconds + 1e-6 * p.total.launches


def test_a_slow_operation() -> None:
    slow, x = sleeping(0.01), gf.ones(3, requires_grad=True)
    with gf.profile() as p:
        slow(x).sum().backward()
    assert row(p, "sleeping").host_seconds >= 0.01
    assert row(p, "sleeping", "backward").host_seconds >= 0.02
    assert row(p, "sleeping").device_seconds < 0.01 <= row(p, "sleeping").self_seconds
    assert p.total.host_seconds >= 0.03
    slowest = max(p.rows, key=lambda r: r.self_seconds)
    assert str(p).splitlines()[1].split()[:3] == ["sleeping", slowest.phase, "1"]


def test_operations_inside_operations() -> None:
    """The time of the inner one is in the host time of the outer one, and not in its own."""
    slow = sleeping(0.01)

    def forward(F: Any, x: Any) -> Any:
        return slow(gf.Tensor(x, F)).array

    outer = gf.operation("outer", forward, lambda F, g, _out, _x: g)
    with gf.profile() as p:
        outer(gf.ones(3))
    assert row(p, "outer").host_seconds >= row(p, "sleeping").host_seconds >= 0.01
    assert row(p, "outer").self_seconds == pytest.approx(
        row(p, "outer").host_seconds - row(p, "sleeping").host_seconds
    )  # fmt: skip
    assert row(p, "outer").launches == 0
    assert row(p, "sleeping").launches == 1


def test_nothing_is_copied_or_waited_for(device: str) -> None:
    step, (x, y) = training_step(network()), batch()
    with count_transfers() as plain:
        step(x, y)
    with gf.profile() as p, count_transfers() as profiled:
        step(x, y)
    assert profiled == plain
    with count_transfers() as reading:
        _ = p.rows, str(p)
    assert reading.synchronizations == 0 if device == "cpu" else True


# ---------------------------------------------------------------------- the program is the same


def test_values_are_the_same(device: str) -> None:
    def run(profiled: bool) -> list[Any]:
        gf.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8, activation="relu"), nn.Dropout(0.3), nn.Linear(8, 3))
        step, (x, y) = training_step(model), batch()
        if profiled:
            with gf.profile():
                losses = [step(x, y) for _ in range(3)]
        else:
            losses = [step(x, y) for _ in range(3)]
        return [loss.item() for loss in losses] + [p.tolist() for p in model.parameters()]

    assert run(True) == run(False)


def test_other_kinds_of_derivatives() -> None:
    def f(x: Any) -> Any:
        return (x.tanh() * x).sum()

    x = gf.tensor([0.1, 0.5])
    expected = [
        gf.hessian(f)(x).tolist(),
        gf.jvp(f, (x,), (x,))[1].tolist(),
        gf.grad(lambda x: gf.checkpoint(f, x))(x).tolist(),
    ]
    with gf.profile() as p:
        found = [
            gf.hessian(f)(x).tolist(),
            gf.jvp(f, (x,), (x,))[1].tolist(),
            gf.grad(lambda x: gf.checkpoint(f, x))(x).tolist(),
        ]
    assert found == expected
    assert calls(p)["tanh", "forward"] >= 3
    assert p.total.self_seconds <= p.total.host_seconds


def test_observers_see_what_they_see_without() -> None:
    x = gf.tensor([1.0, math.inf], requires_grad=True)
    with gf.profile() as p, pytest.raises(gf.NonFiniteError, match=r"^multiply gave inf"), gf.detect_anomaly():
        (x * 2.0).sum().backward()
    assert calls(p)["multiply", "forward"] == 1


# ---------------------------------------------------------------------- captured steps


@pytest.mark.parametrize("start", [0, 5])
def test_captured_steps(device: str, start: int) -> None:
    """Also a step that is recorded while it is profiled; a replay calls the functions that the step does.

    On a device with graphs, the first replay calls them, the second one captures them without launches of their own,
    and from then on, a replay launches copies of both inputs, the graph, and a copy of the result; and the table of
    numbers for some steps, when it is due, is sent and copied to its place.
    """
    plain, (x, y) = training_step(network()), batch()
    plain(x, y)  # the first step on a device makes constants, such as the gradient that a backward pass begins with
    with gf.profile() as expected:
        plain(x, y)
    step = gf.capture(training_step(network()))
    for _ in range(start):
        step(x, y)
    with gf.profile() as p:
        for _ in range(4):
            step(x, y)
    assert replays(step.status)
    step(x, y)
    assert replays(step.status)
    replay = row(p, "step", "replay")
    assert replay.calls == (4 if start else 2)
    assert replay.device_seconds > 0
    parts = {part.name: part for part in replay.parts}
    graphs = has_graphs(gf.get_backend(device))
    called = 0 if graphs and start else 1 if graphs else replay.calls
    if called:
        assert {*parts} >= {"linear", "linear_backward", "adam_step", "clip_global_norm"}
    moving = {"copy", "from_host", "from_host_later"}  # inputs, results and numbers
    assert sum(part.launches for part in parts.values() if part.name not in moving) == called * expected.total.launches
    tables = parts["from_host_later"].calls if "from_host_later" in parts else 0
    own = (4 * (replay.calls - called) + tables) if graphs else 0
    assert replay.launches - sum(part.launches for part in parts.values()) == own
    if not start:
        assert calls(p)["linear", "backward"] == 4
        assert calls(p)["Adam.step", "update"] == 2


def test_a_captured_step_cannot_profile_itself() -> None:
    @gf.capture
    def step(x: Any) -> Any:
        with gf.profile():
            return x * 2.0

    with pytest.raises(RuntimeError, match=r"put `with gf\.profile"):
        step(gf.ones(2))


# ---------------------------------------------------------------------- regions


def test_modules_are_regions_forward_and_backward(device: str) -> None:
    model, (x, y) = network(), batch()
    with gf.profile() as p:
        with p.region("loss"):
            loss = gf.cross_entropy(model(x), y)
        loss.backward()
    where = {(row.name, row.region): row.calls for row in p.rows if row.phase == "forward"}
    assert where["linear", "loss/Sequential.0"] == 1
    assert where["layer_norm", "loss/Sequential.1.0"] == 1
    assert where["linear", "loss/Sequential.1.1"] == 1
    assert where["cross_entropy", "loss"] == 1
    back = {(row.name, row.region) for row in p.rows if row.phase == "backward"}
    assert {(name, region) for name, region in back if name in ("linear", "layer_norm", "cross_entropy")} == {
        ("linear", "loss/Sequential.0"), ("layer_norm", "loss/Sequential.1.0"), ("linear", "loss/Sequential.1.1"),
        ("cross_entropy", "loss"),
    }  # fmt: skip
    text = p.table("region")
    assert "loss/Sequential.1.1" in text
    assert text.splitlines()[0].split()[:2] == ["region", "phase"]


def test_modules_that_are_no_submodules() -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return nn.ReLU()(x)

    with gf.profile() as p:
        Odd()(gf.ones(2))
        nn.ReLU()(gf.ones(2))
    assert [row.region for row in p.rows if row.region] == ["Odd.ReLU", "ReLU"]


def test_regions_are_nested_and_end_with_an_exception() -> None:
    with gf.profile() as p:
        with pytest.raises(ValueError, match=r"^no$"), p.region("a"):  # noqa: PT012
            with p.region("b"):
                gf.ones(1)
            gf.zeros(1)
            raise ValueError("no")
        gf.full((1,), 2.0)
    assert [(row.name, row.region) for row in p.rows] == [("ones", "a/b"), ("zeros", "a"), ("full", "")]


def test_a_graph_from_before_belongs_nowhere() -> None:
    layer = nn.Linear(2, 2)
    loss = layer(gf.ones((1, 2))).sum()
    with gf.profile() as p, p.region("later"):
        loss.backward()
    assert row(p, "linear", "backward").region == ""


# ---------------------------------------------------------------------- errors, threads


def test_an_exception_inside() -> None:
    x = gf.ones(3, requires_grad=True)
    broken = gf.operation("broken", lambda F, x: F.add(x, 1.0), lambda F, g, _out, _x: F.matmul(g, [g]))
    with pytest.raises(Exception, match=r".") as caught, gf.profile() as p:  # noqa: PT012
        with pytest.raises(ValueError, match="shape"):
            nn.Linear(2, 2)(gf.ones((1, 3)))
        y = broken(x).sum()
        y.backward()
    assert not isinstance(caught.value, AssertionError)
    assert row(p, "sum", "backward").calls == 1
    assert row(p, "broken", "backward").calls == 1
    assert "broken" in str(p)
    with gf.profile() as again:
        gf.ones(1)
    assert [(row.name, row.phase, row.region) for row in again.rows] == [("ones", "forward", "")]


def test_profiles_are_not_nested() -> None:
    with gf.profile() as p:
        with pytest.raises(RuntimeError, match="is running in this thread"), gf.profile():
            raise AssertionError
        gf.ones(1)
    assert row(p, "ones").calls == 1


def test_use_before_inside_and_after(tmp_path: Path) -> None:
    p = gf.profile()
    assert repr(p) == "<profile, not started>"
    with pytest.raises(RuntimeError, match="has not begun"):
        str(p)
    with pytest.raises(RuntimeError, match="not running"), p.region("a"):
        pass
    with p:
        assert repr(p) == "<profile, running>"
        for read in (lambda: p.rows, lambda: p.total, lambda: str(p), lambda: p.save(tmp_path / "a.json")):
            with pytest.raises(RuntimeError, match="has not ended"):
                read()
        with pytest.raises(TypeError, match="string; got 3"), p.region(3):
            pass
        with pytest.raises(ValueError, match="the name of a region is empty"), p.region(""):
            pass
    with pytest.raises(RuntimeError, match="not running"), p.region("a"):
        pass
    with pytest.raises(RuntimeError, match=r"call gradflow\.profile"), p:
        pass
    assert repr(p).startswith("<profile of 0 calls in ")
    with pytest.raises(ValueError, match="'operation' or by 'region'; got 'layer'"):
        p.table("layer")
    assert not (tmp_path / "a.json").exists()


def test_each_thread_has_a_profile_of_its_own() -> None:
    x = gf.ones(2)
    barrier, found = threading.Barrier(3, timeout=30), {}

    def run(name: str) -> None:
        with gf.profile() as p:
            barrier.wait()
            _ = x + x if name == "add" else x * x
            barrier.wait()
        found[name] = calls(p)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("add", "multiply")]
    for thread in threads:
        thread.start()
    barrier.wait()
    _ = x - x  # a thread without a profile
    barrier.wait()
    for thread in threads:
        thread.join()
    assert found == {"add": {("add", "forward"): 1}, "multiply": {("multiply", "forward"): 1}}


def test_a_profile_stays_in_its_thread() -> None:
    errors: list[str] = []

    def other() -> None:
        for use in (lambda: p.region("a").__enter__(), lambda: p.__exit__(None, None, None)):
            try:
                use()
            except RuntimeError as error:
                errors.append(str(error))

    with gf.profile() as p:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [error.partition(" ")[0] for error in errors] == ["a", "a"]
    assert errors[1] == "a profile ends in the thread in which it began"


def test_a_device_that_starts_inside() -> None:
    """`fake:1` may have started in an earlier test; then it is measured, too."""
    with gf.profile() as p:
        x = gf.ones(2, device="fake:1")
        _ = x + x
    assert row(p, "add").device == "fake:1"


# ---------------------------------------------------------------------- tables and traces


def rows(*names: str) -> list[Row]:
    return [Row(name, "forward", "", "cpu", 7, 0.5, 0.5, 0.25, 3, 10**7, 2 * 10**9) for name in names]


def test_a_table_of_nothing() -> None:
    with gf.profile() as p:
        pass
    assert str(p) == "nothing was measured"
    assert p.rows == []
    assert p.total.calls == 0
    assert p.total.host_seconds > 0


def test_a_table_is_aligned() -> None:
    long = "a" * 30 + "b" * 30
    several = [*rows("short", long), Row("other", "backward", "", "cuda:0", 10**9, 4e5, 4e5, 1.0, 10**12, 0, 0)]
    total = Row("total", "", "", "", 10**9 + 14, 5e5, 5e5, 1.5, 10**12 + 6, 2 * 10**7, 4 * 10**9)
    lines = table(several, total, False, "operation").splitlines()
    assert lines[0].split() == [
        "operation", "phase", "device", "calls", "host", "ms", "mean", "us", "device", "ms", "share", "launches",
        "read", "MB", "written", "MB",
    ]  # fmt: skip
    assert lines[1].split()[:5] == ["other", "backward", "cuda:0", "1000000000", "400000000.000"]
    assert {lines[2].split()[0], lines[3].split()[0]} == {"short", "a" * 13 + "..." + "b" * 24}
    assert lines[4].split() == ["between", "operations", "99999000.000", "20.0%"]
    assert lines[5].split()[0] == "total"
    assert {len(line) for line in lines if line.endswith("0")} == {len(lines[0])}
    shares = [float(word[:-1]) for line in lines[1:-1] for word in line.split() if word.endswith("%")]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_functions_of_the_backend_are_shown_below_an_operation() -> None:
    model, (x, y) = nn.MLP([4, 8, 8, 3]), batch()
    with gf.profile() as p:
        gf.cross_entropy(model(x), y)
    lines = [line.split() for line in str(p).splitlines()]
    at = next(i for i, words in enumerate(lines) if words[0] == "perceptron")
    assert lines[at][1:3] == ["forward", "1"]
    assert lines[at + 1][:2] == ["linear", "3"]
    assert ["softmax_cross_entropy"] not in [words[:1] for words in lines]  # one for one: not shown


def check_trace(path: Path) -> list[dict[str, Any]]:
    """Check a file against the Trace Event Format; returns the complete events of the host."""
    trace = json.loads(path.read_text("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid", "tid"} <= set(event)
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
        else:
            assert event["ph"] == "X"
            assert isinstance(event["cat"], str)
            assert isinstance(event["args"], dict)
            assert event["ts"] >= 0
            assert event["dur"] >= 0
    found = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == 1]
    stack: list[float] = []
    for event in found:  # in the order of their beginnings; each ends before the one around it does
        while stack and stack[-1] <= event["ts"]:
            stack.pop()
        assert not stack or event["ts"] + event["dur"] <= stack[-1] + 1e-3
        stack.append(event["ts"] + event["dur"])
    return found


def test_a_trace(device: str, tmp_path: Path) -> None:
    step, (x, y) = training_step(network()), batch()
    with gf.profile() as p, p.region('a "step"\n'):
        step(x, y)
    p.save(tmp_path / "trace.json")
    events = check_trace(tmp_path / "trace.json")
    assert events[0]["name"] == 'a "step"\n'
    kinds = {event["cat"] for event in events}
    assert kinds == {"region", "opaque", "module", "operation", "call", "backward", "node"}
    assert sum(event["args"].get("launches", 0) for event in events) == p.total.launches
    within = [event for event in events if event["cat"] == "node"]
    (backward,) = [event for event in events if event["cat"] == "backward"]
    assert all(backward["ts"] <= e["ts"] <= backward["ts"] + backward["dur"] for e in within)


def test_a_trace_that_cannot_be_written(tmp_path: Path) -> None:
    with gf.profile() as p:
        gf.ones(1)
    with pytest.raises(FileNotFoundError, match="missing"):
        p.save(tmp_path / "missing" / "trace.json")
    with pytest.raises(FileExistsError):
        p.save(tmp_path)
    p.save(tmp_path / "trace.json")
    check_trace(tmp_path / "trace.json")


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("capture", [False, True])
def test_a_trainer(capture: bool) -> None:
    x, y = batch(20)
    train = Batches(x, y, 5)
    model = nn.MLP([4, 8, 3])
    trainer = Trainer(model, gf.cross_entropy, gf.optim.SGD(model.parameters(), lr=0.1), train, train, capture=capture)
    with gf.profile() as p:
        for _ in trainer.epochs(3):
            pass
    if capture:
        assert sum(row.calls for row in p.rows if row.phase == "replay") > 0
    else:
        assert calls(p)["perceptron", "backward"] == 12
        assert calls(p)["SGD.step", "update"] == 12
    assert p.total.self_seconds <= p.total.host_seconds
