"""What `gradflow agree` runs on each device: operations, a model's forward and backward pass, short training runs.

A workload is a function of a `Place` that returns `Check`s: results, each with its kind of bound. It runs on the two
devices and, for the reference, on the CPU; the bounds are computed there, from float64 values. Inputs are rounded to
float32 first, so that all places compute from the same numbers. Every workload has its own random generator.
"""

from collections.abc import Iterator

from gradflow.testing.workloads import networks, operations, training
from gradflow.testing.workloads.workload import Check, Place, Workload

__all__ = ["Check", "Place", "Workload", "workloads"]


def workloads() -> Iterator[Workload]:
    """Yield all workloads, in the order of the table."""
    yield from operations.workloads()
    yield from networks.workloads()
    yield from training.workloads()
