"""Transforms: functions made of functions, which compute derivatives and leave every `.grad` alone.

`grad`, `value_and_grad`, `vjp`, `jvp`, `jacobian`, `hessian` and `hvp` take a function of tensors, or of nested tuples,
lists and dicts of them. They nest to any order: what one computes is recorded where another, or a tensor that requires
a gradient, needs it to be. Inside `no_grad` only what the transforms themselves need is recorded.

A function is run once, on stand-ins for its arguments that share their values; then the backward pass of
`gradflow.engine` is run for just those. There is no second set of rules: `jvp` is the VJP of a VJP, which is linear in
its cotangent (Christianson 1992), and `jacobian` sends all its rows, or columns, back at once (`gradflow.batching`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

from gradflow import ops
from gradflow.batching import Batch, batched
from gradflow.engine import Leaf, Node, Operation, backward, enable_grad, is_grad_enabled, nodes_from
from gradflow.ops.table import apply
from gradflow.tensor import Tensor, _describe, tensor
from gradflow.tree import flatten, map_tree, rebuild

_IDENTITY = Operation("identity", lambda F, x: x, [lambda F, g, _out, _x: g], view=True)

_LARGEST_BATCH = 1 << 24
"""The most elements that a batch of gradients of one node may have in `jacobian`."""


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
    return [ops.copy(g) if record else Tensor(g.backend.copy(g.array), g.backend) for g in found]


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


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns `f` of its arguments and the gradient of that by the arguments `argnums`.

    f returns a scalar tensor; with `has_aux`, a pair of that and anything else, which is handed on: ((value, aux),
    gradient). The gradient has the structure of the argument, or is a tuple of such for a tuple of argnums; where f
    does not depend on a tensor it is zeros. Raises TypeError for an argument or a result that is not a floating-point
    tensor, ValueError for a result that is not a scalar.

    >>> import gradflow as gf
    >>> value, gradient = gf.value_and_grad(lambda w: (w * w).sum())(gf.tensor([1.0, 2.0]))
    >>> value.item(), gradient.tolist()
    (5.0, [2.0, 4.0])
    """

    return _value_and_grad("value_and_grad", f, argnums, has_aux)


