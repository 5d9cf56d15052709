"""Activations, softmax, log_softmax and logsumexp. Each is one kernel of the backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gradflow.backend import ACTIVATIONS
from gradflow.ops.checks import check_tensors, keepdims_flag, number
from gradflow.ops.elementwise import multiply
from gradflow.ops.shape import reshape, split
from gradflow.ops.table import OPERATIONS, UnaryFunction, apply, are_autocast, defop, floating, named, promoted
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import Axis, normalize_axes, one_axis
from gradflow.tensor import Tensor

__all__ = [
    "elu", "gelu", "glu", "hardtanh", "leaky_relu", "log_softmax", "logsumexp", "mish", "prelu", "relu", "selu",
    "sigmoid", "silu", "softmax", "softplus", "softsign", "tanh",
]  # fmt: skip


def _activation(name: str, doc: str) -> UnaryFunction:
    def from_out(F: Any, g: Any, out: Any, _x: Any, parameter: float) -> Any:
        return F.activate_backward(g, out, name, parameter)

    def from_x(F: Any, g: Any, _out: Any, x: Any, parameter: float) -> Any:
        return F.activate_backward(g, x, name, parameter)

    rule = from_out if ACTIVATIONS[name].saves == "out" else from_x
    autocast = "float32" if name == "softplus" else None
    op = defop(name, rule, forward=lambda F, x, parameter: F.activate(x, name, parameter), autocast=autocast)
    default = {"parameter": ACTIVATIONS[name].parameter}

    def function(x: Tensor, /) -> Tensor:
        check_tensors(name, x)
        return apply(op, (floating(x),), default)

    return named(function, name, doc)


relu = _activation("relu", "max(x, 0). Its gradient at 0 is 0.")
tanh = _activation("tanh", "The hyperbolic tangent of x.")
sigmoid = _activation("sigmoid", "1 / (1 + exp(-x)), without overflow.")
silu = _activation("silu", "x * sigmoid(x).")
softplus = _activation("softplus", "log(1 + exp(x)), without overflow.")
mish = _activation("mish", "x * tanh(softplus(x)) (Misra 2019).")
softsign = _activation("softsign", "x / (1 + |x|).")
selu = _activation("selu", "1.0507 * x where x > 0, else 1.0507 * 1.6733 * (exp(x) - 1) (Klambauer et al. 2017).")
_GELU = {"tanh": _activation("gelu", ""), "none": _activation("gelu_exact", "")}
for _name in ("leaky_relu", "elu"):
    _activation(_name, "")


def gelu(x: Tensor, /, approximate: str = "tanh") -> Tensor:
    """x * Phi(x), Phi the cumulative distribution of a normal variable (Hendrycks & Gimpel 2016).

    approximate: "tanh" (default) for 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))), or "none" for the exact
        0.5 * x * (1 + erf(x / sqrt(2))), PyTorch's default, which takes about ten times as long on the CPU.

    Raises ValueError for another word.

    >>> import gradflow as gf
    >>> x = gf.tensor([-3.0, -1.0, 1.0, 3.0])
    >>> [f"{y:.4f}" for y in gf.gelu(x).tolist()]
    ['-0.0036', '-0.1588', '0.8412', '2.9964']
    >>> [f"{y:.4f}" for y in gf.gelu(x, approximate="none").tolist()]
    ['-0.0040', '-0.1587', '0.8413', '2.9960']
    """
    check_approximation(approximate)
    return _GELU[approximate](x)


def check_approximation(approximate: str) -> None:
    """Raise ValueError unless this is a form of GELU."""
    if not isinstance(approximate, str) or approximate not in _GELU:
        raise ValueError(f"approximate of gelu is 'tanh' or 'none', the exact form; got {approximate!r}")


def leaky_relu(x: Tensor, /, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, else negative_slope * x.

    >>> import gradflow as gf
    >>> gf.leaky_relu(gf.tensor([-2.0, 3.0]), negative_slope=0.5).tolist()
    [-1.0, 3.0]
    """
    return _with_parameter("leaky_relu", x, negative_slope)


