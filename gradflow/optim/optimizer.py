"""The optimizer that all others share: parameter groups, flat buffers, state, and the loop of a step.

A subclass names its hyperparameters and state, checks them, and calls one kernel on a range of the flat arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

from gradflow.backend import Array
from gradflow.ops import asarray
from gradflow.optim.flat import Block, make_blocks
from gradflow.recording import as_one_call
from gradflow.tensor import Tensor

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]


def number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """A finite number in [low, high), else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)) or not math.isfinite(value):
        raise ValueError(f"{name} is a finite number; got {value!r}")
    number = float(value)
    if not low <= number < high:
        raise ValueError(f"{name} is a number in [{low:g}, {high:g}); got {value!r}")
    return number


class Optimizer:
    """Changes parameters after their gradients. `param_groups` holds the hyperparameters of each group, to be changed.

    parameters: leaves that are floating-point tensors, or groups: mappings with "params" and hyperparameters of
    their own. The learning rate `lr` is a number, or a schedule: a function of the count of steps, from 0.
    The parameters become views of a flat buffer: make the optimizer after the model is where it shall be.
    Raises ValueError for no parameters, one given twice, or a hyperparameter out of range; TypeError for what is no
    leaf.
    """

    param_groups: list[dict[str, Any]]

    def __init__(self, parameters: Parameters, defaults: Mapping[str, Any]) -> None:
        if isinstance(parameters, Tensor):
            raise TypeError("an optimizer takes a list of parameters; got one tensor: put it into a list")
        if hasattr(parameters, "parameters"):
            raise TypeError(
                f"an optimizer takes parameters; got a {type(parameters).__name__}: pass model.parameters()"
            )
        given: list[Any] = list(parameters)
        if not given:
            raise ValueError("an optimizer needs at least one parameter; got none")
        self.defaults = dict(defaults)
        self.param_groups = []
        self.steps = 0
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self._append(group)
        self._blocks = self._make_blocks()

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Train more parameters: a mapping with "params" and hyperparameters of their own. Raises as the making does.

        A schedule goes on with the optimizer's count of steps.
        """
        self._append(group)
        self._blocks += self._make_blocks(len(self.param_groups) - 1)

    def _append(self, group: Mapping[str, Any]) -> None:
        """Check a group and add it to `param_groups`."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError("a parameter group is a mapping with 'params'; groups and tensors do not mix")
        unknown = set(group) - set(self.defaults) - {"params"}
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no hyperparameter {', '.join(sorted(unknown))}; "
                f"there are {', '.join(self.defaults)}"
            )
        members = group["params"]
        tensors = [members] if isinstance(members, Tensor) else list(members)
        whole = {"params": tensors, **self.defaults, **{k: v for k, v in group.items() if k != "params"}}
        self._check(whole)
        seen = {id(t) for g in self.param_groups for t in g["params"]}
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or not tensor.is_leaf or not tensor.dtype.is_floating:
                what = f"a {tensor.dtype} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"an optimizer takes leaves that are floating-point tensors; got {what}")
            if id(tensor) in seen:
                raise ValueError("a parameter is given to the optimizer twice")
            seen.add(id(tensor))
        self.param_groups.append(whole)

    def _make_blocks(self, first: int = 0) -> list[Block]:
        blocks = make_blocks([group["params"] for group in self.param_groups], first)
        names = {name for group in self.param_groups for name in self._state_names(group)}
        for block in blocks:
            for name in sorted(names):
                block.state_array(name)
        return blocks

    # ------------------------------------------------------------------ what a subclass says

    def _check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a hyperparameter out of range."""
        raise NotImplementedError

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the state arrays that a group needs, as PyTorch calls them."""
        raise NotImplementedError

    def _update(
        self,
        block: Block,
        part: slice,
        state: dict[str, Array],
        lr: float,
        step: int,
        fresh: bool,
        group: Mapping[str, Any],
    ) -> None:
        """Call the kernel on `part` of the block's values and gradients; step counts from 1.

        `state` holds zeros where a parameter has had no step with it; `fresh` tells of that for any of its arrays.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ use

    @as_one_call
    def zero_grad(self) -> None:
        """Forget all gradients: the next backward pass starts them anew, in the same memory."""
        for block in self._blocks:
            for member in block.members:
                leaf = member.tensor._node
                if leaf is None:
                    member.tensor.zero_grad()
                else:
                    leaf.clear()  # type: ignore[union-attr]

    @as_one_call
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Change the parameters that have a gradient; those without stay, as does their state.

        `closure`, if given, computes the loss and its gradients first; its result is returned.
        """
        loss = None if closure is None else closure()
        rates = [self._rate(group) for group in self.param_groups]
        ready = [block.refresh() for block in self._blocks]
        for block, members_ready in zip(self._blocks, ready, strict=True):
            for part, members in list(block.runs(members_ready)):
                past = members[0].past
                group = self.param_groups[past.group]
                state = {name: block.state_array(name)[part] for name in self._state_names(group)}
                fresh = not past.filled.issuperset(state)
                self._update(block, part, state, rates[past.group], past.step + 1, fresh, group)
                block.changed(members, past.filled.union(state) if fresh else past.filled)
        self.steps += 1
        return loss

    def _rate(self, group: Mapping[str, Any]) -> float:
        lr = group["lr"]
        return (
            lr
            if lr.__class__ is float and 0.0 <= lr < math.inf
            else number("lr", lr(self.steps) if callable(lr) else lr)
        )

    @property
    def learning_rates(self) -> list[float]:
        """The learning rate of the next step, for each group."""
        return [self._rate(group) for group in self.param_groups]

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """All that a later optimizer of the same parameters needs to go on: state by parameter index, groups, steps.

        State arrays are copies, None where a parameter has had no step with them. A learning rate that is a schedule
        is code and not in it: it stays with the optimizer that loads.
        """
        state: dict[int, dict[str, Any]] = {}
        for block in self._blocks:
            for m in block.members:
                if m.past.step:
                    entry: dict[str, Any] = {"step": m.past.step}
                    for name in self._state_names(self.param_groups[m.past.group]):
                        entry[name] = None
                    for name in sorted(m.past.filled):
                        array = block.backend.copy(block.view(block.state_array(name), m))
                        entry[name] = Tensor(array, block.backend)
                    state[m.index] = entry
        groups, index = [], 0
        for group in self.param_groups:
            n = len(group["params"])
            kept = {k: v for k, v in group.items() if k != "params" and not (k == "lr" and callable(v))}
            groups.append({**kept, "params": list(range(index, index + n))})
            index += n
        return {"state": state, "param_groups": groups, "steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave, here or on another device. All is checked before anything changes.

        Hyperparameters come from the state, but a learning rate that is a schedule stays, as the rest of the code does;
        it goes on from the step that the state had reached. Raises KeyError or ValueError for a state of other
        parameters or of another optimizer.
        """
        groups = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in self.param_groups]
        if [len(group["params"]) for group in groups] != sizes:
            raise ValueError(
                f"the state is of groups of {[len(g['params']) for g in groups]} parameters; this optimizer has {sizes}"
            )
        new_groups = []
        for own, group in zip(self.param_groups, groups, strict=True):
            unknown = set(group) - set(own)
            if unknown:
                raise ValueError(f"the state has hyperparameters that {type(self).__name__} lacks: {sorted(unknown)}")
            kept = {"params", "lr"} if callable(own["lr"]) else {"params"}
            new = {**own, **{k: v for k, v in group.items() if k not in kept}}
            self._check(new)
            new_groups.append(new)
        members = {m.index: (block, m) for block in self._blocks for m in block.members}
        steps = int(state_dict["steps"])
        loaded: dict[int, tuple[int, dict[str, Tensor]]] = {}
        for key, entry in state_dict["state"].items():
            index = int(key)
            if index not in members:
                raise ValueError(f"the state has a parameter {index}; this optimizer has {len(members)}")
            block, m = members[index]
            arrays = {}
            for name in self._state_names(new_groups[m.past.group]):
                if name not in entry:
                    raise KeyError(f"the state of parameter {index} lacks {name}")
            for name, value in entry.items():
                if name == "step" or value is None:
                    continue
                arrays[name] = value if isinstance(value, Tensor) else asarray(value, device=block.backend.device)
                shape = arrays[name].shape
                if shape != m.tensor.shape:
                    raise ValueError(f"{name} of parameter {index} has shape {m.tensor.shape}; the state's is {shape}")
            loaded[index] = int(entry["step"]), arrays
        self.param_groups = new_groups
        self.steps = steps
        for block in self._blocks:
            pasts = []
            for m in block.members:
                step, arrays = loaded.get(m.index, (0, {}))
                pasts.append((m.past.group, step, frozenset(arrays)))
            block.set_pasts(pasts)
        for index, (block, m) in members.items():
            arrays = loaded[index][1] if index in loaded else {}
            for name in {*arrays, *block.state}:
                target = Tensor(block.view(block.state_array(name), m), block.backend)
                if name in arrays:
                    target.copy_(arrays[name])
                else:
                    target.zero_()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": self.state_dict()}  # a copy, with its model's, gets buffers of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._blocks = self._make_blocks()
        self.load_state_dict(state["_blocks"])

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            shown = {k: v for k, v in group.items() if k != "params"}
            groups.append(f"{len(group['params'])} parameters, " + ", ".join(f"{k}={v}" for k, v in shown.items()))
        return f"{type(self).__name__}({'; '.join(groups)})"


def check_rate(group: dict[str, Any]) -> None:
    """Raise ValueError for a learning rate that is neither a schedule nor a number >= 0."""
    if not callable(group["lr"]):
        check_numbers(group, "lr")


def check_numbers(group: dict[str, Any], *names: str, low: float = 0.0, high: float = math.inf) -> None:
    """Make the hyperparameters of those names Python's floats; ValueError for what is no number in [low, high)."""
    for name in names:
        group[name] = number(name, group[name], low, high)
