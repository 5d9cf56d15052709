"""The layers of networks: matrix products, linear layers, dropout.

Their results and gradients are kernels of the backend, which may be fused. For higher derivatives, the composed default
of the same kernel runs on tensors (`gradflow.ops.namespace`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradflow.autograd.grad_mode import CAST, FAST, grad_enabled
from gradflow.backend import ACTIVATIONS
from gradflow.ops.checks import check_tensors, number
from gradflow.ops.table import (
    BINARY_OPERATORS,
    apply,
    are_autocast,
    as_operator,
    defop,
    floating,
    promoted,
    with_arrays,
)
from gradflow.random.generator import Generator, default_generator
from gradflow.random.shares import current_share
from gradflow.shapes import check_broadcast
from gradflow.tensor import Tensor

__all__ = ["dropout", "linear", "matmul"]


def _product(F: Any, a: Any, b: Any) -> Any:
    left, right = _row(F, a), _column(F, b)
    try:
        out = F.matmul(left, right)
    except (TypeError, ValueError):
        shapes = f"matmul of shapes {tuple(a.shape)} and {tuple(b.shape)}"
        check_broadcast(f"{shapes}, all axes but the last two", [left.shape[:-2], right.shape[:-2]])
        raise
    if left is a and right is b:
        return out
    batch, rows, columns = out.shape[:-2], out.shape[-2:-1], out.shape[-1:]
    return F.reshape(out, (*batch, *rows * (left is a), *columns * (right is b)))


def _row(F: Any, a: Any) -> Any:
    """The left factor of a product; a vector is a row."""
    return F.reshape(a, (1, *a.shape)) if len(a.shape) == 1 else a


def _column(F: Any, b: Any) -> Any:
    """The right factor of a product; a vector is a column."""
    return F.reshape(b, (*b.shape, 1)) if len(b.shape) == 1 else b


def _of_matrices(F: Any, g: Any, a: Any, b: Any) -> Any:
    """The gradient of the product of `a` and `b`, with the axes that it would have if vectors were matrices."""
    rows, columns = len(a.shape) == 1, len(b.shape) == 1
    if not rows and not columns:
        return g
    shape = (*g.shape, 1) if columns else g.shape
    return F.reshape(g, (*shape[:-1], 1, *shape[-1:]) if rows else shape)


def _left_rule(F: Any, g: Any, _out: Any, _a: Any, b: Any) -> Any:
    found = F.matmul(_of_matrices(F, g, _a, b), F.matrix_transpose(_column(F, b)))
    return F.reshape(found, (*found.shape[:-2], *found.shape[-1:])) if len(_a.shape) == 1 else found


def _right_rule(F: Any, g: Any, _out: Any, a: Any, _b: Any) -> Any:
    found = F.matmul(F.matrix_transpose(_row(F, a)), _of_matrices(F, g, a, _b))
    return F.reshape(found, found.shape[:-1]) if len(_b.shape) == 1 else found


_MATMUL = defop("matmul", _left_rule, _right_rule, forward=_product, exact=True, autocast="half")


def matmul(x1: Tensor, x2: Tensor, /) -> Tensor:
    """The matrix product (..., n, k) @ (..., k, m), whose leading axes broadcast.

    A vector is a row on the left and a column on the right. Raises ValueError for a tensor without axes or inner
    lengths that differ.

    >>> import gradflow as gf
    >>> x, w = gf.tensor([[1.0, 2.0]]), gf.tensor([[3.0], [4.0]], requires_grad=True)
    >>> (x @ w).backward()
    >>> w.grad.tolist()
    [[1.0], [2.0]]
    """
    x1, x2 = with_arrays("matmul", x1, x2)
    check_tensors("matmul", x1, x2)
    if not x1.ndim or not x2.ndim:
        raise ValueError(f"matmul needs at least one axis on each side; got shapes {x1.shape} and {x2.shape}")
    inner = x1.shape[-1], x2.shape[-2 if x2.ndim > 1 else 0]
    if inner[0] != inner[1]:
        lengths = f"the inner lengths differ: {inner[0]} and {inner[1]}"
        raise ValueError(f"matmul of shapes {x1.shape} and {x2.shape}: {lengths}")
    x1, x2 = promoted("matmul", x1, x2)
    return apply(_MATMUL, (x1, x2))


BINARY_OPERATORS["matmul"] = as_operator(matmul)


def _linear_backward(F: Any, g: Any, out: Any, x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    return F.linear_backward(g, out, x, weight, bias, **options)


def _reads_out(parameters: dict[str, Any]) -> bool:
    activation = parameters["activation"]
    return activation is not None and ACTIVATIONS[activation].saves == "out"


_LINEAR = defop(
    "linear", joint=_linear_backward, joint_reads_out=_reads_out, residual=True, writes_into=True, autocast="half"
)


def check_activation(name: str) -> None:
    """Raise ValueError unless `name` is the name of an activation."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; there are {', '.join(ACTIVATIONS)}")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """activation(x @ weight.T + bias), of shape (..., out), as one operation.

    x: (..., in). weight: (out, in). bias: (out,), or None. All have one dtype.
    activation: a name in `gradflow.backend.ACTIVATIONS`, with its default parameter, or None.

    Raises ValueError for shapes that do not fit or an unknown activation, TypeError for different dtypes.

    >>> import gradflow as gf
    >>> x, w, b = gf.tensor([[1.0, -2.0]]), gf.tensor([[1.0, 1.0], [3.0, 1.0]]), gf.tensor([0.5, 0.5])
    >>> gf.linear(x, w, b).tolist(), gf.linear(x, w, b, activation="relu").tolist()
    ([[-0.5, 1.5]], [[0.0, 1.5]])
    """
    if bias is None:
        check_tensors("linear", x, weight)
    else:
        check_tensors("linear", x, weight, bias)
        if bias.array.shape != weight.array.shape[:1]:
            raise ValueError(
                f"linear: a weight of shape {weight.shape} needs a bias of shape {weight.shape[:1]}; got {bias.shape}"
            )
    if len(weight.array.shape) != 2 or not x.array.shape or x.array.shape[-1] != weight.array.shape[1]:
        raise ValueError(
            f"linear: the last axis of x, of shape {x.shape}, must be the last of the weight, of shape {weight.shape}"
        )
    if (
        x.array.dtype != weight.array.dtype or (bias is not None and bias.array.dtype != weight.array.dtype)
    ) and not are_autocast(x, weight, bias):
        raise dtypes_differ("linear", x, [("weight", weight), ("bias", bias)])
    parameter = 0.0
    if activation is not None:
        check_activation(activation)
        parameter = ACTIVATIONS[activation].parameter
    return apply(_LINEAR, (x, weight, bias), {"activation": activation, "parameter": parameter})


