"""`gradflow.testing.benchmark` in a project of its own: the fixture `device_benchmark`, and pytest-benchmark's options.

A clock that only the steps advance replaces the timer, so times are exact.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import gradflow as gf

pytest_plugins = ["pytester"]
pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).resolve().parent.parent
gf.diagnose("cuda")  # imports CuPy, where it is installed, before `pytester` notes which modules to remove
with contextlib.suppress(ImportError):
    import pygal  # noqa: F401 - it replaces the finder of metadata in `sys.meta_path`, which `pytester` would restore

CLOCK = """
now = pending = 0.0

def timer():
    global now
    now += 1e-9  # pytest-benchmark first measures the precision
    return now

def work(seconds):
    global now
    now += seconds

def queue(seconds):
    global pending
    pending += seconds

def synchronize():
    global now, pending
    now, pending = now + pending, 0.0
"""

CONFTEST = """
import clock
import gradflow as gf
from gradflow.backend import Diagnosis, discovery
from gradflow.testing import FakeBackend

pytest_plugins = ["gradflow.testing.benchmark"]

class Queued(FakeBackend):
    name = "queued"

    def synchronize(self):
        clock.synchronize()

class Broken(FakeBackend):
    name = "broken"

    @classmethod
    def diagnose(cls):
        return Diagnosis(False, "the plug is out", "put it in")

for backend in (Queued, Broken):
    discovery._registered.pop(backend.name, None)
    gf.register_backend(backend.name, backend)
"""

STRICT = """
if "strict" not in discovery._registered:
    import sys

    sys.path.insert(0, {folder!r})
    from strict import StrictBackend

    gf.register_backend("strict", StrictBackend)
"""

Run = Callable[..., Any]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs tests, given as source, in a new project; returns the result, with the rows measured."""
    for name in ("PYTEST_XDIST_WORKER", "GRADFLOW_REQUIRE_GPU", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(clock=CLOCK)
    pytester.makeconftest(CONFTEST)

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, ROOT / "backends"])))

    def run(source: str, *options: str, devices: str | None = "cpu", process: bool = False) -> Any:
        """Run in this process, or in a new one: PyTorch cannot be imported again after `pytester` has removed it."""
        pytester.makepyfile(test_it=f"import clock\nimport pytest\nimport gradflow as gf\n{source}")
        words = ["--benchmark-timer=clock.timer", "--benchmark-max-time=0.01", "--benchmark-json=rows.json", *options]
        if devices is not None:
            words.append(f"--gradflow-devices={devices}")
        pytester.syspathinsert()
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as in a process of its own
            warnings.filterwarnings("ignore", "Not saving anything")
            runner = pytester.runpytest_subprocess if process else pytester.runpytest_inprocess
            result = runner("-p", "no:cacheprovider", *words)
        path = pytester.path / "rows.json"
        text = path.read_text() if path.exists() else ""
        result.rows = json.loads(text)["benchmarks"] if text else []
        return result

    return run


TRAINING = """
def test_step(device_benchmark):
    model = gf.nn.Sequential(gf.nn.Linear(4, 8), gf.nn.ReLU(), gf.nn.Dropout(0.5), gf.nn.Linear(8, 3))
    optimizer = gf.optim.Adam(model.parameters(), lr=0.1)
    x, t = gf.random.normal((16, 4)), gf.zeros(16, dtype="int64")
    losses = []

    def step(x, t):
        clock.work(0.5)
        optimizer.zero_grad()
        loss = gf.cross_entropy(model(x), t)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        return loss

    loss = device_benchmark(step, x, t, batch=16)
    assert loss.item() == losses[-1]
    assert losses[0] != losses[1] == losses[2]         # the state after the first step is restored
    assert len(losses) >= 4 + 5 and len(set(losses[1:])) == 1
    assert optimizer.steps == 1
"""


