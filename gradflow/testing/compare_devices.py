"""Compare two devices: run the workloads on both, judge the results against the CPU, and print a table.

Rounded results are judged against float64 on the CPU: the float32 results of each device must be within a few ulp, or
within a bound from error analysis (`gradflow.testing.tolerances`). Results that are not rounded (moves, masks,
comparisons, random bits) must equal the CPU's bit for bit. Two devices that are within a bound of the reference differ
by at most twice that bound.
"""

from __future__ import annotations

import json
import math
import platform
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import gradflow as gf
from gradflow.backend.registry import describe_device
from gradflow.testing import tolerances
from gradflow.testing.tolerances import host
from gradflow.testing.workloads import Check, Place, Workload, workloads
from gradflow.text import printable

WIDTH = 80
_NAMES = 57
"""The width of the first two columns: what is compared, and its bound, aligned right."""


class Row(NamedTuple):
    """A line of the table: one result on both devices, with the error and the share of the worse device."""

    group: str
    what: str
    kind: str
    """How the result is judged: "exact", "ulp" or "bound"."""
    bound: str
    """The bound in words."""
    ulp: float
    """The largest error in units in the last place of the reference; it is large where the terms of a sum cancel."""
    share: float
    """The largest error as a share of its bound: at most 1 if the devices agree."""
    problem: str
    """What is wrong, in words, with the name of the device; "" if nothing is."""

    @property
    def passed(self) -> bool:
        """Whether both devices are within the bound."""
        return not self.problem


class Pair(NamedTuple):
    """Two devices to compare. `reason` says why gradflow chose them; "" if the user named them."""

    first: gf.Device
    second: gf.Device
    reason: str = ""


def choose(names: Sequence[str] = ()) -> Pair:
    """Return the pair of devices to compare for the names given on the command line.

    One name is compared with the CPU. Without names, or with `cpu` alone, the CPU is compared with CUDA if it can be
    used, otherwise with gradflow's own `fake` device. Raises ValueError for unknown names, more than two names, and one
    device named twice; DeviceUnavailableError, with the diagnosis, for a device that cannot be used.
    """
    if len(names) > 2:
        raise ValueError(f"agree compares two devices; got {len(names)}: {', '.join(names)}")
    pair = _pair([_device(name) for name in names])
    if pair.first == pair.second:
        raise ValueError(f"agree compares two devices; got {pair.first} twice")
    for device in (pair.first, pair.second, gf.Device("cpu")):  # the CPU computes the reference
        gf.get_backend(device)
    return pair


def _pair(named: list[gf.Device]) -> Pair:
    cpu = gf.Device("cpu")
    if len(named) == 2:
        return Pair(named[0], named[1])
    if named and named[0] != cpu:
        return Pair(cpu, named[0])
    diagnosis = gf.diagnose("cuda")
    if diagnosis.usable:
        return Pair(cpu, gf.Device("cuda"))
    fake = gf.Device("fake")  # registered by gradflow.testing
    return Pair(
        cpu, fake, f"no CUDA device: {diagnosis}. The fake device computes with NumPy too, in arrays of its own class."
    )


def _device(name: str) -> gf.Device:
    return gf.choose_device()[0] if name == "auto" else gf.Device(name)


# ---------------------------------------------------------------------- judging


def compare(first: gf.Device | str, second: gf.Device | str, each: Callable[[Row], None] | None = None) -> list[Row]:
    """Run all workloads on both devices and on the CPU, and return the judged results.

    each: called with every row as soon as it is known.

    A workload that raises on a device fails there, with the error as its problem. Compare the CPU with itself to see
    how much of each bound NumPy uses. Raises DeviceUnavailableError.
    """
    names = list(dict.fromkeys((str(gf.get_backend(first).device), str(gf.get_backend(second).device))))
    rows = []
    for workload in workloads():
        for row in _judge(workload, names):
            rows.append(row)
            if each is not None:
                each(row)
    return rows


def _judge(workload: Workload, names: Sequence[str]) -> Iterator[Row]:
    reference = _run(workload, Place("cpu", "float32" if workload.exact else "float64"), _value)
    results = {name: _try(partial(_run, workload, Place(name), partial(_try, _value))) for name in names}
    for i, expected in enumerate(reference):
        ulp, share, problems = 0.0, 0.0, []
        for name, checks in results.items():
            found = _against(checks if isinstance(checks, _Raised) else checks[i].value, expected)
            ulp, share = max(ulp, found.ulp), max(share, found.share)
            if not found.agrees:
                problems.append(f"{name}: {found.problem}")
        kind = "exact" if expected.bound is None else "bound" if callable(expected.bound) else "ulp"
        yield Row(workload.group, expected.what, kind, expected.label, ulp, share, "; ".join(problems))


