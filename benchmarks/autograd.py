"""The cost of recording and differentiating, against PyTorch and HIPS autograd: `python -m benchmarks.autograd [FILE]`.

All rows of a table are timed in turn in one run, on one CPU thread, in float32, after a check that they compute the
same. With FILE, the figures are also written there, as JSON.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import math
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import gradflow as gf
from benchmarks.machine import about, versions
from benchmarks.peers.options import Parser
from benchmarks.timing import interleaved
from gradflow import nn

CHAIN = 1000
ROUNDS = 60
Figures = dict[str, Any]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside a `with`, every library computes on one thread."""
    from threadpoolctl import threadpool_limits

    if has("torch"):
        import torch

        torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        yield


def has(package: str) -> bool:
    """Return whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def check(name: str, ours: Any, theirs: Any, rtol: float) -> None:
    """Raise AssertionError unless a peer's numbers agree with gradflow's."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    error = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    assert error <= rtol, f"{name}: a relative difference of {error:.2g} from gradflow"


def chain(x: Any, factor: Any, term: Any) -> Any:
    """Return the result of CHAIN alternating multiplications and additions."""
    for _ in range(CHAIN // 2):
        x = x * factor + term
    return x


def overhead() -> Figures:
    """Return microseconds per operation, forward and backward, in a chain on 4 elements: almost all of it overhead."""
    start = np.array([1.0, 0.5, -1.0, 2.0], np.float32)
    factor, term, seed = (np.full(4, value, np.float32) for value in (1.0001, 1e-4, 1.0))
    state: dict[str, Any] = {}

    def library(name: str, make: Callable[..., Any], leaf: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        f, t, g = make(factor), make(term), make(seed)

        def forward() -> None:
            state[name] = chain(leaf, f, t)

        def fresh() -> None:
            leaf.grad = None
            forward()

        forward_row, backward_row = f"{name} forward", f"{name} backward"
        return {forward_row: forward, backward_row: lambda: state[name].backward(g)}, {backward_row: fresh}

    ours = gf.tensor(start, requires_grad=True)
    rows, prepare = library("gradflow", gf.tensor, ours)

    def watched() -> None:
        with gf.detect_anomaly():
            chain(ours, gf.tensor(factor), gf.tensor(term)).backward(gf.tensor(seed))

    def both() -> None:
        chain(ours, gf.tensor(factor), gf.tensor(term)).backward(gf.tensor(seed))

    rows["gradflow"], rows["gradflow, detect_anomaly on"] = both, watched
    both()
    assert ours.grad is not None
    expected = ours.grad.numpy()
    if has("torch"):
        import torch

        leaf = torch.from_numpy(start.copy()).requires_grad_()
        more, fresh = library("PyTorch", torch.from_numpy, leaf)
        rows |= more
        prepare |= fresh
        chain(leaf, torch.from_numpy(factor), torch.from_numpy(term)).backward(torch.from_numpy(seed))
        check("PyTorch's chain", expected, leaf.grad, 1e-5)
    if has("autograd"):
        import autograd
        import autograd.numpy as anp

        gradient = autograd.grad(lambda x: anp.sum(chain(x, factor, term)))
        check("autograd's chain", expected, gradient(start), 1e-5)
        rows["HIPS autograd"] = lambda: gradient(start)
    return {name: 1e6 * seconds / CHAIN for name, seconds in interleaved(rows, ROUNDS, prepare).items()}


def perceptron(sizes: list[int], batch: int, dtype: str = "float32") -> tuple[list[Any], Any, Any]:
    """Return the weights and biases, the inputs and the targets of a perceptron, on the host."""
    rng = np.random.default_rng(0)
    weights = []
    for n, m in itertools.pairwise(sizes):
        weights += [rng.normal(size=(m, n)).astype(dtype) / math.sqrt(n), np.zeros(m, dtype)]
    x = rng.normal(size=(batch, sizes[0])).astype(dtype)
    return weights, x, np.sin(x[:, : sizes[-1]])


def second_order(sizes: list[int], batch: int) -> Figures:
    """Return milliseconds of a Hessian-vector product of a perceptron's loss and, if it is small, of the Hessian."""
    weights, x, y = perceptron(sizes, batch)
    rng = np.random.default_rng(1)
    vectors = [rng.normal(size=w.shape).astype(w.dtype) for w in weights]
    small = sum(w.size for w in weights) < 1000

    def loss(linear: Any, x: Any, y: Any) -> Callable[..., Any]:
        def of_weights(*w: Any) -> Any:
            h = x
            for i in range(0, len(w), 2):
                h = linear(h, w[i], w[i + 1])
                if i < len(w) - 2:
                    h = h.tanh()
            return ((h - y) * (h - y)).mean()

        return of_weights

    ours = [gf.tensor(w) for w in weights]
    ours_v = [gf.tensor(v) for v in vectors]
    ours_f = loss(gf.linear, gf.tensor(x), gf.tensor(y))
    everything = tuple(range(len(weights)))
    rows: dict[str, Callable[[], Any]] = {"gradflow hvp": lambda: gf.hvp(ours_f, ours, ours_v)}
    if small:
        rows["gradflow hessian"] = lambda: gf.hessian(ours_f, everything)(*ours)
    if has("torch"):
        import torch

        theirs, theirs_v = ([torch.from_numpy(w) for w in each] for each in (weights, vectors))
        theirs_f = loss(torch.nn.functional.linear, torch.from_numpy(x), torch.from_numpy(y))
        gradient = torch.func.grad(theirs_f, everything)

        def func_hvp() -> Any:
            return torch.func.jvp(gradient, tuple(theirs), tuple(theirs_v))[1]

        def functional_hvp() -> Any:
            return torch.autograd.functional.vhp(theirs_f, tuple(theirs), tuple(theirs_v))[1]

        rows["torch.func hvp"], rows["torch.autograd.functional hvp"] = func_hvp, functional_hvp
        for name in ("torch.func hvp", "torch.autograd.functional hvp"):
            for mine, other in zip(rows["gradflow hvp"](), rows[name](), strict=True):
                check(name, mine.numpy(), other, 1e-3)
        if small:
            rows["torch.func hessian"] = lambda: torch.func.hessian(theirs_f, everything)(*theirs)
            rows["torch.autograd.functional hessian"] = lambda: torch.autograd.functional.hessian(
                theirs_f, tuple(theirs), vectorize=True
            )
            for name in ("torch.func hessian", "torch.autograd.functional hessian"):
                mine, other = rows["gradflow hessian"]()[0][0], rows[name]()[0][0]
                check(name, mine.numpy(), other, 1e-3)
    return {name: 1e3 * seconds for name, seconds in interleaved(rows, ROUNDS // 3).items()}


def checkpointing(layers: int = 20, width: int = 256, batch: int = 4096, segment: int = 5) -> Figures:
    """Return peak MiB and milliseconds of a forward and backward pass of a deep perceptron, plain and checkpointed."""
    gf.manual_seed(0)
    parts = [
        nn.Sequential(*[nn.Linear(width, width, activation="relu") for _ in range(segment)])
        for _ in range(layers // segment)
    ]
    x = gf.random.normal((batch, width))

    def run(call: Callable[..., Any]) -> None:
        h = x
        for part in parts:
            h = call(part, h)
        h.square().mean().backward()

    def plain() -> None:
        run(lambda part, h: part(h))

    def checkpointed() -> None:
        run(gf.checkpoint)

    gradients, found = [], {}
    for name, function in (("plain", plain), ("checkpointed", checkpointed)):
        for part in parts:
            part.zero_grad()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        function()
        found[f"{name}, peak MiB"] = (tracemalloc.get_traced_memory()[1] - before) / 2**20
        tracemalloc.stop()
        gradients.append([p.grad.numpy() for part in parts for p in part.parameters() if p.grad is not None])
    assert all((a == b).all() for a, b in zip(*gradients, strict=True)), "checkpoints change the gradients"
    times = interleaved({"plain, ms": plain, "checkpointed, ms": checkpointed}, 5)
    return found | {name: 1e3 * seconds for name, seconds in times.items()}


def from_lists(n: int = 1_000_000) -> Figures:
    """Return milliseconds to create a tensor from n Python numbers, and the ratio to PyTorch."""
    floats = [0.1 * i for i in range(n)]
    given: dict[str, Any] = {
        "floats": floats,
        "integers": list(range(n)),
        "floats and integers": [x if i % 2 else i for i, x in enumerate(floats)],
        "rows of 10": [floats[i : i + 10] for i in range(0, n, 10)],
        "NumPy's float32": list(np.array(floats, np.float32)),
    }
    rows = {f"gradflow, {name}": lambda data=data: gf.tensor(data) for name, data in given.items()}
    if has("torch"):
        import torch

        rows |= {f"PyTorch, {name}": lambda data=data: torch.tensor(data) for name, data in given.items()}
        for name in given:
            check(name, rows[f"gradflow, {name}"]().numpy(), rows[f"PyTorch, {name}"](), 0.0)
    found = {name: 1e3 * seconds for name, seconds in interleaved(rows, ROUNDS // 12).items()}
    if has("torch"):
        found |= {f"ratio, {name}": found[f"gradflow, {name}"] / found[f"PyTorch, {name}"] for name in given}
    return found


def parts(n: int = 2000, many: int = 10_000) -> Figures:
    """Return milliseconds to split a matrix of n rows with its backward pass, and to iterate over and stack numbers."""
    values = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
    numbers = values.reshape(-1)[:many].copy()
    rows: dict[str, Callable[[], Any]] = {}
    prepare: dict[str, Callable[[], Any]] = {}

    def library(name: str, make: Callable[..., Any], split: Any, unbind: Any, stack: Any) -> Any:
        x, flat = make(values), make(numbers)
        recorded = make(numbers)
        x.requires_grad_(True)
        recorded.requires_grad_(True)
        scalars = list(flat)
        ways = {"split, sums, backward": lambda: split(x), "unbind, sums, backward": lambda: unbind(x),
                "iteration, sums, backward": lambda: x}  # fmt: skip

        def and_back(way: Callable[[], Any]) -> None:
            sum(part.sum() for part in way()).backward()

        def fresh() -> None:
            x.grad = None

        for title, way in ways.items():
            rows[f"{name} {title}"] = lambda way=way: and_back(way)
            prepare[f"{name} {title}"] = fresh
        rows[f"{name} list(x) of {many}"] = lambda: list(flat)
        rows[f"{name} list(x) of {many}, recorded"] = lambda: list(recorded)
        rows[f"{name} stack of {many}"] = lambda: stack(scalars)
        and_back(ways["split, sums, backward"])
        return x.grad

    ours = library("gradflow", gf.tensor, lambda x: gf.split(x, n), gf.unbind, gf.stack)
    if has("torch"):
        import torch

        theirs = library("PyTorch", torch.tensor, lambda x: torch.split(x, 1), torch.unbind, torch.stack)
        check("PyTorch's parts", ours.numpy(), theirs, 0.0)
    return {name: 1e3 * seconds for name, seconds in interleaved(rows, ROUNDS // 6, prepare).items()}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; write the file that the arguments name."""
    parser = Parser(
        prog="python -m benchmarks.autograd",
        description="Time operations, Hessians, checkpoints and tensor creation, against the peers that are installed.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="also write the figures there, as JSON")
    file_name = parser.parse_args(arguments).file
    with one_thread():
        tables = {
            f"a chain of {CHAIN} multiplications and additions on 4 elements, µs an operation": overhead(),
            "a perceptron 7-7-1 of 64 parameters, batch 32, ms": second_order([7, 7, 1], 32),
            "a perceptron 100-400-140-25 of 100,065 parameters, batch 128, ms": second_order([100, 400, 140, 25], 128),
            "a perceptron of 20 layers of 256, batch 4096, in checkpoints of 5 layers": checkpointing(),
            "a tensor of a list of 1,000,000 numbers, ms": from_lists(),
            "the parts of a tensor of 2000 x 2000, and of 10,000 numbers, ms": parts(),
        }
    print(", ".join(f"{name} {version}" for name, version in versions().items()), "- one thread, float32")
    for title, figures in tables.items():
        print(f"\n{title}")
        for name, value in figures.items():
            print(f"  {name:36} {value:10.3f}")
    if file_name:
        described = {**about(), "versions": versions(), "threads": 1, "dtype": "float32", "tables": tables}
        with open(file_name, "w", encoding="utf-8") as file:
            json.dump(described, file, indent=1, ensure_ascii=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
