"""Runs of a function on stand-ins for its arguments, and the gradients of such runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from gradflow.autograd.backward import backward
from gradflow.autograd.batching import Batch, batched
from gradflow.autograd.grad_mode import current_observer, enable_grad, is_grad_enabled
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.mapping import current_level, device_backend
from gradflow.ops import namespace
from gradflow.ops.checks import lifted
from gradflow.ops.creation import tensor
from gradflow.ops.elementwise import copy
from gradflow.ops.table import apply
from gradflow.printing import describe
from gradflow.tensor import Tensor
from gradflow.transforms.arguments import argument_numbers, check_function, kind_of
from gradflow.tree import flatten, map_tree, rebuild

IDENTITY = Operation("identity", lambda F, x: x, [lambda F, g, _out, _x: g], view=True)


class Trace:
    """One call of a function on stand-ins for the tensors in some of its arguments.

    transform: the name that error messages start with.
    f: the function, called as f(*arguments, **options).
    argnums: the number of the positional argument to differentiate by, or several.

    Attributes: `arguments`, the trees to differentiate by; `inputs`, the stand-ins of the tensors in these from left to
    right; `output`, what f returned.

    Raises TypeError for an argument that is not a floating-point tensor, ValueError if there is none.
    """

    def __init__(
        self,
        transform: str,
        f: Callable[..., Any],
        arguments: Sequence[Any],
        argnums: int | Sequence[int],
        options: dict[str, Any],
    ) -> None:
        check_function(transform, f)
        self.transform = transform
        self._one_argument = isinstance(argnums, int)
        self._recording = is_grad_enabled()
        numbers = argument_numbers(transform, argnums, len(arguments))
        self.arguments = [arguments[i] for i in numbers]
        self.inputs: list[Tensor] = []
        given = list(arguments)
        with enable_grad():
            for i in numbers:
                leaves = [self._input(f"argument {i}{path}", x) for path, x in flatten(given[i])]
                self.inputs += leaves
                given[i] = rebuild(given[i], leaves)
            if not self.inputs:
                raise ValueError(f"{transform} has nothing to differentiate by: the arguments hold no tensors")
            self._nodes = [node_of(x) for x in self.inputs]
            self.output = f(*given, **options)
        for x, node in zip(self.inputs, self._nodes, strict=True):
            x._node = node  # f may have changed a stand-in in place

    def _input(self, where: str, x: Any) -> Tensor:
        if isinstance(x, Real) and not isinstance(x, bool):
            x = tensor(x)
        if not isinstance(x, Tensor):
            raise TypeError(f"{self.transform} differentiates by tensors; {where} is {kind_of(x)}")
        if not x.dtype.is_floating:
            raise TypeError(
                f"{self.transform} cannot differentiate by {where}, a {describe(x)}: convert it with "
                "astype(gradflow.float32)"
            )
        return stand_in(x, self._recording)

    def output_tensors(self) -> list[Tensor]:
        """The tensors of the output, from left to right. Raises TypeError unless all are floating-point tensors."""
        found = flatten(self.output)
        if not found:
            raise TypeError(f"{self.transform} needs a function that returns tensors; it returned {self.output!r}")
        for path, y in found:
            if not isinstance(y, Tensor):
                raise TypeError(f"{self.transform} needs a function that returns tensors; result{path} is {kind_of(y)}")
            if not y.dtype.is_floating:
                raise TypeError(
                    f"{self.transform} cannot differentiate result{path}, a {describe(y)}: it is not floating-point"
                )
        return [y for _, y in found]

    def scalar_output(self) -> Tensor:
        """The output, which must be one floating-point tensor of shape (); else raises TypeError or ValueError."""
        output = self.output
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{self.transform} needs a function that returns a scalar tensor; it returned {kind_of(output)}"
            )
        self.output_tensors()
        if output.ndim:
            raise ValueError(
                f"{self.transform} needs a function that returns a scalar; it returned a {describe(output)}: "
                "reduce it (mean, sum), or use jacobian or vjp"
            )
        return output

    def needs_higher_order(self, *outputs: Tensor) -> bool:
        """Whether gradients of these outputs must be recorded, because they may be differentiated in turn.

        True if they depend on a tensor that was recorded before this call, or on a leaf other than the stand-ins.
        """
        if not self._recording:
            return False
        if any(node.parents for node in self._nodes):
            return True
        own, start = set(self._nodes), self._nodes[0].id
        stack = [y._node for y in outputs if y._node is not None and y._node not in own]
        seen = set(stack)
        while stack:
            node = stack.pop()
            if node.op is None or node.id < start:
                return True
            for parent in node.parents:
                if parent is not None and parent not in own and parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return False

    def recorded_vjp(self, outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The VJP as a recorded computation: new leaves for cotangents of the outputs, and gradients of the inputs.

        The gradients are linear in the cotangents, so the VJP of this computation is the JVP of the function.
        """
        cotangents = [
            Tensor(y.backend.zeros(y.shape, dtype=y.array.dtype), y.backend, Leaf(y.backend, y.shape, y.array.dtype))
            for y in outputs
        ]
        with enable_grad():
            return cotangents, aliased_gradients_of(self.inputs, outputs, cotangents, record=True)

    def like_arguments(self, values: Sequence[Any]) -> Any:
        """One value for each input, in the structure of the arguments: a tree, or a tuple of trees for several."""
        trees = rebuild(tuple(self.arguments), values)
        return trees[0] if self._one_argument else trees


