"""Automatic differentiation: the graph of recorded operations, and the backward pass through it."""

from typing import TYPE_CHECKING

from gradflow.pytorch_names import hints_of

if not TYPE_CHECKING:
    __getattr__ = hints_of(__name__)
