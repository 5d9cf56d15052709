"""What each module of gradflow becomes in ONNX. A new kind of module is one function in this table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn
from gradflow.backend import ACTIVATIONS
from gradflow.onnx.functions import ArrayFunctions
from gradflow.onnx.graph import Graph
from gradflow.tables.inputs import ColumnInputs

Exporter = Callable[[Graph, Any, str], str]
"""Adds the nodes of a module to a graph: (graph, module, name of its input) -> name of its result."""

_EXPORTERS: dict[type, Exporter] = {}


def add_module(graph: Graph, module: nn.Module, x: str) -> str:
    """Add the nodes of a module as it is in evaluation mode, and return the name of its result.

    x: the name of its input.

    Raises TypeError for a module that has no counterpart, has hooks, or has another `forward`.
    """
    exporter = _EXPORTERS.get(type(module))
    if exporter is None:
        known = ", ".join(sorted(kind.__name__ for kind in _EXPORTERS))
        raise TypeError(
            f"{type(module).__name__} has no counterpart in ONNX here; write the model as a Sequential of modules that "
            f"have one: {known}"
        )
    if module._hooked or "forward" in vars(module):
        raise TypeError(f"a {type(module).__name__} has hooks or a forward of its own, which ONNX cannot hold")
    return exporter(graph, module, x)


def _exports(*kinds: type) -> Callable[[Exporter], Exporter]:
    def registered(exporter: Exporter) -> Exporter:
        _EXPORTERS.update(dict.fromkeys(kinds, exporter))
        return exporter

    return registered


def _values(tensor: gf.Tensor, graph: Graph) -> np.ndarray[Any, Any]:
    """A parameter or buffer on the host, in the dtype of the graph."""
    values: np.ndarray[Any, Any] = tensor.detach().numpy().astype(graph.dtype)
    return values


# ---------------------------------------------------------------------- activations


_OPERATORS = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}


def add_activation(graph: Graph, name: str, x: str, parameter: float = 0.0) -> str:
    """Add an activation by its name, and return the name of its result. parameter: of leaky_relu and elu."""
    if name in _OPERATORS:
        return graph.add(_OPERATORS[name], x)
    return str(ACTIVATIONS[name].forward(ArrayFunctions(graph), x, parameter))


@_exports(nn.ReLU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Softplus, nn.SELU, nn.Mish, nn.Softsign)
def _activation(graph: Graph, module: Any, x: str) -> str:
    return add_activation(graph, type(module).__name__.lower(), x)


@_exports(nn.GELU)
def _gelu(graph: Graph, module: nn.GELU, x: str) -> str:
    return add_activation(graph, "gelu" if module.approximate == "tanh" else "gelu_exact", x)


@_exports(nn.LeakyReLU)
def _leaky_relu(graph: Graph, module: nn.LeakyReLU, x: str) -> str:
    return add_activation(graph, "leaky_relu", x, module.negative_slope)


@_exports(nn.ELU)
def _elu(graph: Graph, module: nn.ELU, x: str) -> str:
    return add_activation(graph, "elu", x, module.alpha)


@_exports(nn.Hardtanh)
def _hardtanh(graph: Graph, module: nn.Hardtanh, x: str) -> str:
    return ArrayFunctions(graph).clip(x, module.min_val, module.max_val)


@_exports(nn.PReLU)
def _prelu(graph: Graph, module: nn.PReLU, x: str) -> str:
    slopes: Any = _values(module.weight, graph)
    if module.num_parameters > 1:  # reshaped to (channels, 1, ..., 1), which broadcasts along axis 1
        further = graph.add("Sub", graph.add("Shape", graph.add("Shape", x)), np.array([2]))
        shape = graph.add("Concat", np.array(slopes.shape), graph.add("Expand", np.int64(1), further), axis=0)
        slopes = graph.add("Reshape", slopes, shape)
    return graph.add("Where", graph.add("Greater", x, 0.0), x, graph.add("Mul", x, slopes))


@_exports(nn.GLU)
def _glu(graph: Graph, module: nn.GLU, x: str) -> str:
    a, b = graph.halves(x, module.axis)
    return graph.add("Mul", a, ArrayFunctions(graph).sigmoid(b))


@_exports(nn.Softmax, nn.LogSoftmax)
def _softmax(graph: Graph, module: Any, x: str) -> str:
    if isinstance(module.axis, int):
        return graph.add(type(module).__name__, x, axis=module.axis)
    centered = graph.add("Sub", x, graph.add("ReduceMax", x, axes=module.axis))
    powers = graph.add("Exp", centered)
    total = graph.add("ReduceSum", powers, np.array(module.axis))
    if type(module) is nn.Softmax:
        return graph.add("Div", powers, total)
    return graph.add("Sub", centered, graph.add("Log", total))


# ---------------------------------------------------------------------- layers


@_exports(nn.Sequential, nn.MLP)
def _sequence(graph: Graph, module: nn.Sequential, x: str) -> str:
    for child in module:
        x = add_module(graph, child, x)
    return x


@_exports(nn.Identity, nn.Dropout)
def _identity(graph: Graph, module: nn.Module, x: str) -> str:
    return x


@_exports(nn.Flatten)
def _flatten(graph: Graph, module: nn.Flatten, x: str) -> str:
    start, end = module.start_axis, module.end_axis
    if (start, end) == (1, -1):
        return graph.add("Flatten", x)
    after = [] if end == -1 else [graph.add("Shape", x, start=end + 1)]
    return graph.add(
        "Reshape", x, graph.add("Concat", graph.add("Shape", x, end=start), np.array([-1]), *after, axis=0)
    )


@_exports(nn.Linear)
def _linear(graph: Graph, module: nn.Linear, x: str) -> str:
    y = graph.add("MatMul", x, _values(module.weight, graph).T)
    if module.bias is not None:
        y = graph.add("Add", y, _values(module.bias, graph))
    if module.activation is None:
        return y
    return add_activation(graph, module.activation, y, ACTIVATIONS[module.activation].parameter)


@_exports(nn.LayerNorm)
def _layer_norm(graph: Graph, module: nn.LayerNorm, x: str) -> str:
    axes = list(range(-len(module.normalized_shape), 0))
    centered = graph.add("Sub", x, graph.add("ReduceMean", x, axes=axes))
    variance = graph.add("ReduceMean", graph.add("Mul", centered, centered), axes=axes)
    y = graph.add("Div", centered, graph.add("Sqrt", graph.add("Add", variance, module.eps)))
    if module.weight is not None:
        y = graph.add("Mul", y, _values(module.weight, graph))
    return y if module.bias is None else graph.add("Add", y, _values(module.bias, graph))


@_exports(nn.RMSNorm)
def _rms_norm(graph: Graph, module: nn.RMSNorm, x: str) -> str:
    eps = module.eps if module.eps is not None else np.finfo(graph.dtype).eps
    square = graph.add("ReduceMean", graph.add("Mul", x, x), axes=list(range(-len(module.normalized_shape), 0)))
    y = graph.add("Div", x, graph.add("Sqrt", graph.add("Add", square, float(eps))))
    return y if module.weight is None else graph.add("Mul", y, _values(module.weight, graph))


@_exports(nn.BatchNorm1d)
def _batch_norm(graph: Graph, module: nn.BatchNorm1d, x: str) -> str:
    if module.running_mean is None or module.running_var is None:
        raise TypeError("a BatchNorm1d without running statistics has no counterpart in ONNX: it depends on the batch")
    mean = _values(module.running_mean, graph)
    weight = np.ones_like(mean) if module.weight is None else _values(module.weight, graph)
    bias = np.zeros_like(mean) if module.bias is None else _values(module.bias, graph)
    variance = module.running_var.numpy().astype(np.float64) + module.eps  # as an attribute, eps is float32
    return graph.add("BatchNormalization", x, weight, bias, mean, variance.astype(graph.dtype), epsilon=0.0)


@_exports(nn.Embedding)
def _embedding(graph: Graph, module: nn.Embedding, x: str) -> str:
    return graph.add("Gather", _values(module.weight, graph), x)


# ---------------------------------------------------------------------- columns of tables


@_exports(nn.PiecewiseLinear)
def _piecewise_linear(graph: Graph, module: nn.PiecewiseLinear, x: str) -> str:
    starts, scales, least, greatest = (
        _values(each, graph) for each in (module.starts, module.scales, module.least, module.greatest)
    )
    y = graph.add("Mul", graph.add("Sub", graph.add("Unsqueeze", x, np.array([-1])), starts), scales)
    return ArrayFunctions(graph).clip(y, least, greatest)


@_exports(nn.ColumnLinear)
def _column_linear(graph: Graph, module: nn.ColumnLinear, x: str) -> str:
    """One product for each column: (rows, columns, n) to (rows, columns, m)."""
    y = graph.add("Einsum", x, _values(module.weight, graph), equation="rcn,cnm->rcm")
    return y if module.bias is None else graph.add("Add", y, _values(module.bias, graph))


@_exports(ColumnInputs)
def _column_inputs(graph: Graph, module: ColumnInputs, x: str) -> str:
    def chosen(columns: Any) -> str:
        return graph.add("Gather", x, np.array(columns), axis=1)

    parts = []
    if module.numbers:
        numbers = chosen(range(module.numbers))
        if module.encode is None or module.linear is None:
            parts.append(ArrayFunctions(graph).clip(numbers, -module.limit, module.limit))
        else:
            encoded = add_module(graph, module.encode, numbers)
            parts.append(graph.add("Flatten", graph.add("Relu", add_module(graph, module.linear, encoded))))
    taken = [] if module.taken is None else module.taken.tolist()
    hot = 0 if module.hot_values is None else len(module.hot_values)
    if module.hot_values is not None:
        parts.append(graph.cast(graph.add("Equal", chosen(taken[:hot]), _values(module.hot_values, graph))))
    if module.embed is not None:
        codes = graph.cast(chosen(taken[hot:]), np.int64)
        indices = graph.add("Add", codes, module.embedded_starts.numpy())
        parts.append(graph.add("Flatten", add_module(graph, module.embed, indices)))
    return graph.add("Concat", *parts, axis=1)
