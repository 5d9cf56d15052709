"""What is watched of the layers while they train: right numbers, the same training, the same bits in a resumed run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.data import Batches
from gradflow.saving import to_bytes
from gradflow.testing import forbid_sync
from gradflow.training import NonFiniteLossError, Settings, Trainer
from gradflow.training.layers import EDGES, histograms
from gradflow.training.report import layers_html
from gradflow.training.runs.run import Run
from gradflow.training.watching import Watch
from tests.devices import replays
from tests.reports import Page
from tests.trainers import INPUTS, LABELS, VALUES, equal, make, weights_of


def tree(watch: Watch) -> bytes:
    pytest.importorskip("safetensors")
    return to_bytes(watch.tree())


# ---------------------------------------------------------------------- histograms


def test_a_histogram_counts_each_finite_number_in_its_bin() -> None:
    rng = np.random.default_rng(0)
    values = (10.0 ** rng.uniform(-11, 2, size=4000) * rng.choice([-1, 1], size=4000)).astype(np.float32)
    a, b = histograms(np.concatenate([values, [0.0, np.nan, np.inf, 1e-20, 1e30]]).astype(np.float32), [4000, 5])
    expected = np.histogram(values.astype(np.float64), EDGES)[0]
    assert np.abs(a.astype(int) - expected).sum() <= 4  # of numbers next to an edge, in float32
    assert a.sum() == 4000
    assert b[len(b) // 2] == 2  # 0 and 1e-20
    assert b[-1] == 1  # 1e30
    assert b.sum() == 3
    assert np.all(-EDGES[::-1] == EDGES)


# ---------------------------------------------------------------------- what a snapshot says


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"clip_norm": 0.01}, {"average": 0.9}, {"capture": False}])
def test_a_snapshot_tells_of_the_last_step(device: str, options: dict[str, Any]) -> None:
    with gf.use_device(device):
        trainer, twin = make(**options), make(**options)
        watch = trainer.watch()
        list(trainer.epochs(2))
        last = len(twin.train) if not options.get("accumulate") else 2
        list(twin.steps(2 * last - 1))
        before = weights_of(twin)
        list(twin.steps(2 * last))
    assert [(s.epoch, s.step) for s in watch] == [(1, last), (2, 2 * last)]
    assert watch[-1].learning_rate == 0.05
    after = weights_of(twin)
    assert equal(after, weights_of(trainer))
    for (name, p), old, new in zip(twin.model.named_parameters(), before, after, strict=True):
        assert p.grad is not None
        gradient = p.grad.numpy()
        seen = watch[-1]
        for spread, values in ((seen.weights[name], new), (seen.gradients[name], gradient)):
            assert spread.rms == pytest.approx(math.sqrt(np.mean(values.astype(np.float64) ** 2)), rel=1e-5)
            assert spread.counts is not None
            assert np.array_equal(spread.counts, histograms(values.reshape(-1), [values.size])[0])
        change = math.sqrt(np.mean((new - old).astype(np.float64) ** 2))
        assert seen.ratios[name] == pytest.approx(change / math.sqrt(np.mean(old.astype(np.float64) ** 2)), rel=1e-3)


class _Own(nn.Module):
    """A user's model, with functions in place of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 5, activation="relu"), nn.Linear(5, 3)

    def forward(self, x: gf.Tensor) -> Any:
        return self.last(self.second(gf.relu(self.first(x))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.MLP([4, 6, 5, 3]),
    "modules": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "functions": _Own,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("validated", [True, False])
def test_dead_units_are_found_in_any_model(device: str, name: str, validated: bool) -> None:
    with gf.use_device(device):
        model = MODELS[name]()
        layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
        for layer, count in zip(layers, (3, 1, 0), strict=True):
            for i in range(count):
                bias = layer.bias.detach().numpy().copy()
                bias[i] = -100.0
                layer.load_state_dict({"weight": layer.weight.detach(), "bias": bias})
        validation = Batches(INPUTS[:30], LABELS[:30], 20) if validated else None
        optimizer = optim.SGD(model.parameters(), lr=0.0)
        trainer = Trainer(model, gf.cross_entropy, optimizer, Batches(INPUTS, LABELS, 16), validation)
        watch = trainer.watch()
        list(trainer.epochs(1))
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][:2]
    assert list(watch[0].dead) == names
    samples = INPUTS[:30] if validated else INPUTS
    with gf.use_device("cpu"):
        cpu = MODELS[name]()
        cpu.load_state_dict(model.state_dict())
        first: Any = next(m for m in cpu.modules() if isinstance(m, nn.Linear))
        hidden = np.maximum(samples @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    assert watch[0].dead[names[0]] == pytest.approx(np.mean((hidden == 0).all(axis=0)))
    assert watch[0].dead[names[0]] >= 0.5
    assert watch[0].dead[names[1]] >= 0.2


def test_dead_units_are_looked_for_in_evaluation_mode_without_a_graph() -> None:
    seen = []

    class Layer(nn.Linear):
        def forward(self, x: gf.Tensor) -> gf.Tensor:
            seen.append((self.training, gf.is_grad_enabled(), len(x)))
            return super().forward(x)

    model = nn.Sequential(Layer(4, 8, device="cpu"), nn.ReLU(), nn.Linear(8, 3, device="cpu"))
    data = Batches(np.tile(INPUTS, (30, 1)), np.tile(LABELS, 30), 2100, device="cpu")
    trainer = Trainer(model, gf.cross_entropy, optim.SGD(model.parameters(), 0.1), data)
    trainer.watch()
    seen.clear()
    list(trainer.epochs(1))
    assert seen == [(True, True, 2100), (False, False, 700)]  # every third sample, fewer than a batch
    assert model.training


def test_without_rectified_units_none_is_dead() -> None:
    model = nn.MLP([4, 6, 3], "tanh", device="cpu")
    trainer = Trainer(
        model, gf.cross_entropy, optim.SGD(model.parameters(), 0.1), Batches(INPUTS, LABELS, 16, device="cpu")
    )
    watch = trainer.watch()
    list(trainer.epochs(1))
    assert watch[0].dead == {}
    assert "dead" not in str(watch)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_dtypes(dtype: str) -> None:
    model = nn.MLP([4, 8, 2], dtype=dtype, device="cpu", generator=gf.Generator(0))
    data = Batches(INPUTS.astype(dtype), VALUES.astype(dtype), 16, device="cpu")
    trainer = Trainer(model, gf.mse_loss, optim.SGD(model.parameters(), 0.01), data)
    watch = trainer.watch()
    list(trainer.epochs(2))
    weight = model[0].weight.detach().numpy().astype(np.float64)
    assert watch[-1].weights["0.weight"].rms == pytest.approx(math.sqrt(np.mean(weight**2)), rel=1e-3)
    assert 0 < watch[-1].ratios["0.weight"] < 1


def test_large_parameters_are_sampled_across_rows_and_columns() -> None:
    model = nn.Sequential(nn.Linear(4, 512, device="cpu"), nn.ReLU(), nn.Linear(512, 64, device="cpu"))
    pattern = np.zeros((64, 512), np.float32)
    pattern[:, ::2] = 1.0  # every other column
    model[2].load_state_dict({"weight": pattern, "bias": np.zeros(64, np.float32)})
    data = Batches(INPUTS, np.zeros((70, 64), np.float32), 70, device="cpu")
    trainer = Trainer(model, gf.mse_loss, optim.SGD(model.parameters(), 0.0), data)
    watch = trainer.watch()
    list(trainer.epochs(1))
    counts = watch[0].weights["2.weight"].counts
    assert counts is not None
    assert 3000 < counts.sum() <= 4096
    assert counts[len(counts) // 2] / counts.sum() == pytest.approx(0.5, abs=0.02)


def test_frozen_parameters_have_no_gradient_and_do_not_change() -> None:
    trainer = make()
    trainer.model[0].requires_grad_(False)
    watch = trainer.watch()
    list(trainer.epochs(2))
    assert math.isnan(watch[-1].gradients["0.weight"].rms)
    assert watch[-1].ratios["0.weight"] == 0.0
    assert watch[-1].ratios["1.weight"] > 0.0
    assert "not finite" not in watch._repr_html_()  # type: ignore[operator]


def test_numbers_that_are_not_finite_are_shown(tmp_path: Path) -> None:
    model = nn.MLP([4, 8, 2], device="cpu", generator=gf.Generator(0))
    trainer = Trainer(model, gf.mse_loss, optim.SGD(model.parameters(), 1e6), Batches(INPUTS, VALUES, 16, device="cpu"))
    watch = trainer.watch()
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError):
        list(trainer.epochs(20))
    assert watch[-1].epoch == trainer.epoch + 1  # the epoch that failed
    assert not math.isfinite(watch[-1].weights["0.weight"].rms)
    assert "nan" in str(watch)
    watch.save(tmp_path / "watch.html")
    assert "are not finite from epoch 1 on" in Page((tmp_path / "watch.html").read_text("utf-8")).text
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLossError):
        list(trainer.epochs(20))
    assert [s.epoch for s in watch] == [1]


def test_sizes_of_gradients_are_right_where_their_squares_vanish_or_overflow(device: str) -> None:
    """The first layer's gradient is 1e-30 in one training, 1e30 in another; float64 goes further."""
    for scale, dtype in ((1e-30, "float32"), (1e30, "float32"), (1e-200, "float64"), (1e200, "float64")):
        with gf.use_device(device):
            model = nn.Linear(2, 1, dtype=dtype)
            train = Batches(np.ones((4, 2), dtype), np.zeros((4, 1), dtype), 4)

            def loss(out: gf.Tensor, target: gf.Tensor, scale: float = scale) -> gf.Tensor:
                return gf.sum(out * scale) + 0.0 * gf.sum(target)

            trainer = Trainer(model, loss, optim.SGD(model.parameters(), lr=0.0), train)
            watch = trainer.watch()
            list(trainer.epochs(1))
        assert watch[0].gradients["weight"].rms == pytest.approx(4 * scale, rel=1e-6)


def test_what_does_not_change_has_the_ratio_0() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    for p in model[1].parameters():
        p.requires_grad = False  # its bias is 0, so that 0 / 0 is at stake
    trainer = Trainer(model, gf.cross_entropy, optim.SGD(model.parameters(), 0.1), Batches(INPUTS, LABELS, 16))
    watch = trainer.watch()
    list(trainer.epochs(1))
    assert watch[0].ratios["1.bias"] == watch[0].ratios["1.weight"] == 0.0
    assert "not finite" not in layers_html([*watch])


def test_a_users_model_gets_batches_of_the_size_that_it_trains_with() -> None:
    sizes = []

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6, activation="relu"), nn.Linear(6, 3)

        def forward(self, x: gf.Tensor) -> Any:
            if not self.training:
                sizes.append(len(x))
            return self.last(self.first(x.reshape((min(16, len(x)), 4))))

    model = Fixed()
    bias = np.zeros(6, "float32")
    bias[0] = -100.0
    model.first.load_state_dict({"weight": model.first.weight.detach(), "bias": bias})
    optimizer = optim.SGD(model.parameters(), 0.0)
    trainer = Trainer(model, gf.cross_entropy, optimizer, Batches(INPUTS, LABELS, 16))
    watch = trainer.watch()
    sizes.clear()
    list(trainer.epochs(1))
    assert sizes == [16, 16, 16, 16, 6]
    hidden = INPUTS @ model.first.weight.detach().numpy().T + bias
    assert watch[0].dead["first"] == pytest.approx(np.mean((hidden <= 0).all(axis=0)))


