"""How much of `gradflow train digits` is the training step: `python -m benchmarks.epoch_share [EPOCHS]`.

The parts of the step are timed within the command as users type it, progress bar included: forgetting gradients, the
forward pass, the loss, the backward pass, the optimizer. The rest, from the first step to the last, is the loader, the
figures of each epoch with its test, and the bar. Exit status 1 where the step takes less than `LEAST` of it.
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
    """Adds up the time within functions, each of which is replaced by one that is timed."""

    def __init__(self) -> None:
        self.inside = 0.0
        self.first = self.last = 0.0

    def time(self, owner: Any, name: str, counts: Callable[..., bool] = lambda *_: True) -> None:
        """Time a function or method, of the calls that count."""
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
    parser = Parser(prog="python -m benchmarks.epoch_share", description="Time the steps of an epoch within it.")
    parser.add_argument("epochs", nargs="?", type=count, default=20, help="to train for (default: 20)")
    epochs = parser.parse_args(arguments).epochs
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        cli.main(["train", "digits", "--quiet", "--epochs", "1", "--out", f"{folder}/first"])  # loads and compiles
        clock.time(nn.MLP, "__call__", lambda model, *_: model.training)
        clock.time(gf, "cross_entropy", lambda *_: gf.is_grad_enabled())
        clock.time(gf.Tensor, "backward")
        clock.time(optim.Optimizer, "zero_grad")
        clock.time(optim.Optimizer, "step")
        cli.main(["train", "digits", "--epochs", str(epochs), "--out", f"{folder}/second"])
    share = clock.inside / (clock.last - clock.first)
    print(f"the training step is {share:.2f} of the time from the first to the last; at least {LEAST} is asked for")
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
