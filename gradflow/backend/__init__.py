"""The abstract array backend: everything that the core needs from an array library.

A backend is a class derived from `Backend`, whose docstring explains its three tiers. `discovery` finds the backend
class of a device prefix, `registry` the backend object of a device.
"""

from gradflow.backend.activations import ACTIVATIONS, Activation
from gradflow.backend.array_functions import ARRAY_FUNCTIONS, Array
from gradflow.backend.contract import Backend
from gradflow.backend.device import Device, Diagnosis, Event, MemoryStats
from gradflow.backend.half_floats import in_float32
from gradflow.backend.kernels import KERNELS, kernel
from gradflow.backend.launches import launch_counters, launched
from gradflow.backend.optimizer_steps import (
    AdamOptions,
    AdamScalars,
    MomentOptions,
    MomentScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
)
from gradflow.backend.philox import dropout_threshold
from gradflow.backend.precision import get_matmul_precision, set_matmul_precision
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
    "MomentOptions",
    "MomentScalars",
    "RMSpropOptions",
    "RMSpropScalars",
    "SGDOptions",
    "SGDScalars",
    "axes_of",
    "dropout_threshold",
    "get_matmul_precision",
    "in_float32",
    "kernel",
    "launch_counters",
    "launched",
    "set_matmul_precision",
]
