"""The conformance kit for pytest: whether a backend does what gradflow asks of it.

    python -m pytest -p gradflow.testing.plugin --pyargs gradflow.testing.conformance --gradflow-backend=NAME

NAME is a device: `cpu`, `cuda:1`, or the prefix of a plug-in. A backend that no entry point names is registered by a
module of its own: `--gradflow-backend-module=MODULE`. Each check compares the backend with NumPy or with the composed
defaults of `gradflow.backend`. What a backend does not do it declares in `Backend.unsupported`. Warnings are left to
pytest: with `-W error` they are failures. It needs pytest and NumPy alone.
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
    """The options of the kit."""
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
    """Find the backend; UsageError, one line with the diagnosis, where it cannot be used."""
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
    """What is checked, and what it declares."""
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
    """The failures by their causes, and the number of checks by their outcome: below pytest's own list of failures."""
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
    """The device to check: that of the option; without this plug-in, `cpu`."""
    return str(config.getoption("gradflow_backend", default="cpu"))


def chosen_backend(config: pytest.Config) -> Backend:
    """The backend to check."""
    return gf.get_backend(chosen_device(config))
