"""The array functions of backends as operators of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from gradflow.backend import ACTIVATIONS
from gradflow.backend.erf import erf
from gradflow.onnx.graph import Graph, Operand

_OPERATORS = {
    "abs": "Abs", "add": "Add", "divide": "Div", "equal": "Equal", "exp": "Exp", "greater": "Greater",
    "greater_equal": "GreaterOrEqual", "less": "Less", "less_equal": "LessOrEqual", "log": "Log", "maximum": "Max",
    "minimum": "Min", "multiply": "Mul", "negative": "Neg", "sign": "Sign", "sqrt": "Sqrt", "subtract": "Sub",
    "tanh": "Tanh", "where": "Where",
}  # fmt: skip


class ArrayFunctions:
    """A namespace of array functions that add operators to a graph, for formulas that are written for arrays.

    Names of values take the place of arrays. In float64, "erf" and "sigmoid" are composed: onnxruntime has no "Erf" of
    that dtype, and 1.20 fuses "Sigmoid" and "Mul" into an operator that lacks it.

    >>> from gradflow.backend import ACTIVATIONS
    >>> from gradflow.onnx.functions import ArrayFunctions
    >>> from gradflow.onnx.graph import Graph
    >>> import numpy as np
    >>> graph = Graph("float32")
    >>> x = graph.input("x", np.float32, ["batch", 2])
    >>> graph.output("y", ACTIVATIONS["silu"].forward(ArrayFunctions(graph), x, 0.0), np.float32, ["batch", 2])
    >>> [node.op_type for node in graph.model().graph.node]
    ['Sigmoid', 'Mul', 'Identity']
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __getattr__(self, name: str) -> Callable[..., str]:
        if name not in _OPERATORS:
            raise AttributeError(f"the array function {name!r} is not composed of operators of ONNX")
        return partial(self._graph.add, _OPERATORS[name])

    def clip(self, x: Operand, low: Operand, high: Operand) -> str:
        """x within limits."""
        return self.minimum(self.maximum(x, low), high)

    def erf(self, x: str) -> str:
        """The error function."""
        return self._graph.add("Erf", x) if self._graph.dtype == "float32" else str(erf(self, x))

    def expm1(self, x: str) -> str:
        """exp(x) - 1."""
        return self.subtract(self.exp(x), 1.0)

    def log1p(self, x: str) -> str:
        """log(1 + x)."""
        return self.log(self.add(x, 1.0))

    def sigmoid(self, x: str) -> str:
        """1 / (1 + exp(-x))."""
        if self._graph.dtype == "float32":
            return self._graph.add("Sigmoid", x)
        return str(ACTIVATIONS["sigmoid"].forward(self, x, 0.0))

    def square(self, x: str) -> str:
        """x * x."""
        return self.multiply(x, x)
