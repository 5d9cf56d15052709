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
from gradflow.benchmarking.measuring import LEAST_ROUNDS, MODES, Cell, Measurement
from gradflow.text import printable

_RTOL = {"float64": 1e-6, "float32": 1e-3, "tf32": 0.01}
"""By how much losses may differ, by dtype, relative to them; half floats by 0.05."""
_WIDE = 0.25  # what quartiles may lie apart by, relative to the median, before it is told


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

    faster, slower: the sizes at which it is. unclear: those with too few rounds, or where the quartiles overlap.
    missing: those that are not measured on both. batch: from where on it is faster, interpolated; None if it is not
    faster at the largest clear size, slower at none, or unclear at a larger one.
    """

    device: str
    reference: str
    batch: int | None
    faster: tuple[int, ...] = ()
    slower: tuple[int, ...] = ()
    unclear: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.slower and not self.faster:
            text = f"measured: {self.device} is slower than {self.reference} at {_listed(self.slower)}"
        elif self.faster:
            text = f"measured: {self.device} is faster than {self.reference} {self._where()}"
        else:
            text = f"{self.device} beside {self.reference}"
        if self.unclear:
            text += f"; unclear at {_listed(self.unclear)}: measure longer (--seconds)"
        return text + f"; not measured at {_listed(self.missing)}" * bool(self.missing)

    def _where(self) -> str:
        if not self.slower:
            return f"at {_listed(self.faster)}"
        if self.batch is None:
            return f"at {_listed(self.faster)}, but not at {_listed(self.slower)}"
        low, high = _around(self.faster, self.slower)
        return f"from a batch of about {self.batch} on (not at {low}, but at {high})"


def _around(faster: Sequence[int], slower: Sequence[int]) -> tuple[int, int]:
    """Return the largest size at which it is slower, and the next one at which it is faster."""
    low = max(slower)
    return low, min(n for n in faster if n > low)


def _listed(batches: Sequence[int]) -> str:
    return ", ".join(map(str, batches))


Times = Mapping[int, Sequence[float]]
"""By batch size: the seconds of a step in each round."""


def crossover(device: str, times: Times, reference: str, others: Times, batches: Sequence[int] = ()) -> Crossover:
    """Compare the times of a step by batch size, of a device and of the reference. batches: all sizes.

    A size is clear if both have three rounds or more, and the quartiles of one lie below those of the other. Between
    two sizes, the logarithm of the ratio of the medians is taken as linear in the logarithm of the batch size.

    >>> fast, slow = [1.0, 1.0, 1.0], [4.0, 4.0, 4.0]
    >>> print(crossover("cuda", {16: slow, 64: fast}, "cpu", {16: fast, 64: slow}))
    measured: cuda is faster than cpu from a batch of about 32 on (not at 16, but at 64)
    """
    both = sorted({*times} & {*others})
    found: dict[int | None, list[int]] = {-1: [], 1: [], None: []}
    for n in both:
        found[_clear_order(times[n], others[n])].append(n)
    faster, slower, unclear = map(tuple, (found[-1], found[1], found[None]))
    batch = None
    if slower and max(faster, default=0) > max(slower) and max(unclear, default=0) < max(faster):
        low, high = _around(faster, slower)
        ratios = [math.log(statistics.median(times[n]) / statistics.median(others[n])) for n in (low, high)]
        batch = round(float(f"{low * (high / low) ** (ratios[0] / (ratios[0] - ratios[1])):.2g}"))
    return Crossover(device, reference, batch, faster, slower, unclear, tuple(sorted({*batches} - {*both})))


def _clear_order(times: Sequence[float], others: Sequence[float]) -> int | None:
    """Return -1 if `times` are clearly below the others, 1 if above, None if it is not clear."""
    if min(len(times), len(others)) < LEAST_ROUNDS:
        return None
    ours, theirs = summary(times), summary(others)
    if ours["upper_quartile"] < theirs["lower_quartile"]:
        return -1
    return 1 if theirs["upper_quartile"] < ours["lower_quartile"] else None


def crossovers(cells: Sequence[Cell]) -> list[Crossover]:
    """Compare each device with the first one, in the faster mode of each."""
    times: dict[str, dict[int, list[float]]] = {cell.device: {} for cell in cells}
    for cell in cells:
        if cell.times:
            times[cell.device][cell.batch] = min(cell.times.values(), key=statistics.median)
    first, *others = times
    batches = [cell.batch for cell in cells]
    found = [crossover(name, times[name], first, times[first], batches) for name in others]
    return [each for each in found if each.faster or each.slower or each.unclear]


def _is_wide(times: Sequence[float]) -> bool:
    each = summary(times)
    return each["upper_quartile"] - each["lower_quartile"] > _WIDE * each["median"]


def remarks(measurement: Measurement) -> list[str]:
    """Return what was not measured, and why, where times vary, and where losses differ: one line each."""
    found, dtype = [], measurement.task.dtype
    for mode in MODES:
        reasons: dict[tuple[str, str], list[int]] = {}
        for cell in measurement.cells:
            if mode in cell.why:
                reasons.setdefault((cell.device, cell.why[mode]), []).append(cell.batch)
        for (device, why), batches in reasons.items():
            what = f"{device}, batch {', '.join(map(str, batches))}{', captured' * (mode != 'plain')}"
            found.append(f"{what}: {printable(why)}")
    wide = [cell for cell in measurement.cells if any(map(_is_wide, cell.times.values()))]
    if wide:
        where = "; ".join(
            f"{device}, batch {_listed([cell.batch for cell in wide if cell.device == device])}"
            for device in dict.fromkeys(cell.device for cell in wide)
        )
        advice = "close other programs, or measure longer (--seconds)"
        if gf.get_num_threads() > 1:
            advice += "; one thread is often steadier (OMP_NUM_THREADS=1)"
        found.append(f"{where}: the times vary by more than {_WIDE:.0%}: {advice}")
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
