"""Checks of the arguments of transforms: functions, `argnums`, and cotangents or tangents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from gradflow.ops.creation import tensor
from gradflow.printing import describe
from gradflow.tensor import Tensor
from gradflow.tree import flatten


def kind_of(x: Any) -> str:
    """The name of the type of a value, for error messages."""
    return "None" if x is None else type(x).__name__


def check_function(transform: str, f: Any) -> None:
    """Raise TypeError unless `f` is callable; for a tensor, the message points to `gradflow.gradients`."""
    if isinstance(f, Tensor):
        raise TypeError(
            f"{transform} takes a function; got a {describe(f)}: for gradients of a tensor that is already computed, "
            "use gradflow.gradients(outputs, inputs)"
        )
    if not callable(f):
        raise TypeError(f"{transform} takes a function; got {kind_of(f)}")


def argument_numbers(transform: str, argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    """`argnums` as a tuple of numbers in [0, count), where count is the number of positional arguments.

    Raises TypeError for numbers that are not integers, ValueError for one that is out of range or given twice.
    """
    wanted = tuple(argnums) if isinstance(argnums, (tuple, list, range)) else (argnums,)
    for i in wanted:
        if not isinstance(i, int) or isinstance(i, bool):
            raise TypeError(f"argnums of {transform} must be numbers of positional arguments; got {argnums!r}")
        if not -count <= i < count:
            raise ValueError(
                f"argnums of {transform} names argument {i}, but the function got {count} positional arguments"
            )
    normal = tuple(i % count for i in wanted)
    if len(set(normal)) != len(normal):
        raise ValueError(f"argnums of {transform} name an argument twice: {argnums!r}")
    return normal


def check_primals_and_tangents(transform: str, primals: Any, tangents: Any) -> None:
    """Raise TypeError unless both are tuples or lists, ValueError unless they have the same length."""
    for name, value in (("primals", primals), ("tangents", tangents)):
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{transform} takes {name} as a tuple, one for each argument; got {kind_of(value)}")
    if len(primals) != len(tangents):
        raise ValueError(
            f"{transform} needs one tangent for each primal; got {len(primals)} primals, {len(tangents)} tangents"
        )


def matching_tensors(transform: str, kind: str, given: Any, like: Any) -> list[Tensor]:
    """The tensors of the tree `given`, which must match the tree `like` in structure, shapes, dtypes and devices.

    kind: "cotangent" or "tangent", for error messages.

    A number in `given` is converted where a tensor of shape () is expected.
    Raises TypeError for a leaf that is not a tensor, ValueError for one that does not match.
    """
    leaves, expected = dict(flatten(given)), flatten(like)
    if leaves.keys() != {path for path, _ in expected}:
        raise ValueError(
            f"{transform}: a {kind} must be nested like the value it belongs to: {_paths(dict(expected))}; "
            f"got {_paths(leaves)}"
        )
    tensors = []
    for path, x in expected:
        t = leaves[path]
        if isinstance(t, Real) and isinstance(x, Tensor) and not x.ndim:
            t = tensor(float(t), dtype=x.dtype, device=x.device)
        if not isinstance(t, Tensor):
            raise TypeError(f"{transform}: {kind}{path} must be a tensor; got {kind_of(t)}")
        if isinstance(x, Tensor) and (t.shape, t.dtype, t.device) != (x.shape, x.dtype, x.device):
            raise ValueError(f"{transform}: {kind}{path} must be a {describe(x)}; got a {describe(t)}")
        tensors.append(t)
    return tensors


def _paths(paths: Iterable[str]) -> str:
    return "one tensor" if list(paths) == [""] else ", ".join(paths) or "nothing"
