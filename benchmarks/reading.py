"""Seconds and memory to read a CSV file of numbers, gaps, texts and dates: `python -m benchmarks.reading [ROWS]`.

The file has 32 columns. A process of its own reads it `ROUNDS` times; the time is the median, and the memory is the
peak of the process in the first round, with Python and NumPy.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.peers.options import Parser, count

COLUMNS, ROUNDS = 32, 5
READ = """
import resource, sys, time
from gradflow.tables import read_table

for i in range(int(sys.argv[2])):
    start = time.perf_counter()
    table = read_table(sys.argv[1])
    print(time.perf_counter() - start)
    peak = peak if i else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak * (1 if sys.platform == "darwin" else 1024))
"""
_PART = 5_000
"""Rows that are written at once: the peak of the process that reads is at least that of the one that started it."""


def column(i: int, rows: int, random: np.random.Generator) -> list[str]:
    """Return the cells of a column: fractions, whole numbers with gaps, texts, or dates and prices in turn."""
    if i % 4 == 0:
        return [f"{value:.4f}" for value in random.normal(size=rows).tolist()]
    if i % 4 == 1:
        return [str(value) if value % 10 else "" for value in random.integers(100_000, size=rows).tolist()]
    if i % 4 == 2:
        return [f"level {value}" for value in random.integers(50, size=rows).tolist()]
    if i % 8 == 3:
        return [str(date) for date in np.datetime64("2000-01-01") + random.integers(9000, size=rows)]
    return [f"{value:.2f}" for value in random.uniform(0, 1e4, rows).tolist()]


def measure(path: Path) -> tuple[list[float], int]:
    """Return the seconds of each round, and the bytes of memory at the peak."""
    command = [sys.executable, "-c", READ, str(path), str(ROUNDS)]
    *seconds, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return [float(each) for each in seconds], int(memory)


def main(arguments: list[str] | None = None) -> int:
    """Write the file, measure, print and return the exit status."""
    parser = Parser(prog="python -m benchmarks.reading", description="Time `gradflow.tables.read_table` on a CSV file.")
    parser.add_argument("rows", nargs="?", type=count, default=100_000, help="how many rows (default: 100000)")
    rows = parser.parse_args(arguments).rows
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        with path.open("w", encoding="utf-8") as file:
            file.write(",".join(f"c{i}" for i in range(COLUMNS)) + "\n")
            for start in range(0, rows, _PART):
                cells = [column(i, min(_PART, rows - start), random) for i in range(COLUMNS)]
                file.writelines(",".join(row) + "\n" for row in zip(*cells, strict=True))
        size = path.stat().st_size
        seconds, memory = measure(path)
    print(f"{rows:,} rows of {COLUMNS} columns, {size / 1e6:.0f} MB:")
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    print(f"{statistics.median(seconds):.2f} s (of {ROUNDS}: {spread}), {memory / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
