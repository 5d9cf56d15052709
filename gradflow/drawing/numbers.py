"""Numbers and arrays as short text, for every picture and table of a computational graph."""

from __future__ import annotations

import math
from typing import Any

from gradflow.drawing.graph import Numbers

_WIDEST = 44
"""The characters of the longest line of an array in full, unless one number is longer."""


def short(x: Any) -> str:
    """A number to 4 significant digits; an integer or a bool in full.

    >>> [short(x) for x in (-12.0, 0.73105858, 1.2e-5, float("inf"), -0.0, 65536)]
    ['-12', '0.7311', '1.2e-05', 'inf', '0', '65536']
    """
    return f"{x + 0.0:.4g}" if isinstance(x, float) else str(x)


def signature(numbers: Numbers) -> str:
    """The shape, dtype and device of an array.

    >>> signature(Numbers((2, 3), "float32", "cuda:0", None, 0.0, 1.0, -2.0, 2.0))
    '(2, 3) float32 cuda:0'
    """
    return f"{numbers.shape} {numbers.dtype} {numbers.device}"


def describe(numbers: Numbers, most_lines: int | None = None) -> list[str]:
    """The numbers of an array as lines: all of them if it is small, else mean, standard deviation and range.

    most_lines: of an array in full; one that takes more is not small.

    Lines of an array in full are aligned in a font of fixed width.

    >>> describe(Numbers((2, 2), "float32", "cpu", [[0.1, 0.5], [-0.3, 0.8]], 0.275, 0.4, -0.3, 0.8))
    ['[[ 0.1  0.5]', ' [-0.3  0.8]]']
    >>> describe(Numbers((64, 784), "float32", "cpu", None, 0.13066, 0.3081, 0.0, 1.0))
    ['mean 0.1307 std 0.3081', 'range 0 ... 1']
    """
    full = [] if numbers.values is None else _in_full(numbers.values)
    if full and (most_lines is None or len(full) <= most_lines):
        return full
    if numbers.mean is None or numbers.deviation is None:
        return []
    return [
        f"mean {short(numbers.mean)} std {short(numbers.deviation)}",
        f"range {short(numbers.least)} ... {short(numbers.greatest)}",
    ]


def warning(numbers: Numbers) -> str | None:
    """What to say of elements that are NaN or infinite; None if all are finite.

    >>> warning(Numbers((3, 4), "float32", "cpu", None, 0.0, 1.0, -1.0, 1.0, nonfinite=2))
    '2 of 12 not finite'
    >>> warning(Numbers((), "float32", "cpu", float("nan"), None, None, None, None, nonfinite=1))
    'not finite'
    """
    if not numbers.nonfinite:
        return None
    size = math.prod(numbers.shape)
    return f"{numbers.nonfinite} of {size} not finite" if numbers.shape else "not finite"


def _in_full(values: Any) -> list[str]:
    """All numbers of an array, or of a scalar, given as nested lists."""
    import numpy as np  # here, for its layout of arrays: `import gradflow` does not load it

    array = np.array(values, dtype=object)
    if array.ndim == 0:
        return [short(array.item())]
    width = max((len(short(x)) for x in array.ravel().tolist()), default=0)
    text = np.array2string(
        array,
        max_line_width=_WIDEST,
        separator=" ",
        threshold=array.size + 1,
        formatter={"all": lambda x: short(x).rjust(width)},
    )
    return text.splitlines()
