"""Nested tuples, lists and dicts of tensors, taken apart and put together again. None holds nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def flatten(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """What a tree holds, from left to right, each with its path, as in "[0]['weight']"."""
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
    """A tree like this one that holds `leaves`, in the order of `flatten`."""
    remaining = iter(leaves)
    return map_tree(lambda _: next(remaining), tree)


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    """A tree like this one that holds `function` of what this one does."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[map_tree(function, part) for part in tree])
    if isinstance(tree, (tuple, list)):
        return type(tree)([map_tree(function, part) for part in tree])
    if isinstance(tree, dict):
        out = copy.copy(tree)  # which keeps what a subclass has besides
        for key, part in tree.items():
            out[key] = map_tree(function, part)
        return out
    return None if tree is None else function(tree)


def check_state(state: Any) -> None:
    """Raise TypeError unless `state` is a mapping, as every `load_state_dict` takes it."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"load_state_dict takes a state, as state_dict() gives it; got {type(state).__name__}"
            + (f" {state!r}: read the file first" if isinstance(state, (str, Path)) else "")
        )
