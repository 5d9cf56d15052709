"""The differentiable operations, as functions of tensors.

The `__all__` of each module lists its public operations, which this package and `gradflow` offer. Those that
`gradflow.tensor_methods` declares are also methods of `Tensor`.
"""

from __future__ import annotations

import typing as _typing

from gradflow.ops import (
    activations,
    aggregates,
    closeness,
    creation,
    elementary,
    elementwise,
    exchange,
    indexing,
    likelihoods,
    losses,
    matrices,
    network,
    normalization,
    ordering,
    reductions,
    shape,
    updates,
)
from gradflow.ops import methods as methods
from gradflow.ops.activations import *  # noqa: F403
from gradflow.ops.aggregates import *  # noqa: F403
from gradflow.ops.closeness import *  # noqa: F403
from gradflow.ops.creation import *  # noqa: F403
from gradflow.ops.elementary import *  # noqa: F403
from gradflow.ops.elementwise import *  # noqa: F403
from gradflow.ops.exchange import *  # noqa: F403
from gradflow.ops.indexing import *  # noqa: F403
from gradflow.ops.likelihoods import *  # noqa: F403
from gradflow.ops.losses import *  # noqa: F403
from gradflow.ops.matrices import *  # noqa: F403
from gradflow.ops.network import *  # noqa: F403
from gradflow.ops.normalization import *  # noqa: F403
from gradflow.ops.ordering import *  # noqa: F403
from gradflow.ops.reductions import *  # noqa: F403
from gradflow.ops.shape import *  # noqa: F403
from gradflow.ops.updates import *  # noqa: F403
from gradflow.pytorch_names import METHODS as _METHODS
from gradflow.pytorch_names import hints_at as _hints_at
from gradflow.tensor import Tensor as _Tensor

if not _typing.TYPE_CHECKING:  # type checkers follow the imports above: a list that is not written out hides them
    _MODULES = (
        activations, aggregates, closeness, creation, elementary, elementwise, exchange, indexing, likelihoods, losses,
        matrices, network, normalization, ordering, reductions, shape, updates,
    )  # fmt: skip
    __all__ = [name for module in _MODULES for name in module.__all__]

    _hints_at({name: f"gradflow.{name}" for name in {*__all__} - {*dir(_Tensor), *_METHODS}})(_Tensor)
