"""Random programs of tensor operations, equal in gradflow and in PyTorch, and a bound on their difference.

A program is data: leaves, and a list of operations on earlier values. It is drawn together with its float64 values, so
that no value is outside an operation's domain or too close to a kink, where rounding decides the gradient.

The bound comes from the program itself. The float64 program runs a few times with every value and gradient perturbed at
random by a few roundings of the dtype under test; the change of a result estimates the effect of one rounding per
operation (Vignes 1993, "A stochastic arithmetic for reliable scientific computation").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import gradflow as gf
from gradflow.testing import eps, host

PERTURBED_RUNS = 4
PERTURBATION = {"float64": 100.0, "float32": 4.0, "float16": 4.0}
"""The size of a perturbation in roundings. In float64, PyTorch's own long sums have errors of a hundred and more."""
ROUNDINGS = 10
"""The bound in perturbations: a composed operation and its gradient rule round about forty times at most."""
LARGEST = {"float64": 1e4, "float32": 1e4, "float16": 200.0}
"""The largest value of a program, so that products of two values do not overflow."""
MARGIN = {"float64": 1e-6, "float32": 1e-2, "float16": 0.2}
"""The least distance of a value from a kink; leaves are exempt, since they are exact in both libraries."""


@dataclass(frozen=True)
class Op:
    """An operation in both libraries.

    ours, theirs: the operation on `arity` tensors, with the drawn parameters.
    parameters: draws the parameters.
    fits: whether float64 values are in the domain.
    kink: the least distance of the values to a kink.
    """

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    arity: int = 1
    parameters: Callable[[Any, Any], dict[str, Any] | None] = lambda draw, x: {}
    fits: Callable[..., bool] = lambda *x, **parameters: True
    kink: Callable[..., float] = lambda *x, **parameters: math.inf


@dataclass
class Program:
    """Leaves as arrays, the steps as (name of the operation, indices of its operands, parameters), and the outputs."""

    dtype: str
    leaves: list[np.ndarray] = field(default_factory=list)
    steps: list[tuple[str, tuple[int, ...], dict[str, Any]]] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    seed: int = 0

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # hypothesis prints this
        printer.text(repr(self))

    def __repr__(self) -> str:
        lines = [
            f"v{i} = leaf of shape {x.shape}: {x.tolist() if x.size < 9 else '...'}" for i, x in enumerate(self.leaves)
        ]
        for i, (name, operands, parameters) in enumerate(self.steps, len(self.leaves)):
            arguments = [f"v{k}" for k in operands] + [f"{k}={v}" for k, v in parameters.items()]
            lines.append(f"v{i} = {name}({', '.join(arguments)})")
        return "\n".join(["", f"{self.dtype}, seed {self.seed}", *lines, f"outputs {self.outputs}"])


# ---------------------------------------------------------------------- the table

OPS: dict[str, Op] = {}


def _axis(draw: Any, x: Any) -> int | None:
    return draw(st.integers(-x.ndim, x.ndim - 1)) if x.ndim else None


def _one_axis(draw: Any, x: Any) -> dict[str, Any] | None:
    return {"axis": _axis(draw, x)} if x.ndim and x.numel() else None


def _axes(draw: Any, x: Any) -> dict[str, Any]:
    axes = draw(st.none() | st.sets(st.integers(0, x.ndim - 1)).map(lambda s: tuple(sorted(s)))) if x.ndim else None
    return {"axis": axes, "keepdims": draw(st.booleans())}


def _dims(x: Any, axis: Any) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axis is None else axis


def _count(x: Any, axis: Any) -> int:
    return math.prod(x.shape[i] for i in _dims(x, axis))


def _gap(x: Any, axis: Any, sign: float, **_: Any) -> float:
    """Return the smallest gap of the two largest elements along axes; equal ones share the gradient without a kink."""
    dims = _dims(x, axis)
    if not dims or not x.numel():
        return math.inf
    rows = torch.movedim(sign * x, dims, tuple(range(-len(dims), 0))).reshape(
        *[n for i, n in enumerate(x.shape) if i not in dims], -1
    )
    apart = rows.amax(-1, keepdim=True) - rows
    apart = torch.where(apart == 0, math.inf, apart)
    return float(apart.amin()) if apart.numel() else math.inf


