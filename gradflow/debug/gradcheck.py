"""Checking gradients against central differences, and rules for what else they may get wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradflow import random
from gradflow.autograd.batching import Batch
from gradflow.autograd.grad_mode import no_grad
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.observers import Observer, observe
from gradflow.printing import _describe
from gradflow.shapes import unravel
from gradflow.tensor import Tensor, tensor
from gradflow.transforms.derivatives import vjp
from gradflow.transforms.jacobians import send_back_all, unit_vectors
from gradflow.transforms.trace import Trace, check_function, gradients_of
from gradflow.tree import flatten, map_tree, rebuild


class GradcheckError(AssertionError):
    """A gradient is not what it should be; the message names where, both values and the bound."""

    __module__ = "gradflow"


def gradcheck(f: Callable[..., Any], *inputs: Any, step: float = 6e-6, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Raise GradcheckError unless the gradients of `f` by its float64 inputs are those of central differences.

    inputs: tensors, or nested tuples, lists and dicts of them; integers and bools are not differentiated by. f must be
    smooth at the inputs and do the same each time. The bound is atol + rtol * |difference quotient|. Also checked: that
    rules give the same on arrays and on tensors (as for higher derivatives), keep the dtype, and do not write into what
    they are given. Raises TypeError for floating inputs that are not float64, where differences mean little.

    >>> import gradflow as gf
    >>> gf.gradcheck(gf.tanh, gf.tensor([0.1, 0.2], dtype="float64"))
    >>> twice = gf.operation("twice", lambda F, x: F.add(x, x), lambda F, g, _out, _x: g)
    >>> gf.gradcheck(twice, gf.tensor([0.1, 0.2], dtype="float64"))
    Traceback (most recent call last):
    gradflow.GradcheckError: gradcheck: the derivative of result[0] by argument 0[0]
      by the rules: 1
      by central differences: 2
      off by 1; the bound is 2.01e-05
    """
    _check("gradcheck", f, inputs, step, rtol, atol)


def gradgradcheck(
    f: Callable[..., Any], *inputs: Any, step: float = 6e-6, rtol: float = 1e-5, atol: float = 1e-7
) -> None:
    """`gradcheck` of the gradient of `f`: of its VJP, by the inputs and by cotangents, which follow them as arguments.

    >>> import gradflow as gf
    >>> gf.gradgradcheck(lambda x, y: x * gf.sin(y), *gf.tensor([[0.1, 0.2], [0.3, 0.4]], dtype="float64"))
    """
    check_function("gradgradcheck", f)
    places, _ = _differentiable("gradgradcheck", inputs)
    generator = random.Generator(0)
    with no_grad():
        value = f(*inputs)
    for path, y in flatten(value):
        if not isinstance(y, Tensor) or not y.dtype.is_floating:
            kind = f"a {_describe(y)}" if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(
                f"gradgradcheck needs a function that returns floating-point tensors; result{path} is {kind}"
            )
    cotangents = map_tree(lambda y: random.normal(y.shape, dtype=y.dtype, device=y.device, generator=generator), value)

    def gradient(*arguments: Any) -> Any:
        given = arguments[: len(inputs)]

        def of_floating(*floating: Any) -> Any:
            return f(*_with(given, places, floating))

        _, back = vjp(of_floating, *[given[i] for i in places])
        return back(arguments[-1])

    _check("gradgradcheck", gradient, (*inputs, cotangents), step, rtol, atol)


