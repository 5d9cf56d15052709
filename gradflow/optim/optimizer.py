"""The optimizer that all others share: parameter groups, flat buffers, state, and the loop of a step.

A subclass names its hyperparameters and state, checks them, and calls one kernel on a range of the flat arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from operator import is_
from typing import Any

from gradflow.backend import Array, Backend
from gradflow.interception import opaque_call, report_reads
from gradflow.ops import all as all_
from gradflow.ops import asarray, greater_equal, isfinite
from gradflow.ops.checks import kind_and_fix
from gradflow.optim.flat import Block, make_blocks
from gradflow.tensor import Tensor
from gradflow.tree import check_state

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]


def number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """A finite number in [low, high), else ValueError."""
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)) or not math.isfinite(value):
        raise ValueError(f"{name} is a finite number; got {value!r}")
    number = float(value)
    if not low <= number < high:
        raise ValueError(f"{name} is a number in [{low:g}, {high:g}); got {value!r}")
    return number


@report_reads
class Optimizer:
    """Changes parameters after their gradients.

    `param_groups` holds the parameters ("params") and hyperparameters of each group. What is changed there takes effect
    at once; a parameter that is moved to another group keeps its state.

    parameters: leaves that are floating-point tensors, or groups: mappings with "params" and hyperparameters of
    their own. The learning rate `lr` is a number, or a schedule: a function of the count of steps, from 0.
    The parameters become views of a flat buffer, so move the model to its device first. One whose
    memory is seen from elsewhere (by a parameter that is a view of it, a detached alias, the NumPy array behind
    `gradflow.asarray`) stays where it is as long as that is so, which costs two copies a step.
    Raises ValueError for no parameters, one given twice, or a hyperparameter out of range; TypeError for anything but a
    leaf.
    """

    param_groups: list[dict[str, Any]]
    _blocks: list[Block]
    _known_state: tuple[str, ...]
    """The names of all state arrays, which the groups may or may not need."""

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
        self._make_blocks()

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Train more parameters: a mapping with "params" and hyperparameters of their own. Raises as the making does.

        A schedule goes on with the optimizer's count of steps.
        """
        self._follow_edits()
        self._append(group)
        self._make_blocks(len(self.param_groups) - 1)

    def _append(self, group: Mapping[str, Any]) -> None:
        """Check a group and add it to `param_groups`."""
        self.param_groups.append(self._checked(group, self.param_groups))

    def _checked(self, group: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """A group with all its hyperparameters; raises for what is wrong with it, beside the `others`."""
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
        seen = {id(t) for g in others for t in g["params"]}
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or not tensor.is_leaf or not tensor.dtype.is_floating:
                computed = isinstance(tensor, Tensor) and not tensor.is_leaf
                what = (
                    f"a {'computed ' * computed}{tensor.dtype} tensor"
                    if isinstance(tensor, Tensor)
                    else kind_and_fix(tensor)
                )
                raise TypeError(f"an optimizer takes leaves that are floating-point tensors; got {what}")
            if id(tensor) in seen:
                raise ValueError("a parameter is given to the optimizer twice")
            seen.add(id(tensor))
        return whole

    def _make_blocks(self, first: int = 0) -> None:
        """Make blocks for the groups from the `first` on."""
        blocks = make_blocks([group["params"] for group in self.param_groups], first)
        names = {name for group in self.param_groups for name in self._state_names(group)}
        for block in blocks:
            for name in sorted(names):
                block.state_array(name)
        self._blocks = [*self._blocks, *blocks] if first else blocks
        self._trained = [list(group["params"]) for group in self.param_groups]

    def holds(self, parameters: Sequence[Sequence[Tensor]]) -> bool:
        """Whether the groups have just these parameters, group by group, in this order."""
        groups = self.param_groups
        if len(groups) != len(parameters):
            return False
        for group, expected in zip(groups, parameters):  # noqa: B905 (this is done in every step)
            members = group["params"]
            if len(members) != len(expected) or not all(map(is_, members, expected)):
                return False
        return True

    def _follow_edits(self) -> None:
        """Train what `param_groups` hold now, where that is not what they held: each parameter keeps its state."""
        groups = self.param_groups
        try:
            if self.holds(self._trained):
                return
        except TypeError:
            given = next(g["params"] for g in groups if not hasattr(g["params"], "__len__"))
            raise TypeError(f"the params of a group are a list; got a {type(given).__name__}: list() it") from None
        checked: list[dict[str, Any]] = []
        for group in groups:
            checked.append(self._checked(group, checked))
        for group, whole in zip(groups, checked, strict=True):
            members = group["params"]
            group.update(whole)
            if isinstance(members, list):  # it stays the group's own, and may be edited again
                group["params"] = members
        before = {id(m.tensor): (block, m) for block in self._blocks for m in block.members}
        self._make_blocks()
        for block in self._blocks:
            pasts = []
            for m in block.members:
                old, was = before.get(id(m.tensor), (block, m))
                pasts.append((m.past.group, was.past.step, was.past.filled))
                for name in was.past.filled:
                    block.backend.setitem(block.view(block.state_array(name), m), ..., old.view(old.state[name], was))
            block.set_pasts(pasts)

    # ------------------------------------------------------------------ what a subclass says

    def _check(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a hyperparameter out of range."""
        raise NotImplementedError

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the state arrays that a group needs, as PyTorch calls them."""
        raise NotImplementedError

    def _update(
        self,
        backend: Backend,
        values: Array,
        gradients: Array,
        state: dict[str, Array],
        lr: float,
        step: int,
        fresh: bool,
        group: Mapping[str, Any],
    ) -> None:
        """Call the kernel on flat arrays of parameters, their gradients and their state; step counts from 1.

        `state` holds zeros where a parameter has had no step with it; `fresh` tells of that for any of its arrays.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ use

    @opaque_call
    def zero_grad(self) -> None:
        """Forget all gradients: the next backward pass starts them again, in the same memory."""
        for group in self.param_groups:
            for tensor in group["params"]:
                leaf = tensor._node
                if leaf is None:
                    tensor.zero_grad()
                else:
                    leaf.clear()

    @opaque_call
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Change the parameters that have a gradient; those without stay, as does their state.

        `closure`, if given, computes the loss and its gradients first; its result is returned.
        """
        loss = None if closure is None else closure()
        self._follow_edits()
        rates = [self._rate(group) for group in self.param_groups]
        ready = [(block, block.refresh()) for block in self._blocks]
        for block, members_ready in ready:
            for part, members in block.runs(members_ready):
                past = members[0].past
                group = self.param_groups[past.group]
                state = {name: block.part(block.state_array(name), part) for name in self._state_names(group)}
                fresh = not past.filled.issuperset(state)
                if block.some_outside:
                    block.bring_in(members)
                values, gradients = block.part(block.values, part), block.part(block.gradients, part)
                self._update(block.backend, values, gradients, state, rates[past.group], past.step + 1, fresh, group)
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
        self._follow_edits()
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
        it goes on from the step that the state had reached. Raises TypeError for anything but a state; KeyError or
        ValueError for one of other parameters or of another optimizer; and ValueError for steps that are not a count,
        numbers that are not finite, and means of squares that are negative. Waits for the device.
        """
        check_state(state_dict)
        lacking = {"param_groups", "state", "steps"} - set(state_dict)
        if lacking:
            raise KeyError(f"the state of an optimizer lacks {', '.join(sorted(lacking))}")
        groups, states = state_dict["param_groups"], state_dict["state"]
        are_groups = isinstance(groups, Sequence) and all(isinstance(g, Mapping) and "params" in g for g in groups)
        if not (are_groups and isinstance(states, Mapping) and all(isinstance(s, Mapping) for s in states.values())):
            raise TypeError(
                "the state of an optimizer holds param_groups, a list of mappings with 'params', and state, a mapping "
                "of mappings, as state_dict() gives them"
            )
        self._follow_edits()
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
        steps = _count("steps", state_dict["steps"])
        loaded: dict[int, tuple[int, dict[str, Tensor]]] = {}
        for key, entry in states.items():
            index = int(key)
            if index not in members:
                raise ValueError(f"the state has a parameter {index}; this optimizer has {len(members)}")
            block, m = members[index]
            for name in ("step", *self._state_names(new_groups[m.past.group])):
                if name not in entry:
                    raise KeyError(f"the state of parameter {index} lacks {name}")
            arrays = {}
            for name, value in entry.items():
                if name != "step" and name not in self._known_state:
                    raise ValueError(
                        f"the state of parameter {index} has {name}, which {type(self).__name__} lacks; "
                        f"it has {', '.join(self._known_state)}"
                    )
                if name != "step" and value is not None:
                    arrays[name] = _state_array(f"{name} of parameter {index}", name, value, m.tensor)
            loaded[index] = _count(f"step of parameter {index}", entry["step"]), arrays
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
        self.param_groups = [{**group, "params": list(group["params"])} for group in self.param_groups]
        self.defaults = dict(self.defaults)
        self._make_blocks()
        self.load_state_dict(state["_blocks"])

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            shown = {k: v for k, v in group.items() if k != "params"}
            groups.append(f"{len(group['params'])} parameters, " + ", ".join(f"{k}={v}" for k, v in shown.items()))
        return f"{type(self).__name__}({'; '.join(groups)})"


def _count(name: str, value: Any) -> int:
    """A count of steps, also as a tensor or a float without a fraction. ValueError for what is none."""
    count = value.item() if hasattr(value, "item") else value
    if isinstance(count, bool) or not isinstance(count, (int, float)) or count != count // 1 or count < 0:
        raise ValueError(f"{name} is a count, an integer of at least 0; the state's is {value!r}")
    return int(count)


def _state_array(what: str, name: str, value: Any, parameter: Tensor) -> Tensor:
    """A state array as a tensor. Waits for its device. TypeError or ValueError for what can be none of `parameter`."""
    array = value if isinstance(value, Tensor) else asarray(value, device=parameter.device)
    if array.shape != parameter.shape:
        raise ValueError(f"{what} has shape {parameter.shape}; the state's is {array.shape}")
    if not array.dtype.is_floating:
        raise TypeError(f"{what} is floating-point; the state's is {array.dtype}")
    if not bool(all_(isfinite(array))):
        raise ValueError(f"{what} has a number in the state that is not finite")
    if name in _SQUARES and not bool(all_(greater_equal(array, 0.0))):
        raise ValueError(f"{what} is a mean of squares; the state's has a negative number")
    return array


_SQUARES = ("exp_avg_sq", "square_avg")


def check_rate(group: dict[str, Any]) -> None:
    """Raise ValueError for a learning rate that is neither a schedule nor a number >= 0."""
    if not callable(group["lr"]):
        check_numbers(group, "lr")


def check_numbers(group: dict[str, Any], *names: str, low: float = 0.0, high: float = math.inf) -> None:
    """Make the hyperparameters of those names Python's floats; ValueError for anything but a number in [low, high)."""
    for name in names:
        group[name] = number(name, group[name], low, high)