def _nearest(x: Any, *points: float) -> float:
    return min((float((x - p).abs().min()) for p in points), default=math.inf) if x.numel() else math.inf


def _apart(a: Any, b: Any) -> float:
    difference = (a - b).abs()
    return float(difference.min()) if difference.numel() else math.inf


def _below(most: float, x: Any) -> bool:
    return x.numel() == 0 or float(x.abs().max()) <= most


_MOST = {"exp": 5.0, "expm1": 5.0, "tanh": 2.0, "sigmoid": 3.0, "silu": 3.0, "gelu": 2.0, "softplus": 20.0}
"""The largest input elements of these operations; PyTorch's softplus is the identity above 20."""


def _broadcast(a: Any, b: Any) -> bool:
    try:
        return math.prod(torch.broadcast_shapes(a.shape, b.shape)) <= 20_000
    except RuntimeError:
        return False


for _name, _function in {"add": gf.add, "subtract": gf.subtract, "multiply": gf.multiply}.items():
    OPS[_name] = Op(_function, getattr(torch, _name), 2, fits=_broadcast)
OPS["divide"] = Op(
    lambda a, b: a / (b * b + 0.5), lambda a, b: a / (b * b + 0.5), 2, fits=_broadcast,
)  # fmt: skip
OPS["power"] = Op(  # PyTorch's mixed derivative at exponent 0 is 0, which is wrong
    lambda a, b: (a * a + 0.5) ** gf.tanh(b), lambda a, b: (a * a + 0.5) ** torch.tanh(b), 2, fits=_broadcast,
    kink=lambda a, b: _nearest(b, 0),
)  # fmt: skip
OPS["power by a number"] = Op(
    lambda x, p: x**p, lambda x, p: x**p, parameters=lambda draw, x: {"p": draw(st.sampled_from([0, 1, 2, 3]))}
)
for _name in ("maximum", "minimum"):
    OPS[_name] = Op(getattr(gf, _name), getattr(torch, _name), 2, fits=_broadcast, kink=_apart)
OPS["where"] = Op(
    lambda c, a, b: gf.where(c > 0, a, b), lambda c, a, b: torch.where(c > 0, a, b), 3,
    fits=lambda c, a, b: _broadcast(c, a) and _broadcast(c, b) and _broadcast(a, b),
    kink=lambda c, a, b: _nearest(c, 0),
)  # fmt: skip
OPS["matmul"] = Op(
    gf.matmul, torch.matmul, 2,
    fits=lambda a, b: a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0],
)  # fmt: skip
OPS["matmul with the transpose"] = Op(
    lambda a, b: a @ b.T, lambda a, b: a @ b.T, 2,
    fits=lambda a, b: a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1] and a.shape[0] * b.shape[0] <= 20_000,
)  # fmt: skip
OPS["linear"] = Op(
    lambda x, w, b: gf.linear(x, w, b[:, 0], activation="tanh"),
    lambda x, w, b: torch.tanh(torch.nn.functional.linear(x, w, b[:, 0])), 3,
    fits=lambda x, w, b: x.ndim == w.ndim == b.ndim == 2 and x.shape[1] == w.shape[1] and b.shape[0] == w.shape[0]
    and b.shape[1] > 0 and x.shape[0] * w.shape[0] <= 20_000 and _below(2, x @ w.T + b[:, 0]),
)  # fmt: skip


def _fits_below(most: float) -> Callable[..., bool]:
    return lambda x: _below(most, x)


for _name, _theirs in {
    "negative": torch.negative, "exp": torch.exp, "expm1": torch.expm1, "square": torch.square, "sin": torch.sin,
    "cos": torch.cos, "softplus": torch.nn.functional.softplus, "silu": torch.nn.functional.silu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "tanh": torch.tanh, "sigmoid": torch.sigmoid,
}.items():  # fmt: skip
    # where a slope is 1 - out^2 or 1 - out, its roundings grow with x
    OPS[_name] = Op(getattr(gf, _name), _theirs, fits=_fits_below(_MOST.get(_name, math.inf)))
