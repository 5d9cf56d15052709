"""Graphs of traces and explanations in the form that tests compare: numbers by name."""

from __future__ import annotations

from typing import Any

import numpy as np

import gradflow as gf
from gradflow.drawing.graph import Graph, Local, Step


def forward(graph: Graph) -> dict[str, Any]:
    """The forward values that are known in full, by label."""
    return {v.label: v.forward.values for v in graph.values if v.forward is not None}


def gradients(graph: Graph) -> dict[str, Any]:
    """The gradients that are known in full, by label."""
    return {v.label: v.gradient.values for v in graph.values if v.gradient is not None}


def step(graph: Graph, name: str) -> Step:
    """The step that computed the value with a label."""
    (found,) = [s for s in graph.steps if graph.values[s.output].label == name]
    return found


def local(graph: Graph, of: str, by: str) -> Local:
    """The local derivative of the step that computed the value `of`, by its input `by`."""
    found = step(graph, of)
    for index, each in zip(found.inputs, found.local, strict=True):
        if graph.values[index].label == by and each is not None:
            return each
    raise LookupError(f"no local derivative of {of} by {by}")


def close(found: Any, expected: Any, dtype: str = "float64") -> bool:
    """Whether numbers are equal to a few roundings of the dtype."""
    given = expected.numpy() if isinstance(expected, gf.Tensor) else np.asarray(expected, "float64")
    eps = {"float32": 1.2e-7, "float64": 2.3e-16}[dtype]
    numbers = np.reshape(np.asarray(found, "float64"), given.shape)
    return np.allclose(numbers, given, rtol=32 * eps, atol=32 * eps)
