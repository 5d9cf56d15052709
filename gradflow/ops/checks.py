"""Checks of the arguments of operations, and their error messages."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from gradflow.autograd.batching import Batch
from gradflow.autograd.grad_mode import OFF, grad_enabled
from gradflow.autograd.graph import Node, Operation
from gradflow.autograd.mapping import Level, device_backend
from gradflow.backend.device import DeviceMismatchError
from gradflow.dtypes import as_dtype, is_number
from gradflow.shapes import check_broadcast
from gradflow.tensor import Tensor


def mismatch(name: str, inputs: Sequence[Any]) -> DeviceMismatchError:
    """The error of the operation `name` for tensors on different devices."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if len({device_backend(x.backend) for x in tensors}) == 1:
        raise RuntimeError(
            f"{name} got a tensor of a vmap that has ended, or would change one from outside in place: return what is "
            "computed inside, and use x.at[index].set(values), which makes a changed copy"
        )
    each = ", ".join(f"{x.shape} {x.dtype} on {x.device}" for x in tensors)
    return DeviceMismatchError(
        f"{name} got tensors on different devices: {each}; move one with .to('{tensors[0].device}')"
    )


def check_tensors(name: str, *inputs: Any) -> None:
    """Raise TypeError for an input of an operation that is not a tensor, DeviceMismatchError for mixed devices."""
    for x in inputs:
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} takes tensors; got {kind_and_fix(x)}")
        first = inputs[0].backend
        if x.backend is not first and device_backend(x.backend) is not device_backend(first):
            raise mismatch(name, inputs)


def _shared(F: Any, g: Any, _out: Any, _x: Any, level: Level) -> Any:
    if isinstance(g, Batch):
        return Batch(_shared(F.F, g.values, None, None, level))
    return F.sum_of_examples(g, level) if isinstance(g, Tensor) else level.total(g)


SHARE = Operation("vmap", lambda F, x, level: x, [_shared], view=True)
"""A tensor from outside of a `vmap`, inside: the same for all examples."""


def lifted(name: str, x: Tensor, level: Any) -> Tensor:
    """x as a tensor inside a `vmap`, at its level, if it is one from outside. Raises as `mismatch` for the others."""
    if x.backend is level:
        return x
    if x.backend is not level.F:
        if not isinstance(level.F, Level):
            raise mismatch(name, (Tensor(level.F.zeros(()), level), x))
        x = lifted(name, x, level.F)
    memory, recorded = x._shared_memory(), x._node is not None and grad_enabled.get() is not OFF
    node = Node(SHARE, level, (x._node,), None, None, x.array, {"level": level}) if recorded else None
    out = Tensor(x.array, level, node)
    memory.add(out)
    return out


def on_one_backend(name: str, inputs: Sequence[Any]) -> list[Any]:
    """Inputs of the operation `name`, of which tensors from outside of a `vmap` come to the level of those inside.

    Raises DeviceMismatchError for tensors on different devices.
    """
    levels = [x.backend for x in inputs if isinstance(x, Tensor) and isinstance(x.backend, Level)]
    if not levels or len({device_backend(x.backend) for x in inputs if isinstance(x, Tensor)}) > 1:
        raise mismatch(name, inputs)
    level = max(levels, key=lambda level: level.depth)
    return [lifted(name, x, level) if isinstance(x, Tensor) else x for x in inputs]


def number(name: str, given: Any) -> float:
    """The parameter `name` as a float. Raises TypeError if it is not a number."""
    if not is_number(given):
        raise TypeError(f"{name} is a number; got {kind_of(given)}")
    return float(given)


def kind_of(x: Any) -> str:
    """The class of x, with its library, as in "numpy.ndarray"; "None" for None."""
    library = type(x).__module__.partition(".")[0]
    return "None" if x is None else type(x).__name__ if library == "builtins" else f"{library}.{type(x).__name__}"


def kind_and_fix(x: Any) -> str:
    """The class of something that is not a tensor, and how to convert it, for error messages."""
    kind, library = kind_of(x), type(x).__module__.partition(".")[0]
    if x is None:
        return kind
    if library == "torch":
        return f"{kind}: make a tensor of it with gradflow.from_dlpack(x.detach()), in the same memory"
    return f"{kind}: make a tensor of it with gradflow.tensor(..., device=...)"


def explain_elementwise(name: str, F: Any, arrays: Sequence[Any]) -> None:
    """Raise a clear error if an elementwise function failed because of the shapes or the dtypes of its arrays."""
    arrays = [a for a in arrays if hasattr(a, "shape")]
    check_broadcast(name, [a.shape for a in arrays])
    kinds = {as_dtype(F.dtype_name(a.dtype)).kind for a in arrays}
    if name == "power" and kinds <= {"int", "uint"}:
        raise ValueError(
            "power: integers to a negative power are not integers: convert with astype('float32') first"
        ) from None
    if kinds == {"bool"}:
        raise TypeError(f"{name} does not take bools: use ~, &, | or ^, or convert with astype('int64')") from None


def is_foreign(x: Any) -> bool:
    """Whether gradflow does not know the class of an operand, so that Python tries the operator of that class.

    Arrays and lists are not foreign: gradflow raises an error that says how to convert them.
    """
    return not (isinstance(x, (Tensor, Real, list, tuple)) or hasattr(x, "__array__"))


def is_bool(x: Any) -> bool:
    """Whether x is a bool of Python or NumPy (which is not a `numbers.Number`)."""
    return type(x).__name__ == "bool"


def check_bools(name: str, *inputs: Any) -> None:
    """Raise TypeError for an input of the operation `name` that is neither a bool tensor nor a bool."""
    for x in inputs:
        if not is_bool(x) and not (isinstance(x, Tensor) and x.dtype.kind == "bool"):
            raise TypeError(
                f"{name} takes bool tensors; got {x.dtype if isinstance(x, Tensor) else type(x).__name__}: "
                "make one with a comparison"
            )


def keepdims_flag(name: str, keepdims: Any) -> bool:
    """`keepdims` as a bool. Raises TypeError for anything else, such as an integer meant as a second axis."""
    return flag(f"keepdims of {name}", keepdims, ": pass several axes as one tuple, as in axis=(0, 1)")


def flag(name: str, given: Any, advice: str = "") -> bool:
    """A flag as a bool. Raises TypeError for anything else."""
    if not is_bool(given):
        raise TypeError(f"{name} is True or False; got {given!r}{advice}")
    return bool(given)
