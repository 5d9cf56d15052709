"""A plug-in of pytest for benchmarks on several devices: the fixture `device_benchmark`, on top of pytest-benchmark.

    pytest -p gradflow.testing.benchmark --gradflow-devices=cpu,cuda,torch

A test that takes `device_benchmark` runs once for each device, which is current during the test:

    def test_step(device_benchmark):
        model = nn.MLP([784, 128, 10])
        ...
        device_benchmark(step, x, t, batch=64)

`torch` is PyTorch on the CPU, `torch:cuda` PyTorch on a GPU; a test runs there if it gives a step of PyTorch. All
options of pytest-benchmark work: saving, comparing, failing on a regression, histograms.

PYTEST_DONT_REWRITE: it asserts nothing, so it may be imported, for annotations, before pytest loads it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from operator import index
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.environment import imported_extra
from gradflow.testing import host, live_state
from gradflow.text import one_line, three_digits

MAX_ROUNDS = 10_000
_SPEEDS = pytest.StashKey[dict[str, dict[str, float]]]()
"""Samples per second by group and device."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of the devices."""
    parser.getgroup("gradflow").addoption(
        "--gradflow-devices", metavar="NAMES",
        help="the devices of benchmarks, such as cpu,cuda,torch (default: cpu, and cuda where it can be used); torch "
        "is PyTorch on the CPU, torch:cuda PyTorch on a GPU",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Check the names of the devices. Raises UsageError, on one line, for an unknown one, without pytest-benchmark."""
    if not config.pluginmanager.hasplugin("benchmark"):
        try:
            imported_extra("pytest_benchmark", "pytest-benchmark", "benchmark", what="gradflow.testing.benchmark")
        except ModuleNotFoundError as error:
            raise pytest.UsageError(str(error)) from None
        raise pytest.UsageError("gradflow.testing.benchmark needs pytest-benchmark, which is disabled here")
    config.stash[_SPEEDS] = {}
    for name in devices(config):
        library, device = _parts(name)
        try:
            if library == "gradflow":
                gf.get_backend(device)
            elif importlib.util.find_spec("torch"):
                importlib.import_module("torch").device(device)
        except gf.DeviceUnavailableError:
            pass  # its tests are skipped
        except (ValueError, RuntimeError) as error:
            raise pytest.UsageError(f"--gradflow-devices={','.join(devices(config))}: {one_line(error)}") from None


def devices(config: pytest.Config) -> list[str]:
    """Return the names of the devices that benchmarks run on."""
    named = config.getoption("gradflow_devices", default=None)
    if named is not None:
        return list(dict.fromkeys(name.strip() for name in named.split(",")))
    return ["cpu", *["cuda"] * (_gpu_required() or gf.diagnose("cuda").usable)]


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let devices vary fastest, so that the rows of a group run one after another, under the same load."""
    if "device_benchmark" in metafunc.fixturenames:
        metafunc.parametrize("device_benchmark", devices(metafunc.config), indirect=True)


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_benchmark_group_stats(benchmarks: list[dict[str, Any]]) -> None:
    """Let `--benchmark-group-by=param:device` group the other benchmarks of the project under None."""
    _add_device(benchmarks)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """The same for `pytest-benchmark compare`, which reads the file without plug-ins."""
    _add_device(output_json["benchmarks"])


def _add_device(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["params"] = {"device": None, **(row["params"] or {})}


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the samples per second of each group, with the ratio to its first device."""
    speeds = config.stash.get(_SPEEDS, {})
    if speeds and not config.getoption("benchmark_quiet"):
        terminalreporter.section("samples per second")
        for group, row in speeds.items():
            first = next(iter(row.values()))
            cells = [
                f"{name} {three_digits(speed)}" + f" ({three_digits(speed / first)}x)" * (speed != first)
                for name, speed in row.items()
            ]
            terminalreporter.write_line(f"{group}: {', '.join(cells)}")


class DeviceBenchmark:
    """What the fixture `device_benchmark` is: call it once in a test, with the step to measure.

    Attributes: `name`, as in `--gradflow-devices`; `library`, "gradflow" or "PyTorch"; `device`, its device; `called`.
    """

    def __init__(self, name: str, benchmark: Any, request: pytest.FixtureRequest) -> None:
        self.name = name
        self.library, self.device = _parts(name)
        self.called = False
        self._benchmark, self._request = benchmark, request

    def __call__(
        self,
        step: Callable[..., Any],
        *inputs: Any,
        batch: int | None = None,
        steps: int = 1,
        setup: Callable[[], tuple[Any, ...] | None] | None = None,
        torch: Callable[[str], Callable[..., Any]] | None = None,
    ) -> Any:
        """Measure `step(*inputs)` and the wait for the device, and return the step's last result.

        step: a function, for example of one training step.
        inputs: its arguments; on `torch`, gradflow's tensors and NumPy arrays become PyTorch's.
        batch: the samples of one step, for samples per second (default: these are not reported).
        steps: how many steps one round takes, with one wait at its end (default 1); times are per step.
        setup: runs before each round, off the clock; may return the inputs as a tuple.
        torch: for the rows of PyTorch, a function that takes a device of PyTorch, such as "cpu", and returns the same
            step written with PyTorch. Without it, these rows are skipped.

        The step runs before the clock starts, so kernels are compiled, memory pools filled and lazy state made.
        What a step changes is restored before each round and at the end (see `gradflow.testing.live_state`). A warning
        says if a step gives another result after that: then it changes something else. With `--benchmark-disable` and
        under xdist, the step runs once and nothing is measured.

        Raises TypeError and ValueError for wrong arguments; errors of the step pass through.
        """
        self.called = True
        if not callable(step):
            raise TypeError(f"device_benchmark(step, *inputs) takes a function; got {step!r}")
        for argument, function in (("setup", setup), ("torch", torch)):
            if function is not None and not callable(function):
                raise TypeError(f"{argument} must be a function; got {function!r}")
        for argument, number in (("batch", 1 if batch is None else batch), ("steps", steps)):
            if isinstance(number, bool) or not hasattr(number, "__index__") or index(number) < 1:
                raise ValueError(f"{argument} must be an integer of at least 1; got {number!r}")
        if self.library == "PyTorch":
            if torch is None:
                pytest.skip("the test has no step of PyTorch: give device_benchmark one with torch=")
            step, inputs = torch(self.device), tuple(_to_torch(value, self.device) for value in inputs)
        synchronize = self._synchronize()

        def timed(*arguments: Any) -> Any:
            for _ in itertools.repeat(None, steps):
                result = step(*arguments)
            synchronize()
            return result

        changed: list[live_state.Saved] = []

        def prepared() -> tuple[tuple[Any, ...], dict[str, Any]]:
            for each in changed:
                each.restore()
            given = setup() if setup else None
            if not isinstance(given, (tuple, type(None))):
                raise TypeError(f"setup returns the inputs of the step as a tuple, or None; got {given!r}")
            synchronize()
            return inputs if given is None else given, {}

        benchmark = self._benchmark
        if not benchmark.enabled:
            return benchmark.pedantic(timed, setup=prepared)
        timed(*prepared()[0])
        before = live_state.saved()
        first = timed(*prepared()[0])
        changed += [each for each in before if each.changed()]
        del before
        elapsed = math.inf
        for _ in range(2):
            start = time.perf_counter()
            arguments, _ = prepared()
            second = timed(*arguments)
            elapsed = min(elapsed, time.perf_counter() - start)
        if not live_state.same(first, second, rtol=1e-4):
            warnings.warn(
                "the step returns another result after its state is restored: it changes something that "
                "device_benchmark does not see, which setup= can restore", pytest.PytestWarning, stacklevel=2,
            )  # fmt: skip
        if benchmark.group is None:
            benchmark.group = self._group(batch, steps)
        if changed or setup:
            result = benchmark.pedantic(timed, setup=prepared, rounds=self._rounds(elapsed))
        else:
            result = benchmark(timed, *inputs)
        for each in changed:
            each.restore()
        times = benchmark.stats.stats.data
        times[:] = [seconds / steps for seconds in times]
        self._describe(batch, steps, [*arguments, result])
        return result

    def _rounds(self, elapsed: float) -> int:
        """How many rounds of so many seconds, with what precedes them, fit into the limits of pytest-benchmark."""
        option, marker = self._request.config.option, self._request.node.get_closest_marker("benchmark")
        limits = {"max_time": option.benchmark_max_time, "min_rounds": option.benchmark_min_rounds}
        limits |= marker.kwargs if marker else {}
        return max(int(limits["min_rounds"]), min(MAX_ROUNDS, round(float(limits["max_time"]) / max(elapsed, 1e-9))))

    def _group(self, batch: int | None, steps: int) -> str:
        """The test without its device, so that the devices of one test stand in one table."""
        others = ", ".join(str(value) for name, value in self._benchmark.params.items() if name != "device")
        group: str = self._request.node.nodeid.partition("[")[0] + f"[{others}]" * bool(others)
        return group + (f", batch {batch}" if batch else "") + (f", each of {steps} steps" if steps > 1 else "")

    def _describe(self, batch: int | None, steps: int, values: list[Any]) -> None:
        """Add to the row what a reader needs to interpret it."""
        benchmark = self._benchmark
        dtypes = (str(value.dtype).removeprefix("torch.") for value in values if hasattr(value, "dtype"))
        threads = sys.modules["torch"].get_num_threads() if self.library == "PyTorch" else gf.get_num_threads()
        benchmark.extra_info |= {
            "library": self.library, "device": self.device, "steps": steps, "threads": threads,
            "dtype": next((dtype for dtype in dtypes if "float" in dtype), None), "versions": versions(),
            **benchmark.extra_info,
        }  # fmt: skip
        if self.library == "gradflow":
            benchmark.extra_info["hardware"] = gf.get_backend(self.device).describe()
        if batch:
            speed = batch / benchmark.stats.stats.median
            benchmark.extra_info |= {"batch": batch, "samples_per_s": speed}
            self._request.config.stash[_SPEEDS].setdefault(benchmark.group, {})[self.name] = speed

    def _synchronize(self) -> Callable[[], Any]:
        if self.library == "PyTorch":
            return _torch_module(self.device).synchronize  # type: ignore[no-any-return]
        return gf.get_backend(self.device).synchronize


@pytest.fixture
def device_benchmark(request: pytest.FixtureRequest, benchmark: Any) -> Iterator[DeviceBenchmark]:
    """A function that measures a step on each device of `--gradflow-devices`; see `DeviceBenchmark`."""
    name: str = request.param
    library, device = _parts(name)
    others = {key: value for key, value in (benchmark.params or {}).items() if key != "device_benchmark"}
    plain = {key: value if isinstance(value, (str, int, float)) else str(value) for key, value in others.items()}
    benchmark.params = {"device": name, **plain}
    why = _why_not(library, device)
    if why:
        benchmark.skipped = True
        if library == "gradflow" and _gpu_required():
            pytest.fail(f"GRADFLOW_REQUIRE_GPU=1, but {why}", pytrace=False)
        pytest.skip(why)
    with _torch_threads() if library == "PyTorch" else gf.use_device(device):
        found = DeviceBenchmark(name, benchmark, request)
        yield found
    if found.called:
        benchmark._mode = "device_benchmark(...)"  # after an error, pytest-benchmark would warn that it was not used


def versions() -> dict[str, str]:
    """Return the versions of gradflow and of the array libraries that are loaded.

    >>> sorted(versions())[:1]
    ['gradflow']
    """
    loaded = {
        name: getattr(sys.modules.get(name), "__version__", None) for name in ("gradflow", "numpy", "cupy", "torch")
    }
    return {name: str(version) for name, version in loaded.items() if version}


def _parts(name: str) -> tuple[str, str]:
    """The library and the device that a name of `--gradflow-devices` means."""
    prefix, _, rest = name.partition(":")
    return ("PyTorch", rest or "cpu") if prefix == "torch" else ("gradflow", name)


def _gpu_required() -> bool:
    return os.environ.get("GRADFLOW_REQUIRE_GPU") == "1"


def _why_not(library: str, device: str) -> str | None:
    """Why a library cannot use a device, on one line; None if it can."""
    if library == "gradflow":
        try:
            gf.get_backend(device)
        except gf.DeviceUnavailableError as error:
            return str(error)
    elif not importlib.util.find_spec("torch"):
        return "PyTorch is not installed"
    elif not _torch_module(device).is_available():
        return f"PyTorch {sys.modules['torch'].__version__} finds no device {device!r}"
    return None


@contextlib.contextmanager
def _torch_threads() -> Iterator[None]:
    """Give PyTorch as many threads as gradflow has."""
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(gf.get_num_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _torch_module(device: str) -> Any:
    """The module of PyTorch with the functions of a device, such as `torch.cuda`."""
    torch = importlib.import_module("torch")
    return getattr(torch, torch.device(device).type)


def _to_torch(value: Any, device: str) -> Any:
    """A tensor of gradflow or a NumPy array as one of PyTorch; anything else as it is."""
    if not isinstance(value, (gf.Tensor, np.ndarray)):
        return value
    array = host(value)
    if array.dtype.kind == "V":  # bfloat16 of ml_dtypes
        array = array.astype("float32")
    torch = importlib.import_module("torch")
    tensor = torch.tensor(array, device=device, dtype=getattr(torch, str(value.dtype)))
    return tensor.requires_grad_(getattr(value, "requires_grad", False))
