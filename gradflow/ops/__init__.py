"""The differentiable operations, as functions of tensors.

The module is also the namespace `F` of gradient rules that run on tensors: it has each array function that a rule
calls, under its Array-API name, and the backward kernels.
"""

from __future__ import annotations

import sys

from gradflow import engine
from gradflow.ops.creation import arange, asarray, full, ones, ones_like, to_device, zeros, zeros_like
from gradflow.ops.elementwise import (
    abs,
    add,
    astype,
    clip,
    copy,
    cos,
    divide,
    equal,
    exp,
    expm1,
    greater,
    greater_equal,
    isfinite,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    power,
    sign,
    sin,
    sqrt,
    square,
    subtract,
    tanh,
    where,
)
from gradflow.ops.indexing import getitem, index, scatter_add, scatter_add_along_axis, take, take_along_axis
from gradflow.ops.network import (
    activate_backward,
    dropout,
    elu,
    gelu,
    layer_norm,
    layer_norm_backward,
    leaky_relu,
    linear,
    linear_backward,
    log_softmax,
    logsumexp,
    matmul,
    one_hot,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
)
from gradflow.ops.reductions import (
    all,
    any,
    argmax,
    argmin,
    argsort,
    cumulative_sum,
    max,
    mean,
    min,
    prod,
    std,
    sum,
    var,
)
from gradflow.ops.shape import (
    broadcast_to,
    concat,
    expand_dims,
    flip,
    matrix_transpose,
    pad,
    permute_dims,
    reshape,
    split,
    squeeze,
    stack,
)
from gradflow.ops.table import OPERATIONS, defop, promoted
from gradflow.tensor import Tensor

engine.tensor_functions = sys.modules[__name__]

from gradflow.ops.losses import (  # noqa: E402
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
    nll_loss,
    softmax_cross_entropy_backward,
    squared_error_backward,
)

pow = power  # the Array API's name, for rules

from gradflow.ops import methods  # noqa: E402, F401
