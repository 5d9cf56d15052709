"""Fixtures of the benchmarks, on top of `gradflow.testing.benchmark`: `measure` describes the row of a call."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.gpu import rows as gpu_rows
from benchmarks.machine import blas, public_commit_info, public_machine_info, versions
from benchmarks.peers.rows import ROWS
from benchmarks.workloads import TRAININGS, Training, Workload, check_equal_work
from gradflow.testing.benchmark import DeviceBenchmark

Measure = Callable[..., Any]

collect_ignore = [  # pytest imports every module to find doctests
    f"{row.where.partition(':')[0].removeprefix('benchmarks.').replace('.', '/')}.py"
    for row in [*ROWS.values(), *gpu_rows.rows("cuda").values()]
    if row.package and row.extra == "peers" and not importlib.util.find_spec(row.package)
]  # fmt: skip


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plug-ins, also where pytest finds this folder late, as in `pytest .`."""
    for name in ("gradflow.testing.benchmark", "gradflow.testing.reasons"):
        pluginmanager.import_plugin(name)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Run on all devices, and show the median and its spread, unless the user chose others."""
    option = config.option
    if not config.getoption("gradflow_devices", None):
        option.gradflow_devices = "cpu,torch,cuda,torch:cuda"
    if not option.benchmark_columns:
        option.benchmark_columns, option.benchmark_sort = ["median", "iqr", "rounds"], "median"


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
    """Leave out the single times: the statistics take a hundredth of the space."""
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)


@pytest.fixture
def training(workload: Workload, device_benchmark: DeviceBenchmark) -> Training:
    """A model in training, at its initial weights, after a check that a peer does the same work as gradflow."""
    library, device = device_benchmark.library, device_benchmark.device
    if library != "gradflow":
        check_equal_work(workload, library, device)
    return TRAININGS[library](workload, device)


@pytest.fixture
def measure(benchmark: Any, device_benchmark: DeviceBenchmark) -> Measure:
    """`device_benchmark` for a step that does the same in both libraries; its row has what the report needs."""

    def run(
        workload: str, step: Callable[..., Any], *inputs: Any, size: str, batch: int, batches: int = 1, **options: Any
    ) -> Any:  # fmt: skip
        """Measure a step that takes so many batches; the other options are those of `device_benchmark`."""
        benchmark.group = f"{workload}, {size}, batch {batch}"
        result = device_benchmark(step, *inputs, batch=batch * batches, **{"torch": lambda device: step, **options})
        described = {"workload": workload, "size": size, "batch": batch, "blas": blas(), "versions": versions()}
        benchmark.extra_info |= described
        return result

    return run
