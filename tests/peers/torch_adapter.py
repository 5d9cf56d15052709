"""PyTorch's operations in terms of gradflow's: the OpInfos that both have, and the samples that gradflow cannot run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradflow as gf


@dataclass(frozen=True)
class Exclusion:
    """Samples that gradflow cannot run or has other results for: `matches(input, *args, **kwargs)`, and the reason."""

    reason: str
    matches: Callable[..., bool]


@dataclass(frozen=True)
class Shared:
    """A PyTorch operation; `call` takes its arguments and computes the result with gradflow.

    take: selects those of PyTorch's results that gradflow has too.
    dtype: the dtype of the samples.
    order: how many derivatives PyTorch can compute.
    """

    call: Callable[..., Any]
    exclusions: tuple[Exclusion, ...] = ()
    take: Callable[[Any], Any] = lambda out: out
    dtype: str = "float64"
    order: int = 2


SHARED: dict[str, Shared] = {}
"""By the name of the OpInfo, with ":variant" for variants."""

NOT_SHARED: dict[str, str] = {
    "nn.functional.softplus": "each sample has beta and threshold; the samples of logsigmoid run gradflow's softplus",
    "softmax:with_dtype": "each sample has dtype=, which gradflow leaves to astype",
    "log_softmax:with_dtype": "each sample has dtype=, which gradflow leaves to astype",
    "addmm": "each sample has alpha and beta, which gradflow has no argument for",
    "nn.functional.softmin": "softmax of -x, which gradflow has no name for",
    "nn.functional.celu": "gradflow has no such activation",
}
"""OpInfos similar to gradflow operations, but without a sample that can run."""


def shared(names: str, call: Callable[..., Any], *exclusions: Exclusion, **options: Any) -> None:
    """Map OpInfos, given by names separated by spaces."""
    for name in names.split():
        SHARED[name] = Shared(call, exclusions, **options)


def option(names: str, reason: str) -> Exclusion:
    """Exclude samples with one of these keyword arguments, which gradflow does not have."""
    wanted = set(names.split())
    return Exclusion(reason, lambda *args, **kwargs: bool(wanted & set(kwargs)))


def first_dim(dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Return the argument after the input, given as `dim` or by position."""
    return kwargs.get("dim", dim)


AXIS_OF_0D = Exclusion(
    "a 0-d tensor has no axes in gradflow; PyTorch lets it have one, 0 or -1",
    lambda x, *args, **kwargs: x.ndim == 0 and first_dim(*args, **kwargs) not in (None, [], ()),
)
NO_ELEMENTS = Exclusion(
    "gradflow raises where there are no elements to normalize over",
    lambda x, dim, *args, **kwargs: x.ndim > 0 and x.shape[dim] == 0,
)
ALPHA = option("alpha", "gradflow has no factor alpha; multiply first")
DTYPE = option("dtype", "gradflow's functions take no dtype=; use astype")
MEMORY_FORMAT = option("memory_format", "gradflow has no memory formats")

# ---------------------------------------------------------------------- element by element

shared("add", gf.add, ALPHA)
shared("sub", gf.subtract, ALPHA)
shared("rsub", lambda x, y: gf.subtract(y, x), ALPHA)
shared("mul", gf.multiply)
shared("div:no_rounding_mode true_divide", lambda x, y, rounding_mode=None: gf.divide(x, y))
shared("pow float_power", gf.power)
shared("maximum max:binary clamp_min", gf.maximum)
shared("minimum min:binary clamp_max", gf.minimum)
for _name, _operator in {"add": "add", "sub": "sub", "mul": "mul", "div": "truediv", "pow": "pow"}.items():
    shared(f"__r{_name}__", getattr(gf.Tensor, f"__r{_operator}__"))
