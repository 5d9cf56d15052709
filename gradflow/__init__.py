"""gradflow: automatic differentiation and training of multilayer perceptrons, the same code on CPU and GPU."""

import typing as _typing

from gradflow import nn as nn
from gradflow import ops as _ops
from gradflow import optim as optim
from gradflow import public as _public
from gradflow import random as random
from gradflow.ops import *  # noqa: F403
from gradflow.public import *  # noqa: F403

__version__ = "0.1.0"

if not _typing.TYPE_CHECKING:  # type checkers follow the imports above
    __all__ = sorted(["nn", "optim", "random", *_ops.__all__, *_public.__all__])

    def __getattr__(name: str) -> _typing.NoReturn:
        from gradflow.pytorch_names import missing_name

        raise missing_name(__name__, name)
