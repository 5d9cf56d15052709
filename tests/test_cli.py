"""The command `gradflow`: its output, its files, and that invalid input prints one line and exits with status 2."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
from devices import require_gpu

import gradflow as gf
from gradflow.backend import KERNELS, registry
from gradflow.cli import main
from gradflow.data import DATASETS
from gradflow.training import Settings, load_run
from gradflow.training.epoch import NonFiniteLossError
from gradflow.training.runs import preparation
from gradflow.training.runs import run as runs
from gradflow.training.runs.folder import RunFolder
from gradflow.training.runs.members import Members
from gradflow.training.runs.settings import SETTING_NAMES

ROOT = Path(__file__).resolve().parent.parent
FILES = {"config.toml", "curves.png", "metrics.csv", "model.safetensors", "report.html"}
QUICK = ("--epochs", "1", "--hidden", "4", "--device", "cpu")
DEADLINE = 240.0  # seconds until a command counts as hanging

needs_extra = pytest.mark.usefixtures("_extra")
posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")


class Ended(NamedTuple):
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str


@pytest.fixture
def _extra() -> None:
    for package in ("sklearn", "matplotlib", "safetensors", "tomli_w", "tqdm"):
        pytest.importorskip(package)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADFLOW_DEVICE", raising=False)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process: `command("train", "iris").status`."""

    def run(*words: str) -> Ended:
        return Ended(main(words), *capsys.readouterr())

    return run


def child_environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **more}


def settings_of(folder: str) -> dict[str, Any]:
    """The settings recorded in a run's folder."""
    settings: dict[str, Any] = tomllib.loads(Path(folder, "config.toml").read_text(encoding="utf-8"))["settings"]
    return settings


def content(folder: str, *names: str) -> list[bytes]:
    return [Path(folder, name).read_bytes() for name in names or ("metrics.csv", "model.safetensors")]


def tree() -> set[str]:
    """All files and folders in the current folder."""
    return {str(p) for p in Path().rglob("*")}


def assert_one_line(ended: Ended, words: str, status: int = 2) -> None:
    """The command printed one line, an error that matches `words`, and nothing else but that it starts."""
    assert re.fullmatch(r"gradflow: error: .+\n", ended.err), ended
    assert re.search(words, ended.err)
    assert ended.status == status
    assert re.fullmatch(r"((training on|resuming) .+\n)?", ended.out)


# ---------------------------------------------------------------------- a run


@needs_extra
def test_a_run_says_what_it_does_and_leaves_its_files(command: Any) -> None:
    status, out, err = command("train", "iris", "--epochs", "3", "--hidden", "8")
    first, device, data, parts, model, folder, last = out.splitlines()
    chosen, reason = gf.choose_device()
    assert status == 0
    assert first == "training on iris: 3 epochs, seed 0"
    assert device == f"device: {chosen}, {gf.get_backend(chosen).describe()} ({reason})"
    assert data == "data: iris, 150 samples of 4 features, 3 classes"
    assert parts == "parts: 96 samples to train on, 24 to validate on, 30 to test on"
    assert model == "model: 4-8-3, relu, 67 parameters"
    assert folder == "folder: runs/iris-1; Ctrl-C stops and saves"
    assert re.fullmatch(
        r"test accuracy \d+\.\d\d % after 3 epochs \(best: \d\) in \d+\.\d s; saved in runs/iris-1", last
    )
    bar = re.split(r"[\r\n]+", err.strip())[-1]
    assert re.match(r"epoch 3/3, loss \d\.\d{4}, validation \d+\.\d\d % \|.+\| \[\d\d:\d\d<\d\d:\d\d\]", bar), bar
    assert {p.name for p in Path("runs/iris-1").iterdir()} == FILES

    assert command("train", "iris", "--epochs", "1", "--hidden", "8").out.endswith("saved in runs/iris-2\n")
    assert {p.name for p in Path("runs/iris-2").iterdir()} == FILES


@needs_extra
def test_an_ensemble_is_told_in_one_line(command: Any) -> None:
    line = command("train", "iris", *QUICK, "--ensemble", "2", "--quiet").out
    said = (
        r"test accuracy \S+ % of 2 models \(\S+ % to \S+ % each alone\) after \d+ epochs in all in \S+ s; saved in .+\n"
    )
    assert re.fullmatch(said, line), line


