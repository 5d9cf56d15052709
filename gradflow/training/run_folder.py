"""The folder of a run and its files; no file is ever left half written.

A file is written under another name and renamed when it is complete. A folder without results is removed, with the
parent folders that were created for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

import gradflow as gf
from gradflow.backend.registry import describe_device
from gradflow.training.loop import Epoch
from gradflow.training.settings import Settings, SettingsError


class RunFolder:
    """Inside a `with`, a new folder; it is kept if a file was written into it, and removed otherwise.

    out: the folder to use; it must be empty or not exist.
    default: the folder if `out` is None; if it exists, the first of default-2, default-3, ... that does not.

    Entering raises SettingsError if the folder cannot be created or written to.
    """

    def __init__(self, out: str | Path | None, default: str | Path) -> None:
        self.path = Path(default if out is None else out)
        self._chosen = out is not None
        self._made: list[Path] = []
        self._written = False

    def __enter__(self) -> Self:
        try:
            self._claim()
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            self._remove()
            raise SettingsError(f"cannot write to {self.path}: {error.strerror or error}") from None
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._written:
            self._remove()

    def write(self, name: str, content: bytes) -> None:
        """Write a file into the folder, completely or not at all. Raises OSError."""
        part = self.path / f".{name}.part"
        try:
            part.write_bytes(content)
            os.replace(part, self.path / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._written = True

    def _claim(self) -> None:
        missing = [p for p in self.path.parents if not p.exists()]
        for parent in reversed(missing):
            with contextlib.suppress(FileExistsError):
                parent.mkdir()
                self._made.append(parent)
        if self._chosen:
            if self.path.is_dir():
                if any(self.path.iterdir()):
                    raise SettingsError(
                        f"{self.path} is already used: it is a folder that is not empty; choose a new one"
                    )
                return
            if self.path.exists() or self.path.is_symlink():
                raise SettingsError(f"{self.path} is already used: it is a file; choose a new folder")
            self.path.mkdir()
        else:
            first = self.path
            for count in itertools.count(2):
                try:
                    self.path.mkdir()
                    break
                except FileExistsError:
                    self.path = first.with_name(f"{first.name}-{count}")
        self._made.append(self.path)

    def _remove(self) -> None:
        while self._made:
            with contextlib.suppress(OSError):
                self._made.pop().rmdir()


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C inside a `with`; keep it short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------- contents of the files


def environment(device: gf.Device) -> dict[str, Any]:
    """Return what else than the settings determines a result: if both are equal, two runs are equal bit for bit.

    That is: the versions, the device, which kernels run (so GRADFLOW_FUSED and GRADFLOW_FAST), the BLAS library with
    the processor type of its kernels and its threads, and the processor that numba compiles for. Raises
    DeviceUnavailableError if the backend cannot describe its device.
    """
    kernels = Counter(gf.get_backend(device).kernels().values())
    found: dict[str, Any] = {
        "gradflow": gf.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit_learn": version("scikit-learn"),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": describe_device(device)[0],
        "kernels": ", ".join(f"{count} {how}" for how, count in sorted(kernels.items())),
    }
    if device.type == "cuda":
        found["cupy"] = sys.modules["cupy"].__version__
    if "numba" in kernels:
        found["numba_target"] = _numba_target()
    with contextlib.suppress(ImportError):  # comes with scikit-learn
        from threadpoolctl import threadpool_info

        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        names = {f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip() for p in pools}
        found["blas"] = ", ".join(sorted(names))
        found["threads"] = max((pool["num_threads"] for pool in pools), default=1)
    return found


def _numba_target() -> str:
    """Return the processor that numba compiles for, with NUMBA_CPU_NAME and NUMBA_CPU_FEATURES applied."""
    from llvmlite.binding import get_host_cpu_name

    words = [os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name(), os.environ.get("NUMBA_CPU_FEATURES", "")]
    return " ".join(filter(None, words))


def score_name(classification: bool) -> str:
    """Return the name of the score in the files of a run."""
    return "accuracy" if classification else "r2"


def column_names(classification: bool) -> list[str]:
    """Return the header of metrics.csv."""
    return [name.replace("score", score_name(classification)) for name in Epoch._fields]


def metrics_csv(epochs: Sequence[Epoch], classification: bool) -> bytes:
    """Return one row per epoch, with all digits and without times: equal runs have equal bytes."""
    rows = [",".join(column_names(classification)), *(",".join(map(repr, epoch)) for epoch in epochs)]
    return ("\n".join(rows) + "\n").encode()


def config_toml(settings: Settings, surroundings: Mapping[str, Any], result: Mapping[str, Any]) -> bytes:
    """Return everything needed to repeat the run, and its result, as TOML."""
    import tomli_w

    head = "# To repeat this run: gradflow train --config <this file>\n\n"
    tables = {"settings": settings.to_dict(), "environment": dict(surroundings), "result": dict(result)}
    return (head + tomli_w.dumps(tables)).encode()


def weights_safetensors(weights: Mapping[str, gf.Tensor]) -> bytes:
    """Return the weights by name, in the safetensors format.

    The writer stores the memory of an array as it is, so each array is copied to C order first.
    """
    from safetensors.numpy import save

    return save({name: tensor.detach().numpy() for name, tensor in weights.items()})
