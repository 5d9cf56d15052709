"""Wrong arguments of every operation: the error is gradflow's own, never that of an array library or of Python."""

from __future__ import annotations

import inspect
import itertools
import linecache
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradflow_numpy
import numpy as np
import pytest
from cases import FUNCTIONS

import gradflow as gf

PACKAGES = [Path(module.__file__).parent for module in (gf, gradflow_numpy)]
NAMES = [
    *(name for name in FUNCTIONS if name != "getitem"),
    "any", "all", "argmax", "argmin", "argsort", "equal", "less", "logical_and", "logical_not", "isfinite", "unbind",
    "one_hot", "zeros_like", "ones_like", "full_like", "full", "zeros", "ones", "eye", "arange", "linspace",
]  # fmt: skip
SHAPES: list[tuple[int, ...]] = [(), (3,), (0,), (2, 3), (3, 2), (2, 3, 4), (3, 4, 3)]


class Unknown:
    """An object of a class that no library knows."""


def arguments() -> list[Any]:
    """Tensors of several shapes and dtypes, and values that users pass in their place by mistake."""
    tensors = [gf.tensor(np.ones(shape, "float32")) for shape in SHAPES]
    tensors += [gf.tensor(np.ones((2, 3), dtype)) for dtype in ("bool", "int64", "uint8", "float16")]
    odd = [
        None, "a", Unknown(), np.ones(3), [1.0, 2.0], 1j, 0, 1, 7, -9, 2.5, (0, 1), (2, -1), ((1, 2), (3, 4)), (0, 0),
        True, range(2), {1: 2}, [tensors[1], tensors[3]], np.int64(1), float("nan"),
    ]  # fmt: skip
    return [*tensors, *odd]


def calls(name: str) -> Iterator[tuple[Any, ...]]:
    """All combinations of one and two arguments, and several hundred of more."""
    parameters = inspect.signature(getattr(gf, name)).parameters.values()
    least = sum(p.default is p.empty for p in parameters)
    pool = arguments()
    for n in range(max(least, 1), min(len(parameters), 4) + 1):
        if n < 3:
            yield from itertools.product(pool, repeat=n)
        else:
            rng = np.random.default_rng(n)
            for _ in range(400):
                yield tuple(pool[i] for i in rng.integers(0, len(pool), n))


def is_our_own(error: BaseException) -> bool:
    """Whether a line of gradflow raised an error, rather than something that it called."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    ours = any(Path(file).is_relative_to(package) for package in PACKAGES)
    return ours and linecache.getline(file, trace.tb_lineno).strip().startswith("raise ")


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_of_gradflow(name: str) -> None:
    function = getattr(gf, name)
    errors: list[str] = []
    refused = 0
    for given in calls(name):
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                function(*given)
        except Exception as error:
            refused += 1
            if not is_our_own(error) or not str(error):
                shown = ", ".join(str(x.shape) if isinstance(x, gf.Tensor) else repr(x) for x in given)
                errors.append(f"{name}({shown}): {type(error).__name__}: {error}")
    assert not errors, "\n".join(errors[:5])
    assert refused
