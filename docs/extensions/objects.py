"""The directive `{objects} MODULE`: its content is a list of names, whose docstrings it shows."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

OF_ESTIMATORS = ("get_metadata_routing", "score", "set_fit_request", "set_partial_fit_request", "set_score_request")
"""What scikit-learn adds to each of its estimators, and documents itself."""

MEMBERS = [
    "   :members:",
    "   :inherited-members: Backend, BaseEstimator, Module, Optimizer, Tensor, tuple",
    f"   :exclude-members: {', '.join(OF_ESTIMATORS)}",
]
"""Members of a class, with those of its bases up to one that the reference shows itself."""


def kind_of(value: Any) -> tuple[str, bool]:
    """The directive of autodoc for a value, and whether to show its members."""
    if isinstance(value, type) and issubclass(value, BaseException):
        return "autoexception", False
    if isinstance(value, type):
        return "autoclass", not issubclass(value, tuple)
    if callable(value) and (inspect.isfunction(value) or hasattr(value, "__wrapped__")):
        return "autofunction", False
    return ("autofunction", False) if callable(value) else ("autodata", False)


class Objects(SphinxDirective):
    """The docstrings of objects of a module, as autodoc renders them."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        names = " ".join(self.content).split()
        lines = [f".. currentmodule:: {self.arguments[0]}", ""]
        if len(names) > 3:
            lines += [" · ".join(f":py:obj:`~{self.arguments[0]}.{name}`" for name in names), ""]
        for name in names:
            directive, members = kind_of(getattr(module, name))
            lines += [f".. {directive}:: {name}", *(MEMBERS * members), ""]
        node = nodes.container()
        node.document = self.state.document
        rest = StringList(["```{eval-rst}", *lines, "```"], self.arguments[0])
        self.state.nested_parse(rest, self.content_offset, node)
        return node.children


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("objects", Objects)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
