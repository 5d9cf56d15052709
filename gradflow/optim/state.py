"""The state of an optimizer as a dict: collecting it, checking one that is loaded, and copying it into the blocks.

An entry has the steps of a parameter ("step") and its state arrays by name; an array that no step has written is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradflow.ops import all as all_
from gradflow.ops import any as any_
from gradflow.ops import asarray, isfinite, less
from gradflow.optim.flat import FlatBlock
from gradflow.tensor import Tensor
from gradflow.tree import check_state

Entries = dict[int, tuple[int, dict[str, Tensor]]]
"""By parameter index, the steps so far and the state arrays that they have written."""


def collect(blocks: Sequence[FlatBlock]) -> Entries:
    """The entries of all parameters that have had a step; the arrays are copies."""
    entries: Entries = {}
    for block in blocks:
        for s in block.slices:
            _, steps, initialised = s.history
            if steps:
                copies = {name: block.backend.copy(block.view(block.state[name], s)) for name in sorted(initialised)}
                entries[s.index] = steps, {name: Tensor(array, block.backend) for name, array in copies.items()}
    return entries


def parts_of(state_dict: Any) -> tuple[Sequence[Mapping[str, Any]], Mapping[Any, Mapping[str, Any]], int]:
    """The groups, the entries and the step count of a state dict.

    Raises TypeError for another structure, KeyError for a missing part, ValueError for an invalid step count.
    """
    check_state(state_dict)
    missing = {"param_groups", "state", "steps"} - set(state_dict)
    if missing:
        raise KeyError(f"the state of an optimizer lacks {', '.join(sorted(missing))}")
    groups, states = state_dict["param_groups"], state_dict["state"]
    are_groups = isinstance(groups, Sequence) and all(isinstance(g, Mapping) and "params" in g for g in groups)
    if not (are_groups and isinstance(states, Mapping) and all(isinstance(s, Mapping) for s in states.values())):
        raise TypeError(
            "the state of an optimizer holds param_groups, a list of mappings with 'params', and state, a mapping "
            "of mappings, as state_dict() returns them"
        )
    return groups, states, _count("steps", state_dict["steps"])


def check_entries(
    states: Mapping[Any, Mapping[str, Any]],
    blocks: Sequence[FlatBlock],
    needed: Sequence[tuple[str, ...]],
    known: tuple[str, ...],
    nonnegative: tuple[str, ...],
    finite: bool,
) -> Entries:
    """The entries of a state dict as step counts and tensors. Waits for the device.

    states: the entries, by parameter index. blocks: those of the optimizer.
    needed: each group's state arrays. known: all that the optimizer may have. nonnegative: those without negative
    numbers. finite: whether numbers that are not finite are an error.

    Raises KeyError for a missing name, TypeError or ValueError for an entry that does not fit.
    """
    slices = {s.index: s for block in blocks for s in block.slices}
    entries: Entries = {}
    for key, entry in states.items():
        index = int(key)
        if index not in slices or index != float(key):
            raise ValueError(f"the state has a parameter {key}; this optimizer has {len(slices)}")
        if index in entries:
            raise ValueError(f"the state has parameter {index} twice")
        s = slices[index]
        for name in ("step", *needed[s.history[0]]):
            if name not in entry:
                raise KeyError(f"the state of parameter {index} lacks {name}")
        arrays = {}
        for name, value in entry.items():
            if name != "step" and name not in known:
                raise ValueError(
                    f"the state of parameter {index} has {name}, which this optimizer lacks; it has {', '.join(known)}"
                )
            if name != "step" and value is not None:
                what = f"{name} of parameter {index}"
                arrays[name] = _fitting_array(what, value, s.tensor, name in nonnegative, finite)
        entries[index] = _count(f"step of parameter {index}", entry["step"]), arrays
    return entries


def restore(blocks: Sequence[FlatBlock], entries: Entries) -> None:
    """Copy the entries into the blocks; a parameter without one starts again at step 0 with zeros."""
    for block in blocks:
        for s in block.slices:
            step, arrays = entries.get(s.index, (0, {}))
            block.set_history(s, step, frozenset(arrays))
            for name in {*arrays, *block.state}:
                target = Tensor(block.view(block.state_array(name), s), block.backend)
                if name in arrays:
                    target.copy_(arrays[name])
                else:
                    target.zero_()


def _count(name: str, value: Any) -> int:
    """A step count, given as an integer, a float without a fraction or a tensor of one. Raises ValueError."""
    count = value.item() if hasattr(value, "item") else value
    if isinstance(count, bool) or not isinstance(count, (int, float)) or count % 1 != 0 or count < 0:
        raise ValueError(f"{name} must be a count, an integer of at least 0; the state's is {value!r}")
    return int(count)


def _fitting_array(what: str, value: Any, parameter: Tensor, nonnegative: bool, finite: bool) -> Tensor:
    """A state array of `parameter` as a tensor. Raises TypeError or ValueError for an array that does not fit."""
    array = value if isinstance(value, Tensor) else asarray(value, device=parameter.device)
    if array.shape != parameter.shape:
        raise ValueError(f"{what} must have shape {parameter.shape}; the state's has {array.shape}")
    if not array.dtype.is_floating:
        raise TypeError(f"{what} must be floating-point; the state's is {array.dtype}")
    array = array.to(device=parameter.device, dtype=parameter.dtype)
    if finite and not bool(all_(isfinite(array))):
        raise ValueError(f"{what} in the state has a number that is non-finite in {parameter.dtype}")
    if nonnegative and bool(any_(less(array, 0.0))):
        raise ValueError(f"{what} in the state has a negative number")
    return array
