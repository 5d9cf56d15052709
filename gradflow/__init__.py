"""gradflow: automatic differentiation and training of multilayer perceptrons, the same code on CPU and GPU."""

import typing as _typing

from gradflow import nn as nn
from gradflow import ops as _ops
from gradflow import optim as optim
from gradflow import public as _public
from gradflow import random as random
from gradflow.ops import *  # noqa: F403
from gradflow.public import *  # noqa: F403

if _typing.TYPE_CHECKING:
    from gradflow import data as data
    from gradflow import distributed as distributed
    from gradflow import onnx as onnx
    from gradflow import plot as plot
    from gradflow import testing as testing
    from gradflow import training as training
    from gradflow.drawing.existing import draw as draw
    from gradflow.drawing.explanation import explain as explain
    from gradflow.drawing.tracing import trace as trace

__version__ = "0.1.0"

if not _typing.TYPE_CHECKING:  # type checkers follow the imports above
    _WHEN_USED = {
        "draw": "drawing.existing", "explain": "drawing.explanation", "trace": "drawing.tracing",
        "data": "data", "distributed": "distributed", "onnx": "onnx", "plot": "plot", "testing": "testing",
        "training": "training",
    }  # fmt: skip
    """What is imported when it is first used: names, and their modules."""

    __all__ = sorted(["draw", "explain", "nn", "optim", "random", "trace", *_ops.__all__, *_public.__all__])

    def __getattr__(name: str) -> _typing.Any:
        if name in _WHEN_USED:
            import importlib

            module = importlib.import_module(f"{__name__}.{_WHEN_USED[name]}")
            globals()[name] = getattr(module, name, module)
            return globals()[name]
        from gradflow.pytorch_names import missing_name

        raise missing_name(__name__, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_WHEN_USED})
