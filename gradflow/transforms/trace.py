"""A function run once on stand-ins for its arguments, and the gradients of that run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

from gradflow.autograd.backward import backward
from gradflow.autograd.batching import Batch, batched
from gradflow.autograd.grad_mode import enable_grad, is_grad_enabled
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.leaf import Leaf
from gradflow.ops.elementwise import copy
from gradflow.ops.table import apply
from gradflow.printing import _describe
from gradflow.tensor import Tensor, tensor
from gradflow.tree import flatten, map_tree, rebuild

_IDENTITY = Operation("identity", lambda F, x: x, [lambda F, g, _out, _x: g], view=True)


class Trace:
    """A run of a function on stand-ins for some of its arguments, and what it gave.

    `inputs` are the stand-ins, `output` the result; `needs_higher_order` tells whether derivatives of this run's
    derivatives are needed, so that they must be recorded.
    """

    def __init__(
        self,
        what: str,
        f: Callable[..., Any],
        arguments: Sequence[Any],
        argnums: Sequence[int],
        options: dict[str, Any],
    ) -> None:
        self.what = what
        check_function(what, f)
        recording = is_grad_enabled()
        given = list(arguments)
        self.inputs: list[Tensor] = []
        self.trees = []
        with enable_grad():
            for i in argnums:
                leaves = [_checked(what, f"argument {i}{path}", x, recording) for path, x in flatten(given[i])]
                self.inputs += leaves
                self.trees.append(given[i])
                given[i] = rebuild(given[i], leaves)
            if not self.inputs:
                raise ValueError(f"{what} has nothing to differentiate by: the arguments hold no tensors")
            self.nodes = [_node(x) for x in self.inputs]
            self.output = f(*given, **options)
        for x, node in zip(self.inputs, self.nodes, strict=True):
            x._node = node  # whatever the function did to it
        self._recording = recording

    def check_outputs(self, output: Any) -> list[tuple[str, Tensor]]:
        """The tensors of an output; TypeError for what is none, or carries no gradient."""
        found = flatten(output)
        if not found:
            raise TypeError(f"{self.what} needs a function that returns tensors; it returned {output!r}")
        for path, y in found:
            if not isinstance(y, Tensor):
                raise TypeError(f"{self.what} needs a function that returns tensors; result{path} is {_kind(y)}")
            if not y.dtype.is_floating:
                raise TypeError(f"{self.what} cannot differentiate result{path}, a {_describe(y)}: it is not floating")
        return found

    def needs_higher_order(self, *outputs: Any) -> bool:
        """Whether the outputs depend on something recorded before this run, or on a leaf of someone else."""
        if not self._recording:
            return False
        if any(node.parents for node in self.nodes):
            return True
        own, start = set(self.nodes), self.nodes[0].id
        roots = [y._node for y in outputs if y._node is not None and y._node not in own]
        seen = set(roots)
        while roots:
            node = roots.pop()
            if node.op is None or node.id < start:
                return True
            for parent in node.parents:
                if parent is not None and parent not in own and parent not in seen:
                    seen.add(parent)
                    roots.append(parent)
        return False


def gradients_of(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    record: bool,
    retain: bool = False,
    batch: bool = False,
) -> list[Tensor]:
    """The gradients of the inputs, recorded where `record`; zeros where no output depends on one.

    With `batch` the first axis of the cotangents, and of the results, counts a batch. No two results share memory.
    """
    found = _walk(inputs, outputs, cotangents, record, retain, batch)
    return [copy(g) if record else Tensor(g.backend.copy(g.array), g.backend) for g in found]


def _walk(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    record: bool,
    retain: bool = False,
    batch: bool = False,
) -> list[Tensor]:
    """As `pull`, for results that are not handed to a user: they may share memory."""
    pairs = [(y._node, g if record else g.array) for y, g in zip(outputs, cotangents, strict=True)]
    roots = [(node, Batch(g) if batch else g) for node, g in pairs if node is not None]
    found: dict[Any, Any] = {}
    if roots:
        found = backward(
            [node for node, _ in roots],
            [g for _, g in roots],
            retain_graph=retain or record,
            create_graph=record,
            wanted={_node(x) for x in inputs},
            batched=batched if batch else None,
        )
    leading = cotangents[0].shape[:1] if batch else ()
    results = []
    for x in inputs:
        g = found.get(_node(x))
        if g is None:
            g = x.backend.zeros((*leading, *x.shape), dtype=x.array.dtype)
        elif batch:
            g = g.values
        results.append(g if isinstance(g, Tensor) else Tensor(g, x.backend))
    return results


def _node(x: Tensor) -> Node | Leaf:
    assert x._node is not None
    return x._node


def _checked(what: str, where: str, x: Any, recording: bool) -> Tensor:
    if isinstance(x, Real) and not isinstance(x, bool):
        x = tensor(x)
    if not isinstance(x, Tensor):
        raise TypeError(f"{what} differentiates by tensors; {where} is {_kind(x)}")
    if not x.dtype.is_floating:
        raise TypeError(
            f"{what} cannot differentiate by {where}, a {_describe(x)}: convert it with astype(gradflow.float32)"
        )
    return stand_in(x, recording)


def stand_in(x: Tensor, recorded: bool) -> Tensor:
    """The values of x as a new leaf; or, where x needs a gradient and this is to be `recorded`, as computed from x."""
    if recorded and x._node is not None:
        return apply(_IDENTITY, (x,))
    out = x.detach()
    out._node = Leaf(x.backend, x.shape, x.array.dtype)
    return out


def check_function(what: str, f: Any) -> None:
    """Raise TypeError for anything but a function, such as what one has already computed."""
    if isinstance(f, Tensor):
        raise TypeError(
            f"{what} takes a function; got a {_describe(f)}: for the gradients of what is computed already, use "
            "gradflow.gradients(outputs, inputs)"
        )
    if not callable(f):
        raise TypeError(f"{what} takes a function; got {_kind(f)}")


def _kind(x: Any) -> str:
    return "None" if x is None else f"{type(x).__name__}"


def _numbers(argnums: int | Sequence[int], count: int, what: str) -> tuple[int, ...]:
    wanted = tuple(argnums) if isinstance(argnums, (tuple, list, range)) else (argnums,)
    for i in wanted:
        if not isinstance(i, int) or isinstance(i, bool):
            raise TypeError(f"argnums of {what} are numbers of positional arguments; got {argnums!r}")
        if not -count <= i < count:
            raise ValueError(f"{what} was told to differentiate by argument {i}, but the function got {count}")
    normal = tuple(i % count for i in wanted)
    if len(set(normal)) != len(normal):
        raise ValueError(f"argnums of {what} name an argument twice: {argnums!r}")
    return normal


def _like_arguments(trace: Trace, gradients: Sequence[Any], single: bool) -> Any:
    """Gradients in the structure of the arguments: a tree, or with several argnums a tuple of trees."""
    remaining = iter(gradients)
    trees = tuple(map_tree(lambda _: next(remaining), tree) for tree in trace.trees)
    return trees[0] if single else trees


def _plain(tree: Any) -> Any:
    return map_tree(lambda y: y.detach() if isinstance(y, Tensor) else y, tree)


def _scalar(trace: Trace, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(f"{trace.what} needs a function that returns a scalar tensor; it returned {_kind(output)}")
    trace.check_outputs(output)
    if output.ndim:
        raise ValueError(
            f"{trace.what} needs a function that returns a scalar; it returned a {_describe(output)}: "
            "reduce it (mean, sum), or use jacobian or vjp"
        )
    return output


def _matching(what: str, kind: str, tangents: Any, like: Any) -> list[Tensor]:
    """The tensors of a tree of tangents that must be as `like` is; numbers stand for scalars."""
    given, expected = dict(flatten(tangents)), flatten(like)
    if given.keys() != {path for path, _ in expected}:
        raise ValueError(
            f"{what}: a {kind} must be nested like the value it belongs to: {_paths(dict(expected))}; "
            f"got {_paths(given)}"
        )
    found = []
    for path, x in expected:
        t = given[path]
        if isinstance(t, Real) and isinstance(x, Tensor) and not x.ndim:
            t = tensor(float(t), dtype=x.dtype, device=x.device)
        if not isinstance(t, Tensor):
            raise TypeError(f"{what}: {kind}{path} must be a tensor; got {_kind(t)}")
        if isinstance(x, Tensor) and (t.shape, t.dtype, t.device) != (x.shape, x.dtype, x.device):
            raise ValueError(f"{what}: {kind}{path} must be like the {_describe(x)}; got a {_describe(t)}")
        found.append(t)
    return found


def _paths(paths: Iterable[str]) -> str:
    return "one tensor" if list(paths) == [""] else ", ".join(paths) or "nothing"


def _check_sequences(what: str, primals: Any, tangents: Any) -> None:
    for name, value in (("primals", primals), ("tangents", tangents)):
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{what} takes {name} as a tuple, one for each argument; got {_kind(value)}")
    if len(primals) != len(tangents):
        raise ValueError(
            f"{what} needs a tangent for each primal; got {len(primals)} primals, {len(tangents)} tangents"
        )


def _pulled(trace: Trace, outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The VJP of a trace, recorded as a function of cotangents of its own: the VJP of that is the trace's JVP."""
    cotangents = [
        Tensor(y.backend.zeros(y.shape, dtype=y.array.dtype), y.backend, Leaf(y.backend, y.shape, y.array.dtype))
        for y in outputs
    ]
    with enable_grad():
        return cotangents, _walk(trace.inputs, outputs, cotangents, record=True)
