"""The exponential moving average of the weights, over the flat buffers of an optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gradflow.autograd.memory import clock
from gradflow.backend import Array
from gradflow.backend.graphs import MAX_AHEAD, Source, current_rows
from gradflow.backend.optimizer_steps import SGDOptions, SGDScalars
from gradflow.interception import opaque_call, unrecorded
from gradflow.optim.flat import FlatBlock
from gradflow.optim.hyperparameters import checked_number
from gradflow.optim.optimizer import Optimizer
from gradflow.optim.scaling import GradScaler
from gradflow.tensor import Tensor

_TOWARDS = SGDOptions(momentum=0.0, dampening=0.0, weight_decay=-1.0, nesterov=False)
"""With these, `sgd_step` of rate -r on the average, with the weights as its gradient, adds r * (weights - average)."""


class WeightAverage:
    """The average of an optimizer's parameters over all steps, in which each step counts `decay` times the next.

    optimizer: its parameters are averaged.
    decay: a number in (0, 1).
    scaler: what does the steps of the optimizer, if it is not the optimizer itself: an update after a step that it
        skips changes nothing (default None).

    In update t = 1, 2, ... the average moves by r * (weights - average), r = (1 - decay) / (1 - decay^t): the moving
    average with the correction of Adam's means (Kingma and Ba 2015, "Adam", section 3), so that the first weights do
    not count more than others. Raises ValueError for another decay, and for parameters of 16 bits, in which an average
    would stand still.
    """

    def __init__(self, optimizer: Optimizer, decay: float, scaler: GradScaler | None = None) -> None:
        if not 0.0 < checked_number("the decay of an average", decay) < 1.0:
            raise ValueError(f"the decay of an average is in (0, 1); got {decay!r}")
        self.optimizer = optimizer
        self.decay = float(decay)
        self._scaler = scaler
        self._steps = 0
        self._applied: Array = None  # the number of updates, on the device, if a step may be skipped there
        self._row: Array = None  # the scalars of an update, likewise
        self.is_swapped = False
        """Whether the parameters have their averages now, or are half way between."""
        self._blocks: list[FlatBlock] = []
        self._arrays: list[Array] = []
        self._follow()

    def _follow(self) -> None:
        """Average the optimizer's present parameters: each keeps its average, new ones start with their values."""
        self.optimizer._follow_parameters()
        if self._blocks is self.optimizer._blocks:
            return
        for block in self.optimizer._blocks:
            for s in block.slices:
                if s.tensor.dtype.itemsize < 4:
                    raise ValueError(f"an average needs float32 or float64 parameters; one is {s.tensor.dtype}")
        known = {id(tensor): value for tensor, value in self._averages()}
        self._blocks, self._arrays = self.optimizer._blocks, []
        for block in self._blocks:
            _adopt_all(block)
            self._arrays.append(block.backend.copy(block.values))
        for tensor, value in self._averages():
            if id(tensor) in known:
                value.copy_(known[id(tensor)])

    def _averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its average, a view."""
        for block, array in zip(self._blocks, self._arrays, strict=True):
            for s in block.slices:
                yield s.tensor, Tensor(block.view(array, s), block.backend)

    @opaque_call
    def update(self) -> None:
        """Count the present weights, after a step of the optimizer. It can be replayed in a captured step."""
        if self._blocks is not self.optimizer._blocks:
            with unrecorded():
                self._follow()
        skip = None if self._scaler is None else self._scaler._skip_of(self.optimizer)
        scalars = self._next_scalars() if skip is None else self._count(skip)
        for block, array in zip(self._blocks, self._arrays, strict=True):
            if block.any_outside:
                block.copy_in(block.slices)
            block.backend.sgd_step(array, block.values, None, _TOWARDS, scalars, skip=skip)

    def _next_scalars(self) -> Any:
        self.steps += 1
        scalars, rows = self.scalars(self.steps), current_rows()
        return scalars if rows is None else rows.array(_AverageScalars(self), scalars)

    def _count(self, skip: Array) -> Array:
        """Count an update on the device, unless `skip` is not 0, and return its scalars, as `scalars` computes them."""
        F, rows = self._blocks[0].backend, current_rows()
        if rows is not None:
            rows.before_launch(partial(self._has, self._arrays, self.decay))
        double = F.dtypes["float64"]
        if self._applied is None:
            with unrecorded():
                self._applied = F.full((1,), self._steps, dtype=F.dtypes["int64"])
                self._row = F.ones((len(SGDScalars._fields),), dtype=double)
        F.count_step(self._applied, skip)
        updates = F.maximum(F.astype(self._applied, double), 1.0)  # not 0, if the first ones are skipped
        correction = F.subtract(1.0, F.pow(self.decay, updates))
        F.setitem(self._row, (slice(0, 1),), F.divide(self.decay - 1.0, correction))
        return self._row

    def _has(self, arrays: list[Array], decay: float, steps: int) -> bool:
        """Whether the arrays and the decay of a graph are still those of the average, and of the optimizer's blocks."""
        return self._arrays is arrays and self.decay == decay and self._blocks is self.optimizer._blocks

    @property
    def steps(self) -> int:
        """The number of updates. Waits for the device after one with a `GradScaler`, whose steps may be skipped."""
        return self._steps if self._applied is None else int(self._blocks[0].backend.to_host(self._applied)[0])

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value
        if self._applied is not None:
            self._blocks[0].backend.setitem(self._applied, ..., value)

    def scalars(self, steps: int) -> SGDScalars:
        """Those of the update with this number, counted from 1."""
        return SGDScalars(-(1.0 - self.decay) / (1.0 - self.decay**steps), True)

    def _stepped(self) -> Iterator[tuple[Any, str]]:
        """The attribute that an update changes: see `gradflow.replay.host_state`."""
        yield self, "_steps"

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the parameters their averages inside a `with`, in the same memory; before the first update, nothing."""
        if not self.steps:
            yield
            return
        self._follow()
        weights = []
        for block in self._blocks:
            _adopt_all(block)
            weights.append(block.backend.copy(block.values))
        self.is_swapped = True
        try:
            self._assign(self._arrays)
            yield
        finally:
            self._assign(weights)
            self.is_swapped = False

    def _assign(self, arrays: list[Array]) -> None:
        for block, array in zip(self._blocks, arrays, strict=True):
            block.backend.setitem(block.values, ..., array)
            now = clock.change()
            for s in block.slices:
                s.tensor._memory.changed = now  # type: ignore[union-attr]  # a slice has one
            block.copy_out(block.slices)

    def restart(self) -> None:
        """Set the average to the present weights; the number of updates stays."""
        self._blocks = []
        self._arrays = []
        self._follow()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the average: "steps", the number of updates, and "weights", in the order of the parameters."""
        self._follow()
        averages = {id(tensor): value for tensor, value in self._averages()}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {"steps": self.steps, "weights": [averages[id(p)].clone() for p in parameters]}

    def state_loader(self, state: Mapping[str, Any]) -> Callable[[], None]:
        """Check a state that `state_dict` returned, and return the function that loads it. Raises ValueError."""
        self._follow()
        steps, weights = state.get("steps"), state.get("weights")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if type(steps) is not int or steps < 0:
            raise ValueError(f"the number of updates of an average is an integer of at least 0; got {steps!r}")
        if not isinstance(weights, list) or len(weights) != len(parameters):
            raise ValueError(f"the average must have {len(parameters)} tensors, one for each parameter")
        for p, value in zip(parameters, weights, strict=True):
            if not isinstance(value, Tensor) or value.shape != p.shape or value.dtype is not p.dtype:
                got = f"{value.dtype} {value.shape}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"the average of a parameter must be {p.dtype} {p.shape}; got {got}")

        def load() -> None:
            averages = {id(tensor): value for tensor, value in self._averages()}
            for p, value in zip(parameters, weights, strict=True):
                averages[id(p)].copy_(value)
            self.steps, self.is_swapped = steps, False

        return load

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned. Raises ValueError for another."""
        self.state_loader(state)()


class _AverageScalars(Source):
    """The scalars of the updates of an average."""

    dtype = "float64"

    def __init__(self, average: WeightAverage) -> None:
        self._average, self._arrays = average, average._arrays

    def begin(self, sources: Sequence[Source]) -> int:
        own = [x for x in sources if isinstance(x, _AverageScalars) and x._average is self._average]
        self._before, self._updates = own.index(self), len(own)
        self._steps, self._decay = self._average.steps, self._average.decay
        return MAX_AHEAD

    def rows(self, n: int) -> list[float]:
        first = self._steps + self._before + 1
        return [x for k in range(n) for x in self._average.scalars(first + k * self._updates)]

    def is_at(self, k: int) -> bool:
        average = self._average
        is_same = average.decay == self._decay and self.holds()
        return is_same and average.steps == self._steps + k * self._updates

    def holds(self) -> bool:
        average = self._average
        return average._arrays is self._arrays and average._blocks is average.optimizer._blocks


def _adopt_all(block: FlatBlock) -> None:
    """Make the block have the present values of all its parameters."""
    for s in block.slices:
        if s.tensor.array is not s.values:
            block._adopt(s)
    block.copy_in(block.slices)
