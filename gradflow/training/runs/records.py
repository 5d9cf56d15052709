"""What a run writes about itself: its config, with all that repeats it, and its figures by epoch."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

import gradflow as gf
from gradflow.backend.registry import describe_device
from gradflow.data import Part
from gradflow.training.epoch import Epoch
from gradflow.training.runs.preparation import Plan


def environment(device: gf.Device, processes: int = 1) -> dict[str, Any]:
    """Return what else than the settings determines a result: if both are equal, two runs are equal bit for bit.

    processes: how many train together (default 1).

    That is: the versions, the device, the number of processes, which kernels run (so GRADFLOW_FUSED and GRADFLOW_FAST),
    the BLAS library with the processor type of its kernels and its threads, and the processor that llvmlite compiles
    for.
    Raises DeviceUnavailableError if the backend cannot describe its device.
    """
    kernels = Counter(gf.get_backend(device).kernels().values())
    found: dict[str, Any] = {
        "gradflow": gf.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit_learn": version("scikit-learn"),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": describe_device(device)[0],
        "processes": processes,
        "kernels": ", ".join(f"{count} {how}" for how, count in sorted(kernels.items())),
    }
    if device.type == "cuda":
        found["cupy"] = sys.modules["cupy"].__version__
    if "llvmlite" in kernels:
        found["llvm_target"] = _llvm_target()
    with contextlib.suppress(ImportError):  # comes with scikit-learn
        from threadpoolctl import threadpool_info

        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        names = {f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip() for p in pools}
        found["blas"] = ", ".join(sorted(names))
        found["threads"] = max((pool["num_threads"] for pool in pools), default=1)
    return found


def _llvm_target() -> str:
    """Return the processor that llvmlite compiles for, and which vectors it has."""
    from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

    features = get_host_cpu_features()
    return " ".join([get_host_cpu_name(), *[name for name in ("avx2", "avx512f", "neon") if features.get(name)]])


def config_toml(plan: Plan, surroundings: Mapping[str, Any], result: Mapping[str, Any]) -> bytes:
    """Return everything needed to repeat a run as TOML: its settings, what it was trained on, and what it reached.

    surroundings: its `environment`. result: what it reached, {} while it is going on.
    """
    import tomli_w

    head = "# To repeat this run: gradflow train --config <this file>\n"
    if gf.Device(plan.settings.device).type != "cpu":
        head += "# On a machine without this device, add: --device auto\n"
    counts = {name: len(part) for name, part in vars(plan.split).items() if isinstance(part, Part)}
    tables = {
        "settings": plan.settings.to_dict(),
        "data": {"hash": plan.data_hash, **counts},
        "environment": surroundings,
        **({"result": result} if result else {}),
    }
    return (head + "\n" + tomli_w.dumps(tables)).encode()


def metrics_csv(plan: Plan, histories: Sequence[Sequence[Epoch]]) -> bytes:
    """Return one row for each epoch of each model, with all digits and without times: equal runs have equal bytes."""
    figures = ["loss", plan.metric]
    header = ["epoch", "step", "learning_rate", *(f"train_{name}" for name in figures)]
    if plan.split.validation:
        header += [f"validation_{name}" for name in figures]
    scales = plan.settings.autocast == "float16"
    header += ["skipped_steps"] * scales
    rows = [header]
    for history in histories:
        for e in history:
            values: list[Any] = [e.epoch, e.step, e.learning_rate, e.train_loss, e.train_metrics[plan.metric]]
            if plan.split.validation:
                values += [e.validation_loss, e.validation_metrics[plan.metric]]
            rows.append([*map(repr, values), *[str(e.skipped)] * scales])
    if plan.settings.ensemble > 1:
        numbers = ["member", *(str(n) for n, history in enumerate(histories, 1) for _ in history)]
        rows = [[number, *row] for number, row in zip(numbers, rows, strict=True)]
    return "".join(",".join(row) + "\n" for row in rows).encode()
