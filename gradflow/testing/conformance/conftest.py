"""Fixtures for the backend and its device, and the handling of checks that `Backend.unsupported` declares."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gradflow as gf
from gradflow.backend import Backend
from gradflow.dtypes import DTYPES
from gradflow.testing.causes import cause
from gradflow.testing.plugin import chosen_backend, chosen_device


@pytest.fixture(scope="session")
def backend(pytestconfig: pytest.Config) -> Backend:
    """The backend to check."""
    return chosen_backend(pytestconfig)


@pytest.fixture
def device(pytestconfig: pytest.Config) -> Iterator[str]:
    """The name of the device to check. It is the current device during the check, and the seed is 0."""
    gf.manual_seed(0)
    with gf.use_device(chosen_device(pytestconfig)):
        yield chosen_device(pytestconfig)
    gf.manual_seed(0)


@dataclass
class _Declared:
    """A declaration: its reason, the number of its checks still to run, and the outcomes of the others."""

    reason: str
    pending: int = 0
    passed: bool = False
    failed: bool = False


_declarations = pytest.StashKey[dict[str, _Declared]]()
_declared_keys = pytest.StashKey[list[str]]()


def _parameters(item: pytest.Function) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _subjects(item: pytest.Function) -> set[str]:
    subjects: set[str] = {p.subject for p in _parameters(item).values() if hasattr(p, "subject")}
    return subjects | set(getattr(item.function, "subjects", ()))


def _keys(item: pytest.Function) -> set[str]:
    """Return the names by which a check can be declared as unsupported."""
    parameters, subjects = _parameters(item), _subjects(item)
    dtypes: set[str] = {parameters["dtype"]} if "dtype" in parameters else set()
    dtypes |= {name for p in parameters.values() for name in getattr(p, "needs", ())}
    return subjects | dtypes | {f"{s}[{d}]" for s in subjects for d in dtypes} | {item.name, item.originalname}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect checks of dtypes that the backend lacks, except `test_dtype`, which checks that it has them."""
    here = Path(__file__).parent
    ours = [item for item in items if isinstance(item, pytest.Function) and here in item.path.parents]
    if not ours:
        return
    backend = chosen_backend(config)
    lacking = {dtype for dtype in DTYPES if not backend.supports(dtype)}
    left_out = {i for i in ours if i.originalname != "test_dtype" and _keys(i) & lacking}
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))
    declarations = {key: _Declared(reason) for key, reason in backend.unsupported.items()}
    config.stash[_declarations] = declarations
    for item in ours:
        if item not in left_out and declarations:
            item.stash[_declared_keys] = keys = [key for key in declarations if key in _keys(item)]
            for key in keys:
                declarations[key].pending += 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a declared failure as expected, and a declaration whose checks all passed as a failure."""
    report = yield
    if isinstance(item, pytest.Function) and Path(__file__).parent in item.path.parents and report.when != "teardown":
        error = None if call.excinfo is None else call.excinfo.value
        failed = "" if error is None else cause(error, _subjects(item))
        if failed or report.when == "call":  # plain values, which xdist sends to the process of the summary
            wrong = isinstance(error, (AssertionError, pytest.fail.Exception))
            report.__dict__["conformance"] = (sorted(_keys(item)), failed, wrong)
    keys = item.stash.get(_declared_keys, [])
    if not keys or report.when == "teardown" or (report.when == "setup" and report.passed):
        return report
    stale, outcome = [], report.outcome
    for key in keys:
        declared = item.config.stash[_declarations][key]
        declared.pending -= 1
        declared.passed |= outcome == "passed"
        declared.failed |= outcome == "failed"
        if declared.pending == 0 and declared.passed and not declared.failed:
            stale.append(key)
    if outcome == "failed":
        reasons = [f"{key}: {item.config.stash[_declarations][key].reason}" for key in keys]
        report.outcome = "skipped"
        report.wasxfail = f"declared unsupported: {'; '.join(reasons)}"
    elif stale:
        report.outcome = "failed"
        report.longrepr = "\n".join(
            f"{key}: declared unsupported, but passes: remove it from `unsupported`" for key in stale
        )
    return report