shared("neg", gf.negative)
shared("positive", lambda x: +x)
shared("exp", gf.exp)
shared("log", gf.log)
shared("log1p", gf.log1p)
shared("expm1", gf.expm1)
shared("sqrt", gf.sqrt)
shared("square", gf.square)
shared("reciprocal", lambda x: 1 / x)
shared("abs", gf.abs)
shared("sign sgn", gf.sign)
shared("floor", gf.floor)
shared("ceil", gf.ceil)
shared("round", gf.round)
shared("sin", gf.sin)
shared("cos", gf.cos)
shared("tanh", gf.tanh)
for _name in ("log2", "log10", "exp2", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "trunc", "remainder"):
    shared(_name, getattr(gf, _name))
shared("erf", gf.erf)
shared("logaddexp", gf.logaddexp)
shared("floor_divide", gf.floor_divide)
shared("__rmod__", gf.Tensor.__rmod__)
shared("div:floor_rounding", lambda x, y, rounding_mode: gf.floor_divide(x, y))
shared("sigmoid", gf.sigmoid)


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    """`gf.clip` takes numbers as limits; for tensors, use maximum and minimum."""
    if low is not None:
        x = gf.maximum(x, low)
    return x if high is None else gf.minimum(x, high)


shared("clamp", _clamp)
shared("where", lambda x, condition, other: gf.where(condition, x, other))
shared("masked_fill", gf.masked_fill)
shared("isclose", gf.isclose)
shared("nan_to_num", lambda x, nan=None, **limits: gf.nan_to_num(x, 0.0 if nan is None else nan, **limits))
shared("eq", gf.equal)
shared("ne", gf.not_equal)
shared("lt", gf.less)
shared("le", gf.less_equal)
shared("gt", gf.greater)
shared("ge", gf.greater_equal)
shared("isfinite", gf.isfinite)
shared("isnan", gf.isnan)
shared("isinf", gf.isinf)
shared("logical_and", gf.logical_and, dtype="bool")
shared("logical_or", gf.logical_or, dtype="bool")
shared("logical_xor", gf.logical_xor, dtype="bool")
shared("logical_not", gf.logical_not, dtype="bool")
shared("clone", lambda x: x.clone())
shared("float", lambda x: gf.astype(x, "float32"), MEMORY_FORMAT)
shared("double", lambda x: gf.astype(x, "float64"), MEMORY_FORMAT)
shared("long", lambda x: gf.astype(x, "int64"), MEMORY_FORMAT)
shared("bool", lambda x: gf.astype(x, "bool"), MEMORY_FORMAT)

# ---------------------------------------------------------------------- activations

shared("nn.functional.relu", lambda x, inplace=False: gf.relu(x))
shared("nn.functional.leaky_relu", lambda x, negative_slope=0.01, inplace=False: gf.leaky_relu(x, negative_slope))
shared("nn.functional.elu", lambda x, alpha=1.0, inplace=False: gf.elu(x, alpha))
shared("nn.functional.gelu", lambda x, approximate="none": gf.gelu(x, approximate))
shared("nn.functional.silu", lambda x, inplace=False: gf.silu(x))
shared("nn.functional.selu", lambda x, inplace=False: gf.selu(x))
shared("nn.functional.mish", lambda x, inplace=False: gf.mish(x))
shared("nn.functional.softsign", gf.softsign)
shared("nn.functional.hardtanh", lambda x, min_val=-1.0, max_val=1.0, inplace=False: gf.hardtanh(x, min_val, max_val))
shared("nn.functional.relu6", lambda x, inplace=False: gf.hardtanh(x, 0, 6))
shared("nn.functional.prelu", gf.prelu)
shared("nn.functional.glu", lambda x, dim=-1: gf.glu(x, dim))
shared("nn.functional.logsigmoid", lambda x: -gf.softplus(-x))
shared("softmax", gf.softmax, AXIS_OF_0D, NO_ELEMENTS)
shared("log_softmax", gf.log_softmax, AXIS_OF_0D, NO_ELEMENTS)
shared(
    "nn.functional.dropout",
    lambda x, p=0.5, training=True, inplace=False: gf.dropout(x, p, training),
    Exclusion("another random stream", lambda x, p=0.5, training=True, **_: training and 0 < p < 1),
    Exclusion("gradflow takes p < 1", lambda x, p=0.5, training=True, **_: p == 1),
)

