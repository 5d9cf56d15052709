"""Recipes of random trainings: what decides one, how a seed draws it, and how it becomes simpler."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import Any

from gradflow.backend.activations import ACTIVATIONS
from gradflow.optim import schedules

WIDTHS = [1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 19, 23, 31, 32, 33, 37, 47, 53, 59, 61, 64, 67, 70]
ROWS = [1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 33, 47, 64, 65, 97, 100]
MODULES: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "ELU": lambda draw: {"alpha": draw.choice([1.0, 0.3])},
    "GELU": lambda draw: {},
    "Hardtanh": lambda draw: {},
    "LeakyReLU": lambda draw: {"negative_slope": draw.choice([0.01, 0.2])},
    "LogSoftmax": lambda draw: {},
    "Mish": lambda draw: {},
    "PReLU": lambda draw: {},
    "ReLU": lambda draw: {},
    "SELU": lambda draw: {},
    "SiLU": lambda draw: {},
    "Sigmoid": lambda draw: {},
    "Softmax": lambda draw: {},
    "Softplus": lambda draw: {},
    "Softsign": lambda draw: {},
    "Tanh": lambda draw: {},
}
OPTIMIZERS: dict[str, dict[str, list[Any]]] = {
    "SGD": {"momentum": [0.0, 0.9], "weight_decay": [0.0, 0.01], "dampening": [0.0, 0.5], "maximize": [False, True]},
    "Adam": {"betas": [(0.9, 0.999), (0.5, 0.9)], "weight_decay": [0.0, 0.01], "amsgrad": [False, True],
             "maximize": [False, True]},
    "AdamW": {"eps": [1e-8, 1e-3], "weight_decay": [0.01, 0.0, 0.1], "amsgrad": [False, True]},
    "RMSprop": {"alpha": [0.99, 0.9], "momentum": [0.0, 0.9], "centered": [False, True], "weight_decay": [0.0, 0.01]},
    "Adagrad": {"lr_decay": [0.0, 0.1], "weight_decay": [0.0, 0.01]},
    "NAdam": {"weight_decay": [0.0, 0.01], "decoupled_weight_decay": [False, True]},
    "RAdam": {"weight_decay": [0.0, 0.01], "decoupled_weight_decay": [False, True]},
    "Lion": {"weight_decay": [0.0, 0.01], "maximize": [False, True]},
}  # fmt: skip
RATES: dict[str, Callable[[float], Any]] = {
    "number": lambda lr: lr,
    "cosine": lambda lr: schedules.cosine(lr, 15),
    "warmup": lambda lr: schedules.warmup(schedules.step(lr, 4, 0.5), 3),
    "one_cycle": lambda lr: schedules.one_cycle(lr, 20),
    "own": lambda lr: lambda steps: lr / (1 + steps),
}
LOSSES = ("labels", "smoothed", "ignored", "weighted", "probabilities", "mse", "l1", "huber", "smooth_l1", "nll",
          "bce_logits", "bce", "kl", "gaussian")  # fmt: skip
EVENTS = ("rate", "weight_decay", "momentum", "mode", "freeze", "threads", "weights", "clear", "numbers")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides a training.

    layers: a tuple for each layer: ("linear", width, bias, activation), ("module", name, options), ("norm", name),
    ("dropout", p), or ("again",): the last linear layer once more, if it is square, else a tied copy of it.
    mlp: whether the linear layers are one `nn.MLP`, so that no other layers are used.
    groups: the number of parameter groups. accumulate: batches of a step. apart: whether each of these is a captured
    call. zero: what clears gradients. calls: the rows of each step's batch, and what happens before it.
    """

    seed: int
    dtype: str = "float32"
    inputs: int = 3
    layers: tuple[Any, ...] = ()
    mlp: bool = False
    outputs: int = 2
    frozen: float = 0.0
    loss: str = "labels"
    reduction: str = "mean"
    optimizer: str = "SGD"
    options: tuple[tuple[str, Any], ...] = ()
    rate: str = "number"
    groups: int = 1
    clip: Any = None
    accumulate: int = 1
    apart: bool = False
    zero: str = "optimizer"
    strided: bool = False
    calls: tuple[tuple[int, str | None], ...] = ((4, None),) * 5


