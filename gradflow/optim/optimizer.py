"""The base class of all optimizers: the loop of a step, and the state to save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from gradflow.autograd.leaf import Leaf
from gradflow.backend.graphs import current_rows
from gradflow.interception import opaque_call, report_reads
from gradflow.optim.flat import FlatArrays
from gradflow.optim.groups import ParameterGroups, listed_params
from gradflow.optim.hyperparameters import checked_number
from gradflow.optim.scalars import UpdateScalars
from gradflow.optim.state import check_entries, collect, parts_of, restore
from gradflow.pytorch_names import OPTIMIZER_METHODS, hints_at
from gradflow.tensor import Tensor


@hints_at(OPTIMIZER_METHODS)
@report_reads
class Optimizer(ParameterGroups):
    """Updates parameters from their gradients: the base class of all optimizers.

    parameters: the tensors to train, floating-point leaves; or parameter groups, mappings with "params" and the
    hyperparameters that differ from the defaults.
    defaults: the hyperparameters by name, for groups that do not set them. "lr" is required: the learning rate, a
    number or a schedule, which is a function of the number of completed steps (see `gradflow.optim.schedules`).

    Raises ValueError for no parameters, a parameter given twice, an unknown hyperparameter or one out of range;
    TypeError for parameters that are not floating-point leaves.

    The parameters become views of a flat buffer, so create the optimizer after moving the model to its device. A
    parameter whose memory is shared (with a parameter that is a view of it, a detached alias, the NumPy array behind
    `gradflow.asarray`) keeps its own memory as long as it is shared, at the cost of two copies per step. An array that
    is taken from a parameter later (`p.array`) shows its steps until `param_groups` gets other parameters.

    Frozen parameters have a place in the buffers of gradients and state, too. The buffers live as long as any of their
    parameters, even without the optimizer.

    A group whose hyperparameter `maximize` is true goes up the gradient: `update` gets the negative of its gradients,
    which takes one more pass over them.

    `param_groups` is the list of groups, each a dict with "params" and all hyperparameters. Changes to it are checked
    and take effect at the next step; a parameter moved to another group keeps its state. `steps` counts the calls of
    `step`.

    To write an optimizer, derive a class, name its state arrays in `state_names`, and define `update`; define
    `check_hyperparameters` and `needed_state` where needed. Saving, loading, groups, schedules and captured steps work
    without more code. docs/write-an-optimizer.md has an example.

    >>> import gradflow as gf
    >>> class SignDescent(gf.optim.Optimizer):
    ...     def __init__(self, parameters, lr=0.1):
    ...         super().__init__(parameters, {"lr": lr})
    ...     def update(self, flat, group, lr, step, first):
    ...         F = flat.backend
    ...         flat.parameters[...] = F.subtract(flat.parameters, F.multiply(F.sign(flat.gradients), lr))
    >>> x = gf.tensor([1.0, -2.0], requires_grad=True)
    >>> optimizer = SignDescent([x])
    >>> (x * x).sum().backward()
    >>> optimizer.step()
    >>> [round(v, 4) for v in x.tolist()]
    [0.9, -1.9]
    """

    nonnegative_state: ClassVar[tuple[str, ...]] = ()
    """The names of state arrays without negative numbers, such as means of squares; `load_state_dict` checks them."""

    _passes_options: ClassVar[bool] = False
    """Whether `update` passes `flat.options` to the kernels, which then write half copies, and may skip the step."""

    _scalars: ClassVar[Callable[..., tuple[float, ...]] | None] = None
    """A method of the arguments of `update` without `flat`: the scalars that `update` passes to its kernels.

    Captured steps compute those of many steps ahead, which is faster with it than with `update`.
    """

    _steps = 0

    # ------------------------------------------------------------------ what a subclass defines

    def update(self, flat: FlatArrays, group: Mapping[str, Any], lr: float, step: int, first: bool) -> None:
        """Update `flat.parameters` and `flat.state` in place, from `flat.gradients`.

        It must be elementwise, since the arrays span several parameters, and map zeros to zeros, for the padding.

        group: the parameter group, with all hyperparameters.
        lr: the learning rate of this step.
        step: the step number of these parameters, 1, 2, ... (not `self.steps`, which counts all calls).
        first: whether no step has written one or more of the needed state arrays, which are zero then.

        >>> import gradflow as gf
        >>> class Report(gf.optim.Optimizer):
        ...     def update(self, flat, group, lr, step, first):
        ...         print(lr, step, first)
        >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
        >>> optimizer = Report([x], {"lr": 0.5})
        >>> x.sum().backward()
        >>> optimizer.step()
        0.5 1 False
        """
        raise NotImplementedError

    # ------------------------------------------------------------------ use

    @opaque_call
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to None; the next backward pass writes new ones into the same memory.

        set_to_none: False to fill the gradients that are there with zeros instead, so that `step` updates their
            parameters: with momentum and weight decay, these still move (default True).

        >>> import gradflow as gf
        >>> x = gf.tensor([2.0], requires_grad=True)
        >>> optimizer = gf.optim.SGD([x], lr=0.1)
        >>> (x * x).sum().backward()
        >>> optimizer.zero_grad()
        >>> x.grad is None
        True
        """
        if not set_to_none:
            for group in self.param_groups:
                for tensor in group["params"]:
                    tensor.zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            tensors = group["params"]
            for tensor in tensors if tensors.__class__ is list else listed_params(group):
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

        Raises before anything changes: TypeError or ValueError for an invalid edit of `param_groups` or an invalid
        learning rate, RuntimeError for a parameter that was moved to another device or dtype. A step that is
        interrupted during the update counts for the parameters that it may have changed. Call it from one thread at a
        time.

        >>> import gradflow as gf
        >>> x = gf.tensor([3.0], requires_grad=True)
        >>> optimizer = gf.optim.SGD([x], lr=0.25)
        >>> (x * x).sum().backward()
        >>> optimizer.step()
        >>> x.item(), optimizer.steps
        (1.5, 1)
        """
        loss = None if closure is None else closure()
        self._follow_edits()
        rows = current_rows()
        self._settle()
        rates = [
            group["lr"] if group["lr"].__class__ is float else self._rate(group, self._steps)
            for group in self.param_groups
        ]
        ready = [(block, block.collect_ready()) for block in self._blocks]
        for block, slices in ready:
            for part, run in block.contiguous_runs(slices):
                g, steps, initialised = run[0].history
                group = self.param_groups[g]
                if block.any_outside:
                    block.copy_in(run)
                names = self.needed_state(group)
                first = not initialised.issuperset(names)
                block.record_step(run, initialised.union(names) if first else initialised)
                arrays = block.arrays(part, names)
                if group.get("maximize"):
                    arrays = arrays._replace(gradients=block.backend.negative(arrays.gradients))
                if rows is None:
                    self.update(arrays, group, rates[g], steps + 1, first)
                else:
                    UpdateScalars(self, run, arrays, names).update(rows, group, rates[g], steps + 1, first)
                if block.half is not None and self._passes_options:
                    for s in run:
                        s.half_at = s.tensor._memory.changed  # type: ignore[union-attr]
                if block.any_outside:
                    block.copy_out(run)
        self._steps += 1
        return loss

    @property
    def steps(self) -> int:
        """The number of steps so far. Waits for the device after a step of a `GradScaler`, which may skip it."""
        if self._unsettled is not None:
            self._settle()
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._settle()  # which sets it
        self._steps = value

    @property
    def learning_rates(self) -> list[float]:
        """The learning rate of the next step, for each group."""
        self._follow_parameters()
        return [self._rate(group, self.steps) for group in self.param_groups]

    def _rate(self, group: Mapping[str, Any], steps: int) -> float:
        """The learning rate of a group, which has been checked unless it is a schedule, after so many steps."""
        lr = group["lr"]
        return checked_number("lr", lr(steps)) if callable(lr) else float(lr)

    # ------------------------------------------------------------------ captured steps

    def _stepped(self) -> Iterator[tuple[Any, str]]:
        """The attributes that a training step changes: see `gradflow.replay.host_state`."""
        yield self, "_steps"
        for block in self._blocks:
            yield block, "histories"
            for s in block.slices:
                yield s, "half_at"
                yield s.tensor, "_node"
                leaf = s.tensor._frozen_leaf() if s.tensor._node is None else s.tensor._node
                if isinstance(leaf, Leaf):
                    yield from leaf._stepped()

    def _graph_obstacle(self) -> str | None:
        """Why a graph cannot include a step of this optimizer, in words that follow "it"; None: it can now."""
        self._follow_edits()
        if not type(self).update.__module__.startswith("gradflow."):
            return f"uses {type(self).__name__}, whose own `update` may take numbers that change with each step"
        if any(block.any_outside for block in self._blocks):
            return "trains a parameter whose memory is shared with another tensor or array"
        return None

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything needed to resume with the same parameters: "state", "param_groups" and "steps".

        "state" has, by parameter index, the steps and the state arrays, None for an array that no step has written.
        Schedules are not saved; the optimizer that loads the state keeps its own.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0], requires_grad=True)
        >>> optimizer = gf.optim.SGD([x], lr=0.1, momentum=0.9)
        >>> x.sum().backward()
        >>> optimizer.step()
        >>> state = optimizer.state_dict()
        >>> state["steps"], state["state"][0]["momentum_buffer"].tolist()
        (1, [1.0])
        """
        self._follow_parameters()
        entries, state = collect(self._blocks), {}
        groups, index = [], 0
        for group in self.param_groups:
            n = len(group["params"])
            kept = {k: v for k, v in group.items() if k != "params" and not (k == "lr" and callable(v))}
            indices = list(range(index, index + n))
            index += n
            groups.append({**kept, "params": indices})
            for i in indices:
                if i in entries:
                    steps, arrays = entries[i]
                    state[i] = {"step": steps, **dict.fromkeys(self.needed_state(group)), **arrays}
        return {"state": state, "param_groups": groups, "steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned, here or on another device.

        Hyperparameters come from the state, except a learning rate that is a schedule: it is kept, and continues at the
        step count of the state. Everything is checked before anything changes, which waits for the device. Raises
        TypeError for an object that is not a state dict; KeyError or ValueError for the state of other parameters or of
        another optimizer; ValueError for an invalid step count, non-finite numbers, and negative means of squares.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0], requires_grad=True)
        >>> optimizer = gf.optim.Adam([x], lr=0.1)
        >>> gf.optim.Adam([x], lr=0.5).load_state_dict(optimizer.state_dict())
        """
        self.state_loader(state_dict)()

    def state_loader(self, state_dict: Mapping[str, Any], finite: bool = True) -> Callable[[], None]:
        """Check a state for `load_state_dict`, and return the function that loads it. Raises like `load_state_dict`.

        state_dict: what `state_dict` returned. finite: whether numbers that are not finite are an error (default True).

        >>> import gradflow as gf
        >>> optimizer = gf.optim.SGD([gf.zeros(1, requires_grad=True)], lr=0.1)
        >>> load = optimizer.state_loader({**optimizer.state_dict(), "steps": 7})
        >>> load()
        >>> optimizer.steps
        7
        """
        groups, states, steps = parts_of(state_dict)
        self._follow_parameters()
        sizes, given = [len(g["params"]) for g in self.param_groups], [len(g["params"]) for g in groups]
        if given != sizes:
            raise ValueError(f"the state is of groups of {given} parameters; this optimizer has {sizes}")
        new_groups = [self._merged(own, group) for own, group in zip(self.param_groups, groups, strict=True)]
        needed = [self.needed_state(group) for group in new_groups]
        entries = check_entries(states, self._blocks, needed, self.state_names, self.nonnegative_state, finite)

        def load() -> None:
            self._train(new_groups, self._blocks)
            self.steps = steps
            restore(self._blocks, entries)

        return load

    def _merged(self, own: Mapping[str, Any], loaded: Mapping[str, Any]) -> dict[str, Any]:
        """A group with the hyperparameters of the one that is loaded. Raises ValueError for one that is unknown."""
        unknown = set(loaded) - set(own)
        if unknown:
            raise ValueError(f"the state has hyperparameters that {type(self).__name__} lacks: {sorted(unknown)}")
        kept = {"params", "lr"} if callable(own["lr"]) else {"params"}
        return self._checked({**own, **{k: v for k, v in loaded.items() if k not in kept}})

    def __getstate__(self) -> dict[str, Any]:
        self._follow_parameters()
        return {
            **self.__dict__,
            "_blocks": collect(self._blocks),
        }  # `__setstate__` makes blocks of the copied parameters

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._unsettled = None
        groups = [{**group, "params": list(group["params"])} for group in self.param_groups]
        self.defaults = dict(self.defaults)
        self._train(groups, self._new_blocks(groups))
        restore(self._blocks, state["_blocks"])

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            shown = {k: v for k, v in group.items() if k != "params"}
            groups.append(f"{len(group['params'])} parameters, " + ", ".join(f"{k}={v}" for k, v in shown.items()))
        return f"{type(self).__name__}({'; '.join(groups)})"