@needs_extra
def test_a_narrow_terminal_shows_the_score(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    bar = re.split(r"[\r\n]+", command("train", "iris", "--epochs", "3", "--hidden", "8").err.strip())[-1]
    assert re.match(r"epoch 3/3, validation \d+\.\d\d % \|", bar), bar


@needs_extra
def test_a_device_that_was_asked_for_is_named_as_such(command: Any) -> None:
    assert re.search(r"^device: cpu, .+ \(as requested\)\n", command("train", "iris", *QUICK).out, re.M)


@pytest.mark.slow
@needs_extra
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_can_be_trained_on(dataset: str, command: Any) -> None:
    status, out, _ = command("train", dataset, *QUICK)
    assert status == 0
    assert f"data: {dataset}, {DATASETS[dataset].split()[0]} samples" in out
    assert ("regression" in out, "test R²" in out) == ((True, True) if dataset == "diabetes" else (False, False))
    assert settings_of(f"runs/{dataset}-1")["dataset"] == dataset


@pytest.mark.slow
@needs_extra
@pytest.mark.parametrize(
    ("words", "setting", "value"),
    [
        ("--device cpu", "device", "cpu"),
        pytest.param("--device cuda", "device", "cuda:0", marks=pytest.mark.gpu),
        pytest.param("--device cuda:0", "device", "cuda:0", marks=pytest.mark.gpu),
        ("--hidden 25,12", "hidden", [25, 12]),
        ("--hidden none", "hidden", []),
        ("--activation tanh", "activation", "tanh"),
        ("--optimizer rmsprop", "optimizer", "rmsprop"),
        ("--lr 0.0125", "lr", 0.0125),
        ("--optimizer sgd --momentum 0.75", "momentum", 0.75),
        ("--weight-decay 0.125", "weight_decay", 0.125),
        ("--dropout 0.375", "dropout", 0.375),
        ("--schedule constant", "schedule", "constant"),
        ("--batch-size 7", "batch_size", 7),
        ("--batch-size 100000", "batch_size", 100000),
        ("--epochs 2", "epochs", 2),
        ("--seed 4294967295", "seed", 4294967295),
    ],
)
def test_every_option_reaches_the_config(words: str, setting: str, value: Any, command: Any) -> None:
    if "cuda" in words:
        require_gpu()
    assert command("train", "iris", *QUICK, "--out", "run", "--quiet", *words.split()).status == 0
    assert settings_of("run")[setting] == value


@needs_extra
def test_auto_reaches_the_config_as_the_device_it_chose(command: Any) -> None:
    assert command("train", "iris", "--epochs", "1", "--device", "auto", "--out", "run").status == 0
    assert settings_of("run")["device"] == str(gf.choose_device()[0])


@needs_extra
def test_options_left_out_are_the_documented_defaults(command: Any) -> None:
    assert command("train", "iris", *QUICK, "--out", "run").status == 0
    assert settings_of("run") == Settings("iris", epochs=1, hidden=(4,), device="cpu").to_dict()


@needs_extra
def test_a_batch_size_above_the_samples_is_one_batch_of_them_all(command: Any) -> None:
    for size in ("96", "100000"):
        assert command("train", "iris", *QUICK, "--batch-size", size, "--out", size).status == 0
    assert content("96") == content("100000")


@needs_extra
@pytest.mark.parametrize("folder", ["empty", "new/and/deep"])
def test_out_names_the_folder(folder: str, command: Any) -> None:
    Path("empty").mkdir()
    assert command("train", "iris", *QUICK, "--out", folder).out.endswith(f"saved in {folder}\n")
    assert {p.name for p in Path(folder).iterdir()} == FILES
    assert not Path("runs").exists()


@needs_extra
def test_quiet_prints_only_the_last_line(command: Any) -> None:
    status, out, err = command("train", "iris", *QUICK, "--quiet")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"test accuracy .+ after 1 epoch \(best: 1\) in .+; saved in runs/iris-1\n", out)


# ---------------------------------------------------------------------- repeating a run


@pytest.mark.slow
@needs_extra
def test_the_same_seed_gives_the_same_bytes(command: Any) -> None:
    for out, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert command("train", "iris", *QUICK, "--seed", seed, "--out", out).status == 0
    assert content("a") == content("b")
    assert content("a") != content("c")


@needs_extra
def test_a_config_repeats_its_run_to_the_byte(command: Any) -> None:
    words = ["wine", "--epochs", "2", "--hidden", "9,5", "--optimizer", "sgd", "--lr", "0.03", "--seed", "5"]
    command("train", *words, "--device", "cpu", "--out", "first")
    again = command("train", "--config", "first/config.toml")
    assert again.status == 0
    assert "note:" not in again.out
    same = FILES - {"curves.png", "report.html"}  # which show the name of the run, and how long it took
    assert content("runs/wine-1", *same) == content("first", *same)


@needs_extra
def test_options_override_a_config(command: Any) -> None:
    command("train", "iris", *QUICK, "--lr", "0.5", "--out", "first")
    assert command("train", "--config", "first/config.toml", "--seed", "1").status == 0
    assert settings_of("runs/iris-1") == {**settings_of("first"), "seed": 1}
    assert content("runs/iris-1") != content("first")


@needs_extra
def test_another_optimizer_than_that_of_a_config_has_its_own_defaults(command: Any) -> None:
    command("train", "iris", *QUICK, "--optimizer", "sgd", "--lr", "0.5", "--out", "first")
    assert command("train", "--config", "first/config.toml", "--optimizer", "adam", "--out", "second").status == 0
    defaults = Settings("iris", epochs=1, hidden=(4,), device="cpu", optimizer="adam")
    assert settings_of("second") == defaults.to_dict()


@needs_extra
def test_a_config_of_another_machine_is_noted(command: Any) -> None:
    Path("c.toml").write_text('[settings]\ndataset = "iris"\nepochs = 1\n[environment]\nnumpy = "1.0"\n')
    status, out, _ = command("train", "--config", "c.toml")
    assert status == 0
    assert re.search(r"^note: the last bits may differ from the recorded run's: numpy 1\.0 then, .+ now$", out, re.M)