def dtypes_differ(name: str, x: Tensor, weights: Sequence[tuple[str, Tensor | None]]) -> TypeError:
    """The error of a layer whose input and weights, given with what they are, have different dtypes."""
    given = [(what, t) for what, t in weights if t is not None]
    kinds = " and ".join(f"its {what} {t.dtype}" for what, t in given)
    first = given[0][1].dtype
    if any(t.dtype != first for _, t in given):
        return TypeError(
            f"{name} needs one dtype for all: x is {x.dtype}, {kinds}; convert them, e.g. with module.to(dtype)"
        )
    other = f", or the module with .to('{x.dtype}')" if x.dtype.is_floating else ""
    return TypeError(
        f"{name} needs one dtype for all: x is {x.dtype}, {kinds}; convert the input with x.astype('{first}'){other}"
    )


def _perceptron(F: Any, x: Any, *layers: Any, activation: str, parameter: float) -> tuple[Any, Any]:
    hidden = []
    for i in range(0, len(layers) - 2, 2):
        x, residual = F.linear(x, layers[i], layers[i + 1], activation, parameter)
        hidden.append((x, residual))
    return F.linear(x, layers[-2], layers[-1], None, 0.0)[0], hidden


def _perceptron_backward(
    F: Any, g: Any, out: Any, x: Any, *layers: Any,
    activation: str, parameter: float, needs: Sequence[bool], residual: Any, into: Sequence[Any],
) -> list[Any]:  # fmt: skip
    if residual is None:  # on tensors or batches: recompute the hidden layers
        residual, h = [], x
        for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
            z = F.add(F.matmul(h, F.matrix_transpose(weight)), bias)
            h = ACTIVATIONS[activation].forward(F, z, parameter)
            residual.append((h, z))
    results = [None] * len(needs)
    first, name = list(needs).index(True), None
    out = kept = None
    for i in range(len(layers) - 1, 0, -2):
        h = residual[i // 2 - 1][0] if i > 1 else x
        wanted, buffers = (first < i, needs[i], needs[i + 1]), (into[0] if i == 1 else None, into[i], into[i + 1])
        g, results[i], results[i + 1] = F.linear_backward(
            g, out, h, layers[i - 1], layers[i], name, parameter, kept, wanted, buffers
        )
        if first >= i:
            return results
        if i > 1:
            (out, kept), name = residual[i // 2 - 1], activation
    results[0] = g
    return results


_PERCEPTRON = defop(
    "perceptron",
    forward=_perceptron,
    joint=_perceptron_backward,
    residual=True,
    writes_into=True,
    autocast="half",
)


def perceptron(x: Tensor, layers: Sequence[tuple[Any, Any]], activation: str) -> Tensor:
    """`linear` for each (weight, bias) of `layers`, with the activation after all but the last, as one operation.

    One node for all layers costs less than one per layer. Raises like `linear`.
    """
    check_activation(activation)
    parameter = ACTIVATIONS[activation].parameter
    inputs: list[Any] = [x]
    mode = grad_enabled.get()
    if (mode is FAST or mode is CAST) and isinstance(x, Tensor) and x.array.ndim:
        dtype, width = x.array.dtype, x.array.shape[-1]
        for weight, bias in layers:
            if weight is None or bias is None:
                break
            w, b = weight.array, bias.array
            shape = w.shape
            if len(shape) != 2 or shape[1] != width or b.shape != shape[:1]:
                break
            if (w.dtype is not dtype or b.dtype is not dtype) and not (mode is CAST and are_autocast(x, weight, bias)):
                break  # they may still be equal: `linear` compares them
            width = shape[0]
            inputs += (weight, bias)
        else:
            return apply(_PERCEPTRON, inputs, {"activation": activation, "parameter": parameter})
    for weight, bias in layers[:-1]:  # observed, not recorded, or with arguments for which `linear` raises
        x = linear(x, weight, bias, activation)
    return linear(x, *layers[-1])


def _dropout_backward(F: Any, g: Any, out: Any, x: Any, needs: Any, residual: Any, **how: Any) -> Any:
    if residual is None:  # on tensors or batches: draw the same mask again
        return [F.multiply(g, F.dropout_factors(x, **how))]
    return [F.dropout_backward(g, residual, how["p"])]


_DROPOUT = defop("dropout", joint=_dropout_backward, joint_reads_inputs=False, residual=True)


def check_dropout(p: float) -> None:
    """Raise ValueError or TypeError unless p is a number in [0, 1)."""
    if not 0.0 <= number("p of dropout", p) < 1.0:
        raise ValueError(f"dropout needs a probability 0 <= p < 1; got {p}")


def dropout(x: Tensor, p: float = 0.5, training: bool = True, generator: Generator | None = None) -> Tensor:
    """x with each element set to 0 with probability p, and otherwise scaled by 1 / (1 - p).

    p: the probability (default 0.5). Raises ValueError unless it is in [0, 1).
    training: if False, the result is x itself.
    generator: the source of the mask (default: the global generator). The mask is the same on every device.

    Srivastava et al. 2014, "Dropout".

    >>> import gradflow as gf
    >>> generator = gf.Generator(0)
    >>> gf.dropout(gf.ones(8), p=0.5, generator=generator).tolist()
    [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 2.0]
    >>> gf.dropout(gf.ones(8), p=0.5, training=False).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    check_tensors("dropout", x)
    check_dropout(p)
    if not training or p == 0.0:
        return x
    generator = default_generator if generator is None else generator
    x = floating(x)
    share = current_share.get()
    if share is None:
        key, counter = generator.draw((x.size + 1) // 2)
        return apply(_DROPOUT, (x,), {"p": float(p), "key": key, "counter": counter})
    return apply(_DROPOUT, (x,), {"p": float(p), **share.draw(generator, x.shape, x.size)})


def dropout_factors(like: Any, p: float, key: int, counter: int, skip: int = 0) -> Tensor:
    """The factors by which `dropout` multiplies a tensor like `like`: see `Backend.dropout_factors`."""
    return Tensor(like.backend.dropout_factors(like, p, key, counter, *[skip] * (skip > 0)), like.backend)
