"""Gradients, vector-Jacobian products and Jacobian-vector products."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.autograd.backward import backward
from gradflow.autograd.grad_mode import is_grad_enabled
from gradflow.autograd.graph import nodes_from
from gradflow.autograd.mapping import current_level
from gradflow.ops import namespace
from gradflow.ops.elementwise import copy
from gradflow.printing import describe
from gradflow.tensor import Tensor
from gradflow.transforms.arguments import check_function, check_primals_and_tangents, kind_of, matching_tensors
from gradflow.transforms.trace import Trace, cotangent_of_ones, detached, gradients_of, node_of
from gradflow.tree import flatten, rebuild


def value_and_grad(
    f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that returns the value of `f` and its gradient with respect to the arguments `argnums`.

    f: a function that returns a scalar tensor.
    argnums: the number of the positional argument to differentiate by, or a tuple of several (default 0). The argument
        is a tensor, or nested tuples, lists and dicts of tensors.
    has_aux: whether f returns a pair of the scalar and anything else, which is passed on: ((value, aux), gradient).

    The gradient has the structure of the argument; for a tuple of argnums it is a tuple. It is zero where f does not
    depend on a tensor. Raises TypeError for an argument or a result that is not a floating-point tensor, ValueError for
    a result that is not a scalar.

    >>> import gradflow as gf
    >>> value, gradient = gf.value_and_grad(lambda w: (w * w).sum())(gf.tensor([1.0, 2.0]))
    >>> value.item(), gradient.tolist()
    (5.0, [2.0, 4.0])
    """

    return _value_and_grad("value_and_grad", f, argnums, has_aux)


