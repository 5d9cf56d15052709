"""The table of differentiable operations, and how an operation is applied to tensors.

`defop(name, rule, ...)` adds an entry: one VJP rule per argument, written in the functions of a namespace `F` (see
`gradflow.autograd`). `apply` computes the result and records the operation. `unary` and `binary` make functions of
tensors that have a fast path for the most frequent case: recorded, no observers, no casts.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from numbers import Integral
from operator import attrgetter
from typing import Any, TypeVar

from gradflow.autograd.grad_mode import FAST, OFF, autocast_dtype, current_observer, grad_enabled
from gradflow.autograd.graph import Node, Operation
from gradflow.backend import Backend
from gradflow.backend.half_floats import widened
from gradflow.dtypes import DType, as_dtype, default_dtype, float32, is_number, promote, weak_number
from gradflow.interception import measured, profilers, report_read
from gradflow.ops.checks import (
    check_bools,
    check_tensors,
    explain_elementwise,
    is_bool,
    is_foreign,
    kind_and_fix,
    on_one_backend,
)
from gradflow.ops.examples import EXAMPLES
from gradflow.ops.host import host_operand
from gradflow.tensor import Tensor

OPERATIONS: dict[str, Operation] = {}
"""Every differentiable operation by name."""

Rule = Callable[..., Any] | None
UnaryFunction = Callable[[Tensor], Tensor]
BinaryFunction = Callable[[Any, Any], Tensor]
_Function = TypeVar("_Function", bound=Callable[..., Tensor])

BINARY_OPERATORS: dict[str, BinaryFunction] = {}
"""The functions of two operands as Python operators, which return NotImplemented for foreign operands."""


def defop(name: str, *rules: Rule, forward: Callable[..., Any] | None = None, **options: Any) -> Operation:
    """Add an operation to the table, and return it.

    name: the name in the table and in error messages.
    rules: the VJP rule of each argument, or None.
    forward: see `Operation` (default: the array function of that name). options: other arguments of `Operation`.
    """
    if forward is None:
        get = attrgetter(name)

        def forward(F: Any, *arrays: Any, **parameters: Any) -> Any:
            return get(F)(*arrays, **parameters)

    op = OPERATIONS[name] = Operation(name, forward, rules, **options)
    return op


def elementwise(name: str, array_name: str | None = None) -> Callable[..., Any]:
    """A `forward` that calls an array function, with errors that name the operation `name` and the shapes."""
    get = attrgetter(array_name or name)

    def forward(F: Any, *arrays: Any) -> Any:
        try:
            return get(F)(*arrays)
        except (TypeError, ValueError):
            explain_elementwise(name, F, arrays)
            raise

    return forward


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype, recorded; x itself if it has that dtype already."""
    target = as_dtype(dtype)
    if x.dtype is target:
        return x
    native = x.backend.native_dtype(target.name)
    if not target.is_floating:  # no gradient flows through integers
        out = Tensor(x.backend.astype(x.array, native), x.backend)
        observer = current_observer.get()
        if observer is not None:
            observer.forward(ASTYPE, (x,), out, {"dtype": native})
        return out
    return apply(ASTYPE, (x,), {"dtype": native})


def autocast_inputs(op: Operation, dtype: DType, inputs: Sequence[Any]) -> Sequence[Any]:
    """The inputs of an operation as `autocast(dtype)` converts them, recorded; `inputs` itself if it converts none."""
    target = dtype if op.autocast == "half" else float32
    tensors = [x for x in inputs if isinstance(x, Tensor) and (target is dtype or x.dtype.is_floating)]
    if all(x.dtype is target for x in tensors) or not are_autocast(*tensors):
        return inputs
    return [_converted(x, target) if isinstance(x, Tensor) and x.dtype.is_floating else x for x in inputs]


