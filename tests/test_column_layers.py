"""Embedding, PiecewiseLinear and ColumnLinear: values and gradients beside PyTorch, on every device, also captured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from devices import OTHERS, require

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.testing import forbid_sync, host
from gradflow.training import Trainer
from tests.devices import replays

EDGES = [[0.0, 0.5, 2.0, 3.0], [-1.0, 1.0], [1e-3, 1e-2, 10.0]]
NUMBERS = np.array(
    [[-1.0, 0.0, 0.0], [0.0, 1.0, 1e-3], [0.25, -3.0, 5.0], [0.5, 2.5, 20.0], [3.0, -1.0, 1e-2], [7, 0, 1]]
)
INDICES = np.array([[3, 0, 3], [3, 4, 0]])


@pytest.fixture(params=["cpu", *OTHERS])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device, current during the test."""
    require(request.param)
    with gf.use_device(request.param):
        yield request.param


def agrees(found: gf.Tensor | None, expected: Any) -> None:
    assert found is not None
    np.testing.assert_allclose(host(found), expected.detach().numpy(), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- Embedding


def test_embedding_is_pytorchs(device: str, torch: Any) -> None:
    """Repeated indices add up."""
    layer, other = nn.Embedding(5, 4, dtype="float64"), torch.nn.Embedding(5, 4, dtype=torch.float64)
    layer.load_state_dict({"weight": other.weight.detach().numpy()})
    factors = np.random.default_rng(0).normal(size=(2, 3, 4))
    out, expected = layer(gf.tensor(INDICES)), other(torch.tensor(INDICES))
    agrees(out, expected)
    (out * gf.tensor(factors)).sum().backward()
    (expected * torch.tensor(factors)).sum().backward()
    agrees(layer.weight.grad, other.weight.grad)
    assert layer(gf.tensor(2, dtype="uint8")).shape == (4,)
    assert layer(gf.zeros((0, 3), dtype="int32")).shape == (0, 3, 4)


def test_embedding_starts_as_pytorchs_does(device: str) -> None:
    layer = nn.Embedding(200, 50, generator=gf.Generator(0))
    values = host(layer.weight)
    sigma = 1 / math.sqrt(values.size)
    assert abs(values.mean()) < 5 * sigma
    assert values.std() == pytest.approx(1, abs=5 * sigma)
    assert (layer.num_embeddings, layer.embedding_dim, repr(layer)) == (
        200, 50, "Embedding(num_embeddings=200, embedding_dim=50)",
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [-1, 5, 2**40])
def test_an_index_out_of_range_is_named_on_the_cpu(wrong: int) -> None:
    layer = nn.Embedding(5, 4)
    with pytest.raises(IndexError, match=rf"an Embedding of 5 vectors needs indices in \[0, 5\); got {wrong}$"):
        layer(gf.tensor([[0, 4], [wrong, 1]], dtype="int64"))
    captured = gf.capture(lambda indices: layer(indices).sum())
    for _ in range(4):
        captured(gf.tensor([0, 4], dtype="int64"))
    with pytest.raises(IndexError, match=f"got {wrong}$"):
        captured(gf.tensor([0, wrong], dtype="int64"))


@pytest.mark.parametrize("indices", [[0.0, 1.0], [True, False]])
def test_indices_are_integers(indices: Any) -> None:
    with pytest.raises(TypeError, match=r"Embedding takes integer indices; got .*dtype='int64'"):
        nn.Embedding(5, 4)(gf.tensor(indices))


@pytest.mark.parametrize("keep", ["device", "host"])
@pytest.mark.parametrize("wrong", [-1, 5])
def test_a_trainer_refuses_indices_out_of_range_before_it_trains(device: str, keep: str, wrong: int) -> None:
    """Once in two hundred rows, in one column of two, on the device or on the host."""
    indices = np.zeros((200, 2), "int64")
    indices[117, 1] = wrong

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Embedding(90, 3), nn.Embedding(5, 3), nn.Linear(6, 1)

        def forward(self, x: gf.Tensor) -> gf.Tensor:
            return self.last(gf.concat([self.first(x[:, 0]), self.second(x[:, 1])], axis=1))

    def trainer() -> Trainer:
        train = Batches(indices, np.zeros((200, 1), "float32"), 64, keep=keep)
        return Trainer(model, gf.mse_loss, optim.SGD(model.parameters(), 0.1), train)

    model = Model()
    refused = rf"an Embedding of 5 vectors needs indices in \[0, 5\); got {wrong}$"
    if wrong > 0 and device not in ("cpu", "cuda", "emulated"):
        refused = "out of range"  # the library of the device found it
    with pytest.raises(IndexError, match=refused):
        trainer()
    indices[117] = 89, 4
    assert len(list(trainer().epochs(1))) == 1


def test_looking_for_indices_out_of_range_leaves_a_captured_step_valid() -> None:
    with gf.use_device("fake"):
        model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1))
        train = Batches(np.zeros((64, 2), "int64"), np.zeros((64, 1), "float32"), 16)
        trainer = Trainer(model, gf.mse_loss, optim.SGD(model.parameters(), 0.1), train)
        list(trainer.epochs(3))
        trainer.evaluate(train)
        next(trainer.steps(trainer.step + 1))
        assert replays(trainer._step.whole.status)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- PiecewiseLinear