@pytest.mark.slow
@needs_extra
def test_the_note_on_a_config_names_each_difference(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("train", "iris", *QUICK, "--out", "first").status == 0
    text = Path("first/config.toml").read_text(encoding="utf-8")
    recorded = tomllib.loads(text)["environment"]
    assert {"gradflow", "python", "numpy", "scikit_learn", "machine", "device", "kernels", "blas", "threads"} <= set(
        recorded
    )
    assert re.search(r"\S+ \d\S* \S+", recorded["blas"]), "library, version, and processor type of its kernels"
    for name, value in recorded.items():
        other = f"{name} = {7 if name == 'threads' else chr(34) + 'another' + chr(34)}"
        settings, heading, rest = text.partition("[environment]")
        changed = settings + heading + re.sub(rf"^{name} = .*$", other, rest, flags=re.M)
        Path("c.toml").write_text(f"{changed}\n[environment.extra]\n", encoding="utf-8")
        out = command("train", "--config", "c.toml", "--out", name).out
        was = "7" if name == "threads" else "another"
        assert f"note: the last bits may differ from the recorded run's: {name} {was} then, {value} now; extra" in out
    monkeypatch.setenv("GRADFLOW_FUSED", "0")
    monkeypatch.delitem(registry._backends, gf.Device("cpu"))
    out = command("train", "--config", "first/config.toml").out
    different = re.escape(f"recorded run's: kernels {recorded['kernels']} then, {len(KERNELS)} composed now")
    assert re.search(rf"{different}(; llvm_target [^;]+ then, none now)?$", out, re.M), out


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no command given; try gradflow train digits"),
        ("trian iris", r"unknown command 'trian'; did you mean train\? \(see gradflow --help\)"),
        (
            "fly",
            "unknown command 'fly'; there are train, predict, evaluate, compare, export, summary, graph, devices, "
            "agree, bench",
        ),
        ("--nonsense", "does not know '--nonsense'"),
        ("--quiet train iris", "--quiet goes after the command: gradflow train DATASET --quiet"),
        ("devices cpu", "gradflow devices does not know 'cpu'"),
        ("train", "train needs data, such as gradflow train digits"),
        ("train mnist", "unknown dataset 'mnist': .+; there are digits, breast-cancer, wine, iris, diabetes"),
        ("train iris --test-file mnist", "unknown dataset 'mnist'"),
        (
            "train iris --test 0.5 --test-file used/notes",
            "test and test_file exclude each other; got 0.5 and 'used/notes'",
        ),
        ("train iris --validation 1", "validation must be at least 0 and below 1; got 1.0"),
        ("train iris --clip-norm 0", "clip_norm must be above 0; got 0.0"),
        ("train iris --average 1", "average must be at least 0 and below 1; got 1.0"),
        ("train iris --accumulate 0", "accumulate must be an integer of at least 1"),
        ("train iris --autocast half", "unknown autocast 'half'; there are bfloat16, float16"),
        ("train iris --class-weight heavy", "unknown class_weight 'heavy'; the only one is balanced"),
        ("train iris --ensemble 1001", "ensemble must be an integer from 1 to 1000; got 1001"),
        ("train iris --patience 0", "patience must be an integer of at least 1"),
        ("train iris --save-every -1", "a number of seconds, at least 0; got '-1'"),
        ("train iris --save-every often", "a number of seconds, at least 0; got 'often'"),
        ("train --resume used", "used is not the folder of a run: it has no config.toml"),
        ("train --resume nothing", "nothing does not exist; it must be the folder of a run"),
        ("train --resume=", "--resume is empty"),
        ("train --resume used --lr 0.1", "takes no --lr; to repeat it with another: --config used --lr ..."),
        ("train --resume used --out new", "takes no --out$"),
        ("train --resume used --config used", "takes no --config"),
        ("train iris wine", "train takes one dataset; got iris and wine$"),
        ("train iris --hidden 32 16", "got iris and 16; widths are separated by commas: --hidden 32,16"),
        ("train iris --early-stopping 5", r"does not know '--early-stopping'; did you mean --patience\?"),
        ("train iris --watch auroc", r"does not know '--watch' \(see"),
        ("train used/absent.npz", "used/absent.npz does not exist"),
        ("train a\udcff.npz", r"dataset: the path a\\udcff.npz is not UTF-8, so config.toml cannot name it: rename it"),
        ("train iris --out a\udcff", r"out: the path a\\udcff is not UTF-8"),
        ("train iris --epoch 3", r"did you mean --epochs\? \(see gradflow train --help\)"),
        ("train iris --epochs", "--epochs"),
        ("train iris --epochs many", "--epochs.+many"),
        ("train iris --epochs 0", "epochs must be an integer from 1 to 1000000; got 0"),
        ("train iris --activation step", "unknown activation 'step'; there are relu, "),
        ("train iris --optimizer lamb", "unknown optimizer 'lamb'; there are adamw, "),
        ("train iris --schedule linear", "unknown schedule 'linear'; there are cosine, constant, plateau"),
        ("train iris --hidden 0", "each width in hidden must be an integer from 1"),
        ("train iris --hidden 8,-8", "each width in hidden .+ got -8"),
        ("train iris --hidden a,b", "widths are integers separated by commas, such as 256,128; got 'a,b'"),
        ("train iris --hidden 8,", "widths are integers"),
        ("train iris --hidden=", "widths are integers"),
        ("train iris --hidden 65537", "each width in hidden must be an integer from 1 to 65536; got 65537"),
        ("train iris --epochs 1000001", "epochs must be an integer from 1 to 1000000; got 1000001"),
        ("train iris --lr -1", "lr must be above 0; got -1.0"),
        ("train iris --lr 0", "lr must be above 0"),
        ("train iris --lr nan", "lr must be a finite number; got nan"),
        ("train iris --lr inf", "lr must be a finite number"),
        ("train iris --lr fast", "--lr.+fast"),
        ("train iris --momentum 0.9", "adamw has no momentum; sgd and rmsprop have"),
        ("train iris --optimizer sgd --momentum 1", "momentum must be at least 0 and below 1"),
        ("train iris --weight-decay -1", "weight_decay must be 0 or more"),
        ("train iris --dropout 1", "dropout must be at least 0 and below 1"),
        ("train iris --batch-size 0", "batch_size must be an integer of at least 1"),
        ("train iris --batch-size 1.5", "--batch-size.+1.5"),
        ("train iris --seed 4294967296", "seed must be an integer from 0 to 4294967295; got 4294967296"),
        ("train iris --seed -1", "seed must be an integer from 0"),
        ("train --config missing.toml", "cannot read missing.toml: No such file"),
        ("train --config used", "cannot read used/config.toml: No such file"),
        ("train --config /dev/zero", "/dev/zero is not a regular file"),
        ("train --config fifo", "fifo is not a regular file"),
        ("train --config endless.toml", "endless.toml is too long: it has more than 1048576 bytes"),
        ("train --config used/notes", "used/notes is not valid TOML"),
        ("train --config binary", "binary is not text in UTF-8: save it in this encoding"),
        ("train iris --config no-table.toml", r"no-table.toml has no table \[settings\]"),
        ("train --config typo.toml", "unknown setting 'epoch'; did you mean epochs"),
        ("train --config environment.toml", "environment that is not a table"),
        ("train --config huge.toml", "lr must be a finite number"),
        ("train --config long.toml", "not valid TOML"),
        ("train --config deep.toml", "not valid TOML"),
    ],
)
def test_a_mistake_is_one_line(words: str, message: str, command: Any) -> None:
    Path("used").mkdir()
    Path("used/notes").write_text("not = = toml\n")
    os.mkfifo("fifo")
    with Path("endless.toml").open("wb") as file:
        file.truncate(1 << 40)
    Path("binary").write_bytes(b"\xff\xfe\x00")
    Path("no-table.toml").write_text('dataset = "iris"\n'.replace("dataset", "settings"))
    Path("typo.toml").write_text('[settings]\ndataset = "iris"\nepoch = 3\n')
    Path("environment.toml").write_text('environment = 3\n[settings]\ndataset = "iris"\n')
    Path("huge.toml").write_text(f'[settings]\ndataset = "iris"\nlr = 1{"0" * 400}\n')
    Path("long.toml").write_text(f'[settings]\ndataset = "iris"\nlr = 1{"0" * 5000}\n')
    Path("deep.toml").write_text("settings = " + "[" * 3000)
    before = tree()
    assert_one_line(command(*words.split()), message)
    assert tree() == before


