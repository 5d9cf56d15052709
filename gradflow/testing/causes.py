"""Failures of the conformance kit by cause, and the `unsupported` declaration that would make them expected."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gradflow.backend import ARRAY_FUNCTIONS, KERNELS
from gradflow.testing.conformance import SERVICES

WIDTH = 100


class Outcome(NamedTuple):
    """The result of a check: the names that declare it in `Backend.unsupported`, and why it failed ("" if not).

    wrong: whether the check itself found a mistake, such as a wrong result; otherwise the backend raised an exception.
    """

    keys: Sequence[str]
    cause: str
    wrong: bool = False


def cause(error: BaseException, subjects: Iterable[str]) -> str:
    """Return the cause of a failure: the same text for all checks that fail for the same reason.

    For an exception of the backend, that is its type and its message without numbers; for a wrong result, the function
    that returned it.
    """
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        words = " ".join(lines[:1] if isinstance(error, AssertionError) else lines) or "no message"
    except Exception:  # its own __str__ failed
        words = "the message cannot be shown"
    if isinstance(error, AssertionError):
        about = ", ".join(sorted(subjects))
        return f"{about}: wrong result" if about else words[:WIDTH]
    words, found = re.sub(r"\d+", "N", words), 1
    while found:  # drop brackets, which differ from call to call, from the inside out
        words, found = re.subn(r" ?(\([^()\[\]]*\)|\[[^()\[\]]*\])", "", words)
    return f"{type(error).__name__}: {words if len(words) <= WIDTH else words[:WIDTH] + ' ...'}"


def by_cause(outcomes: Iterable[Outcome]) -> list[tuple[str, int]]:
    """Return the causes with their numbers of failures, the most frequent first."""
    return Counter(outcome.cause for outcome in outcomes if outcome.cause).most_common()


def declaration(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return what to declare as unsupported, by name with its reason, with as few names as possible.

    Only exceptions can be declared, and no name that would hide a wrong result.

    First come names whose checks all failed: a dtype, a function, or a function for one dtype if half of the function's
    failures have this dtype. Then, for the remaining failures, functions that pass other checks; then single checks.
    """
    passing = {key for outcome in outcomes if not outcome.cause for key in outcome.keys}
    wrong = {key for outcome in outcomes if outcome.wrong for key in outcome.keys}
    known = {*ARRAY_FUNCTIONS, *KERNELS, *SERVICES}
    tests = {key for outcome in outcomes for key in outcome.keys if key.startswith("test_")}
    failed, found = [outcome for outcome in outcomes if outcome.cause and not outcome.wrong], {}

    def whole(key: str, counts: Counter[str]) -> bool:
        return key not in passing and key not in tests and 2 * counts[key] >= counts[key.partition("[")[0]]

    def known_one(key: str, _: Counter[str]) -> bool:
        return key in known

    def test(key: str, _: Counter[str]) -> bool:
        return key in tests and "[" not in key

    for allowed in (whole, known_one, test):
        while True:
            counts = Counter(key for outcome in failed for key in outcome.keys)
            covered = {key: count for key, count in counts.items() if key not in wrong and allowed(key, counts)}
            if not covered:
                break
            key = max(covered, key=lambda k: (covered[k], -len(k), k))
            found[key] = by_cause(outcome for outcome in failed if key in outcome.keys)[0][0]
            failed = [outcome for outcome in failed if key not in outcome.keys]
    return found


def report(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the lines to print below the failures; none if there is no failure."""
    causes = by_cause(outcomes)
    if not causes:
        return []
    total, kinds = sum(count for _, count in causes), len(causes)
    lines = ["", f"by cause ({total} failure{'s' * (total > 1)}, {kinds} cause{'s' * (kinds > 1)}):"]
    lines += [f"{count:6} {words}" for words, count in causes]
    if wrong := sum(outcome.wrong for outcome in outcomes):
        lines += ["", f"Wrong results and other failed checks: {wrong}. Correct them: they are not for `unsupported`."]
    if declared := declaration(outcomes):
        pairs = [f"        {json.dumps(key)}: {json.dumps(why)}," for key, why in declared.items()]
        lines += ["", "Declare what the library cannot do, with the reason, in the class of the backend:"]
        lines += ["    unsupported = {", *pairs, "    }"]
    return [*lines, ""]
