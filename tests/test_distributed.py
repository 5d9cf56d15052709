"""Training by several ranks, which are threads here: shares, masks, sums of gradients, figures, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

import gradflow as gf
from gradflow.cli import main
from gradflow.data import Batches
from gradflow.distributed import Communicator, reduction
from gradflow.distributed.faults import Watch
from gradflow.interception import opaque_call
from gradflow.random.shares import Share, share_of, sharing
from gradflow.training import Run, Settings, Trainer
from gradflow.training.threads import cores_divided
from tests.devices import replays
from tests.mpi_ranks import LABELS, OPTIONS, X, bits, trained, trainer_of
from tests.thread_ranks import ThreadRank, run_ranks

METRICS = ["accuracy", "log_loss"]
"""One that is summed on the device, and one of the outputs of all samples, in their order."""

# ---------------------------------------------------------------------- shares


@given(st.integers(1, 40), st.integers(1, 12))
def test_shares_are_the_whole_batch_and_none_is_empty(total: int, size: int) -> None:
    shares = [share_of(total, rank, size) for rank in range(size)]
    counted = [range(s.first, s.first + s.counted) for s in shares]
    assert [*itertools.chain(*counted)] == [*range(total)]
    assert max(map(len, counted)) - min(map(len, counted)) <= 1
    assert all(s.rows >= 1 and s.first + s.rows <= total for s in shares)


@pytest.mark.parametrize("keep", ["device", "host"])
@pytest.mark.parametrize(("shuffle", "drop_last"), [(True, False), (False, False), (True, True)])
def test_ranks_get_their_samples_of_each_batch(keep: str, shuffle: bool, drop_last: bool) -> None:
    def batches() -> Batches:
        return Batches(X, LABELS, 10, gf.Generator(4), shuffle, drop_last, keep=keep)

    for size, first in [(3, 0), (8, 2)]:
        ranks = [batches().shared(rank, size) for rank in range(size)]
        epochs = [[*ranked.epoch(first)] for ranked in ranks]
        whole = [*batches().epoch(first)]
        assert {len(epoch) for epoch in epochs} == {len(whole)}
        for i, batch in enumerate(whole):
            shares = [ranked.share(first + i) for ranked in ranks]
            for which, x in enumerate(batch):
                parts = [e[i][which].numpy()[: s.counted] for e, s in zip(epochs, shares, strict=True)]
                assert (np.concatenate(parts) == x.numpy()).all()


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 11), st.integers(0, 3))
def test_masks_are_those_of_the_places_in_the_batch(total: int, size: int, width: int, before: int) -> None:
    """Also where a share begins within a block of 8 elements; and the generators advance by the whole batch."""
    x = gf.ones((total, width))
    whole = gf.Generator(5)
    gf.random.uniform(before, generator=whole)
    state = whole.state_dict()
    expected = gf.dropout(x, 0.4, generator=whole).numpy()
    for rank in range(size):
        share, own = share_of(total, rank, size), gf.Generator(0)
        own.load_state_dict(state)
        with sharing(share):
            mask = gf.dropout(x[share.first : share.first + share.rows], 0.4, generator=own).numpy()
        assert (mask == expected[share.first : share.first + share.rows]).all()
        assert own.state_dict() == whole.state_dict()


def test_a_mask_without_an_axis_of_the_batch_is_refused() -> None:
    with sharing(Share(2, 2, 5, 2)), pytest.raises(ValueError, match=r"first axis is the batch; got shape \(3,\)"):
        gf.dropout(gf.ones(3), 0.5)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("options", OPTIONS)
def test_ranks_train_as_one_process_does(options: dict[str, Any]) -> None:
    """The losses of 20 steps to 1e-12, and equal bits on all ranks; with 11 ranks, some have no sample of a batch."""
    losses, figures, _ = trained(None, metrics=METRICS, **options)
    for size in (1, 2, 11):
        ranks = run_ranks(size, lambda rank: trained(rank, metrics=METRICS, **options))
        assert len({(*own, weights) for own, _, weights in ranks}) == 1
        np.testing.assert_allclose(ranks[0][0], losses, rtol=0, atol=1e-12)
        np.testing.assert_allclose(ranks[0][1], figures, rtol=0, atol=1e-12)
        assert ranks[0][1] == ranks[-1][1]


@pytest.mark.parametrize(("autocast", "bound"), [(None, 2e-6), ("bfloat16", 2e-3), ("float16", 2e-3)])
def test_ranks_train_in_lower_precision(autocast: str | None, bound: float) -> None:
    """To about the rounding of the dtype of products, after 20 steps."""
    pytest.importorskip("ml_dtypes")
    losses, _, _ = trained(None, dtype="float32", autocast=autocast)
    ranks = run_ranks(3, lambda rank: trained(rank, dtype="float32", autocast=autocast))
    assert len({weights for _, _, weights in ranks}) == 1
    np.testing.assert_allclose(ranks[0][0], losses, rtol=0, atol=bound)


def test_regression_figures_are_summed_over_ranks() -> None:
    def figures(communicator: Any) -> list[dict[str, float]]:
        model = gf.nn.MLP([5, 8, 2], generator=gf.Generator(0), dtype="float64")
        batches = Batches(X, X[:, :2], 10, gf.Generator(1), weights=np.arange(37.0))
        optimizer = gf.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        trainer = Trainer(
            model, gf.mse_loss, optimizer, batches, metrics=["r2", "rmse", "mae"], communicator=communicator
        )
        return [{"loss": e.train_loss, **e.train_metrics} for e in trainer.epochs(2)]

    alone, ranks = figures(None), run_ranks(3, figures)
    assert ranks[0] == ranks[1] == ranks[2]
    for one, several in zip(alone, ranks[0], strict=True):
        assert several == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize("is_used_twice", [False, True])
def test_sums_begin_during_the_backward_pass_with_the_last_layer(
    is_used_twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a replay, at the same places. The gradient of a parameter that is used twice is whole at the end."""
    monkeypatch.setattr(reduction, "BUCKET", 1)
    events: list[Any] = []
    plain = reduction.GradientReduction.finish.__wrapped__  # type: ignore[attr-defined]

    def finish(self: Any) -> None:
        events.append(None)
        plain(self)

    monkeypatch.setattr(reduction.GradientReduction, "finish", opaque_call(finish))

    class Noting(ThreadRank):
        def start_sum(self, array: Any) -> Any:
            events.append(array.copy())
            return super().start_sum(array)

    def work(rank: ThreadRank) -> str:
        sizes = [(3, 4), (4, 4), (4, 2)]
        layers = [gf.nn.Linear(*size, False, "tanh", generator=gf.Generator(i)) for i, size in enumerate(sizes)]
        weights = [layer.weight for layer in layers]
        optimizer = gf.optim.SGD(weights, lr=0.1)
        sums = reduction.GradientReduction(Noting(rank._group, 0), optimizer)

        def step(x: gf.Tensor) -> gf.Tensor:
            optimizer.zero_grad()
            with sums.during_backward():
                for layer in layers if not is_used_twice else [*layers[:2], *layers[1:]]:
                    x = layer(x)
                loss = x.sum()
                loss.backward()
            sums.finish()
            return loss

        captured = gf.capture(step)
        for i in range(4):
            events.clear()
            captured(gf.tensor(X[i : i + 3, :3].astype("float32")))
            gradients = [x for x in events if x is not None]
            for weight, x in zip(reversed(weights), gradients, strict=False):
                assert (x == weight.grad.numpy().reshape(-1)).all()  # whole when its sum began
            begun = next(i for i, x in enumerate(events) if x is None)
            assert begun == (1 if is_used_twice else 3)
        return replays(captured.status)

    assert run_ranks(1, work) == [True]


