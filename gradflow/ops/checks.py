"""Checks of what operations are given, and the words for what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from gradflow.backend.registry import DeviceMismatchError
from gradflow.dtypes import as_dtype, is_number
from gradflow.shapes import check_broadcast
from gradflow.tensor import Tensor


def mismatch(name: str, inputs: Sequence[Any]) -> DeviceMismatchError:
    """The error of an operation whose tensors are on different devices."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    each = ", ".join(f"{x.shape} {x.dtype} on {x.device}" for x in tensors)
    return DeviceMismatchError(
        f"{name} got tensors on different devices: {each}; move one with .to('{tensors[0].device}')"
    )


def check_tensors(name: str, *inputs: Any) -> None:
    """Raise TypeError for an input of an operation that is not a tensor, DeviceMismatchError for mixed devices."""
    for x in inputs:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} takes tensors; got {kind_and_fix(x)}")
        if x.backend is not inputs[0].backend:
            raise mismatch(name, inputs)


def number(name: str, given: Any) -> float:
    """A parameter called `name` as a float. TypeError for anything but a number."""
    if not is_number(given):
        raise TypeError(f"{name} is a number; got {kind_of(given)}")
    return float(given)


def kind_of(x: Any) -> str:
    """The class of x by its full name; None as itself."""
    library = type(x).__module__.partition(".")[0]
    return "None" if x is None else type(x).__name__ if library == "builtins" else f"{library}.{type(x).__name__}"


def kind_and_fix(x: Any) -> str:
    """The full class name of something that is not a tensor, and how to convert it."""
    kind, library = kind_of(x), type(x).__module__.partition(".")[0]
    if x is None:
        return kind
    values = "x.detach().cpu().numpy()" if library == "torch" else "..."
    return f"{kind}: make a tensor of it with gradflow.tensor({values}, device=...)"


def explain_elementwise(name: str, F: Any, arrays: Sequence[Any]) -> None:
    """Raise what is wrong with the arrays that an elementwise function refused, if it is their shapes, or bools."""
    arrays = [a for a in arrays if hasattr(a, "shape")]
    check_broadcast(name, [a.shape for a in arrays])
    kinds = {as_dtype(F.dtype_name(a.dtype)).kind for a in arrays}
    if name == "power" and kinds <= {"int", "uint"}:
        raise ValueError(
            "power: integers have no negative powers among integers: convert with astype('float32')"
        ) from None
    if kinds == {"bool"}:
        raise TypeError(f"{name} is not for bools: use ~, &, | or ^, or convert with astype('int64') first") from None


def is_foreign(x: Any) -> bool:
    """Whether an operand is of a class that gradflow does not know: Python shall ask that class, then complain itself.

    Not so arrays and lists: for them the error tells how to make a tensor.
    """
    return not (isinstance(x, (Tensor, Real, list, tuple)) or hasattr(x, "__array__"))


def is_bool(x: Any) -> bool:
    """Whether x is a bool of Python's or of NumPy's, which is no number to Python."""
    return type(x).__name__ == "bool"


def check_bools(name: str, *inputs: Any) -> None:
    """Raise TypeError for an input of the operation `name` that is neither a bool tensor nor a bool."""
    for x in inputs:
        if not is_bool(x) and not (isinstance(x, Tensor) and x.dtype.kind == "bool"):
            raise TypeError(
                f"{name} takes bool tensors; got {x.dtype if isinstance(x, Tensor) else type(x).__name__}: "
                "compare with something first"
            )


def flag(name: str, keepdims: Any) -> bool:
    """`keepdims` as a bool. TypeError for what is none: perhaps it was meant as an axis."""
    if type(keepdims).__name__ != "bool":
        raise TypeError(
            f"keepdims of {name} is True or False; got {keepdims!r}: several axes are one tuple, as in axis=(0, 1)"
        )
    return bool(keepdims)
