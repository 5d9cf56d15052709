"""A case, its arguments on a device in several layouts, and the comparison of its results with the reference."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.backend import KERNELS, Backend, registry
from gradflow.testing.conformance import REALS
from gradflow.testing.tolerances import assert_agree, eps

LAYOUTS = ("contiguous", "strided", "transposed")


@functools.cache
def composed(backend: Backend) -> Backend:
    """Return a backend of the same device that has only the composed defaults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADFLOW_FUSED", "0")
        plain: Backend = type(backend)(backend.device.index)
    assert set(plain.kernels().values()) <= {"composed", "host"}, (
        "GRADFLOW_FUSED=0 does not turn the native kernels off"
    )
    return plain


REFERENCE = composed(gf.get_backend("cpu"))
"""NumPy with the composed defaults: the reference for kernels."""


def both(backend: Backend) -> list[tuple[str, Backend]]:
    """Return the backend and, if it has native kernels, one with only the composed defaults."""
    native = not set(backend.kernels().values()) <= {"composed", "host"}
    return [("native", backend), ("composed", composed(backend))] if native else [("composed", backend)]


@dataclass(frozen=True)
class Case:
    """A call of the kernel `subject` with `arguments`, whose floating arrays are cast to the dtype under test.

    call: `call(backend, *arguments)` returns the arrays to compare (default: the kernel's result).
    bound: `bound(eps, *arguments)` returns the largest error of each, from the float64 value (default: they must equal
        those of the composed default in the same dtype).
    changes: the positions of the arguments that the kernel may change.
    special: whether infinities and NaN are among the arguments.
    aliases: whether a result may share memory with an argument.
    """

    subject: str
    name: str
    arguments: tuple[Any, ...]
    bound: Callable[..., Sequence[Any]] | None = None
    call: Callable[..., Sequence[Any]] | None = None
    changes: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = REALS
    special: bool = False
    aliases: bool = False

    def run(self, backend: Backend, arguments: Sequence[Any]) -> list[Any]:
        """Return the results on a backend."""
        if self.call is not None:
            return list(self.call(backend, *arguments))
        return [getattr(backend, self.subject)(*arguments)]

    def __str__(self) -> str:
        return f"{self.subject}-{self.name}"


def cast(x: Any, dtype: str) -> Any:
    """Return a copy of an argument, with its floating arrays in this dtype."""
    if type(x) in (tuple, list):
        return type(x)(cast(part, dtype) for part in x)
    if not isinstance(x, np.ndarray):
        return x
    return x.astype(dtype) if x.dtype.kind == "f" else x.copy()


def rounded(x: Any) -> Any:
    """Return an argument with its floating arrays in float32, rounded to bfloat16."""
    if type(x) in (tuple, list):
        return type(x)(rounded(part) for part in x)
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        return x
    bits = np.asarray(x, np.float32).view(np.uint32)
    finite = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), finite, bits & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)


def leaves(x: Any) -> list[Any]:
    """Return the arrays among arguments."""
    if isinstance(x, (tuple, list)):
        return [array for part in x for array in leaves(part)]
    return [x] if hasattr(x, "dtype") else []


