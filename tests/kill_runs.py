"""Kill runs with SIGKILL at random moments and go on with them, and compare the result with an undisturbed run.

    python tests/kill_runs.py 200

A run is `gradflow train` in a process that is forked after the imports, so that the moments fall into the run and not
into the imports. Each run is killed up to three times. After each kill, every file in its folder must be whole. At last
it is resumed to its end, and the bytes of its metrics and its model must be those of a run that was never killed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import gradflow as gf
from gradflow.cli import main
from gradflow.training import load_run

CASES = (
    "iris --hidden 16 --epochs 200 --dropout 0.3",
    "wine --hidden 24,12 --epochs 150 --dropout 0.2 --average 0.95 --schedule plateau",
    "iris --hidden 8 --epochs 60 --dropout 0.1 --ensemble 3 --optimizer nadam",
    "wine --hidden 16 --epochs 100 --dropout 0 --accumulate 3 --batch-size 16 --optimizer sgd",
    "breast-cancer --hidden 16 --epochs 40 --clip-norm 0.5 --class-weight balanced",
    "diabetes --hidden 12 --epochs 80 --optimizer rmsprop --patience 40 --lr 0.001",
)
SAME = ("metrics.csv", "model.safetensors")
PART = re.compile(r"\.gradflow-[0-9a-f]{16}\.part")
OPTIONS = ("--device", "cpu", "--quiet", "--save-every", "0.02")


def forked(*words: str) -> int:
    """The command in a new process, as its id; it prints nothing."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            status = main(words)
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    """The status of a process, negative for a signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_whole(folder: Path) -> int:
    """Check that each file in the folder of a killed run is whole. Returns the steps of the saved state."""
    steps = 0
    for path in folder.iterdir() if folder.exists() else ():
        content = path.read_bytes()
        if path.name == "config.toml":
            assert {"settings", "data", "environment"} <= set(tomllib.loads(content.decode()))
        elif path.name == "checkpoint.safetensors":
            state = gf.load(path)["members"]
            steps = sum(m["history"][-1]["step"] for m in state["finished"]) + state["trainer"]["progress"]["step"]
        elif path.name == "metrics.csv":
            header, *rows = content.decode().splitlines()
            assert content.endswith(b"\n")
            assert all(len(list(map(float, row.split(",")))) == header.count(",") + 1 for row in rows)
        elif path.name == "model.safetensors":
            load_run(path)
        elif path.name == "curves.png":
            assert content.endswith(b"IEND\xaeB`\x82")
        elif path.name == "report.html":
            assert content.rstrip().endswith(b"</html>")
        else:
            assert PART.fullmatch(path.name), f"there is {path.name}"
    return steps


def kill_one(case: str, folder: Path, seconds: float, chance: random.Random) -> list[str]:
    """Start a run of a case, kill it up to three times, resume it to its end. Returns the moments, in words.

    seconds: how long an undisturbed run takes.
    """
    moments, steps = [], 0
    for _ in range(chance.randint(1, 3)):
        begun = (folder / "config.toml").exists()
        start = ["--resume", str(folder)] if begun else [*case.split(), "--out", str(folder)]
        child = forked("train", *start, *OPTIONS[0 if not begun else 2 :])
        time.sleep(chance.uniform(0, 0.8 * seconds))
        os.kill(child, signal.SIGKILL)
        status = ended(child)
        if begun and status == 2 and finished(folder):
            return moments
        assert status in (0, -signal.SIGKILL), f"status {status} of {start}"
        saved = check_whole(folder)
        assert saved >= steps or status == 0, f"step {steps} was saved before, {saved} now"
        steps = saved
        moments.append("all" if status == 0 else f"step {steps}" if (folder / "config.toml").exists() else "nothing")
        if status == 0:
            return moments
    begun = (folder / "config.toml").exists()
    start = ["--resume", str(folder)] if begun else [*case.split(), "--out", str(folder)]
    status = ended(forked("train", *start, *OPTIONS[0 if not begun else 2 :]))
    assert status == 0 or (begun and status == 2 and finished(folder)), f"status {status} of {start}"
    return moments


def finished(folder: Path) -> bool:
    """Whether a run wrote its last file; it may have been killed between that and the end of the process."""
    return "result" in tomllib.loads((folder / "config.toml").read_text())


def kill_runs(runs: int, seed: int, say: Callable[[str], None] = print) -> None:
    """Kill as many runs. Raises AssertionError if one does not resume to the bytes of a run that was never killed."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        assert main(["train", *CASES[0].split(), "--epochs", "1", "--out", f"{name}/first", *OPTIONS]) == 0  # imports
        undisturbed: dict[str, tuple[Path, float]] = {}
        kills = 0
        for n in range(runs):
            case = CASES[n % len(CASES)]
            if case not in undisturbed:
                whole, began = Path(name, f"whole-{len(undisturbed)}"), time.monotonic()
                assert ended(forked("train", *case.split(), "--out", str(whole), *OPTIONS)) == 0
                undisturbed[case] = whole, time.monotonic() - began
            whole, seconds = undisturbed[case]
            folder = Path(name, f"run-{n}")
            moments = kill_one(case, folder, seconds, chance)
            kills += len([m for m in moments if m != "all"])
            for file in SAME:
                assert (folder / file).read_bytes() == (whole / file).read_bytes(), f"{file} of {case} differs"
            left = {p.name for p in folder.iterdir()} - {p.name for p in whole.iterdir()}
            assert left <= {"checkpoint.safetensors"}, left
            say(f"{n + 1}: {case}: killed with {', '.join(moments)} saved; the same bytes")
            shutil.rmtree(folder)
    say(f"{runs} runs, {kills} kills, seed {seed}: all ended with the bytes of runs that were never killed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    kill_runs(arguments.runs, arguments.seed)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
