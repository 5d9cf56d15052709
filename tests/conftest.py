"""Fixtures: `device` is each device in `devices.py`, current during the test."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import signal
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before NumPy is imported: the workers already use all cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from devices import BACKENDS, DEVICES, LIBRARIES, OTHERS, require

import gradflow as gf
from gradflow.autograd.hooks import hooked_nodes
from gradflow.drawing.recorder import Recorder


def _number(argument: str) -> int:
    if not argument.isdecimal():
        raise argparse.ArgumentTypeError(f"{argument!r} is not a number of examples")
    return int(argument)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for more random comparisons, and for fewer tests."""
    parser.addoption("--one-in", type=int, default=1, metavar="N", help="run one test in N, always the same")
    parser.addoption(
        "--random-examples",
        type=_number,
        default=0,
        metavar="N",
        help="draw N random programs and histories in each test",
    )


@pytest.fixture(scope="session")
def random_examples(request: pytest.FixtureRequest) -> Callable[[int], Any]:
    """Settings of hypothesis for so many examples, always the same; with --random-examples=N, N new ones."""
    from hypothesis import HealthCheck, settings

    asked = request.config.getoption("--random-examples")

    def chosen(n: int) -> Any:
        return settings(
            max_examples=asked or n, derandomize=not asked, deadline=None, database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        )  # fmt: skip

    return chosen


collect_ignore = [
    f"backends/{BACKENDS[name][0]}.py" for name, library in LIBRARIES.items() if not importlib.util.find_spec(library)
]
if not importlib.util.find_spec("torch"):
    collect_ignore.append("peers/random_programs.py")  # doctests would import it
if importlib.util.find_spec("llvmlite") is None:
    collect_ignore += [f"native/{name}.py" for name in ("emitting", "kernel_parts", "kernel_runs")]
collect_ignore.append("conformance_emulated.py")  # replaces CuPy by the emulated one when imported


def pytest_configure(config: pytest.Config) -> None:
    """Print one line for each reason of skips."""
    config.pluginmanager.import_plugin("gradflow.testing.reasons")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark GPU tests, the conformance kit and comparisons with other libraries as slow; keep what --one-in=N says."""
    for item in items:
        if item.get_closest_marker("gpu") or item.nodeid.startswith(("gradflow/testing/conformance/", "tests/peers/")):
            item.add_marker("slow")
    n = config.getoption("one_in")
    kept = [item for item in items if zlib.crc32(item.nodeid.encode()) % n == 0]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[*set(items).difference(kept)])
        items[:] = kept


def pytest_collection_finish() -> None:
    """Freeze the thousands of collected tests, so that tests which collect garbage run faster."""
    gc.collect()
    gc.freeze()


def _current(device: str) -> Iterator[str]:
    require(device)
    with gf.use_device(device):
        yield device


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch; without it the test is skipped."""
    return pytest.importorskip("torch")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device, current during the test."""
    yield from _current(request.param)


@pytest.fixture(params=OTHERS)
def other_device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device that is not the CPU, current during the test."""
    yield from _current(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    gf.manual_seed(0)


@pytest.fixture(autouse=True)
def _recorders_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in a recorder, which a trace only notes, fails the test."""

    def fail(_recorder: Recorder, error: Exception) -> None:
        raise error

    monkeypatch.setattr(Recorder, "failed", fail)


@pytest.fixture(autouse=True, scope="session")
def _signals() -> Iterator[None]:
    """The usual effects of signals. Under `nohup`, or in the background of a shell, processes ignore some of them."""
    usual = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL, "SIGTERM": signal.SIG_DFL}
    numbers = [getattr(signal, name) for name in usual if hasattr(signal, name)]
    before = [signal.signal(number, usual[number.name]) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def no_hooks_of_earlier_tests() -> None:
    """A hooked leaf in a garbage cycle selects the general walk until it is collected, perhaps between two calls."""
    if hooked_nodes:
        gc.collect()
