"""The first module of a table's model: its features, gradients and bits on every device, captured and not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from devices import OTHERS, require

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.tables.inputs import ColumnInputs, InputSettings
from gradflow.testing import forbid_sync, host
from gradflow.training import Trainer
from tests.devices import replays

LEVELS = [3, 40, 2, 50]
EDGES = [[-1.0, 0.0, 0.5, 2.0], [0.0, 1.0]]
ROWS = 24


@pytest.fixture(params=["cpu", *OTHERS])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a device, current during the test."""
    require(request.param)
    with gf.use_device(request.param):
        yield request.param


def raw(seed: int = 0) -> Any:
    """Two columns of numbers, an indicator, and four of categories."""
    rng = np.random.default_rng(seed)
    numbers, indicator = rng.normal(size=(ROWS, 2)), rng.integers(0, 2, (ROWS, 1))
    return np.concatenate([numbers, indicator, *(rng.integers(0, n, (ROWS, 1)) for n in LEVELS)], axis=1)


def expected(inputs: ColumnInputs, x: Any, torch: Any) -> tuple[Any, list[Any]]:
    """The features, computed column by column on PyTorch; and the parameters that they were computed with."""
    parameters = {name: torch.tensor(host(p), requires_grad=True) for name, p in inputs.named_parameters()}
    parts = []
    for i in range(2):
        if inputs.linear is None:
            parts.append(np.clip(x[:, i : i + 1], -10, 10))
            continue
        steps = [(x[:, i] - a) / (b - a) for a, b in zip(EDGES[i], EDGES[i][1:], strict=False)]
        last = len(steps) - 1
        steps = [
            np.clip(s, -np.inf if t == 0 else 0, np.inf if t == last else 1) for t, s in enumerate(steps)
        ] + [np.zeros(ROWS)] * (2 - last)  # fmt: skip
        weight, bias = (parameters[f"linear.{kind}"][i] for kind in ("weight", "bias"))
        parts.append(torch.relu(torch.tensor(np.stack(steps, axis=1)) @ weight + bias))
    parts.append(x[:, 2:3])
    parts += [np.eye(n)[x[:, 3 + i].astype(int)] for i, n in enumerate(LEVELS) if n <= 32]
    table = parameters["embed.weight"]
    parts += [table[:40][x[:, 4].astype(int)], table[40:][x[:, 6].astype(int)]]
    return torch.cat([torch.as_tensor(part) for part in parts], dim=1), list(parameters.values())


@pytest.mark.parametrize("edges", [None, EDGES], ids=["numbers", "bins"])
def test_features_and_gradients_are_those_of_each_column(device: str, torch: Any, edges: Any) -> None:
    inputs = ColumnInputs(2, 1, LEVELS, edges, InputSettings(width=4, embedding_dim=3), dtype="float64")
    x = raw()
    x[0, 1] = -50.0
    found = inputs(gf.tensor(x))
    features, parameters = expected(inputs, x, torch)
    assert found.shape == (ROWS, inputs.out_features) == tuple(features.shape)
    np.testing.assert_allclose(host(found), features.detach().numpy(), rtol=1e-12, atol=1e-12)
    factors = np.random.default_rng(1).normal(size=features.shape)
    (found * gf.tensor(factors)).sum().backward()
    (features * torch.tensor(factors)).sum().backward()
    for p, q in zip(inputs.parameters(), parameters, strict=True):
        np.testing.assert_allclose(host(p.grad), q.grad.numpy(), rtol=1e-12, atol=1e-12)


CASES: dict[str, tuple[dict[str, Any], int, int]] = {
    "numbers": ({"numbers": 3}, 3, 3),
    "bins": ({"numbers": 2, "edges": EDGES, "settings": InputSettings(width=5)}, 2, 10),
    "indicators": ({"numbers": 1, "indicators": 2}, 3, 3),
    "categories": ({"numbers": 0, "levels": [2, 32]}, 2, 34),
    "embeddings": ({"numbers": 0, "levels": [33, 100], "settings": InputSettings(embedding_dim=7)}, 2, 14),
    "wider one-hot": ({"numbers": 0, "levels": [33, 35], "settings": InputSettings(most_one_hot=34)}, 2, 49),
    "all": ({"numbers": 2, "indicators": 1, "levels": LEVELS, "edges": EDGES}, 7, 48 + 1 + 5 + 32),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_column_may_be_absent(case: str) -> None:
    options, columns, features = CASES[case]
    inputs = ColumnInputs(**options)
    assert (inputs.columns, inputs.out_features) == (columns, features)
    assert inputs(gf.zeros((5, columns))).shape == (5, features)
    assert inputs(gf.zeros((0, columns))).shape == (0, features)


def test_numbers_without_bins_are_clipped_to_the_limit() -> None:
    for settings, limit in ((InputSettings(), 10.0), (InputSettings(limit=2.5), 2.5)):
        assert ColumnInputs(2, settings=settings)(gf.tensor([[-99.0, 1.0]])).tolist() == [[-limit, 1.0]]


def trained(through: Callable[[Any], Any], syncs: bool = True, dtype: str = "float32") -> list[bytes]:
    gf.manual_seed(0)
    inputs = ColumnInputs(2, 1, LEVELS, EDGES, dtype=dtype)
    model = nn.Sequential(inputs, nn.MLP([inputs.out_features, 8, 2], dtype=dtype))
    optimizer = optim.AdamW(model.parameters(), lr=0.01)

    def step(x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        loss = gf.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    call = through(step)
    for i in range(6):
        x, y = gf.tensor(raw(i).astype(dtype)), gf.tensor(np.arange(ROWS) % 2)
        if syncs:
            call(x, y)
        else:
            with forbid_sync():
                call(x, y)
    if through is gf.capture:
        assert replays(call.status) or "a Size to the backend" in call.status, call.status  # PyTorch's shapes
    assert {str(p.dtype) for p in model.parameters()} == {dtype}
    return [host(p).tobytes() for p in model.parameters()]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_captured_steps_of_a_table_give_the_same_bits(device: str, dtype: str) -> None:
    assert trained(gf.capture, dtype=dtype) == trained(lambda step: step, dtype=dtype)


@pytest.mark.parametrize("through", [gf.capture, lambda step: step], ids=["captured", "plain"])
def test_a_step_of_a_table_reads_nothing_from_the_device(through: Callable[[Any], Any]) -> None:
    with gf.use_device("fake"):
        trained(through, syncs=False)


def test_the_state_of_one_is_taken_by_another_of_the_same_columns() -> None:
    one, other = (ColumnInputs(2, 1, LEVELS, edges) for edges in (EDGES, [[0, 1, 2, 3], [5, 6]]))
    other.load_state_dict(one.state_dict())
    x = gf.tensor(raw().astype("float32"))
    assert other(x).tolist() == one(x).tolist()


def test_a_trainer_captures_steps_of_a_table_and_refuses_codes_beyond_the_levels() -> None:
    inputs = ColumnInputs(2, 1, LEVELS)
    model = nn.Sequential(inputs, nn.Linear(inputs.out_features, 1))
    x = raw().astype("float32")

    def trainer() -> Trainer:
        train = Batches(x, np.zeros((ROWS, 1), "float32"), 8)
        return Trainer(model, gf.mse_loss, optim.SGD(model.parameters(), 0.1), train)

    assert trainer().captures
    x[7, -1] = 50
    with pytest.raises(IndexError, match=r"an Embedding of 90 vectors needs indices in \[0, 90\); got 90$"):
        trainer()
