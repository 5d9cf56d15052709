"""Dates as texts: year-month-day, day.month.year, and both orders of day and month with slashes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_TIME = (
    r"(?:(?:T|\s+)(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?:\s*(?P<half>[AaPp][Mm]))?(?:\s*(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?))?)?"
)
_YEAR_FIRST = re.compile(rf"(?P<year>\d{{4}})(?P<mark>[-/.])(?P<a>\d\d?)(?P=mark)(?P<b>\d\d?){_TIME}", re.ASCII)
_YEAR_LAST = re.compile(rf"(?P<a>\d\d?)(?P<mark>[./-])(?P<b>\d\d?)(?P=mark)(?P<year>\d{{4}}){_TIME}", re.ASCII)
_ISO = re.compile(r"(?:(?:(?!0000)\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d:\d\d)?)?\n)*", re.ASCII)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sep(?:t|tember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\.?"
)
_CLOCK = r"\d\d?:\d\d(?::\d\d)?(?:[.,]\d+)?(?:\s?[ap]m)?"
_UNREADABLE = re.compile(
    r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]{0,6},?\s+)?"
    r"(?:\d\d?[/-]\d\d?[/-]\d\d|[0-3]?\d\.[01]?\d\.\d\d"  # a year of two digits
    r"|\d{4}([./-])\d\d?\1\d\d?|\d\d?([./-])\d\d?\2\d{4}"  # with a time that is not read
    r"|\d{4}[/-](?:0[1-9]|1[0-2])|(?:0[1-9]|1[0-2])/\d{4}"  # a month
    r"|\d{4}[\s-]?[qw][0-5]?\d(?:-[1-7])?|q[1-4][\s/-]\d{4}"  # a quarter or a week
    rf"|\d\d?\.?[\s/-]{_MONTH},?[\s/-](?:\d\d){{1,2}}"  # 31 Dec 2023
    rf"|{_MONTH}\s+\d\d?,?\s(?:{_CLOCK}\s)?\d{{4}}|{_MONTH}[\s-]\d{{4}})"  # December 31, 2023 and Dec 2023
    rf"(?:[\s,T:]{{1,2}}{_CLOCK}.{{0,20}})?"
    rf"|{_CLOCK}",  # a time without a date
    re.IGNORECASE | re.ASCII,
)
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Date:
    """A date that was read.

    layout: "Y-m-d", "d.m.Y" or "/", where day and month may be in either order; " with time zone" may follow.
    day_first, month_first: microseconds since 1970, in UTC if there is a time zone, in each order; None where there is
        no such date. Both are the same but for "/".
    """

    layout: str
    day_first: int | None
    month_first: int | None


def read_date(cell: str) -> Date | None:
    """Return the date in a cell, None if it is none.

    >>> read_date("31.12.2023").layout, read_date("31/12/2023").month_first, read_date("abc")
    ('d.m.Y', None, None)
    """
    found = _YEAR_FIRST.fullmatch(cell) or _YEAR_LAST.fullmatch(cell)
    if found is None:
        return None
    part = found.groupdict()
    year, a, b = int(part["year"]), int(part["a"]), int(part["b"])
    day_first: int | None
    month_first: int | None
    if found.re is _YEAR_FIRST:
        layout = "Y-m-d"
        day_first = month_first = _microseconds(year, a, b, part)
    elif part["mark"] == ".":
        layout = "d.m.Y"
        day_first = month_first = _microseconds(year, b, a, part)
    else:
        layout = "/"
        day_first, month_first = _microseconds(year, b, a, part), _microseconds(year, a, b, part)
    if day_first is None and month_first is None:
        return None
    return Date(layout + " with time zone" * bool(part["zone"]), day_first, month_first)


def is_unreadable_date(cell: str) -> bool:
    """Whether a text is a date that is not read, such as 1/2/23, 2023-12 and 31 Dec 2023, or a time without a date."""
    return _UNREADABLE.fullmatch(cell) is not None


def iso_dates(cells: Sequence[str]) -> Array | None:
    """Return texts such as 2023-12-31 and 2023-12-31 23:59:59 as datetime64[us], NaT for empty ones; None for others.

    >>> iso_dates(["2023-12-31", ""]), iso_dates(["2023-12-31", "31.12.2023"])
    (array(['2023-12-31T00:00:00.000000',                        'NaT'],
          dtype='datetime64[us]'), None)
    """
    if not _ISO.fullmatch("\n".join(cells) + "\n"):
        return None
    try:
        return np.array(cells, "datetime64[us]")
    except ValueError:
        return None  # 2023-02-30


def _microseconds(year: int, month: int, day: int, time: dict[str, str | None]) -> int | None:
    """Return the microseconds since 1970, None for a date or a time of day that does not exist."""
    hour = int(time["hour"] or 0)
    if time["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + 12 * (time["half"].lower() == "pm")
    fraction = int((time["fraction"] or "")[:6].ljust(6, "0"))
    try:
        when = datetime(year, month, day, hour, int(time["minute"] or 0), int(time["second"] or 0), fraction)
    except ValueError:
        return None
    zone = time["zone"]
    ahead = 0
    if zone and zone[0] in "+-":
        ahead = int(f"{zone[0]}1") * (int(zone[1:3]) * 60 + int(zone[3:].lstrip(":") or 0))
    return (when - _EPOCH) // _MICROSECOND - ahead * 60_000_000
