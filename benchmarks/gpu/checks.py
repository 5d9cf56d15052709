"""Before anything is timed: the tests marked `gpu`, the conformance kit, `gradflow agree`, and compute-sanitizer."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.run import progress, without_paths

ROOT = Path(__file__).parents[2]
KERNELS = "tests/cupy_backend/test_cupy_kernels.py"


def run_tests(seconds: float, dry: bool) -> dict[str, Any]:
    """Run the tests marked `gpu`, skips as failures. In a dry run: a few kernels, emulated."""
    chosen = [KERNELS, "-k", "emulated and one_hot"] if dry else ["tests", "-m", "gpu"]
    parallel = [] if dry else _parallel()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        found = _run(
            [*_pytest(), *chosen, *parallel, f"--junitxml={report}"],
            seconds,
            "the tests marked gpu",
            _GPU if not dry else {},
        )
        return {**found, **(_counts(report) if report.exists() else {})}


def run_kit(seconds: float, dry: bool) -> dict[str, Any]:
    """Run the conformance kit on the GPU. In a dry run: a few checks, on the CPU."""
    kit = ["-p", "gradflow.testing.plugin", "--pyargs", "gradflow.testing.conformance"]
    chosen = ["--gradflow-backend=cpu", "-k", "test_describe"] if dry else ["--gradflow-backend=cuda", *_parallel()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        found = _run([*_pytest(), *kit, *chosen, f"--junitxml={report}"], seconds, "the conformance kit", {})
        counts = _counts(report) if report.exists() else {}
    counts.pop("skipped", None)  # the kit skips what a backend declares as unsupported
    return {**found, **counts}


def run_agree(seconds: float, dry: bool) -> dict[str, Any]:
    """Compare the GPU with the CPU by `gradflow agree`. In a dry run: the fake device."""
    command = [sys.executable, "-m", "gradflow", "agree", "fake" if dry else "cuda"]
    return _run(command, seconds, "gradflow agree", {})


def run_ceilings(seconds: float, device: str) -> dict[str, Any]:
    """Measure what the device reaches at best, in a process of its own; {} if that fails."""
    command = [sys.executable, "-m", "benchmarks.gpu.ceilings", device]
    found = _run(command, seconds, "the ceilings of the device", {})
    try:
        ceilings: dict[str, Any] = json.loads(found["last_lines"][-1])
    except (IndexError, ValueError):
        return {}
    return ceilings


def run_sanitizer(seconds: float, dry: bool) -> dict[str, Any]:
    """Run the kernels' tests on the GPU under compute-sanitizer, which finds accesses out of bounds."""
    tool = shutil.which("compute-sanitizer")
    if tool is None and not dry:
        return {"left_out": "compute-sanitizer is not installed; it comes with the CUDA toolkit"}
    checker = [] if dry else [str(tool), "--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "all"]
    chosen = "emulated and one_hot" if dry else "cuda and not many and not large"
    return _run([*checker, *_pytest(), KERNELS, "-k", chosen], seconds, "compute-sanitizer", {} if dry else _GPU)


_GPU = {"GRADFLOW_REQUIRE_GPU": "1"}


def _parallel() -> list[str]:
    return ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []


def _pytest() -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]


def _run(command: list[str], seconds: float, what: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command for at most these seconds; returns its status, its time and its last lines."""
    progress(f"{what}, at most {seconds:.0f} s")
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **environment},
            start_new_session=True,
        )  # fmt: skip
        try:
            status: Any = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = "it took too long"
            process.send_signal(signal.SIGINT)  # pytest then reports what is known
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started, which would disturb the next
            process.wait()
        output.seek(0)
        lines = [without_paths(line) for line in output.read().splitlines() if line.strip()]
    progress(f"  status {status}: {lines[-1] if lines else ''}")
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), "last_lines": lines[-15:]}


def _counts(report: Path) -> dict[str, Any]:
    """The numbers of tests, and the names of those that failed or were skipped, from a report of pytest.

    A module that is skipped as a whole, since a package is missing that all its tests need, has no class name.
    """
    failed, skipped, count = [], [], 0
    for case in ElementTree.parse(report).iter("testcase"):
        count += 1
        name = f"{case.get('classname')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        skip = case.find("skipped")
        if skip is not None and skip.get("type") != "pytest.xfail" and case.get("classname"):
            skipped.append(f"{name}: {without_paths(skip.get('message') or '')}")
    return {"tests": count, "failed": failed, "skipped": skipped}


def outcome(found: dict[str, Any]) -> str:
    """Return how a check ended, in words: its last line, or several if it failed."""
    if "left_out" in found:
        return f"left out: {found['left_out']}"
    lines = found["last_lines"]
    return f"passed: {''.join(lines[-1:])}" if passed(found) else "\n  ".join(["FAILED", *lines])


def passed(found: dict[str, Any]) -> bool:
    """Whether a check passed: nothing failed, nothing was skipped."""
    return "left_out" in found or (found["status"] == 0 and not found.get("skipped"))