def _value_and_grad(
    transform: str, f: Callable[..., Any], argnums: int | Sequence[int], has_aux: bool
) -> Callable[..., Any]:
    check_function(transform, f)

    @functools.wraps(f, updated=())  # without the attributes of f, which may be a module
    def of_arguments(*arguments: Any, **options: Any) -> Any:
        trace = Trace(transform, f, arguments, argnums, options)
        aux = None
        if has_aux:
            if not isinstance(trace.output, (tuple, list)) or len(trace.output) != 2:
                raise TypeError(
                    f"{transform} with has_aux needs a function that returns a pair; it returned "
                    f"{kind_of(trace.output)}"
                )
            trace.output, aux = trace.output
        value = trace.scalar_output()
        record = trace.needs_higher_order(value, *[x for _, x in flatten(aux) if isinstance(x, Tensor)])
        gradient = trace.like_arguments(gradients_of(trace.inputs, [value], [cotangent_of_ones(value)], record))
        if not record:
            value, aux = detached(value), detached(aux)
        return ((value, aux) if has_aux else value), gradient

    return of_arguments


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that returns the gradient of `f` with respect to the arguments `argnums`.

    Arguments and errors as for `value_and_grad`. With `has_aux` it returns (gradient, aux). `grad(grad(f))` is the
    second derivative, and so on.

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
    """The gradients of computed tensors with respect to others, in the structure of the inputs; no `.grad` changes.

    outputs, inputs: tensors, or nested tuples, lists and dicts of them. The inputs may be computed tensors, and one may
        depend on another.
    cotangents: tensors like the outputs; 1 by default, which needs outputs of one element.
    create_graph, retain_graph: as for `Tensor.backward`.

    Raises RuntimeError for an input that does not require grad or that no output depends on, for an output that
    does not require grad, for missing cotangents, and for a graph that has been freed. Raises TypeError or
    ValueError for cotangents that do not match the outputs.

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
                f"gradients takes tensors; {path} is {kind_of(x)}"
                + (": for the derivative of a function, use gradflow.grad" if callable(x) else "")
            )
        if x._node is None:
            raise RuntimeError(
                f"gradients: {path}, a {describe(x)}, does not require grad: set requires_grad=True on the "
                "tensors to differentiate by, before the outputs are computed"
            )
    if not ys or not xs:
        raise ValueError(f"gradients needs at least one tensor; {'inputs' if ys else 'outputs'} hold none")
    if cotangents is None:
        for path, y in ys:
            if y.size != 1:
                raise RuntimeError(f"gradients: {path} has shape {y.shape}: reduce it (mean, sum) or pass cotangents=")
        given = [cotangent_of_ones(y) for _, y in ys]
    else:
        given = matching_tensors("gradients", "cotangent", cotangents, outputs)
    level = current_level.get()
    for path, x in xs:
        if level is not None and x.backend is not level:
            raise RuntimeError(
                f"gradients: {path} comes from outside of this vmap, so it has one gradient, not one for each example: "
                "use gradflow.grad"
            )
    roots, ends = [node_of(y) for _, y in ys], {node_of(x) for _, x in xs}
    found: dict[Any, Any] = dict.fromkeys(nodes_from(roots, ends, past_ends=True))
    if ends <= found.keys():
        found = backward(
            roots,
            given if create_graph else [g.array for g in given],
            retain_graph=create_graph if retain_graph is None else retain_graph,
            namespace=namespace if create_graph else None,
            wanted=ends,
            past_wanted=True,
        )
    for path, x in xs:
        if node_of(x) not in found:
            raise RuntimeError(
                f"gradients: no output depends on {path}, a {describe(x)}: either it was not used, or a tensor "
                "computed from it was detached"
            )
    results = [(x, found[node_of(x)]) for _, x in xs]
    return rebuild(inputs, [copy(g) if create_graph else Tensor(x.backend.copy(g), x.backend) for x, g in results])


def vjp(f: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """The value of `f` at the primals, and a function that computes vector-Jacobian products: v to v^T J.

    primals: the arguments of f: tensors, or nested tuples, lists and dicts of them.

    The function takes a cotangent, with the structure, shapes, dtypes and devices of the value, and returns a tuple of
    gradients, one for each primal; it can be called repeatedly. Both raise TypeError or ValueError for values that do
    not match.

    >>> import gradflow as gf
    >>> y, pullback = gf.vjp(lambda a, b: a * b, gf.tensor([1.0, 2.0]), gf.tensor([3.0, 4.0]))
    >>> [g.tolist() for g in pullback(gf.tensor([1.0, 10.0]))]
    [[3.0, 40.0], [1.0, 20.0]]
    """
    trace = Trace("vjp", f, primals, range(len(primals)), {})
    outputs = trace.output_tensors()
    record = trace.needs_higher_order(*outputs)

    def pullback(cotangents: Any) -> tuple[Any, ...]:
        given = matching_tensors("vjp", "cotangent", cotangents, trace.output)
        record_this = record or (is_grad_enabled() and any(g.requires_grad for g in given))
        found = gradients_of(trace.inputs, outputs, given, record_this, retain=True)
        return trace.like_arguments(found)  # type: ignore[no-any-return]  # a tuple, for a range of argnums

    return (trace.output if record else detached(trace.output)), pullback


def jvp(f: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """The value of `f` at the primals and its directional derivative, the Jacobian-vector product J t.

    primals: a tuple of the arguments of f: tensors, or nested tuples, lists and dicts of them.
    tangents: a tuple of directions, one for each primal and of its structure, shapes, dtypes and devices.

    The derivative has the structure of the value. Raises TypeError or ValueError for values that do not match.

    >>> import gradflow as gf
    >>> y, direction = gf.jvp(gf.sin, (gf.tensor(0.0),), (gf.tensor(2.0),))
    >>> direction.item()
    2.0
    """
    check_primals_and_tangents("jvp", primals, tangents)
    trace = Trace("jvp", f, primals, range(len(primals)), {})
    outputs = trace.output_tensors()
    given = matching_tensors("jvp", "tangent", list(tangents), rebuild(trace.arguments, trace.inputs))
    record = trace.needs_higher_order(*outputs) or (is_grad_enabled() and any(t.requires_grad for t in given))
    derivatives = gradients_of(*trace.recorded_vjp(outputs), given, record)
    return (trace.output if record else detached(trace.output)), rebuild(trace.output, derivatives)