def test_a_watched_epoch_takes_one_more_transfer() -> None:
    def transfers(watched: bool) -> int:
        with gf.use_device("fake"):
            trainer = make()
            if watched:
                trainer.watch()
            list(trainer.epochs(1))
            with gf.testing.count_transfers() as count:
                list(trainer.epochs(2))
        return count.to_host

    assert transfers(True) == transfers(False) + 1


def test_a_watch_is_saved_as_a_page_only(tmp_path: Path) -> None:
    trainer = make()
    watch = trainer.watch()
    list(trainer.epochs(1))
    with pytest.raises(ValueError, match=r"save them as \.html; got .*watch\.png"):
        watch.save(tmp_path / "watch.png")
    assert not list(tmp_path.iterdir())


def test_a_trace_around_a_training_sees_the_pass_that_finds_dead_units() -> None:
    def layers(watched: bool) -> int:
        trainer = make(capture=False)
        if watched:
            trainer.watch()
        with gf.trace() as trace:
            list(trainer.epochs(1))
        return sum(step.operation in ("linear", "perceptron") for step in trace.graph.steps)

    assert layers(True) == layers(False) + 2


# ---------------------------------------------------------------------- what it costs the training


@pytest.mark.parametrize("options", [{}, {"average": 0.9, "accumulate": 2}, {"dropout": 0.3}])
def test_watching_changes_nothing_in_the_training(device: str, options: dict[str, Any]) -> None:
    with gf.use_device(device):
        trainer, twin = make(validate=True, **options), make(validate=True, **options)
        trainer.watch()
        assert list(trainer.epochs(4)) == list(twin.epochs(4))
        assert equal(weights_of(trainer), weights_of(twin))
        if trainer.captures and not options:
            assert replays(trainer._step.whole.status)  # type: ignore[attr-defined]