def _with(inputs: Sequence[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    out = list(inputs)
    for i, value in zip(places, values, strict=True):
        out[i] = value
    return out


def _differentiable(what: str, inputs: Sequence[Any]) -> tuple[list[int], list[tuple[str, Tensor]]]:
    """The numbers of the arguments to differentiate by, and their tensors with names."""
    places, tensors = [], []
    for i, argument in enumerate(inputs):
        leaves = [(f"argument {i}{path}", x) for path, x in flatten(argument)]
        floating = [isinstance(x, Tensor) and x.dtype.is_floating for _, x in leaves]
        if not any(floating):
            continue
        for (name, x), is_floating in zip(leaves, floating, strict=True):
            if not is_floating or x.dtype.name != "float64":
                kind = f"a {_describe(x)}" if isinstance(x, Tensor) else type(x).__name__
                raise TypeError(f"{what} needs float64 tensors; {name} is {kind}: convert it with astype('float64')")
        places.append(i)
        tensors += leaves
    if not tensors:
        raise TypeError(f"{what} needs at least one float64 tensor to differentiate by")
    return places, tensors


def _check(what: str, f: Callable[..., Any], inputs: Sequence[Any], step: float, rtol: float, atol: float) -> None:
    check_function(what, f)
    places, named = _differentiable(what, inputs)
    names, xs = [name for name, _ in named], [x for _, x in named]
    before = [repr(x.tolist()) for x in xs]

    def value(values: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        trees = [inputs[i] for i in places]
        arguments = _with(inputs, places, rebuild(trees, values))
        with no_grad():
            return [(f"result{path}", y.detach()) for path, y in flatten(f(*arguments))]

    with observe(_RuleChecker(what)):
        run = Trace(what, f, inputs, places, {})
        results = [y for _, y in run.check_outputs(run.output)]
        on_arrays = list(_rows(run.inputs, results, False))
        on_tensors = list(_rows(run.inputs, results, True))
        batched = [
            g.reshape((len(on_arrays), x.size)).tolist()
            for g, x in zip(send_back_all(run.inputs, results, False), xs, strict=True)
        ]
        weights, combined = _combination(run.inputs, results)
    outputs, again = value(xs), value(xs)
    for name, x, text in zip(names, xs, before, strict=True):
        if repr(x.tolist()) != text:
            raise GradcheckError(f"{what}: the function or one of its rules changed {name} in place")
    if [repr(y.tolist()) for _, y in outputs] != [repr(y.tolist()) for _, y in again]:  # as text, NaN equals itself
        raise GradcheckError(f"{what}: the function gives other values the second time; seed what is random inside it")
    differences = list(_differences(value, xs, step))  # for each element of the inputs, all outputs
    row = 0
    for out_name, y in outputs:
        for i in range(y.size):
            column = 0
            for k, (name, x, first, second) in enumerate(zip(names, xs, on_arrays[row], on_tensors[row], strict=True)):
                for j in range(x.size):
                    where = f"{what}: the derivative of {out_name}{_index(i, y)} by {name}{_index(j, x)}"
                    expected = differences[column][row]
                    bound = atol + rtol * abs(expected)
                    if not abs(first[j] - expected) <= bound:
                        pair = ("by the rules", first[j]), ("by central differences", expected)
                        raise GradcheckError(_report(where, *pair, bound))
                    if not abs(first[j] - second[j]) <= bound:
                        pair = ("by the rules on arrays", first[j]), ("by the same rules on tensors", second[j])
                        raise GradcheckError(_report(where, *pair, bound) + ": write rules in functions of F alone")
                    if not abs(first[j] - batched[k][row][j]) <= bound:
                        pair = ("by the rules one by one", first[j]), ("by the same on a batch", batched[k][row][j])
                        raise GradcheckError(_report(where, *pair, bound) + ": write rules in functions of F alone")
                    column += 1
            row += 1
    for k, (name, x) in enumerate(zip(names, xs, strict=True)):
        for j in range(x.size):
            terms = [weight * each[k][j] for weight, each in zip(weights, on_arrays, strict=True)]
            bound = atol + rtol * sum(map(abs, terms))
            if not abs(combined[k][j] - sum(terms)) <= bound:
                where = f"{what}: the rules are not linear in the gradient: that of {name}{_index(j, x)}"
                pair = ("of a combination", combined[k][j]), ("the combination of each", sum(terms))
                raise GradcheckError(_report(where, *pair, bound))


def _report(where: str, one: tuple[str, float], other: tuple[str, float], bound: float) -> str:
    values = [f"{name}: {value:.9g}" for name, value in (one, other)]
    return "\n  ".join([where, *values, f"off by {abs(one[1] - other[1]):.3g}; the bound is {bound:.3g}"])


def _rows(inputs: Sequence[Tensor], outputs: Sequence[Tensor], recorded: bool) -> Iterator[list[list[float]]]:
    """For each element of the outputs its derivatives by each input, flat."""
    for y in outputs:
        for i in range(y.size):
            cotangent = unit_vectors(y, i, i + 1)[0]
            yield [g.reshape(-1).tolist() for g in gradients_of(inputs, [y], [cotangent], recorded, retain=True)]


def _combination(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[list[float], list[list[float]]]:
    """Weights of either sign for all elements of the outputs, and the gradients of the inputs for that cotangent."""
    count = sum(y.size for y in outputs)
    weights = [(-1) ** i * (0.25 + i * 7 % 5) for i in range(count)]
    remaining, cotangents = iter(weights), []
    for y in outputs:
        values = [next(remaining) for _ in range(y.size)]
        cotangents.append(tensor(values, dtype=y.dtype, device=y.device).reshape(y.shape))
    gradients = gradients_of(inputs, outputs, cotangents, record=False, retain=True)
    return weights, [g.reshape(-1).tolist() for g in gradients]


def _differences(value: Callable[..., Any], xs: Sequence[Tensor], step: float) -> Iterator[list[float]]:
    for n, x in enumerate(xs):
        flat = x.reshape(-1).tolist()
        for j in range(x.size):
            sides = []
            for sign in (1, -1):
                moved = list(flat)
                moved[j] += sign * step * max(1.0, abs(flat[j]))
                changed = tensor(moved, dtype=x.dtype, device=x.device).reshape(x.shape)
                found = value([*xs[:n], changed, *xs[n + 1 :]])
                sides.append((moved[j], [v for _, y in found for v in y.reshape(-1).tolist()]))
            (above, upper), (below, lower) = sides
            yield [(u - v) / (above - below) for u, v in zip(upper, lower, strict=True)]


def _index(place: int, x: Tensor) -> str:
    return f"[{', '.join(map(str, unravel(place, x.shape)))}]" if x.ndim else ""


class _RuleChecker(Observer):
    """Looks for wrong dtypes and for rules that write into what they are given."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.before: list[tuple[str, Any, str]] = []

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor) -> None:
        kinds = [x.dtype for x in inputs if isinstance(x, Tensor) and x.dtype.is_floating]
        if op.name != "astype" and out.dtype.is_floating and kinds and out.dtype not in kinds:
            raise GradcheckError(f"{self.what}: {op.name} gave {out.dtype} for inputs of {kinds[0]}")

    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        given = [("the gradient", g), ("the result", out), *((f"input {i}", x) for i, x in enumerate(values))]
        self.before = [(name, x, _text(x, node)) for name, x in given if _text(x, node)]

    def after_rule(self, node: Node, argument: int, g: Any, out: Any, values: Sequence[Any], result: Any) -> None:
        for name, x, text in self.before:
            if _text(x, node) != text:
                raise GradcheckError(
                    f"{self.what}: the rule of {node.op.name} for argument {argument} changed {name} in place"
                )
        found, parent = getattr(result, "array", result).dtype, node.parents[argument]
        name = parent.backend.dtype_name  # by name: a node that moves its input has another library's dtypes
        if name(found) not in (name(parent.dtype), node.backend.dtype_name(node.dtype)):
            raise GradcheckError(
                f"{self.what}: the rule of {node.op.name} for argument {argument} gave {found} for a gradient of "
                f"{node.dtype}"
            )


def _text(x: Any, node: Node) -> str:
    """The values as text, in which NaN equals itself; empty for anything but an array or tensor."""
    x = x.values if isinstance(x, Batch) else x
    if not isinstance(x, Tensor):
        if x is None or isinstance(x, (int, float)) or not hasattr(x, "dtype") or hasattr(x, "parents"):
            return ""
        x = Tensor(x, node.backend)
    return repr(x.tolist())