def test_a_test_runs_on_each_device_and_its_row_is_described(run: Run) -> None:
    result = run(TRAINING, devices="cpu,fake")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*samples per second*", "test_it.py::test_step, batch 16: cpu 32.0, fake 32.0*"])
    assert [row["name"] for row in result.rows] == ["test_step[cpu]", "test_step[fake]"]
    for row, device in zip(result.rows, ("cpu", "fake"), strict=True):
        info = row["extra_info"]
        assert row["params"] == {"device": device}
        assert row["group"] == "test_it.py::test_step, batch 16"
        assert row["stats"]["median"] == pytest.approx(0.5)
        assert info["samples_per_s"] == pytest.approx(32)
        assert {key: info[key] for key in ("library", "device", "dtype", "batch", "steps", "threads")} == {
            "library": "gradflow", "device": device, "dtype": "float32", "batch": 16, "steps": 1,
            "threads": gf.get_num_threads(),
        }  # fmt: skip
        assert info["versions"]["gradflow"] == gf.__version__
        assert "numpy" in info["versions"]
        assert info["hardware"] == gf.get_backend(device).describe()


def test_the_first_call_is_not_timed_and_the_wait_is(run: Run) -> None:
    result = run(
        """
def test_step(device_benchmark):
    calls = []

    def step():
        calls.append(1)
        clock.work(0.5)
        clock.queue(2.0 if len(calls) > 1 else 500.0)

    device_benchmark(step, batch=1)
""",
        devices="queued",
    )
    result.assert_outcomes(passed=1)
    (row,) = result.rows
    assert row["stats"]["min"] == pytest.approx(2.5)
    assert row["stats"]["max"] == pytest.approx(2.5)


def test_times_are_those_of_one_step_of_many(run: Run) -> None:
    result = run(
        """
@pytest.mark.parametrize("n", [3])
def test_step(n, device_benchmark):
    weight = gf.zeros(1, requires_grad=True)           # a parameter without a module
    optimizer = gf.optim.SGD([weight], lr=1.0)

    def step():
        clock.work(1.0)
        weight.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return weight

    assert device_benchmark(step, steps=10, batch=n).tolist() == [-10.0]  # after the warm-up of ten steps
"""
    )
    result.assert_outcomes(passed=1)
    (row,) = result.rows
    assert row["stats"]["median"] == pytest.approx(1.0)
    assert row["stats"]["total"] == pytest.approx(row["stats"]["rounds"])
    assert row["group"] == "test_it.py::test_step[3], batch 3, each of 10 steps"
    assert row["extra_info"]["samples_per_s"] == pytest.approx(3.0)


def test_a_step_that_changes_nothing_is_calibrated_and_needs_no_batch_and_no_result(run: Run) -> None:
    result = run(
        """
def test_forward(device_benchmark):
    model = gf.nn.Linear(2, 2)
    x = gf.ones((1, 2))
    assert device_benchmark(lambda: (clock.work(1e-6), model(x))[0]) is None
"""
    )
    result.assert_outcomes(passed=1)
    (row,) = result.rows
    assert row["stats"]["iterations"] > 1
    assert row["group"] == "test_it.py::test_forward"
    assert "samples_per_s" not in row["extra_info"]
    assert "samples per second" not in result.stdout.str()


def test_setup_makes_the_inputs_off_the_clock(run: Run) -> None:
    result = run(
        """
def test_backward(device_benchmark):
    weight = gf.ones(3, requires_grad=True)

    def setup():
        clock.work(100.0)
        weight.grad = None
        return (weight.sum(),)

    def backward(loss):
        clock.work(1.0)
        loss.backward()

    device_benchmark(backward, setup=setup)
    assert weight.grad.tolist() == [1.0, 1.0, 1.0]
"""
    )
    result.assert_outcomes(passed=1)
    assert result.rows[0]["stats"]["max"] == pytest.approx(1.0)