OPS["log"] = Op(lambda x: gf.log(x * x + 0.25), lambda x: torch.log(x * x + 0.25))
OPS["log1p"] = Op(lambda x: gf.log1p(x * x), lambda x: torch.log1p(x * x))
OPS["sqrt"] = Op(lambda x: gf.sqrt(x * x + 0.25), lambda x: torch.sqrt(x * x + 0.25))
for _name, _theirs in {
    "abs": torch.abs, "sign": torch.sign, "relu": torch.relu, "leaky_relu": torch.nn.functional.leaky_relu,
    "elu": torch.nn.functional.elu,
}.items():  # fmt: skip
    OPS[_name] = Op(getattr(gf, _name), _theirs, kink=lambda x: _nearest(x, 0))
OPS["clip"] = Op(
    lambda x: gf.clip(x, -1.0, 1.5), lambda x: torch.clamp(x, -1.0, 1.5), kink=lambda x: _nearest(x, -1, 1.5)
)


def _reduced(function: Any) -> Any:
    """Return PyTorch's reduction, for which an empty tuple of axes would mean all axes."""
    return lambda x, axis, keepdims: x * 1 if axis == () else function(x, _dims(x, axis), keepdim=keepdims)


for _name in ("sum", "mean"):
    OPS[_name] = Op(
        getattr(gf, _name), _reduced(getattr(torch, _name)), parameters=_axes,
        fits=lambda x, axis, keepdims: _count(x, axis) > 0,
    )  # fmt: skip
for _name, _sign in {"max": 1.0, "min": -1.0}.items():
    OPS[_name] = Op(
        getattr(gf, _name), _reduced(getattr(torch, "a" + _name)), parameters=_axes,
        fits=lambda x, axis, keepdims: _count(x, axis) > 0,
        kink=lambda x, axis, keepdims, s=_sign: _gap(x, axis, s),
    )  # fmt: skip
OPS["logsumexp"] = Op(
    gf.logsumexp, lambda x, axis, keepdims: torch.logsumexp(x, _dims(x, axis), keepdim=keepdims), parameters=_axes,
    fits=lambda x, axis, keepdims: axis != () and _count(x, axis) > 0,
)  # fmt: skip


def _least_deviation(x: Any, axis: Any, **_: Any) -> float:
    return _nearest(torch.std(x, _dims(x, axis), correction=0), 0)


def _constant_or_not(x: Any, axis: Any, **_: Any) -> bool:
    """Return whether no standard deviation is close to 0 but not 0: its gradient would be rounding noise."""
    if axis == () or not x.numel():
        return False
    deviations = torch.std(x, _dims(x, axis), correction=0)
    return bool(((deviations == 0) | (deviations > 0.05)).all())


OPS["var"] = Op(
    gf.var, lambda x, axis, keepdims: torch.var(x, _dims(x, axis), correction=0, keepdim=keepdims), parameters=_axes,
    fits=lambda x, axis, keepdims: axis != () and _count(x, axis) > 0,
)  # fmt: skip
OPS["std"] = Op(
    gf.std, lambda x, axis, keepdims: torch.std(x, _dims(x, axis), correction=0, keepdim=keepdims), parameters=_axes,
    fits=_constant_or_not, kink=_least_deviation,
)  # fmt: skip
OPS["prod"] = Op(
    gf.prod, lambda x, axis, keepdims: torch.prod(x, axis[0], keepdim=keepdims),
    parameters=lambda draw, x: {"axis": (draw(st.integers(0, x.ndim - 1)),), "keepdims": True} if x.ndim else None,
    fits=lambda x, axis, keepdims: x.shape[axis[0]] <= 6,
)  # fmt: skip
OPS["cumulative_sum"] = Op(gf.cumulative_sum, lambda x, axis: torch.cumsum(x, axis), parameters=_one_axis)
for _name in ("softmax", "log_softmax"):
    OPS[_name] = Op(getattr(gf, _name), lambda x, axis, n=_name: getattr(torch, n)(x, axis), parameters=_one_axis)
