"""A training step on paper: its operations, the bytes that it moves at least, and how near a measured time comes.

The bytes: each product reads its two factors and writes its result, once; the activation, its derivative and the bias
gradient come with products; the loss reads the outputs and writes their gradient; the optimizer reads and writes each
array once. A cache may save some of them: the arrays of (t) and (a) fit into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.workloads import Workload

_SIZES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Work:
    """The operations of the products of a step, two for each multiply-add, and the least bytes of the step."""

    operations: float
    bytes: float

    def least_seconds(self, ceilings: dict[str, Any], precision: str) -> dict[str, float]:
        """Return the seconds that the products and the bytes take at the measured ceilings, as far as these are known.

        precision: of the products, a key of `ceilings.PRODUCTS`.
        """
        found, rate = {}, ceilings.get("operations_per_second", {}).get(precision)
        if isinstance(rate, float):
            found["products"] = self.operations / rate
        if "copy_bytes_per_second" in ceilings:
            found["bytes"] = self.bytes / ceilings["copy_bytes_per_second"]
        return found


def precision_of(workload: Workload) -> str:
    """Return the precision of the products: float32, tf32 or bfloat16."""
    return {"tf32": "tf32", "autocast": "bfloat16"}.get(workload.precision, workload.dtype)


def work(workload: Workload) -> Work:
    """Return the work of a step with Adam, of a perceptron with ReLU."""
    batch, layers = workload.batch, workload.layers
    kept = _SIZES[workload.dtype]  # of parameters, gradients, moments
    size = _SIZES["bfloat16"] if workload.precision == "autocast" else kept  # of factors and activations
    operations = moved = 0.0
    for i, (n, m) in enumerate(pairwise(layers)):
        products = 2 if i == 0 else 3  # nobody needs the gradient of the inputs
        operations += products * 2.0 * batch * n * m
        x, w, y = batch * n, n * m, batch * m
        moved += size * (x + w + y)  # forward
        moved += size * (y + x) + kept * w  # gradient of the weights
        if i:
            moved += size * (y + w + 2 * x)  # gradient of the inputs, and what tells where ReLU was 0
    outputs = batch * layers[-1]
    moved += size * 2 * outputs + (8 * batch if workload.loss == "cross_entropy" else size * outputs)
    moved += kept * 7 * workload.parameters  # reads parameters, gradients, two moments; writes all but the gradients
    moved += size * workload.parameters if workload.precision == "autocast" else 0  # a half copy of the parameters
    return Work(operations, moved)
