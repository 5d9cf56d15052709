"""What `draw`, `trace` and `explain` return: a graph that can be printed, shown in a notebook and saved."""

from __future__ import annotations

from gradflow.drawing.graph import Graph


class Picture:
    """A computational graph. It prints as a table of its steps; a notebook shows it; `save` writes it to a file."""

    @property
    def graph(self) -> Graph:
        """The graph as plain data, see `gradflow.drawing.graph`."""
        raise NotImplementedError

    def __str__(self) -> str:
        from gradflow.drawing.text import table

        return table(self.graph)
