"""JAX's rows. By default JAX multiplies float32 in TF32 on a GPU; here in TF32 where all rows do, else in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.queued import DEVICE, Queued, no_cuda
from benchmarks.peers import jax_jit
from benchmarks.peers.peer import UnavailableError
from benchmarks.workloads import Workload

SCAN = 32
"""The most steps of one call of `Scan`; the workload's number of batches, if that is smaller."""


class Jit(Queued, jax_jit.Jit):
    """The whole step in one compiled function that reuses the memory of its arguments."""

    def __init__(self, workload: Workload) -> None:
        if DEVICE == "cuda" and jax.default_backend() != "gpu":
            raise UnavailableError(no_cuda(f"JAX {jax.__version__}", jax.default_backend()))
        precision = {"tf32": "tensorfloat32", "autocast": "default"}.get(workload.precision, "highest")
        jax.config.update("jax_default_matmul_precision", precision if workload.dtype == "float32" else None)
        self._autocast = workload.precision == "autocast"
        super().__init__(workload)

    def compute_loss(self, loss: Any, parameters: Any, x: Any, y: Any) -> Any:
        if not self._autocast:
            return super().compute_loss(loss, parameters, x, y)
        low = jax.tree.map(lambda value: value.astype(jnp.bfloat16), (parameters, x))
        return super().compute_loss(lambda logits, labels: loss(logits.astype(jnp.float32), labels), *low, y)

    def step(self, x: Any, y: Any) -> Any:
        self.parameters, self.state, loss = self._step(self.parameters, self.state, x, y)
        return loss

    def synchronize(self) -> None:
        jax.block_until_ready((self.parameters, self.state))


class Scan(Jit):
    """Several steps in one compiled function: `lax.scan` over the batches."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.unit = min(SCAN, len(self.batches))
        one = self._step

        def many(parameters: Any, state: Any, xs: Any, ys: Any) -> Any:
            def body(carry: Any, batch: Any) -> Any:
                *carried, loss = one(*carry, *batch)
                return tuple(carried), loss

            (parameters, state), losses = jax.lax.scan(body, (parameters, state), (xs, ys))
            return parameters, state, losses

        self._many = jax.jit(many, donate_argnums=(0, 1))
        self._stacked = [jnp.stack(each) for each in zip(*self.batches[: self.unit], strict=True)]

    def step(self, x: Any, y: Any) -> Any:
        return self._scan(x[None], y[None])[0]

    def run(self, count: int) -> None:
        for _ in range(count // self.unit):
            self._scan(*self._stacked)

    def _scan(self, xs: Any, ys: Any) -> Any:
        self.parameters, self.state, losses = self._many(self.parameters, self.state, xs, ys)
        return losses
