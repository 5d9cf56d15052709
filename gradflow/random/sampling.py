"""Random tensors: uniform, normal, permutations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradflow.backend import Array, Backend
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import DEFAULT, as_dtype
from gradflow.random.generator import Generator, default_generator
from gradflow.random.quantile import _normal_quantile
from gradflow.shapes import shape_from
from gradflow.tensor import Tensor


def _words(generator: Generator | None, n: int, backend: Backend) -> Array:
    generator = default_generator if generator is None else generator
    return backend.random_bits(*generator.draw(n), n)


def _fractions(words: Array, F: Backend) -> Array:
    """float64 in (0, 1): the upper 52 bits and a half, exactly."""
    shift = F.full((), 12, dtype=F.dtypes["uint64"])
    whole = F.astype(F.bitwise_right_shift(words, shift), F.dtypes["float64"])
    return F.multiply(F.add(whole, 0.5), 2.0**-52)


def _source(backend: Backend) -> Backend:
    """The backend that makes random numbers for this one: itself, or NumPy's where it does not compute with uint64."""
    return backend if backend.uint64_works else get_backend("cpu")


def _placed(values: Array, shape: tuple[int, ...], dtype: str, source: Backend, backend: Backend) -> Tensor:
    """The values of `source` as a tensor on `backend`."""
    if source.supports(dtype):
        values = source.astype(values, source.dtypes[dtype])
    if source is not backend:
        values = backend.from_host(source.to_host(values))
    return Tensor(backend.astype(backend.reshape(values, shape), backend.dtypes[dtype], copy=False), backend)


def _prepare(shape: int | Sequence[int], dtype: Any, device: DeviceLike | None) -> tuple[tuple[int, ...], str, Backend]:
    backend = get_backend(device)
    found = as_dtype(DEFAULT if dtype is None else dtype)
    if not found.is_floating:
        raise TypeError(f"random numbers are floating-point; got {found}")
    if not backend.supports(found.name):
        raise TypeError(f"device {backend.device} does not support {found}")
    return shape_from(shape), found.name, backend


def uniform(
    shape: int | Sequence[int],
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: Any = None,
    device: DeviceLike | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers spread evenly between `low` and `high`, computed in float64 and rounded to `dtype` (float32).

    Raises ValueError for a `low` above `high`, or one that is not finite.
    """
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"uniform needs finite low <= high; got low={low}, high={high}")
    shape, name, backend = _prepare(shape, dtype, device)
    F = _source(backend)
    u = _fractions(_words(generator, math.prod(shape), F), F)
    values = F.add(F.multiply(u, float(high) - float(low)), float(low))
    return _placed(values, shape, name, F, backend)


def normal(
    shape: int | Sequence[int],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    dtype: Any = None,
    device: DeviceLike | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normally distributed numbers, computed in float64 (to about 1e-15) and rounded to `dtype` (float32).

    Raises ValueError for a negative `std`, or a `mean` or `std` that is not finite.
    """
    if not (math.isfinite(mean) and 0 <= std < math.inf):
        raise ValueError(f"normal needs a finite mean and a finite std >= 0; got mean={mean}, std={std}")
    shape, name, backend = _prepare(shape, dtype, device)
    F = _source(backend)
    z = _normal_quantile(_fractions(_words(generator, math.prod(shape), F), F), F)
    values = F.add(F.multiply(z, float(std)), float(mean))
    return _placed(values, shape, name, F, backend)


def permutation(n: int, *, device: DeviceLike | None = None, generator: Generator | None = None) -> Tensor:
    """The numbers 0 to n - 1 in random order, int64: what sorts n random words. The same on every device."""
    backend = get_backend(device)
    F = _source(backend)
    (n,) = shape_from((n,))
    return _placed(F.argsort(_words(generator, n, F), axis=-1, stable=True), (n,), "int64", F, backend)