def stand_in(x: Tensor, recorded: bool) -> Tensor:
    """A tensor that shares the values of x: a new leaf; or if `recorded` and x needs a gradient, an operation on x."""
    level = current_level.get()
    if level is not None and device_backend(x.backend) is device_backend(level):
        x = lifted("vmap", x, level)
    if recorded and x._node is not None:
        out = apply(IDENTITY, (x,))
    else:
        out = x.detach()
        out._node = Leaf(x.backend, x.shape, x.array.dtype)
    observer = current_observer.get()
    if observer is not None:
        observer.stands_for(out, x)
    return out


def node_of(x: Tensor) -> Node | Leaf:
    """The node of a tensor that requires a gradient."""
    assert x._node is not None
    return x._node


def cotangent_of_ones(y: Tensor) -> Tensor:
    """The cotangent of ones for y. Faster than `ops.ones_like`, which converts the dtype."""
    return Tensor(y.backend.ones(y.shape, dtype=y.array.dtype), y.backend)


def detached(tree: Any) -> Any:
    """A tree with its tensors detached."""
    return map_tree(lambda y: y.detach() if isinstance(y, Tensor) else y, tree)


def gradients_of(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    record: bool,
    retain: bool = False,
    batch: bool = False,
) -> list[Tensor]:
    """The gradients of the inputs for cotangents of the outputs; zeros for an input that no output depends on.

    record: whether the gradients can be differentiated in turn.
    retain: whether the graph is kept for another backward pass (default False); implied by `record`.
    batch: whether the cotangents and the gradients have an additional first axis, that of a batch (default False).

    No two results share memory.
    """
    found = aliased_gradients_of(inputs, outputs, cotangents, record, retain, batch)
    return [copy(g) if record else Tensor(g.backend.copy(g.array), g.backend) for g in found]


def aliased_gradients_of(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    record: bool,
    retain: bool = False,
    batch: bool = False,
) -> list[Tensor]:
    """Like `gradients_of`, but results may share memory with each other: use them only inside a transform."""
    pairs = [(y._node, g if record else g.array) for y, g in zip(outputs, cotangents, strict=True)]
    roots = [(node, Batch(g) if batch else g) for node, g in pairs if node is not None]
    found: dict[Any, Any] = {}
    if roots:
        found = backward(
            [node for node, _ in roots],
            [g for _, g in roots],
            retain_graph=retain or record,
            namespace=namespace if record else None,
            wanted={node_of(x) for x in inputs},
            to_batched=batched if batch else None,
        )
    leading = cotangents[0].shape[:1] if batch else ()
    results = []
    for x in inputs:
        g = found.get(node_of(x))
        if g is None:
            g = x.backend.zeros((*leading, *x.shape), dtype=x.array.dtype)
        elif batch:
            g = g.values
        results.append(g if isinstance(g, Tensor) else Tensor(g, x.backend))
    return results