def _value_and_grad(
    name: str, f: Callable[..., Any], argnums: int | Sequence[int], has_aux: bool
) -> Callable[..., Any]:
    check_function(name, f)

    @functools.wraps(f, updated=())  # the attributes of a module stay its own
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        trace = Trace(name, f, arguments, _numbers(argnums, len(arguments), name), options)
        output, aux = trace.output, None
        if has_aux:
            if not isinstance(output, (tuple, list)) or len(output) != 2:
                raise TypeError(
                    f"{name} with has_aux needs a function that returns a pair; it returned {_kind(output)}"
                )
            output, aux = output
        output = _scalar(trace, output)
        record = trace.needs_higher_order(output, *[x for _, x in flatten(aux) if isinstance(x, Tensor)])
        seed = Tensor(output.backend.ones_like(output.array), output.backend)
        gradients = gradients_of(trace.inputs, [output], [seed], record)
        if not record:
            output, aux = _plain(output), _plain(aux)
        result = _like_arguments(trace, gradients, isinstance(argnums, int))
        return ((output, aux) if has_aux else output), result

    return of_arguments


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that returns the gradient of `f` by the arguments `argnums`: `value_and_grad` without the value.

    With `has_aux` it returns (gradient, aux). `grad(grad(f))` is the second derivative, and so on.

    >>> import gradflow as gf
    >>> cube = lambda x: x * x * x
    >>> gf.grad(cube)(2.0).item(), gf.grad(gf.grad(cube))(2.0).item()
    (12.0, 12.0)
    """
    both = _value_and_grad("grad", f, argnums, has_aux)

    @functools.wraps(f, updated=())
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        value, gradient = both(*arguments, **options)
        return (gradient, value[1]) if has_aux else gradient

    return of_arguments


def gradients(
    outputs: Any, inputs: Any, cotangents: Any = None, create_graph: bool = False, retain_graph: bool | None = None
) -> Any:
    """The gradients of recorded outputs by inputs, in the structure of the inputs; every `.grad` stays as it is.

    `outputs` and `inputs` are tensors, or nested tuples, lists and dicts of them; the inputs may be computed ones, and
    one may depend on another. `cotangents` are like the outputs, and are 1 where they are left out, for outputs of one
    element. `create_graph` and `retain_graph` as for `Tensor.backward`. Raises RuntimeError for an input that needs no
    gradient or that no output depends on, an output that needs none, a missing cotangent, or a graph already freed;
    TypeError or ValueError for what does not fit.

    >>> import gradflow as gf
    >>> w = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> h = w * w
    >>> loss = (h * h).sum()
    >>> [g.tolist() for g in gf.gradients(loss, [w, h])]
    [[4.0, 32.0], [2.0, 8.0]]
    """
    ys, xs = flatten(outputs, "outputs"), flatten(inputs, "inputs")
    for path, x in (*ys, *xs):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"gradients takes tensors; {path} is {_kind(x)}"
                + (": for the derivative of a function, use gradflow.grad" if callable(x) else "")
            )
        if x._node is None:
            raise RuntimeError(
                f"gradients: {path}, a {_describe(x)}, needs no gradient: set requires_grad=True on what the outputs "
                "should be differentiated by, before they are computed"
            )
    if not ys or not xs:
        raise ValueError(f"gradients needs at least one tensor; {'inputs' if ys else 'outputs'} hold none")
    if cotangents is None:
        for path, y in ys:
            if y.size != 1:
                raise RuntimeError(f"gradients: {path} has shape {y.shape}: reduce it (mean, sum) or pass cotangents=")
        seeds = [Tensor(y.backend.ones(y.shape, dtype=y.array.dtype), y.backend) for _, y in ys]
    else:
        seeds = _matching("gradients", "cotangent", cotangents, outputs)
    roots, ends = [_node(y) for _, y in ys], {_node(x) for _, x in xs}
    found: dict[Any, Any] = dict.fromkeys(nodes_from(roots, ends, through=True))
    if ends <= found.keys():
        found = backward(
            roots,
            seeds if create_graph else [seed.array for seed in seeds],
            retain_graph=create_graph if retain_graph is None else retain_graph,
            create_graph=create_graph,
            wanted=ends,
            through=True,
        )
    for path, x in xs:
        if _node(x) not in found:
            raise RuntimeError(
                f"gradients: no output depends on {path}, a {_describe(x)}: it was not used, or what was computed from "
                "it was detached"
            )
    results = [(x, found[_node(x)]) for _, x in xs]
    return rebuild(inputs, [ops.copy(g) if create_graph else Tensor(x.backend.copy(g), x.backend) for x, g in results])


def vjp(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """`f` of the primals, and the function that sends a cotangent of that back: v to v^T J, a tuple, one per primal.

    A cotangent has the structure, shapes, dtypes and devices of the result. The function may be called many times.
    Raises TypeError or ValueError for what does not fit.

    >>> import gradflow as gf
    >>> y, back = gf.vjp(lambda a, b: a * b, gf.tensor([1.0, 2.0]), gf.tensor([3.0, 4.0]))
    >>> [g.tolist() for g in back(gf.tensor([1.0, 10.0]))]
    [[3.0, 40.0], [1.0, 20.0]]
    """
    trace = Trace("vjp", f, primals, range(len(primals)), {})
    outputs = [y for _, y in trace.check_outputs(trace.output)]
    record = trace.needs_higher_order(*outputs)

    def pullback(cotangents: Any) -> tuple[Any, ...]:
        given = _matching("vjp", "cotangent", cotangents, trace.output)
        recorded = record or (is_grad_enabled() and any(g.requires_grad for g in given))
        gradients = gradients_of(trace.inputs, outputs, given, recorded, retain=True)
        return tuple(_like_arguments(trace, gradients, single=False))

    return (trace.output if record else _plain(trace.output)), pullback


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


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """`f` of the primals, and its derivative in the direction of the tangents, J t, in the structure of the result.

    `primals` and `tangents` are sequences, one for each argument; a tangent is like its primal. Raises TypeError or
    ValueError for what does not fit.

    >>> import gradflow as gf
    >>> y, direction = gf.jvp(gf.sin, (gf.tensor(0.0),), (gf.tensor(2.0),))
    >>> direction.item()
    2.0
    """
    _check_sequences("jvp", primals, tangents)
    trace = Trace("jvp", f, primals, range(len(primals)), {})
    outputs = [y for _, y in trace.check_outputs(trace.output)]
    given = _matching("jvp", "tangent", list(tangents), rebuild(trace.trees, trace.inputs))
    record = trace.needs_higher_order(*outputs) or (is_grad_enabled() and any(t.requires_grad for t in given))
    cotangents, pulled = _pulled(trace, outputs)
    found = gradients_of(cotangents, pulled, given, record)
    return (trace.output if record else _plain(trace.output)), rebuild(trace.output, found)


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


def jacobian(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function that returns the Jacobian of `f` by the arguments `argnums`: shape of the result + shape of the input.

    For nested results and arguments it is a tree like the result, of trees like the argument (of tuples of them for a
    tuple of argnums). Computed by rows, or by columns where the result has many more elements than the arguments; a
    batch of them at a time. Raises TypeError or ValueError for what cannot be differentiated.

    >>> import gradflow as gf
    >>> gf.jacobian(lambda x: x * x)(gf.tensor([1.0, 2.0, 3.0])).tolist()
    [[2.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 6.0]]
    """

    check_function("jacobian", f)

    @functools.wraps(f, updated=())
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        trace = Trace("jacobian", f, arguments, _numbers(argnums, len(arguments), "jacobian"), options)
        outputs = [y for _, y in trace.check_outputs(trace.output)]
        record = trace.needs_higher_order(*outputs)
        tall = sum(y.size for y in outputs) > 2 * sum(x.size for x in trace.inputs)
        blocks = _columns(trace, outputs, record) if tall else _rows(trace.inputs, outputs, record)
        single = isinstance(argnums, int)
        return rebuild(trace.output, [_like_arguments(trace, row, single) for row in blocks])

    return of_arguments


