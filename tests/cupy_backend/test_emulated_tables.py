"""Training on a table as `gradflow train` does it, on the CPU and on the CuPy backend with an emulated CuPy.

It says nothing about a GPU.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from emulated_cuda import State
from emulated_device import needs_compiler
from emulated_graphs import Graph
from gradflow_cupy.graph import GraphRows
from test_resume import outcome

from gradflow.testing import eps
from gradflow.training import Settings, Trainer
from gradflow.training.runs.preparation import make_trainer, plan

pytestmark = needs_compiler

STEPS, EPOCHS = 4, 3
ENCODINGS = ("piecewise", "standard")
FULL: dict[str, Any] = {"dropout": 0.3, "average": 0.9, "clip_norm": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file with two numbers, of which one has gaps, a category of three levels, and one of forty."""
    rng, lines = np.random.default_rng(0), ["size,gap,color,city,y"]
    for i in range(240):
        a, b = rng.normal(size=2)
        color, city = rng.integers(3), i % 40
        gap = "" if i % 7 == 0 else f"{b:.4f}"
        lines.append(f"{a:.4f},{gap},c{color},t{city},{'yes' if a + color + city % 3 > 2 else 'no'}")
    path = tmp_path_factory.mktemp("tables") / "data.csv"
    path.write_text("\n".join(lines))
    return str(path)


def trainer_of(data: str, device: str, **options: Any) -> Trainer:
    """Return a trainer with ten whole batches in an epoch."""
    chosen = {"hidden": (16, 8), "batch_size": 16, "epochs": EPOCHS, "validation": 0.1, "dropout": 0.0, "average": 0.0}
    return make_trainer(plan(Settings(data, device=device, **(chosen | options))), 0)


def trained(trainer: Trainer) -> Trainer:
    list(trainer.epochs(EPOCHS))
    return trainer


@pytest.fixture
def launched(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The nodes of each graph that is launched in a test."""
    found: list[list[str]] = []
    launch = Graph.launch
    monkeypatch.setattr(Graph, "launch", lambda graph, stream=None: (found.append(graph.names), launch(graph, stream)))
    monkeypatch.setattr("gradflow.training.step._MOST_AT_ONCE", STEPS)
    return found


PERCEPTRON = {
    "next_row": 1, "product": 9, "dropout<float>": 2, "cross_entropy<float>": 1, "dropout_backward<float>": 2,
    "bias_backward<float>": 3, "square_sums<float>": 1, "scale_by<float>": 1, "adam_step<float>": 1,
    "sgd_step<float>": 1, "reduce": 1, "equal": 1,
}  # fmt: skip
"""The nodes of a step of three layers, see `test_launches`, with the gradient of their inputs; of clipping, of the
average of weights, and of the accuracy."""
CATEGORIES = {
    "_copied": 2, "__getitem__": 4, "equal": 1, "astype": 2, "add": 1, "concat": 1, "zeros": 1, "arange": 1,
    "argsort": 1, "ascontiguousarray": 1, "scatter_rows<float>": 1, "__setitem__": 1,
}  # fmt: skip
"""Those that take the raw columns, compare them with levels, look up the embedding, and sum its gradient in order."""
NUMBERS = {
    "standard": {"maximum": 1, "minimum": 1},
    "piecewise": {
        "subtract": 1, "multiply": 1, "maximum": 1, "minimum": 1, "product": 2, "reshape": 1, "add": 1,
        "activate<float>": 1, "activate_backward<float>": 1, "ascontiguousarray": 1, "reduce": 1, "__setitem__": 2,
    },
}  # fmt: skip
"""Those of the numbers; with bins, forward and backward, and the copies of two gradients to the optimizer."""


def same_bits_as_plain(data: str, device: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Trainer:
    """Return a trainer whose steps were captured, after a comparison with one whose steps were not."""
    found = trained(trainer_of(data, device, **options))
    assert found.captures
    assert found._step.whole.status == "replaying"  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr("gradflow.training.trainer.is_own", lambda *_: False)
        plain = trained(trainer_of(data, device, **options))
    assert not plain.captures
    assert found.history == plain.history
    assert outcome(found) == outcome(plain)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_run_is_captured_and_agrees_with_the_cpu(
    data: str, encoding: str, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured steps have the bits of plain ones: history, weights, average, moments. Several are one graph on a GPU.

    All parameters have one step of the optimizer. The losses of the devices differ by the rounding of sums of at most
    68 terms, in 4 layers, forward and backward.
    """
    here = same_bits_as_plain(data, "cpu", monkeypatch, encoding=encoding, **FULL)
    assert not launched
    there = same_bits_as_plain(data, "emulated", monkeypatch, encoding=encoding, **FULL)
    assert STEPS in [names.count("next_row") for names in launched]
    [names] = {tuple(names) for names in launched if names.count("next_row") == 1 and "concat" in names}
    assert Counter(names) == Counter(PERCEPTRON) + Counter(CATEGORIES) + Counter(NUMBERS[encoding])
    assert len(names) == {"standard": 43, "piecewise": 55}[encoding]
    assert {"0.embed.weight"} < {name for name, _ in there.model.named_parameters()}
    bound = here.step * 8 * 68 * eps()
    for a, b in zip(here.history, there.history, strict=True):
        assert b.train_loss == pytest.approx(a.train_loss, rel=bound)
        assert b.validation_loss == pytest.approx(a.validation_loss, rel=bound)


@pytest.mark.slow
def test_a_run_in_mixed_precision_is_captured(
    data: str, launched: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of 11 bits change the loss of the first epoch by less than one in a hundred."""
    options: dict[str, Any] = {"encoding": "piecewise", **FULL}
    exact = trained(trainer_of(data, "cpu", **options))
    for device in ("cpu", "emulated"):
        found = same_bits_as_plain(data, device, monkeypatch, autocast="float16", **options)
        assert found.history[0].train_loss == pytest.approx(exact.history[0].train_loss, rel=0.01)
    assert STEPS in [names.count("next_row") for names in launched]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_step_waits_for_nothing_and_moves_raw_columns(
    data: str, encoding: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two numbers, an indicator and two codes in each row, however they are encoded. Losses wait for an epoch's end.

    Only tables of the numbers of steps are sent within it.
    """
    sent: list[int] = []
    send = GraphRows._send
    monkeypatch.setattr(GraphRows, "_send", lambda rows, wanted: (sent.append(wanted), send(rows, wanted)))
    trainer = trainer_of(data, "emulated", encoding=encoding, **FULL)
    inputs, _ = trainer.train.on_device()  # type: ignore[misc]
    assert inputs.shape == (trainer.train.samples, 2 + 1 + 2)
    next(trainer.epochs(1))
    before = None
    for step in trainer.steps(2 * trainer.step):
        now = State.transfers - len(sent), State.synchronizations
        if step.step > trainer.history[0].step + 1 and not step.finished:  # replayed
            assert now == before
        before = now
    assert len(sent) < trainer.step / 2
