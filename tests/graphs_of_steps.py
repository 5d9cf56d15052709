"""A stand-in for graphs, which uses what `Backend.graph` gets, and counts; and a device without graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import gradflow as gf
from gradflow.backend import Backend
from gradflow.replay.batches import Several


def give_graphs(monkeypatch: pytest.MonkeyPatch, device: str) -> list[int]:
    """Give the backend of a device a service `graph`; returns a list that gets the number of steps of each replay.

    A step gets its inputs at places of their own, and its results are copied: a graph does no less.
    """
    replays: list[int] = []

    def graph(F: Backend, step: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        calls, results = step.parts()
        places = [F.copy(x) for x in inputs]
        steps = inputs[0].shape[0] if isinstance(step, Several) else 1

        def replay(*arrays: Any) -> Any:
            replays.append(steps)
            for place, x in zip(places, arrays, strict=True):
                F.setitem(place, ..., x)
            return results(*map(F.copy, calls(*places)))

        return replay

    backend = gf.get_backend(device)
    monkeypatch.setattr(type(backend), "graph", graph)
    monkeypatch.setattr(type(backend), "graphs_of_several", True)
    monkeypatch.setattr(backend, "nonfinite", None)  # a Trainer makes it
    return replays


def take_graphs(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Make the backend of a device, such as CUDA, one without graphs."""
    backend = gf.get_backend(device)
    monkeypatch.setattr(type(backend), "graph", Backend.graph)
    monkeypatch.setattr(backend, "nonfinite", None)
