"""The graph: operations with their gradient rules, and the nodes that record them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from gradflow.autograd.memory import clock
from gradflow.backend import Array, Backend
from gradflow.interception import recorders, report_read

if TYPE_CHECKING:
    from gradflow.autograd.leaf import Leaf


class Operation:
    """A differentiable operation: its name, its value, and its gradient rules (vector-Jacobian products).

    name: the name in error messages.
    forward: `forward(F, *arrays, **parameters)` returns the value; with `residual`, the pair (value, residual).
    rules: for each argument `rule(F, g, out, *inputs, **parameters)`, which returns the gradient of that argument for
        the gradient `g` of the result, as an array or a `Part`; or None if the argument has no gradient. The walk
        sums over broadcast axes and casts, so a rule need not. A rule does not read the values of parameters that are
        named with a leading underscore (`_x`, `_out`): they are not saved, and the rule gets an object with the `shape`
        and `dtype` of the input if that requires grad, else None.
    joint: one rule for all arguments, instead of `rules`. It returns a list of gradients, and has further keyword
        arguments: `needs`, for each argument whether its gradient is needed; `residual`, what `forward` returned (None
        when it runs on tensors or batches); and `into`, see `writes_into`.
    joint_reads_inputs: whether `joint` reads the inputs (default True).
    joint_reads_out: `joint_reads_out(parameters)` returns whether `joint` reads the result (default: it does not).
    residual: whether `forward` returns a residual (default False).
    writes_into: whether `joint` takes `into` (default False): for each argument None, or a buffer that it may write the
        gradient to and then return (the same array, not a view of it).
    saves_parameters: whether parameters are freed together with the saved arrays (default: the value of `residual`).
    view: whether the result shares the memory of the first input (default False).
    autocast: what inputs are converted to in `gradflow.autocast`: "half", "float32" or None (default): nothing.
    exact: whether the rules only move values or round them once (default False). Other rules (`widens`) compute with
        half floats in float32. A `joint` rule that runs on arrays gets half floats: its kernels convert them.
    """

    __slots__ = (
        "autocast", "forward", "joint", "joint_reads_inputs", "joint_reads_out", "name", "residual", "rules", "saves",
        "saves_parameters", "view", "widens", "writes_into",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        rules: Sequence[Callable[..., Any] | None] = (),
        joint: Callable[..., Any] | None = None,
        joint_reads_inputs: bool = True,
        joint_reads_out: Callable[[dict[str, Any]], bool] | None = None,
        residual: bool = False,
        writes_into: bool = False,
        saves_parameters: bool = False,
        view: bool = False,
        exact: bool = False,
        autocast: str | None = None,
    ) -> None:
        self.name = name
        self.autocast = autocast
        self.forward = forward
        self.rules = tuple(rules)
        self.joint = joint
        self.joint_reads_inputs = joint_reads_inputs
        self.joint_reads_out = joint_reads_out
        self.residual = residual
        self.writes_into = writes_into
        self.saves_parameters = saves_parameters or residual
        self.view = view
        self.widens = not (exact or view)
        self.saves = _Saves([None if rule is None else _reads(rule, len(self.rules)) for rule in self.rules])

    def __repr__(self) -> str:
        return f"<operation {self.name}>"


class _Saves(dict[int, tuple[bool, tuple[bool, ...] | None]]):
    """What a node saves, for each set of arguments that require grad (a bit mask): the result or not, and which inputs.

    Computed from what each rule reads when it is first asked for.
    """

    def __init__(self, reads: Sequence[tuple[bool, tuple[bool, ...]] | None]) -> None:
        self.reads = reads

    def __missing__(self, mask: int) -> tuple[bool, tuple[bool, ...] | None]:
        reads = [r for i, r in enumerate(self.reads) if r is not None and mask >> i & 1]
        inputs = tuple(any(r[1][i] for r in reads) for i in range(len(self.reads)))
        found = self[mask] = any(r[0] for r in reads), inputs if any(inputs) else None
        return found


def _reads(rule: Callable[..., Any], arity: int) -> tuple[bool, tuple[bool, ...]]:
    """Return whether a rule reads the result, and for each input whether it reads that."""
    code = getattr(rule, "__wrapped__", rule).__code__
    names = code.co_varnames[: code.co_argcount]
    return not names[2].startswith("_"), tuple(not n.startswith("_") for n in names[3 : 3 + arity])


class Node:
    """A recorded operation: a vertex of the graph.

    op, parameters: the operation and what its rules take as keyword arguments, or None.
    parents: for each input the node or leaf that it came from; None for an input that does not require grad.
    inputs: the input tensors and numbers, with None for each that no rule reads; None if the rules read no input.
    out: the array of the result if a rule reads it, else None.
    backend, shape, dtype: of the result.
    id: the number of the clock at its creation, larger than the ids of the parents.
    """

    __slots__ = (
        "__weakref__", "backend", "dtype", "hooks", "id", "inputs", "op", "out", "parameters", "parents", "shape",
    )  # fmt: skip

    state = None  # a node has no gradient buffer, see `Leaf.state`
    hooks: dict[int, Any]  # unset until the first hook is added

    def __init__(
        self,
        op: Operation,
        backend: Backend,
        parents: tuple[Any, ...],
        inputs: tuple[Any, ...] | None,
        out: Array,
        array: Array,
        parameters: dict[str, Any] | None,
    ) -> None:
        self.op = op
        self.backend = backend
        self.parents = parents
        self.inputs = inputs
        self.out = out
        self.shape = array.shape
        self.dtype = array.dtype
        self.parameters = parameters
        self.id = clock.tick()

    @property
    def ndim(self) -> int:
        return len(self.shape)


_id: Callable[[Any], int] = attrgetter("id")


def nodes_from(roots: Sequence[Node | Leaf], ends: Collection[Node | Leaf] = (), past_ends: bool = False) -> list[Any]:
    """Return the nodes that the roots depend on, roots included, from the newest to the oldest; then the leaves.

    Leaves among the roots come between the nodes, by age. They are still older than all nodes that depend on them.

    ends: the search stops at these, unless `past_ends`. It leaves out nodes older than all of them, because no path to
        an end goes through such a node.
    """
    seen = set(roots)
    oldest = min(map(_id, ends)) if ends else 0
    order: list[Any] = list(seen)
    leaves: list[Any] = []
    for node in order:  # grows during the loop
        if past_ends or not oldest or node not in ends:
            for parent in node.parents:
                if parent is not None and parent not in seen and (not oldest or parent.id >= oldest):
                    seen.add(parent)
                    (leaves if parent.op is None else order).append(parent)
    if len(order) > 1:
        order.sort(key=_id, reverse=True)  # fast, for it is nearly sorted
    order += leaves
    if recorders:
        report_read(*order)
    return order
