"""Mixed precision of a trainer: what its passes run in, and with float16 the scale of its losses."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import Any

import gradflow as gf
from gradflow.optim import GradScaler, Optimizer
from gradflow.training.epoch import NonFiniteLossError

AUTOCASTS = ("bfloat16", "float16")
"""The dtypes of products that a trainer takes."""
SMALLEST_SCALE = 2.0**-14
"""Training ends when the scale of the loss is below: 31 steps in a row after the first scale, 65536, were skipped."""
SLOW = "half precision is slow on the cpu, where it is for trying things out: a GPU gains from it"
logger = logging.getLogger("gradflow")


class Precision:
    """In which dtype a trainer computes. autocast: as it takes it. device: that of its model.

    mode: the context of forward passes and losses. scaler: with float16, what scales the losses; else None.

    Raises ValueError for another dtype, TypeError, which says what to type, for one that the device does not have here.
    """

    def __init__(self, autocast: str | None, device: gf.Device) -> None:
        if autocast is not None and str(autocast) not in AUTOCASTS:
            raise ValueError(f"autocast is 'bfloat16', 'float16' or None; got {autocast!r}")
        self.autocast = None if autocast is None else str(autocast)
        self.mode: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self.scaler: GradScaler | None = None
        if self.autocast is None:
            return
        gf.get_backend(device).native_dtype(self.autocast)
        if device.type == "cpu":
            _say_slow()
        self.mode = gf.autocast(self.autocast)
        if self.autocast == "float16":
            self.scaler = GradScaler()

    def skipped(self, optimizer: Optimizer, before: int, tried: int) -> int:
        """How many of the steps that were tried were skipped. before: the steps of the optimizer before them."""
        return 0 if self.scaler is None else before + tried - optimizer.steps

    def check_scale(self, epoch: int) -> None:
        """Raise NonFiniteLossError if the scale of the loss has become too small. Waits for the device."""
        scale = 1.0 if self.scaler is None else self.scaler.get_scale()
        if scale < SMALLEST_SCALE:
            raise NonFiniteLossError(
                f"the scale of the loss fell to {scale:.3g}, below {SMALLEST_SCALE:.3g}, by epoch {epoch}: gradients "
                "are not finite in float16 at any scale, although the loss is, so steps are skipped; try bfloat16 or "
                "float32, or find the operation that made them with gradflow.detect_anomaly()"
            )


@functools.cache
def _say_slow() -> None:
    """Say it once in a process."""
    logger.warning("%s", SLOW)