# ---------------------------------------------------------------------- reductions


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        return function(x, axis=tuple(dim) if isinstance(dim, list) else dim, keepdims=keepdim)

    return call


def _deviation(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        x: Any, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, correction: float | None = None
    ) -> Any:
        if isinstance(dim, bool):  # var(x, unbiased)
            dim, unbiased = None, dim
        if unbiased is not None:
            correction = int(unbiased)
        correction = 1 if correction is None else correction  # PyTorch's default; gradflow's is 0
        return function(x, axis=tuple(dim) if isinstance(dim, list) else dim, correction=correction, keepdims=keepdim)

    return call


shared("sum", _reduction(gf.sum), AXIS_OF_0D)
shared("mean", _reduction(gf.mean), AXIS_OF_0D)
shared("prod", _reduction(gf.prod), AXIS_OF_0D, DTYPE)
shared("amax", _reduction(gf.max), AXIS_OF_0D)
shared("amin", _reduction(gf.min), AXIS_OF_0D)
shared("max:reduction_no_dim", gf.max)
shared("min:reduction_no_dim", gf.min)
shared(
    "max:reduction_with_dim",
    lambda x, dim, keepdim=False: (gf.max(x, dim, keepdim), gf.argmax(x, dim, keepdim)),
    AXIS_OF_0D,
)
shared(
    "min:reduction_with_dim",
    lambda x, dim, keepdim=False: (gf.min(x, dim, keepdim), gf.argmin(x, dim, keepdim)),
    AXIS_OF_0D,
)
shared("all", _reduction(gf.all), AXIS_OF_0D)
shared("any", _reduction(gf.any), AXIS_OF_0D)
shared("argmax", _reduction(gf.argmax), AXIS_OF_0D)
shared("argmin", _reduction(gf.argmin), AXIS_OF_0D)
shared("var var:unbiased", _deviation(gf.var))
shared("std std:unbiased", _deviation(gf.std))
shared("var_mean", lambda x, dim=None, **kw: (_deviation(gf.var)(x, dim, **kw), _mean_like(x, dim, **kw)))
shared("std_mean", lambda x, dim=None, **kw: (_deviation(gf.std)(x, dim, **kw), _mean_like(x, dim, **kw)))
shared("logsumexp", _reduction(gf.logsumexp), AXIS_OF_0D)
shared("cumsum", gf.cumulative_sum, AXIS_OF_0D, DTYPE)
shared("cumprod", gf.cumulative_prod, AXIS_OF_0D, DTYPE)
OF_0D = Exclusion("a 0-d tensor has no axes in gradflow", lambda x, *args, **kwargs: x.ndim == 0)