def elu(x: Tensor, /, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2015).

    >>> import gradflow as gf
    >>> [round(y, 3) for y in gf.elu(gf.tensor([-100.0, -1.0, 2.0]), alpha=2.0).tolist()]
    [-2.0, -1.264, 2.0]
    """
    return _with_parameter("elu", x, alpha)


def _with_parameter(name: str, x: Tensor, parameter: float) -> Tensor:
    check_tensors(name, x)
    what = "negative_slope" if name == "leaky_relu" else "alpha"
    return apply(OPERATIONS[name], (floating(x),), {"parameter": number(f"{what} of {name}", parameter)})


def hardtanh(x: Tensor, /, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """x limited to [min_val, max_val]. Unlike that of `clip`, its gradient at the limits is 0, as in PyTorch.

    Raises ValueError if min_val > max_val.

    >>> import gradflow as gf
    >>> x = gf.tensor([-2.0, -0.5, 1.0], requires_grad=True)
    >>> y = gf.hardtanh(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([-1.0, -0.5, 1.0], [0.0, 1.0, 0.0])
    """
    check_tensors("hardtanh", x)
    return apply(_HARDTANH, (floating(x),), check_limits(min_val, max_val))


def check_limits(min_val: float, max_val: float) -> dict[str, float]:
    """The limits of hardtanh by name; ValueError unless min_val <= max_val, TypeError unless both are numbers."""
    limits = {"min_val": number("min_val of hardtanh", min_val), "max_val": number("max_val of hardtanh", max_val)}
    if not min_val <= max_val:
        raise ValueError(f"hardtanh needs min_val <= max_val; got min_val={min_val}, max_val={max_val}")
    return limits


_HARDTANH = defop(
    "hardtanh",
    lambda F, g, out, _x, min_val, max_val: F.where(  # g where it is NaN
        F.logical_or(F.less_equal(out, min_val), F.greater_equal(out, max_val)), 0.0, g
    ),
    forward=lambda F, x, min_val, max_val: F.clip(x, min_val, max_val),
)
_PRELU = defop(
    "prelu",
    lambda F, g, _out, x, weight: F.where(F.greater(x, 0), g, F.multiply(g, weight)),
    lambda F, g, _out, x, weight: F.where(F.greater(x, 0), 0.0, F.multiply(g, x)),
    forward=lambda F, x, weight: F.where(F.greater(x, 0), x, F.multiply(x, weight)),
    autocast="half",
)


def prelu(x: Tensor, /, weight: Tensor) -> Tensor:
    """x where x > 0, else weight * x, with a slope that is learned (He et al. 2015, "Delving Deep into Rectifiers").

    x: of any shape.
    weight: one slope, of shape () or (1,), or (n,): one for each of the n channels of x, along axis 1.

    Raises ValueError for a weight of another shape.

    >>> import gradflow as gf
    >>> x = gf.tensor([[-1.0, -1.0], [3.0, -2.0]])
    >>> gf.prelu(x, gf.tensor([0.25, 0.5])).tolist()
    [[-0.25, -0.5], [3.0, -1.0]]
    """
    check_tensors("prelu", x, weight)
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.ndim > 1 or weight.size not in (1, channels):
        one_each = f", or ({channels},), one slope for each channel" if channels != 1 else ""
        raise ValueError(
            f"prelu of x of shape {x.shape} needs a weight of shape () or (1,){one_each}; got {weight.shape}"
        )
    if weight.size == 1 and not x.ndim:
        weight = reshape(weight, ())
    elif weight.size > 1 and x.ndim > 2:
        weight = reshape(weight, (channels,) + (1,) * (x.ndim - 2))
    x, weight = floating(x), floating(weight)
    return apply(_PRELU, (x, weight) if are_autocast(x, weight) else promoted("prelu", x, weight))


@refuses_keywords
def glu(x: Tensor, /, axis: int = -1, dim: None = None) -> Tensor:
    """a * sigmoid(b), where a and b are the halves of x along `axis` (Dauphin et al. 2017): half as long there as x.

    Raises ValueError for an odd length.

    >>> import gradflow as gf
    >>> gf.glu(gf.tensor([[1.0, 2.0, 0.0, 100.0]])).tolist()
    [[0.5, 2.0]]
    """
    if dim is not None:
        refuse("glu", dim=dim)
    check_tensors("glu", x)
    axis = one_axis("glu", axis, x.ndim)
    if x.shape[axis] % 2:
        raise ValueError(f"glu needs an axis of even length, to halve it; the shape is {x.shape}, the axis {axis}")
    a, b = split(floating(x), 2, axis)
    return multiply(a, sigmoid(b))


def _dot_along(F: Any, a: Any, b: Any, axis: Any) -> Any:
    return F.sum(F.multiply(a, b), axis=axis, keepdims=True)


def _over_axes(kernel: str) -> Callable[..., Any]:
    """A `forward` that calls a kernel of one axis; of several axes, it makes one, the last."""

    def forward(F: Any, x: Any, axis: int | tuple[int, ...]) -> Any:
        if not isinstance(axis, tuple):
            return getattr(F, kernel)(x, axis)
        kept = tuple(a for a in range(x.ndim) if a not in axis)
        moved = F.permute_dims(x, kept + axis)
        rows = F.reshape(moved, (*(x.shape[a] for a in kept), math.prod(x.shape[a] for a in axis)))
        out = F.reshape(getattr(F, kernel)(rows, len(kept)), tuple(moved.shape))
        return F.permute_dims(out, tuple(sorted(range(x.ndim), key=(kept + axis).__getitem__)))

    return forward


_SOFTMAX = defop(
    "softmax",
    lambda F, g, out, _x, axis: F.multiply(out, F.subtract(g, _dot_along(F, g, out, axis))),
    forward=_over_axes("softmax"),
    autocast="float32",
)
_LOG_SOFTMAX = defop(
    "log_softmax",
    lambda F, g, out, _x, axis: F.subtract(g, F.multiply(F.exp(out), F.sum(g, axis=axis, keepdims=True))),
    forward=_over_axes("log_softmax"),
    autocast="float32",
)


def _logsumexp_rule(F: Any, g: Any, out: Any, x: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    kept = tuple(1 if i in axis else n for i, n in enumerate(x.shape))
    total = F.reshape(out, kept)
    total = F.where(F.equal(total, -math.inf), 0.0, total)
    return F.multiply(F.reshape(g, kept), F.exp(F.subtract(x, total)))


_LOGSUMEXP = defop(
    "logsumexp",
    _logsumexp_rule,
    forward=lambda F, x, axis, keepdims: F.logsumexp(x, axis, keepdims),
    autocast="float32",
)


@refuses_keywords
def softmax(x: Tensor, /, axis: int | tuple[int, ...] = -1, dim: None = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `axis`, or over the axes of a tuple, without overflow.

    Raises ValueError for an axis without elements.

    >>> import gradflow as gf
    >>> x = gf.tensor([[0.0, 0.0], [1000.0, 0.0]])
    >>> gf.softmax(x, axis=1).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    if dim is not None:
        refuse("softmax", dim=dim)
    return _along(_SOFTMAX, x, axis)


@refuses_keywords
def log_softmax(x: Tensor, /, axis: int | tuple[int, ...] = -1, dim: None = None) -> Tensor:
    """log(softmax(x)) along `axis`, or over the axes of a tuple, finite for every finite x.

    Raises ValueError for an axis without elements.

    >>> import gradflow as gf
    >>> gf.log_softmax(gf.tensor([1000.0, 0.0])).tolist()
    [0.0, -1000.0]
    """
    if dim is not None:
        refuse("log_softmax", dim=dim)
    return _along(_LOG_SOFTMAX, x, axis)


def _along(op: Any, x: Tensor, axis: int | tuple[int, ...]) -> Tensor:
    check_tensors(op.name, x)
    if isinstance(axis, (tuple, list)):
        axis = normalize_axes(axis, x.ndim)
        empty = 0 in (x.shape[a] for a in axis)
    else:
        axis = one_axis(op.name, axis, x.ndim)
        empty = x.shape[axis] == 0
    if empty:
        raise ValueError(f"{op.name} of no elements is undefined: the shape is {x.shape}, the axis {axis}")
    return apply(op, (floating(x),), {"axis": axis})


@refuses_keywords
def logsumexp(
    x: Tensor, /, axis: Axis = None, keepdims: bool = False, dim: None = None, keepdim: None = None
) -> Tensor:
    """log(sum(exp(x))) over `axis`, without overflow. Raises ValueError where there are no elements to sum.

    keepdims: whether the axes stay, with length 1 (default False).

    >>> import gradflow as gf
    >>> x = gf.tensor([1000.0, 1000.0])
    >>> round(gf.logsumexp(x).item(), 3)
    1000.693
    """
    if dim is not None or keepdim is not None:
        refuse("logsumexp", dim=dim, keepdim=keepdim)
    check_tensors("logsumexp", x)
    keepdims = keepdims_flag("logsumexp", keepdims)
    axes = normalize_axes(axis, x.ndim)
    if not math.prod(x.shape[a] for a in axes):
        raise ValueError(f"logsumexp of no elements is undefined: the shape is {x.shape}, the axis {axis}")
    return apply(_LOGSUMEXP, (floating(x),), {"axis": axes, "keepdims": keepdims})
