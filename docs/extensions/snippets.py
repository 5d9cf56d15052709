"""The code of a page of the documentation: it runs, and prints what the page shows.

Blocks marked `python` are executed, blocks marked `pycon` are doctests; all blocks of a page share their names.
"""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(python|pycon|\{picture\})([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INCLUDE = re.compile(r"^```\{literalinclude\} (\S+\.py)$", re.MULTILINE)


def run_page(
    text: str, name: str, draw: Callable[[Any, str], None] | None = None, only: tuple[str, ...] = ("python", "pycon")
) -> dict[str, Any]:
    """Run the blocks of a page in order, and return the names that they define.

    text, name: the page, and its name in error messages.
    draw: called for each block `{picture} EXPRESSION` with the value of the expression at that place and the body of
        the block (default: pictures are left out).

    Raises AssertionError if a block prints something other than what the page shows.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        kind, argument, body = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        if kind == "{picture}":
            if draw is not None:
                draw(eval(argument, names), body)
        elif kind == "python":
            exec(compile("\n" * line + body, name, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(body, names, name, name, line)
            complaints: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=complaints.append, clear_globs=False)
            names = test.globs
            assert not complaints, "".join(complaints)
    return names


def included(page: Path) -> list[Path]:
    """The Python files that a page includes."""
    return [(page.parent / path).resolve() for path in INCLUDE.findall(page.read_text("utf-8"))]
