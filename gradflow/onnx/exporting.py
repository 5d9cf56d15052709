"""`gradflow.onnx.export`: a module, or a whole run from its raw inputs to its predictions, as an ONNX file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.files import write_file
from gradflow.nn import MLP, Embedding, Linear, Module, PiecewiseLinear, Sequential
from gradflow.onnx.columns import add_columns, add_scale
from gradflow.onnx.graph import Graph
from gradflow.onnx.modules import add_module
from gradflow.tables import Columns
from gradflow.tables.inputs import ColumnInputs
from gradflow.training import Predictor, load_run


def export(model: Module | Predictor | str | Path, path: str | Path, shape: Sequence[int] | None = None) -> None:
    """Write a model as an ONNX file: opset 17, IR version 8, any number of samples.

    model: a module, whose "input" and "output" have the dtype of its parameters; or a `Predictor`, or the folder of a
        run or its model file.
    path: of the file, which is replaced as a whole.
    shape: of one input of a module; default: that of its first layer, if it is linear.

    A module is written as it is in evaluation mode. A Predictor is written with everything between raw inputs and
    predictions, also as an ensemble. The inputs of one for arrays are "input", float64 (batch, features), or images,
    float64 (batch, height, width) or (batch, height, width, channels). One for tables has an input for each column that
    is used, by its name, (batch, 1): numbers are float64, NaN where they are missing; texts are strings, "" where they
    are missing; dates are int64 microseconds since 1970, the least int64 where they are missing. The outputs are
    "label", (batch,), and "probabilities", float32 (batch, classes); or "values", float64 (batch, outputs).

    Raises TypeError for modules that have no counterpart, ModuleNotFoundError without the extra onnx.

    >>> import tempfile
    >>> import gradflow as gf
    >>> from gradflow.onnx import export
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(gf.nn.MLP([4, 8, 3]), f"{folder}/model.onnx")
    """
    if isinstance(model, (str, os.PathLike)):
        model = load_run(Path(model), "cpu")
    write_file(path, exported(model, shape).SerializeToString())


def exported(model: Module | Predictor, shape: Sequence[int] | None = None) -> Any:
    """Return what `export` writes, as an `onnx.ModelProto`; arguments and errors are its own."""
    if isinstance(model, Predictor):
        return _of_predictor(model).model(model.describe())
    return _of_module(model, shape).model(type(model).__name__)


def _new_graph(module: Module) -> Graph:
    """A graph that computes in the dtype of a module: in float32 if that is shorter."""
    dtypes = {parameter.dtype.name for parameter in module.parameters()}
    return Graph("float64" if dtypes == {"float64"} else "float32")


def _of_module(module: Module, shape: Sequence[int] | None) -> Graph:
    if not isinstance(module, Module):
        raise TypeError(f"export takes a module, a Predictor or the folder of a run; got {type(module).__name__}")
    graph = _new_graph(module)
    first = next(m for m in module.modules() if type(m) not in (Sequential, MLP))
    if shape is None:
        widths = {Linear: "in_features", ColumnInputs: "columns", PiecewiseLinear: "columns"}
        if type(first) not in widths:
            raise TypeError(f"export needs the shape of one input of a model that begins with {type(first).__name__}")
        shape = [getattr(first, widths[type(first)])]
    dtype = np.dtype(np.int64) if isinstance(first, Embedding) else graph.dtype
    parameter = next(module.parameters(), None)
    one = gf.zeros((1, *shape), dtype.name, None if parameter is None else parameter.device)
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with gf.no_grad():
            result = module(one)
    finally:
        for each in training:
            each.training = True
    x = graph.input("input", dtype, ["batch", *shape])
    graph.output("output", add_module(graph, module, x), graph.dtype, ["batch", *result.shape[1:]])
    return graph


def _of_predictor(predictor: Predictor) -> Graph:
    graph = _new_graph(predictor.members[0])
    if isinstance(predictor.inputs, Columns):
        x = add_columns(graph, predictor.inputs)
    else:
        shape = predictor.image_shape or (predictor.width,)
        x = graph.input("input", np.float64, ["batch", *shape])
        if len(shape) > 1:
            x = graph.add("Flatten", x)
        x = add_scale(graph, predictor.inputs, x)
    members = [add_module(graph, member, x) for member in predictor.members]
    if predictor.classes:
        members = [graph.add("Softmax", member, axis=-1) for member in members]
    total = graph.add("Sum", *(graph.cast(member, np.float64) for member in members))
    mean = graph.add("Div", total, np.float64(len(members)))
    if predictor.classes:
        _add_classes(graph, predictor, mean)
        return graph
    assert predictor.targets is not None
    values = graph.add("Add", graph.add("Mul", mean, predictor.targets.deviation), predictor.targets.mean)
    graph.output("values", values, np.float64, ["batch", predictor.sizes[-1]])
    return graph


def _add_classes(graph: Graph, predictor: Predictor, probabilities: str) -> None:
    """Add the outputs of classes: the label of the largest probability, and the probabilities."""
    kinds = set(map(type, predictor.labels))
    dtype: Any = np.int64 if kinds == {int} else np.bool_ if kinds == {bool} else np.object_
    labels = predictor.classes if dtype is np.object_ else predictor.labels
    code = graph.add("ArgMax", probabilities, axis=1, keepdims=0)
    graph.output("label", graph.add("Gather", np.array(labels, dtype), code), dtype, ["batch"])
    shape: list[int | str] = ["batch", len(predictor.classes)]
    graph.output("probabilities", graph.cast(probabilities, np.float32), np.float32, shape)