def test_runs_on_tables_train_as_in_one_process(tmp_path: Path) -> None:
    """An ensemble, which stops early, on a table with weights, by steps of several batches and averages of weights."""
    r = np.random.default_rng(0)
    rows = [f"{x:.3f},{'xyz'[i % 3]},{w:.3f},{x > 0.3}" for i, (x, w) in enumerate(r.uniform(0, 1, (80, 2)))]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,w,y", *rows]))
    settings = Settings(
        str(tmp_path / "t.csv"), target="y", weight_column="w", ensemble=2, patience=1, epochs=5, validation=0.3,
        lr=0.3, hidden=(8,), dropout=0.2, batch_size=10, accumulate=2, average=0.5, clip_norm=0.1, device="cpu",
    )  # fmt: skip

    def figures(rank: Any) -> list[list[Any]]:
        with Run.new(settings, tmp_path / f"{0 if rank is None else rank.size}", rank) as run:
            for _ in run.steps():
                pass
        epochs = [epoch for history in run.members.histories for epoch in history]
        return [[e.epoch, e.train_loss, e.validation_loss, *e.validation_metrics.values()] for e in epochs]

    alone, ranks = figures(None), run_ranks(3, figures)
    assert 2 < len(alone) < 10
    assert ranks[0] == ranks[1] == ranks[2]
    np.testing.assert_allclose(ranks[0], alone, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- going on with another number of ranks


def test_a_state_goes_on_with_another_number_of_ranks() -> None:
    """In the middle of an epoch, whose figures are those of all its batches."""
    states: list[Any] = []

    def part(until: int, state: Any) -> Iterator[Any]:
        def work(rank: Any) -> tuple[Any, Any]:
            trainer = trainer_of(rank, accumulate=1, average=0.9)
            if state is not None:
                trainer.load_state_dict(state)
            for _ in trainer.steps(until):
                pass
            return trainer.state_dict(), trainer.history

        return work  # type: ignore[return-value]

    whole, history = part(18, None)(None)  # type: ignore[operator]
    state = None
    for size, until in [(2, 3), (1, 6), (4, 18)]:
        states = run_ranks(size, part(until, state))  # type: ignore[arg-type]
        state = states[0][0]
    assert [e.epoch for e in states[0][1]] == [1, 2, 3, 4]
    for one, several in zip(history, states[3][1], strict=True):
        assert several.train_loss == pytest.approx(one.train_loss, abs=1e-12)
        assert several.train_metrics == pytest.approx(one.train_metrics, abs=1e-12)
    for name, x in whole["model"].items():
        np.testing.assert_allclose(state["model"][name].numpy(), x.numpy(), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- what is refused


def test_weights_are_those_of_rank_0() -> None:
    def first_bits(rank: Any) -> bytes:
        model = gf.nn.Linear(5, 3, generator=gf.Generator(rank.rank))
        optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
        batches = Batches(X.astype("float32"), LABELS, 8, gf.Generator(0))
        return bits(Trainer(model, gf.cross_entropy, optimizer, batches, communicator=rank))

    expected = gf.nn.Linear(5, 3, generator=gf.Generator(0)).state_dict().values()
    assert {*run_ranks(3, first_bits)} == {b"".join(x.numpy().tobytes() for x in expected)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12}, "batch_size is 10 on rank 0, but 12 on rank 1"),
        ({"lr": 0.5}, "hyperparameter: lr of group 0 is '0.01' on rank 0, but '0.5' on rank 1"),
        ({"clip_norm": 1.0}, "clip_norm is None on rank 0, but 1.0 on rank 1"),
    ],
)
def test_other_settings_on_a_rank_are_refused_by_all(options: dict[str, Any], message: str) -> None:
    def error(rank: Any) -> str:
        with pytest.raises(ValueError, match=message) as caught:
            trainer_of(rank, **(options if rank.rank == 1 else {}))
        return str(caught.value)

    assert len({*run_ranks(3, error)}) == 1


