"""The namespace `F` of gradient rules that run on tensors: what a rule may call, under the names that a backend has.

In an ordinary backward pass, `F` is a backend and a rule computes with arrays. With `create_graph=True`, `F` is this
module: the same rule computes with tensors, and what it computes is recorded, so that it can be differentiated.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from gradflow.backend import Backend
from gradflow.ops.activations import *  # noqa: F403
from gradflow.ops.aggregates import *  # noqa: F403
from gradflow.ops.creation import *  # noqa: F403
from gradflow.ops.elementary import *  # noqa: F403
from gradflow.ops.elementwise import *  # noqa: F403
from gradflow.ops.elementwise import copy as copy
from gradflow.ops.elementwise import power as pow  # noqa: F401
from gradflow.ops.indexing import *  # noqa: F403
from gradflow.ops.indexing import getitem as getitem
from gradflow.ops.indexing import scatter_add as scatter_add
from gradflow.ops.indexing import scatter_add_along_axis as scatter_add_along_axis
from gradflow.ops.mapping import sum_of_examples as sum_of_examples
from gradflow.ops.matrices import *  # noqa: F403
from gradflow.ops.network import *  # noqa: F403
from gradflow.ops.network import dropout_factors as dropout_factors
from gradflow.ops.normalization import *  # noqa: F403
from gradflow.ops.ordering import *  # noqa: F403
from gradflow.ops.places import put as put
from gradflow.ops.reductions import *  # noqa: F403
from gradflow.ops.shape import *  # noqa: F403
from gradflow.ops.updates import *  # noqa: F403

_F: Any = sys.modules[__name__]

half_dtypes: tuple[Any, ...] = ()
"""Empty: the walk converts half floats to float32 before a rule runs on tensors."""

# The kernels that rules call: their composed defaults, so that one formula serves every order of derivative.
activate_backward = functools.partial(Backend.activate_backward, _F)
linear_backward = functools.partial(Backend.linear_backward, _F)
layer_norm_backward = functools.partial(Backend.layer_norm_backward, _F)
batch_norm_backward = functools.partial(Backend.batch_norm_backward, _F)
softmax_cross_entropy_backward = functools.partial(Backend.softmax_cross_entropy_backward, _F)
squared_error_backward = functools.partial(Backend.squared_error_backward, _F)