def test_nothing_is_read_within_an_epoch() -> None:
    with gf.use_device("fake"):
        trainer = make()
        trainer.watch()
        steps = trainer.steps(25)
        for number in range(1, 26):
            if number % 5:
                with forbid_sync():
                    next(steps)
            else:
                next(steps)  # the epoch ends here


def test_every_and_when_it_begins() -> None:
    trainer = make()
    list(trainer.steps(5 + 2))
    watch = trainer.watch(every=2)
    assert trainer.watch(every=2) is watch
    list(trainer.epochs(5))
    assert [s.epoch for s in watch] == [2, 4]
    list(trainer.steps(30))
    assert [s.epoch for s in trainer.watch()] == [2, 4, 6]
    list(trainer.epochs(7))
    assert watch[-1].epoch == 7
    assert repr(watch) == "<Watch of 4 parameters, 4 snapshots>"


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_every_is_a_number_of_epochs(every: Any) -> None:
    with pytest.raises(ValueError, match="every is a number of epochs, an integer of at least 1; got"):
        make().watch(every)


def test_a_watch_that_has_seen_nothing() -> None:
    watch = make().watch()
    assert len(watch) == 0
    assert str(watch) == repr(watch) == "<Watch of 4 parameters, 0 snapshots>"
    assert watch._repr_html_() is None
    with pytest.raises(RuntimeError, match="nothing is watched yet: train for an epoch"):
        watch.save("never.html")


