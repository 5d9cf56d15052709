"""What `draw`, `trace` and `explain` return: a graph that can be printed, shown in a notebook and saved."""

from __future__ import annotations

from gradflow.drawing.graph import Graph
from gradflow.files import FilePath

_LARGEST = 30
"""The largest number of steps that a notebook shows as a picture; a larger graph is a page, which folds and zooms."""


class Picture:
    """A computational graph. It prints as a table of its steps, a notebook shows it, and `save` writes it to a file."""

    @property
    def graph(self) -> Graph:
        """The graph as plain data: see `gradflow.drawing.graph`."""
        raise NotImplementedError

    def save(self, path: FilePath, *, local: bool = False, roles: bool = False) -> None:
        """Write the picture to a file: .svg, .png or .pdf (which need the extra "viz"), .html or .dot, by its suffix.

        local: draw the local derivatives of each step (default False).
        roles: draw what each step does to a gradient, as in "switches" (default False).

        Raises ValueError for another suffix; ImportError without the extra; OSError where the file cannot be
        written. Then no file is written, and one that was there stays as it was.
        """
        from gradflow.drawing.rendering import save

        save(self.graph, path, local=local, roles=roles)

    def __str__(self) -> str:
        """The steps as a table."""
        from gradflow.drawing.text import table

        return table(self.graph)

    def __repr__(self) -> str:
        steps, passes = len(self.graph.steps), len(self.graph.passes)
        kind = type(self).__name__.lower()
        return f"<{kind} of {steps} steps and {passes} backward passes: print it, or save it as a picture>"

    def _repr_svg_(self) -> str | None:
        """The picture in a notebook, of a graph that is not large, with the extra "viz"."""
        from gradflow.drawing.svg import to_svg

        if not self._is_drawn():
            return None
        return to_svg(self.graph).replace("<svg ", '<svg style="max-width: 100%; height: auto" ', 1)

    def _repr_html_(self) -> str | None:
        """The page in a notebook, where there is no picture."""
        import html

        from gradflow.drawing.page import to_html

        if self._is_drawn():
            return None
        page = html.escape(to_html(self.graph))
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 36rem; border: 0"></iframe>'

    def _is_drawn(self) -> bool:
        from gradflow.drawing.svg import has_graphviz

        return len(self.graph.steps) <= _LARGEST and has_graphviz()
