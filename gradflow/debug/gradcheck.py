"""Checks of gradients against central differences, and of backward rules for other mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gradflow import random
from gradflow.autograd.batching import Batch
from gradflow.autograd.grad_mode import no_grad
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.mapping import device_array, device_backend
from gradflow.autograd.observers import Observer, observe
from gradflow.ops.creation import tensor
from gradflow.printing import describe
from gradflow.shapes import unravel
from gradflow.tensor import Tensor
from gradflow.transforms.arguments import check_function
from gradflow.transforms.derivatives import vjp
from gradflow.transforms.jacobians import batched_rows, unit_vectors
from gradflow.transforms.trace import Trace, gradients_of
from gradflow.tree import flatten, map_tree, rebuild


class GradcheckError(AssertionError):
    """A gradient is wrong; the message says which element of which argument, both values and the bound.

    >>> import gradflow as gf
    >>> wrong = gf.operation("twice", lambda F, x: F.multiply(x, 2.0), lambda F, g, _out, _x: F.multiply(g, 3.0))
    >>> try:
    ...     gf.gradcheck(wrong, gf.ones(2, dtype="float64"))
    ... except gf.GradcheckError as error:
    ...     print(*str(error).splitlines()[1:3], sep="\\n")
      by the rules: 3
      by central differences: 2
    """

    __module__ = "gradflow"


def gradcheck(f: Callable[..., Any], *inputs: Any, step: float = 6e-6, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Raise GradcheckError unless the gradients of `f` equal central differences: a test of backward rules.

    f: a function of the inputs that is smooth at them and returns the same values each time.
    inputs: float64 tensors, or nested tuples, lists and dicts of them. Integers, bools and other arguments are passed
        to f unchanged.
    step: the step of the differences, times max(1, |x|) (default 6e-6).
    rtol, atol: a gradient may differ by atol + rtol * |central difference| (default 1e-5 and 1e-7).

    Also checks that the rules give the same gradients on arrays, on tensors (as for higher derivatives) and on batches;
    that they are linear in the incoming gradient, keep its dtype and do not write into their arguments. Raises
    TypeError for floating-point inputs that are not float64, in which differences are too inaccurate.

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
    """Raise GradcheckError unless the second derivatives of `f` equal central differences of its gradients.

    Arguments and errors as for `gradcheck`. It checks the VJP of f as a function of the inputs and of a random
    cotangent; error messages count the cotangent as the last argument.

    >>> import gradflow as gf
    >>> gf.gradgradcheck(lambda x, y: x * gf.sin(y), *gf.tensor([[0.1, 0.2], [0.3, 0.4]], dtype="float64"))
    """
    check_function("gradgradcheck", f)
    numbers, _ = _float64_arguments("gradgradcheck", inputs)
    with no_grad():
        value = f(*inputs)
    for path, y in flatten(value):
        if not isinstance(y, Tensor) or not y.dtype.is_floating:
            raise TypeError(
                f"gradgradcheck needs a function that returns floating-point tensors; result{path} is {_kind(y)}"
            )
    generator = random.Generator(0)
    cotangents = map_tree(lambda y: random.normal(y.shape, dtype=y.dtype, device=y.device, generator=generator), value)

    def gradient(*arguments: Any) -> Any:
        *given, cotangent = arguments
        _, pullback = vjp(lambda *floating: f(*_with(given, numbers, floating)), *[given[i] for i in numbers])
        return pullback(cotangent)

    _check("gradgradcheck", gradient, (*inputs, cotangents), step, rtol, atol)


def _check(what: str, f: Callable[..., Any], inputs: Sequence[Any], step: float, rtol: float, atol: float) -> None:
    check_function(what, f)
    numbers, named_inputs = _float64_arguments(what, inputs)
    xs = [x for _, x in named_inputs]
    before = [_text(x) for x in xs]

    def named_outputs(values: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
        arguments = _with(inputs, numbers, rebuild([inputs[i] for i in numbers], values))
        with no_grad():
            return [(f"result{path}", y.detach()) for path, y in flatten(f(*arguments))]

    with observe(_RuleChecker(what)):
        trace = Trace(what, f, inputs, numbers, {})
        outputs = trace.output_tensors()
        on_arrays = _one_by_one(trace.inputs, outputs, record=False)
        on_tensors = _one_by_one(trace.inputs, outputs, record=True)
        batches = batched_rows(trace.inputs, outputs, record=False)
        weights, combined = _combination(trace.inputs, outputs)
    in_batch = [_elements([g[row] for g in batches]) for row in range(len(on_arrays))]

    named, again = named_outputs(xs), named_outputs(xs)
    for (name, x), text in zip(named_inputs, before, strict=True):
        if _text(x) != text:
            raise GradcheckError(f"{what}: the function or one of its rules changed {name} in place")
    if [_text(y) for _, y in named] != [_text(y) for _, y in again]:
        raise GradcheckError(f"{what}: the function returns other values when called again: seed its random numbers")
    differences = list(_differences(lambda values: [y for _, y in named_outputs(values)], xs, step))

    advice = ": write rules with functions of F only"
    for row, output in enumerate(_element_names(named)):
        for column, argument in enumerate(_element_names(named_inputs)):
            subject = f"{what}: the derivative of {output} by {argument}"
            found, expected = on_arrays[row][column], differences[column][row]
            recorded, batched = on_tensors[row][column], in_batch[row][column]
            bound = atol + rtol * abs(expected)
            _compare(subject, {"by the rules": found, "by central differences": expected}, bound)
            _compare(
                subject, {"by the rules on arrays": found, "by the same rules on tensors": recorded}, bound, advice
            )
            values = {"by the rules on one gradient": found, "by the same rules on a batch": batched}
            _compare(subject, values, bound, advice)
    for column, argument in enumerate(_element_names(named_inputs)):
        terms = [weight * row[column] for weight, row in zip(weights, on_arrays, strict=True)]
        subject = f"{what}: the rules are not linear in the incoming gradient: the gradient of {argument}"
        values = {"for a linear combination of cotangents": combined[column], "as the sum of its terms": sum(terms)}
        _compare(subject, values, atol + rtol * sum(map(abs, terms)))


def _compare(subject: str, values: dict[str, float], bound: float, advice: str = "") -> None:
    """Raise GradcheckError unless two values, each with the way it was computed, differ by at most `bound`."""
    one, other = values.values()
    if not abs(one - other) <= bound:  # so NaN raises
        lines = [f"{name}: {value:.9g}" for name, value in values.items()]
        difference = f"off by {abs(one - other):.3g}; the bound is {bound:.3g}"
        raise GradcheckError("\n  ".join([subject, *lines, difference]) + advice)


# ---------------------------------------------------------------------- arguments and names


def _float64_arguments(what: str, inputs: Sequence[Any]) -> tuple[list[int], list[tuple[str, Tensor]]]:
    """The numbers of the arguments to differentiate by, and their tensors with names such as "argument 0['w']"."""
    numbers, tensors = [], []
    for i, argument in enumerate(inputs):
        leaves = [(f"argument {i}{path}", x) for path, x in flatten(argument)]
        floating = [isinstance(x, Tensor) and x.dtype.is_floating for _, x in leaves]
        if not any(floating):
            continue
        for (name, x), is_floating in zip(leaves, floating, strict=True):
            if not is_floating or x.dtype.name != "float64":
                raise TypeError(
                    f"{what} needs float64 tensors; {name} is {_kind(x)}: convert it with astype('float64')"
                )
        numbers.append(i)
        tensors += leaves
    if not tensors:
        raise TypeError(f"{what} needs at least one float64 tensor to differentiate by")
    return numbers, tensors


def _with(arguments: Sequence[Any], numbers: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The arguments, with `values` in place of those of the given numbers."""
    out = list(arguments)
    for i, value in zip(numbers, values, strict=True):
        out[i] = value
    return out


