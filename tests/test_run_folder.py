"""The folder of a run: one run at a time, whole files, saved states, signals at any moment, and what goes wrong."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.cli import main
from gradflow.training import Settings, SettingsError, load_run, read_config, resume, train
from gradflow.training.runs import run as runs_module
from gradflow.training.runs.folder import RunFolder, going_on
from gradflow.training.runs.run import Run
from gradflow.training.runs.stopping import Stopping

for _package in ("sklearn", "matplotlib", "safetensors", "tomli_w", "tqdm"):
    pytest.importorskip(_package)

posix = pytest.mark.skipif(os.name != "posix", reason="signals, descriptors of folders and forks of POSIX")
pytestmark = [posix, pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")]

SMALL = {"hidden": (6,), "epochs": 4, "device": "cpu", "dropout": 0.2}
SAME = ("metrics.csv", "model.safetensors")
RESULTS = {"config.toml", "curves.png", "metrics.csv", "model.safetensors", "report.html"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in SAME]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose pictures and reports are drawn in no time."""
    monkeypatch.setattr(runs_module, "run_png", lambda *_: b"picture")
    monkeypatch.setattr(runs_module, "report_html", lambda *_: "report")


def stopped(folder: Path, step: int, **settings: Any) -> Path:
    """A run that was stopped after a step, of `SMALL` on iris."""
    run = Run.new(Settings("iris", **{**SMALL, **settings}), folder)
    with run:
        for _ in itertools.islice(run.steps(), step):
            pass
        run.finish("interrupted")
    return folder


# ---------------------------------------------------------------------- one run in a folder


def together(actions: list[Callable[[], int]]) -> list[int]:
    """The statuses of actions that processes start at the same moment."""
    read, write = os.pipe()
    children = []
    for action in actions:
        child = os.fork()
        if child == 0:
            status = 99
            try:
                os.close(write)
                os.read(read, 1)  # until the parent closes its end
                status = action()
            finally:
                os._exit(status)
        children.append(child)
    os.close(read)
    os.close(write)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["empty", "new", "new parents"])
def test_of_two_runs_one_is_admitted_into_a_folder(kind: str, tmp_path: Path) -> None:
    def claim() -> int:
        try:
            with RunFolder.claim(out, "unused") as folder:
                folder.write("config.toml", b"mine")
                folder.kept = True
        except SettingsError as error:
            return 2 if "is already used" in str(error) else 98
        return 0

    for n in range(30):
        out = tmp_path / f"{n}" / "a" / "b" if kind == "new parents" else tmp_path / f"{n}"
        if kind == "empty":
            out.mkdir()
        assert sorted(together([claim, claim])) == [0, 2]
        assert names(out) == {"config.toml"}


@pytest.mark.slow
def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    def claim() -> int:
        with RunFolder.claim(None, tmp_path / "runs" / "iris") as folder:
            folder.write("config.toml", b"mine")
            folder.kept = True
            return int(folder.path.name.removeprefix("iris-"))

    for _ in range(10):
        assert len(set(together([claim] * 4))) == 4
    assert len(names(tmp_path / "runs")) == 40


@pytest.mark.slow
def test_of_two_commands_one_is_admitted_into_a_folder(tmp_path: Path, plain: None) -> None:
    words = ["train", "iris", "--quiet", "--epochs", "1", "--hidden", "4", "--device", "cpu", "--out"]
    for n in range(6):
        (tmp_path / f"{n}").mkdir()
        assert sorted(together([lambda: main([*words, str(tmp_path / f"{n}")])] * 2)) == [0, 2]  # noqa: B023
        assert names(tmp_path / f"{n}") == RESULTS


def test_a_folder_is_used_until_its_run_ends(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 3)
    with Run.resumed(tmp_path / "run"), pytest.raises(SettingsError, match="another run is writing to it"):
        resume(tmp_path / "run")
    assert resume(tmp_path / "run").stopped == ""


def test_without_locks_a_folder_belongs_to_the_run_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(errno.EBADF, "as NFS says")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunFolder.claim(tmp_path / "new", "unused") as folder:
        folder.write("config.toml", b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="without locks: choose a folder that is new"):
        RunFolder.claim(tmp_path / "empty", "unused")


def test_default_folders_are_numbered(tmp_path: Path) -> None:
    for expected in ("iris-1", "iris-2", "iris-3"):
        with RunFolder.claim(None, tmp_path / "runs" / "iris") as folder:
            folder.write("x", b"")
            folder.kept = True
        assert folder.path.name == expected


