"""Failures of the conformance kit by what is behind them, and the declaration that would allow for them."""

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
    """Of a check: the names that may stand for it in `Backend.unsupported`, and why it failed; "" where it passed."""

    keys: Sequence[str]
    cause: str


def cause(error: BaseException, subjects: Iterable[str]) -> str:
    """What is behind a failure: the same words for all checks that fail for the same reason.

    An exception of the backend's, by its kind and its words without numbers; a wrong result, by what gives it.
    """
    try:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        words = " ".join(lines[:1] if isinstance(error, AssertionError) else lines) or "no reason is given"
    except Exception:  # of its own __str__
        words = "no reason can be shown"
    if isinstance(error, AssertionError):
        about = ", ".join(sorted(subjects))
        return f"{about}: not what it should give" if about else words[:WIDTH]
    words, found = re.sub(r"\d+", "N", words), 1
    while found:  # what differs from call to call, from the inside out
        words, found = re.subn(r" ?(\([^()\[\]]*\)|\[[^()\[\]]*\])", "", words)
    return f"{type(error).__name__}: {words if len(words) <= WIDTH else words[:WIDTH] + ' ...'}"


def by_cause(outcomes: Iterable[Outcome]) -> list[tuple[str, int]]:
    """The causes with their numbers of failures, the most frequent first."""
    return Counter(outcome.cause for outcome in outcomes if outcome.cause).most_common()


def declaration(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What to declare as unsupported, with the reasons, in few names rather than many.

    First names of which every check failed: a dtype, a function, a function for a dtype to which half of its failures
    belong. Then, for what is left, functions of which other checks pass; then the checks themselves.
    """
    passing = {key for outcome in outcomes if not outcome.cause for key in outcome.keys}
    known = {*ARRAY_FUNCTIONS, *KERNELS, *SERVICES}
    tests = {key for outcome in outcomes for key in outcome.keys if key.startswith("test_")}
    failed, found = [outcome for outcome in outcomes if outcome.cause], {}

    def whole(key: str, counts: Counter[str]) -> bool:
        return key not in passing and key not in tests and 2 * counts[key] >= counts[key.partition("[")[0]]

    def known_one(key: str, _: Counter[str]) -> bool:
        return key in known

    def test(key: str, _: Counter[str]) -> bool:
        return key in tests and "[" not in key

    for allowed in (whole, known_one, test):
        while True:
            counts = Counter(key for outcome in failed for key in outcome.keys)
            covered = {key: count for key, count in counts.items() if allowed(key, counts)}
            if not covered:
                break
            key = max(covered, key=lambda k: (covered[k], -len(k), k))
            found[key] = by_cause(outcome for outcome in failed if key in outcome.keys)[0][0]
            failed = [outcome for outcome in failed if key not in outcome.keys]
    return found


def report(outcomes: Sequence[Outcome]) -> list[str]:
    """The lines below the failures; none where there is no failure."""
    causes = by_cause(outcomes)
    if not causes:
        return []
    total, kinds = sum(count for _, count in causes), len(causes)
    lines = ["", f"by cause ({total} failure{'s' * (total > 1)}, {kinds} cause{'s' * (kinds > 1)}):"]
    lines += [f"{count:6} {words}" for words, count in causes]
    lines += ["", "What the library cannot do may be declared, with the reason, in the class of the backend:"]
    pairs = [f"        {json.dumps(key)}: {json.dumps(why)}," for key, why in declaration(outcomes).items()]
    return [*lines, "    unsupported = {", *pairs, "    }", ""]