@needs_extra
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--out used", "used is already used: it is a folder that is not empty"),
        ("--out used/notes", "used/notes is already used: it is a file"),
        ("--out used/notes/run", "cannot write to used/notes/run: "),
        ("--out=", "--out is empty"),
        (f"--out new/{'x' * 300}", "cannot write to new/x+: "),
        ("--device tpu", "unknown device 'tpu'; there are cpu, cuda"),
        ("--device cpu:1", "does not exist"),
        ("--device cuda:77", "device 'cuda:77' (cannot be used|does not exist)"),
        ("--device=", "device must be a name like cpu or cuda:0"),
        ("--hidden 65536,65536,65536,65536 --device cpu", "not enough memory on cpu for hidden layers of 65536, 65536"),
    ],
)
def test_what_cannot_be_done_here_is_one_line_and_leaves_nothing(words: str, message: str, command: Any) -> None:
    Path("used").mkdir()
    Path("used/notes").write_text("mine\n")
    assert_one_line(command("train", "iris", *words.split()), message)
    assert tree() == {"used", "used/notes"}
    assert Path("used/notes").read_text() == "mine\n"


@needs_extra
def test_cuda_without_a_gpu_is_an_error_that_says_why(command: Any) -> None:
    diagnosis = gf.diagnose("cuda")
    if diagnosis.usable:
        pytest.skip("there is a CUDA device")
    ended = command("train", "iris", "--device", "cuda")
    assert_one_line(ended, "device 'cuda:0' cannot be used")
    assert " ".join(str(diagnosis).split()) in ended.err
    assert tree() == set()


