"""An ONNX graph that is built node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import gradflow as gf
from gradflow.environment import imported_extra

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
"""The versions of the operators, of those of ai.onnx.ml, and of the format: all runtimes since 2022 read them."""

Array = npt.NDArray[Any]


class Graph:
    """Nodes, constants, inputs and outputs. A value is known by its name.

    dtype: of the floating-point numbers that the network computes with, "float32" or "float64".

    >>> from gradflow.onnx.graph import Graph
    >>> graph = Graph("float32")
    >>> x = graph.input("x", np.float32, ["batch", 2])
    >>> graph.output("y", graph.add("Mul", x, graph.number(2.0)), np.float32, ["batch", 2])
    >>> [node.op_type for node in graph.model().graph.node]
    ['Mul', 'Identity']
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self._onnx = imported_extra("onnx", "onnx", "onnx", "an export to ONNX")
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._named: dict[tuple[Any, ...], str] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._ml = False

    def add(self, operator: str, *values: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one result, and return its name."""
        name = f"{operator.lower()}_{len(self._nodes)}"
        self._add(operator, values, name, domain, attributes)
        return name

    def constant(self, values: Any, dtype: Any = None) -> str:
        """Add an array, and return its name; equal arrays are added once. dtype: default, that of the graph."""
        array = np.asarray(values, self.dtype if dtype is None else dtype)
        key = (array.dtype.str, array.shape, array.tobytes() if array.dtype != object else tuple(array.tolist()))
        if key not in self._named:
            self._named[key] = f"constant_{len(self._named)}"
            self._constants.append(self._onnx.numpy_helper.from_array(array, self._named[key]))
        return self._named[key]

    def number(self, value: float, dtype: Any = None) -> str:
        """Add one number, and return its name. dtype: default, that of the graph."""
        return self.constant(value, dtype)

    def cast(self, value: str, dtype: Any = None) -> str:
        """Return the name of a value in another dtype (default: that of the graph)."""
        return self.add("Cast", value, to=self._type(self.dtype if dtype is None else dtype))

    def input(self, name: str, dtype: Any, shape: list[int | str]) -> str:
        """Add an input, and return its name. shape: with the names of lengths that vary."""
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, self._type(dtype), shape))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: list[int | str]) -> None:
        """Make a value an output of this name."""
        self._add("Identity", [value], name, "", {})
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, self._type(dtype), shape))

    def model(self, doc: str = "") -> Any:
        """Return the whole as an `onnx.ModelProto`, which ONNX's full checker accepts. doc: what it is."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, "gradflow", self._inputs, self._outputs, self._constants)
        versions = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid("ai.onnx.ml", ML_OPSET)] * self._ml
        model = helper.make_model(
            graph, opset_imports=versions, ir_version=IR_VERSION, producer_name="gradflow",
            producer_version=gf.__version__, doc_string=doc,
        )  # fmt: skip
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _add(self, operator: str, values: Any, result: str, domain: str, attributes: dict[str, Any]) -> None:
        self._ml = self._ml or domain == "ai.onnx.ml"
        node = self._onnx.helper.make_node(operator, list(values), [result], domain=domain, **attributes)
        self._nodes.append(node)

    def _type(self, dtype: Any) -> int:
        found: int = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return found
