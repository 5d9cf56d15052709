"""`nn.BatchNorm1d` against PyTorch: whole trainings with their running statistics; and steps, modes and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from tests.devices import replays


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(1.0, 2.0, shape)


def statistics(layer: nn.Module) -> list[Any]:
    return [x.tolist() for x in layer.buffers()]


@pytest.mark.parametrize(("momentum", "places", "affine"), [(0.1, (), True), (None, (3,), False)])
def test_a_training_is_that_of_torch(momentum: float | None, places: tuple[int, ...], affine: bool) -> None:
    """Losses, weights, statistics of 12 steps, and outputs in evaluation mode: to 1e-12 in float64."""
    torch = pytest.importorskip("torch")
    x, target = normal(12, 7, 4, *places), normal(7, 4, *places)
    options: Any = {"eps": 1e-3, "momentum": momentum, "affine": affine}
    theirs = torch.nn.Sequential(torch.nn.BatchNorm1d(4, **options), torch.nn.Tanh(), torch.nn.BatchNorm1d(4)).double()
    ours = nn.Sequential(nn.BatchNorm1d(4, dtype="float64", **options), nn.Tanh(), nn.BatchNorm1d(4, dtype="float64"))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    there, here = torch.optim.SGD(theirs.parameters(), 0.1, 0.9), gf.optim.SGD(ours.parameters(), 0.1, 0.9)
    for batch in x:
        there.zero_grad()
        here.zero_grad()
        expected = torch.nn.functional.mse_loss(theirs(torch.tensor(batch)), torch.tensor(target))
        loss = gf.mse_loss(ours(gf.tensor(batch)), gf.tensor(target))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        expected.backward()
        loss.backward()
        there.step()
        here.step()
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[name].numpy(), value.numpy(), rtol=1e-12, atol=1e-14)
    found = ours.eval()(gf.tensor(x[0])).detach().numpy()
    np.testing.assert_allclose(found, theirs.eval()(torch.tensor(x[0])).detach().numpy(), rtol=0, atol=1e-12)


def test_without_running_statistics_evaluation_mode_is_of_the_batch() -> None:
    layer = nn.BatchNorm1d(3, affine=False, track_running_stats=False)
    assert layer.state_dict() == {}
    x = gf.tensor(normal(5, 3), dtype="float32")
    assert layer(x).tolist() == layer.eval()(x).tolist()


def test_a_captured_step_moves_the_statistics() -> None:
    """As the step itself does, with checks too, and in evaluation mode not."""
    batches = [gf.tensor(normal(6, 3, seed=i)) for i in range(8)]
    found: list[Any] = []
    for through in (lambda step: step, gf.capture, gf.capture(check=2)):
        layer = nn.BatchNorm1d(3, dtype="float64")
        optimizer = gf.optim.SGD(layer.parameters(), lr=0.1)

        def step(x: gf.Tensor, layer: Any = layer, optimizer: Any = optimizer) -> gf.Tensor:
            optimizer.zero_grad()
            loss = (layer(x) ** 3).mean()
            loss.backward()
            optimizer.step()
            return loss

        taken: Any = through(step)
        losses = [taken(x).item() for x in batches[:6]]
        assert replays(getattr(taken, "status", "replaying"))
        layer.eval()
        losses += [taken(x).item() for x in batches[6:]]
        found.append((losses, statistics(layer)))
        assert layer.num_batches_tracked is not None
        assert layer.num_batches_tracked.item() == 6
    assert found[0] == found[1] == found[2]


def test_a_replay_counts_as_a_change_of_the_statistics() -> None:
    """A backward pass that would read what a replay has changed since is refused."""
    layer, x = nn.BatchNorm1d(3), gf.tensor(normal(4, 3), dtype="float32")
    step = gf.capture(lambda x: layer(x).sum())
    for _ in range(3):
        step(x)
    weight = gf.ones(3, requires_grad=True)
    y = (layer.running_var * weight).sum()
    step(x)
    assert replays(step.status)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_checkpoint_counts_a_batch_once() -> None:
    plain, again = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x = gf.tensor(normal(4, 3), dtype="float32", requires_grad=True)
    plain(x).square().sum().backward()
    gf.checkpoint(again, x).square().sum().backward()
    assert statistics(plain) == statistics(again)
    assert plain.weight is not None
    assert again.weight is not None
    assert plain.weight.grad.tolist() == again.weight.grad.tolist()  # type: ignore[union-attr]


def test_a_functional_call_moves_the_statistics_that_it_is_given() -> None:
    layer, x = nn.BatchNorm1d(3), gf.tensor(normal(4, 3), dtype="float32")
    before, given = statistics(layer), layer.state_dict()
    nn.functional_call(layer, given, x)
    assert statistics(layer) == before
    layer(x)
    assert statistics(layer) == [given[name].tolist() for name, _ in layer.named_buffers()]


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_floats_are_normalized_in_float32(half: str) -> None:
    """So squares do not overflow. In autocast, the result has the dtype of the input, as in PyTorch."""
    if half == "bfloat16":
        pytest.importorskip("ml_dtypes")
    layer, x = nn.BatchNorm1d(2), gf.tensor([[300.0, 1.0], [-300.0, 3.0], [600.0, 5.0]], dtype=half)
    with gf.autocast(half):
        y = layer(x)
        assert layer(x.astype("float32")).dtype == gf.float32
    assert y.dtype == x.dtype
    exact = nn.BatchNorm1d(2)(x.astype("float32"))
    np.testing.assert_allclose(y.astype("float32").tolist(), exact.tolist(), rtol=2.0**-7)
    y.sum().backward()
    assert layer.weight is not None
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == gf.float32
    moved = nn.BatchNorm1d(2).to(half)
    assert moved(x).dtype == moved.eval()(x).dtype == x.dtype
    np.testing.assert_allclose(
        moved.running_mean.astype("float32").tolist(),
        [20.0, 0.3],
        rtol=2.0**-7,  # type: ignore[union-attr]
    )


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: nn.BatchNorm1d(3)(gf.ones((1, 3))), ValueError, "more than one value per channel"),
        (lambda: nn.BatchNorm1d(3)(gf.ones((2, 4))), ValueError, r"\(N, 3\)"),
        (lambda: nn.BatchNorm1d(3)(gf.ones(3)), ValueError, r"\(N, 3\)"),
        (lambda: nn.BatchNorm1d(3)(gf.ones((2, 3), dtype="float64")), TypeError, "one dtype"),
        (lambda: nn.BatchNorm1d(0), ValueError, "num_features"),
        (lambda: nn.BatchNorm1d(3, eps=-1.0), ValueError, "eps"),
        (lambda: nn.BatchNorm1d(3, momentum=1.5), ValueError, "momentum"),
        (lambda: gf.batch_norm(gf.ones((2, 3))), ValueError, "running_mean and running_var"),
        (lambda: gf.batch_norm(gf.ones((2, 3)), gf.ones(3)), ValueError, "both"),
        (lambda: gf.batch_norm(gf.ones((2, 3)), gf.ones(2), gf.ones(2)), ValueError, "running_mean of shape"),
        (
            lambda: gf.batch_norm(gf.ones((2, 3)), gf.ones(3), gf.ones(3), training=True, momentum=None),
            ValueError, "num_batches_tracked",
        ),
        (
            lambda: gf.batch_norm(gf.ones((2, 3)), gf.ones(3), gf.ones(3), num_batches_tracked=gf.ones(())),
            ValueError, "int64",
        ),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()
