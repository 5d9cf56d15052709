"""gradflow's docstrings as reStructuredText: arguments become a list, and names in backticks become links."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

ARGUMENT = re.compile(r"([a-z_]\w*(?:, \w+)*): (.*)", re.DOTALL)
"""The first line of what a docstring says about an argument: `lr, eps: what they are`."""


def escaped(text: str) -> str:
    """A text without markup other than names in backticks and words in asterisks."""
    parts = re.split(r"(``.*?``|`[^`]*`|(?<!\S)\*\w[\w ]*\*(?!\w))", text, flags=re.DOTALL)
    parts[1::2] = [re.sub(r"^`(\..*)`$", r"``\1``", part) for part in parts[1::2]]  # `.grad` is no link
    extras = [i for i in range(1, len(parts), 2) if parts[i - 1].endswith(("the extra ", "the extra\n"))]
    for i in extras:
        parts[i] = f"`{parts[i]}`"  # the name of an extra is no link
    return "".join(part if i % 2 else re.sub(r"([*|\\`]|_(?!\w))", r"\\\1", part) for i, part in enumerate(parts))


def as_arguments(lines: list[str]) -> list[str]:
    """A paragraph about arguments as a definition list."""
    made: list[str] = []
    for line in lines:
        match = ARGUMENT.fullmatch(line)
        if match:
            made += [", ".join(f"**{name}**" for name in match[1].split(", ")), f"    {match[2]}"]
        else:
            made.append(f"    {line.strip()}")
    return made


def as_rest(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    made: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).rstrip()):
        if paragraph.startswith("    "):  # code
            made += ["::", "", *paragraph.split("\n")]
        elif paragraph.startswith(">>>"):
            made += paragraph.split("\n")
        else:
            split = escaped(paragraph).split("\n")
            made += as_arguments(split) if ARGUMENT.fullmatch(split[0]) else split
        made.append("")
    return made


def process(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """The docstring of an object that autodoc documents, in place."""
    lines[:] = as_rest(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
