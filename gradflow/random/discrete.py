"""Random integers: uniform ones, coin flips, and categories drawn by their weights.

Like the other random numbers, they are the same on every device: sums are of whole numbers below 2^53, which are exact
in any order, and all else is rounded exactly by IEEE 754.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import Any

from gradflow.backend import Array, Backend
from gradflow.backend.registry import DeviceLike
from gradflow.dtypes import as_dtype
from gradflow.interception import opaque_call
from gradflow.random.generator import Generator
from gradflow.random.quantile import log_of_half
from gradflow.random.sampling import sample, unit_interval
from gradflow.tensor import Tensor


def randint(
    shape: int | Sequence[int],
    *,
    high: int,
    low: int = 0,
    dtype: Any = "int64",
    device: DeviceLike | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Integers from `low` to `high` - 1, each with the same probability, up to 2^-64.

    shape: an integer or a sequence of integers.
    low, high: integers, low < high (default of low: 0).
    dtype: an integer dtype that holds them (default int64).
    device, generator: as for `uniform`.

    Raises ValueError for invalid bounds, TypeError for a dtype of other numbers or not on the device.

    >>> import gradflow as gf
    >>> dice = gf.random.randint(1000, low=1, high=7)
    >>> dice.min().item(), dice.max().item(), dice.dtype
    (1, 6, gradflow.int64)
    """
    found = as_dtype(dtype)
    if found.kind not in ("int", "uint"):
        raise TypeError(f"randint takes an integer dtype; got {found}")
    try:
        low, high = index(low), index(high)
    except TypeError:
        raise ValueError(f"randint needs integers low < high; got low={low!r}, high={high!r}") from None
    least, most = found.limits
    if not least <= low < high <= most + 1:
        raise ValueError(
            f"randint needs low < high, and numbers from {least} to {most} for {found}; got low={low}, high={high}"
        )

    def values(F: Backend, words: Array) -> Array:
        u64 = F.dtypes["uint64"]
        if high - low < 1 << 64:
            words = F.remainder(words, F.full((), high - low, dtype=u64))
        words = F.add(words, F.full((), low % (1 << 64), dtype=u64))  # modulo 2^64
        return words if found == "uint64" else F.astype(words, F.dtypes["int64"])

    return sample(shape, found.name, device, generator, values)


def bernoulli(p: Tensor, *, generator: Generator | None = None) -> Tensor:
    """1 with the probability p, else 0, for each element of p: a tensor of its shape, dtype and device.

    p: probabilities in [0, 1], of a floating-point dtype; they are right to 2^-53. For one probability, write
    `bernoulli(gradflow.full(shape, p))`.
    generator: default, `gradflow.random.default_generator`.

    No gradient flows to p. Raises TypeError for anything but a floating-point tensor, ValueError for numbers beyond
    [0, 1], which are looked for on the CPU only: elsewhere, that would wait for the device.

    >>> import gradflow as gf
    >>> gf.random.bernoulli(gf.tensor([0.0, 1.0, 1.0])).tolist()
    [0.0, 1.0, 1.0]
    >>> round(gf.random.bernoulli(gf.full(100_000, 0.4)).mean().item(), 1)
    0.4
    """
    F, wide = _weights("bernoulli", p)
    if F.device.type == "cpu" and p.size:
        _check_probabilities(F, wide)
    hit = F.less(_fractions(p.shape, F, generator), wide)
    return Tensor(F.astype(hit, p.array.dtype), F)