def test_a_warning_says_that_something_else_changes(run: Run) -> None:
    result = run(
        """
def test_step(device_benchmark):
    numbers = iter(range(100_000))
    device_benchmark(lambda: clock.work(1.0) or next(numbers))
"""
    )
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*PytestWarning: the step returns another result after its state is restored*"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("gf.ones(1)", "TypeError: device_benchmark(step, *inputs) takes a function; got tensor([[]1.[]]*"),
        ("len, 'x', batch=0", "ValueError: batch must be an integer of at least 1; got 0"),
        ("len, 'x', batch=64.0", "ValueError: batch must be an integer of at least 1; got 64.0"),
        ("len, 'x', steps=True", "ValueError: steps must be an integer of at least 1; got True"),
        ("len, 'x', setup=4", "TypeError: setup must be a function; got 4"),
        ("len, 'x', torch=3", "TypeError: torch must be a function; got 3"),
        ("len, setup=lambda: 'x'", "TypeError: setup returns the inputs of the step as a tuple, or None; got 'x'"),
        ("lambda: 1 / 0", "ZeroDivisionError: division by zero"),
        ("len, 1, 2", "TypeError: len() takes exactly one argument (2 given)"),
    ],
)
def test_wrong_arguments_and_errors_of_the_step(run: Run, call: str, message: str) -> None:
    """Nothing is measured, and pytest-benchmark does not warn that its fixture was not used."""
    result = run(f"def test_step(device_benchmark):\n    device_benchmark({call})\n")
    result.assert_outcomes(failed=1, warnings=0)
    result.stdout.fnmatch_lines([f"E *{message}"])
    assert result.rows == []


