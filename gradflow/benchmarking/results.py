"""What a measurement says: medians and quartiles, the batch size from which a device pays, and all of it as JSON."""

from __future__ import annotations

import datetime
import math
import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.benchmarking.measuring import MODES, Cell, Measurement
from gradflow.text import printable

_RTOL = {"float64": 1e-6, "float32": 1e-3, "tf32": 0.01}
"""By how much losses may differ, by dtype, relative to them; half floats by 0.05."""


def summary(times: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles.

    >>> summary([3.0, 1.0, 2.0])
    {'median': 2.0, 'lower_quartile': 1.5, 'upper_quartile': 2.5}
    """
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [*times] * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def best(cell: Cell) -> float | None:
    """Return the seconds of a step in the faster mode; None if none is timed."""
    return min((statistics.median(times) for times in cell.times.values()), default=None)


@dataclass(frozen=True)
class Crossover:
    """From which batch size on a device is faster than another one.

    faster, slower: the sizes at which it is. batch: from where on it is faster, interpolated; None if it is faster at
    all sizes, or not at the largest.
    """

    device: str
    reference: str
    batch: int | None
    faster: tuple[int, ...]
    slower: tuple[int, ...]

    def __str__(self) -> str:
        head = f"{self.device} is faster than {self.reference}"
        if not self.slower:
            return f"{head} at every batch size"
        if not self.faster:
            return f"{head} at no batch size"
        if self.batch is None:
            return f"{head} at {', '.join(map(str, self.faster))}, but not at {max(self.slower)}"
        last = max(self.slower)
        return f"{head} from a batch of about {self.batch} on (not at {last}, but at {min(self._after(last))})"

    def _after(self, batch: int) -> list[int]:
        return [n for n in self.faster if n > batch]


def crossover(device: str, times: Mapping[int, float], reference: str, others: Mapping[int, float]) -> Crossover:
    """Compare the times of a step by batch size, of a device and of the reference.

    Between two sizes, the logarithm of the ratio is taken as linear in the logarithm of the batch size.

    >>> str(crossover("cuda", {16: 2.0, 64: 2.0}, "cpu", {16: 1.0, 64: 4.0}))
    'cuda is faster than cpu from a batch of about 32 on (not at 16, but at 64)'
    """
    ratios = {batch: math.log(times[batch] / others[batch]) for batch in sorted({*times} & {*others})}
    faster = tuple(batch for batch, ratio in ratios.items() if ratio < 0)
    slower = tuple(batch for batch, ratio in ratios.items() if ratio >= 0)
    batch = None
    if faster and slower and max(faster) > max(slower):
        low = max(slower)
        high = min(n for n in faster if n > low)
        share = ratios[low] / (ratios[low] - ratios[high])
        batch = round(float(f"{low * (high / low) ** share:.2g}"))
    return Crossover(device, reference, batch, faster, slower)


def crossovers(cells: Sequence[Cell]) -> list[Crossover]:
    """Compare each device with the first one, in the faster mode of each."""
    times: dict[str, dict[int, float]] = {}
    for cell in cells:
        seconds = best(cell)
        if seconds is not None:
            times.setdefault(cell.device, {})[cell.batch] = seconds
    first, *others = dict.fromkeys(cell.device for cell in cells)
    found = [crossover(name, times.get(name, {}), first, times.get(first, {})) for name in others]
    return [each for each in found if each.faster or each.slower]


def remarks(measurement: Measurement) -> list[str]:
    """Return what was not measured, and why, and where a device computes other losses than the first: one line each."""
    found, dtype = [], measurement.task.dtype
    for mode in MODES:
        reasons: dict[tuple[str, str], list[int]] = {}
        for cell in measurement.cells:
            if mode in cell.why:
                reasons.setdefault((cell.device, cell.why[mode]), []).append(cell.batch)
        for (device, why), batches in reasons.items():
            what = f"{device}, batch {', '.join(map(str, batches))}{', captured' * (mode != 'plain')}"
            found.append(f"{what}: {printable(why)}")
    for cell in measurement.cells:
        first = next(each for each in measurement.cells if each.batch == cell.batch)
        pairs = zip(first.losses, cell.losses, strict=False)
        if any(abs(a - b) > _RTOL.get(dtype, 0.05) * abs(a) for a, b in pairs):
            losses = f"{', '.join(map('{:.6g}'.format, cell.losses))}; {', '.join(map('{:.6g}'.format, first.losses))}"
            found.append(f"{cell.device}, batch {cell.batch}: its losses differ from those of {first.device}: {losses}")
    return found


def document(measurement: Measurement, unusable: Mapping[str, str], interrupted: bool) -> dict[str, Any]:
    """Return the measurement as JSON has it."""
    task = measurement.task
    devices = []
    for name in measurement.devices:
        backend = gf.get_backend(name)
        kernels = Counter(backend.kernels().values())
        devices.append({"device": name, "description": printable(backend.describe()), "kernels": dict(kernels)})
    rows = []
    for cell in measurement.cells:
        modes: dict[str, Any] = {mode: {"why": why} for mode, why in cell.why.items()}
        for mode, times in cell.times.items():
            modes[mode] = {**summary(times), "rounds": len(times), "steps_a_round": cell.steps[mode]}
        seconds = best(cell)
        rows.append(
            {
                "batch": cell.batch,
                "device": cell.device,
                **modes,
                "samples_per_second": None if seconds is None else cell.batch / seconds,
                "memory": cell.memory,
                "losses": [loss if math.isfinite(loss) else None for loss in cell.losses],
            }
        )
    return {
        "gradflow bench": gf.__version__,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "date": datetime.date.today().isoformat(),
        "threads": gf.get_num_threads(),
        "layers": task.layers,
        "activation": task.activation,
        "loss": task.loss,
        "optimizer": task.optimizer,
        "dtype": task.dtype,
        "devices": devices,
        "unusable": dict(unusable),
        "rows": rows,
        "crossovers": [{**vars(each), "text": str(each)} for each in crossovers(measurement.cells)],
        "remarks": remarks(measurement),
        "interrupted": interrupted,
    }
