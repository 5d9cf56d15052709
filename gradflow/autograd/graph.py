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
    """A differentiable operation: its name, its value, and one VJP rule per argument.

    `forward(F, *arrays, **parameters)` gives the value, with a residual beside it where `residual` is true.
    Each of `rules` is `rule(F, g, out, *inputs, **parameters)`, or None for an argument without a gradient. A rule
    whose argument is called `_name` does not read its values: the array is not kept, and it gets a stand-in with
    `shape` and `dtype` where the argument needs a gradient, else None. A rule may give a `Part`. `widens`: for a result
    of half floats, rules run in float32. Not where they only move values, or round them once (`exact`).

    `joint` instead of `rules` gives the gradients of all arguments at once; it also takes `needs`; `residual`, if there
    is one (None when it runs on tensors or batches); and, where `writes_into` is true, `into`: for each argument a
    buffer to write its gradient to and return, or None. It reads all inputs unless `joint_reads_inputs` is false, and
    the result where `joint_reads_out(parameters)`. It is given half floats as they are when it runs on arrays: its
    kernels compute in float32. `saves_parameters`: they hold what is to be freed with the saved arrays.
    """

    __slots__ = (
        "forward", "joint", "joint_reads_inputs", "joint_reads_out", "name", "reads", "residual", "rules", "saves",
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
    ) -> None:
        self.name = name
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
        # for each rule, whether it reads `out`, and which inputs
        self.reads = tuple(None if rule is None else _reads(rule, len(self.rules)) for rule in self.rules)
        self.saves = _Saves(self.reads)

    def __repr__(self) -> str:
        return f"<operation {self.name}>"


class _Saves(dict[int, tuple[bool, tuple[bool, ...] | None]]):
    """For each set of arguments that need a gradient (a bit mask) whether to save `out`, and which inputs."""

    def __init__(self, reads: Sequence[tuple[bool, tuple[bool, ...]] | None]) -> None:
        self.reads = reads

    def __missing__(self, mask: int) -> tuple[bool, tuple[bool, ...] | None]:
        reads = [r for i, r in enumerate(self.reads) if r is not None and mask >> i & 1]
        inputs = tuple(any(r[1][i] for r in reads) for i in range(len(self.reads)))
        found = self[mask] = any(r[0] for r in reads), inputs if any(inputs) else None
        return found


def _reads(rule: Callable[..., Any], arity: int) -> tuple[bool, tuple[bool, ...]]:
    code = getattr(rule, "__wrapped__", rule).__code__
    names = code.co_varnames[: code.co_argcount]
    return not names[2].startswith("_"), tuple(not n.startswith("_") for n in names[3 : 3 + arity])


class Node:
    """A recorded operation. `shape`, `dtype` and `backend` are those of its result."""

    __slots__ = (
        "__weakref__", "backend", "dtype", "hooks", "id", "inputs", "op", "out", "parameters", "parents", "shape",
    )  # fmt: skip

    state = None  # never RESERVED, see `Leaf`
    hooks: dict[int, Callable[[Any], Any]]  # only of `hooked_nodes`

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


def nodes_from(roots: Sequence[Node | Leaf], ends: Collection[Node | Leaf] = (), through: bool = False) -> list[Any]:
    """All nodes that the roots depend on, the newest first; with `ends`, only as far as can lead to one of them.

    `through`: also beyond ends that are reached.
    """
    seen = set(roots)
    oldest = min(map(_id, ends)) if ends else 0
    order: list[Any] = list(seen)
    leaves: list[Any] = []
    for node in order:  # which grows meanwhile
        if through or not oldest or node not in ends:
            for parent in node.parents:
                if parent is not None and parent not in seen and (not oldest or parent.id >= oldest):
                    seen.add(parent)
                    (leaves if parent.op is None else order).append(parent)
    if len(order) > 1:
        order.sort(key=_id, reverse=True)  # nearly so already, which makes it quick
    order += leaves
    if recorders:
        report_read(*order)
    return order
