"""`trace`: what runs in a `with`, as a graph with its values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from gradflow.autograd.grad_mode import OBSERVED, OFF, current_observer, grad_enabled
from gradflow.drawing.graph import Graph
from gradflow.drawing.names import checked_names, name_values, variables
from gradflow.drawing.picture import Picture
from gradflow.drawing.places import user_frame
from gradflow.drawing.recorder import Recorder
from gradflow.modes import Mode


class _Recording(Mode):
    """The mode in which a recorder is the observer."""

    variables = (current_observer, grad_enabled)

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def _values(self) -> tuple[Any, ...]:
        return self.recorder, OFF if grad_enabled.get() is OFF else OBSERVED


class Trace(Picture):
    """What ran in the `with` of `gradflow.trace`; see there."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._mode: _Recording | None = None
        self._read: Callable[[], Graph] | None = None
        self._graph: Graph | None = None

    def __enter__(self) -> Self:
        if self._mode is not None:
            raise RuntimeError("a trace records one `with`: call gradflow.trace() again for another")
        self._mode = _Recording(Recorder(current_observer.get(), guest=True))
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._mode is not None
        self._mode.__exit__(*error)
        recorder, self._mode.recorder = self._mode.recorder, Recorder()  # which keeps arrays and modules alive
        recorder.places.forget()
        modules: dict[int, str] = {}
        try:
            modules = name_values(recorder, self._names, variables(user_frame()))
        except Exception as failure:  # in code of the user, such as an object that pretends to be a tensor
            recorder.failed(failure)
        self._names = {}

        def read() -> Graph:
            from gradflow.drawing.building import graph_of

            graph = graph_of(recorder, modules)
            if not graph.steps and not graph.title:
                graph.title = "no operation was recorded in the `with`"
            return graph

        self._read = read

    def name(self, /, **names: Any) -> None:
        """Inside the `with`: name tensors and modules that are no variables of the caller, as `trace(x=x)` does."""
        if self._read is not None or self._graph is not None:
            raise RuntimeError("name() is for the inside of the `with`: the names of this trace are known")
        self._names |= checked_names("name", names)

    def __repr__(self) -> str:
        return super().__repr__() if self._read or self._graph else "<a trace whose `with` has not ended>"

    @property
    def graph(self) -> Graph:
        """The graph as plain data. Its first use copies the numbers from the devices."""
        if self._read is not None:
            self._graph, self._read = self._read(), None
        if self._graph is None:
            raise RuntimeError("the graph of a trace is complete at the end of its `with`")
        return self._graph


def trace(**names: Any) -> Trace:
    """Record every operation inside a `with`, and the gradients of all its values, to see them as a table or a picture.

    names: tensors, or modules with parameters, by the name to show (default: the names that the caller's variables have
        at the end of the `with`; parameters have the path in their module, as in "0.weight").

    The `with` gives a `Trace`: it prints as a table of the steps, forward and then backward; a notebook shows its
    picture; `save("graph.svg")` writes it to a file (.svg, .png, .pdf, .html or .dot); `graph` is the plain data.

    Operations and backward passes are those of this thread (its context): under `no_grad` too, of checkpoints, of
    recorded passes (`create_graph=True`), and of `gradflow.grad` and its like. A captured step runs normally. Gradients
    are shown of all values, without `retain_grad`. Values are those at the time: each is summarized on its device at
    once, and copied to the host together with the others, one transfer for each device, when the trace is first used.
    Small arrays are kept in full, with the local derivatives of small steps. After an exception, the trace has what ran
    before it.

    Raises TypeError for a name of something else.

    >>> import gradflow as gf
    >>> x, y, z = (gf.tensor(v, requires_grad=True) for v in (-2.0, 5.0, -4.0))
    >>> with gf.trace() as trace:
    ...     q = x + y
    ...     f = q * z
    ...     f.backward()
    >>> print(trace)
    q = x + y = 3
    f = q * z = -12
    <BLANKLINE>
    backward, from f:
    df/df             = 1
    df/dq = df/df * z = -4
    df/dz = df/df * q = 3
    df/dx = df/dq * 1 = -4
    df/dy = df/dq * 1 = -4
    """
    return Trace(checked_names("trace", names))
