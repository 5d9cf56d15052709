"""The files of pictures of a computational graph, in the format that their name asks for."""

from __future__ import annotations

import os

from gradflow.drawing.graph import Graph
from gradflow.files import FilePath, write_file

SUFFIXES = (".svg", ".png", ".pdf", ".html", ".dot")


def save(graph: Graph, path: FilePath, *, local: bool = False, roles: bool = False) -> None:
    """Write a picture of a graph as a file: .svg, .png or .pdf (which need the extra "viz"), .html or .dot.

    local: draw the local derivatives of each step. roles: draw what each step does to a gradient ("switches").

    Raises ValueError for another suffix; ModuleNotFoundError without the extra; OSError where the file cannot be
    written. Then no file is written, and one that was there stays as it was.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"a picture of a graph is saved as {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}; "
            f"got the file {os.fspath(path)!r}, with {f'the suffix {suffix!r}' if suffix else 'no suffix'}"
        )
    write_file(path, _content(graph, suffix, local=local, roles=roles))


def _content(graph: Graph, suffix: str, *, local: bool, roles: bool) -> bytes:
    if suffix == ".html":
        from gradflow.drawing.page import to_html

        return to_html(graph, local=local, roles=roles).encode()
    if suffix == ".dot":
        from gradflow.drawing.dot import to_dot

        return to_dot(graph, local=local, roles=roles).encode()
    from gradflow.drawing.svg import to_bytes

    return to_bytes(graph, suffix[1:], local=local, roles=roles)
