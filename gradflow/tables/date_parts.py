"""The numbers that dates are taken apart into."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DAYS = "days"
_DAY = 86_400_000_000  # microseconds
_LAST = 9.2e18  # microseconds of the last dates that are shown
_CYCLES = ("month", "weekday", "hour")
PARTS = (DAYS, "year", *(f"{cycle} ({of})" for cycle in _CYCLES for of in ("sine", "cosine")))
"""The names of the parts: days since 1970, with their fraction; the year; and the sine and cosine of what recurs."""


def parts_of_dates(dates: npt.NDArray[Any]) -> dict[str, Floats]:
    """Return the parts of dates, float64 (rows,) each, by their names in `PARTS`; NaN where they are missing.

    dates: datetime64[us] (rows,), NaT where they are missing.

    What recurs becomes a place on a circle, so that December is next to January: month in the year, day in the week
    and time in the day, as sine and cosine.

    >>> import numpy as np
    >>> from gradflow.tables.date_parts import parts_of_dates
    >>> parts = parts_of_dates(np.array(["1970-04-02T12:00"], "datetime64[us]"))
    >>> {name: values.item() for name, values in parts.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'days': 91.5, 'year': 1970.0, 'month (sine)': 1.0, 'month (cosine)': 0.0, 'weekday (sine)': 0.433883739118,
     'weekday (cosine)': -0.900968867902, 'hour (sine)': 0.0, 'hour (cosine)': -1.0}
    """
    missing = np.isnat(dates)
    known = np.where(missing, np.datetime64(0, "us"), dates)
    microseconds = known.astype("datetime64[us]").view(np.int64)
    day, within = np.divmod(microseconds, _DAY)
    months = known.astype("datetime64[M]").view(np.int64)
    turns = {"month": months % 12 / 12, "weekday": (day + 3) % 7 / 7, "hour": within / _DAY}  # 1970 began on Thursday
    parts: dict[str, npt.NDArray[Any]] = {DAYS: microseconds / _DAY, "year": 1970.0 + months // 12}
    for cycle in _CYCLES:
        angle = 2 * np.pi * turns[cycle]
        parts[f"{cycle} (sine)"] = np.round(np.sin(angle), 12) + 0.0  # so that what is constant is equal; no -0
        parts[f"{cycle} (cosine)"] = np.round(np.cos(angle), 12) + 0.0
    return {name: np.where(missing, np.nan, values) for name, values in parts.items()}


def day_text(days: float) -> str:
    """Return days since 1970 as a date, with the time if it is not midnight.

    >>> from gradflow.tables.date_parts import day_text
    >>> day_text(0.0), day_text(19723.5)
    ('1970-01-01', '2024-01-01 12:00:00')
    """
    microseconds = round(min(max(days * _DAY, -_LAST), _LAST))
    text = str(np.datetime_as_string(np.datetime64(microseconds, "us"), unit="s", casting="unsafe"))
    return text.removesuffix("T00:00:00").replace("T", " ")