def _kind(x: Any) -> str:
    return f"a {describe(x)}" if isinstance(x, Tensor) else type(x).__name__


def _element_names(named: Sequence[tuple[str, Tensor]]) -> list[str]:
    """The names of all elements, such as "result[0, 1]"; of a tensor of shape (), its own name."""
    names = []
    for name, x in named:
        places = [unravel(i, x.shape) for i in range(x.size)]
        names += [f"{name}[{', '.join(map(str, place))}]" if place else name for place in places]
    return names


def _elements(tensors: Sequence[Tensor]) -> list[float]:
    """The elements of all tensors in one list."""
    return [value for x in tensors for value in x.reshape(-1).tolist()]


def _text(x: Tensor) -> str:
    """The values as text, in which NaN equals itself."""
    return repr(x.tolist())


# ---------------------------------------------------------------------- derivatives of outputs by inputs


def _one_by_one(inputs: Sequence[Tensor], outputs: Sequence[Tensor], record: bool) -> list[list[float]]:
    """The Jacobian, [element of the outputs][element of the inputs], with a backward pass for each row."""
    return [
        _elements(gradients_of(inputs, [y], [unit_vectors(y, i, i + 1)[0]], record, retain=True))
        for y in outputs
        for i in range(y.size)
    ]


def _combination(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """A cotangent of weights of either sign, one for each element of the outputs, and the gradient for it."""
    count = sum(y.size for y in outputs)
    weights = [(-1) ** i * (0.25 + i * 7 % 5) for i in range(count)]
    remaining, cotangents = iter(weights), []
    for y in outputs:
        values = [next(remaining) for _ in range(y.size)]
        cotangents.append(tensor(values, dtype=y.dtype, device=y.device).reshape(y.shape))
    return weights, _elements(gradients_of(inputs, outputs, cotangents, record=False, retain=True))


def _differences(
    f: Callable[[Sequence[Tensor]], Sequence[Tensor]], xs: Sequence[Tensor], step: float
) -> Iterator[list[float]]:
    """For each element of the inputs, the central differences of all elements of the outputs."""
    for n, x in enumerate(xs):
        flat = x.reshape(-1).tolist()
        for j in range(x.size):
            sides = []
            for sign in (1, -1):
                moved = list(flat)
                moved[j] += sign * step * max(1.0, abs(flat[j]))
                changed = tensor(moved, dtype=x.dtype, device=x.device).reshape(x.shape)
                sides.append((moved[j], _elements(f([*xs[:n], changed, *xs[n + 1 :]]))))
            (above, upper), (below, lower) = sides
            yield [(u - v) / (above - below) for u, v in zip(upper, lower, strict=True)]


# ---------------------------------------------------------------------- rules, one at a time


class _RuleChecker(Observer):
    """Raises GradcheckError for a result of another dtype, and for a rule that writes into its arguments."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.before: list[tuple[str, Any, str]] = []

    def forward(self, op: Operation, inputs: Sequence[Any], out: Tensor, parameters: dict[str, Any]) -> None:
        kinds = [x.dtype for x in inputs if isinstance(x, Tensor) and x.dtype.is_floating]
        if op.name != "astype" and out.dtype.is_floating and kinds and out.dtype not in kinds:
            raise GradcheckError(f"{self.what}: {op.name} gave {out.dtype} for inputs of {kinds[0]}")

    def before_rules(self, node: Node, g: Any, out: Any, values: Sequence[Any]) -> None:
        given = [("the gradient", g), ("the result", out), *((f"input {i}", x) for i, x in enumerate(values))]
        self.before = [(name, x, _text_of_any(x, node)) for name, x in given]

    def after_rule(self, node: Node, argument: int, g: Any, out: Any, values: Sequence[Any], result: Any) -> None:
        rule = f"{self.what}: the rule of {node.op.name} for argument {argument}"
        for name, x, text in self.before:
            if _text_of_any(x, node) != text:
                raise GradcheckError(f"{rule} changed {name} in place")
        found, parent = getattr(result, "array", result).dtype, node.parents[argument]
        name = parent.backend.dtype_name  # compared by name, since a node may lie on another backend than its input
        if name(found) not in (name(parent.dtype), node.backend.dtype_name(node.dtype)):
            raise GradcheckError(f"{rule} gave {found} for a gradient of {node.dtype}")


def _text_of_any(x: Any, node: Node) -> str:
    """The values of an array, tensor or batch as text; empty for anything else."""
    x = x.values if isinstance(x, Batch) else x
    if not isinstance(x, Tensor):
        if x is None or isinstance(x, (int, float)) or not hasattr(x, "dtype") or hasattr(x, "parents"):
            return ""
        x = Tensor(x, node.backend)
    return _text(Tensor(device_array(x.array), device_backend(x.backend)))