def _sort(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> tuple[Any, Any]:
    return gf.sort(x, dim, descending), gf.argsort(x, axis=dim, descending=descending)


def _quantile(x: Any, q: Any, dim: Any = None, keepdim: bool = False, interpolation: str = "linear") -> Any:
    return gf.quantile(x, q.tolist() if isinstance(q, gf.Tensor) else q, dim, keepdim)


def _norm(x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, **options: Any) -> Any:
    p = 2 if p == "fro" else options.get("ord", p)
    return gf.norm(x, p, tuple(dim) if isinstance(dim, list) else dim, keepdim)


def _unique(x: Any, sorted: bool, return_inverse: bool, return_counts: bool, dim: None) -> list[Any]:
    parts = [gf.unique_values(x)]
    parts += [gf.unique_inverse(x)[1]] if return_inverse else []
    return [*parts, gf.unique_counts(x)[1]] if return_counts else parts


shared("sort", _sort, OF_0D)
shared("msort", lambda x: gf.sort(x, 0))
shared("topk", lambda x, k, dim=-1, largest=True, sorted=True: gf.topk(x, k, dim, largest), OF_0D)
shared(
    "median",
    lambda x, dim=None, keepdim=False: gf.median(x, dim, keepdim),
    AXIS_OF_0D,
    Exclusion(
        "of an even number of elements, PyTorch takes the lower one in the middle, gradflow the mean of the two",
        lambda x, dim=None, keepdim=False: (x.numel() if dim is None or not x.ndim else x.shape[dim]) % 2 == 0,
    ),
    take=lambda out: out[0] if isinstance(out, tuple) else out,
)
shared(
    "quantile",
    _quantile,
    Exclusion(AXIS_OF_0D.reason, lambda x, q, dim=None, **kwargs: x.ndim == 0 and dim is not None),
    Exclusion(
        "q is a number in gradflow, so it has no gradient",
        lambda x, q, dim=None, **_: (
            not isinstance(q, float) and x.ndim > 0 and (x.numel() if dim is None else x.shape[dim]) > 1
        ),
    ),
)
shared("norm", _norm, AXIS_OF_0D)
shared("norm:fro norm:inf", _norm)
shared("linalg.vector_norm", lambda x, ord=2, dim=None, keepdim=False, **kw: _norm(x, ord, dim, keepdim), AXIS_OF_0D)
shared(
    "unique",
    _unique,
    Exclusion("gradflow has no unique rows", lambda x, dim=None, **kwargs: dim is not None and x.ndim > 1),
)
shared("argsort", lambda *args, **options: _sort(*args, **options)[1], OF_0D)


def _mean_like(x: Any, dim: Any, keepdim: bool = False, **_: Any) -> Any:
    return _reduction(gf.mean)(x, dim, keepdim)


# ---------------------------------------------------------------------- products

shared("matmul mm bmm mv dot", gf.matmul)
shared("__rmatmul__", gf.Tensor.__rmatmul__)
shared("outer", gf.outer)
shared("einsum", lambda operands, subscripts: gf.einsum(subscripts, *operands))
shared("nn.functional.linear", gf.linear)
NEGATIVE_EPS = Exclusion(
    "gradflow raises for a negative eps, which may make NaN",
    lambda *args, eps=0.0, **kwargs: any(isinstance(x, float) and x < 0 for x in (*args, eps)),
)
shared("nn.functional.layer_norm", gf.layer_norm, NEGATIVE_EPS)
shared("native_layer_norm", gf.layer_norm, NEGATIVE_EPS, take=lambda out: out[0], order=1)  # its second needs a weight
shared("nn.functional.rms_norm", gf.rms_norm, NEGATIVE_EPS)
shared(
    "nn.functional.batch_norm",
    gf.batch_norm,
    Exclusion("gradflow raises where there are no values to normalize over", lambda x, *args, **kwargs: not x.numel()),
    Exclusion(
        "gradflow raises for a momentum outside [0, 1]",
        lambda *args, training=False, momentum=0.1, **kwargs: training and not 0 <= momentum <= 1,
    ),
)
shared("nn.functional.embedding", lambda weight, indices: gf.take(weight, indices, axis=0))
shared(
    "nn.functional.one_hot",
    lambda labels, num_classes: gf.one_hot(labels, num_classes, dtype="int64"),
    Exclusion("gradflow does not count the classes", lambda labels, num_classes: num_classes == -1),
    dtype="int64",
)

# ---------------------------------------------------------------------- shapes


def _parts(x: Any, sizes: Sequence[int], dim: int) -> list[Any]:
    return gf.split(x, list(itertools.accumulate(sizes))[:-1], axis=dim)


def _split(x: Any, size: Any, dim: int = 0) -> list[Any]:
    n = x.shape[dim]
    return _parts(x, [min(size, n - at) for at in range(0, n, size)] if isinstance(size, int) else size, dim)


def _narrow(x: Any, dim: int, start: int, length: int) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, start + length),)]


