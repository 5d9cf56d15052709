"""What a measurement says about the machine it ran on: enough to read the numbers, nothing that names the machine."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradflow as gf

_PACKAGES = {
    "cupy": ("cupy-cuda12x", "cupy-cuda13x"), "numpy": ("numpy",), "torch": ("torch",), "autograd": ("autograd",),
    "jax": ("jax",), "mkl": ("mkl",), "numba": ("numba",),
}  # fmt: skip


def threads() -> int:
    """The threads that NumPy's BLAS uses, as threadpoolctl tells; the number of cores where that is not installed."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return os.cpu_count() or 1
    from threadpoolctl import threadpool_info

    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(pools, default=os.cpu_count() or 1)


def blas() -> str:
    """NumPy's BLAS and the processor that its kernels are made for; empty where threadpoolctl is not installed."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return ""
    import numpy  # noqa: F401  # loads its BLAS
    from threadpoolctl import threadpool_info

    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ", ".join(f"{p['internal_api']} {p['version']} ({p.get('architecture', 'unknown')})" for p in found)


def available_memory() -> int | None:
    """The bytes that can be had without swapping; None where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def versions() -> dict[str, str]:
    """The versions of gradflow, of Python and of the array libraries that are installed."""
    found = {"gradflow": gf.__version__, "python": platform.python_version()}
    for name, distributions in _PACKAGES.items():
        for distribution in distributions:
            try:
                found[name] = version(distribution)
            except PackageNotFoundError:
                continue
    return found


def public_machine_info(machine_info: dict[str, Any]) -> dict[str, Any]:
    """Of pytest-benchmark's `machine_info`: processor, cores, system, Python. No host name, no build paths."""
    cpu = machine_info.get("cpu") or {}
    kept: dict[str, Any] = {
        "cpu": {"brand_raw": cpu.get("brand_raw") or platform.processor() or "unknown", "count": os.cpu_count()},
        **{key: machine_info.get(key) for key in ("machine", "system", "python_implementation", "python_version")},
    }
    if gf.diagnose("cuda").usable:
        kept["gpu"] = gf.get_backend("cuda").describe()
    return kept


def public_commit_info(commit_info: dict[str, Any]) -> dict[str, Any]:
    """Of pytest-benchmark's `commit_info`: the commit and whether files differed from it."""
    return {key: commit_info.get(key) for key in ("id", "time", "dirty")}


def about() -> dict[str, Any]:
    """The machine, the commit and the date, as far as they may be published."""
    from cpuinfo import get_cpu_info  # comes with pytest-benchmark
    from pytest_benchmark.utils import get_commit_info

    return {
        "machine_info": public_machine_info({"cpu": get_cpu_info(), "machine": platform.machine()}),
        "commit_info": public_commit_info(get_commit_info()),
        "date": datetime.date.today().isoformat(),
    }