def _converted(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype, recorded: a parameter in a half float from the copy that its optimizer writes, if any."""
    leaf: Any = x._node
    if leaf is not None and leaf.op is None and leaf.slot is not None and dtype is not float32:
        block, backend = leaf.slot.block(), x.backend
        s = None if block is None or current_observer.get() is not None else block.slice_with_half(x)
        if s is not None:
            report_read(x.array)
            array, parameters = block.half_copy(s, dtype.name), {"dtype": backend.native_dtype(dtype.name)}
            out = Tensor(array, backend, Node(ASTYPE, backend, (leaf,), None, None, array, parameters))
            x._memory.add(out)  # type: ignore[union-attr]  # so that a step before the backward pass raises
            return out
    return cast(x, dtype)


def are_autocast(*tensors: Tensor | None) -> bool:
    """Whether `autocast` converts these tensors: float32 or half floats, in its context."""
    if autocast_dtype.get() is None:
        return False
    return all(x is None or (x.dtype.is_floating and x.dtype.itemsize <= 4) for x in tensors)


def floating(x: Tensor) -> Tensor:
    """x itself if it is floating-point, else x in the default dtype."""
    return x if x.dtype.is_floating else cast(x, default_dtype.get())


def apply(
    op: Operation, inputs: Sequence[Any], parameters: dict[str, Any] | None = None, to: Backend | None = None
) -> Tensor:
    """The result of an operation, recorded if an input requires grad.

    inputs: tensors, Python numbers or None, one for each array argument of the operation.
    parameters: its keyword arguments.
    to: the backend of the result, if it is not that of the inputs.
    """
    parameters = parameters or {}
    given, mode = inputs, grad_enabled.get()
    if mode is not FAST and op.autocast is not None and (dtype := autocast_dtype.get()) is not None:
        inputs = autocast_inputs(op, dtype, inputs)
    memory = inputs[0]._shared_memory() if op.view else None  # may replace x.array, so it comes first
    backend: Any = None
    arrays, parents = [], []
    recorded = False
    for x in inputs:
        if isinstance(x, Tensor):
            if x.backend is not backend:
                if backend is not None:
                    return apply(op, on_one_backend(op.name, given), parameters, to)
                backend = x.backend
            node = x._node
            if node is not None:
                recorded = True
            parents.append(node)
            arrays.append(x.array)
        else:
            parents.append(None)
            arrays.append(x)
    if profilers:
        result = measured("operation", op, op.forward, backend, *arrays, **parameters)
    else:
        result = op.forward(backend, *arrays, **parameters)
    if op.residual:
        result, parameters = result[0], {**parameters, "residual": result[1]}
    if to is not None:
        backend = to
    if not recorded or mode is OFF:
        out = Tensor(result, backend)
    else:
        saved: tuple[Any, ...] | None
        if inputs is not given and op.autocast == "half" and current_observer.get() is None:
            # the walk casts gradients: so those of weights are written to their buffers without being rounded first
            parents = [x._node if isinstance(x, Tensor) else None for x in given]
        if op.joint is not None:
            saved = tuple(inputs) if op.joint_reads_inputs else None
            reads_out = op.joint_reads_out is not None and op.joint_reads_out(parameters)
        else:
            mask = 0
            for i, node in enumerate(parents):
                if node is not None:
                    mask |= 1 << i
            reads_out, which = op.saves[mask]
            saved = None if which is None else tuple([x if w else None for x, w in zip(inputs, which, strict=True)])
        node = Node(op, backend, tuple(parents), saved, result if reads_out else None, result, parameters)
        out = Tensor(result, backend, node)
    if memory is not None:
        memory.add(out)
    observer = current_observer.get()
    if observer is not None:
        observer.forward(op, inputs, out, parameters)
    return out


def is_half(x: Any) -> bool:
    """Whether x is a tensor of half floats."""
    return isinstance(x, Tensor) and x.dtype.is_floating and x.dtype.itemsize == 2


def in_float32(function: _Function) -> _Function:
    """Decorate a function: half floats are computed in float32, since sums may overflow float16.

    The result is rounded to the dtype of the inputs, unless under `autocast`.
    """

    def wide(x: Any) -> Any:
        return cast(x, float32) if is_half(x) else x

    @functools.wraps(function)
    def computed(*arguments: Any, **options: Any) -> Tensor:
        given = (*arguments, *options.values())
        if not any(map(is_half, given)):
            return function(*arguments, **options)
        out = function(*map(wide, arguments), **{name: wide(x) for name, x in options.items()})
        dtypes = [x.dtype for x in given if isinstance(x, Tensor) and x.dtype.is_floating]
        return out if are_autocast(out) else cast(out, functools.reduce(promote, dtypes))

    return computed  # type: ignore[return-value]


def bools_to_int64(x: Any) -> Any:
    """x itself, or a bool tensor as int64 (0 and 1)."""
    return cast(x, "int64") if isinstance(x, Tensor) and x._node is None and x.dtype.kind == "bool" else x


def unary(
    name: str,
    rule: Rule,
    doc: str,
    prepare: Callable[[Tensor], Tensor] | None = floating,
    exact: bool = False,
    autocast: str | None = None,
) -> UnaryFunction:
    """Add the operation `name` of one array, and return the function that applies it to a tensor.

    rule: the VJP rule of the argument.
    doc: the docstring of the function.
    prepare: converts a tensor that does not require grad, such as one of integers (default: to the default dtype).
    exact, autocast: see `Operation`.
    """
    op = defop(name, rule, forward=elementwise(name), exact=exact, autocast=autocast)
    get = attrgetter(name)
    reads_out, which = op.saves[1]
    reads_x = which is not None

    def function(x: Tensor, /) -> Tensor:
        if not isinstance(x, Tensor):
            check_tensors(name, x)
        parent = x._node
        backend = x.backend
        if parent is not None and grad_enabled.get() is FAST:
            array = get(backend)(x.array)
            return Tensor(
                array,
                backend,
                Node(op, backend, (parent,), (x,) if reads_x else None, array if reads_out else None, array, None),
            )
        return apply(op, (x if prepare is None else prepare(x),))

    return named(function, name, doc)


def binary(
    name: str,
    first: Rule,
    second: Rule,
    doc: str,
    array_name: str | None = None,
    needs_float: bool = False,
    takes_bools: bool = False,
    exact: bool = False,
    autocast: str | None = None,
) -> BinaryFunction:
    """Add the operation `name` of two arrays that broadcast, and return the function of tensors and numbers.

    first, second: the VJP rules of the arguments.
    doc: the docstring of the function.
    array_name: the array function, if its name differs.
    needs_float: whether integers are converted to the default dtype (default False).
    takes_bools: whether bools are converted to int64 (default False).
    exact, autocast: see `Operation`.

    Half floats with a number that they may not represent exactly are computed in float32.
    """
    get = attrgetter(array_name or name)
    compute = elementwise(name, array_name)

    def forward(F: Any, a: Any, b: Any) -> Any:
        if a.__class__ is float or b.__class__ is float:
            array, x = (b, a) if a.__class__ is float else (a, b)
            native = array.dtype
            if native is not F.single and native in F.half_dtypes and not (x.is_integer() and -256.0 <= x <= 256.0):
                return F.astype(compute(F, *widened((a, b), F)), native)
            if native is not F.single:  # NumPy gives float32 for bfloat16 and a Python number
                return F.astype(compute(F, a, b), native, copy=False)
        return compute(F, a, b)

    op = defop(name, first, second, forward=forward, exact=exact, autocast=autocast)
    saves = [op.saves[mask] for mask in range(4)]

    def make(is_operator: bool) -> BinaryFunction:
        def function(x1: Any, x2: Any, /) -> Any:
            if isinstance(x1, Tensor):  # the fast path: recorded, and without casts
                p, q, backend, a = x1._node, None, x1.backend, x1.array
                ready: object
                if isinstance(x2, Tensor):
                    q, b = x2._node, x2.array
                    ready = backend is x2.backend and a.dtype is b.dtype and (p or q)
                else:
                    ready = (
                        p
                        and (x2.__class__ is float or x2.__class__ is int)
                        and (
                            p.dtype is backend.single or p.dtype is backend.double or p.dtype not in backend.half_dtypes
                        )
                    )
                    if ready:
                        b = x2 = float(x2)
                if ready and grad_enabled.get() is FAST:
                    try:
                        array = get(backend)(a, b)
                    except (TypeError, ValueError):
                        explain_elementwise(name, backend, (a, b))
                        raise
                    reads_out, which = saves[(p is not None) + 2 * (q is not None)]
                    saved = None if which is None else (x1 if which[0] else None, x2 if which[1] else None)
                    out = array if reads_out else None
                    return Tensor(array, backend, Node(op, backend, (p, q), saved, out, array, None))
            try:
                x1, x2 = with_arrays(name, x1, x2)
                if takes_bools:
                    x1, x2 = bools_to_int64(x1), bools_to_int64(x2)
                return apply(op, promoted(name, x1, x2, needs_float))
            except TypeError:
                if is_operator and (is_foreign(x1) or is_foreign(x2)):
                    return NotImplemented
                raise

        return named(function, name, doc)

    BINARY_OPERATORS[name] = make(True)
    return make(False)


LARGEST_HALF = 65504.0
"""The largest finite float16."""


def nondifferentiable_binary(
    name: str, doc: str, of_bools: bool = False, array_name: str | None = None
) -> BinaryFunction:
    """A function of two tensors or numbers whose result does not require grad.

    of_bools: only bools are accepted. array_name: the array function, if its name differs.
    """
    compute = elementwise(name, array_name)
    op = Operation(name, compute)

    def function(x1: Any, x2: Any, /) -> Tensor:
        x1, x2 = with_arrays(name, x1, x2)
        if of_bools:
            check_bools(name, x1, x2)
        try:
            x1, x2 = promoted(name, x1, x2)
        except OverflowError:
            if (x1 if isinstance(x1, Tensor) else x2).dtype.is_floating:
                raise
            return _compare_beyond_limits(name, x1, x2)
        tensor, other = (x1, x2) if isinstance(x1, Tensor) else (x2, x1)
        F = tensor.backend
        a = x1.array if isinstance(x1, Tensor) else x1
        b = x2.array if isinstance(x2, Tensor) else x2
        if other.__class__ is float and LARGEST_HALF < abs(other) < math.inf and tensor.array.dtype in F.half_dtypes:
            a, b = widened((a, b), F)  # as a half float, the number would be infinite
        out = Tensor(compute(F, a, b), F)
        observer = current_observer.get()
        if observer is not None:
            observer.forward(op, (x1, x2), out, {})
        return out

    BINARY_OPERATORS[name] = as_operator(function)
    return named(function, name, doc)


def _compare_beyond_limits(name: str, x1: Any, x2: Any) -> Tensor:
    """Compare a tensor of integers with an integer that its dtype cannot hold: all results are equal."""
    x = x1 if isinstance(x1, Tensor) else x2
    least = x.dtype.limits[0]
    truth = getattr(operator, COMPARISONS[name])(*(least if y is x else y for y in (x1, x2)))
    return Tensor(x.backend.full(x.shape, truth, dtype=x.backend.dtypes["bool"]), x.backend)


COMPARISONS = {
    "equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge"
}  # fmt: skip
"""The names of the comparison functions, each with that of its Python operator."""


def as_operator(function: BinaryFunction) -> BinaryFunction:
    """`function` as an operator, which returns NotImplemented for foreign operands."""

    def operate(x1: Any, x2: Any, /) -> Any:
        try:
            return function(x1, x2)
        except TypeError:
            if is_foreign(x1) or is_foreign(x2):
                return NotImplemented
            raise

    return operate


def nondifferentiable_unary(name: str, doc: str, of_bools: bool = False) -> UnaryFunction:
    """A function of one tensor whose result does not require grad. `of_bools`: only bools are accepted."""
    get = attrgetter(name)
    op = Operation(name, elementwise(name))

    def function(x: Tensor, /) -> Tensor:
        check_tensors(name, x)
        if of_bools:
            check_bools(name, x)
        out = Tensor(get(x.backend)(x.array), x.backend)
        observer = current_observer.get()
        if observer is not None:
            observer.forward(op, (x,), out, {})
        return out

    return named(function, name, doc)


def with_arrays(name: str, x1: Any, x2: Any) -> tuple[Any, Any]:
    """Two operands of the operation `name`; a NumPy array beside a tensor on the CPU as a tensor of its dtype."""
    if isinstance(x1, Tensor):
        return x1, x2 if isinstance(x2, Tensor) else host_operand(name, x2, x1)
    return (host_operand(name, x1, x2), x2) if isinstance(x2, Tensor) else (x1, x2)


def promoted(name: str, x1: Any, x2: Any, needs_float: bool = False) -> tuple[Any, Any]:
    """Two operands of the operation `name`, converted to one dtype. Python numbers stay numbers: they are weak.

    needs_float: integers are converted to the default dtype.

    Raises TypeError for an operand that is neither a tensor nor a number, OverflowError for an integer that the dtype
    of the tensor cannot hold, DeviceMismatchError for mixed devices.
    """
    one, two = isinstance(x1, Tensor), isinstance(x2, Tensor)
    if one and two:
        if x1.backend is not x2.backend:
            x1, x2 = on_one_backend(name, (x1, x2))
        if x1.array.dtype is x2.array.dtype and (not needs_float or x1.dtype.is_floating):
            return x1, x2
        dtype = promote(x1.dtype, x2.dtype)
        if needs_float and not dtype.is_floating:
            dtype = default_dtype.get()
        return cast(x1, dtype), cast(x2, dtype)
    tensor, other = (x1, x2) if one else (x2, x1)
    if not isinstance(tensor, Tensor) or not is_number(other):
        wrong = other if isinstance(tensor, Tensor) else tensor
        raise TypeError(f"{name} takes tensors and Python numbers; got {kind_and_fix(wrong)}")
    dtype = tensor.dtype
    if dtype.is_floating:
        weak: Any = float(other)
    elif needs_float or not (isinstance(other, Integral) or is_bool(other)):
        tensor, weak = cast(tensor, default_dtype.get()), float(other)
    else:
        if dtype.kind == "bool" and not is_bool(other):
            tensor = cast(tensor, "int64")
        weak = weak_number(name, other, tensor.dtype)
    return (tensor, weak) if one else (weak, tensor)


def named(function: _Function, name: str, doc: str) -> _Function:
    """The function itself, with a name and a docstring with its example, as a function of the module gradflow."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{doc}\n\n    >>> import gradflow as gf{EXAMPLES[name]}" if name in EXAMPLES else doc
    function.__module__ = "gradflow"
    return function


ASTYPE = defop("astype", lambda F, g, _out, _x, dtype: g, forward=lambda F, x, dtype: F.astype(x, dtype), exact=True)
