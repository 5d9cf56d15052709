"""Random tensors: uniform and normal numbers, permutations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import as_dtype, default_dtype
from gradflow.random.generator import Generator, default_generator
from gradflow.random.quantile import normal_quantile
from gradflow.shapes import shape_from
from gradflow.tensor import Tensor


def uniform(
    shape: int | Sequence[int],
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: Any = None,
    device: DeviceLike | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers distributed uniformly between `low` and `high`, computed in float64 and rounded to `dtype`.

    shape: an integer or a sequence of integers.
    low, high: finite bounds, low <= high (default 0 and 1); rounding to `dtype` may give the bounds themselves.
    dtype: a floating-point dtype (default, that of `use_dtype`: float32).
    device: default, the current device.
    generator: default, `gradflow.random.default_generator`.

    Raises ValueError for invalid bounds, TypeError for a dtype that is not floating-point or not on the device.

    >>> import gradflow as gf
    >>> x = gf.random.uniform(1000, low=-1.0, high=3.0)
    >>> -1.0 <= x.min().item(), x.max().item() < 3.0, round(x.mean().item())
    (True, True, 1)
    """
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"uniform needs finite low <= high; got low={low}, high={high}")

    def values(F: Backend, words: Array) -> Array:
        return F.add(F.multiply(unit_interval(words, F), float(high) - float(low)), float(low))

    return sample(shape, _floating(dtype), device, generator, values)


def normal(
    shape: int | Sequence[int],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: Any = None,
    device: DeviceLike | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normally distributed numbers, computed in float64 to about 1e-15 and rounded to `dtype`.

    shape: an integer or a sequence of integers.
    mean, std: finite; std >= 0 (default 0 and 1).
    dtype, device, generator: as for `uniform`.

    Raises ValueError for an invalid mean or std, TypeError as `uniform` does.

    >>> import gradflow as gf
    >>> x = gf.random.normal((2, 3), generator=gf.Generator(0))
    >>> x.shape, x.dtype
    ((2, 3), gradflow.float32)
    >>> (gf.random.normal((2, 3), generator=gf.Generator(0)) == x).all().item()
    True
    """
    if not (math.isfinite(mean) and 0 <= std < math.inf):
        raise ValueError(f"normal needs a finite mean and a finite std >= 0; got mean={mean}, std={std}")

    def values(F: Backend, words: Array) -> Array:
        return F.add(F.multiply(normal_quantile(unit_interval(words, F), F), float(std)), float(mean))

    return sample(shape, _floating(dtype), device, generator, values)


def permutation(n: int, *, device: DeviceLike | None = None, generator: Generator | None = None) -> Tensor:
    """The integers 0 to n - 1 in random order, int64: the permutation that sorts n random 64-bit words.

    device, generator: as for `uniform`.

    >>> import gradflow as gf
    >>> order = gf.random.permutation(5, generator=gf.Generator(0))
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4]
    """
    return sample((n,), "int64", device, generator, lambda F, words: F.argsort(words, axis=-1, stable=True))


def unit_interval(words: Array, F: Backend) -> Array:
    """The float64 numbers (k + 1/2) / 2^52 in (0, 1), without rounding, where k is the upper 52 bits of each word."""
    shift = F.full((), 12, dtype=F.dtypes["uint64"])
    k = F.astype(F.bitwise_right_shift(words, shift), F.dtypes["float64"])
    return F.multiply(F.add(k, 0.5), 2.0**-52)


def _floating(dtype: Any) -> str:
    """The name of a dtype, by default the default dtype; TypeError unless it is floating-point."""
    found = as_dtype(default_dtype.get() if dtype is None else dtype)
    if not found.is_floating:
        raise TypeError(f"random numbers must be floating-point; got {found}")
    return found.name


def sample(
    shape: int | Sequence[int],
    dtype: str,
    device: DeviceLike | None,
    generator: Generator | None,
    values: Callable[[Backend, Array], Array],
) -> Tensor:
    """A tensor with the values that `values` computes from random 64-bit words, one word for each element."""
    backend = get_backend(device)
    backend.native_dtype(dtype)
    shape = shape_from(shape)
    n = math.prod(shape)
    source = backend if backend.uint64_works else get_backend("cpu")
    key, counter = (default_generator if generator is None else generator).draw(n)
    result = values(source, source.random_bits(key, counter, n))
    if source.supports(dtype):
        result = source.astype(result, source.dtypes[dtype])
    if source is not backend:
        result = backend.from_host(source.to_host(result))
    return Tensor(backend.astype(backend.reshape(result, shape), backend.dtypes[dtype], copy=False), backend)
