"""Training by processes that `mpiexec` starts: equal results, a rank that fails, and `gradflow train`."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradflow.saving import load
from gradflow.training import Settings, train
from tests.mpi_ranks import OPTIONS, bits, trained, trainer_of

ROOT = Path(__file__).resolve().parent.parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        MPIEXEC is None or importlib.util.find_spec("mpi4py") is None, reason="mpiexec or mpi4py is missing"
    ),
]


def command(size: int, *words: str) -> list[str]:
    """The command line that starts so many ranks, also more than there are cores."""
    version = subprocess.run([str(MPIEXEC), "--version"], capture_output=True, text=True).stdout
    more = ["--oversubscribe", "--allow-run-as-root"] if "Open MPI" in version or "OpenRTE" in version else []
    return [str(MPIEXEC), *more, "-n", str(size), sys.executable, *words]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(size: int, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(size, *words), capture_output=True, text=True, timeout=120, env=environment(), cwd=cwd
    )  # fmt: skip


def test_two_and_four_processes_train_as_one_does(tmp_path: Path) -> None:
    """The losses to 1e-12, and equal weights on all ranks; a run of 2 ranks goes on with 4, then with 1."""
    for size in (2, 4):
        done = run(size, "-m", "tests.mpi_ranks", "check", str(tmp_path))
        assert done.returncode == 0, done.stderr
    for i, options in enumerate(OPTIONS):
        losses, figures, _ = trained(None, **options)
        for size in (2, 4):
            found = json.loads((tmp_path / f"{size}.json").read_text())["results"][i]
            np.testing.assert_allclose(found[0], losses, rtol=0, atol=1e-12)
            np.testing.assert_allclose(found[1], figures, rtol=0, atol=1e-12)
    alone = trainer_of(None, clip_norm=0.5)
    for _ in alone.steps(26):
        pass
    resumed = trainer_of(None, clip_norm=0.5)
    resumed.load(tmp_path / "state")
    assert resumed.step == 24
    written = bytes.fromhex(json.loads((tmp_path / "4.json").read_text())["weights"])
    assert bits(resumed) == written
    for _ in resumed.steps(26):
        pass
    for a, b in zip(alone.model.parameters(), resumed.model.parameters(), strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("how", "size", "printed"),
    [
        ("raise", 2, ["rank 1 ends the job:", "in stand_still", "ValueError: a reason"]),
        ("kill", 2, []),
        ("sleep", 3, ["in stand_still", "rank 1 waited 2 s", "rank 0 gave no sign of life"]),
    ],
)
def test_a_rank_that_fails_ends_the_job(how: str, size: int, printed: list[str], tmp_path: Path) -> None:
    """Soon, with its traceback; the state that was saved last is whole."""
    done = run(size, "-m", "tests.mpi_ranks", how, str(tmp_path / "state"))  # which ends after 120 s
    assert done.returncode != 0
    for part in printed:
        assert part in done.stderr
    assert 19 <= load(tmp_path / "state", "cpu")["progress"]["step"] <= 21


# ---------------------------------------------------------------------- the command


def figures(folder: Path) -> Any:
    with (folder / "metrics.csv").open() as file:
        return np.array([list(map(float, row)) for row in [*csv.reader(file)][1:]])


def test_the_command_trains_is_stopped_and_goes_on_with_other_numbers_of_processes(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    x = np.random.default_rng(0).normal(size=(300, 6))
    np.savez(data, X=x, y=x[:, 0] > 0)
    options = {"hidden": (8,), "dropout": 0.1, "batch_size": 16, "seed": 3, "epochs": 40}
    train(Settings(str(data), device="cpu", **options), tmp_path / "one")
    words = ["train", str(data), "--hidden", "8", "--dropout", "0.1", "--batch-size", "16", "--seed", "3"]
    with subprocess.Popen(
        command(2, "-m", "gradflow", *words, "--epochs", "40", "--quiet", "--out", "two", "--save-every", "0"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=tmp_path,
    ) as stopped:  # fmt: skip
        until = time.monotonic() + 60
        while not (tmp_path / "two" / "model.safetensors").exists() and time.monotonic() < until:
            time.sleep(0.02)  # until an epoch is saved
        stopped.send_signal(signal.SIGINT)
        out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, err
    assert out.count("interrupted after") == 1
    state = load(tmp_path / "two" / "checkpoint.safetensors", "cpu")
    assert 0 < state["members"]["trainer"]["progress"]["step"] < 40 * 12

    done = run(3, "-m", "gradflow", "train", "--resume", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert "processes: 3" in done.stdout
    np.testing.assert_allclose(figures(tmp_path / "two"), figures(tmp_path / "one"), rtol=0, atol=1e-4)