OPS["softmax of padded rows"] = Op(  # shorter rows are padded with minus infinity
    lambda x, n: gf.softmax(gf.where(gf.arange(x.shape[-1]) < n, x, -math.inf), axis=-1),
    lambda x, n: torch.softmax(torch.where(torch.arange(x.shape[-1]) < n, x, -math.inf), -1),
    parameters=lambda draw, x: {"n": draw(st.integers(1, x.shape[-1]))} if x.ndim and x.shape[-1] else None,
)  # fmt: skip
OPS["logsumexp of padded rows"] = Op(
    lambda x, n: gf.logsumexp(gf.where(gf.arange(x.shape[-1]) < n, x, -math.inf), axis=-1),
    lambda x, n: torch.logsumexp(torch.where(torch.arange(x.shape[-1]) < n, x, -math.inf), -1),
    parameters=OPS["softmax of padded rows"].parameters,
)  # fmt: skip
OPS["layer_norm"] = Op(
    lambda x: gf.layer_norm(x, x.shape[-1:]), lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]),
    # rows that hardly vary are magnified; two numbers keep only their signs
    fits=lambda x: x.ndim > 0 and x.shape[-1] > 3 and x.numel() > 0 and float(torch.std(x, -1).min()) > 0.1,
)  # fmt: skip

OPS["pad with zeros"] = Op(
    lambda x, after: gf.pad(x, ((0, 0),) * (x.ndim - 1) + ((1, after),)),
    lambda x, after: torch.nn.functional.pad(x, (1, after)),
    parameters=lambda draw, x: {"after": draw(st.integers(0, 2))} if x.ndim else None,
)  # fmt: skip
OPS["rows of zeros below"] = Op(
    lambda x, n: gf.pad(x, ((0, n),) + ((0, 0),) * (x.ndim - 1)),
    lambda x, n: torch.nn.functional.pad(x, (0, 0) * (x.ndim - 1) + (0, n)),
    parameters=lambda draw, x: {"n": draw(st.integers(1, 2))} if x.ndim else None,
)  # fmt: skip
OPS["flip"] = Op(lambda x, axis: gf.flip(x, axis=axis), lambda x, axis: torch.flip(x, (axis,)), parameters=_one_axis)
OPS["reshape"] = Op(lambda x: x.reshape(-1), lambda x: x.reshape(-1))
OPS["transpose"] = Op(lambda x: gf.matrix_transpose(x), lambda x: x.mT, fits=lambda x: x.ndim >= 2)
OPS["permute_dims"] = Op(
    lambda x, axes: gf.permute_dims(x, axes), lambda x, axes: torch.permute(x, axes),
    parameters=lambda draw, x: {"axes": tuple(draw(st.permutations(range(x.ndim))))},
)  # fmt: skip
OPS["expand_dims"] = Op(lambda x: gf.expand_dims(x, 0), lambda x: torch.unsqueeze(x, 0), fits=lambda x: x.ndim < 4)
OPS["squeeze"] = Op(gf.squeeze, torch.squeeze)
OPS["broadcast_to"] = Op(
    lambda x: gf.broadcast_to(x, (3, *x.shape)), lambda x: torch.broadcast_to(x, (3, *x.shape)),
    fits=lambda x: x.ndim < 4 and x.numel() <= 5000,
)  # fmt: skip
OPS["concat"] = Op(
    lambda a, b: gf.concat([a, b, a], axis=0), lambda a, b: torch.cat([a, b, a], 0), 2,
    fits=lambda a, b: a.ndim == b.ndim > 0 and a.shape[1:] == b.shape[1:] and a.shape[0] + b.shape[0] <= 3000,
)  # fmt: skip
OPS["stack"] = Op(
    lambda a, b: gf.stack([a, b], axis=-1), lambda a, b: torch.stack([a, b], -1), 2,
    fits=lambda a, b: a.shape == b.shape and a.ndim < 4,
)  # fmt: skip
OPS["split, its parts multiplied"] = Op(
    lambda x: gf.multiply(*gf.split(x, 2)), lambda x: torch.mul(*torch.tensor_split(x, 2)),
    fits=lambda x: x.ndim > 0 and x.shape[0] > 0 and x.shape[0] % 2 == 0,
)  # fmt: skip
OPS["rows one by one"] = Op(
    lambda x: gf.stack([row * (i + 1) for i, row in enumerate(x[:4])]),
    lambda x: torch.stack([row * (i + 1) for i, row in enumerate(x[:4])]), fits=lambda x: x.ndim > 0 and x.shape[0] > 0,
)  # fmt: skip
OPS["slice"] = Op(lambda x: x[..., 1:], lambda x: x[..., 1:], fits=lambda x: x.ndim > 0)
OPS["an element of each row"] = Op(
    lambda x: x[..., -1], lambda x: x[..., -1], fits=lambda x: x.ndim > 0 and x.shape[-1] > 0
)