def _pad(x: Any, widths: Sequence[int], *mode_and_value: Any) -> Any:
    """PyTorch's pairs start with the last axis; axes without a pair are not padded."""
    pairs = [tuple(widths[i : i + 2]) for i in range(0, len(widths), 2)]
    value = mode_and_value[-1] if mode_and_value else 0.0
    return gf.pad(x, [*[(0, 0)] * (x.ndim - len(pairs)), *reversed(pairs)], value)


NEGATIVE_PADDING = Exclusion(
    "gradflow's pad does not cut; index instead", lambda x, widths, *args, **kwargs: min(widths) < 0
)
MINUS_ONE = Exclusion("gradflow's broadcast_to takes no -1", lambda x, shape: -1 in shape)
NOT_OF_LENGTH_1 = Exclusion(
    "gradflow refuses to squeeze an axis that is not of length 1; PyTorch leaves it",
    lambda x, dim=(): x.ndim > 0 and any(x.shape[d] != 1 for d in (dim if isinstance(dim, tuple) else (dim,))),
)

shared("mT", gf.matrix_transpose)
shared("T", lambda x: x.T)
shared("t", lambda x: x.T)
shared("transpose", gf.swapaxes, AXIS_OF_0D)
shared("movedim", gf.moveaxis)
shared("permute", gf.permute_dims)
shared("reshape view", gf.reshape)
shared("flatten", lambda x: x.flatten(), option("start_dim end_dim", "gradflow flattens all axes; use reshape"))
shared("ravel", lambda x: x.flatten())
shared("broadcast_to", gf.broadcast_to)
shared("expand", gf.broadcast_to, MINUS_ONE)
shared("expand_as", lambda x, other: gf.broadcast_to(x, other.shape))
shared("squeeze squeeze:multiple", gf.squeeze, AXIS_OF_0D, NOT_OF_LENGTH_1)
shared("unsqueeze", gf.expand_dims)
shared(
    "cat",
    lambda xs, dim=0: gf.concat(xs, axis=dim),
    Exclusion(
        "a tensor of shape (0,) is no wildcard for other shapes in gradflow",
        lambda xs, *args, **kwargs: len({x.ndim for x in xs}) > 1,
    ),
)
shared("stack", lambda xs, dim=0: gf.stack(xs, axis=dim))
shared("hstack", lambda xs: gf.concat(xs, axis=0 if xs[0].ndim == 1 else 1))
shared("split split:list_args split_with_sizes", _split)
shared("chunk", lambda x, chunks, dim=0: _split(x, -(-x.shape[dim] // chunks), dim))
shared("unbind", lambda x, dim=0: [_select(x, dim, i) for i in range(x.shape[dim])])
shared("roll", lambda x, shifts, dims=None: gf.roll(x, shifts, dims))
shared("diag", gf.diag)
shared("tril", gf.tril)
shared("triu", gf.triu)
shared("flip", lambda x, dims: gf.flip(x, axis=tuple(dims)))
shared("fliplr", lambda x: gf.flip(x, axis=1))
shared("flipud", lambda x: gf.flip(x, axis=0))
shared("tile repeat", gf.tile)
shared(
    "repeat_interleave",
    lambda x, repeats, dim=None: gf.repeat(x, repeats, axis=dim),
    Exclusion(
        "gradflow repeats each element as often as the next", lambda x, repeats, **_: not isinstance(repeats, int)
    ),
)
shared("nn.functional.pad:constant constant_pad_nd", _pad, NEGATIVE_PADDING)

# ---------------------------------------------------------------------- indices


def _select(x: Any, dim: int, index: int) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (index,)]


def _other_lengths(x: Any, dim: Any = None, index: Any = None) -> bool:
    if dim is None or x.ndim != index.ndim or not x.ndim:
        return True
    return any(n != m for i, (n, m) in enumerate(zip(x.shape, index.shape, strict=True)) if i != dim % x.ndim)


OTHER_LENGTHS = "gradflow's indices have the lengths of x but for the axis; PyTorch broadcasts, cuts or flattens"

shared("__getitem__", lambda x, key: x[key])
shared("select", _select)
shared("narrow", _narrow)
shared("index_select", lambda x, dim, index: gf.take(x, index, axis=dim), AXIS_OF_0D)
shared("take", lambda x, index: gf.take(gf.reshape(x, -1), index))
shared(
    "gather",
    lambda x, dim, index: gf.gather(x, index, axis=dim),
    Exclusion("gradflow's indices have as many axes as x", lambda x, dim, index: x.ndim != index.ndim or not x.ndim),
)
shared("scatter", lambda x, dim, index, values: gf.scatter(x, index, values, dim), OF_0D)
shared("scatter_add", lambda x, dim, index, values: gf.scatter(x, index, values, dim, add=True), OF_0D)
shared(
    "index_put",
    lambda x, indices, values, accumulate: (
        x.at[tuple(indices)].add(values) if accumulate else x.at[tuple(indices)].set(values)
    ),
)
shared(
    "take_along_dim",
    lambda x, index, dim=None: gf.take_along_axis(x, index, axis=dim),
    Exclusion(OTHER_LENGTHS, lambda x, index, dim=None: _other_lengths(x, dim, index)),
)

# ---------------------------------------------------------------------- losses

shared("nn.functional.mse_loss", gf.mse_loss)
shared("nn.functional.l1_loss", gf.l1_loss)
shared("nn.functional.huber_loss", gf.huber_loss)
shared("nn.functional.smooth_l1_loss", gf.smooth_l1_loss)
shared("nn.functional.binary_cross_entropy", gf.binary_cross_entropy, order=1)  # PyTorch's second derivative is inexact
shared("nn.functional.kl_div", gf.kl_div)
shared(
    "nn.functional.gaussian_nll_loss",
    gf.gaussian_nll_loss,
    Exclusion("gradflow's losses refuse unequal shapes", lambda x, target, var, **options: x.shape != target.shape),
)
shared("nn.functional.cross_entropy", gf.cross_entropy)
shared("nn.functional.nll_loss", gf.nll_loss)
shared("nn.functional.binary_cross_entropy_with_logits", gf.binary_cross_entropy_with_logits)

# ---------------------------------------------------------------------- making tensors

shared("zeros_like", lambda x, dtype=None, device=None: gf.zeros_like(x, dtype=dtype))
shared("ones_like", lambda x, dtype=None, device=None: gf.ones_like(x, dtype=dtype))
shared("full_like", lambda x, value, dtype=None, device=None: gf.full_like(x, value, dtype=dtype))
shared("linspace", gf.linspace)
shared("eye", lambda rows, columns=None, requires_grad=False, **kwargs: gf.eye(rows, columns, **kwargs))
shared("arange", lambda start, end=None, step=1, **kwargs: gf.arange(start, end, step, **kwargs))
shared("zeros", gf.zeros)
shared("ones", gf.ones)
shared("full", gf.full)


# ---------------------------------------------------------------------- arguments


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the values in nested tuples, lists and dicts."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (tuple, list)):
        for part in tree:
            yield from leaves(part)
    else:
        yield tree


def converted(tree: Any, made: dict[int, gf.Tensor]) -> Any:
    """Return arguments for gradflow; `made` caches the tensor for each PyTorch tensor, by identity."""
    if isinstance(tree, dict):
        return {key: converted(part, made) for key, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)([converted(part, made) for part in tree])
    if type(tree).__name__ == "dtype":
        return str(tree).removeprefix("torch.")
    if not hasattr(tree, "requires_grad"):
        return tree
    if id(tree) not in made:
        made[id(tree)] = gf.tensor(tree.detach().numpy(), requires_grad=tree.requires_grad)
    return made[id(tree)]
