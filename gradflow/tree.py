"""Trees: nested tuples, lists and dicts of leaves. Everything else is a leaf, except None, which is an empty tree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def flatten(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """The leaves of a tree from left to right, each with its path, such as "[0]['weight']", prefixed by `path`."""
    return list(_walk(tree, path))


def _walk(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, (tuple, list)):
        for i, part in enumerate(tree):
            yield from _walk(part, f"{path}[{i}]")
    elif isinstance(tree, dict):
        for key, part in tree.items():
            yield from _walk(part, f"{path}[{key!r}]")
    elif tree is not None:
        yield path, tree


def rebuild(tree: Any, leaves: Sequence[Any]) -> Any:
    """A tree of the same structure with other leaves, in the order of `flatten`."""
    remaining = iter(leaves)
    return map_tree(lambda _: next(remaining), tree)


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree of the same structure with `function` applied to each leaf."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[map_tree(function, part) for part in tree])
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_tree(function, part) for part in tree])
    if isinstance(tree, dict):
        out = copy.copy(tree)  # keeps the attributes of a subclass, such as the factory of a defaultdict
        for key, part in tree.items():
            out[key] = map_tree(function, part)
        return out
    return None if tree is None else function(tree)


def check_state(state: Any) -> None:
    """Raise TypeError unless `state` is a mapping, as `load_state_dict` needs."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"load_state_dict takes a state dict, as state_dict() returns it; got {type(state).__name__}"
            + (f" {state!r}: read the file first" if isinstance(state, (str, Path)) else "")
        )
