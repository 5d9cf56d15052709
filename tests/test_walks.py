"""The two walks of a backward pass give the same gradients on random graphs."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.autograd import backward
from gradflow.autograd.leaf import IN_BUFFER
from gradflow.autograd.observers import Observer, observe
from gradflow.backend import Backend

WIDTH = 4


def half(backend: Backend) -> str:
    return "float16" if backend.supports("float16") else "float32"


UNARY = {
    "tanh": gf.tanh,
    "exp of a bounded value": lambda x: gf.exp(gf.tanh(x)),
    "square": gf.square,
    "a mean with keepdims": lambda x: x.mean(axis=-1, keepdims=True) * gf.ones((WIDTH,), x.dtype),
    "a transpose, twice": lambda x: gf.matrix_transpose(gf.matrix_transpose(x)),
    "another dtype": lambda x: x.astype("float64" if x.dtype is gf.float32 else half(x.backend)).astype(x.dtype),
    "a row": lambda x: x + x[0],
    "a slice": lambda x: x * x[..., 1:2],
    "rows by number, some of them twice": lambda x: x - x[[0] * x.shape[0]],
    "all columns, joined again": lambda x: gf.stack(gf.unbind(x, axis=1), axis=1),
    "pieces, one of them unused": lambda x: x * gf.split(x, [1, 3], axis=1)[1].sum(),
    "a concatenation": lambda x: gf.concat([x, x * 2.0])[: x.shape[0]],
    "a softmax": lambda x: gf.softmax(x),
    "a reshape": lambda x: x.reshape(-1).reshape(x.shape),
}
BINARY = {"add": gf.add, "subtract": gf.subtract, "multiply": gf.multiply, "maximum": gf.maximum}


class Graph:
    """A random graph on new leaves. The same seed gives the same graph and the same values."""

    def __init__(self, seed: int, device: str) -> None:
        draw, rng = random.Random(seed), np.random.default_rng(seed)
        dtype = draw.choice(["float32", "float32", "float64", half(gf.get_backend(device))])

        def leaf(*shape: int) -> gf.Tensor:
            values = rng.normal(size=shape, scale=0.5)
            return gf.tensor(values, dtype=dtype, device=device, requires_grad=True)

        self.weights = [leaf(WIDTH, WIDTH) for _ in range(5)]
        self.biases = [leaf(WIDTH) for _ in range(5)]
        others = [leaf(3, WIDTH), leaf(1, WIDTH), leaf(WIDTH), leaf(3, 1), leaf()]
        self.leaves = [*self.weights, *self.biases, *others]
        trained = [x for x in self.leaves if draw.random() < 0.7]
        self.optimizer = gf.optim.SGD(trained, lr=0.1) if trained else None
        self.names = []
        whole = [others[0]]
        for _ in range(draw.randint(3, 12)):
            x = draw.choice(whole[-4:])
            kind = draw.choice(["unary", "unary", "leaf", "binary", "layer", "layers"])
            if kind == "unary":
                name = draw.choice(list(UNARY))
                y = UNARY[name](x)
            elif kind == "leaf":
                name = draw.choice(list(BINARY))
                y = BINARY[name](x, draw.choice(others))
            elif kind == "binary":
                name = draw.choice(list(BINARY))
                y = BINARY[name](x, draw.choice(whole))
            elif kind == "layer":
                name = "linear"
                y = gf.linear(
                    x, draw.choice(self.weights), draw.choice(self.biases), draw.choice([None, "relu", "tanh"])
                )
            else:
                name = "perceptron"
                layers = [(draw.choice(self.weights), draw.choice(self.biases)) for _ in range(3)]
                y = gf.ops.network.perceptron(x, layers, "tanh")
            self.names.append(name)
            whole.append(y)
        roots = [whole[-1], *draw.sample(whole[1:], draw.randint(0, 2))]
        if draw.random() < 0.5:
            roots.append(draw.choice(self.leaves))  # a leaf may be a root
        self.roots = roots
        self.seeds = [gf.tensor(rng.normal(size=y.shape), dtype=y.dtype, device=device) for y in roots]

    def backpropagate(self) -> None:
        """Walk from all roots at once, and keep the graph."""
        backward.backward([y._node for y in self.roots], [g.array for g in self.seeds], retain_graph=True)

    def gradients(self) -> list[bytes | None]:
        """The gradients of the leaves."""
        return [None if x.grad is None else x.grad.numpy().tobytes() for x in self.leaves]


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each walk runs, and how often a gradient is written straight to a buffer, or added at the end."""
    counts: Counter[str] = Counter()

    def count(name: str) -> None:
        function = getattr(backward, name)

        def counted(first: Any, *arguments: Any) -> Any:
            counts[name] += len(first) if name == "mark_filled" else 1
            return function(first, *arguments)

        monkeypatch.setattr(backward, name, counted)

    for name in ("_walk", "_walk_to_buffers", "mark_filled", "accumulate", "release", "with_parts", "fitted"):
        count(name)
    return counts


@pytest.mark.parametrize("seeds", [range(i, i + 20) for i in range(0, 200, 20)], ids=str)
def test_both_walks_give_the_same_gradients_to_the_bit(seeds: range, device: str, walks: Counter[str]) -> None:
    for seed in seeds:
        fast, general = Graph(seed, device), Graph(seed, device)
        for passes in (1, 2):  # the second adds to what is there
            fast.backpropagate()
            with observe(Observer()):
                general.backpropagate()
            assert fast.gradients() == general.gradients(), f"seed {seed}, pass {passes}: {fast.names}"
            for a, b in zip(fast.leaves, general.leaves, strict=True):
                assert (a._node.state is IN_BUFFER) == (b._node.state is IN_BUFFER)
    assert walks["_walk"] == walks["_walk_to_buffers"] == 2 * len(seeds)
    assert min(walks.values()) >= 5, "each kind of gradient occurs"