def piecewise(torch: Any, x: Any) -> Any:
    """Equation 1 of the paper, case by case, on PyTorch."""
    columns = []
    for i, edges in enumerate(EDGES):
        bins, last = [], len(edges) - 1
        for t in range(1, last + 1):
            e = (x[:, i] - edges[t - 1]) / (edges[t] - edges[t - 1])
            if t > 1:
                e = torch.where(x[:, i] < edges[t - 1], torch.zeros_like(e), e)
            if t < last:
                e = torch.where(x[:, i] >= edges[t], torch.ones_like(e), e)
            bins.append(e)
        columns.append(torch.stack(bins + [torch.zeros_like(x[:, i])] * (3 - last), dim=1))
    return torch.stack(columns, dim=1)


def test_piecewise_linear_is_the_equation_of_the_paper(device: str, torch: Any) -> None:
    """Below, above, inside and on the edges; also the gradient of the numbers between the edges."""
    encode = nn.PiecewiseLinear(EDGES, dtype="float64")
    agrees(encode(gf.tensor(NUMBERS)), piecewise(torch, torch.tensor(NUMBERS)))
    between = NUMBERS + 0.0123
    x, y = gf.tensor(between, requires_grad=True), torch.tensor(between, requires_grad=True)
    factors = np.random.default_rng(0).normal(size=(6, 3, 3))
    (encode(x) * gf.tensor(factors)).sum().backward()
    (piecewise(torch, y) * torch.tensor(factors)).sum().backward()
    agrees(x.grad, y.grad)


def test_piecewise_linear_is_a_module_of_buffers(device: str) -> None:
    encode = nn.PiecewiseLinear(EDGES)
    assert (encode.columns, encode.bins, repr(encode)) == (3, 3, "PiecewiseLinear(columns=3, bins=3)")
    assert list(encode.parameters()) == []
    other = nn.PiecewiseLinear([[0, 1, 2, 3]] * 3)
    other.load_state_dict(encode.state_dict())
    x = gf.tensor(NUMBERS.astype("float32"))
    assert other(x).tolist() == encode(x).tolist()
    assert encode(gf.zeros((2, 5, 3))).shape == (2, 5, 3, 3)
    assert encode.to("float64").starts.dtype is gf.float64


@pytest.mark.parametrize("edges", [[0.0], [1.0, 1.0], [0.0, 2.0, 1.0], [0.0, math.inf], [math.nan, 1.0]])
def test_edges_increase(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="the edges of column 1 must be at least two finite, increasing numbers"):
        nn.PiecewiseLinear([[0.0, 1.0], edges])


