"""`use_dtype`: the default dtype of a context."""

from __future__ import annotations

from typing import Any

from gradflow.dtypes import DType, as_dtype, default_dtype
from gradflow.modes import Mode


def current_dtype() -> DType:
    """The default dtype: that of `use_dtype`, otherwise float32.

    >>> import gradflow as gf
    >>> gf.current_dtype()
    gradflow.float32
    """
    return default_dtype.get()


class use_dtype(Mode):  # noqa: N801 (used like a function)
    """Make `dtype` the default inside a `with`, or while a decorated function, generator or coroutine runs.

    dtype: a floating-point dtype; else TypeError.

    It is the dtype of what is made without `dtype=`: tensors of Python numbers, `zeros` and the like, random numbers,
    the parameters of modules, lists given to `Batches`; of integers in operations such as `sqrt`, `mean` and `/`; and
    what the type `float` means as a dtype. NumPy arrays, and all tensors and modules that exist, keep theirs, and an
    operation on floating-point tensors follows them. `Trainer` follows its model and its data.

    A captured step depends on it: under another default dtype it is recorded again. A thread begins with float32.

    >>> import gradflow as gf
    >>> with gf.use_dtype("float64"):
    ...     gf.tensor([1.0, 2.0]).dtype, gf.nn.Linear(2, 1).weight.dtype
    (gradflow.float64, gradflow.float64)
    """

    variables = (default_dtype,)

    def __init__(self, dtype: Any) -> None:
        self.dtype = as_dtype(dtype)
        if not self.dtype.is_floating:
            raise TypeError(f"use_dtype takes a floating-point dtype; got {self.dtype}")

    def _values(self) -> tuple[Any, ...]:
        return (self.dtype,)

    def __enter__(self) -> DType:
        super().__enter__()
        return self.dtype

    def __repr__(self) -> str:
        return f"use_dtype({str(self.dtype)!r})"
