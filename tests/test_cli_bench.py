"""`gradflow bench`: its table, files and errors, what it does without a device, and from where on a device pays."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gradflow as gf
from gradflow.benchmarking import DTYPES, measuring
from gradflow.benchmarking.measuring import Cell, Measurement
from gradflow.benchmarking.results import crossover, crossovers, remarks
from gradflow.benchmarking.training import Task, Training
from gradflow.cli import bench, main
from tests.test_cli import DEADLINE, Ended, assert_one_line, child_environment, posix

QUICK = ("bench", "6-4-3", "--batch", "2,8", "--seconds", "60")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "_TURN", 0.002)
    monkeypatch.setattr(measuring, "_MOST_ROUNDS", 3)
    monkeypatch.setattr(measuring, "_PAUSE", 0.0)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> Ended:
        return Ended(main(words), *capsys.readouterr())

    return run


def rows_of(ended: Ended) -> dict[tuple[int, str], Any]:
    return {(row["batch"], row["device"]): row for row in json.loads(ended.out)["rows"]}


# ---------------------------------------------------------------------- what it prints and writes


def test_the_table_has_a_line_for_each_size_and_device(command: Any) -> None:
    ended = command(*QUICK, "--devices", "cpu,fake,fake:9")
    assert ended.status == 0
    assert ended.err.startswith("gradflow: note: left out: device 'fake:9' does not exist")
    head, cpu, fake, empty, _, columns, *lines = ended.out.splitlines()
    assert head == "6-4-3, relu, cross_entropy, adam, float32, 43 parameters"
    assert re.fullmatch(r"cpu     \d+ cores? .+, \d+ threads?", cpu)
    assert re.fullmatch(r"fake:0  .+", fake)
    assert not empty
    assert columns.split()[-3:] == ["(quartiles)", "samples/s", "memory"]
    number = r"\d[\d,.]*"
    cell = rf"{number} \({number}-{number}\) +"
    for line, start in zip(lines[:4], ("2  cpu ", "2  fake:0", "8  cpu ", "8  fake:0"), strict=True):
        assert re.fullmatch(rf" +{start} +{cell}{cell} *{number} +{number} [kM]?B", line), line
    assert lines[4] == ""
    assert re.fullmatch(
        r"(measured: fake:0 is (faster|slower) than cpu (at|from) .+|fake:0 beside cpu; unclear .+)",
        lines[5],
    )
    assert len(columns) <= 80


@pytest.mark.slow
def test_the_document_and_the_files(command: Any) -> None:
    pytest.importorskip("matplotlib")
    files = ("b.json", "b.png", "b.svg")
    outs = [word for name in files for word in ("--out", name)]
    for _ in range(2):  # the second replaces what the first wrote
        ended = command(*QUICK, "--devices", "cpu,fake", "--json", "--optimizer", "sgd", *outs)
        assert ended.status == 0
        document = json.loads(ended.out)
        assert document == json.loads(Path("b.json").read_text())
    assert document["layers"] == [6, 4, 3]
    assert (document["optimizer"], document["dtype"], document["loss"]) == ("sgd", "float32", "cross_entropy")
    assert [device["device"] for device in document["devices"]] == ["cpu", "fake:0"]
    assert [each["device"] for each in document["crossovers"]] == ["fake:0"]
    for row in document["rows"]:
        fastest = min(row[mode]["median"] for mode in ("plain", "captured"))
        assert row["plain"]["lower_quartile"] <= row["plain"]["median"] <= row["plain"]["upper_quartile"]
        assert row["samples_per_second"] == pytest.approx(row["batch"] / fastest)
        assert row["memory"] > 4 * 43 * 3  # parameters, gradients, momentum
    assert all("the times vary" in line for line in document["remarks"])
    assert Path("b.png").read_bytes().startswith(b"\x89PNG")
    assert "8" in Path("b.svg").read_text()
    Path("b.svg").write_text("<svg>mine</svg>")
    assert_one_line(command(*QUICK, "--out", "b.svg"), "b.svg exists, and this command did not write it")


@pytest.mark.slow
def test_by_default_it_measures_every_device_that_can_be_used(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = command(*QUICK, "--json")
    usable = {device.type for device in gf.devices()}
    document = json.loads(ended.out)
    measured = [row["device"].partition(":")[0] for row in document["devices"]]
    assert measured == ["cpu", *sorted(usable - {"cpu", "fake"})]
    assert ("cuda" in document["unusable"]) == ("cuda" not in usable)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_dtypes(command: Any, dtype: str) -> None:
    ended = command(*QUICK, "--dtype", dtype, "--devices", "cpu", "--json")
    if "bfloat16" in dtype and not gf.get_backend("cpu").supports("bfloat16"):
        assert_one_line(ended, "no device can be measured: device cpu does not support bfloat16 without ml_dtypes")
    else:
        assert ended.status == 0
        assert all("median" in row["captured"] for row in rows_of(ended).values())
    assert gf.get_matmul_precision() == "highest"


def test_a_step_computes_in_what_it_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        gf, "cross_entropy", lambda x, y: (seen.append((x.dtype.name, gf.get_matmul_precision())), x.sum())[1]
    )
    for dtype in ("float64", "autocast-float16", "tf32"):
        for _ in Measurement(Task((3, 4, 2), dtype), ["cpu"], [2], 60.0).run():
            pass
    assert {*seen} == {("float64", "highest"), ("float16", "highest"), ("float32", "tf32")}


def test_one_output_is_a_regression(command: Any) -> None:
    ended = command("bench", "4-1", "--batch", "2", "--seconds", "0.1", "--devices", "cpu", "--json")
    assert json.loads(ended.out)["loss"] == "mse_loss"
    assert json.loads(ended.out)["crossovers"] == []


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("784", "at least two widths, such as 784-512-10; got '784'"),
        ("784-x-10", "integers from 1 to 65536, separated by '-'; got '784-x-10'"),
        ("--batch 64;128", "integers from 1 to 16777216, separated by ','"),
        ("--batch 0", "integers from 1"),
        ("--dtype float8", r"'float8' is not one of float32, .+; did you mean float"),
        ("--optimizer adamm", r"'adamm' is not one of .+; did you mean adam"),
        ("--activation rely", r"'rely' is not one of .+; did you mean relu"),
        ("--seconds 0", "seconds above 0"),
        ("--out b.pdf", r"--out b.pdf: the name must end in .json, .png or .svg"),
        ("--out nowhere/b.json", "there is no folder nowhere"),
        ("--dtype fp16", "'fp16' is not one of .+; did you mean float16"),
        ("--dtype fp32", "; did you mean float32"),
        ("--dtype BFLOAT16", "; did you mean bfloat16"),
        ("--activation swish", "; did you mean silu"),
        ("--devices nowhere", "--devices: unknown device 'nowhere'"),
        ("--devices cpu,nowhere", "--devices: unknown device 'nowhere'"),
        ("--devices cpu,cuda:x", "--devices: a device is a name like 'cpu', 'cuda' or 'cuda:0'; got 'cuda:x'"),
        ("--devices cpu,", "--devices: a device is a name like .+; got ''"),
        ("--devices fake --dtype bfloat16", "no device can be measured: device fake:0 does not support bfloat16"),
        ("--devices fake:9", "no device can be measured: device 'fake:9' does not exist"),
        ("--module nowhere", "--module nowhere: ModuleNotFoundError"),
    ],
)
def test_invalid_input_is_one_line_and_status_2(command: Any, words: str, message: str) -> None:
    assert_one_line(command("bench", *words.split()), message)


def test_it_goes_on_where_memory_is_out_and_where_a_device_fails(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Training.plain

    def plain(self: Training, x: Any, y: Any) -> Any:
        if x.shape[0] == 8:
            raise MemoryError("8 is too many") if x.device.type == "cpu" else RuntimeError("an illegal\naddress")
        return known(self, x, y)

    monkeypatch.setattr(Training, "plain", plain)
    ended = command(*QUICK, "--devices", "cpu,fake", "--json")
    assert ended.status == 1
    rows = rows_of(ended)
    assert rows[8, "cpu"]["plain"] == {"why": "out of memory"}
    assert rows[8, "fake:0"]["plain"] == {"why": "RuntimeError: an illegal address"}
    assert rows[2, "cpu"]["samples_per_second"] > 0
    assert rows[2, "fake:0"]["samples_per_second"] > 0
    assert "gradflow: note: cpu, batch 8: out of memory\n" in ended.err


def test_a_size_that_cannot_fit_is_not_tried(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(gf.get_backend("cpu")), "available_memory", lambda self: 600)
    ended = command(*QUICK, "--devices", "cpu", "--json")
    assert ended.status == 0
    assert rows_of(ended)[2, "cpu"]["plain"]["why"] == "out of memory: it needs more than 620 B, and 600 B are free"


def test_without_time_nothing_is_measured(command: Any) -> None:
    pytest.importorskip("matplotlib")
    ended = command(*QUICK[:-1], "0.000001", "--devices", "cpu", "--json", "--out", "b.png")
    why = "no time was left of --seconds 1e-06"
    assert [row["plain"] for row in rows_of(ended).values()] == [{"why": why}] * 2
    assert "b.png: no picture is drawn, since nothing was measured" in ended.err
    assert not Path("b.png").exists()


def test_a_size_with_steps_too_slow_for_the_time_is_left_out_before_its_first_step(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def take(step: Any, data: Any, count: int) -> float:
        for _ in range(count):
            step(*data[0])
        taken.append(data[0][0].shape[0])
        return 1e-3 * taken[-1]

    monkeypatch.setattr(measuring, "_take", take)
    ended = command("bench", "6-4-3", "--batch", "16,16384", "--seconds", "60", "--devices", "cpu", "--json")
    rows = rows_of(ended)
    assert rows[16, "cpu"]["plain"]["rounds"] == 3
    assert rows[16384, "cpu"]["plain"]["why"] == "no time was left of --seconds 60 for steps of about 16 s"
    assert {*taken} == {2, 16, 64, 256, 1024}


def test_the_first_sizes_leave_the_time_that_the_later_ones_need(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def take(step: Any, data: Any, count: int) -> float:
        seconds = 1e-2 * data[0][0].shape[0]
        now[0] += seconds * count
        return seconds

    monkeypatch.setattr(measuring, "_take", take)
    monkeypatch.setattr(measuring, "_MOST_ROUNDS", 1000)
    monkeypatch.setattr(measuring, "_rest", lambda: None)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(monotonic=lambda: now[0]))
    measurement = Measurement(Task((3, 2)), ["cpu"], [1, 4, 16], 15.0)
    for _ in measurement.run():
        pass
    assert all(len(cell.times[mode]) >= 3 for cell in measurement.cells for mode in cell.times)
    assert all(cell.times for cell in measurement.cells)
    assert now[0] < 16.0


def test_a_terminal_sees_what_is_measured_now(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ended = command(*QUICK, "--devices", "cpu")
    assert "gradflow: memory of batch 8\r" in ended.err
    assert "gradflow: batch 8, size 2 of 2\r\x1b[K" in ended.err


def test_ctrl_c_prints_and_writes_what_is_known(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    def rest() -> None:
        turns.append(1)
        if len(turns) == 8:  # 3 rounds of 2 ways at the first size, and 1 at the second
            raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "_rest", rest)
    ended = command(*QUICK, "--devices", "cpu", "--out", "b.json")
    assert ended.status == 130
    assert ended.err.endswith("gradflow: error: interrupted\n")
    document = json.loads(Path("b.json").read_text())
    assert document["interrupted"]
    assert [sum(row.get(mode, {}).get("rounds", 0) for mode in measuring.MODES) for row in document["rows"]] == [6, 1]
    assert len([line for line in ended.out.splitlines() if " cpu " in line]) == 2


@pytest.mark.slow
@posix
def test_ctrl_c_in_a_process(tmp_path: Path) -> None:
    words = ["-m", "gradflow", "bench", "6-4-3", "--batch", "2,3,4,5,6,7", "--devices", "cpu", "--out", "b.json"]
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith(" batch "):
        pass
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, err
    assert err.splitlines()[-2:] == ["gradflow: the figures are in b.json", "gradflow: error: interrupted"]
    assert json.loads(Path("b.json").read_text())["interrupted"]


def test_ctrl_c_while_memory_is_measured_ends_it(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Measurement, "_measure_memory", stop)
    ended = command(*QUICK, "--devices", "cpu", "--json")
    assert ended.status == 130
    assert json.loads(ended.out)["interrupted"]


def test_a_step_that_is_not_replayed_says_why(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Training.plain

    def plain(self: Training, x: Any, y: Any) -> Any:
        loss = known(self, x, y)
        loss.item()
        return loss

    monkeypatch.setattr(Training, "plain", plain)
    row = rows_of(command(*QUICK, "--devices", "cpu", "--json"))[2, "cpu"]
    assert "median" in row["plain"]
    assert re.search("reads a value|item", row["captured"]["why"])


def test_other_losses_are_told() -> None:
    measurement = Measurement(Task((2, 2)), ["cpu", "fake:0"], [4], 1.0)
    for cell, losses in zip(measurement.cells, ((2.0, 1.0), (2.0, 1.01)), strict=True):
        cell.losses = losses
    assert remarks(measurement) == ["fake:0, batch 4: its losses differ from those of cpu: 2, 1.01; 2, 1"]


# ---------------------------------------------------------------------- from where on a device pays


def rounds(*medians: float, spread: float = 0.01) -> dict[int, list[float]]:
    return {n: [m - spread, m, m + spread] for n, m in zip((16, 64, 256), medians, strict=False)}


def test_the_crossover_is_interpolated() -> None:
    found = crossover("cuda:0", rounds(1.0, 1.0, 1.0), "cpu", rounds(0.25, 0.5, 2.0))
    assert (found.batch, found.faster, found.slower) == (130, (256,), (16, 64))  # 128, in two digits
    assert str(found) == "measured: cuda:0 is faster than cpu from a batch of about 130 on (not at 64, but at 256)"


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ((2.0, 2.0, 2.0), "faster than cpu at 16, 64, 256"),
        ((0.5, 0.5, 0.9), "slower than cpu at 16, 64, 256"),
        ((2.0, 0.5, 0.5), "faster than cpu at 16, but not at 64, 256"),
        ((2.0, 0.5, 2.0), "faster than cpu from a batch of about 130 on (not at 64, but at 256)"),
        ((0.5, 0.5, 1.0), "slower than cpu at 16, 64; unclear at 256: measure longer (--seconds)"),
        ((0.5, 2.0, 1.0), "faster than cpu at 64, but not at 16; unclear at 256: measure longer (--seconds)"),
        ((0.5, 2.0), "faster than cpu from a batch of about 32 on (not at 16, but at 64); not measured at 256"),
    ],
)
def test_where_there_is_no_crossover_it_says_so(others: tuple[float, ...], words: str) -> None:
    found = crossover("cuda:0", rounds(1.0, 1.0, 1.0), "cpu", rounds(*others), (16, 64, 256))
    assert str(found) == f"measured: cuda:0 is {words}"


def test_few_rounds_and_quartiles_that_overlap_are_no_verdict() -> None:
    few = {16: [1.0, 1.0], 64: [1.0]}
    unclear = "; unclear at 16, 64: measure longer (--seconds)"
    assert str(crossover("cuda", few, "cpu", rounds(9.0, 9.0))) == f"cuda beside cpu{unclear}"
    assert str(crossover("cuda", rounds(1.0, 1.2), "cpu", rounds(1.4, 1.0, spread=0.8))) == f"cuda beside cpu{unclear}"


def test_times_that_vary_much_are_told() -> None:
    measurement = Measurement(Task((2, 2)), ["cpu", "fake:0"], [4, 8], 1.0)
    for cell, spread in zip(measurement.cells, (0.3, 0.1, 0.3, 0.3), strict=True):
        cell.times = {"plain": [1.0 - spread, 1.0, 1.0 + spread]}
    (line,) = remarks(measurement)
    assert ("OMP_NUM_THREADS=1" in line) == (gf.get_num_threads() > 1)
    assert line.startswith("cpu, batch 4, 8; fake:0, batch 8: the times vary by more than 25%: close other programs")


def test_the_table_says_how_few_rounds_there_are() -> None:
    assert bench._time([0.0998]) == "99.8 (1 round)"
    assert bench._time([0.1, 0.2]) == "150 (2 rounds)"
    assert bench._time([0.1, 0.2, 0.3]) == "200 (150-250)"


@pytest.mark.parametrize("batches", [[8], [4, 8]])
def test_the_picture_tells_plain_from_captured_and_draws_quartiles(batches: list[int]) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from gradflow.benchmarking import picture

    measurement = Measurement(Task((2, 2)), ["cpu"], batches, 1.0)
    for cell in measurement.cells:
        cell.times = {"plain": [1.0, 2.0, 3.0], "captured": [0.5, 1.0, 1.5]}
    axes = Figure().add_subplot()
    picture._draw(axes, measurement)
    plain, captured = axes.containers
    assert plain[0].get_markerfacecolor() != captured[0].get_markerfacecolor()
    (bars,) = plain[2]
    assert bars.get_segments()[0][:, 1].tolist() == [batches[0] / 2.5, batches[0] / 1.5]
    assert "logarithmic" in axes.get_ylabel()
    low, high = axes.get_ylim()
    assert high >= 9.99 * low


def test_devices_are_compared_in_their_faster_mode_at_the_sizes_that_both_have() -> None:
    cells = [
        Cell(16, "cpu", times={"plain": [1.0] * 3, "captured": [0.5] * 3}),
        Cell(16, "cuda:0", times={"plain": [0.8] * 3, "captured": [0.6] * 3}),
        Cell(64, "cpu", times={"plain": [1.0] * 3}),
        Cell(64, "cuda:0", why={"plain": "out of memory"}),
    ]
    (found,) = crossovers(cells)
    assert (found.faster, found.slower, found.missing) == ((), (16,), (64,))