def test_a_folder_without_results_is_removed_if_it_was_made_for_them(tmp_path: Path) -> None:
    with RunFolder.claim(tmp_path, "unused") as folder:
        folder.write("config.toml", b"")
    assert names(tmp_path) == set()
    with RunFolder.claim(tmp_path / "a" / "b", "unused") as folder:
        folder.write("config.toml", b"")
    assert names(tmp_path) == set()


# ---------------------------------------------------------------------- what happens to a folder meanwhile


@pytest.mark.parametrize("what", ["deleted", "moved", "link", "another"])
def test_a_folder_that_is_replaced_is_noticed_and_gets_nothing(what: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run = Run.new(Settings("iris", **SMALL), tmp_path / "run")

    def replace() -> None:
        if what == "deleted":
            (tmp_path / "run" / "config.toml").unlink()
            (tmp_path / "run").rmdir()
        else:
            (tmp_path / "run").rename(tmp_path / "moved")
        if what == "link":
            (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
        elif what == "another":
            (tmp_path / "run").mkdir()

    message = r"cannot write .+run/checkpoint.safetensors: its folder was removed, or replaced by another one; nothing"
    with run:
        steps = run.steps(save_every=0)
        next(steps)
        replace()
        with pytest.raises(OSError, match=message):
            next(steps)
    assert names(tmp_path / "elsewhere") == set()
    assert what != "another" or names(tmp_path / "run") == set()


def test_what_was_saved_in_a_folder_that_is_removed_is_not_claimed(tmp_path: Path) -> None:
    run = Run.new(Settings("iris", **SMALL), tmp_path / "run")
    with run:
        steps = run.steps(save_every=0)
        next(steps), next(steps)
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(OSError, match=r"its folder was removed, or .+; what was saved went with it$"):
            next(steps)


def test_class_weights_of_values_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "diabetes", "--class-weight", "balanced", "--quiet", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "gradflow: error: class_weight needs classes; the targets of diabetes are values: a regression\n"
    )
    assert names(tmp_path) == set()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_is_told_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plain: None
) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    words = "train iris --epochs 1 --hidden 4 --device cpu --quiet --out"
    assert main([*words.split(), str(tmp_path / "run")]) == 1
    full.close()
    assert capsys.readouterr().err == (
        f"gradflow: error: cannot write to /dev/full: No space left on device; the run is saved in {tmp_path}/run\n"
    )
    assert names(tmp_path / "run") == RESULTS


def test_a_folder_that_is_moved_and_linked_to_is_the_same_folder(tmp_path: Path) -> None:
    run = Run.new(Settings("iris", **SMALL), tmp_path / "run")
    with run:
        for step in run.steps():
            if step.step == 1:
                (tmp_path / "run").rename(tmp_path / "other disk")
                (tmp_path / "run").symlink_to(tmp_path / "other disk")
        run.finish()
    assert names(tmp_path / "other disk") == RESULTS


@pytest.mark.parametrize("full", [1, 2, 3, 6, 14, 18])
def test_a_full_disk_is_told_with_what_is_saved(
    full: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plain: None
) -> None:
    """From some file on, none can be written. The run goes on from what was saved, if something was."""
    real, count = os.fsync, itertools.count(1)

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and next(count) >= full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        words = "train wine --epochs 3 --hidden 6 --device cpu --save-every 0 --quiet --out"
        assert main([*words.split(), str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    said = re.fullmatch(
        r"gradflow: error: cannot write (\S+): No space left on device; "
        r"(nothing|the state after step (\d)) is saved.*\n",
        err,
    )
    assert said, err
    if said[2] == "nothing":
        assert names(tmp_path) == set()
    else:
        assert err.endswith(f"is saved in {folder}\n")
        assert gf.load(folder / "checkpoint.safetensors")["members"]["trainer"]["progress"]["step"] == int(said[3])
        assert resume(folder).stopped == ""
        train(Settings("wine", hidden=(6,), epochs=3, device="cpu"), tmp_path / "whole")
        assert contents(folder) == contents(tmp_path / "whole")


def test_a_folder_in_which_a_run_was_killed_at_once_is_new(tmp_path: Path) -> None:
    (tmp_path / f".gradflow-{'0' * 16}.part").write_bytes(b"half a config")
    train(Settings("iris", **SMALL), tmp_path)
    assert names(tmp_path) == RESULTS


def test_parts_that_a_killed_run_left_are_removed(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 3)
    (folder / f".gradflow-{'0' * 16}.part").write_bytes(b"half")
    (folder / "notes.part").write_bytes(b"mine")
    resume(folder)
    assert names(folder) == RESULTS | {"notes.part"}


# ---------------------------------------------------------------------- going on


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ensemble": 2},
        {"average": 0.9, "accumulate": 2},
        {"patience": 1, "lr": 0.2, "epochs": 12},
        {"validation": 0.0},
    ],
    ids=str,
)
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    settings: dict[str, Any], device: str, tmp_path: Path, plain: None
) -> None:
    settings = {**SMALL, "epochs": 3, "batch_size": 40, "device": device, **settings}
    whole = train(Settings("iris", **settings), tmp_path / "whole")
    steps = sum(history[-1].step for history in whole.histories)
    for step in range(1, steps + 1, 1 if device == "cpu" and not settings.get("patience") else 3):
        folder = stopped(tmp_path / f"{step}", step, **settings)
        assert names(folder) >= {"config.toml", "checkpoint.safetensors", "model.safetensors", "metrics.csv"}
        run = Run.resumed(folder)
        with run:
            assert sum(1 for _ in run.steps()) == steps - step, "it does not start from its beginning"
            result = run.finish()
        assert result.histories == whole.histories
        assert contents(folder) == contents(whole.folder)
        assert names(folder) == RESULTS


