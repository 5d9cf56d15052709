"""A computational graph as plain data on the host, for pictures and text.

A graph has steps (operations, drawn as nodes) and values (drawn as edges). Each value has a summary of its numbers and,
once a backward pass has reached it, of its gradient. Renderers read nothing but this module's classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["input", "parameter", "constant", "result"]
Role = Literal["distributes", "switches", "routes", "scales", "sums", "moves", "mixes"]


@dataclass(frozen=True)
class Numbers:
    """A summary of an array.

    shape, dtype, device: of the array (`"float32"`, `"cuda:0"`).
    values: the numbers, as `tolist()` returns them, if the array is small enough to show in full; else None.
    mean, deviation, least, greatest: over the finite elements; None if there are none.
    nonfinite: how many elements are NaN or infinite.
    """

    shape: tuple[int, ...]
    dtype: str
    device: str
    values: Any
    mean: float | None
    deviation: float | None
    least: float | None
    greatest: float | None
    nonfinite: int = 0


@dataclass(frozen=True)
class Local:
    """The local derivative of a step with respect to one input.

    formula: in terms of the names of the values ("z", "s(1 - s)"); None if there is no short one.
    form: "number" (a scalar), "diagonal" (an elementwise step: one number an element), "full" (a Jacobian of shape
        output shape + input shape), or "implicit" (too large: only products with it are formed).
    numbers: the derivative, or None for "implicit".
    """

    formula: str | None
    form: Literal["number", "diagonal", "full", "implicit"]
    numbers: Numbers | None


@dataclass
class Value:
    """A value: an edge, or several from the same source.

    index: its place in `Graph.values`.
    label: what formulas call it: its name, a number ("2"), or "v1", "v2", ...; a gradient that a recorded backward pass
        computed is called "df/dx".
    name: the name of a variable ("q") or parameter ("0.weight"), or None.
    kind: "input" (requires grad, computed by no step), "parameter", "result" (computed by a step, requires grad), or
        "constant" (without a gradient; a step may have computed it).
    shape: the shape.
    forward: its numbers, or None if they were not kept. A Python number has the dtype "number" and no device.
    gradient: its gradient, summed over all uses, in the last backward pass that reached it; None if none was computed.
    kept: in a graph that `draw` found, what `.grad` holds; it may be of other functions too.
    step: the index of the step that computed it, or None.
    """

    index: int
    label: str
    name: str | None
    kind: Kind
    shape: tuple[int, ...] = ()
    forward: Numbers | None = None
    gradient: Numbers | None = None
    step: int | None = None
    kept: Numbers | None = None


@dataclass
class Step:
    """An operation that was applied: a node.

    index: its place in `Graph.steps`, in the order of the forward pass.
    operation: the name of the operation ("multiply"); symbol: what to draw ("*").
    inputs, output: indices of values. An operation that takes one value twice has its index twice.
    formula: the step as a formula in the names of its values ("f = q * z").
    rule: what the backward pass computes, for each input a formula ("df/dq = df/df * z"), or None without a gradient.
    local: for each input the local derivative, or None.
    received: for each input the gradient that it received from this step (before sums), or None.
    role: what the step does to a gradient, if that has a name.
    module: the modules that the step ran in, the outermost first, each as "name (Type)".
    recorded_by: None for a step of the forward pass. For a step that a recorded backward pass (`create_graph=True`)
        computed: the index of the step whose rule it belongs to.
    backward: its place in the order of the backward pass, or None if that did not reach it.
    line: where user code called it ("file.py:12"), or None.
    options: further arguments ({"axis": 0}).
    """

    index: int
    operation: str
    symbol: str
    inputs: tuple[int, ...]
    output: int
    formula: str
    rule: tuple[str | None, ...] = ()
    local: tuple[Local | None, ...] = ()
    received: tuple[Numbers | None, ...] = ()
    role: Role | None = None
    module: tuple[str, ...] = ()
    recorded_by: int | None = None
    backward: int | None = None
    line: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Backward:
    """A backward pass.

    root: the index of the value that was differentiated (the last one, if there were several).
    steps: the indices of the steps whose rules ran, in this order.
    gradients: the gradients of values, by index.
    received: what each input received from a step, by the index of the step and the place of the input in it.
    rules: how that was computed, as formulas ("df/dq = df/df * z").
    recorded: whether the gradients are values of the graph too (`create_graph=True`).
    failed: whether it ended with an exception.
    elsewhere: parts of gradients that came from operations that the graph does not have, by the index of the value.
    before_hooks: gradients that hooks changed, as they were before, by the index of the value.
    """

    root: int
    steps: tuple[int, ...]
    gradients: dict[int, Numbers]
    received: dict[tuple[int, int], Numbers]
    rules: dict[tuple[int, int], str]
    recorded: bool = False
    failed: bool = False
    elsewhere: dict[int, tuple[Numbers, ...]] = field(default_factory=dict)
    before_hooks: dict[int, Numbers] = field(default_factory=dict)


@dataclass
class Graph:
    """A computational graph: its steps in the order of the forward pass, and their values.

    outputs: indices of the values that no step uses, or that were asked for.
    title: one line, or "".
    passes: the backward passes, in the order in which they ran.
    """

    values: list[Value]
    steps: list[Step]
    outputs: tuple[int, ...] = ()
    title: str = ""
    passes: list[Backward] = field(default_factory=list)
