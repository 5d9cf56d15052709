"""A model, not a measurement, of the efficiency of 1 to 1,024 GPUs: `python -m benchmarks.ranks_model docs/ranks.svg`.

Weak scaling: each GPU has a batch of its own, of b samples. A step computes for 6 `PARAMETERS` b / `SPEED` seconds, of
which two thirds are the backward pass. The float32 gradients are summed in buckets, in trees: a bucket of n bytes takes
2 log2(p) `LATENCY` + 2 (p - 1) / p n / `BANDWIDTH` seconds on p GPUs. All but the last bucket are summed beside what is
left of the backward pass, one after another. What is not hidden adds to the step.
"""

from __future__ import annotations

import math
import sys

from gradflow.distributed.reduction import BUCKET

SPEED = 100e12
LATENCY = 5e-6
BANDWIDTH = 25e9
GPUS = [2**k for k in range(11)]
PARAMETERS = 10**7
BATCHES = [1024, 4096, 16384]


def efficiency(gpus: int, batch: int) -> float:
    """The time of a step on one GPU, divided by that on so many with as many times the samples."""
    compute = 6 * PARAMETERS * batch / SPEED
    if gpus == 1:
        return 1.0
    sizes = [BUCKET] * (4 * PARAMETERS // BUCKET) + [4 * PARAMETERS % BUCKET]
    sums = [2 * math.log2(gpus) * LATENCY + 2 * (gpus - 1) / gpus * n / BANDWIDTH for n in sizes]
    filled, done = compute / 3, 0.0
    for n, seconds in zip(sizes, sums, strict=True):
        filled += 2 / 3 * compute * n / sum(sizes)
        done = max(done, filled) + seconds
    return compute / done


def main(path: str) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "gradflow"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for batch in reversed(BATCHES):
        (line,) = axes.plot(GPUS, [100 * efficiency(n, batch) for n in GPUS], marker="o")
        last, style = (GPUS[-1], line.get_ydata()[-1]), {"color": line.get_color(), "ha": "right", "va": "top"}
        axes.annotate(f"{batch:,} samples on each GPU", last, (4, -6), textcoords="offset points", **style)
    axes.set(xscale="log", ylim=(0, 105), xlabel="GPUs", ylabel="efficiency, % (a model, not measured)")
    axes.set_xticks(GPUS, [f"{n:,}" for n in GPUS])
    axes.minorticks_off()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(sys.argv[1])
