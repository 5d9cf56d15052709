"""Every kernel of a backend, and its composed default on the same device, against the composed default on NumPy.

A case runs for each floating dtype and for arrays that are contiguous, strided (with NaN between the elements) and
transposed. Results must be within the bound of the case from the float64 value; masks, random bits, moves and
selections must be equal bit for bit. Arguments that the kernel may not change must stay unchanged.
"""

from __future__ import annotations

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