def multinomial(
    weights: Tensor, num_samples: int, *, replacement: bool = False, generator: Generator | None = None
) -> Tensor:
    """Categories drawn with probabilities in proportion to their weights, as int64.

    weights: numbers >= 0, of shape (C,) or (N, C), of a floating-point dtype; each row has a sum above 0.
    num_samples: how many to draw from each row, at least 1. The result has shape (num_samples,) or (N, num_samples).
    replacement: whether a category can be drawn more than once (default False: then at least `num_samples` weights of
    each row are above 0). Weights are rounded down to multiples of about 2^-52 C times the largest one then.
    generator: default, `gradflow.random.default_generator`.

    With replacement, by the inverse of the cumulative sum; it makes N x num_samples x C numbers. Without, the samples
    are the smallest of exponential variables with the weights as rates (Efraimidis and Spirakis 2006, "Weighted random
    sampling with a reservoir").

    Raises TypeError for anything but a floating-point tensor, ValueError for another shape, a number of samples that
    does not fit, or weights that do not, which are looked for on the CPU only.

    >>> import gradflow as gf
    >>> gf.random.multinomial(gf.tensor([0.0, 3.0, 0.0, 1.0]), 2).tolist() in ([1, 3], [3, 1])
    True
    """
    F, wide = _weights("multinomial", weights)
    if wide.ndim not in (1, 2) or not wide.shape[-1]:
        raise ValueError(f"multinomial takes weights of shape (C,) or (N, C), C > 0; got {weights.shape}")
    n, most = num_samples, wide.shape[-1]
    if isinstance(n, bool) or not isinstance(n, int) or n < 1 or (n > most and not replacement):
        at_most = "" if replacement else f" and at most {most}, the categories, without replacement"
        raise ValueError(f"multinomial needs an integer num_samples of at least 1{at_most}; got {num_samples!r}")
    if F.device.type == "cpu" and weights.size:
        _check_weights(F, wide, 1 if replacement else n)
    if not replacement:
        half = F.multiply(_fractions(weights.shape, F, generator), 0.5)
        exponential = F.negative(F.add(log_of_half(half, F), math.log(2)))
        drawn = F.greater(wide, 0.0)
        keys = F.divide(F.maximum(exponential, 2.0**-60), F.where(drawn, wide, 1.0))
        order = F.argsort(F.where(drawn, keys, math.inf), axis=-1, stable=True)
        return Tensor(F.astype(order[..., :n], F.dtypes["int64"]), F)
    # whole numbers, with a sum of at most 2^52
    share = F.divide(wide, F.max(wide, axis=-1, keepdims=True))
    whole = F.floor(F.multiply(share, 2.0 ** (52 - (most - 1).bit_length())))
    totals = F.cumulative_sum(whole, axis=-1)
    at = F.subtract(_fractions((*weights.shape[:-1], n), F, generator), 2.0**-53)  # in [0, 1 - 2^-52]
    at = F.multiply(at, totals[..., -1:])
    below = F.less_equal(F.expand_dims(totals, axis=-2), F.expand_dims(at, axis=-1))
    return Tensor(F.sum(F.astype(below, F.dtypes["int64"]), axis=-1), F)


def _weights(name: str, p: Any) -> tuple[Backend, Array]:
    """The backend of a tensor of numbers, and its array in float64."""
    if not isinstance(p, Tensor) or not p.dtype.is_floating:
        got = p.dtype if isinstance(p, Tensor) else type(p).__name__
        raise TypeError(f"{name} takes a floating-point tensor; got {got}: make one with gradflow.tensor")
    return p.backend, p.backend.astype(p.array, p.backend.native_dtype("float64"), copy=False)


def _fractions(shape: Sequence[int], F: Backend, generator: Generator | None) -> Array:
    """Random numbers in (0, 1), in float64."""
    return sample(shape, "float64", F.device, generator, lambda F, words: unit_interval(words, F)).array


@opaque_call
def _check_probabilities(F: Backend, p: Array) -> None:
    values = F.host_values(p)
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):  # also for NaN
        raise ValueError(f"bernoulli needs probabilities in [0, 1]; got numbers from {low:g} to {high:g}")


@opaque_call
def _check_weights(F: Backend, weights: Array, least: int) -> None:
    values = F.host_values(weights)
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"multinomial needs finite weights >= 0; got numbers from {low:g} to {high:g}")
    positive = (values > 0).sum(axis=-1).min().item()
    if positive < least:
        raise ValueError(
            f"multinomial needs {least} weights above 0 in each row, as many as it draws; there are {positive}"
            if least > 1
            else "multinomial needs a weight above 0 in each row"
        )
