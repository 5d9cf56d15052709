"""Text of foreign origin, made fit to print on one line."""

from __future__ import annotations


def plain(text: str) -> str:
    r"""The words of a text on one line, with every invisible character (such as control codes) written out.

    >>> print(plain("it is\n\x1b[31mred"))
    it is \x1b[31mred
    """
    words = " ".join(text.split())
    return words if words.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)


def one_line(error: BaseException) -> str:
    """An error as one line: its kind, and the beginning of what it says."""
    try:
        words = plain(str(error))
    except Exception as failure:  # of its own __str__
        words = f"an error that cannot be shown ({type(failure).__name__})"
    words = words if len(words) <= 400 else f"{words[:400]} ..."
    return f"{type(error).__name__}: {words}".rstrip(": ")
