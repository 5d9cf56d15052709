"""The conformance kit for pytest: checks that a backend meets gradflow's requirements.

    python -m pytest -p gradflow.testing.plugin --pyargs gradflow.testing.conformance --gradflow-backend=NAME

NAME is a device: `cpu`, `cuda:1`, or the prefix of a plug-in. If no entry point names the backend,
`--gradflow-backend-module=MODULE` imports a module that registers it. Each check compares the backend with NumPy or
with the composed defaults of `gradflow.backend`. A backend declares its limitations in `Backend.unsupported`. Warnings
are left to pytest: with `-W error` they are failures. The kit needs only pytest and NumPy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest

import gradflow as gf
from gradflow.backend import Backend
from gradflow.testing import causes
from gradflow.text import one_line

pytest_plugins = ["gradflow.testing.reasons"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the kit."""
    group = parser.getgroup("gradflow")
    group.addoption(
        "--gradflow-backend", default="cpu", metavar="NAME",
        help="the device to check: cpu, cuda:1, the prefix of a plug-in",
    )  # fmt: skip
    group.addoption(
        "--gradflow-backend-module", action="append", default=[], metavar="MODULE",
        help="import MODULE first: it registers the backend",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Load the backend. Raises UsageError, with the diagnosis on one line, if it cannot be used."""
    option = ""
    try:
        for module in config.getoption("gradflow_backend_module"):
            option = f"--gradflow-backend-module={module}"
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name != module.partition(".")[0]:
                    raise
                fix = "type python -m pytest in the folder of the module, or add that folder to PYTHONPATH"
                raise ModuleNotFoundError(f"{error}: {fix}") from error
        option = f"--gradflow-backend={chosen_device(config)}"
        gf.get_backend(chosen_device(config))
    except Exception as error:
        raise pytest.UsageError(f"{option}: {one_line(error)}") from error


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Return what is checked, and what the backend declares as unsupported."""
    backend = chosen_backend(config)
    how = list(backend.kernels().values())
    lines = [
        f"gradflow backend: {backend.device} ({type(backend).__module__}.{type(backend).__qualname__}): "
        f"{backend.describe()}; kernels: {how.count('native')} native, {how.count('composed')} composed"
    ]
    lines += [f"declared unsupported: {key}: {reason}" for key, reason in backend.unsupported.items()]
    return lines


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
    """Print the failures by cause and the checks by outcome, below pytest's own list of failures."""
    yield
    reports = [report for kind in ("passed", "failed", "error") for report in terminalreporter.stats.get(kind, [])]
    found = [causes.Outcome(*report.conformance) for report in reports if hasattr(report, "conformance")]
    for line in causes.report(found):
        terminalreporter.write_line(line)
    counts = {kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "failed", "error", "xfailed")}
    terminalreporter.write_line(
        f"conformance of {chosen_device(config)}: {sum(counts.values())} checks: {counts['passed']} passed, "
        f"{counts['failed'] + counts['error']} failed, {counts['xfailed']} declared unsupported"
    )


def chosen_device(config: pytest.Config) -> str:
    """Return the device to check: the one of the option, or `cpu` without this plug-in."""
    return str(config.getoption("gradflow_backend", default="cpu"))


def chosen_backend(config: pytest.Config) -> Backend:
    """Return the backend to check."""
    return gf.get_backend(chosen_device(config))
