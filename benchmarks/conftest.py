"""Fixtures of the benchmarks: devices, libraries, and `timed`, which measures a call and describes its row."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gradflow as gf
from benchmarks.gpu import rows as gpu_rows
from benchmarks.machine import blas, public_commit_info, public_machine_info, threads, versions
from benchmarks.peers.rows import ROWS
from benchmarks.timing import measure
from benchmarks.workloads import TRAININGS, Training, Workload, check_equal_work, why_not

Timed = Callable[..., Any]

collect_ignore = [  # pytest imports every module to find doctests
    f"{row.where.partition(':')[0].removeprefix('benchmarks.').replace('.', '/')}.py"
    for row in [*ROWS.values(), *gpu_rows.rows("cuda").values()]
    if row.package and row.extra == "peers" and not importlib.util.find_spec(row.package)
]  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Show the median and its spread unless the user chose columns, and one line per reason of skips."""
    config.pluginmanager.import_plugin("gradflow.testing.reasons")
    if hasattr(config.option, "benchmark_columns") and not config.option.benchmark_columns:
        config.option.benchmark_columns = ["median", "iqr", "rounds"]
        config.option.benchmark_sort = "median"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Keep only what may be published."""
    kept = public_machine_info(machine_info)
    machine_info.clear()
    machine_info.update(kept)


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """Keep only what may be published."""
    kept = public_commit_info(commit_info)
    commit_info.clear()
    commit_info.update(kept)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    """Leave out the single times: the statistics take a hundredth of the space. Parameters become strings."""
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)
        row["params"] = {name: str(value) for name, value in row["params"].items()}


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Devices and libraries vary fastest, so the rows of a group run one after another, under the same machine load."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
    if "library" in metafunc.fixturenames:
        metafunc.parametrize("library", list(TRAININGS), indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device, current during the measurement; skips, with the diagnosis, if it cannot be used."""
    name: str = request.param
    diagnosis = gf.diagnose(name)
    if not diagnosis.usable:
        if os.environ.get("GRADFLOW_REQUIRE_GPU") == "1":
            pytest.fail(f"GRADFLOW_REQUIRE_GPU=1, but no CUDA device: {diagnosis}", pytrace=False)
        pytest.skip(f"no CUDA device: {diagnosis}")
    with gf.use_device(name):
        yield name


@pytest.fixture
def library(request: pytest.FixtureRequest, device: str) -> str:
    """gradflow or a peer; skips, with the reason, if the peer cannot be used."""
    name: str = request.param
    reason = why_not(name, device)
    if reason:
        pytest.skip(reason)
    return name


@pytest.fixture
def training(workload: Workload, library: str, device: str) -> Training:
    """A model in training, at its initial weights, after a check that a peer does the same work as gradflow."""
    if library != "gradflow":
        check_equal_work(workload, library, device)
    return TRAININGS[library](workload, device)


@pytest.fixture
def timed(benchmark: Any, request: pytest.FixtureRequest) -> Timed:
    """A function that measures a call and records its group and, in `extra_info`, what the report needs."""

    def run(
        function: Callable[..., Any],
        *,
        synchronize: Callable[[], Any],
        workload: str,
        size: str,
        batch: int,
        library: str,
        device: str,
        steps: int = 1,
        setup: Callable[[], tuple[Any, ...]] | None = None,
    ) -> Any:
        """Measure `function`. `steps`: the batches of one call; times are shown per batch."""
        benchmark.group = f"{workload}, {size}, batch {batch}" + (f", each of {steps} steps" if steps > 1 else "")
        option = request.config.option
        limits = float(option.benchmark_max_time), int(option.benchmark_min_rounds)
        result = measure(benchmark, function, synchronize, setup, *limits, steps)
        benchmark.extra_info.update(
            workload=workload, size=size, batch=batch, steps=steps, library=library, device=device,
            dtype="float32", threads=threads(), blas=blas(), versions=versions(),
        )  # fmt: skip
        if benchmark.enabled:
            benchmark.extra_info["samples_per_s"] = batch / benchmark.stats.stats.median
        return result

    return run


@pytest.fixture
def timed_training(timed: Timed, training: Training) -> Timed:
    """`timed` with the arguments that the training determines."""

    def run(function: Callable[..., Any], *, workload: str, **options: Any) -> Any:
        described = training.workload
        return timed(
            function,
            synchronize=training.synchronize,
            workload=workload,
            size=described.size,
            batch=described.batch,
            library=training.library,
            device=training.device,
            **options,
        )

    return run