class Placed:
    """Arguments on a device in one of the layouts, and a check that a call left them unchanged.

    "strided": other values lie between the elements (NaN for floating dtypes); "transposed": the axes are stored in
    reverse order.
    """

    def __init__(self, backend: Backend, arguments: Sequence[Any], layout: str) -> None:
        self.backend, self.layout = backend, layout
        self.originals = [np.copy(x) for x in leaves(arguments)]
        self.wholes: list[tuple[Any, Any]] = []
        self.arguments = tuple(self._place(x) for x in arguments)

    def _place(self, x: Any) -> Any:
        if type(x) in (tuple, list):
            return type(x)(self._place(part) for part in x)
        if not isinstance(x, np.ndarray):
            return x
        if self.layout == "transposed" and x.ndim > 1:
            return self.backend.permute_dims(self.backend.from_host(x.T.copy()), tuple(range(x.ndim))[::-1])
        if self.layout == "strided" and x.ndim:
            filler = np.nan if x.dtype.kind == "f" else True if x.dtype.kind == "b" else np.iinfo(x.dtype).max
            wide: Any = np.full((*x.shape, 2), filler, x.dtype)
            wide[..., 0] = x
            whole = self.backend.from_host(wide)
            self.wholes.append((whole, wide[..., 1].copy()))
            return self.backend.getitem(whole, (..., 0))
        return self.backend.from_host(x)

    def check_unchanged(self, what: str, changes: Sequence[int] = ()) -> None:
        """Check that only the arguments in `changes` changed, and that nothing was written between elements."""
        position = 0
        for i, argument in enumerate(self.arguments):
            for x in leaves([argument]):
                if i not in changes:
                    found = self.backend.to_host(x)
                    same = np.array_equal(found, self.originals[position], equal_nan=found.dtype.kind == "f")
                    assert same, f"{what}: argument {i} was changed"
                position += 1
        for whole, filler in self.wholes:
            found = self.backend.to_host(whole)[..., 1]
            assert np.array_equal(found, filler, equal_nan=found.dtype.kind == "f"), f"{what}: wrote between elements"


def compare_result(what: str, found: Any, expected: Any, dtype: str, bound: Any) -> None:
    """Check that a result is within its bound, or equal if there is none, and has the dtype under test if floating."""
    if bound is None:
        assert_agree(what, found, expected)
        return
    wanted = np.dtype(dtype) if expected.dtype.kind == "f" else expected.dtype
    assert found.dtype == wanted, f"{what}: {found.dtype}, not {wanted}"
    smallest = float(np.finfo(dtype).smallest_subnormal)
    room = (2 if dtype == "float64" else 1) * bound + 64 * smallest  # a float64 reference is rounded too
    assert_agree(what, found, expected, bound=np.nan_to_num(np.broadcast_to(room, expected.shape)))


def check_case(backend: Backend, case: Case, dtype: str) -> None:
    """Check a case on a backend, with native and with composed kernels, in every layout."""
    given = cast(case.arguments, dtype)
    exact = cast(given, "float64")
    quiet: Any = functools.partial(np.errstate, all="ignore") if case.special else contextlib.nullcontext
    with quiet():
        results = case.run(REFERENCE, cast(given, dtype) if case.bound is None else cast(exact, "float64"))
    expected = [None if x is None else np.array(x) for x in results]
    bounds: Sequence[Any] = [None] * len(expected)
    if case.bound is not None:
        with np.errstate(all="ignore"):
            bounds = case.bound(eps(dtype), *exact)
    assert len(bounds) == len(expected)
    for kind, chosen in both(backend):
        for layout in LAYOUTS:
            what = f"{case} {dtype} {layout}, {kind} on {backend.device}"
            placed = Placed(chosen, given, layout)
            with quiet():
                found = case.run(chosen, placed.arguments)
            for i, (x, y, bound) in enumerate(zip(found, expected, bounds, strict=True)):
                assert (x is None) == (y is None), f"{what}: result {i} is {x!r}"
                if y is not None:
                    compare_result(f"{what}, result {i}", chosen.to_host(x), y, dtype, bound)
            placed.check_unchanged(what, case.changes)
            if not case.aliases:
                changed = [id(x) for i in case.changes for x in leaves([placed.arguments[i]])]
                check_memory(what, [x for x in found if x is not None and id(x) not in changed], placed.arguments)


def check_memory(what: str, results: Sequence[Any], arguments: Sequence[Any]) -> None:
    """Check that no result shares memory with an argument, as far as NumPy can tell."""
    for x, y in itertools.product(results, leaves(arguments)):
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            assert not np.shares_memory(x, y), f"{what}: a result shares memory with an argument"


@contextlib.contextmanager
def reference_device() -> Iterator[str]:
    """Inside a `with`, provide a device that is NumPy with only the composed defaults; yields its name."""
    cpu = type(gf.get_backend("cpu"))
    composed_kernels = {name: getattr(Backend, name) for name in KERNELS}
    gf.register_backend("reference", type("Reference", (cpu,), {"name": "reference", **composed_kernels}))
    try:
        yield "reference"
    finally:
        registry.unregister_backend("reference")