def _rows(draw: Any, x: Any) -> dict[str, Any] | None:
    if not x.ndim or not x.shape[0]:
        return None
    return {"rows": draw(st.lists(st.integers(0, x.shape[0] - 1), min_size=1, max_size=5))}


OPS["take"] = Op(
    lambda x, rows: gf.take(x, gf.tensor(rows, dtype="int64"), axis=0),
    lambda x, rows: x[torch.tensor(rows)],
    parameters=_rows,
)
OPS["rows by index"] = Op(
    lambda x, rows: x[gf.tensor(rows, dtype="int64")], lambda x, rows: x[torch.tensor(rows)], parameters=_rows
)
OPS["rows by mask"] = Op(
    lambda x, rows: x[gf.tensor([i in rows for i in range(x.shape[0])])],
    lambda x, rows: x[torch.tensor([i in rows for i in range(x.shape[0])])],
    parameters=lambda draw, x: _rows(draw, x) if x.ndim and x.shape[0] <= 64 else None,
)  # fmt: skip
OPS["along a sorted axis"] = Op(
    lambda x: gf.take_along_axis(x, gf.argsort(x.detach(), axis=-1), axis=-1),
    lambda x: torch.sort(x, dim=-1, stable=True)[0],
    fits=lambda x: x.ndim > 0 and x.shape[-1] > 1,
    kink=lambda x: float(torch.diff(torch.sort(x, -1)[0], dim=-1).min()) if x.numel() else math.inf,
)  # fmt: skip

for _name in ("mse_loss", "l1_loss", "huber_loss"):
    OPS[_name] = Op(
        getattr(gf, _name), getattr(torch.nn.functional, _name), 2,
        fits=lambda a, b: a.shape == b.shape and a.numel() > 0,
        kink=lambda a, b, n=_name: math.inf if n == "mse_loss" else _nearest(a - b, 0) if n == "l1_loss" else _nearest(
            (a - b).abs(), 1),
    )  # fmt: skip
OPS["binary_cross_entropy_with_logits"] = Op(
    lambda x: gf.binary_cross_entropy_with_logits(x, gf.full_like(x, 0.25)),
    lambda x: torch.nn.functional.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.25)),
    fits=lambda x: x.numel() > 0, kink=lambda x: _nearest(x, 0),
)  # fmt: skip
OPS["cross_entropy"] = Op(
    lambda x, reduction, smoothing: gf.cross_entropy(
        x, gf.tensor(np.arange(x.shape[0]) % x.shape[1]), reduction=reduction, label_smoothing=smoothing),
    lambda x, reduction, smoothing: torch.nn.functional.cross_entropy(
        x, torch.arange(x.shape[0]) % x.shape[1], reduction=reduction, label_smoothing=smoothing),
    parameters=lambda draw, x: {
        "reduction": draw(st.sampled_from(["mean", "none"])), "smoothing": draw(st.sampled_from([0.0, 0.1]))},
    fits=lambda x, **_: x.ndim == 2 and x.numel() > 0,
)  # fmt: skip

# ---------------------------------------------------------------------- drawing

_SHAPES = [
    (),
    (1,),
    (3,),
    (4,),
    (3, 4),
    (4, 3),
    (4, 4),
    (1, 4),
    (3, 1),
    (2, 3, 4),
    (2, 1, 4),
    (0, 3),
    (1500,),
    (1500, 3),
    (1500, 3),
    (300, 2, 3),
]


def _leaf(draw: Any, dtype: str, rng: np.random.Generator) -> np.ndarray:
    shape = draw(st.sampled_from(_SHAPES))
    kind = draw(st.sampled_from(["normal", "eighths", "constant", "constant rows"]))
    if kind == "normal":
        x = rng.normal(size=shape)
    elif kind == "eighths":  # many are equal, and short sums are exact
        x = rng.integers(-12, 13, shape) / 8
    else:
        x = np.full(shape, draw(st.sampled_from([0.0, 0.125, -1.0, 1.5])))
        if kind == "constant rows" and x.ndim > 1:
            x = x + np.arange(shape[0]).reshape(-1, *[1] * (x.ndim - 1)) % 3
    return np.asarray(x).astype(dtype)


