"""The Array-API functions that a backend must have."""

from __future__ import annotations

from typing import Any

Array = Any
"""An array of a backend's own library."""
ARRAY_FUNCTIONS: tuple[str, ...] = (
    # creation and type
    "asarray", "empty", "zeros", "ones", "full", "arange", "zeros_like", "ones_like", "astype",
    # element by element; a Python number may stand for one of two operands
    "abs", "add", "subtract", "multiply", "divide", "negative", "pow", "exp", "log", "log1p", "expm1", "sqrt",
    "square", "sign", "sin", "cos", "tanh", "floor", "ceil", "round", "maximum", "minimum", "clip", "where", "isfinite",
    "isinf", "isnan",
    "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or",
    "logical_not", "bitwise_and", "bitwise_xor", "bitwise_right_shift",
    # reductions and scans
    "sum", "prod", "mean", "var", "std", "max", "min", "any", "all", "argmax", "argmin", "cumulative_sum", "argsort",
    # shape
    "reshape", "broadcast_to", "permute_dims", "matrix_transpose", "squeeze", "expand_dims", "concat", "stack",
    "flip",
    # selection and products
    "take_along_axis", "matmul",
)  # fmt: skip
"""The Array-API functions that a backend must have: semantics and names of arguments are the standard's (2024.12).

Beyond the standard, sums are accurate: that of n floating-point numbers, over any axes, and each number of a running
sum, is within (20 + log2 n) * eps * sum(|x|) of the exact one, with eps of the result; `mean`, `var` and `std` rest on
such sums. Half floats are summed in float32. `AccurateSums` is for libraries whose own functions err by more.
"""