def _rows(inputs: Sequence[Tensor], outputs: Sequence[Tensor], record: bool) -> list[list[Tensor]]:
    """For each output the derivatives by each input, of shape output + input."""
    rows, start = [], 0
    everything = send_back_all(inputs, outputs, record)
    for y in outputs:
        stop = start + y.size
        rows.append([ops.reshape(g[start:stop], y.shape + x.shape) for x, g in zip(inputs, everything, strict=True)])
        start = stop
    return rows


def _columns(trace: Trace, outputs: Sequence[Tensor], record: bool) -> list[list[Tensor]]:
    """As `_rows`, from the transposed Jacobian: the rows of the function that sends cotangents back."""
    cotangents, pulled = _pulled(trace, outputs)
    by_input = _rows(cotangents, pulled, record)
    columns = []
    for j, y in enumerate(outputs):
        blocks = []
        for x, row in zip(trace.inputs, by_input, strict=True):
            order = (*range(x.ndim, x.ndim + y.ndim), *range(x.ndim))
            block = ops.to_device(ops.copy(ops.permute_dims(row[j], order)), x.device)
            blocks.append(ops.astype(block, x.dtype))
        columns.append(blocks)
    return columns


def send_back_all(inputs: Sequence[Tensor], outputs: Sequence[Tensor], record: bool) -> list[Tensor]:
    """The derivatives of all elements of the outputs by each input, (elements, ...), in batches of limited size."""
    total = sum(y.size for y in outputs)
    if not total:
        return [Tensor(x.backend.zeros((0, *x.shape), dtype=x.array.dtype), x.backend) for x in inputs]
    nodes = nodes_from([_node(y) for y in outputs if y._node is not None], {_node(x) for x in inputs})
    largest = max([math.prod(node.shape) for node in nodes], default=1)
    step = max(1, _LARGEST_BATCH // max(largest, 1))
    parts = []
    for start in range(0, total, step):
        stop, first = min(start + step, total), 0
        reached, bases = [], []
        for y in outputs:
            low, high = max(start, first), min(stop, first + y.size)
            if low < high:
                reached.append(y)
                bases.append(unit_vectors(y, low - first, high - first, low - start, stop - high))
            first += y.size
        parts.append(gradients_of(inputs, reached, bases, record, retain=True, batch=True))
    return parts[0] if len(parts) == 1 else [ops.concat(blocks) for blocks in zip(*parts, strict=True)]


def unit_vectors(y: Tensor, start: int, stop: int, before: int = 0, after: int = 0) -> Tensor:
    """The unit vectors `start` to `stop` in the space of y, as a batch, with so many zero vectors before and after."""
    places = ops.arange(start, stop, dtype="int64", device=y.device)
    units = ops.pad(ops.one_hot(places, y.size, y.dtype), ((before, after), (0, 0)))
    return ops.reshape(units, (units.shape[0], *y.shape))


def hessian(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function that returns the second derivatives of `f`, which returns a scalar: the Jacobian of its gradient.

    Of shape input + input; for nested arguments a tree of trees, as of `jacobian`. Errors as of `grad`.

    >>> import gradflow as gf
    >>> gf.hessian(lambda x: (x * x * x).sum())(gf.tensor([1.0, 2.0])).tolist()
    [[6.0, 0.0], [0.0, 12.0]]
    """

    check_function("hessian", f)

    @functools.wraps(f, updated=())
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        trace = Trace("hessian", f, arguments, _numbers(argnums, len(arguments), "hessian"), options)
        gradients, record = _recorded_gradient(trace)
        single = isinstance(argnums, int)
        rows = [_like_arguments(trace, row, single) for row in _rows(trace.inputs, gradients, record)]
        return _like_arguments(trace, rows, single)

    return of_arguments


def _recorded_gradient(trace: Trace) -> tuple[list[Tensor], bool]:
    """The gradient of the scalar that was traced, recorded, and whether its own derivatives must be, too."""
    output = _scalar(trace, trace.output)
    record = trace.needs_higher_order(output)
    seed = Tensor(output.backend.ones_like(output.array), output.backend)
    with enable_grad():
        return _walk(trace.inputs, [output], [seed], record=True), record


def hvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, ...]:
    """The Hessian of `f`, which returns a scalar, at the primals times the tangents; without forming the Hessian.

    As for `jvp`, both are sequences, one for each argument; so is the result. Pearlmutter 1994, "Fast Exact
    Multiplication by the Hessian"; here as the VJP of the gradient, since the Hessian is symmetric.

    >>> import gradflow as gf
    >>> [h.tolist() for h in gf.hvp(lambda x: (x * x * x).sum(), (gf.tensor([1.0, 2.0]),), (gf.tensor([1.0, 1.0]),))]
    [[6.0, 12.0]]
    """
    _check_sequences("hvp", primals, tangents)
    trace = Trace("hvp", f, primals, range(len(primals)), {})
    given = _matching("hvp", "tangent", list(tangents), rebuild(trace.trees, trace.inputs))
    gradients, record = _recorded_gradient(trace)
    record = record or (is_grad_enabled() and any(t.requires_grad for t in given))
    return tuple(_like_arguments(trace, gradients_of(trace.inputs, gradients, given, record), single=False))
