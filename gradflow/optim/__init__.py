"""Optimizers over flat buffers, learning-rate schedules, and clipping of gradients."""

from typing import TYPE_CHECKING

from gradflow.optim import schedules
from gradflow.optim.algorithms import SGD, Adam, AdamW, RMSprop
from gradflow.optim.clip import clip_grad_norm_, clip_grad_value_
from gradflow.optim.flat import FlatArrays
from gradflow.optim.hyperparameters import check_numbers
from gradflow.optim.moments import Adagrad, Lion, NAdam, RAdam
from gradflow.optim.optimizer import Optimizer
from gradflow.optim.scaling import GradScaler
from gradflow.pytorch_names import hints_of

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "FlatArrays",
    "GradScaler",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "check_numbers",
    "clip_grad_norm_",
    "clip_grad_value_",
    "schedules",
]

if not TYPE_CHECKING:
    __getattr__ = hints_of(__name__)
