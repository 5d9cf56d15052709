"""Modules, layers, losses and initial values, with PyTorch's names and semantics."""

from typing import TYPE_CHECKING, Any

from gradflow.nn import init, layers, module
from gradflow.nn.activations import (
    ELU,
    GELU,
    GLU,
    SELU,
    Hardtanh,
    LeakyReLU,
    LogSoftmax,
    Mish,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Softsign,
    Tanh,
)
from gradflow.nn.columns import ColumnLinear, PiecewiseLinear
from gradflow.nn.containers import ModuleDict, ModuleList, ParameterList, Sequential
from gradflow.nn.embedding import Embedding
from gradflow.nn.functional import functional_call
from gradflow.nn.layers import Dropout, Flatten, Identity, Linear
from gradflow.nn.losses import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    GaussianNLLLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from gradflow.nn.module import Module
from gradflow.nn.normalization import BatchNorm1d, LayerNorm, RMSNorm
from gradflow.nn.parameter import Parameter
from gradflow.nn.perceptron import MLP
from gradflow.nn.state import StateError
from gradflow.nn.vectors import parameters_to_vector, vector_to_parameters

if TYPE_CHECKING:
    from gradflow.nn.summaries import LayerSummary, StepMemory, Summary, summary

__all__ = [
    "ELU",
    "GELU",
    "GLU",
    "MLP",
    "SELU",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "ColumnLinear",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianNLLLoss",
    "Hardtanh",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
    "LayerNorm",
    "LayerSummary",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "Mish",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "PReLU",
    "Parameter",
    "ParameterList",
    "PiecewiseLinear",
    "RMSNorm",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Softsign",
    "StateError",
    "StepMemory",
    "Summary",
    "Tanh",
    "functional_call",
    "init",
    "parameters_to_vector",
    "summary",
    "vector_to_parameters",
]

# Pickles of earlier versions look for these where they were defined then.
for _class in (
    ELU, GELU, MLP, LayerNorm, LeakyReLU, LogSoftmax, ModuleList, ReLU, Sequential, SiLU, Sigmoid, Softmax, Softplus,
    Tanh,
):  # fmt: skip
    setattr(layers, _class.__name__, _class)
for _moved in (StateError, functional_call):
    setattr(module, _moved.__name__, _moved)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in ("LayerSummary", "StepMemory", "Summary", "summary"):  # imported when used
            from gradflow.nn import summaries

            return getattr(summaries, name)
        from gradflow.pytorch_names import missing_name

        raise missing_name(__name__, name)