def test_an_error_of_the_command_that_all_ranks_have_is_named_and_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here on rank 1 of 2, whose settings differ from those of rank 0; that one prints it first, and has the folder."""

    class Second(Communicator):
        rank, size = 1, 2
        statuses: ClassVar[list[int]] = []

        def start_sum(self, array: Any) -> Any: ...
        def broadcast(self, array: Any, root: int = 0) -> None: ...
        def barrier(self) -> None: ...
        def text_of(self, text: str, root: int = 0) -> str:
            return text.replace('"epochs": 2', '"epochs": 1')

        def first_error(self, error: str) -> str:
            return error

        def end(self, status: int) -> None:
            self.statuses.append(status)

    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", X=X, y=LABELS)
    monkeypatch.setattr("gradflow.cli.ranks.launched_processes", lambda: 2)
    monkeypatch.setattr("gradflow.cli.ranks._PATIENCE", 0.0)
    monkeypatch.setattr("gradflow.cli.ranks._worlds", [])
    monkeypatch.setattr(import_module("gradflow.distributed.world"), "world", lambda timeout: Second())
    assert main(["train", "data.npz", "--epochs", "2"]) == 2
    out, err = capsys.readouterr()
    assert (out, Second.statuses) == ("", [2])
    assert err == "gradflow: error: rank 1: the setting: epochs is 1 on rank 0, but 2 on rank 1\n"
    assert not (tmp_path / "runs").exists()


def test_the_command_says_in_one_line_that_the_launcher_is_of_another_mpi(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def world(timeout: float) -> Any:
        raise RuntimeError("it uses the library of another MPI")

    monkeypatch.setattr("gradflow.cli.ranks.launched_processes", lambda: 2)
    monkeypatch.setattr(import_module("gradflow.distributed.world"), "world", world)
    assert main(["train", "digits"]) == 2
    assert capsys.readouterr() == ("", "gradflow: error: it uses the library of another MPI\n")


def test_other_data_on_a_rank_is_refused() -> None:
    def work(rank: Any) -> None:
        model = gf.nn.Linear(5, 3, generator=gf.Generator(0))
        x = X.astype("float32") + (rank.rank == 1)
        Trainer(
            model, gf.cross_entropy, gf.optim.SGD(model.parameters()), Batches(x, LABELS, 8, gf.Generator(0)),
            communicator=rank,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"training data is '\w+' on rank 0, but '\w+' on rank 1"):
        run_ranks(2, work)


@pytest.mark.parametrize("what", ["random generator: 2", "checksum: mean"])
def test_what_ranks_do_apart_is_noticed(what: str) -> None:
    """Numbers that a model draws for its samples alone, and buffers that it computes of them."""

    class Apart(gf.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.generator = gf.nn.Linear(5, 3, generator=gf.Generator(0)), gf.Generator(1)
            self.register_buffer("mean", gf.zeros(()))

        def forward(self, x: gf.Tensor) -> gf.Tensor:
            if "generator" in what:
                x = x + 0.1 * gf.random.normal(x.shape, generator=self.generator)
            elif self.training:
                self.mean = x.mean()
            return self.layer(x)

    def work(rank: Any) -> None:
        model = Apart()
        optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
        batches = Batches(X.astype("float32"), LABELS, 7, gf.Generator(0))
        [*Trainer(model, gf.cross_entropy, optimizer, batches, communicator=rank).epochs(1)]

    with pytest.raises(RuntimeError, match=f"the ranks have gone apart: {what} is"):
        run_ranks(2, work)


@pytest.mark.parametrize("what", ["hyperparameter: lr of group 0", "step", "checksum: 0.bias"])
def test_what_one_rank_alone_changes_is_noticed_before_the_next_step(what: str) -> None:
    """A hyperparameter; what it loads; its weights."""

    def work(rank: Any) -> None:
        trainer = trainer_of(rank)
        start = trainer.state_dict()
        [*trainer.steps(3)]
        if rank.rank == 1 and what.startswith("h"):
            trainer.optimizer.param_groups[0]["lr"] = 0.5
        elif rank.rank == 1 and what == "step":
            trainer.load_state_dict(start)
        elif rank.rank == 1:
            trainer.model.load_state_dict({**trainer.model.state_dict(), "0.bias": gf.ones(16, dtype="float64")})
        with pytest.raises(RuntimeError, match=f"the ranks have gone apart: {what} is"):
            [*trainer.steps(4)]
        assert trainer.step == (0 if rank.rank == 1 and what == "step" else 3)

    run_ranks(2, work)


@pytest.mark.parametrize("first", [0, 2])
def test_a_gradient_that_one_rank_alone_has_is_refused(first: int) -> None:
    """From the first step on, or later."""

    class Moody(gf.nn.Module):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank, self.calls = rank, 0
            self.layer, self.other = (gf.nn.Linear(5, 3, generator=gf.Generator(i)) for i in range(2))

        def forward(self, x: gf.Tensor) -> gf.Tensor:
            self.calls += self.training
            return self.layer(x) + (self.other(x) if self.rank or self.calls <= first or not self.training else 0.0)

    def work(rank: Any) -> None:
        model = Moody(rank.rank)
        optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
        batches = Batches(X.astype("float32"), LABELS, 7, gf.Generator(0))
        [*Trainer(model, gf.cross_entropy, optimizer, batches, communicator=rank).steps(5)]

    where = "on all ranks" if not first else "in the first step"
    with pytest.raises(RuntimeError, match=rf"shape \(3, 5\) has a gradient here and not {where}"):
        run_ranks(2, work)


def test_a_loss_that_does_not_add_up_is_refused() -> None:
    def work(rank: Any) -> None:
        model = gf.nn.Linear(5, 3, generator=gf.Generator(0))
        batches = Batches(X.astype("float32"), LABELS, 8, gf.Generator(0))
        loss = gf.nn.CrossEntropyLoss(weight=gf.tensor([1.0, 2.0, 3.0]))
        Trainer(model, loss, gf.optim.SGD(model.parameters()), batches, communicator=rank)

    with pytest.raises(ValueError, match="training by several ranks needs a loss whose mean over a union"):
        run_ranks(2, work)


# ---------------------------------------------------------------------- the machine


@pytest.mark.parametrize(("asked", "threads"), [("", 2), ("4", 4)])
def test_processes_divide_the_cores(asked: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = gf.get_num_threads()
    gf.set_num_threads(4)
    try:
        with cores_divided(2):
            assert gf.get_num_threads() == threads
            assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {threads}
        assert gf.get_num_threads() == 4
    finally:
        gf.set_num_threads(before)


def test_each_step_is_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no exchange is on the host, as of GPUs. What prints where a rank stands is put off, not too often."""
    put_off: list[float] = []
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda seconds, file: put_off.append(now))
    monkeypatch.setattr("gradflow.distributed.faults.time", SimpleNamespace(monotonic=lambda: now))
    watch = Watch(10.0)
    monkeypatch.setattr(ThreadRank, "watching", lambda self: watch.watching())
    monkeypatch.setattr(ThreadRank, "alive", lambda self: watch.alive(waits=False))
    now = 1.0

    def work(rank: Any) -> None:
        nonlocal now
        for step in trainer_of(rank).steps(8):
            now += 0.75 if step.step < 5 else 2.0

    run_ranks(1, work)
    assert put_off == [1.0, 2.5, 4.0, 6.0, 8.0, 10.0]


# ---------------------------------------------------------------------- communicators


def test_what_a_communicator_offers() -> None:
    def work(rank: Any) -> Any:
        total = rank.all_reduce(gf.tensor([1.0, float(rank.rank)]))
        mean = rank.all_reduce(gf.tensor(float(rank.rank), dtype="float64"), mean=True)
        text = rank.text_of(f"rank {rank.rank}, größer", root=1)
        error = rank.first_error("late" if rank.rank == 2 else "")
        return total.tolist(), mean.item(), text, error, rank.first_error("")

    assert run_ranks(3, work) == [([3.0, 3.0], 1.0, "rank 1, größer", "late", "")] * 3