def test_an_error_after_the_warm_up_leaves_no_row(run: Run) -> None:
    result = run(
        """
def test_step(device_benchmark):
    calls = iter(range(5))
    device_benchmark(lambda: clock.work(1.0) or next(calls) and None)
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *StopIteration"])
    assert result.rows == []


def test_an_unusable_device_is_skipped_with_the_diagnosis(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def test_step(device_benchmark):\n    device_benchmark(clock.work, 1.0)\n"
    result = run(source, "-rs", devices="cpu,broken")
    result.assert_outcomes(passed=1, skipped=1, warnings=0)
    result.stdout.fnmatch_lines(["SKIPPED*device 'broken:0' cannot be used: the plug is out; put it in"])
    monkeypatch.setenv("GRADFLOW_REQUIRE_GPU", "1")
    result = run(source, devices="cpu,broken")
    result.assert_outcomes(passed=1, errors=1, warnings=0)
    result.stdout.fnmatch_lines(["GRADFLOW_REQUIRE_GPU=1, but device 'broken:0' cannot be used: the plug is out*"])


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("cpu,gpu", "--gradflow-devices=cpu,gpu: ValueError: unknown device 'gpu'; there are cpu, cuda*"),
        ("cpu,", "--gradflow-devices=cpu,: ValueError: a device is a name like 'cpu', 'cuda' or 'cuda:0'; got ''"),
    ],
)
def test_an_unknown_device_is_a_usage_error_on_one_line(run: Run, devices: str, message: str) -> None:
    result = run("def test_step(device_benchmark): ...", devices=devices)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.stderr.lines if line]
    assert len(lines) == 1
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_by_default_all_usable_devices_are_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def test_step(device_benchmark):\n    device_benchmark(clock.work, 1.0)\n"
    for usable, ids in ((False, ["test_step[cpu]"]), (True, ["test_step[cpu]", "test_step[cuda]"])):
        monkeypatch.setattr(gf, "diagnose", lambda name, usable=usable: gf.backend.Diagnosis(usable, ""))
        result = run(source, "--collect-only", "-q", devices=None)
        assert [line.partition("::")[2] for line in result.outlines if "::" in line] == ids


def test_the_options_of_pytest_benchmark_are_kept(run: Run) -> None:
    """A plain benchmark without the parameter does not end a grouping by device."""
    source = """
@pytest.mark.parametrize("shape", [(2, 3), object])
def test_step(shape, device_benchmark):
    device_benchmark(lambda: clock.work(1.0))

@pytest.mark.benchmark(group="mine")
def test_grouped(device_benchmark):
    device_benchmark(lambda: clock.work(1.0))

def test_plain(benchmark):
    benchmark(clock.work, 1.0)
"""
    result = run(source, "--benchmark-group-by=param:device", devices="cpu,fake")
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(["*'device=None': 1 tests*", "*'device=cpu': 3 tests*", "*'device=fake': 3 tests*"])
    assert result.rows[0]["params"] == {"device": "cpu", "shape": "(2, 3)"}
    assert result.rows[-1]["params"] == {"device": None}
    assert {row["group"] for row in result.rows if row["name"].startswith("test_grouped")} == {"mine"}


def test_disabled_benchmarks_run_once(run: Run) -> None:
    source = """
def test_step(device_benchmark):
    calls = []
    assert device_benchmark(lambda x: calls.append(x) or 7, 1, batch=3) == 7
    assert calls == [1]
"""
    result = run(source, "--benchmark-disable", devices="cpu,fake")
    result.assert_outcomes(passed=2)
    assert result.rows == []
    assert "samples per second" not in result.stdout.str()
    run(source, "--benchmark-skip", devices="cpu,fake").assert_outcomes(skipped=2)


def test_pytest_benchmark_is_needed(run: Run, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("")
    plugin = ["-p", "no:benchmark", "-p", "gradflow.testing.benchmark"]
    result = pytester.runpytest_inprocess(*plugin)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: gradflow.testing.benchmark needs pytest-benchmark, which is disabled here"])
    imported = importlib.import_module

    def import_module(name: str) -> Any:
        if name == "pytest_benchmark":
            raise ModuleNotFoundError(name=name)
        return imported(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    result = pytester.runpytest_inprocess(*plugin)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ['ERROR: gradflow.testing.benchmark needs pytest-benchmark from the extra "benchmark" of gradflow-autograd; *']
    )
    assert len([line for line in result.stderr.lines if line]) == 1


PEER = """
def test_step(device_benchmark):
    x = gf.ones((2, 3), requires_grad=True)
    seen = []

    def make(device):
        import torch

        layer = torch.nn.Linear(3, 1).to(device)
        assert torch.get_num_threads() == gf.get_num_threads()

        def step(x, name):
            assert x.requires_grad and x.dtype == torch.float32 and x.device.type == device and name == "a"
            loss = torch.nn.functional.dropout(layer(x)).square().sum()
            (gradient,) = torch.autograd.grad(loss, layer.weight)
            with torch.no_grad():
                layer.weight -= 0.1 * gradient
            seen.append(loss.item())
            return loss

        return step

    device_benchmark(lambda x, name: clock.work(1.0) or x.sum(), x, "a", batch=2, torch=make)
    assert (device_benchmark.library, device_benchmark.device) in [("gradflow", "cpu"), ("PyTorch", "cpu")]
    assert len(set(seen[1:])) <= 1, seen

def test_alone(device_benchmark):
    device_benchmark(clock.work, 1.0)
"""


def needs_torch() -> None:
    """Skip the test without PyTorch. It is not imported: `pytester` would remove it, and it imports only once."""
    if not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")


@pytest.mark.slow
def test_pytorch_measures_its_own_step(run: Run) -> None:
    needs_torch()
    result = run(PEER, "-rs", devices="cpu,torch,torch:xpu", process=True)
    result.assert_outcomes(passed=3, skipped=3, warnings=0)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED*the test has no step of PyTorch: give device_benchmark one with torch=",
            "SKIPPED*PyTorch * finds no device 'xpu'",
        ]
    )
    ours, theirs = (row["extra_info"] for row in result.rows if row["name"].startswith("test_step"))
    assert (ours["library"], theirs["library"]) == ("gradflow", "PyTorch")
    assert theirs["dtype"] == "float32"
    assert theirs["versions"]["torch"].partition("+")[0] == version("torch").partition("+")[0]
    assert {row["params"]["device"] for row in result.rows} == {"cpu", "torch"}
    result = run(PEER, devices="torch:abacus", process=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --gradflow-devices=torch:abacus: *abacus*"])


def test_pytorch_is_optional(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else found(name, *a))
    result = run(PEER, "-rs", devices="cpu,torch")
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*PyTorch is not installed"])


@pytest.mark.slow
def test_the_example_of_the_page_runs_on_gradflow_and_on_pytorch(run: Run) -> None:
    needs_torch()
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    plain, extended = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    call = "    device_benchmark(step, x, t, batch=128)\n"
    assert plain.endswith(call)
    both = plain.removesuffix(call) + "\n" + extended
    result = run(both, "--benchmark-timer=time.perf_counter", devices="cpu,torch", process=True)
    result.assert_outcomes(passed=2, warnings=0)
    result.stdout.fnmatch_lines(["test_it.py::test_step, batch 128: cpu *, torch *"])
    result = run(plain, "--benchmark-disable", devices="cpu,fake")
    result.assert_outcomes(passed=2, warnings=0)


def shell(pytester: pytest.Pytester, *words: str) -> Any:
    """Run Python on the project, in a new process."""
    result = pytester.run(sys.executable, *words)
    result.text = result.stdout.str() + result.stderr.str()
    return result


@pytest.fixture
def project(run: Run, pytester: pytest.Pytester) -> None:
    """A project whose step takes SECONDS, by default 1, on three devices, with a benchmark without device."""
    pytest.importorskip("array_api_strict")
    folder = str(Path(__file__).parent / "backends")
    pytester.makeconftest(CONFTEST + STRICT.format(folder=folder))
    pytester.makepyfile(
        test_it="""
import os
import clock
import gradflow as gf

def test_step(device_benchmark):
    seconds = float(os.environ.get("SECONDS", "1.0"))
    device_benchmark(lambda x: clock.work(seconds) or gf.exp(x), gf.ones(3), batch=3)

def test_plain(benchmark):
    benchmark(clock.work, 1.0)
"""
    )
    pytester.makeini(
        "[pytest]\naddopts = --gradflow-devices=cpu,fake,strict --benchmark-timer=clock.timer "
        "--benchmark-max-time=0.01 --benchmark-columns=median,rounds"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_runs_are_saved_and_compared_and_a_regression_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = shell(pytester, "-m", "pytest", "--benchmark-save=before")
    assert saved.ret == 0, saved.text
    compare = ["--benchmark-compare", "--benchmark-compare-fail=median:5%"]
    same = shell(pytester, "-m", "pytest", *compare)
    assert same.ret == 0, same.text
    assert re.search(r"test_step\[strict\] \(NOW\)", same.text)
    monkeypatch.setenv("SECONDS", "1.06")
    slower = shell(pytester, "-m", "pytest", "--benchmark-save=after", *compare)
    assert slower.ret != 0
    assert "Performance has regressed" in slower.text
    for device in ("cpu", "fake", "strict"):
        assert re.search(rf"test_step\[{device}\] .*- Field 'median' has failed", slower.text), slower.text
    compared = shell(pytester, "-m", "pytest_benchmark", "compare", "--group-by=param:device", "--columns=median")
    assert compared.ret == 0, compared.text
    assert re.findall(r"benchmark 'device=(\w+)': (\d) tests", compared.text) == [
        ("None", "2"), ("cpu", "2"), ("fake", "2"), ("strict", "2"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_xdist_runs_each_benchmark_once_without_measuring(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result = shell(pytester, "-m", "pytest", "-n", "1")
    assert result.ret == 0, result.text
    assert "4 passed" in result.text
    assert "samples per second" not in result.text


def test_histograms_have_a_box_for_each_device(run: Run, pytester: pytest.Pytester) -> None:
    pytest.importorskip("pygal", reason="pygal, of the extra benchmark, is not installed")
    source = "def test_step(device_benchmark):\n    device_benchmark(clock.work, 1.0, batch=2)\n"
    run(source, "--benchmark-histogram=h", devices="cpu,fake").assert_outcomes(passed=2)
    (picture,) = pytester.path.glob("h-*.svg")
    assert {f"test_step[{device}]" for device in ("cpu", "fake")} <= set(
        re.findall(r">(test_step\[\w+\])<", picture.read_text())
    )
