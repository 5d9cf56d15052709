"""What `gradflow agree` runs on each device: operations, the forward and backward pass of a model, training runs.

A workload is a function of a `Place` that returns `Check`s: results, each with a bound on its error. It runs on both
devices and, for the reference, on the CPU, where the bounds are computed from float64 values. Inputs are rounded to
float32 first, so all places compute from the same numbers. Every workload has its own random generator.
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
