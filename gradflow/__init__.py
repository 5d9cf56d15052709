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
    from gradflow import plot as plot

__version__ = "0.1.0"

if not _typing.TYPE_CHECKING:  # type checkers follow the imports above
    __all__ = sorted(["nn", "optim", "plot", "random", *_ops.__all__, *_public.__all__])

    def __getattr__(name: str) -> _typing.Any:
        if name == "plot":  # imported when used: it needs what is above the core
            import importlib

            return importlib.import_module(f"{__name__}.{name}")
        from gradflow.pytorch_names import missing_name

        raise missing_name(__name__, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
