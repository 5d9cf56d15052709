"""`gradflow.onnx.export`: a module, or a whole run from its raw inputs to its predictions, as an ONNX file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gradflow as gf
from gradflow import nn
from gradflow.files import FilePath, write_file
from gradflow.onnx.columns import add_columns, add_scale
from gradflow.onnx.graph import Graph
from gradflow.onnx.modules import add_module
from gradflow.tables import Columns
from gradflow.tables.inputs import ColumnInputs
from gradflow.training import Predictor, load_run

_WITHOUT_SHAPE = (nn.Sequential, nn.MLP, nn.Dropout, nn.Identity)
"""The modules that do not tell the shape of an input, but those in or after them may."""
_SHAPES: dict[type, str] = {
    nn.Linear: "in_features", nn.LayerNorm: "normalized_shape", nn.RMSNorm: "normalized_shape",
    nn.BatchNorm1d: "num_features", nn.PiecewiseLinear: "columns", ColumnInputs: "columns",
}  # fmt: skip
"""The attribute that tells the shape of one input."""


def export(model: nn.Module | Predictor | FilePath, path: FilePath, shape: Sequence[int] | int | None = None) -> None:
    """Write a model as an ONNX file: opset 17, IR version 8, any number of samples.

    model: a module, whose "input" and "output" have the dtype of its parameters (float32 for half floats), or indices
        as the input of an `Embedding`; or a `Predictor`, or the folder of a run or its model file.
    path: of the file, which is replaced as a whole.
    shape: of one input of a module; default: that of its first layer, if this tells it.

    A module is written as it is in evaluation mode. A Predictor is written with everything between raw inputs and
    predictions, also as an ensemble. The inputs of one for arrays are "input", float64 (batch, features), or images,
    float64 (batch, height, width) or (batch, height, width, channels). One for tables has an input for each column that
    is used, by its name, (batch, 1): numbers are float64, NaN where they are missing; texts and bools are strings, ""
    where they are missing; dates are int64 microseconds since 1970, the least int64 where they are missing. The outputs
    are "label", (batch,), as `Predictor.predict` returns them, and "probabilities", float32 (batch, classes); or
    "values", float64 (batch, outputs). An output gets a "_" after its name if a column has it. The metadata of the file
    has the names of the classes, features and output columns, if there are any, as JSON.

    Raises TypeError for modules that have no counterpart and without the shape, ValueError for weights of 2 GiB and
    more, OSError, and ModuleNotFoundError without the extra onnx.

    >>> import tempfile
    >>> import gradflow as gf
    >>> from gradflow.onnx import export
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(gf.nn.MLP([4, 8, 3]), f"{folder}/model.onnx")
    """
    if isinstance(model, (str, os.PathLike)):
        model = load_run(Path(model), "cpu")
    write_file(path, exported(model, shape).SerializeToString())


def exported(model: nn.Module | Predictor, shape: Sequence[int] | int | None = None) -> Any:
    """Return what `export` writes, as an `onnx.ModelProto`; arguments and errors are its own."""
    if isinstance(model, nn.Module):
        return _of_module(model, shape).model(type(model).__name__)
    if not isinstance(model, Predictor):
        raise TypeError(f"export takes a module, a Predictor or the folder of a run; got {type(model).__name__}")
    if shape is not None:
        raise TypeError("export takes a shape for a module only: a run knows that of its inputs")
    names = {name: getattr(model, name) for name in ("classes", "features", "columns")}
    metadata = {name: json.dumps(values) for name, values in names.items() if values}
    return _of_predictor(model).model(model.describe(), metadata)


def _new_graph(module: nn.Module) -> Graph:
    """A graph that computes in the dtype of a module: in float32 if that is shorter."""
    dtypes = {parameter.dtype.name for parameter in module.parameters()}
    return Graph("float64" if dtypes == {"float64"} else "float32")


def _of_module(module: nn.Module, shape: Sequence[int] | int | None) -> Graph:
    graph = _new_graph(module)
    y = add_module(graph, module, "input")
    first = next((m for m in module.modules() if type(m) not in _WITHOUT_SHAPE), module)
    if shape is None:
        if type(first) not in _SHAPES:
            raise TypeError(f"export needs the shape of one input of a model that begins with {type(first).__name__}")
        shape = getattr(first, _SHAPES[type(first)])
    one = np.atleast_1d(np.array(shape, np.int64)).tolist()
    parameter = next(module.parameters(), None)
    indices = isinstance(first, nn.Embedding)
    dtype = "int64" if indices else graph.dtype.name if parameter is None else parameter.dtype
    samples = gf.zeros((2, *one), dtype, None if parameter is None else parameter.device)
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with gf.no_grad():
            result = module(samples)
    finally:
        for each in training:
            each.training = True
    if result.shape[:1] != (2,):
        raise TypeError(f"a model in ONNX has one output for each sample; for 2, this one has the shape {result.shape}")
    graph.input("input", np.int64 if indices else graph.dtype, ["batch", *one])
    graph.output("output", y, graph.dtype, ["batch", *result.shape[1:]])
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
