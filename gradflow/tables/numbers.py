"""Numbers as texts: decimal points and commas, thousands, signs of currencies, marks of missing values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MARKERS = {
    "", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "-nan", "nat", "null", "none", "?", "-", "--", ".", "..",
    "\u2013", "\u2014", "\\n",
}  # fmt: skip
"""Cells that are missing values in a column of numbers or dates, in upper or lower case.

Among texts only the empty cell is missing: NA is also a country, and "?" becomes a level of its own.
"""

SIGNS = "%$€£¥"
"""Signs that are left out if all numbers of a column have the same one."""

NAN = float("nan")
AS_NAN = {form: NAN for marker in MARKERS for form in (marker, marker.upper(), marker.capitalize())} | {"NaN": NAN}
"""NaN for the usual forms of MARKERS."""

_MINUS = "\u2212"
_INFINITE = {sign + word for sign in ("", "+", "-") for word in ("inf", "infinity")}
_SPACES = " \xa0\u202f'"
_NUMBER = {
    comma: re.compile(
        rf"[+-]?(?=[{mark}]?[0-9])(?:[1-9][0-9]{{0,2}}(?:(?P<by>[{by}{_SPACES}])[0-9]{{3}}(?:(?P=by)[0-9]{{3}})*)|[0-9]*)"
        rf"(?P<fraction>[{mark}][0-9]*)?(?P<exponent>[eE][+-]?[0-9]+)?"
    ).fullmatch
    for comma, mark, by in ((False, ".", ","), (True, ",", "."))
}
_GROUPED = {
    comma: re.compile(rf"(?:(?:[+-]?(?:0|[1-9][0-9]{{0,2}}(?:[{by}][0-9]{{3}})*)(?:[{mark}][0-9]*)?)?\n)*").fullmatch
    for comma, mark, by in ((False, ".", ","), (True, ",", "."))
}
_BOOKED = re.compile(r"\((?P<inside>.+)\)|(?P<before>.+)-").fullmatch
_MEASURED = re.compile(
    r"(?P<currency>[A-Z]{3} )?(?P<number>[^A-Za-z]*[0-9][.,]?)\s?(?P<unit>[^\W\d_]\D{0,9}|\xb0\D?)?"
).fullmatch


def read_number(cell: str, comma: bool) -> float | None:
    """Return the number in a cell, perhaps infinite; NaN for a mark of a missing value, None for other text.

    comma: whether the decimal mark is a comma; else it is a point, and commas separate thousands. Spaces and
    apostrophes separate thousands, too.

    >>> read_number("1,234.5", comma=False), read_number("1.234,5", comma=True), read_number("abc", comma=False)
    (1234.5, 1234.5, None)
    """
    cell = cell.strip().replace(_MINUS, "-")
    found = _NUMBER[comma](cell)
    if found:
        by = found["by"]
        return float((cell.replace(by, "") if by else cell).replace(",", "."))
    lower = cell.lower()
    return NAN if lower in MARKERS else float(lower) if lower in _INFINITE else None


def with_points(cells: Sequence[str], comma: bool) -> Sequence[str] | None:
    """Return cells with decimal points and without separators of thousands; None if that needs a look at each.

    >>> with_points(["1,234.5", "", "2"], comma=False), with_points(["1,23", "2"], comma=False)
    (['1234.5', '', '2'], None)
    """
    text = "\n".join(cells)
    mark, by = (",", ".") if comma else (".", ",")
    if by in text and not _GROUPED[comma](text + "\n"):
        return None
    plain = text.replace(by, "").replace(mark, ".").split("\n")
    return plain if len(plain) == len(cells) else None


def digits_of(cell: str, comma: bool) -> str | None:
    """Return the digits of a whole number as it is written, None for anything else.

    >>> digits_of("-01,234", comma=False), digits_of("-1,234", comma=False), digits_of("1.0", comma=False)
    (None, '1234', None)
    """
    found = _NUMBER[comma](split_sign(cell)[1].strip())
    if not found or found["fraction"] or found["exponent"]:
        return None
    return "".join(c for c in found[0] if c.isdigit())


def split_sign(cell: str) -> tuple[str, str]:
    """Return which of SIGNS a cell has, "" for none, and the cell without it.

    >>> split_sign("-$5"), split_sign("5 %"), split_sign("5")
    (('$', '-5'), ('%', '5 '), ('', '5'))
    """
    cell = cell.strip().replace(_MINUS, "-")
    for at in (0, len(cell) - 1, 1 if cell[:1] in ("+", "-") else 0):
        if cell[at : at + 1] and cell[at] in SIGNS:
            return cell[at], cell[:at] + cell[at + 1 :]
    return "", cell


def is_unreadable_number(cell: str, comma: bool) -> bool:
    """Whether a text is a number that is not read: with the other decimal mark, or with its minus as in accounts.

    >>> [is_unreadable_number(cell, comma=False) for cell in ("2,5", "(2.5)", "2.5-", "2.5")]
    [True, True, True, False]
    """
    if cell[:1].isalpha():
        return False
    rest = split_sign(cell)[1]
    if read_number(rest, comma) is not None:
        return False
    booked = _BOOKED(rest)
    number = read_number((booked["inside"] or booked["before"]) if booked else rest, comma if booked else not comma)
    return number is not None and number == number


def unit_of(cell: str, comma: bool) -> str:
    """Return the unit of a number, "" for other texts.

    >>> [unit_of(cell, comma=False) for cell in ("2.5 kg", "2kg", "EUR 2.50", "2", "kg")]
    ['kg', 'kg', 'EUR', '', '']
    """
    found = _MEASURED(cell)
    if not found or read_number(found["number"], comma) is None or bool(found["currency"]) == bool(found["unit"]):
        return ""
    return (found["currency"] or found["unit"]).strip()


def decimal_comma(cells: Iterable[str], semicolons: bool) -> tuple[bool, str]:
    """Return whether the decimal mark of a file is the comma, and a number of which the user should know that, or "".

    cells: some of its cells. semicolons: whether they separate its fields.

    Numbers decide that have only one reading, such as 2,5 and 1.234.567. If there are none, or for either mark, the
    comma is the decimal mark of files with semicolons, unless 1.234 is a number of theirs and 1,234 is not.

    >>> decimal_comma(["2,5"], False), decimal_comma(["1,234"], False), decimal_comma(["1.234"], True)
    ((True, '2,5'), (False, ''), (False, '1.234'))
    """
    by_point = by_comma = False
    pointed = comma = ""
    for cell in cells:
        cell = split_sign(cell)[1].strip()
        as_point, as_comma = _NUMBER[False](cell), _NUMBER[True](cell)
        by_point |= bool(as_point and not as_comma)
        by_comma |= bool(as_comma and not as_point)
        pointed = pointed or (cell if as_point and "." in cell else "")
        comma = comma or (cell if as_comma and "," in cell else "")
    if by_comma or by_point:
        chosen = by_comma and (semicolons or not by_point)
    else:
        chosen = semicolons and (bool(comma) or not pointed)
    return chosen, comma if chosen else pointed if semicolons and not by_point else ""
