"""The parameter groups of an optimizer, and the flat blocks that hold their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Any, ClassVar

from gradflow.ops.checks import kind_and_fix
from gradflow.optim.flat import FlatBlock, make_blocks
from gradflow.optim.hyperparameters import checked_number
from gradflow.tensor import Tensor

Parameters = Iterable[Tensor] | Iterable[Mapping[str, Any]]


def listed_params(group: Mapping[str, Any]) -> Any:
    """The parameters of a group. Raises TypeError unless they are in a list, since they are read more than once."""
    tensors: Any = group["params"]
    if isinstance(tensors, Tensor) or not hasattr(tensors, "__len__"):
        raise TypeError(f"the params of a group must be a list; got a {type(tensors).__name__}: use list(...)")
    return tensors


class ParameterGroups:
    """The part of an optimizer that knows its parameters and hyperparameters, checks them, and follows their edits."""

    state_names: ClassVar[tuple[str, ...]] = ()
    """The names of all state arrays, including those that only some hyperparameters need."""

    param_groups: list[dict[str, Any]]
    _blocks: list[FlatBlock]
    _params_in_blocks: list[list[Tensor]]  # group by group
    _unedited: list[Any]  # of each group when it was last checked: all values, then all parameters
    _unsettled: Callable[[], None] | None = None  # sets the step counts, where only the device knows them

    def needed_state(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the state arrays that a group needs with its hyperparameters (default: all `state_names`).

        >>> import gradflow as gf
        >>> optimizer = gf.optim.SGD([gf.zeros(1, requires_grad=True)], momentum=0.9)
        >>> optimizer.needed_state(optimizer.param_groups[0]), optimizer.needed_state({"momentum": 0.0})
        (('momentum_buffer',), ())
        """
        return self.state_names

    def check_hyperparameters(self, group: dict[str, Any]) -> None:
        """Check a group's hyperparameters, and convert them in place where needed (default: accept all).

        "lr" has been checked. Raise ValueError for one out of range; for numbers, use `gradflow.optim.check_numbers`.
        It is called for new groups, and before a step that follows a change of hyperparameters.

        >>> import gradflow as gf
        >>> gf.optim.SGD([gf.zeros(1, requires_grad=True)], momentum=-1.0)
        Traceback (most recent call last):
            ...
        ValueError: momentum must be in [0, inf); got -1.0
        """

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
        self._blocks = []
        groups: list[dict[str, Any]] = []
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            groups.append(self._complete(group, groups))
        self._train(groups, self._new_blocks(groups))

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Train more parameters.

        group: a mapping with "params" and the hyperparameters that differ from the defaults.

        A schedule gets the optimizer's step count, as for other groups. Raises like the constructor, before anything
        changes.

        >>> import gradflow as gf
        >>> x, y = gf.zeros(1, requires_grad=True), gf.zeros(1, requires_grad=True)
        >>> optimizer = gf.optim.SGD([x], lr=0.1)
        >>> optimizer.add_param_group({"params": [y], "lr": 0.01})
        >>> optimizer.learning_rates
        [0.1, 0.01]
        """
        self._follow_edits()
        added = self._complete(group, self.param_groups)
        blocks = self._new_blocks([*self.param_groups, added], len(self.param_groups))
        self.param_groups.append(added)
        self._train(self.param_groups, [*self._blocks, *blocks])

    def _complete(self, group: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """A copy of a group with all hyperparameters. Raises for an invalid group or a parameter in `others`."""
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError("a parameter group is a mapping with 'params'; groups and tensors do not mix")
        tensors = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
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
        return self._checked({**self.defaults, **group, "params": tensors})

    def _checked(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a group with checked hyperparameters. Raises ValueError for one that is unknown or out of range."""
        unknown = set(group) - set(self.defaults) - {"params"}
        if unknown:
            raise ValueError(
                f"{type(self).__name__} has no hyperparameter {', '.join(sorted(unknown))}; "
                f"there are {', '.join(self.defaults)}"
            )
        checked = dict(group)
        if not callable(checked["lr"]):
            checked["lr"] = checked_number("lr", checked["lr"])
        self.check_hyperparameters(checked)
        return checked

    def _new_blocks(self, groups: Sequence[Mapping[str, Any]], first_group: int = 0) -> list[FlatBlock]:
        """Blocks for the parameters of the groups from index `first_group` on, with their state arrays."""
        blocks = make_blocks([group["params"] for group in groups], first_group)
        self._make_state(groups, blocks)
        return blocks

    def _make_state(self, groups: Sequence[Mapping[str, Any]], blocks: Sequence[FlatBlock]) -> None:
        """Make the state arrays that the groups need: here, since a step may be in a graph, which would repeat it."""
        for name in sorted({name for group in groups for name in self.needed_state(group)}):
            for block in blocks:
                block.state_array(name)

    def _train(self, groups: list[dict[str, Any]], blocks: list[FlatBlock]) -> None:
        """Train these groups, whose parameters are in these blocks, until `param_groups` is edited."""
        self._make_state(groups, blocks)
        self.param_groups, self._blocks = groups, blocks
        self._params_in_blocks = [[*group["params"]] for group in groups]
        self._unedited = [x for group in groups for x in (*group.values(), *group["params"])]

    def has_parameters(self, parameters: Sequence[Sequence[Tensor]]) -> bool:
        """Whether the groups have exactly these parameters, group by group, in this order.

        >>> import gradflow as gf
        >>> x, y = gf.zeros(1, requires_grad=True), gf.zeros(1, requires_grad=True)
        >>> optimizer = gf.optim.SGD([x, y])
        >>> optimizer.has_parameters([[x, y]]), optimizer.has_parameters([[x], [y]])
        (True, False)
        """
        groups = self.param_groups
        if len(groups) != len(parameters):
            return False
        for group, expected in zip(groups, parameters):  # noqa: B905 (this runs in every step)
            tensors = group["params"]
            if tensors.__class__ is not list:
                tensors = listed_params(group)
            if len(tensors) != len(expected) or not all(map(is_, tensors, expected)):
                return False
        return True

    def _follow_edits(self) -> None:
        """Check hyperparameters that have changed, and make new blocks if parameters have; each keeps its state.

        Raises like the constructor, before anything changes, and RuntimeError for a parameter that was moved.
        """
        if self._is_edited():
            self._apply_edits()

    def _is_edited(self) -> bool:
        unedited = self._unedited
        present: list[Any] = []
        try:
            for group in self.param_groups:  # this runs in every step
                present += group.values()
                present += group["params"]
        except (TypeError, AttributeError):  # not a group, or params that are not a list: `_apply_edits` raises
            present.clear()
        return len(present) != len(unedited) or not all(map(is_, present, unedited))

    def _settle(self) -> None:
        """Set the step counts to those of applied steps. Waits for the device after a step of a `GradScaler`."""
        if self._unsettled is not None:
            self._unsettled()

    def _follow_parameters(self) -> None:
        """Make new blocks if parameters have changed. Hyperparameters are not checked otherwise: the next step does."""
        self._settle()
        if not self.has_parameters(self._params_in_blocks):
            self._apply_edits()

    def _apply_edits(self) -> None:
        groups, blocks, complete = self.param_groups, self._blocks, []
        if self.has_parameters(self._params_in_blocks):
            complete = [self._checked(group) for group in groups]
        else:
            self._settle()
            for group in groups:
                complete.append(self._complete(group, complete))
            places = {id(s.tensor): (block, s) for block in self._blocks for s in block.slices}
            kept = [places[id(t)] for group in complete for t in group["params"] if id(t) in places]
            for block, s in kept:
                block.check_not_moved(s)
            blocks = self._new_blocks(complete)
            for block in blocks:
                for s in block.slices:
                    if id(s.tensor) in places:
                        block.copy_state(s, *places[id(s.tensor)])
        for group, checked in zip(groups, complete, strict=True):
            members = group["params"]
            group.update(checked)
            if isinstance(members, list):  # keep the group's own list, which may be edited again
                group["params"] = members
        self._train(groups, blocks)
