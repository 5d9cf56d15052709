"""What a function changes, of everything that is alive in the process: found by comparison, and restored.

State is what has `state_dict` and `load_state_dict` (modules, optimizers and generators of gradflow, modules and
optimizers of PyTorch, objects of your own), gradflow's leaf tensors that require gradients, and PyTorch's generators.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gradflow.autograd.grad_mode import no_grad
from gradflow.random import default_generator
from gradflow.tensor import Tensor


class Saved(NamedTuple):
    """An object and a copy of its state."""

    owner: Any
    state: Any

    def changed(self) -> bool:
        """Whether the state of the object is no longer that of the copy."""
        return not same(self.state, _state(self.owner))

    def restore(self) -> None:
        """Give the object its saved state back; tensors of gradflow keep their memory."""
        if isinstance(self.owner, Tensor):
            with no_grad():
                self.owner.copy_(self.state)
        else:
            self.owner.load_state_dict(copy.deepcopy(self.state))  # PyTorch's optimizers keep what they are given


def saved() -> list[Saved]:
    """Return every object with state that is alive, each with a copy of its state.

    >>> import gradflow as gf
    >>> weight = gf.ones(1, requires_grad=True)
    >>> optimizer = gf.optim.SGD([weight], lr=0.5)
    >>> before = saved()
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> changed = [each for each in before if each.changed()]
    >>> for each in changed:
    ...     each.restore()
    >>> {type(each.owner).__name__ for each in changed} >= {"SGD", "Tensor"}, weight.tolist(), optimizer.steps
    (True, [1.0], 0)
    """
    found = []
    for owner in _owners():
        with contextlib.suppress(Exception):  # an object that is half made, or has no state to give
            found.append(Saved(owner, _state(owner)))
    return found


class _TorchDraws:
    """The state of PyTorch's default generators."""

    def state_dict(self) -> dict[str, Any]:
        torch = sys.modules["torch"]
        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.is_initialized() and torch.cuda.get_rng_state_all()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch = sys.modules["torch"]
        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])


def _owners() -> Iterator[Any]:
    gc.collect()
    alive = [*gc.get_objects(), default_generator]  # which `gc.freeze` may hide
    stateful = [each for each in alive if hasattr(type(each), "state_dict") and hasattr(type(each), "load_state_dict")]
    parts: set[int] = set()
    for each in stateful:
        if hasattr(type(each), "named_modules"):  # a module: its state covers that of its parts
            with contextlib.suppress(Exception):
                parts.update(id(part) for part in [*each.modules(), *each.parameters()] if part is not each)
    yield from {id(each): each for each in stateful if id(each) not in parts}.values()
    if "torch" in sys.modules:
        yield _TorchDraws()
    for each in alive:
        if issubclass(type(each), Tensor) and each.is_leaf and each.requires_grad and id(each) not in parts:
            yield each


def _state(owner: Any) -> Any:
    if isinstance(owner, Tensor):
        return owner.detach().clone()
    return copy.deepcopy(owner.state_dict())


def same(a: Any, b: Any, rtol: float = 0.0) -> bool:
    """Whether two states or results have the same numbers and strings, also inside dicts, lists and tuples.

    rtol: the relative difference that is allowed (default 0). Objects of other types are not compared.

    >>> same({"w": [1.0, "x"]}, {"w": [1.0, "x"]}), same(1.0, 1.001), same(1.0, 1.001, rtol=0.01)
    (True, False, True)
    """
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[key], b[key], rtol) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b, [rtol] * len(a)))
    x, y = _host(a), _host(b)
    if x.dtype.kind not in "biufUV" or y.dtype.kind not in "biufUV":
        return bool(x.dtype.kind == y.dtype.kind)
    if "U" in x.dtype.kind + y.dtype.kind:
        return bool(a == b)
    x, y = x.astype("float64"), y.astype("float64")
    return x.shape == y.shape and bool(np.allclose(x, y, rtol, 0.0, equal_nan=True))


def _host(x: Any) -> Any:
    if hasattr(x, "detach"):  # a tensor, of gradflow or PyTorch
        x = x.detach().cpu()
        return x.float().numpy() if str(x.dtype) == "torch.bfloat16" else x.numpy()
    return np.asarray(x)