def test_a_run_without_a_saved_state_starts_from_its_beginning(tmp_path: Path) -> None:
    whole = train(Settings("iris", **SMALL), tmp_path / "whole")
    run = Run.new(Settings("iris", **SMALL), tmp_path / "run")
    with run:
        run._folder.kept = True  # type: ignore[union-attr]  # as if it were killed
    assert names(tmp_path / "run") == {"config.toml"}
    with Run.resumed(tmp_path / "run") as run:
        assert run.start == "the beginning, since no state was saved"
    assert resume(tmp_path / "run").histories == whole.histories


def test_a_run_that_was_killed_predicts_by_its_best_epoch_so_far(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run.new(Settings("iris", **SMALL), folder)
    with run:
        for step in run.steps(save_every=0):
            if step.finished is not None and step.finished.stale == 0:
                best = run.members.trainer.model.state_dict()
            if step.step == 5:
                assert going_on(folder) == "it is running"
                break
    assert names(folder) == {"config.toml", "checkpoint.safetensors", "metrics.csv", "model.safetensors"}
    assert going_on(folder) == "it was killed"
    (member,) = load_run(folder, "cpu").members
    for name, value in member.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), best[name].numpy())
    resume(folder)
    assert going_on(folder) == ""


def test_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", X=x, y=x.sum(1) > 0)
    run = Run.new(Settings("data.npz", **SMALL), "run")
    with run:
        next(run.steps())
        run.finish("interrupted")
    x[7, 1] += 1e-9
    np.savez("data.npz", X=x, y=x.sum(1) > 0)
    with pytest.raises(SettingsError, match=r"data\.npz is not the data that run was trained on"):
        resume("run")
    os.unlink("data.npz")
    with pytest.raises(
        SettingsError,
        match=r"the data of this run was at .+/data\.npz; give its path: gradflow train --resume run DATA$",
    ):
        resume("run")


def test_a_run_goes_on_where_its_data_lies_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plain: None
) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(90, 3))
    for name, rows in {"data": slice(0, 60), "test": slice(60, 90)}.items():
        np.savez(f"{name}.npz", X=x[rows], y=x[rows].sum(1) > 0, w=x[rows, 0])
    settings = Settings("data.npz", test_file="test.npz", **SMALL)
    whole = train(settings, "whole")
    run = Run.new(settings, "run")
    with run:
        for _ in itertools.islice(run.steps(), 3):
            pass
        run.finish("interrupted")
    Path("moved").mkdir()
    Path("data.npz").rename("moved/a.npz")
    for word, name in (("--resume", "run"), ("--config", "whole")):
        assert main(["train", word, name, "--out", "new"][: 3 + 2 * (word == "--config")]) == 2
        assert f"data.npz; give its path: gradflow train {word} {name} DATA\n" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "test.npz"]) == 2
    assert "is not the data that run was trained on" in capsys.readouterr().err
    Path("test.npz").rename("moved/b.npz")
    assert main(["train", "--resume", "run", "moved/a.npz"]) == 2
    assert "test.npz; give its path: gradflow train --resume run --test-file PATH\n" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "moved/a.npz", "--test-file", "moved/b.npz"]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"^device: cpu, .+ \(as in the run\)$", out, re.M)
    assert re.search(r"^data: moved/a\.npz, 60 samples", out, re.M)
    assert re.search(r"^from: epoch \d, step 3$", out, re.M)
    assert "gradflow: note: moved/a.npz: not used: w\n" in err
    assert contents(Path("run")) == contents(whole.folder)