_NAMES = sorted(OPS) + 5 * ["sum", "mean", "var", "std", "cumulative_sum", "softmax", "add", "multiply"]
"""The operations to draw from: sums, and operations with broadcasting, more often than others."""


@st.composite
def programs(draw: Any, dtype: str, smooth: bool = False) -> Program:
    """Draw programs of up to 8 operations on 1 to 3 leaves of a dtype; `smooth`: leaves too keep away from kinks."""
    program = Program(dtype, seed=draw(st.integers(0, 2**31)))
    rng = np.random.default_rng(program.seed)
    program.leaves = [_leaf(draw, dtype, rng) for _ in range(draw(st.integers(1, 3)))]
    values = [torch.from_numpy(x.astype("float64")) for x in program.leaves]
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from(_NAMES))
        op = OPS[name]
        # mostly use the last value, so that programs are deep
        operands = tuple(
            len(values) - 1 if draw(st.booleans()) else draw(st.integers(0, len(values) - 1)) for _ in range(op.arity)
        )
        x = [values[i] for i in operands]
        parameters = op.parameters(draw, x[0])
        if parameters is None or not op.fits(*x, **parameters):
            continue
        exact = not smooth and all(i < len(program.leaves) for i in operands)
        if not exact and op.kink(*x, **parameters) < MARGIN[dtype]:
            continue
        value = op.theirs(*x, **parameters)
        if value.numel() > 20_000 or (value.numel() and not float(value.abs().max()) < LARGEST[dtype]):
            continue
        program.steps.append((name, operands, parameters))
        values.append(value)
    used = {i for _, operands, _ in program.steps for i in operands}
    program.outputs = [i for i in range(len(values)) if i not in used][-3:]
    return program


# ---------------------------------------------------------------------- running


def cotangents(program: Program, values: Sequence[Any]) -> list[np.ndarray]:
    """Return the factors of the outputs in their weighted sum: eighths, which are exact in all dtypes."""
    rng = np.random.default_rng(program.seed + 1)
    return [np.asarray(rng.integers(-8, 9, tuple(values[i].shape)) / 8) for i in program.outputs]


def _run(program: Program, in_torch: bool, tensors: list[Any], after: Callable[[Any], Any] = lambda x: x) -> list[Any]:
    values = list(tensors)
    for name, operands, parameters in program.steps:
        op = OPS[name]
        function = op.theirs if in_torch else op.ours
        values.append(
            after(function(*[after(values[i]) for i in operands], **parameters))
        )  # each use rounds a gradient
    return values


def signs(like: Any, rng: Any) -> Any:
    """Return 1 or -1 for each element, at random."""
    return torch.randint(0, 2, like.shape, generator=rng, dtype=like.dtype) * 2 - 1


class _Perturbed(torch.autograd.Function):
    """Return x with value and gradient each perturbed at random by a relative `size`."""

    @staticmethod
    def forward(context: Any, x: Any, size: float, tiny: float, rng: Any) -> Any:
        context.options = size, tiny, rng
        return x * (1 + size * signs(x, rng))

    @staticmethod
    def backward(context: Any, g: Any) -> Any:
        size, tiny, rng = context.options
        return g + (size * g.abs() + torch.where(g == 0, 0.0, tiny)) * signs(g, rng), None, None, None


@dataclass
class Results:
    """Return the values of all steps, and the gradients of the leaves (zeros for unused leaves), as NumPy arrays."""

    values: list[np.ndarray]
    gradients: list[np.ndarray]
    second: list[np.ndarray] = field(default_factory=list)

    def __iter__(self) -> Any:
        yield from ((f"value v{i}", x) for i, x in enumerate(self.values))
        yield from ((f"gradient of v{i}", x) for i, x in enumerate(self.gradients))
        yield from ((f"second gradient of v{i}", x) for i, x in enumerate(self.second))


