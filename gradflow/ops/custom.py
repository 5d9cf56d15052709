"""Differentiable operations that users define, in the same form as gradflow's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from gradflow.autograd.graph import Operation
from gradflow.backend import Backend
from gradflow.interception import forbid_replay
from gradflow.ops.checks import check_tensors, kind_and_fix
from gradflow.ops.table import Rule, apply
from gradflow.tensor import Tensor

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def operation(name: str, forward: Callable[..., Any], *rules: Rule) -> Callable[..., Tensor]:
    """A differentiable function of tensors, defined by `forward` and one VJP rule per argument.

    name: the name of the operation, for error messages and `repr`.
    forward: `forward(F, *arrays, **parameters)` returns the result. `F` has the functions of a backend, under their
    Array-API names.
    rules: for each array, `rule(F, g, out, *arrays, **parameters)`, which returns the gradient of the array from the
    gradient `g` of the result `out`; or None for an array without a gradient.

    A rule that calls only functions of `F` works on every device and for every order of derivative. Start the names of
    arguments that a rule does not read with an underscore, `_like_this`: they are not saved for the backward pass. For
    half floats, rules run in float32 and their results are rounded. Parameters are keyword arguments, which `forward`
    and the rules get unchanged. `gradflow.gradcheck` checks the rules.

    Raises TypeError for an argument that is not a Python function, ValueError for the wrong number of rules or of
    arguments of a rule. In the backward pass, a gradient of the wrong shape raises ValueError that names the rule.

    >>> import gradflow as gf
    >>> softsign = gf.operation(
    ...     "softsign",
    ...     lambda F, x: F.divide(x, F.add(F.abs(x), 1.0)),
    ...     lambda F, g, _out, x: F.divide(g, F.square(F.add(F.abs(x), 1.0))),
    ... )
    >>> x = gf.tensor([-1.0, 3.0], requires_grad=True)
    >>> y = softsign(x)
    >>> y.sum().backward()
    >>> print(y.tolist(), x.grad.tolist())
    [-0.5, 0.75] [0.25, 0.0625]
    """
    inputs, keywords = _arguments(name, "forward", forward, 1)
    if not inputs:
        raise ValueError(f"operation {name}: forward takes F and at least one array; it is {_signature(forward)}")
    if len(rules) != len(inputs):
        raise ValueError(
            f"operation {name}: forward takes {len(inputs)} arrays ({', '.join(inputs)}), so there must be as many "
            f"rules; got {len(rules)} (pass None for an argument without a gradient)"
        )
    for i, rule in enumerate(rules):
        if rule is None:
            continue
        which = f"the rule for argument {i} ({inputs[i]})"
        found, rule_keywords = _arguments(name, which, rule, 3)
        if len(found) != len(inputs):
            raise ValueError(
                f"operation {name}: {which} must take F, g, out and the {len(inputs)} arrays "
                f"({', '.join(inputs)}); it is {_signature(rule)}"
            )
        if rule_keywords is not None and keywords is not None and keywords - rule_keywords:
            lacking = ", ".join(sorted(keywords - rule_keywords))
            raise ValueError(f"operation {name}: {which} must take the parameters of forward too; it lacks {lacking}")
    defaults = {p.name: p.default for p in inspect.signature(forward).parameters.values() if p.default is not p.empty}
    op = Operation(name, _value(name, forward), [_checked(name, i, rule, len(rules)) for i, rule in enumerate(rules)])

    def function(*arguments: Any, **parameters: Any) -> Tensor:
        if len(arguments) != len(inputs):
            raise TypeError(f"{name} takes {len(inputs)} tensors ({', '.join(inputs)}); got {len(arguments)}")
        tensors = [x for x in arguments if isinstance(x, Tensor)]
        for i, x in enumerate(arguments):
            if not isinstance(x, (Tensor, float, int)):
                raise TypeError(f"{name} takes tensors and numbers; argument {i} ({inputs[i]}) is {kind_and_fix(x)}")
        if not tensors:
            raise TypeError(f"{name} needs at least one tensor; got only numbers")
        check_tensors(name, *tensors)
        forbid_replay(f"calls a custom operation ({name})")  # its Python may do anything
        recorded = any(
            rule is not None and isinstance(x, Tensor) and x.requires_grad
            for rule, x in zip(rules, arguments, strict=True)
        )
        if not recorded:
            arguments = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
        out = apply(op, arguments, {**defaults, **parameters})
        return out if out.dtype.is_floating else out.detach()

    function.__name__ = function.__qualname__ = name
    function.__doc__ = inspect.getdoc(forward) or f"The operation {name} of {', '.join(inputs)}."
    return function


def is_custom(op: Operation) -> bool:
    """Whether an operation was defined by `operation`: its name says nothing of what it computes."""
    return op.forward.__module__ == __name__


def _arguments(name: str, what: str, function: Any, leading: int) -> tuple[list[str], set[str] | None]:
    """The names of a function's arrays, which follow `leading` arguments, and of its keywords (None: any)."""
    if not inspect.isfunction(function):
        raise TypeError(f"operation {name}: {what} must be a function written in Python; got {function!r}")
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p.name for p in parameters if p.kind in _POSITIONAL and p.default is p.empty]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) or len(positional) < leading:
        raise ValueError(f"operation {name}: {what} must name each of its arguments; it is {_signature(function)}")
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return positional[leading:], None if takes_any else keywords