@needs_extra
def test_a_run_of_a_gpu_says_on_a_laptop_how_it_repeats(command: Any) -> None:
    if gf.diagnose("cuda").usable:
        pytest.skip("there is a CUDA device")
    assert command("train", "iris", *QUICK, "--out", "r").status == 0
    text = Path("r/config.toml").read_text().replace('device = "cpu"', 'device = "cuda:0"')
    Path("r/config.toml").write_text(text)
    again = command("train", "--config", "r")
    assert_one_line(again, r"device 'cuda:0' cannot be used.+; on a device of this machine: --device auto\n")
    assert command("train", "--config", "r", "--device", "auto").status == 0


@needs_extra
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("words", [("--out", "locked"), ("--out", "locked/a/b"), ()])
def test_a_folder_without_permission_is_one_line(words: tuple[str, ...], command: Any) -> None:
    for name in ("locked", "runs"):
        Path(name).mkdir(mode=0o500)
    assert_one_line(command("train", "iris", *QUICK, *words), "cannot write to .+: Permission denied")
    assert tree() == {"locked", "runs"}


@needs_extra
def test_memory_that_the_system_would_grant_but_does_not_have_is_not_used(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "physical_memory", lambda: 12e6)
    assert command("train", "iris", *QUICK, "--quiet").status == 0
    assert_one_line(command("train", "iris", *QUICK, "--hidden", "1000,1000"), "not enough memory on cpu")
    assert_one_line(command("train", "digits", *QUICK, "--hidden", "3000", "--batch-size", "9999"), "not enough memory")


@needs_extra
def test_a_file_where_the_folder_of_all_runs_would_be_is_one_line(command: Any) -> None:
    Path("runs").write_text("mine\n")
    assert_one_line(command("train", "iris", *QUICK), "cannot write to runs/iris-1: ")


def test_a_missing_extra_is_named(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("tqdm", "sklearn") else real(name))
    assert_one_line(command("train", "iris"), r'scikit-learn, tqdm.+extra "train".+pip install -e "\.\[train\]"')
    assert tree() == set()


ONLY_NUMPY = """
import importlib.machinery, sys

ALLOWED = {"numpy", "gradflow", "gradflow_numpy", "gradflow_cupy", *sys.stdlib_module_names}

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return super().find_spec(name, path, target) if name.partition(".")[0] in ALLOWED else None

sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
from gradflow.cli import main

for words in (["--help"], ["--version"], ["train", "--help"], ["devices"], ["train", "iris"]):
    print(f"{words} ended with {main(words)}", flush=True)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"sklearn", "matplotlib", "tqdm", "safetensors"}))
"""


def test_help_and_devices_need_only_numpy() -> None:
    environment = child_environment()
    environment.pop("GRADFLOW_DEVICE", None)
    done = subprocess.run(
        [sys.executable, "-c", ONLY_NUMPY], env=environment, capture_output=True, encoding="utf-8", timeout=DEADLINE
    )
    for words in (["--help"], ["--version"], ["train", "--help"], ["devices"]):
        assert f"{words} ended with 0\n" in done.stdout
    assert re.search(r"^cuda +no +\S", done.stdout, re.M)
    assert done.stdout.endswith("['train', 'iris'] ended with 2\n[]\n")
    assert re.fullmatch(r'gradflow: error: .+extra "train".+\n', done.stderr)


FIRST_LINE = """
import sys

class Out:
    errors = "strict"

    def write(self, text):
        slow = [m for m in ("numpy", "sklearn", "gradflow.training.trainer") if m in sys.modules]
        print(text.strip(), slow, file=sys.stderr)
        raise SystemExit(0)

    def flush(self):
        pass

sys.stdout = Out()
from gradflow.cli import main
main(["train", "iris"])
"""


def test_the_first_line_is_printed_before_slow_imports() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_LINE], env=child_environment(), capture_output=True, text=True)
    assert done.stderr == "training on iris: 40 epochs, seed 0 []\n"


