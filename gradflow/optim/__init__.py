"""Optimizers over flat buffers, learning-rate schedules, and clipping of gradients."""

from gradflow.optim import schedules
from gradflow.optim.algorithms import SGD, Adam, AdamW, RMSprop
from gradflow.optim.clip import clip_grad_norm_
from gradflow.optim.optimizer import Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_grad_norm_", "schedules"]
