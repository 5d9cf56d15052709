"""The abstract array backend: all that the core asks of an array library.

A backend is a class derived from `Backend`; see `gradflow.backend.contract` for its three tiers.
`gradflow.backend.registry` finds the backend of a device by its name.
"""

from gradflow.backend.activations import ACTIVATIONS, Activation
from gradflow.backend.array_functions import ARRAY_FUNCTIONS, Array
from gradflow.backend.contract import Backend
from gradflow.backend.device import Device, Diagnosis, Event, MemoryStats
from gradflow.backend.half_floats import in_float32
from gradflow.backend.kernels import KERNELS, kernel
from gradflow.backend.optimizer_steps import (
    AdamOptions,
    AdamScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from gradflow.backend.philox import dropout_threshold
from gradflow.backend.sums import AccurateSums
from gradflow.shapes import axes_of

__all__ = [
    "ACTIVATIONS",
    "ARRAY_FUNCTIONS",
    "KERNELS",
    "AccurateSums",
    "Activation",
    "AdamOptions",
    "AdamScalars",
    "Array",
    "Backend",
    "Device",
    "Diagnosis",
    "Event",
    "MemoryStats",
    "RMSpropOptions",
    "RMSpropScalars",
    "SGDOptions",
    "SGDScalars",
    "axes_of",
    "dropout_threshold",
    "in_float32",
    "kernel",
]