def test_histograms_of_long_runs_are_thinned_out() -> None:
    trainer = make(batch=70)
    watch = trainer.watch()
    list(trainer.epochs(100))
    full = [s.epoch for s in watch if s.weights["0.weight"].counts is not None]
    assert full == [*range(1, 100, 4), 100]
    assert len(watch) == 100
    assert all(s.weights["0.weight"].rms > 0 for s in watch)


# ---------------------------------------------------------------------- saved states


@pytest.mark.parametrize("at", [3, 5, 12])
def test_a_resumed_run_has_the_same_snapshots(at: int, tmp_path: Path) -> None:
    whole, two, three = make(validate=True), make(validate=True), make(validate=True)
    watch = whole.watch()
    list(whole.epochs(4))
    two.watch()
    list(two.steps(at))
    two.save(tmp_path / "state.safetensors")
    three.load(tmp_path / "state.safetensors")  # it was watched, so it is
    list(three.epochs(4))
    assert tree(three.watch()) == tree(watch)


def test_what_was_seen_of_the_last_step_is_saved_before_the_epoch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, two, three = make(), make(), make()
    watch = whole.watch()
    list(whole.epochs(2))
    two.watch()
    steps = two.steps(5)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish", lambda self: (_ for _ in ()).throw(ZeroDivisionError))
        with pytest.raises(ZeroDivisionError):
            list(steps)
    two.save(tmp_path / "state.safetensors")
    three.load(tmp_path / "state.safetensors")
    list(three.epochs(2))
    assert tree(three.watch()) == tree(watch)


