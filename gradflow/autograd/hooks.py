"""Hooks on gradients, and the retained gradients of computed tensors.

Few nodes have either, so a node has no attribute `hooks` until the first is added. `hooked_nodes` holds the nodes that
have any; while it is empty, backward passes take the fast path.
"""

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
"""The nodes and leaves that have hooks."""


class _Hooks(dict[int, Any]):
    """The hooks of a node: for each key a function of the gradient, or a `Retained`.

    The node is in `hooked_nodes` while it has any. Only the node refers to this dict, and nothing global does: a hook
    may refer to its tensor, and through it to the node, which would never be freed.
    """

    __slots__ = ("node",)

    def __init__(self, node: Node | Leaf) -> None:
        self.node = weakref.ref(node, hooked_nodes.discard)

    def __setitem__(self, key: int, hook: Any) -> None:
        super().__setitem__(key, hook)
        hooked_nodes.add(self.node)

    def pop(self, key: int, default: Any = None) -> Any:
        hook = super().pop(key, default)
        if not self:
            hooked_nodes.discard(self.node)
        return hook

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # in a copy of a `Handle`, which belongs to no node


def _hooks_of(node: Node | Leaf) -> dict[int, Any]:
    if not hasattr(node, "hooks"):
        node.hooks = _Hooks(node)
    return node.hooks


def add_hook(node: Node | Leaf, hook: Callable[[Any], Any]) -> Handle:
    """Call `hook` with the gradient of a node in each walk; a result that is not None replaces the gradient."""
    return Handle(_hooks_of(node), hook, node)


_RETAINED = 0
"""The key of a `Retained` in `hooks`. Functions have larger keys."""


class Retained:
    """The retained gradient of a computed tensor (`Tensor.retain_grad`), or None before the first backward pass."""

    __slots__ = ("grad",)

    def __init__(self) -> None:
        self.grad: Tensor | None = None


def retain_gradient(node: Node) -> None:
    """Make a node retain its gradient; see `retained`."""
    hooks = _hooks_of(node)
    if _RETAINED not in hooks:
        hooks[_RETAINED] = Retained()


def retained(node: Node) -> Retained | None:
    """Return the `Retained` of a node, or None if the node does not retain its gradient."""
    found: Retained | None = getattr(node, "hooks", {}).get(_RETAINED)
    return found


def retain(node: Any, g: Any, namespace: Any) -> None:
    """Add `g`, the gradient after all hooks, to the retained gradient of a node, if it has one (see `added`)."""
    kept = node.hooks.get(_RETAINED)
    if kept is not None:
        forbid_replay("keeps the gradient of a computed tensor (retain_grad)")
        kept.grad = added(node.backend, kept.grad, g, namespace)


class Handle:
    """The handle of a registered hook: `remove()`, or the end of a `with` statement on the handle, removes the hook."""

    def __init__(self, hooks: dict[int, Any], hook: Callable[..., Any], owner: Any) -> None:
        self._hooks = hooks
        self._key = clock.tick()  # the handle itself would close a reference cycle
        hooks[self._key] = hook
        invalidate(owner)

    def remove(self) -> None:
        """Remove the hook. Does nothing if it was removed before."""
        self._hooks.pop(self._key, None)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def run_hooks(node: Any, g: Any, namespace: Any, batched: bool) -> Any:
    """Call the hooks of a node in the order in which they were registered, and return the gradient after all of them.

    namespace: `gradflow.ops.namespace` if `g` is a tensor, or with `batched` a batch of tensors; None for arrays.
    batched: whether `g` is a `Batch`. Each hook is then called for each of its elements.

    Raises RuntimeError for a hook that changes the gradient in place; TypeError for one that returns neither None nor a
    gradient of the same shape, dtype and device.
    """
    if batched:
        each = [run_hooks(node, g.values[i, ...], namespace, False) for i in range(g.values.shape[0])]
        F = node.backend if namespace is None else namespace
        return type(g)(F.stack(each, axis=0))
    for key, hook in list(node.hooks.items()):
        if key == _RETAINED:
            continue
        forbid_replay("calls a hook on a gradient")
        given = wrap(g, node.backend) if namespace is None else g
        memory = given._shared_memory()
        before = memory.changed
        result = hook(given)
        if memory.changed != before:
            raise RuntimeError("a hook changed the gradient in place, which may be shared; return a new tensor instead")
        if result is None:
            continue
        fits = isinstance(result, type(given)) and result.backend is node.backend
        if not fits or (result.shape, result.array.dtype) != (tuple(node.shape), node.dtype):
            raise TypeError(
                f"a hook must return None or a gradient of shape {tuple(node.shape)}, {node.dtype} on "
                f"{node.backend.device}; got {result!r}"
            )
        g = result.array if namespace is None else result
    return g
