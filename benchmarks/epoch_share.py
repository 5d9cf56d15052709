"""The share of training steps in the time of `gradflow train digits`: `python -m benchmarks.epoch_share [EPOCHS]`.

The parts of the step (zeroing gradients, forward pass, loss, backward pass, optimizer) are timed inside the command,
with its progress bar. The rest of the time from the first step to the last is the loader, the figures of each epoch
with its test, and the bar. The exit status is 1 if the share is less than `LEAST`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import gradflow as gf
from benchmarks.peers.options import Parser, count
from gradflow import cli, nn, optim

LEAST = 0.8


class Clock:
    """Adds up the time spent in functions; `time` replaces each by a timed one."""

    def __init__(self) -> None:
        self.inside = 0.0
        self.first = self.last = 0.0

    def time(self, owner: Any, name: str, counts: Callable[..., bool] = lambda *_: True) -> None:
        """Time the calls of a function or method for which `counts` is true."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            if not counts(*arguments):
                return function(*arguments, **options)
            start = time.perf_counter()
            result = function(*arguments, **options)
            self.last = time.perf_counter()
            self.inside += self.last - start
            self.first = self.first or start
            return result

        setattr(owner, name, timed)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = Parser(prog="python -m benchmarks.epoch_share", description="Time the training steps of a run.")
    parser.add_argument("epochs", nargs="?", type=count, default=20, help="epochs to train (default: 20)")
    epochs = parser.parse_args(arguments).epochs
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        cli.main(["train", "digits", "--quiet", "--epochs", "1", "--out", f"{folder}/first"])  # imports and compiles
        clock.time(nn.MLP, "__call__", lambda model, *_: model.training)
        clock.time(gf, "cross_entropy", lambda *_: gf.is_grad_enabled())
        clock.time(gf.Tensor, "backward")
        clock.time(optim.Optimizer, "zero_grad")
        clock.time(optim.Optimizer, "step")
        cli.main(["train", "digits", "--epochs", str(epochs), "--out", f"{folder}/second"])
    share = clock.inside / (clock.last - clock.first)
    print(f"the training step is {share:.2f} of the time from the first step to the last; required: at least {LEAST}")
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
