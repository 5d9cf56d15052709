"""Every kernel of a backend, and its composed default on the same device, against the composed default on NumPy.

A case runs for each floating dtype and for arrays that are contiguous, strided (with NaN between the elements) and
transposed. Results must be within the bound of the case from the float64 value; masks, random bits, moves and
selections must be equal bit for bit. Arguments that the kernel may not change must stay unchanged.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gradflow.backend import KERNELS, Backend
from gradflow.testing.conformance import REALS, about
from gradflow.testing.conformance.harness import REFERENCE, Case, both, cast, check_case, rounded
from gradflow.testing.conformance.kernel_cases import CASES
from gradflow.testing.conformance.kernel_cases.inputs import normal
from gradflow.testing.tolerances import assert_agree, eps

CHECKS = [pytest.param(case, dtype, id=f"{case}-{dtype}") for case in CASES for dtype in case.dtypes]


def test_every_kernel_has_a_case() -> None:
    """The kit covers every kernel."""
    tested = {case.subject for case in CASES}
    assert tested == set(KERNELS), f"no cases of {sorted(set(KERNELS) - tested)}"
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("case", "dtype"), CHECKS)
def test_kernel(backend: Backend, case: Case, dtype: str) -> None:
    """A kernel and its composed default agree with the composed default on NumPy."""
    check_case(backend, case, dtype)


IN_BFLOAT16 = [case for case in CASES if case.dtypes == REALS and not case.special]


@pytest.mark.parametrize(("case", "dtype"), [pytest.param(c, "bfloat16", id=f"{c}-bfloat16") for c in IN_BFLOAT16])
def test_bfloat16(backend: Backend, case: Case, dtype: str) -> None:
    """If the backend has bfloat16, every kernel supports it: within the case's bound and one rounding of the result."""
    native, wide = backend.dtypes[dtype], backend.dtypes["float32"]
    given = rounded(case.arguments)

    def place(x: Any) -> Any:
        if type(x) in (tuple, list):
            return type(x)(place(part) for part in x)
        if not isinstance(x, np.ndarray):
            return x
        return backend.astype(backend.from_host(x), native) if x.dtype == np.float32 else backend.from_host(x)

    with np.errstate(all="ignore"):
        expected = case.run(REFERENCE, cast(given, "float64"))
        exact = cast(given, "float64")
        bounds = [None] * len(expected) if case.bound is None else case.bound(2.0**-7, *exact)
    found = case.run(backend, [place(x) for x in given])
    for x, y, bound in zip(found, expected, bounds, strict=True):
        assert (x is None) == (y is None)
        if y is None or np.asarray(y).dtype.kind != "f":
            continue
        assert backend.dtype_name(x.dtype) == dtype
        room = 2.0**-7 * np.abs(y) + (0.0 if bound is None else bound)
        assert_agree(str(case), backend.to_host(backend.astype(x, wide)), y, bound=np.nan_to_num(room))


@about("clip_global_norm")
@pytest.mark.parametrize("dtype", REALS)
def test_gradients_below_the_norm_are_left_alone(backend: Backend, dtype: str) -> None:
    """Bit for bit; gradients above the norm are scaled to it."""
    given = [normal((7,), 42).astype(dtype), normal((3, 2), 43).astype(dtype)]
    for _, chosen in both(backend):
        gradients = [chosen.from_host(g) for g in given]
        chosen.clip_global_norm(gradients, 1e4)
        for gradient, g in zip(gradients, given, strict=True):
            assert_agree("a gradient", chosen.to_host(gradient), g)
        chosen.clip_global_norm(gradients, 0.5)
        total = sum(float((chosen.to_host(g).astype("float64") ** 2).sum()) for g in gradients)
        assert abs(np.sqrt(total) - 0.5) < 20 * eps(dtype) + 1e-6


STEPS = [
    case for case in CASES if case.subject.endswith("_step") and case.dtypes == REALS and case.name.startswith("7-")
]
"""The cases of optimizer steps on 7 parameters."""


