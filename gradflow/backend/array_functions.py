"""The Array-API functions that a backend must have."""

from __future__ import annotations

from typing import Any

Array = Any
"""An array of a backend's own library."""

_UNARY = (
    "abs", "negative", "exp", "log", "log1p", "expm1", "log2", "log10", "sqrt", "square", "sign", "sin", "cos", "tan",
    "asin", "acos", "atan", "sinh", "cosh", "tanh", "floor", "ceil", "trunc", "round", "isfinite", "isinf", "isnan",
    "logical_not",
)  # fmt: skip
_BINARY = (
    "add", "subtract", "multiply", "divide", "floor_divide", "remainder", "pow", "atan2", "maximum", "minimum", "equal",
    "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or", "bitwise_and",
    "bitwise_xor", "bitwise_right_shift",
)  # fmt: skip

FUNCTION_GROUPS: dict[str, dict[str, str]] = {
    "Creation and type": {
        "asarray": "(obj, /, *, dtype=None)",
        "empty": "(shape, *, dtype=None)",
        "zeros": "(shape, *, dtype=None)",
        "ones": "(shape, *, dtype=None)",
        "full": "(shape, fill_value, *, dtype=None)",
        "arange": "(start, /, stop=None, step=1, *, dtype=None)",
        "zeros_like": "(x, /)",
        "ones_like": "(x, /)",
        "astype": "(x, dtype, /, *, copy=True)",
    },
    "Elementwise, one array": dict.fromkeys(_UNARY, "(x, /)"),
    "Elementwise, two arrays, or an array and a Python number": dict.fromkeys(_BINARY, "(x1, x2, /)"),
    "Elementwise, others": {
        "clip": "(x, /, min=None, max=None)",
        "where": "(condition, x1, x2, /)",
    },
    "Reductions": {
        **dict.fromkeys(("sum", "prod", "mean", "max", "min", "any", "all"), "(x, /, *, axis=None, keepdims=False)"),
        **dict.fromkeys(("var", "std"), "(x, /, *, axis=None, correction=0.0, keepdims=False)"),
    },
    "Along one axis": {
        **dict.fromkeys(("argmax", "argmin"), "(x, /, *, axis=None, keepdims=False)"),
        "cumulative_sum": "(x, /, *, axis=None)",
        "argsort": "(x, /, *, axis=-1, descending=False, stable=True)",
    },
    "Shape": {
        "reshape": "(x, /, shape)",
        "broadcast_to": "(x, /, shape)",
        "permute_dims": "(x, /, axes)",
        "matrix_transpose": "(x, /)",
        "squeeze": "(x, /, axis)",
        "expand_dims": "(x, /, *, axis=0)",
        "concat": "(arrays, /, *, axis=0)",
        "stack": "(arrays, /, *, axis=0)",
        "flip": "(x, /, *, axis=None)",
    },
    "Selection and products": {
        "take_along_axis": "(x, indices, /, *, axis=-1)",
        "matmul": "(x1, x2, /)",
    },
}
"""The array functions by group, with the arguments that gradflow passes: a subset of the standard's.

`gradflow.autograd.batching` and the page on backends derive their lists from this table.
"""

ELEMENTWISE = frozenset(
    name for title, functions in FUNCTION_GROUPS.items() if title.startswith("Elementwise") for name in functions
)
"""The names of the elementwise array functions."""

ARRAY_FUNCTIONS: dict[str, str] = {
    name: signature for functions in FUNCTION_GROUPS.values() for name, signature in functions.items()
}
"""The Array-API functions that a backend must have, by name, with the arguments that gradflow passes.

Semantics and names of arguments are the standard's (2024.12).

Sums must be more accurate than the standard requires: the error of a sum of n floating-point numbers over any axes, and
of each element of a running sum, is at most (20 + log2 n) * eps * sum(|x|), with eps of the result. `mean`, `var` and
`std` are computed from such sums. Half floats are summed in float32. A backend whose library is less accurate can
inherit from `AccurateSums`.
"""
