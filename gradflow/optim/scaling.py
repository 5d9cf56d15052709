"""`GradScaler`: dynamic loss scaling for float16, whose state lies on the device, so that no step waits for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from gradflow.autograd.leaf import IN_BUFFER
from gradflow.backend import Array, Backend
from gradflow.backend.graphs import current_rows
from gradflow.interception import opaque_call
from gradflow.ops.checks import check_tensors, kind_of
from gradflow.optim.applied_steps import AppliedSteps
from gradflow.optim.flat import Slice
from gradflow.optim.hyperparameters import checked_number
from gradflow.optim.optimizer import Optimizer
from gradflow.tensor import Tensor
from gradflow.tree import check_state

_LARGEST = 2.0**128


def _between(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float. Raises ValueError unless it is a number in (low, high)."""
    if not low < checked_number(name, value, -math.inf) < high:
        raise ValueError(f"{name} must be in ({low:g}, {high:g}); got {value!r}")
    return float(value)


def _count(name: str, value: Any, low: int) -> int:
    """`value` as an int. Raises ValueError unless it is an integer in [low, 2**31)."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not low <= value < 2**31:
        raise ValueError(f"{name} must be an integer in [{low}, 2**31); got {value!r}")
    return int(value)


def _checked_settings(growth_factor: Any, backoff_factor: Any, growth_interval: Any) -> tuple[float, float, int]:
    return (
        _between("growth_factor", growth_factor, 1.0, math.inf),
        _between("backoff_factor", backoff_factor, 0.0, 1.0),
        _count("growth_interval", growth_interval, 1),
    )


def _check_optimizer(method: str, given: Any) -> None:
    if not isinstance(given, Optimizer):
        raise TypeError(f"GradScaler.{method} takes an optimizer; got {kind_of(given)}")


class GradScaler:
    """Scales losses of `gradflow.autocast("float16")`, so that small gradients do not become 0: PyTorch's `GradScaler`.

    init_scale: the first scale (default 65536).
    growth_factor, growth_interval: after so many steps in a row without a gradient that is not finite, the scale is
        multiplied by the factor (default 2, after 2000).
    backoff_factor: what the scale is multiplied by after a step with one, which is skipped (default 0.5).
    enabled: False: scales nothing, and `step` is the optimizer's own (default True).

    The scale and all that decides lies on the device: no method waits for it but `get_scale`, `state_dict`, and one
    `step` in 256. `Optimizer.steps`, which counts applied steps, and its `state_dict` wait too. A schedule that is not
    gradflow's, and an optimizer with an `update` of its own, wait in each step. One scaler serves several optimizers,
    with parameters on one device. Micikevicius et al. 2018, "Mixed Precision Training", section 3.2.

    Raises ValueError for a number out of range.

    >>> import gradflow as gf
    >>> model = gf.nn.Linear(3, 1)
    >>> optimizer, scaler = gf.optim.SGD(model.parameters(), lr=0.1), gf.optim.GradScaler(init_scale=1024.0)
    >>> with gf.autocast("float16"):
    ...     loss = model(gf.ones((4, 3))).mean()
    >>> scaler.scale(loss).backward()
    >>> scaler.step(optimizer)
    >>> scaler.update()
    >>> scaler.get_scale(), optimizer.steps
    (1024.0, 1)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._start = _between("init_scale", init_scale, 0.0, _LARGEST), 0
        self.growth_factor, self.backoff_factor, self.growth_interval = _checked_settings(
            growth_factor, backoff_factor, growth_interval
        )
        self.enabled = enabled
        self._backend: Any = None
        self._scale: Any = None
        self._growth: Any = None
        self._found: WeakKeyDictionary[Optimizer, Array] = WeakKeyDictionary()  # not 0: its last step was skipped
        self._rows: WeakKeyDictionary[Optimizer, AppliedSteps] = WeakKeyDictionary()
        self._unscaled: dict[Optimizer, list[Slice] | None] = {}  # since the last update: what `step` is to update

    def _place(self, backend: Backend) -> None:
        if self._backend is None:
            single, int32 = backend.dtypes["float32"], backend.dtypes["int32"]
            self._backend = backend
            self._scale = backend.full((), self._start[0], dtype=single)
            self._growth = backend.full((), self._start[1], dtype=int32)
        elif backend is not self._backend:
            raise ValueError(f"this GradScaler is on {self._backend.device}; got a tensor on {backend.device}")

    def scale(self, loss: Tensor) -> Tensor:
        """`loss` times the scale, to call `backward()` of.

        >>> import gradflow as gf
        >>> gf.optim.GradScaler(init_scale=8.0).scale(gf.tensor(0.5)).item()
        4.0
        """
        check_tensors("GradScaler.scale", loss)
        if not self.enabled:
            return loss
        self._place(loss.backend)
        return loss * Tensor(self._scale, self._backend)

    @opaque_call
    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, in place: before they are clipped.

        `step` does it otherwise. It does not divide what later backward passes add. Raises RuntimeError for a second
        call before `update`, after `step`, without `scale`, and without a gradient.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0], requires_grad=True)
        >>> optimizer, scaler = gf.optim.SGD([x]), gf.optim.GradScaler()
        >>> scaler.scale(x.sum()).backward()
        >>> scaler.unscale_(optimizer)
        >>> x.grad.tolist()
        [1.0]
        """
        _check_optimizer("unscale_", optimizer)
        if not self.enabled:
            return
        self._check_not_stepped(optimizer)
        if optimizer in self._unscaled:
            raise RuntimeError("the gradients of this optimizer were unscaled already since the last update()")
        if self._backend is None:
            raise RuntimeError("call scaler.scale(loss).backward() before the gradients are unscaled")
        F, found = self._backend, self._found.get(optimizer)
        if found is None:
            found = self._found[optimizer] = F.zeros((), dtype=F.dtypes["int32"])
        F.setitem(found, ..., 0)
        optimizer._follow_edits()
        ready: list[Slice] = []
        for block in optimizer._blocks:
            self._place(block.backend)
            slices = block.collect_ready()
            inside = [s for s in slices if s.tensor._node.state is IN_BUFFER]  # type: ignore[union-attr]
            for part, _ in block.contiguous_runs(inside):
                F.unscale(block.gradients[part], self._scale, found)
            for s in slices:
                leaf: Any = s.tensor._node
                if leaf.state is not IN_BUFFER:
                    F.unscale(leaf.array, self._scale, found)
                leaf.mark_gradient_changed()
            ready += slices
        if not ready:
            raise RuntimeError("no parameter of this optimizer has a gradient: call scaler.scale(loss).backward()")
        self._unscaled = {**self._unscaled, optimizer: ready}

    def _skip_of(self, optimizer: Optimizer) -> Array | None:
        """A flag on the device, which is not 0 if the last step of the optimizer was skipped; None before a step."""
        return self._found.get(optimizer)

    def _check_not_stepped(self, optimizer: Optimizer) -> None:
        if self._unscaled.get(optimizer, ()) is None:
            raise RuntimeError(
                "this optimizer has done a step since the last update(): call scaler.update() once, after the steps of "
                "all optimizers"
            )

    @opaque_call
    def step(self, optimizer: Optimizer) -> None:
        """Do a step of an optimizer, unless one of its gradients is not finite.

        Raises as `Optimizer.step`, TypeError for anything else, and RuntimeError for a second step before `update`,
        without `scale`, and without a gradient.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0], requires_grad=True)
        >>> optimizer, scaler = gf.optim.SGD([x], lr=1.0), gf.optim.GradScaler()
        >>> scaler.scale(x.sum()).backward()
        >>> scaler.step(optimizer)
        >>> x.tolist()
        [0.0]
        """
        _check_optimizer("step", optimizer)
        if not self.enabled:
            optimizer.step()
            return
        self._check_not_stepped(optimizer)
        if optimizer not in self._unscaled:
            self.unscale_(optimizer)
        found, ready = self._found[optimizer], self._unscaled[optimizer]
        assert ready is not None
        if optimizer._passes_options and type(optimizer).update.__module__.startswith("gradflow."):
            if optimizer not in self._rows:
                self._rows[optimizer] = AppliedSteps(optimizer, self._backend, found)
            self._rows[optimizer].step(ready)
        elif not int(self._backend.to_host(found)):
            optimizer.step()
        self._unscaled = {**self._unscaled, optimizer: None}

    def _stepped(self) -> Iterator[tuple[Any, str]]:
        """The attributes that a training step changes: see `gradflow.replay.host_state`."""
        yield self, "_unscaled"
        for rows in self._rows.values():
            yield rows, "_tried"

    def _settings(self) -> tuple[float, float, int]:
        return self.growth_factor, self.backoff_factor, self.growth_interval

    def _has(self, steps: int, settings: tuple[float, float, int]) -> bool:
        """Whether the settings of a graph are still those of the scaler."""
        return settings == self._settings()

    @opaque_call
    def update(self) -> None:
        """Change the scale, after the steps of all optimizers: a smaller one if a step was skipped.

        Raises RuntimeError without a step since the last call.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0], requires_grad=True)
        >>> optimizer, scaler = gf.optim.SGD([x], lr=1.0), gf.optim.GradScaler(init_scale=8.0)
        >>> scaler.scale(x.sum() * float("inf")).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> x.tolist(), scaler.get_scale()
        ([1.0], 4.0)
        """
        if not self.enabled:
            return
        if not self._unscaled:
            raise RuntimeError("there was no step since the last update(): call scaler.step(optimizer) first")
        rows, settings = current_rows(), self._settings()
        if rows is not None:
            rows.before_launch(self._has, settings)
        found, *others = [self._found[optimizer] for optimizer in self._unscaled]
        for other in others:
            found = self._backend.maximum(found, other)
        self._backend.update_scale(self._scale, self._growth, found, *settings)
        self._unscaled = {}

    def get_scale(self) -> float:
        """The present scale. Waits for the device.

        >>> import gradflow as gf
        >>> gf.optim.GradScaler().get_scale()
        65536.0
        """
        if not self.enabled:
            return 1.0
        return self._start[0] if self._backend is None else float(self._backend.to_host(self._scale))

    def is_enabled(self) -> bool:
        """Whether losses are scaled.

        >>> import gradflow as gf
        >>> gf.optim.GradScaler(enabled=False).is_enabled()
        False
        """
        return self.enabled

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on, with PyTorch's names; empty if it is not enabled. Waits for the device.

        >>> import gradflow as gf
        >>> gf.optim.GradScaler().state_dict()["scale"]
        65536.0
        """
        if not self.enabled:
            return {}
        growth = self._start[1] if self._backend is None else int(self._backend.to_host(self._growth))
        return {
            "scale": self.get_scale(), "growth_factor": self.growth_factor, "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval, "_growth_tracker": growth,
        }  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        if self._unscaled:
            raise RuntimeError("a GradScaler cannot be copied between a step and update(): call scaler.update() first")
        return {"enabled": self.enabled, **self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(enabled=state["enabled"])  # type: ignore[misc]
        self.load_state_dict(state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned. Raises TypeError, KeyError or ValueError for another.

        >>> import gradflow as gf
        >>> scaler = gf.optim.GradScaler(init_scale=4.0)
        >>> scaler.load_state_dict(gf.optim.GradScaler().state_dict())
        >>> scaler.get_scale()
        65536.0
        """
        check_state(state_dict)
        if not self.enabled:
            return
        names = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
        missing = [name for name in names if name not in state_dict]
        if missing:
            kind = "" if state_dict else ": it is that of a scaler that is not enabled"
            raise KeyError(f"the state of a GradScaler lacks {', '.join(missing)}{kind}")
        scale, *settings, growth = [state_dict[name] for name in names]
        start = _between("scale", scale, 0.0, _LARGEST), _count("_growth_tracker", growth, 0)
        self.growth_factor, self.backoff_factor, self.growth_interval = _checked_settings(*settings)
        self._start = start
        if self._backend is not None:
            self._backend.setitem(self._scale, ..., self._start[0])
            self._backend.setitem(self._growth, ..., growth)