def stepped(
    chosen: Backend, case: Case, dtype: str, on_device: bool = False, broken: int | None = None, **results: Any
) -> list[Any]:
    """Do the step of a case, and return the arrays that it may change, on the host.

    on_device: whether its scalars are an array on the device. broken: the argument whose last element is infinite.
    results: the keyword arguments of the step.
    """
    arrays = [chosen.from_host(x) if isinstance(x, np.ndarray) else x for x in cast(case.arguments, dtype)]
    if on_device:
        arrays[-1] = chosen.from_host(np.array([float(x) for x in arrays[-1]]))
    if broken is not None:
        chosen.setitem(arrays[broken], -1, math.inf)
    getattr(chosen, case.subject)(*arrays, **results)
    return [None if arrays[i] is None else chosen.to_host(arrays[i]) for i in case.changes]


@about("sgd_step", "adam_step", "rmsprop_step", "moment_step")
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("case", STEPS, ids=str)
def test_a_step_with_its_scalars_on_the_device(backend: Backend, case: Case, dtype: str) -> None:
    """Gives the same bits as with the same numbers from the host."""
    for kind, chosen in both(backend):
        pairs = zip(stepped(chosen, case, dtype), stepped(chosen, case, dtype, on_device=True), strict=True)
        for expected, found in pairs:
            if expected is not None:
                assert_agree(f"{case}, {kind}", found, expected)


@about("sgd_step", "adam_step", "rmsprop_step", "moment_step")
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", STEPS, ids=str)
def test_a_step_with_a_half_copy(backend: Backend, case: Case, half: str) -> None:
    """The half array gets the new parameters, rounded, and the others get the same bits as without it."""
    if not backend.supports(half):
        pytest.skip(f"{backend.device} does not support {half}")
    for kind, chosen in both(backend):
        copied = chosen.zeros((7,), dtype=chosen.native_dtype(half))
        expected, found = stepped(chosen, case, "float32"), stepped(chosen, case, "float32", half=copied)
        for x, y in zip(found, expected, strict=True):
            if y is not None:
                assert_agree(f"{case}, {kind}", x, y)
        rounded = chosen.astype(chosen.from_host(expected[0]), chosen.dtypes[half])
        wide = chosen.dtypes["float32"]
        assert_agree(f"{case}, {kind}: the copy", *(chosen.to_host(chosen.astype(x, wide)) for x in (copied, rounded)))


@about("sgd_step", "adam_step", "rmsprop_step", "moment_step")
@pytest.mark.parametrize("case", STEPS, ids=str)
def test_a_step_that_is_skipped(backend: Backend, case: Case) -> None:
    """Changes nothing; a flag of 0 changes nothing about a step."""
    for kind, chosen in both(backend):
        copied = chosen.zeros((7,), dtype=chosen.dtypes["float16"]) if chosen.supports("float16") else None
        for flag in (0, 1):
            skip = chosen.asarray(flag, dtype=chosen.dtypes["int32"])
            found = stepped(chosen, case, "float32", on_device=True, skip=skip, half=copied if flag else None)
            given = cast(case.arguments, "float32")
            expected = [given[i] for i in case.changes] if flag else stepped(chosen, case, "float32")
            for x, y in zip(found, expected, strict=True):
                if y is not None:
                    assert_agree(f"{case}, {kind}, skip {flag}", x, y)
        if copied is not None:
            assert not chosen.to_host(copied).any()


@about("sgd_step", "adam_step", "rmsprop_step", "moment_step")
@pytest.mark.parametrize("case", STEPS, ids=str)
def test_a_step_that_is_not_finite(backend: Backend, case: Case) -> None:
    """Raises the flag `nonfinite` for an infinite gradient or parameter, unless it is skipped."""
    for kind, chosen in both(backend):
        int32 = chosen.dtypes["int32"]
        for broken, skip, expected in ((None, None, 0), (0, None, 1), (1, None, 1), (1, 0, 1), (1, 1, 0)):
            flag = None if skip is None else chosen.asarray(skip, dtype=int32)
            chosen.nonfinite = chosen.zeros((), dtype=int32)
            try:
                with np.errstate(all="ignore"):
                    stepped(chosen, case, "float32", broken=broken, skip=flag)
                found = int(chosen.to_host(chosen.nonfinite))
            finally:
                chosen.nonfinite = None
            assert found == expected, (
                f"{case}, {kind}: the flag is {found} with argument {broken} infinite, skip {skip}"
            )