@pytest.mark.parametrize("words", [("devices",), ("devices", "--json"), ("agree",), ("train", "iris", *QUICK)])
@pytest.mark.parametrize(
    ("variable", "value"),
    [("GRADFLOW_FUSED", "off"), ("GRADFLOW_FAST", "2"), ("GRADFLOW_BACKEND_BLOCK", "cuda;toy")],
)
def test_a_variable_that_means_nothing_is_one_line(
    variable: str, value: str, words: tuple[str, ...], command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert_one_line(command(*words), f"{variable} .+'{value}'.+type: unset {variable}")
    assert command("--help").status == 0
    assert tree() == set()


@pytest.mark.slow
def test_a_library_that_is_told_nonsense_says_so_too() -> None:
    code = "import gradflow as gf\ntry:\n    gf.ones(2)\nexcept gf.DeviceUnavailableError as e:\n    print(e)"
    for variable in ("GRADFLOW_FUSED", "GRADFLOW_FAST"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=child_environment(**{variable: "yes"}), capture_output=True, text=True
        )
        assert done.stdout.endswith(
            f"VariableError: {variable} must be 0, 1 or unset; it is 'yes'; type: unset {variable}\n"
        )


# ---------------------------------------------------------------------- the picture


@pytest.mark.slow
@needs_extra
@pytest.mark.parametrize("how", ["backend", "usetex", "not text"])
def test_settings_of_matplotlib_do_not_matter(how: str) -> None:
    """The plot needs no window and no TeX: it is drawn with matplotlib's default settings."""
    settings = {"usetex": b"text.usetex: True\nfigure.figsize: 1, 1\n", "not text": b"\xff\xfe", "backend": b""}[how]
    Path("matplotlibrc").write_bytes(settings)
    variables = {"MPLBACKEND": "no_such_backend"} if how == "backend" else {"MATPLOTLIBRC": "matplotlibrc"}
    done = subprocess.run(
        [sys.executable, "-m", "gradflow", "train", "iris", *QUICK, "--quiet", "--out", "r"],
        env=child_environment(**variables), capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("test accuracy .+; saved in r\n", done.stdout)
    there = {p.name for p in Path("r").iterdir()}
    if how == "not text":  # then matplotlib cannot even be imported
        assert re.fullmatch(r"gradflow: note: not written: curves\.png: .+", done.stderr.splitlines()[-1])
        assert there == FILES - {"curves.png"}
    else:
        assert done.stderr == ""
        assert there == FILES
        width = int.from_bytes(Path("r/curves.png").read_bytes()[16:20], "big")
        assert width == 1200


@needs_extra
def test_a_picture_that_cannot_be_drawn_is_one_line(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> bytes:
        raise RuntimeError("no\nfont")

    monkeypatch.setattr(runs, "run_png", fail)
    status, out, err = command("train", "iris", *QUICK, "--quiet")
    assert status == 0
    assert out.endswith("saved in runs/iris-1\n")
    assert err == "gradflow: note: not written: curves.png: RuntimeError: no font\n"
    assert {p.name for p in Path("runs/iris-1").iterdir()} == FILES - {"curves.png"}


@pytest.mark.slow
@needs_extra
def test_layers_whose_units_are_all_dead_are_warned_of(command: Any) -> None:
    options = ("--hidden", "8,8", "--epochs", "3", "--optimizer", "sgd", "--clip-norm", "1e4", "--lr", "1000")
    ended = command("train", "iris", *options, "--quiet")
    assert ended.status == 0
    dead = r"all units of layers? \d( and \d)? are dead, so no gradient passes: try a lower learning rate"
    assert re.fullmatch(f"gradflow: warning: {dead}\n", ended.err)
    assert " of the first model are dead" in command("train", "iris", *options, "--ensemble", "2").err
    assert command("train", "iris", *QUICK, "--quiet").err == ""


# ---------------------------------------------------------------------- training that ends early


@needs_extra
def test_divergence_in_the_first_epoch_is_one_line_and_leaves_nothing(command: Any) -> None:
    ended = command("train", "iris", *QUICK, "--quiet", "--optimizer", "sgd", "--lr", "1e30")
    assert_one_line(ended, "the loss became .+ in epoch 1; try a lower learning rate, or .+ nothing is saved", status=1)
    assert tree() == set()


@needs_extra
def test_divergence_later_keeps_what_was_reached(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Members.steps

    def diverging(members: Members) -> Iterator[Any]:
        for step in real(members):
            yield step
            if step.finished:
                raise NonFiniteLossError("the loss became inf in epoch 2")

    monkeypatch.setattr(Members, "steps", diverging)
    ended = command("train", "iris", *QUICK, "--epochs", "3", "--quiet")
    assert_one_line(ended, "became inf in epoch 2; the best epoch before is saved in runs/iris-1", status=1)
    assert {p.name for p in Path("runs/iris-1").iterdir()} == FILES


@needs_extra
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_a_failure_of_the_machine_is_one_line(error: Exception, command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(RunFolder, "write", fail)
    assert_one_line(command("train", "iris", *QUICK, "--quiet"), "No space left|out of memory", status=1)
    assert tree() == set()


@contextlib.contextmanager
def started(
    *words: str, module: tuple[str, ...] = ("-m", "gradflow"), environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a new process."""
    process = subprocess.Popen(
        [sys.executable, *module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=environment or child_environment(PYTHONIOENCODING="utf-8"),
    )
    watchdog = threading.Timer(DEADLINE, process.kill)
    watchdog.start()
    try:
        with process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        watchdog.cancel()


def wait_for(pattern: bytes, stream: IO[bytes] | None) -> bytes:
    """Read the stream until something matches."""
    assert stream is not None
    seen = b""
    while not re.search(pattern, seen):
        part = os.read(stream.fileno(), 4096)
        assert part, f"the command ended after {seen!r}"
        seen += part
    return seen


@pytest.mark.slow
@posix
@needs_extra
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_what_was_reached(name: str) -> None:
    number = signal.Signals[name]
    with started("train", "iris", "--hidden", "8", "--epochs", "1000000", "--device", "cpu", "--out", "r") as process:
        wait_for(rb"epoch [1-9]\d*/", process.stderr)
        process.send_signal(number)
        process.send_signal(number)  # which changes nothing
        out, err = process.communicate()
    assert process.returncode == 128 + number
    assert b"Traceback" not in err
    last = out.decode().splitlines()[-1]
    found = re.fullmatch(
        r"(.+) after (\d+) of 1000000 epochs: test accuracy (\S+) %; saved in r; to go on: gradflow train --resume r",
        last,
    )
    assert found, last
    assert found[1] == ("interrupted" if number == signal.SIGINT else f"stopped by {number.name}")

    assert {p.name for p in Path("r").iterdir()} == FILES | {"checkpoint.safetensors"}
    with Path("r/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, int(found[2]) + 1))
    assert tomllib.loads(Path("r/config.toml").read_text())["result"]["stopped"] == found[1]
    assert Path("r/curves.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    test = gf.data.load("iris").split(0).test
    assert test is not None
    accuracy = load_run("r").evaluate(test.raw_inputs, test.raw_targets)["accuracy"]
    assert f"{100 * accuracy:.2f}" == found[3]


@pytest.mark.slow
@posix
@needs_extra
def test_ctrl_c_in_the_first_epoch_saves_the_step_too(command: Any) -> None:
    with started("train", "digits", "--hidden", "1024,1024", "--batch-size", "1", "--device", "cpu") as process:
        wait_for(rb"epoch 0/40", process.stderr)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert re.match(
        r"interrupted after 0 of 40 epochs: .+; saved in runs/digits-1; to go", out.decode().splitlines()[-1]
    )
    there = {p.name for p in Path("runs/digits-1").iterdir()}
    assert there == {"checkpoint.safetensors", "config.toml", "metrics.csv", "model.safetensors"}


@pytest.mark.slow
@posix
@needs_extra
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_terminal_that_is_closed_loses_nothing() -> None:
    import pty
    import termios

    words = ["-m", "gradflow", "train", "iris", "--hidden", "8", "--epochs", "1000000", "--device", "cpu", "--out", "r"]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, *words], child_environment())
    termios.tcsetwinsize(terminal, (24, 80))
    watchdog = threading.Timer(DEADLINE, os.kill, (child, signal.SIGKILL))
    watchdog.start()
    try:
        seen = b""
        while not re.search(rb"epoch [1-9]\d*/.+<", seen):
            seen += os.read(terminal, 4096)
        lines = re.split(r"[\r\n]+", seen.decode())
        bars = [line for line in lines if line.startswith("epoch") and "|" in line]
        assert re.search(r", loss \d\.\d{4}, validation \d+\.\d\d % \|", bars[-1]), "the score is seen at 80 columns"
        assert max(map(len, bars)) <= 80
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    finally:
        watchdog.cancel()
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert {p.name for p in Path("r").iterdir()} == FILES | {"checkpoint.safetensors"}


ENTRY = """
import os, signal, sys
import gradflow_command  # the entry module of the installed script

imported = sys.argv.pop(1)

def interrupt(event, arguments):
    global imported
    if event == "import" and arguments[0] == imported:
        imported = ""
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(interrupt)
print("started", flush=True)
sys.exit(gradflow_command.main())
"""
LONG = ("train", "iris", "--hidden", "8", "--epochs", "20000", "--device", "cpu", "--out", "r")


@contextlib.contextmanager
def entered(imported: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command by its entry module, interrupted by Ctrl-C when it starts to import the module `imported`."""
    folder = Path("entry")
    folder.mkdir()
    (folder / "gradflow_command.py").write_bytes((ROOT / "gradflow" / "__main__.py").read_bytes())
    environment = child_environment(PYTHONIOENCODING="utf-8")
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment["PYTHONPATH"]])
    with started("-c", ENTRY, imported, *words, module=(), environment=environment) as process:
        yield process


def assert_interrupted(process: subprocess.Popen[bytes]) -> str:
    """Check that it ended as after Ctrl-C, with one line, and complete epochs or no files; return its last line."""
    out, err = process.communicate()
    assert (process.returncode, b"Traceback" in err) == (130, False), (out, err)
    last = err.decode().splitlines()[-1]
    if Path("r").exists():
        assert {p.name for p in Path("r").iterdir()} >= FILES - {"curves.png", "report.html"}
        return out.decode().splitlines()[-1]
    assert last.startswith("gradflow: error: interrupted")
    return last


EARLY = [
    "gradflow", "gradflow.tensor", "numpy", "gradflow.training", "argparse", "sklearn.base", "tqdm", "tomli_w._writer",
]  # fmt: skip
LATE = ["gradflow_numpy.backend", "llvmlite.binding", "gradflow_numpy.native.emit"]


@pytest.mark.slow
@posix
@needs_extra
@pytest.mark.parametrize("imported", [*EARLY, *LATE])
def test_ctrl_c_during_an_import(imported: str) -> None:
    """Before the run starts, it ends at once."""
    if imported not in ["gradflow_numpy.backend", *EARLY]:
        pytest.importorskip("llvmlite")
    with entered(imported, *LONG) as process:
        said = assert_interrupted(process)
    assert said == "gradflow: error: interrupted"
    assert not Path("r").exists()


@posix
@pytest.mark.parametrize("imported", ["gradflow_cupy.backend", "importlib.metadata"])
def test_ctrl_c_while_devices_are_asked(imported: str) -> None:
    with entered(imported, "devices") as process:
        assert assert_interrupted(process) == "gradflow: error: interrupted"


@pytest.mark.slow
@posix
@needs_extra
@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.3])
def test_ctrl_c_at_any_time(delay: float) -> None:
    with entered("nothing", *LONG) as process:
        wait_for(b"started", process.stdout)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        assert re.match("gradflow: error: interrupted|interrupted after ", assert_interrupted(process))


@pytest.mark.slow
@posix
@needs_extra
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_before_training_is_one_line_and_leaves_nothing(name: str) -> None:
    """The first line is printed before the slow imports, so the signal comes during these."""
    with started("train", "digits", "--epochs", "100000", "--device", "cpu", "--out", "r") as process:
        wait_for(rb"training on digits", process.stdout)
        process.send_signal(signal.Signals[name])
        _, err = process.communicate()
    assert process.returncode == 128 + signal.Signals[name]
    what = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    assert err.decode() == f"gradflow: error: {what}\n"
    assert tree() == set()


def test_ctrl_c_while_there_is_no_run_says_only_that(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gf, "diagnose", interrupt)
    assert_one_line(command("devices"), "error: interrupted$", status=130)


# ---------------------------------------------------------------------- devices, help, streams


def test_devices_says_what_can_be_used_and_why_not_the_rest(command: Any) -> None:
    status, out, err = command("devices")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert re.match(r"device +usable +", lines[0])
    assert re.fullmatch(rf"cpu +yes +{re.escape(gf.get_backend('cpu').describe())}", lines[1])
    diagnosis = gf.diagnose("cuda")
    if diagnosis.usable:
        assert re.match(r"cuda:0 +yes +\S", lines[2])
    else:
        assert re.fullmatch(rf"cuda +no +{re.escape(' '.join(diagnosis.state.split()))}", lines[2])
        assert " ".join(diagnosis.fix.split()) in out
    chosen, reason = gf.choose_device()
    assert lines[-1] == f"auto is {chosen} ({' '.join(reason.split())})"


def test_gradflow_device_decides_what_auto_is(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_DEVICE", "cpu")
    assert command("devices").out.endswith("auto is cpu (GRADFLOW_DEVICE is set)\n")


@needs_extra
def test_a_gradflow_device_that_is_none_is_one_line(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_DEVICE", "nonsense")
    ended = command("devices")
    assert re.search(r"^cpu +yes", ended.out, re.M)
    for one_line in (ended._replace(out=""), command("train", "iris"), command("train", "iris", "--device", "auto")):
        assert_one_line(one_line, "GRADFLOW_DEVICE: unknown device 'nonsense'; there are cpu, cuda")
    assert tree() == set()
    assert command("train", "iris", *QUICK).status == 0  # which names its device


def test_help_names_the_commands(command: Any) -> None:
    status, out, err = command("--help")
    assert (status, err) == (0, "")
    assert {"gradflow train digits", "gradflow devices", "--version"} <= set(re.split(r"  +|\n", out))


def test_help_of_train_names_every_dataset_and_option(command: Any) -> None:
    status, out, err = command("train", "--help")
    assert (status, err) == (0, "")
    options = [f"--{name.replace('_', '-')}" for name in SETTING_NAMES if name not in ("dataset", "header")]
    for words in (*DATASETS, *options, "--no-header", "--config", "--out", "--quiet", "130"):
        assert re.search(rf"(?<![\w-]){words}(?![\w-])", out), words


@pytest.mark.parametrize("words", [(), ("train",), ("devices",), ("agree",), ("bench",)])
def test_help_fits_a_terminal_of_80_columns(words: tuple[str, ...], command: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, command(*words, "--help").out.splitlines())) <= 80


def test_version(command: Any) -> None:
    assert command("--version") == (0, f"gradflow {gf.__version__}\n", "")


@pytest.mark.slow
@posix
@needs_extra
@pytest.mark.parametrize("words", [("devices",), ("train", "iris", *QUICK)])
def test_nobody_reading_the_output_is_no_traceback(words: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gradflow", *words],
            stdout=write,
            stderr=subprocess.PIPE,
            env=child_environment(),
            timeout=DEADLINE,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
    assert tree() == set()


@needs_extra
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_is_closed_is_no_failure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, name, None)
    assert main(["train", "iris", *QUICK]) == 0
    getattr(sys, name).close()
    assert {p.name for p in Path("runs/iris-1").iterdir()} == FILES


@pytest.mark.slow
@posix
@needs_extra
@pytest.mark.parametrize("words", [("train", "diabetes", *QUICK), ("agree", "cpu", "fake"), ("devices",)])
def test_the_locale_of_c_takes_every_output(words: tuple[str, ...]) -> None:
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {name: v for name, v in child_environment(**variables).items() if name != "PYTHONIOENCODING"}
    done = subprocess.run(
        [sys.executable, "-m", "gradflow", *words], env=environment, capture_output=True, timeout=DEADLINE
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout.isascii()
    assert (b"R\\xb2" in done.stdout) == ("diabetes" in words)


@needs_extra
def test_output_that_knows_only_ascii_gets_the_last_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["train", "diabetes", *QUICK, "--quiet"]) == 0
    assert written.getvalue().startswith(b"test R\\xb2 ")