class _Raised(str):
    """The text of an error, in place of a result."""


def _try(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        return _Raised(f"{type(error).__name__}: {textwrap.shorten(str(error), 200, placeholder=' ...')}")


def _value(value: Any) -> Any:
    found = host(value() if callable(value) else value)
    if not isinstance(found, np.ndarray):
        raise TypeError(f"to_host must return a NumPy array; it returned {type(found).__name__}")
    return found


def _run(workload: Workload, place: Place, evaluate: Callable[[Any], Any]) -> list[Check]:
    """Return the checks of a workload with their values on the host."""
    with gf.use_device(place.device), np.errstate(all="ignore"):
        return [check._replace(value=evaluate(check.value)) for check in workload.run(place)]


def _against(value: Any, expected: Check) -> tolerances.Agreement:
    if isinstance(value, _Raised):
        return tolerances.Agreement(math.inf, math.inf, value)
    if expected.bound is None:
        return tolerances.compare(value, expected.value)
    if value.dtype != np.float32:
        return tolerances.Agreement(math.inf, math.inf, f"{value.dtype}, not float32")
    if callable(expected.bound):
        return tolerances.compare(value, expected.value, bound=expected.bound())
    return tolerances.compare(value, expected.value, ulp=expected.bound)


# ---------------------------------------------------------------------- printing


def heading(pair: Pair) -> str:
    """Return the lines above the table: versions, devices, and why these devices."""
    lines = [f"gradflow {gf.__version__}, Python {platform.python_version()}, NumPy {np.__version__}"]
    for device in (pair.first, pair.second):
        lines += _wrapped(f"{device}: {_describe(device)}", "  ")
    if pair.reason:
        lines += _wrapped(f"({pair.reason})", "  ")
    return "\n".join(lines)


def _describe(device: gf.Device) -> str:
    try:
        return describe_device(device)[0]
    except gf.DeviceUnavailableError as error:
        return str(error)


class Table:
    """Prints rows as they come: a heading for each group, a line for each row, and the problem below a failed row."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._group = ""

    def add(self, row: Row) -> None:
        """Print a row."""
        if row.group != self._group:
            self._write(f"\n{_justified(row.group, 'bound')}{'ulp':>9}{'of bound':>9}")
            self._group = row.group
        verdict = "pass" if row.passed else "FAIL"
        self._write(f"{_justified('  ' + row.what, row.bound)}{_number(row.ulp):>9}{_share(row):>9} {verdict}")
        if row.problem:
            for line in _wrapped(row.problem, " " * 6):
                self._write(line)


def _justified(left: str, right: str) -> str:
    room = _NAMES - len(right) - 1
    if len(left) > room:  # cut the middle: names differ at their ends
        left = f"{left[: room - 12]}..{left[-10:]}"
    return f"{left:{room}} {right}"


def verdict(rows: Sequence[Row]) -> str:
    """Return the line below the table: how many rows agree and which is nearest to its bound, or which rows fail."""
    failed = [row.what for row in rows if not row.passed]
    if failed:
        return "\n".join(_wrapped(f"{len(failed)} of {len(rows)} FAIL: {', '.join(failed)}", ""))
    nearest = max(rows, key=lambda row: row.share)
    nearest_words = f"the nearest to its bound is {nearest.what}, at {nearest.share:.2g} of it"
    return "\n".join(_wrapped(f"all {len(rows)} agree; {nearest_words}", ""))


def as_json(pair: Pair, rows: Sequence[Row]) -> str:
    """Return the comparison as a JSON document. Errors that are not numbers (another shape, an exception) are null."""
    document = {
        "passed": all(row.passed for row in rows),
        "devices": [
            {"name": str(d), "description": _describe(d)} for d in (pair.first, pair.second)
        ],
        "reason": pair.reason,
        "versions": {"gradflow": gf.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "rows": [
            {n: _finite(v) for n, v in row._asdict().items()} | {"passed": row.passed} for row in rows
        ],
    }  # fmt: skip
    return json.dumps(document, indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _share(row: Row) -> str:
    if row.kind == "exact":
        return ""
    return "<0.001" if 0 < row.share < 0.001 else f"{row.share:.3f}" if row.share < 10 else _number(row.share)