def _signature(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__name__', 'function')}{inspect.signature(function)}"


def _value(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, with a result that shares no memory with its arguments."""

    def value(F: Any, *arrays: Any, **parameters: Any) -> Any:
        out = forward(F, *arrays, **parameters)
        if not hasattr(out, "shape") or not hasattr(out, "dtype"):
            raise TypeError(f"the forward of {name} must return an array; it returned {type(out).__name__}")
        shared = getattr(out, "base", None) is not None or any(out is array for array in arrays)
        return F.copy(out) if shared else out

    return value


class _Unread:
    """Replaces an argument that a rule names `_like_this`: it has a shape and a dtype; other uses raise TypeError."""

    def __init__(self, message: str, like: Any) -> None:
        object.__setattr__(self, "_known", {} if like is None else {n: getattr(like, n) for n in _KNOWN})
        object.__setattr__(self, "_message", message)

    def __getattribute__(self, name: str) -> Any:  # isinstance calls it too, and so does NumPy for `__array__`
        known = object.__getattribute__(self, "_known")
        if name in known:
            return known[name]
        raise TypeError(object.__getattribute__(self, "_message"))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(object.__getattribute__(self, "_message"))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __neg__ = __abs__ = __getitem__ = __bool__ = __float__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __array_ufunc__ = _refuse


_KNOWN = ("shape", "ndim", "dtype")


def _checked(name: str, argument: int, rule: Rule, arity: int) -> Rule:
    """The rule, with clear errors for a result that is not an array, and for reading an argument `_like_this`.

    Its `__wrapped__` is the original rule, whose signature says what it reads.
    """
    if rule is None:
        return None
    which = f"the rule of {name} for argument {argument}"
    unread = [
        (i, f"{which} reads {n}, which is not saved for it: drop the underscore and call it {n.lstrip('_') or 'x'}")
        for i, n in enumerate(inspect.signature(rule).parameters)
        if 2 <= i < 3 + arity and n.startswith("_")
    ]

    def checked(F: Any, g: Any, out: Any, *arrays: Any, **parameters: Any) -> Any:
        if isinstance(F, Backend) and g is F.seed(g.dtype):
            g = F.copy(g)  # a user's rule may change it
        given = [F, g, out, *arrays]
        for i, message in unread:
            given[i] = _Unread(message, given[i])
        gradient = rule(*given, **parameters)
        if not hasattr(gradient, "shape") or not hasattr(gradient, "dtype"):
            raise TypeError(f"{which} must return an array; it returned {type(gradient).__name__}")
        if type(gradient) is _Unread:
            gradient._refuse()
        return gradient

    checked.__wrapped__ = rule  # type: ignore[attr-defined]
    return checked
