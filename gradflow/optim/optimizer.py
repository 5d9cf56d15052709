"""The base class of all optimizers: parameter groups, the loop of a step, state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any, ClassVar

from gradflow.interception import opaque_call, report_reads
from gradflow.ops.checks import kind_and_fix
from gradflow.optim.flat import FlatArrays, FlatBlock, make_blocks
from gradflow.optim.hyperparameters import number
from gradflow.optim.state import check_entries, collect, parts_of, restore
from gradflow.tensor import Tensor

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]


@report_reads
class Optimizer:
    """Updates parameters from their gradients: the base class of all optimizers.

    parameters: the tensors to train, floating-point leaves; or parameter groups, mappings with "params" and the
    hyperparameters that differ from the defaults.
    defaults: the hyperparameters by name, for groups that do not set them. "lr" is required: the learning rate, a
    number or a schedule, which is a function of the steps done so far (see `gradflow.optim.schedules`).

    Raises ValueError for no parameters, a parameter given twice, or a hyperparameter out of range; TypeError for
    anything but floating-point leaves.

    The parameters become views of a flat buffer, so create the optimizer after moving the model to its device. A
    parameter whose memory is shared (with a parameter that is a view of it, a detached alias, the NumPy array behind
    `gradflow.asarray`) keeps its own memory while it is shared, at the cost of two copies per step.

    `param_groups` is the list of groups, each a dict with "params" and all hyperparameters. Changes to it take effect
    at the next step; a parameter moved to another group keeps its state. `steps` counts the calls of `step`.

    To write an optimizer, derive a class, name its state arrays in `state_names`, and define `update`; define
    `check_hyperparameters` and `needed_state` where needed. Saving, loading, groups, schedules and captured steps work
    without more code. docs/write-an-optimizer.md has an example.
    """

    state_names: ClassVar[tuple[str, ...]] = ()
    """The names of all state arrays, including those that only some hyperparameters need."""
    nonnegative_state: ClassVar[tuple[str, ...]] = ()
    """The names of state arrays without negative numbers, such as means of squares; `load_state_dict` checks them."""

    param_groups: list[dict[str, Any]]
    steps: int
    _blocks: list[FlatBlock]

    # ------------------------------------------------------------------ what a subclass defines

    def needed_state(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the state arrays that a group needs with its hyperparameters (default: all `state_names`)."""
        return self.state_names

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        """Check a group's hyperparameters, and convert them in place where needed (default: accept all).

        "lr" has been checked. Raise ValueError for one out of range; `gradflow.optim.check_numbers` does so for
        numbers.
        """

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        """Update `flat.parameters` and `flat.state` in place, from `flat.gradients`.

        Each element must depend on the same element of the other arrays only: the flat arrays hold several parameters.

        group: the parameter group, with all hyperparameters.
        lr: the learning rate of this step.
        step: the steps of these parameters, this one included: 1, 2, ...
        first: whether any of the state arrays is new, so that it holds zeros.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ parameter groups

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
        """Train more parameters.

        group: a mapping with "params" and the hyperparameters that differ from the defaults.

        A schedule gets the optimizer's step count, as for other groups. Raises like the constructor.
        """
        self._follow_edits()
        self._append(group)
        self._make_blocks(len(self.param_groups) - 1)

    def _append(self, group: Mapping[str, Any]) -> None:
        """Check a group and add it to `param_groups`."""
        self.param_groups.append(self._checked(group, self.param_groups))

    def _checked(self, group: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """A copy of a group with all hyperparameters. Raises for an invalid group or a parameter in `others`."""
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
                raise ValueError(f"a parameter, of shape {tensor.shape}, is given to the optimizer twice: pass it once")
            seen.add(id(tensor))
        return whole

    def _check(self, group: dict[str, Any]) -> None:
        """Check all hyperparameters of a group, and convert them in place."""
        if not callable(group["lr"]):
            group["lr"] = number("lr", group["lr"])
        self.check_hyperparameters(group)

    def _make_blocks(self, first: int = 0) -> None:
        """Make blocks for the groups from index `first` on."""
        blocks = make_blocks([group["params"] for group in self.param_groups], first)
        names = {name for group in self.param_groups for name in self.needed_state(group)}
        for block in blocks:
            for name in sorted(names):
                block.state_array(name)
        self._blocks = [*self._blocks, *blocks] if first else blocks
        self._trained = [list(group["params"]) for group in self.param_groups]

    def holds(self, parameters: Sequence[Sequence[Tensor]]) -> bool:
        """Whether the groups hold exactly these parameters, group by group, in this order."""
        groups = self.param_groups
        if len(groups) != len(parameters):
            return False
        for group, expected in zip(groups, parameters):  # noqa: B905 (this runs in every step)
            members = group["params"]
            if len(members) != len(expected) or not all(map(is_, members, expected)):
                return False
        return True

    def _follow_edits(self) -> None:
        """Make new blocks if the parameters in `param_groups` have changed; each parameter keeps its state."""
        groups = self.param_groups
        try:
            if self.holds(self._trained):
                return
        except TypeError:
            given = next(g["params"] for g in groups if not hasattr(g["params"], "__len__"))
            raise TypeError(
                f"the params of a group must be a list; got a {type(given).__name__}: use list(...)"
            ) from None
        checked: list[dict[str, Any]] = []
        for group in groups:
            checked.append(self._checked(group, checked))
        for group, whole in zip(groups, checked, strict=True):
            members = group["params"]
            group.update(whole)
            if isinstance(members, list):  # keep the group's own list, which may be edited again
                group["params"] = members
        before = {id(s.tensor): (block, s) for block in self._blocks for s in block.slices}
        self._make_blocks()
        for block in self._blocks:
            for s in block.slices:
                old, was = before.get(id(s.tensor), (block, s))
                _, steps, initialised = was.history
                block.set_history(s, steps, initialised)
                for name in initialised:
                    block.backend.setitem(block.view(block.state_array(name), s), ..., old.view(old.state[name], was))

    # ------------------------------------------------------------------ use

    @opaque_call
    def zero_grad(self) -> None:
        """Set all gradients to None; the next backward pass writes new ones into the same memory."""
        for group in self.param_groups:
            for tensor in group["params"]:
                leaf = tensor._node
                if leaf is None:
                    tensor.zero_grad()
                else:
                    leaf.clear()

    @opaque_call
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update the parameters that have a gradient; the others and their state do not change.

        closure: a function that computes the loss and its gradients before the update (default None). Returns its
        result.
        """
        loss = None if closure is None else closure()
        self._follow_edits()
        rates = self.learning_rates
        ready = [(block, block.refresh()) for block in self._blocks]
        for block, slices in ready:
            for part, run in block.contiguous_runs(slices):
                g, steps, initialised = run[0].history
                group = self.param_groups[g]
                if block.any_outside:
                    block.copy_in(run)
                names = self.needed_state(group)
                first = not initialised.issuperset(names)
                block.record_step(run, initialised.union(names) if first else initialised)
                self.update(block.arrays(part, names), group, rates[g], steps + 1, first)
                if block.any_outside:
                    block.copy_out(run)
        self.steps += 1
        return loss

    @property
    def learning_rates(self) -> list[float]:
        """The learning rate of the next step, for each group."""
        return [self._rate(group) for group in self.param_groups]

    def _rate(self, group: Mapping[str, Any]) -> float:
        lr = group["lr"]
        if lr.__class__ is float and 0.0 <= lr < math.inf:
            return lr
        return number("lr", lr(self.steps) if callable(lr) else lr)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """A copy of what an optimizer of the same parameters needs to continue: "state", "param_groups" and "steps".

        "state" has, by parameter index, the steps and the state arrays, None for an array that no step has written.
        A schedule is code and not part of it: the optimizer that loads the state keeps its own schedule.
        """
        self._follow_edits()
        groups, index = [], 0
        for group in self.param_groups:
            n = len(group["params"])
            kept = {k: v for k, v in group.items() if k != "params" and not (k == "lr" and callable(v))}
            groups.append({**kept, "params": list(range(index, index + n))})
            index += n
        state = collect(self._blocks, [self.needed_state(group) for group in self.param_groups])
        return {"state": state, "param_groups": groups, "steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned, here or on another device.

        Hyperparameters come from the state, except a learning rate that is a schedule: it is kept, and continues at the
        step count of the state. Everything is checked before anything changes, which waits for the device. Raises
        TypeError for an object that is not a state dict; KeyError or ValueError for the state of other parameters or of
        another optimizer; ValueError for an invalid step count, non-finite numbers, and negative means of squares.
        """
        groups, states, steps = parts_of(state_dict)
        self._follow_edits()
        sizes, given = [len(g["params"]) for g in self.param_groups], [len(g["params"]) for g in groups]
        if given != sizes:
            raise ValueError(f"the state is of groups of {given} parameters; this optimizer has {sizes}")
        new_groups = [self._merged(own, group) for own, group in zip(self.param_groups, groups, strict=True)]
        needed = [self.needed_state(group) for group in new_groups]
        entries = check_entries(states, self._blocks, needed, self.state_names, self.nonnegative_state)
        self.param_groups, self.steps = new_groups, steps
        restore(self._blocks, entries)

    def _merged(self, own: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
        """A group with the hyperparameters of the one that is loaded. Raises ValueError for one that is unknown."""
        unknown = set(loaded) - set(own)
        if unknown:
            raise ValueError(f"the state has hyperparameters that {type(self).__name__} lacks: {sorted(unknown)}")
        kept = {"params", "lr"} if callable(own["lr"]) else {"params"}
        group = {**own, **{k: v for k, v in loaded.items() if k not in kept}}
        self._check(group)
        return group

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": self.state_dict()}  # a copy with its model's parameters gets its own blocks

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
