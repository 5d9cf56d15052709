"""Hooks on gradients, and the gradients that computed tensors retain."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gradflow.autograd.memory import clock
from gradflow.autograd.wrapping import added, wrap
from gradflow.interception import forbid_replay, invalidate

if TYPE_CHECKING:
    from gradflow.autograd.graph import Node
    from gradflow.autograd.leaf import Leaf
    from gradflow.tensor import Tensor

hooked_nodes: set[weakref.ref[Any]] = set()
"""The nodes that have `hooks`: what to do with the gradient of their tensors."""


def _hooks_of(node: Node | Leaf, make: bool = False) -> dict[int, Any] | None:
    """The hooks of a node, None if it has none; or from now on a place for them."""
    if weakref.ref(node) in hooked_nodes:
        return node.hooks
    if not make:
        return None
    node.hooks = {}  # here, not beside the set: a hook may well hold the tensor and with it the node
    hooked_nodes.add(weakref.ref(node, hooked_nodes.discard))
    return node.hooks


def add_hook(node: Node | Leaf, hook: Callable[[Any], Any]) -> Handle:
    """Have `hook` see, and perhaps replace, the gradient of the tensor of a node."""
    hooks = _hooks_of(node, make=True)
    assert hooks is not None
    return Handle(hooks, hook, node)


_RETAINED = 0
"""The key in `Node.hooks` of the place for a retained gradient."""


class Retained:
    """Holds the gradient of a computed tensor after `Tensor.retain_grad`."""

    __slots__ = ("grad",)

    def __init__(self) -> None:
        self.grad: Tensor | None = None


def retained(node: Node, make: bool = False) -> Retained | None:
    """Where the gradient of the tensor of a node is kept, if it is; or from now on."""
    hooks = _hooks_of(node, make)
    if hooks is None:
        return None
    if make and _RETAINED not in hooks:
        hooks[_RETAINED] = Retained()
    found: Retained | None = hooks.get(_RETAINED)
    return found


def retain(node: Any, g: Any, functions: Any) -> None:
    """Add g, the gradient after all hooks, to the retained gradient of a node, if it has one; see `added`."""
    kept = node.hooks.get(_RETAINED)
    if kept is not None:
        forbid_replay("keeps the gradient of a computed tensor (retain_grad)")
        kept.grad = added(node.backend, kept.grad, g, functions)


class Handle:
    """What registering a hook returns: `remove()` takes the hook back, once; so does leaving a `with` on it."""

    def __init__(self, hooks: dict[int, Any], hook: Callable[..., Any], owner: Any) -> None:
        self._hooks = hooks
        self._key = clock.tick()  # not the handle itself, which would close a cycle
        hooks[self._key] = hook
        invalidate(owner)

    def remove(self) -> None:
        """Take the hook back; nothing happens if that has been done."""
        self._hooks.pop(self._key, None)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def run_hooks(node: Any, g: Any, functions: Any, batched: bool) -> Any:
    """The gradient after all hooks of a node: a tensor with `functions`, else an array, or a batch of either.

    Raises RuntimeError for a hook that changes the gradient in place, TypeError for one that returns no such gradient.
    """
    if batched:
        each = [run_hooks(node, g.values[i, ...], functions, False) for i in range(g.values.shape[0])]
        F = node.backend if functions is None else functions
        return type(g)(F.stack(each, axis=0))
    for key, hook in list(node.hooks.items()):
        if key == _RETAINED:
            continue
        forbid_replay("calls a hook on a gradient")
        given = wrap(g, node.backend) if functions is None else g
        memory = given._shared_memory()
        before = memory.changed
        result = hook(given)
        if memory.changed != before:
            raise RuntimeError("a hook changed the gradient in place, which others may share; return a new one instead")
        if result is None:
            continue
        fits = isinstance(result, type(given)) and result.backend is node.backend
        if not fits or (result.shape, result.array.dtype) != (tuple(node.shape), node.dtype):
            raise TypeError(
                f"a hook returns None or a gradient of shape {tuple(node.shape)}, {node.dtype} on "
                f"{node.backend.device}; got {result!r}"
            )
        g = result.array if functions is None else result
    return g
