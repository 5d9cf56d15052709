"""An ONNX graph that is built node by node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import gradflow as gf
from gradflow.environment import imported_extra

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
"""The versions of the operators, of those of ai.onnx.ml, and of the format: all runtimes since 2022 read them."""

MOST_BYTES = 2**31 - 2**20
"""The most bytes of constants: Protocol Buffers, the format of the file, ends at 2 GiB."""

Operand = str | float | npt.NDArray[Any] | np.generic
"""The name of a value; or a constant: an array, a number of NumPy's, or one of Python's in the dtype of the graph."""


class Graph:
    """Nodes, constants, inputs and outputs. A value is known by its name. Inputs are added first.

    dtype: of the floating-point numbers that the network computes with, "float32" or "float64".

    >>> from gradflow.onnx.graph import Graph
    >>> graph = Graph("float32")
    >>> x = graph.input("x", np.float32, ["batch", 2])
    >>> graph.output("y", graph.add("Mul", x, 2.0), np.float32, ["batch", 2])
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
        self._taken: set[str] = set()
        self._outputs: list[Any] = []
        self._ml = False
        self._bytes = 0

    def add(self, operator: str, *operands: Operand, domain: str = "", **attributes: Any) -> str:
        """Add a node with one result, and return its name. Equal constants are added once."""
        name = self._unused(f"{operator.lower()}_{len(self._nodes)}")
        self._add(
            operator, [x if isinstance(x, str) else self._constant(x) for x in operands], [name], domain, attributes
        )
        return name

    def halves(self, value: str, axis: int) -> list[str]:
        """Add a node that halves a value along an axis, and return the names of the halves."""
        names = [self._unused(f"{half}_{len(self._nodes)}") for half in ("first", "second")]
        self._add("Split", [value], names, "", {"axis": axis})
        return names

    def cast(self, value: str, dtype: Any = None) -> str:
        """Return the name of a value in another dtype (default: that of the graph)."""
        return self.add("Cast", value, to=self._type(self.dtype if dtype is None else dtype))

    def input(self, name: str, dtype: Any, shape: list[int | str]) -> str:
        """Add an input, and return its name. shape: with the names of lengths that vary."""
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, self._type(dtype), shape))
        self._taken.add(name)
        return name

    def output(self, name: str, value: str, dtype: Any, shape: list[int | str]) -> None:
        """Make a value an output of this name, with a "_" after it if an input has it."""
        name = self._unused(name)
        self._add("Identity", [value], [name], "", {})
        self._outputs.append(self._onnx.helper.make_tensor_value_info(name, self._type(dtype), shape))

    def model(self, doc: str = "", metadata: Mapping[str, str] | None = None) -> Any:
        """Return the whole as an `onnx.ModelProto`, which ONNX's full checker accepts.

        doc: what it is. metadata: what the file says of it besides, by name.

        Raises ValueError for constants of 2 GiB and more, which a file cannot hold.
        """
        if self._bytes > MOST_BYTES:
            raise ValueError(
                f"an ONNX file holds less than 2 GiB; the numbers of this model take {self._bytes:,} bytes"
            )
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, "gradflow", self._inputs, self._outputs, self._constants)
        versions = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid("ai.onnx.ml", ML_OPSET)] * self._ml
        model = helper.make_model(
            graph, opset_imports=versions, ir_version=IR_VERSION, producer_name="gradflow",
            producer_version=gf.__version__, doc_string=doc,
        )  # fmt: skip
        helper.set_model_props(model, dict(metadata or {}))
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _constant(self, value: Any) -> str:
        typed = isinstance(value, (np.ndarray, np.generic))
        array = np.asarray(value) if typed else np.asarray(value, self.dtype)
        key = (array.dtype.str, array.shape, array.tobytes() if array.dtype != object else tuple(array.tolist()))
        if key not in self._named:
            self._named[key] = self._unused(f"constant_{len(self._named)}")
            self._bytes += array.nbytes
            self._constants.append(self._onnx.numpy_helper.from_array(array, self._named[key]))
        return self._named[key]

    def _unused(self, name: str) -> str:
        """A name that no input has."""
        while name in self._taken:
            name += "_"
        return name

    def _add(
        self, operator: str, values: list[str], results: list[str], domain: str, attributes: dict[str, Any]
    ) -> None:
        self._ml = self._ml or domain == "ai.onnx.ml"
        self._nodes.append(self._onnx.helper.make_node(operator, values, results, domain=domain, **attributes))

    def _type(self, dtype: Any) -> int:
        found: int = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return found