def ours(program: Program, second: bool = False) -> Results:
    """Run the program in gradflow, in its dtype, on the current device."""
    leaves = [gf.tensor(x, requires_grad=True) for x in program.leaves]
    values = _run(program, False, leaves)
    weights = [gf.tensor(c, dtype=program.dtype) for c in cotangents(program, values)]
    outputs = [values[i] for i in program.outputs]
    total = None
    for v, c in zip(outputs, weights, strict=True):
        term = (v * c).sum()
        total = term if total is None else total + term
    total.backward(create_graph=second)
    first = [x.grad for x in leaves]
    results = Results(
        [host(v) for v in values],
        [_dense(host(g) if g is not None else None, x) for g, x in zip(first, program.leaves, strict=True)],
    )
    if second:
        for x in leaves:
            x.grad = None
        squares = [(g * g).sum() for g in first if g is not None and g.requires_grad]
        if squares:
            sum(squares[1:], squares[0]).backward()
        results.second = [
            _dense(None if x.grad is None else host(x.grad), v) for x, v in zip(leaves, program.leaves, strict=True)
        ]
    return results


def theirs(program: Program, second: bool = False, noise: int | None = None) -> Results:
    """Run the program in PyTorch, in float64; `noise`: a seed, to perturb it by roundings of the program's dtype."""
    leaves = [torch.from_numpy(x.astype("float64")).requires_grad_() for x in program.leaves]
    after: Callable[[Any], Any] = lambda x: x  # noqa: E731
    if noise is not None:
        rng = torch.Generator().manual_seed(noise)
        roundings = PERTURBATION[program.dtype]
        size, tiny = roundings * eps(program.dtype), roundings * float(np.finfo(program.dtype).smallest_subnormal)
        after = lambda x: _Perturbed.apply(x, size, tiny, rng)  # noqa: E731
    values = _run(program, True, leaves, after)
    total = sum(
        (values[i] * torch.from_numpy(c)).sum()
        for i, c in zip(program.outputs, cotangents(program, values), strict=True)
    )
    if not second:
        total.backward()
        return Results([v.detach().numpy() for v in values], [_dense(x.grad, x) for x in leaves])
    first = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
    squares = sum(((g * g).sum() for g in first if g is not None), torch.zeros((), dtype=torch.float64))
    later = [None] * len(leaves)
    if squares.requires_grad:
        later = torch.autograd.grad(squares, leaves, allow_unused=True)
    return Results(
        [v.detach().numpy() for v in values],
        [_dense(g, x) for g, x in zip(first, leaves, strict=True)],
        [_dense(g, x) for g, x in zip(later, leaves, strict=True)],
    )


def _dense(gradient: Any, like: Any) -> np.ndarray:
    if gradient is None:
        return np.zeros(tuple(like.shape), str(like.dtype).removeprefix("torch."))
    return gradient.detach().numpy(force=True) if isinstance(gradient, torch.Tensor) else np.asarray(gradient)


def assert_agrees(program: Program, second: bool = False) -> None:
    """Raise AssertionError if gradflow's results differ from PyTorch's in float64 by more than rounding explains."""
    expected = theirs(program, second)
    noisy = [theirs(program, second, seed) for seed in range(PERTURBED_RUNS)]
    got = ours(program, second)
    tiny = float(np.finfo(program.dtype).smallest_subnormal)
    for (what, x), (_, reference), *others in zip(got, expected, *noisy, strict=True):
        assert x.shape == reference.shape, f"{what} has shape {x.shape}; PyTorch's has {reference.shape}"
        assert what.startswith("second") or x.dtype == program.dtype, f"{what} is {x.dtype}"
        with np.errstate(invalid="ignore", over="ignore"):
            moved = np.max([np.abs(y - reference) for _, y in others], axis=0, initial=0.0)
            # if no perturbation moves an element, its neighbours show how large its terms were
            bound = ROUNDINGS * (moved + 0.1 * np.max(moved, initial=0.0) + tiny) + 4 * eps(program.dtype) * np.abs(
                reference
            )
            wrong = ~(np.isclose(x, reference, rtol=0, atol=bound, equal_nan=True))
        if wrong.any():
            i = tuple(int(k[0]) for k in np.nonzero(wrong)) if wrong.ndim else ()
            raise AssertionError(f"{what}, element {i}: {x[i]!r} for {reference[i]!r}, more than {bound[i]:.3g} apart")
