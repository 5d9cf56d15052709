"""Gradients, vector-Jacobian and Jacobian-vector products of functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.autograd.backward import backward
from gradflow.autograd.grad_mode import is_grad_enabled
from gradflow.autograd.graph import nodes_from
from gradflow.ops.elementwise import copy
from gradflow.printing import _describe
from gradflow.tensor import Tensor
from gradflow.transforms.trace import (
    Trace,
    _check_sequences,
    _kind,
    _like_arguments,
    _matching,
    _node,
    _numbers,
    _plain,
    _pulled,
    _scalar,
    check_function,
    gradients_of,
)
from gradflow.tree import flatten, rebuild


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
    return rebuild(inputs, [copy(g) if create_graph else Tensor(x.backend.copy(g), x.backend) for x, g in results])


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
