"""Text for messages: text from other sources made safe to print on one line, suggestions for misspelt names, digits."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str) -> str:
    r"""The text on one line: runs of white space become one space, and characters that do not print are escaped.

    >>> print(printable("it is\n\x1b[31mred"))
    it is \x1b[31mred
    """
    words = " ".join(text.split())
    return words if words.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def one_line(error: BaseException) -> str:
    """The type and message of an error on one line; a message of more than 400 characters is cut."""
    try:
        message = printable(str(error))
    except Exception as failure:  # raised by the error's own __str__
        message = f"an error that cannot be shown ({type(failure).__name__})"
    message = message if len(message) <= 400 else f"{message[:400]} ..."
    return f"{type(error).__name__}: {message}".rstrip(": ")


def three_digits(value: float) -> str:
    """The number with three digits, and with separators where it has more; without an exponent.

    >>> three_digits(1234567), three_digits(99.96), three_digits(0.5)
    ('1,230,000', '100', '0.500')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The suggestion of the known name that is most similar to `name`; "" if none is similar.

    >>> did_you_mean("trian", ["train", "devices"])
    '; did you mean train?'
    """
    import difflib  # only for an error message: it is slow to import

    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""
