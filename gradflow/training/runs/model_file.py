"""The content of a model file: what `Predictor.tree` writes, checked entry by entry when it is read.

A model file may come from anywhere. Nothing in it is executed, and no model is built before the shapes of its weights
are known to fit its sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradflow as gf
from gradflow.backend import ACTIVATIONS
from gradflow.backend.registry import DeviceLike
from gradflow.data.scaling import Standardizer
from gradflow.text import printable
from gradflow.training.runs.inputs import Inputs, inputs_of, learned_from

FORMAT, VERSION = "gradflow model", 2
"""What the content of a model file says it is, and the newest version of the format: 2 is that of tables."""

_MOST_SHOWN = 3  # names in an error message
_LONGEST = 60  # characters of each


def build_model(
    inputs: Inputs,
    sizes: Sequence[int],
    activation: str,
    dropout: float,
    state: Mapping[str, gf.Tensor],
    device: DeviceLike,
) -> gf.nn.Module:
    """Return a new network in evaluation mode with these parameters. The global generator is not used."""
    dtype = state[f"{inputs.prefix}0.weight"].dtype
    model = inputs.model(sizes, activation, dropout, device=device, dtype=dtype, generator=gf.Generator(0))
    model.load_state_dict({**model.state_dict(), **state})
    return model.eval()


def arguments(tree: Any) -> dict[str, Any]:
    """Return the arguments of `Predictor` in the content of a model file. Raises ValueError if they are not all there.

    Types, and the shapes of weights, are checked here; `Predictor` checks what must fit each other.
    """
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise ValueError(f"this is not a model file: its content does not say {FORMAT!r}")
    version = _entry(tree, "version", int)
    if version > VERSION:
        by = some([tree.get("gradflow")], str)
        raise ValueError(f"this model has format {version}, written by gradflow {by}; upgrade gradflow to read it")
    architecture = _entry(tree, "architecture", dict)
    sizes = _all(architecture, "sizes", int)
    activation, dropout = _entry(architecture, "activation", str), _entry(architecture, "dropout", float)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must be at least two integers of at least 1; got {some(sizes)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {some([activation])}; there are {', '.join(ACTIVATIONS)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; got {dropout}")
    targets, image_shape = tree.get("targets"), tree.get("image_shape")
    features = _all(tree, "features", str)
    image_shape = None if image_shape is None else _all(tree, "image_shape", int)
    learned = learned_from(_entry(tree, "inputs", dict))
    inputs = inputs_of(learned, features, image_shape)
    states = _entry(tree, "members", list)
    for state in states:
        _check_state(state, inputs, sizes)
    return {
        "inputs": learned,
        "targets": None if targets is None else Standardizer.from_state(_entry(tree, "targets", dict)),
        "classes": _all(tree, "classes", str),
        "labels": _entry(tree, "labels", list),
        "features": features,
        "columns": _all(tree, "columns", str),
        "image_shape": image_shape,
        "score": _entry(tree, "score", dict),
        "members": [build_model(inputs, sizes, activation, dropout, state, "cpu") for state in states],
    }


def _entry(tree: dict[Any, Any], name: str, kind: type) -> Any:
    if not isinstance(tree.get(name), kind):
        found = f"is {type(tree[name]).__name__}, not {kind.__name__}" if name in tree else "is missing"
        raise ValueError(f"the entry {name!r} {found}")
    return tree[name]


def _all(tree: dict[Any, Any], name: str, kind: type) -> list[Any]:
    values: list[Any] = _entry(tree, name, list)
    for value in values:
        if type(value) is not kind:
            raise ValueError(f"the entry {name!r} must be a list of {kind.__name__}; got {some([value])} in it")
    return values


def _check_state(state: Any, inputs: Inputs, sizes: Sequence[int]) -> None:
    """Raise ValueError unless these are the parameters of a network of these sizes, finite and of one dtype."""
    if not isinstance(state, dict):
        raise ValueError("each member must be a dict of weights by name")
    expected = inputs.shapes(sizes)
    if set(state) != set(expected):
        different = sorted(map(str, set(state) ^ set(expected)))
        raise ValueError(f"the weights do not fit {len(sizes) - 1} layers: {some(different, str)}")
    dtype = getattr(next(iter(state.values())), "dtype", None)
    for name, shape in expected.items():
        value = state[name]
        if not isinstance(value, gf.Tensor) or value.shape != shape:
            found = value.shape if isinstance(value, gf.Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor of shape {shape}; got {found}")
        if not value.dtype.is_floating or value.dtype != dtype:
            raise ValueError(f"weights must have one floating-point dtype; {name} is {value.dtype}")
        if not bool(gf.all(gf.isfinite(value))):
            raise ValueError(f"{name} contains a non-finite number")


def some(values: Sequence[Any], show: Callable[[Any], str] = repr) -> str:
    """Return the first few values as text."""
    shown = [printable(show(v)) for v in values[:_MOST_SHOWN]]
    shown = [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..." for text in shown]
    return ", ".join(shown) + (", ..." if len(values) > _MOST_SHOWN else "")
