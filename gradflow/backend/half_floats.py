"""Computing with half floats (float16 and bfloat16) in float32, rounding once at the end.

Counts, factors, squares and small epsilons leave the range of half floats, and sums lose digits. So everything except
matrix products, which are left to the library, is computed in float32. `widened` converts arrays. Its callers differ in
what they convert and in what they round at the end:

- kernels and accurate sums, which are methods of a backend: `in_float32` rounds their results and the arrays that they
  change in place;
- gradient rules (`gradflow.autograd.backward`): a rule reads widened arrays, and the walk casts each gradient to the
  dtype of its input anyway;
- operations on a tensor and a Python number that half floats cannot hold (`gradflow.ops.table`): the result is rounded;
- array functions of CuPy that do not support bfloat16 (`gradflow_cupy.backend`): a float32 result is rounded.

Losses (`gradflow.ops.losses`) convert tensors instead, by recorded operations, so that gradients are rounded once, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])


def widened(x: Any, backend: Any, F: Any = None) -> Any:
    """`x` with the half floats in it as float32: an array, or a list, tuple or dict of arrays; others unchanged.

    F: the namespace whose `astype` converts, where `x` holds tensors or batches (default: the backend itself).
    """
    return _converted(backend if F is None else F, x, backend.half_dtypes, backend.single)


def in_float32(method: _Method, changes: tuple[int, ...] = ()) -> _Method:
    """Decorate a method of a backend: for half floats, it calls the backend's method of that name in float32.

    The dtype of the first argument, an array or a list of arrays, decides. Results are rounded to it; of the pair that
    a forward kernel returns, only the value is: the residual stays in float32.

    changes: the positions of the arguments that the method changes in place (default: none).
    """
    name = method.__name__

    @functools.wraps(method)
    def wide(self: Any, *arguments: Any, **options: Any) -> Any:
        first = arguments[0][0] if isinstance(arguments[0], (list, tuple)) else arguments[0]
        half = first.dtype
        if half not in self.half_dtypes:
            return method(self, *arguments, **options)
        given = widened(arguments, self)
        results = getattr(self, name)(*given, **widened(options, self))
        for i in changes:
            for array, value in zip(*map(_arrays, (arguments[i], given[i])), strict=True):
                self.setitem(array, ..., self.astype(value, half))
        if isinstance(results, tuple) and not name.endswith("_backward"):
            return self.astype(results[0], half), results[1]
        return _converted(self, results, (self.single,), half)

    return wide  # type: ignore[return-value]


def _converted(F: Any, x: Any, sources: tuple[Any, ...], target: Any) -> Any:
    if x.__class__ in (tuple, list):  # a NamedTuple holds options
        return x.__class__(_converted(F, part, sources, target) for part in x)
    if x.__class__ is dict:
        return {name: _converted(F, part, sources, target) for name, part in x.items()}
    native = getattr(getattr(x, "array", x), "dtype", None)  # of a tensor, that of its array
    return x if native is None or native not in sources else F.astype(x, target)


def _arrays(x: Any) -> Sequence[Any]:
    return x if isinstance(x, (list, tuple)) else () if x is None else (x,)
