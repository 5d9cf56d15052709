"""The forward and the backward passes of a graph as one list of steps, as its page plays them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradflow.drawing.graph import Backward, Graph, Numbers, Step
from gradflow.drawing.text import backward_steps, line_of, seed


@dataclass(frozen=True)
class Moment:
    """A step of the forward or a backward pass, as the page plays it.

    turn: 0 for the forward pass, or the number of the backward pass. step: its index; None for the start of a backward
    pass. parts: what it computes, as formulas with numbers.
    """

    turn: int
    step: int | None
    parts: Sequence[str]


class Play:
    """All steps of all passes in the order in which the page plays them, and when each value and gradient arrives.

    A backward pass comes after the step that computed its root; the last one after all steps.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.moments: list[Moment] = []
        self.at: dict[tuple[int, int | None], int] = {}
        """The number of the moment of a turn and step."""
        self.uses = [self._uses(each) for each in graph.passes]
        """For each backward pass and value: the steps and places of inputs that its gradient comes from."""
        left = deque(graph.steps)
        for turn, each in enumerate(graph.passes, 1):
            root = graph.values[each.root]
            end = len(graph.steps) if turn == len(graph.passes) or root.step is None else root.step + 1
            self._forward(left, end)
            self._backward(turn, each)
        self._forward(left, len(graph.steps))

    def _uses(self, each: Backward) -> dict[int, list[tuple[int, int]]]:
        uses: dict[int, list[tuple[int, int]]] = {}
        for s in each.steps:
            for k, i in enumerate(self.graph.steps[s].inputs):
                if (s, k) in each.received:
                    uses.setdefault(i, []).append((s, k))
        return uses

    def _add(self, turn: int, step: int | None, parts: Sequence[str]) -> None:
        self.moments.append(Moment(turn, step, parts))
        self.at[turn, step] = len(self.moments)

    def _forward(self, left: deque[Step], end: int) -> None:
        while left and left[0].index < end:
            step = left.popleft()
            self._add(0, step.index, [f"{step.formula} = {line_of(self.graph.values[step.output].forward)}"])

    def _backward(self, turn: int, each: Backward) -> None:
        self._add(turn, None, [" = ".join(seed(self.graph, each))])
        for s, rows in backward_steps(self.graph, each):
            self._add(turn, s, [" = ".join(row) for row in rows])

    def _until(self, turn: int) -> int | None:
        """When the numbers of a backward pass give way to those of one that differentiates it; None if none does."""
        for later, each in enumerate(self.graph.passes[turn:], turn + 1):
            if any(self.graph.steps[s].recorded_by is not None for s in each.steps):
                return self.at[later, None]
        return None

    def gradients(self, value: int) -> Iterator[tuple[int, int | None, Numbers]]:
        """From when until when each gradient of a value is complete, and its numbers."""
        for turn, (each, uses) in enumerate(zip(self.graph.passes, self.uses, strict=True), 1):
            if value in each.gradients:
                steps = [s for s, _ in uses.get(value, ())]
                complete = max((self.at[turn, s] for s in steps), default=self.at[turn, None])
                yield complete, self._until(turn), each.gradients[value]

    def received(self, step: int, k: int) -> Iterator[tuple[int, int | None, Numbers]]:
        """From when until when an input has a part of its gradient from a step, and its numbers, if it has several."""
        value = self.graph.steps[step].inputs[k]
        for turn, (each, uses) in enumerate(zip(self.graph.passes, self.uses, strict=True), 1):
            if (step, k) in each.received and len(uses[value]) > 1:
                yield self.at[turn, step], self._until(turn), each.received[step, k]

    def row(self, moment: Moment) -> tuple[str, str, str, str]:
        """The pass, the operation, what it computes, and where."""
        several = len(self.graph.passes) > 1
        direction = "forward" if not moment.turn else f"backward {moment.turn}" if several else "backward"
        step = None if moment.step is None else self.graph.steps[moment.step]
        where = () if step is None else (*step.module[-1:], *([step.line] if step.line else []))
        return direction, "start" if step is None else step.operation, "; ".join(moment.parts), ", ".join(where)
