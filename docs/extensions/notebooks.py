"""The line `{notebook} PATH` as the content of a page: a notebook with its outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pictures import on_page
from sphinx.application import Sphinx


def as_markdown(notebook: dict[str, Any]) -> Iterator[str]:
    """The cells of a notebook, each as a text of the page."""
    for i, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            data = {kind: "".join(text) for kind, text in output.get("data", {}).items()}
            if "image/svg+xml" in data:
                yield f"````{{raw}} html\n{on_page(data['image/svg+xml'], f'cell{i}')}\n````"
            elif "image/png" in data:
                image = data["image/png"].replace("\n", "")
                yield f'````{{raw}} html\n<img class="plot" alt="A plot" src="data:image/png;base64,{image}">\n````'
            else:
                yield f"```text\n{''.join(output.get('text', ())) or data['text/plain']}\n```"


def include(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace the line by the notebook."""
    match = re.search(r"^\{notebook\} (\S+)$", source[0], re.MULTILINE)
    if match:
        path = Path(app.env.doc2path(page)).parent / match[1]
        cells = as_markdown(json.loads(path.read_text("utf-8")))
        source[0] = source[0].replace(match[0], "\n\n".join(cells))
        app.env.note_dependency(str(path))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", include)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
