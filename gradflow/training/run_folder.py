"""The folder of a run: what it holds, and that nothing in it is ever half written.

A file is written under another name and renamed when it is whole; a folder in which nothing was reached is removed,
with the parents that were made for it.
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
    """A new folder for the time of a `with`, kept if something was written into it.

    `out` is the folder to use, which must not exist or be empty; without it, the first of default, default-2, ...
    that does not exist. Entering raises SettingsError where there can be no such folder or no file in it.
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
        """Write a file of the folder, whole or not at all. Raises OSError."""
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
    """Ignore Ctrl-C for the time of a `with`, which is to be short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------- what the files hold


def environment(device: gf.Device) -> dict[str, Any]:
    """What besides the settings decides the last bits of a result: two runs that agree in all of it have equal bits.

    Versions, the device, which kernels run (so GRADFLOW_FUSED and GRADFLOW_FAST), the BLAS with the processor that its
    kernels are for and its threads, and the processor that numba compiles for. Raises DeviceUnavailableError for a
    backend that does not tell.
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
    """The processor that numba compiles for, with what it was told to use of it."""
    from llvmlite.binding import get_host_cpu_name

    words = [os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name(), os.environ.get("NUMBA_CPU_FEATURES", "")]
    return " ".join(filter(None, words))


def score_name(classification: bool) -> str:
    """What the scores of a run are called in its files."""
    return "accuracy" if classification else "r2"


def column_names(classification: bool) -> list[str]:
    """The header of metrics.csv."""
    return [name.replace("score", score_name(classification)) for name in Epoch._fields]


def metrics_csv(epochs: Sequence[Epoch], classification: bool) -> bytes:
    """A row for each epoch, every number with all its digits, and no time in it: equal runs give equal bytes."""
    rows = [",".join(column_names(classification)), *(",".join(map(repr, epoch)) for epoch in epochs)]
    return ("\n".join(rows) + "\n").encode()


def config_toml(settings: Settings, surroundings: Mapping[str, Any], result: Mapping[str, Any]) -> bytes:
    """All that is needed to repeat the run, and what came of it."""
    import tomli_w

    head = "# To repeat this run: gradflow train --config <this file>\n\n"
    tables = {"settings": settings.to_dict(), "environment": dict(surroundings), "result": dict(result)}
    return (head + tomli_w.dumps(tables)).encode()


def weights_safetensors(weights: Mapping[str, gf.Tensor]) -> bytes:
    """The weights by name, as every safetensors reader takes them.

    The format's writer stores the memory of an array as it lies, so each is brought into C order first.
    """
    from safetensors.numpy import save

    return save({name: tensor.detach().numpy() for name, tensor in weights.items()})