@pytest.mark.parametrize(("old", "new"), [("lr = 0.002", "lr = 0.5"), ("epochs = 4", "epochs = 2")])
def test_a_config_that_was_edited_does_not_resume(old: str, new: str, tmp_path: Path) -> None:
    config = stopped(tmp_path / "run", 3) / "config.toml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    message = (
        rf"config\.toml was changed since it was saved: {old.replace('=', 'was')}; to train with other settings: .+run$"
    )
    with pytest.raises(SettingsError, match=message):
        resume(tmp_path / "run")


def test_data_for_testing_that_is_trained_on_is_noted(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savez(tmp_path / "a.npz", X=x, y=x.sum(1) > 0)
    path = str(tmp_path / "a.npz")
    notes = Run.new(Settings(path, test_file=path, **SMALL)).plan.notes
    assert notes == (f"{path} is the data that is trained on: figures on it are not those of unseen data",)


def test_a_finished_run_is_told(tmp_path: Path) -> None:
    train(Settings("iris", **SMALL), tmp_path / "run")
    with pytest.raises(SettingsError, match="run is finished; to repeat it: --config"):
        resume(tmp_path / "run")


def test_a_folder_of_an_earlier_version_repeats_and_does_not_resume(tmp_path: Path) -> None:
    folder = tmp_path / "iris-seed0"
    folder.mkdir()
    (folder / "config.toml").write_text(
        '[settings]\ndataset = "iris"\ndevice = "cpu"\nhidden = [6]\nepochs = 2\n[environment]\ngradflow = "0.1.0"\n'
        '[result]\nepoch = 2\nstopped = "interrupted"\n'
    )
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(SettingsError, match="of an earlier version, which saved no states; to repeat it: --config"):
        resume(folder)
    settings = Settings(**read_config(folder)["settings"])
    assert settings.validation == 0, "it had none"
    assert train(settings, tmp_path / "again").histories[0][-1].epoch == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "another run's"])
def test_a_damaged_state_is_one_line_that_names_it(damage: str, tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run", 3)
    checkpoint = folder / "checkpoint.safetensors"
    content = checkpoint.read_bytes()
    if damage == "cut":
        checkpoint.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        checkpoint.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "foreign":
        gf.save(checkpoint, {"weights": gf.ones(3)})
    else:
        other = stopped(tmp_path / "other", 3, hidden=(7,))
        checkpoint.write_bytes((other / "checkpoint.safetensors").read_bytes())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        SettingsError, match=r"cannot go on from .+checkpoint\.safetensors: .+(without this file|hidden was)"
    ) as caught:
        resume(folder)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_keep_keeps_the_last_state(tmp_path: Path) -> None:
    run = Run.new(Settings("iris", **SMALL), tmp_path / "run")
    with run:
        for _ in run.steps():
            pass
        run.finish(keep=True)
    assert names(tmp_path / "run") == RESULTS | {"checkpoint.safetensors"}
    with pytest.raises(SettingsError, match="is finished"):
        resume(tmp_path / "run")


def test_saving_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: None) -> None:
    """By a clock of the test: a step takes 0.1 s, and saving 0.2 s. So the state is saved after 1 s and every 20 s."""
    now = 0.0
    saved = []

    def save(run: Run) -> None:
        nonlocal now
        saved.append(now)
        now += 0.2

    monkeypatch.setattr(runs_module.time, "monotonic", lambda: now)
    monkeypatch.setattr(Run, "_save_state", save)
    run = Run.new(Settings("iris", **{**SMALL, "epochs": 350}), tmp_path / "run")
    with run:
        for _ in run.steps():
            now += 0.1
    assert saved[0] == pytest.approx(1, abs=0.2)
    assert np.diff(saved) == pytest.approx(20.2, abs=0.2)
    assert len(saved) >= 3


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_first_signal_is_noted_and_handlers_are_restored(name: str) -> None:
    number = signal.Signals[name]
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Stopping() as stopping:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stopping.signal is number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert stopping.signal is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_is_returned_and_sigterm_has_its_effect_after_saving(tmp_path: Path, plain: None) -> None:
    def during(step: int, number: signal.Signals) -> Any:
        real = runs_module.Members.steps

        def steps(members: Any) -> Iterator[Any]:
            for each in real(members):
                if each.step == step:
                    signal.raise_signal(number)
                yield each

        return steps

    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs_module.Members, "steps", during(3, signal.SIGINT))
            result = train(Settings("iris", **SMALL), tmp_path / "run")
        assert (result.stopped, received) == ("interrupted", [])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs_module.Members, "steps", during(5, signal.SIGTERM))
            result = resume(tmp_path / "run")
        assert (result.stopped, received) == ("stopped by SIGTERM", [signal.SIGTERM])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert resume(tmp_path / "run").histories == train(Settings("iris", **SMALL), tmp_path / "whole").histories


