"""The directives `{renamed}` and `{missing}`: gradflow's hints on names of PyTorch as tables, from the code itself.

Each takes lines `TABLE PREFIX`: a table of `gradflow.pytorch_names`, and what PyTorch calls the place of its names.
"""

from __future__ import annotations

import re

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gradflow import pytorch_names

_CALL = r"(?:\[[^\]]*\]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))"
_NAME = rf"(?:gradflow|numpy|Tensor|Module|Optimizer|dict|isinstance)\b(?:[.\w]*\w)?{_CALL}*(?:\.\w+{_CALL}*)*"
_ELEMENTS = r"\b[xy]\[[^\]]+\]"
CODE = re.compile(
    rf"(?:1 / )?{_NAME}(?: [<>=]= (?:{_NAME}|'\w+'))?|1 / x|{_ELEMENTS}(?: \+ {_ELEMENTS}| = \w+)?|\.numpy\(\)"
    r"|(?<=operator )[^\s\w,;.]+|'[\w:]+'|\bdtype="
)
"""Names, calls and expressions in a hint."""


class Hints(SphinxDirective):
    """A table of names of PyTorch, and what gradflow's error for each says."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        missing = self.name == "missing"
        rows = [f"| PyTorch | {'nearest in gradflow' if missing else 'gradflow'} |", "|---|---|"]
        for line in self.content:
            table, prefix = line.split()
            for name, hint in getattr(pytorch_names, table).items():
                if hint.startswith("none: ") == missing:
                    text = CODE.sub(lambda match: f"`{match[0]}`", hint.removeprefix("none: "))
                    rows.append(f"| `{prefix}.{name}` | {text.replace('|', chr(92) + '|')} |")
        node = nodes.container(classes=["hints"])
        self.state.nested_parse(StringList(rows, "gradflow.pytorch_names"), self.content_offset, node)
        return [node]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("renamed", Hints)
    app.add_directive("missing", Hints)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
