"""A pytest plug-in that ends a run with one line for each reason of skips and expected failures, with its count."""

from __future__ import annotations

from collections import Counter
from typing import Any


def _reason(report: Any) -> str:
    words = report.wasxfail if hasattr(report, "wasxfail") else report.longrepr
    if isinstance(words, tuple):  # a skip: file, line, reason
        words = words[2]
    return " ".join(str(words).removeprefix("Skipped: ").split())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the reasons, the most frequent first; nothing if no test was skipped."""
    counted = {
        title: Counter(map(_reason, terminalreporter.stats.get(kind, [])))
        for title, kind in (("SKIPPED", "skipped"), ("XFAIL", "xfailed"))
    }
    if any(counted.values()):
        terminalreporter.write_sep("=", "skipped, by reason")
    for title, reasons in counted.items():
        for reason, count in reasons.most_common():
            terminalreporter.write_line(f"{title} [{count}] {reason}")