OWN = tuple(
    str(Path(gf.__file__).parent / name)
    for name in (
        "cli/train.py", "cli/__init__.py", "files.py", "training/runs/members.py", "training/runs/results.py",
        "training/runs/folder.py", "training/runs/run.py", "training/runs/stopping.py", "training/trainer.py",
    )
)  # fmt: skip
assert all(map(os.path.exists, OWN))


def at_lines(moments: set[int], act: Callable[[], None]) -> Callable[..., Any]:
    """A trace function that acts before as many lines of the files `OWN`, which it counts in its attribute `lines`."""

    def lines(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            trace.lines += 1  # type: ignore[attr-defined]
            if trace.lines in moments:  # type: ignore[attr-defined]
                act()
        return lines

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        return lines if frame.f_code.co_filename in OWN else None

    trace.lines = 0  # type: ignore[attr-defined]
    return trace


AT_ONCE = -1
WORDS = "train iris --epochs 2 --hidden 4 --batch-size 48 --device cpu --quiet --save-every 0 --out"


class AtOnce(BaseException):
    """In place of the end of the process, which the handler of `gradflow.__main__` brings about before training."""


def end_at_once(*_: Any) -> None:
    raise AtOnce


def traced(folder: Path, moments: set[int], number: signal.Signals, capsys: Any) -> tuple[int, int, str, str]:
    """Run the command as a process would, with a signal before some lines; returns lines, status and output."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for n in handlers:
        signal.signal(n, end_at_once)
    trace = at_lines(moments, lambda: signal.raise_signal(number))
    argv, sys.argv = sys.argv, ["gradflow", *WORDS.split(), str(folder)]
    before = sys.gettrace()
    try:
        sys.settrace(trace)
        status = main()
    except AtOnce:
        status = AT_ONCE
    finally:
        sys.settrace(before)
        sys.argv = argv
        for n, handler in handlers.items():
            signal.signal(n, handler)
    return trace.lines, status, *capsys.readouterr()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_line_ends_the_run_with_whole_files_and_the_truth(
    number: signal.Signals, tmp_path: Path, plain: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, or twice at random lines; the run then goes on to the bytes of a run that was never stopped."""
    lines, status, _, _ = traced(tmp_path / "whole", set(), number, capsys)
    assert status == 0
    chance = random.Random(number)
    every = max(1, lines // MOMENTS)
    seen = set()
    for first in range(1 + chance.randrange(every), lines, every):
        folder = tmp_path / f"{first}"
        moments = {first} if first % 2 else {first, first + chance.randrange(1, lines)}
        _, status, out, err = traced(folder, moments, number, capsys)
        last = (out + err).splitlines()[-1] if out + err else ""
        where = f"a signal at {moments}: {status}, {out!r}, {err!r}"
        if status == 0:  # it came when all was trained
            assert last.endswith(f"saved in {folder}"), where
        elif status == AT_ONCE:
            assert not folder.exists(), where
            assert out == "", where
        else:
            assert status == 128 + number, where
            stop = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
            assert re.fullmatch(rf"{stop} after \d of 2 epochs: .+; saved in {folder}; to go on: .+", last), where
            assert names(folder) >= {"config.toml", "checkpoint.safetensors", "model.safetensors", "metrics.csv"}
            resume(folder)
        seen.add(status)
        if folder.exists():
            assert contents(folder) == contents(tmp_path / "whole"), where
            assert names(folder) == RESULTS
    assert seen == {0, AT_ONCE, 128 + number}


MOMENTS = int(os.environ.get("GRADFLOW_TEST_SIGNALS", "16"))
"""How many moments of a run are tried for each signal."""


@pytest.mark.slow
def test_runs_that_are_killed_end_with_the_same_bytes() -> None:
    import kill_runs

    kill_runs.kill_runs(10, seed=7)