def drawn(seed: int, steps: int = 14) -> Recipe:
    """The recipe of a seed."""
    draw = random.Random(seed)
    layers: list[Any] = []
    mlp = draw.random() < 0.35
    for _ in range(draw.randrange(6)):
        name = draw.choice([None, *ACTIVATIONS])
        if layers and draw.random() < 0.15:
            layers.append(("again",))
        else:
            layers.append(("linear", draw.choice(WIDTHS), draw.random() < 0.8, name))
        if name is None and draw.random() < 0.8:
            kind = draw.choice([*MODULES])
            layers.append(("module", kind, tuple(MODULES[kind](draw).items())))
        if draw.random() < 0.2:
            layers.append(("norm", draw.choice(["LayerNorm", "RMSNorm", "BatchNorm1d"])))
        if draw.random() < 0.25:
            layers.append(("dropout", draw.choice([0.1, 0.5, 0.9])))
    optimizer = draw.choice([*OPTIMIZERS, "SGD", "Adam", "AdamW", "RMSprop"])
    options = {name: draw.choice(values) for name, values in OPTIMIZERS[optimizer].items() if draw.random() < 0.5}
    if optimizer == "SGD" and options.get("momentum") and not options.get("dampening") and draw.random() < 0.5:
        options["nesterov"] = True
    rows = draw.sample(ROWS, k=draw.choice([1, 1, 2, 3]))
    often = draw.choice([0.0, 0.0, 0.1, 0.3])
    return Recipe(
        seed,
        draw.choice(["float32", "float32", "float64"]),
        draw.choice(WIDTHS),
        tuple(layers),
        mlp,
        draw.choice([1, 2, 3, 10, draw.choice(WIDTHS)]),
        draw.choice([0.0, 0.0, 0.2, 0.5]),
        draw.choice(["labels", *LOSSES]),
        draw.choice(["mean", "mean", "sum", "none"]),
        optimizer,
        tuple(options.items()),
        draw.choice(["number", *RATES]),
        draw.choice([1, 1, 1, 2, 3]),
        draw.choice([None, None, ("norm", 0.5), ("norm", 1e3), ("norm", float("inf")), ("value", 0.01)]),
        draw.choice([1, 1, 1, 2, 3]),
        draw.random() < 0.5,
        draw.choice(["optimizer", "optimizer", "zeros", "model", "after"]),
        draw.random() < 0.15,
        tuple(
            (draw.choice(rows), draw.choice(EVENTS) if i > 3 and draw.random() < often else None) for i in range(steps)
        ),
    )


def simpler(recipe: Recipe) -> Iterator[Recipe]:
    """Recipes with less in them."""
    new: Callable[..., Recipe] = lambda **changes: dataclasses.replace(recipe, **changes)  # noqa: E731
    calls, layers = recipe.calls, recipe.layers
    for k in range(1, len(calls)):
        yield new(calls=calls[:k])
    for i in range(len(calls)):
        yield new(calls=calls[:i] + calls[i + 1 :])
        yield new(calls=(*calls[:i], (calls[i][0], None), *calls[i + 1 :]))
        yield new(calls=(*calls[:i], (calls[0][0], calls[i][1]), *calls[i + 1 :]))
    for rows in (1, 2, 3, 8):
        yield new(calls=tuple((min(rows, n), event) for n, event in calls))
    for i, layer in enumerate(layers):
        yield new(layers=layers[:i] + layers[i + 1 :])
        if layer[0] == "linear":
            for width in (1, 2, 8):
                if width < layer[1]:
                    yield new(layers=(*layers[:i], (*layer[:1], width, *layer[2:]), *layers[i + 1 :]))
            yield new(layers=(*layers[:i], (*layer[:3], None), *layers[i + 1 :]))
            yield new(layers=(*layers[:i], (*layer[:2], True, layer[3]), *layers[i + 1 :]))
    for i in range(len(recipe.options)):
        yield new(options=recipe.options[:i] + recipe.options[i + 1 :])
    for field in dataclasses.fields(Recipe):
        if field.name not in ("seed", "calls", "layers", "options", "inputs", "outputs"):
            yield new(**{field.name: field.default})
    for width in (1, 2, 8):
        if width < recipe.inputs:
            yield new(inputs=width)
        if width < recipe.outputs:
            yield new(outputs=width)