# ---------------------------------------------------------------------- ColumnLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 3, 5), (2, 4, 3, 5), (3, 5), (0, 3, 5)])
def test_column_linear_is_a_layer_for_each_column(device: str, torch: Any, bias: bool, shape: tuple[int, ...]) -> None:
    layer = nn.ColumnLinear(3, 5, 2, bias, dtype="float64")
    values = np.random.default_rng(0).normal(size=shape)
    x, y = gf.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    others = [torch.nn.Linear(5, 2, bias, dtype=torch.float64) for _ in range(3)]
    for i, other in enumerate(others):
        other.weight.data = torch.tensor(host(layer.weight)[i].T)
        if bias:
            other.bias.data = torch.tensor(host(layer.bias)[i])
    out, expected = layer(x), torch.stack([other(y[..., i, :]) for i, other in enumerate(others)], dim=-2)
    agrees(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    agrees(x.grad, y.grad)
    agrees(layer.weight.grad, torch.stack([other.weight.grad.T for other in others]))
    if bias:
        agrees(layer.bias.grad, torch.stack([other.bias.grad for other in others]))


def test_column_linear_starts_as_linear_does(device: str) -> None:
    layer = nn.ColumnLinear(10, 16, 50, generator=gf.Generator(0))
    for parameter in (layer.weight, layer.bias):
        values = host(parameter)
        assert np.abs(values).max() <= 0.25
        assert values.std() == pytest.approx(0.25 / math.sqrt(3), rel=5 / math.sqrt(values.size))
    assert (layer.columns, layer.in_features, layer.out_features, repr(layer)) == (
        10, 16, 50, "ColumnLinear(columns=10, in_features=16, out_features=50, bias=True)",
    )  # fmt: skip


# ---------------------------------------------------------------------- all of them


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: nn.Embedding(0, 3), "num_embeddings must be an integer of at least 1; got 0"),
    (lambda: nn.Embedding(3, 2.0), "embedding_dim must be an integer"),  # type: ignore[arg-type]
    (lambda: nn.PiecewiseLinear([]), "the edges of at least one column; got none"),
    (lambda: nn.PiecewiseLinear([[0, 1]])(gf.ones((4, 2))), r"of 1 columns takes \(..., 1\); got \(4, 2\)"),
    (lambda: nn.PiecewiseLinear([[0, 1]])(gf.ones(())), r"takes \(..., 1\); got \(\)"),
    (lambda: nn.ColumnLinear(3, 0, 2), "in_features must be an integer of at least 1; got 0"),
    (lambda: nn.ColumnLinear(3, 4, 2)(gf.ones((5, 4, 3))), r"of 3 columns takes \(..., 3, 4\); got \(5, 4, 3\)"),
]


@pytest.mark.parametrize(("make", "says"), WRONG)
def test_what_does_not_fit_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


class Both(nn.Module):
    """A model of two numbers and two indices in each row."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.columns = nn.PiecewiseLinear(EDGES[:2]), nn.ColumnLinear(2, 3, 4)
        self.embed, self.last = nn.Embedding(5, 2), nn.Linear(12, 1)

    def forward(self, x: gf.Tensor, indices: gf.Tensor) -> gf.Tensor:
        numbers = gf.relu(self.columns(self.encode(x)))
        return self.last(gf.concat([numbers.reshape(-1, 8), self.embed(indices).reshape(-1, 4)], axis=1))


def trained(through: Callable[[Any], Any], syncs: bool = True) -> list[bytes]:
    gf.manual_seed(0)
    model = Both()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)

    def step(x: gf.Tensor, indices: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        loss = gf.mse_loss(model(x, indices), y)
        loss.backward()
        optimizer.step()
        return loss

    call, rng = through(step), np.random.default_rng(0)
    for _ in range(6):
        x = gf.tensor(rng.normal(size=(16, 2)).astype("float32"))
        indices = gf.tensor(rng.integers(0, 5, size=(16, 2)))
        y = gf.tensor(rng.normal(size=(16, 1)).astype("float32"))
        if syncs:
            call(x, indices, y)
        else:
            with forbid_sync():
                call(x, indices, y)
    if through is gf.capture:
        assert replays(call.status) or "a Size to the backend" in call.status, call.status  # PyTorch's shapes
    return [host(p).tobytes() for p in model.parameters()]


def test_captured_steps_give_the_same_bits(device: str) -> None:
    assert trained(gf.capture) == trained(lambda step: step)


@pytest.mark.parametrize("through", [gf.capture, lambda step: step], ids=["captured", "plain"])
def test_a_step_reads_nothing_from_the_device(through: Callable[[Any], Any]) -> None:
    with gf.use_device("fake"):
        trained(through, syncs=False)
