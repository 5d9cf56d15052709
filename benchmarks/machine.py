"""What a measurement records about its machine: enough to interpret it, nothing that identifies the machine."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gradflow as gf

_PACKAGES = {
    "cupy": ("cupy-cuda12x", "cupy-cuda13x"), "numpy": ("numpy",), "torch": ("torch",), "autograd": ("autograd",),
    "jax": ("jax",), "llvmlite": ("llvmlite",),
}  # fmt: skip


def threads() -> int:
    """Return the threads of NumPy's BLAS; the number of cores if threadpoolctl is not installed."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return os.cpu_count() or 1
    from threadpoolctl import threadpool_info

    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(pools, default=os.cpu_count() or 1)


def blas() -> str:
    """Return NumPy's BLAS and the processor type of its kernels; "" if threadpoolctl is not installed."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return ""
    import numpy  # noqa: F401  # loads its BLAS
    from threadpoolctl import threadpool_info

    found = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    return ", ".join(f"{p['internal_api']} {p['version']} ({p.get('architecture', 'unknown')})" for p in found)


def available_memory() -> int | None:
    """Return the bytes that are available without swapping; None if unknown."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def versions() -> dict[str, str]:
    """Return the versions of gradflow, Python and the array libraries that are installed."""
    found = {"gradflow": gf.__version__, "python": platform.python_version()}
    for name, distributions in _PACKAGES.items():
        for distribution in distributions:
            try:
                found[name] = version(distribution)
            except PackageNotFoundError:
                continue
    return found


def public_machine_info(machine_info: dict[str, Any]) -> dict[str, Any]:
    """Return processor, cores, system and Python from pytest-benchmark's `machine_info`; no host name, no paths."""
    cpu = machine_info.get("cpu") or {}
    kept: dict[str, Any] = {
        "cpu": {"brand_raw": cpu.get("brand_raw") or platform.processor() or "unknown", "count": os.cpu_count()},
        **{key: machine_info.get(key) for key in ("machine", "system", "python_implementation", "python_version")},
    }
    if gf.diagnose("cuda").usable:
        kept["gpu"] = gf.get_backend("cuda").describe()
    return kept


def public_commit_info(commit_info: dict[str, Any]) -> dict[str, Any]:
    """Return the commit and whether files differ from it, from pytest-benchmark's `commit_info`."""
    return {key: commit_info.get(key) for key in ("id", "time", "dirty")}


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a checkout; None if git does not know it."""
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def about() -> dict[str, Any]:
    """Return the machine, the commit and the date, without what identifies the machine."""
    from cpuinfo import get_cpu_info  # comes with pytest-benchmark
    from pytest_benchmark.utils import get_commit_info

    return {
        "machine_info": public_machine_info({"cpu": get_cpu_info(), "machine": platform.machine()}),
        "commit_info": public_commit_info(get_commit_info()),
        "date": datetime.date.today().isoformat(),
    }
