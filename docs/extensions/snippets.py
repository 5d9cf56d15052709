"""The code of a page of the documentation: it runs, and prints what the page shows.

Blocks marked `python` are executed, blocks marked `pycon` are doctests; all blocks of a page share their names.
"""

from __future__ import annotations

import doctest
import re
from typing import Any

BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_page(text: str, name: str) -> dict[str, Any]:
    """Run the blocks of a page in order, and return the names that they define.

    text, name: the page, and its name in error messages.

    Raises AssertionError if a block prints something other than what the page shows.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for match in BLOCK.finditer(text):
        kind, body = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        if kind == "python":
            exec(compile("\n" * line + body, name, "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(body, names, name, name, line)
            test.globs = names  # not a copy, so that functions see what is defined later
            complaints: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=complaints.append, clear_globs=False)
            assert not complaints, "".join(complaints)
    return names