def test_a_state_that_was_not_watched_starts_a_watch_anew(tmp_path: Path) -> None:
    one, two = make(), make()
    list(one.epochs(1))
    one.save(tmp_path / "state.safetensors")
    watch = two.watch()
    list(two.epochs(3))
    two.load(tmp_path / "state.safetensors")
    assert len(watch) == 0
    list(two.epochs(2))
    assert [s.epoch for s in watch] == [2]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("every", 0), ("every", None), ("epochs", [[1, 5, 6]]),
        ("epochs", [[0, 5, 0.1], [2, 10, 0.1]]), ("epochs", None), ("rectified", [1]),
        ("with_histograms", [9]), ("with_histograms", ["x"]), ("figures", None), ("dead", gf.zeros((1,), device="cpu")),
        ("histograms", gf.zeros((2, 4, 2, 7), device="cpu")), ("waiting", gf.zeros((3,), device="cpu")),
        ("waiting", 5),
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused(key: str, value: Any) -> None:
    trainer = make()
    watch = trainer.watch()
    list(trainer.epochs(2))
    before = tree(watch)
    state = trainer.state_dict()
    state["watch"][key] = value
    with pytest.raises(ValueError, match=f"the saved state is damaged: its {key} cannot be"):
        trainer.load_state_dict(state)
    state["watch"] = 3
    with pytest.raises(ValueError, match="the saved state is damaged: its watch cannot be 3"):
        trainer.load_state_dict(state)
    assert tree(watch) == before


# ---------------------------------------------------------------------- runs


@pytest.mark.slow
@pytest.mark.parametrize("at", [5, 15])
def test_the_first_model_of_a_run_is_watched(at: int, tmp_path: Path) -> None:
    for package in ("sklearn", "safetensors", "tomli_w", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    settings = Settings("iris", device="cpu", hidden=(4,), epochs=6, ensemble=2, batch_size=50)
    reports: list[str] = []
    for name, stop in (("whole", None), ("parts", at)):
        run = Run.new(settings, tmp_path / name)
        with run:
            for _ in itertools.islice(run.steps(), stop):
                pass
            run.finish("interrupted" if stop else "")
        if stop:
            run = Run.resumed(tmp_path / name)
            with run:
                for _ in run.steps():
                    pass
                run.finish()
        assert [s.epoch for s in run.members.snapshots] == [*range(1, 7)]
        page = (tmp_path / name / "report.html").read_text("utf-8")
        start = page.index('<h2 id="layers">')
        reports.append(page[start : page.index("</section>", start)])
    assert "Taken at the end of each epoch of the first member of the ensemble." in reports[0]
    assert reports[0] == reports[1]


def test_later_epochs_of_a_long_run_are_watched_less_often(tmp_path: Path) -> None:
    for package in ("sklearn", "safetensors", "tomli_w", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    run = Run.new(Settings("iris", device="cpu", hidden=(), epochs=90, batch_size=200, test=0.0), tmp_path / "run")
    with run:
        for _ in run.steps():
            pass
        assert [s.epoch for s in run.members.snapshots] == [*range(1, 21), *range(22, 41, 2), *range(44, 81, 4), 88]
        run.finish()
    assert "Taken at the end of 41 of 90 epochs." in (tmp_path / "run" / "report.html").read_text("utf-8")
