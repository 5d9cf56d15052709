"""The time of `import gradflow` relative to `import numpy`: `python -m benchmarks.import_time [ROUNDS]`.

Each import is timed in its own process, with the files cached by the system and compiled to bytecode. The
processes of a round run in random order, so that changes of machine load affect all alike; the medians are compared.
gradflow imports NumPy and looks for devices on first use, so the first tensor is timed too. The exit status is 1 if the
import takes more than `LIMIT` times NumPy's.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys

from benchmarks.peers.options import Parser, count

LIMIT = 1.3
STATEMENTS = {
    "numpy": "import numpy",
    "gradflow": "import gradflow",
    "numpy, then gradflow": "import numpy, gradflow",
    "gradflow and a first tensor": "import gradflow; gradflow.zeros(1)",
}


def once(statement: str) -> float:
    """Return the seconds that a statement takes in a new process, without the start of Python."""
    code = f"import time\nstart = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each of `STATEMENTS` in each round, without a first round that fills the caches."""
    found: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    order = list(STATEMENTS)
    shuffles = random.Random(0)
    for i in range(rounds + 1):
        shuffles.shuffle(order)
        for name in order:
            seconds = once(STATEMENTS[name])
            if i:
                found[name].append(seconds)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and return the exit status."""
    parser = Parser(
        prog="python -m benchmarks.import_time", description="Time `import gradflow` against `import numpy`."
    )
    parser.add_argument(
        "rounds", nargs="?", type=count, default=40, help="how often each import is timed (default: 40)"
    )
    rounds = parser.parse_args(arguments).rounds
    found = measure(rounds)
    base = statistics.median(found["numpy"])
    print(f"{'median of ' + str(rounds) + ' rounds':30} {'ms':>7}  {'quartiles':>15}  of numpy's")
    for name, seconds in found.items():
        low, middle, high = (1000 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
        print(f"{name:30} {middle:7.1f}  {low:6.1f} to {high:5.1f}  {middle / base / 1000:9.2f}x")
    ratio = statistics.median(found["gradflow"]) / base
    print(f"\nimport gradflow takes {ratio:.2f} times import numpy; required: at most {LIMIT}")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
