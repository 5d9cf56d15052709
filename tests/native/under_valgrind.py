"""Looks for wrong uses of memory by native code: small trainings under valgrind's memcheck.

`python tests/native/under_valgrind.py [N]` does N random trainings (default 20), plain and captured, by 1 and 2
threads; it takes some minutes, and needs Linux on x86-64 with valgrind. Only errors in code that LLVM made at run time
count: valgrind knows no file that it is from. One such error is made on purpose, to see that they are found.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
from random_trainings import difference
from recipes import drawn

import gradflow as gf

PROCESSOR = ("haswell", "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse4.2,+cx16,+sahf,+xsave")
"""What valgrind emulates. Code is compiled for it outside of valgrind, where that takes a fiftieth of the time."""


def read_behind(kernels: Any) -> None:
    """Read an element behind an array, the error on purpose."""

    @kernels.kernel("valgrind", "ru")
    def copy_next(fn: Any, x: Any, out: Any, start: Any, stop: Any, _scratch: Any) -> None:
        with fn.loop(start, stop) as i:
            fn.store(fn.load(x + (i + 1) * fn.size, fn.real), out + i * fn.size)

    x = np.ones(8, np.float32)
    kernels.launch(copy_next, x.dtype, 8, 1.0, x, np.empty(8, np.float32))


def trainings(number: int) -> None:
    from gradflow_numpy.native import kernels, llvm

    llvm.processor = lambda: PROCESSOR
    read_behind(kernels)
    for threads in (1, 2):
        gf.set_num_threads(threads)
        for seed in range(number):
            recipe = drawn(seed, 6)
            smaller = tuple((min(rows, 19), event) for rows, event in recipe.calls)
            found, replayed = difference(dataclasses.replace(recipe, calls=smaller))
            assert found is None, (seed, found)
            print(f"{threads} threads, training {seed}: {replayed} calls replayed", flush=True)


def errors(report: Path) -> list[str]:
    """The kinds of error in code that is from no file, with the frames of their stack that have names."""
    found = []
    for error in xml.etree.ElementTree.parse(report).getroot().iter("error"):
        frames = list(error.iter("frame"))
        if frames[0].find("obj") is None:
            what = error.findtext("what") or error.findtext("xwhat/text") or ""
            names = [frame.findtext("fn") for frame in frames if frame.find("fn") is not None]
            aux = error.findtext("auxwhat") or ""
            found.append(f"{what}; {aux}; called from {', '.join(map(str, names[:6]))}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("number", type=int, nargs="?", default=20, help="how many trainings (default 20)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        trainings(arguments.number)
        return 0
    command = [sys.executable, __file__, str(arguments.number), "--inside"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONMALLOC": "malloc", "XDG_CACHE_HOME": folder, "OMP_NUM_THREADS": "2"}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)  # compiles
        report = Path(folder) / "report.xml"
        valgrind = ["valgrind", "--xml=yes", f"--xml-file={report}", "--error-limit=no", "--num-callers=20"]
        subprocess.run([*valgrind, *command], env=environment, check=True)
        found = errors(report)
    for each in found:
        print(each)
    on_purpose = [each for each in found if "Invalid read" in each and "after a block of size 32 " in each]
    others = len(found) - len(on_purpose)
    print(f"{others} errors in native code; the one on purpose is {'found' if on_purpose else 'not found'}")
    return 0 if on_purpose and not others else 1


if __name__ == "__main__":
    sys.exit(main())
