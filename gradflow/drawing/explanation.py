"""`explain`: the backward pass of a tensor, step by step."""

from __future__ import annotations

import html
from typing import Any

from gradflow.autograd.backward import backward
from gradflow.autograd.graph import nodes_from
from gradflow.autograd.observers import observe
from gradflow.drawing.existing import Drawing, is_freed, known, root_of, unknown
from gradflow.drawing.names import checked_names, name_values, variables
from gradflow.drawing.places import user_frame
from gradflow.drawing.recorder import Recorder
from gradflow.drawing.tracing import Trace
from gradflow.printing import describe
from gradflow.tensor import Tensor


class Explanation(Drawing):
    """A backward pass. It prints step by step, and is also a picture with all values, gradients and derivatives."""

    def __str__(self) -> str:
        from gradflow.drawing.text import explained

        return explained(self.graph)

    def _repr_svg_(self) -> None:
        """No picture in a notebook: the text has what an explanation adds to it."""

    def _repr_html_(self) -> str:
        """The text in a notebook."""
        return f"<pre>{html.escape(str(self))}</pre>"


def explain(output: Tensor | Trace, /, gradient: Tensor | float | None = None, **names: Any) -> Explanation:
    """The backward pass of `output`, step by step: upstream gradient x local derivative = what each input receives.

    output: a tensor that requires grad and was computed from others; or a trace, whose backward passes are explained.
    gradient: its gradient, a tensor like it or a number for all elements (default: 1, which for a tensor with one
        element is that of `backward()`).
    names: tensors, or modules with parameters, by the name to print (default: the names of the caller's variables).

    Where a value is used more than once, the sum of what it receives is shown. For arrays, a step shows the
    vector-Jacobian product that it computes, and the local derivative while that is small: the diagonal of the Jacobian
    of an elementwise operation, or the full Jacobian. `explain` computes the pass itself: it changes no `.grad`, keeps
    the graph for a later `backward()`, and needs neither a trace nor `retain_grad`.

    Raises as `gradflow.draw`, RuntimeError for a graph that an earlier backward pass has freed and for a trace without
    a backward pass, ValueError for a gradient that does not fit.

    >>> import gradflow as gf
    >>> x, y, z = (gf.tensor(v, requires_grad=True) for v in (-2.0, 5.0, -4.0))
    >>> q = x + y
    >>> f = q * z
    >>> print(gf.explain(f))
    The backward pass of f: upstream gradient * local derivative = what each input receives.
    <BLANKLINE>
    df/df = 1
    <BLANKLINE>
    f = q * z = -12   (switches: each input receives the gradient times the other input)
      df/dq = df/df * z = 1 * (-4) = -4
      df/dz = df/df * q = 1 * 3 = 3
    <BLANKLINE>
    q = x + y = 3   (distributes: each input receives the gradient)
      df/dx = df/dq * 1 = (-4) * 1 = -4
      df/dy = df/dq * 1 = (-4) * 1 = -4
    """
    checked_names("explain", names)
    if isinstance(output, Trace):
        return _of_trace(output, gradient, names)
    node = root_of("explain", output)
    if is_freed(node):
        raise RuntimeError(
            f"explain() on a {describe(output)} whose graph an earlier backward pass has freed: call explain() before "
            "backward(), keep the graph with backward(retain_graph=True), or, where a trace recorded both, call "
            "explain(trace)"
        )
    if gradient is None or isinstance(gradient, (int, float)):
        seed = output.backend.full(node.shape, 1.0 if gradient is None else float(gradient), dtype=node.dtype)
    elif not isinstance(gradient, Tensor):
        raise TypeError(f"explain takes a tensor or a number as gradient; got {type(gradient).__name__}")
    elif (gradient.shape, gradient.dtype, gradient.device) != (output.shape, output.dtype, output.device):
        raise ValueError(f"gradient must be like the {describe(output)}; got a {describe(gradient)}")
    else:
        seed = gradient.array
    found = variables(user_frame())
    recorder = Recorder()
    recorder.add_graph([node], *known(output, names, found))
    with observe(recorder):
        backward([node], [seed], retain_graph=True, wanted={each for each in nodes_from([node]) if each.op is None})
    modules = name_values(recorder, names, found)

    from gradflow.drawing.building import graph_of

    graph = graph_of(recorder, modules, recorder.seen(node))
    graph.title = unknown(graph)
    return Explanation(graph)


def _of_trace(trace: Trace, gradient: Any, names: dict[str, Any]) -> Explanation:
    if gradient is not None or names:
        raise TypeError(
            "explain(trace) takes nothing else: a trace has its gradients and names; trace(x=x) names values"
        )
    if not trace.graph.passes:
        raise RuntimeError("explain() on a trace without a backward pass: call backward() inside its `with`")
    return Explanation(trace.graph)
