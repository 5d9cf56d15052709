"""What a loop writes for TensorBoard, read back from its files: scalars, histograms, the picture of a graph."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.training import TensorBoard
from tests.trainers import make

pytest.importorskip("tensorboardX")


def events(folder: Path) -> list[tuple[int, Any]]:
    """The steps and values of all events in a folder: records of a length, its checksum, the event and its checksum."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(content: bytes) -> int:
        crc = crc32c(content)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (n,) = struct.unpack("<Q", content[:8])
            assert struct.unpack("<I", content[8:12]) == (masked(content[:8]),)
            assert struct.unpack("<I", content[12 + n : 16 + n]) == (masked(content[12 : 12 + n]),)
            event = Event.FromString(content[12 : 12 + n])
            found += [(event.step, value) for value in event.summary.value]
            content = content[16 + n :]
    return found


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(step, value.simple_value) for step, value in events(folder) if value.tag == tag]


def test_the_figures_of_each_epoch_are_read_back(tmp_path: Path) -> None:
    trainer = make(validate=True, metrics=["accuracy"])
    with TensorBoard(tmp_path / "new" / "board") as board:
        for epoch in trainer.epochs(3):
            board.add(epoch)
    history, folder = trainer.history, tmp_path / "new" / "board"
    for tag, values in {
        "loss/training": [e.train_loss for e in history],
        "loss/validation": [e.validation_loss for e in history],
        "accuracy/training": [e.train_metrics["accuracy"] for e in history],
        "accuracy/validation": [e.validation_metrics["accuracy"] for e in history],
        "learning_rate": [e.learning_rate for e in history],
        "samples_per_second": [e.samples_per_second for e in history],
    }.items():
        found = scalars(folder, tag)
        assert [step for step, _ in found] == [5, 10, 15]
        assert [value for _, value in found] == pytest.approx(values, rel=1e-6), tag
    assert {value.tag.partition("/")[0] for _, value in events(folder)} == {
        "loss", "accuracy", "learning_rate", "samples_per_second"
    }  # fmt: skip


def test_snapshots_are_histograms_and_scalars_of_each_layer(tmp_path: Path) -> None:
    trainer = make()
    watch = trainer.watch()
    with TensorBoard(tmp_path) as board:
        for _ in trainer.epochs(2):
            board.add(watch[-1])
    weight = trainer.model[0].weight.detach().numpy().reshape(-1)
    step, histogram = [(s, v.histo) for s, v in events(tmp_path) if v.tag == "weights/0.weight"][-1]
    assert step == 10
    assert (histogram.num, sum(histogram.bucket)) == (32, 32)
    assert histogram.bucket[0] == 0
    for i in range(1, len(histogram.bucket)):
        low, high = histogram.bucket_limit[i - 1 : i + 1]
        assert histogram.bucket[i] == ((weight > low) & (weight <= high)).sum()
    assert (histogram.min, histogram.max) == (histogram.bucket_limit[0], histogram.bucket_limit[-1])
    assert histogram.sum == pytest.approx(float(weight.sum()), abs=0.1 * float(np.abs(weight).sum()))
    assert histogram.sum_squares == pytest.approx(float((weight**2).sum()), rel=0.1)
    ratios = [s.ratios["1.bias"] for s in watch]
    assert [v for _, v in scalars(tmp_path, "update_to_weight/1.bias")] == pytest.approx(ratios, rel=1e-6)
    assert [v for _, v in scalars(tmp_path, "dead_units/0")] == [s.dead["0"] for s in watch]
    assert len([v for _, v in events(tmp_path) if v.tag.startswith("gradients/")]) == 8


def test_what_is_not_finite_is_written_as_far_as_there_is_something(tmp_path: Path) -> None:
    trainer = make()
    trainer.model[0].requires_grad_(False)  # no gradient
    watch = trainer.watch()
    list(trainer.epochs(1))
    with TensorBoard(tmp_path) as board:
        board.add(watch[0])
    tags = {v.tag for _, v in events(tmp_path)}
    assert "weights/0.weight" in tags
    assert "gradients/0.weight" not in tags
    assert scalars(tmp_path, "update_to_weight/0.weight") == [(5, 0.0)]


def test_the_picture_of_a_graph_is_an_image(tmp_path: Path) -> None:
    pytest.importorskip("pygraphviz", exc_type=ImportError)
    trainer = make()
    with TensorBoard(tmp_path) as board:
        for epoch in trainer.epochs(2):
            board.add(epoch)
        with gf.trace() as trace:
            x = gf.tensor([1.0, 2.0], requires_grad=True)
            gf.sum(x * x).backward()
        board.add(trace)
    ((step, value),) = [(s, v) for s, v in events(tmp_path) if v.HasField("image")]
    png = value.image.encoded_image_string
    assert png.startswith(b"\x89PNG")
    assert step == 10
    assert struct.unpack(">II", png[16:24]) == (value.image.width, value.image.height)
    assert value.image.width > 100


def test_tensorboard_itself_reads_the_files(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = make()
    watch = trainer.watch()
    with TensorBoard(tmp_path) as board:
        for epoch in trainer.epochs(2):
            board.add(epoch)
            board.add(watch[-1])
    read = accumulator.EventAccumulator(str(tmp_path), size_guidance={})
    read.Reload()
    found = read.Scalars("loss/training")
    assert [e.step for e in found] == [5, 10]
    assert [e.value for e in found] == pytest.approx([e.train_loss for e in trainer.history], rel=1e-6)
    assert read.Histograms("gradients/1.weight")[-1].histogram_value.num == 24


def test_a_resumed_run_adds_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorboardX.event_file_writer.time", SimpleNamespace(time=lambda: 1234567890.0))
    trainer = make()
    for n in (1, 2):
        with TensorBoard(tmp_path) as board:
            for epoch in trainer.epochs(n):
                board.add(epoch)
    assert [step for step, _ in scalars(tmp_path, "loss/training")] == [5, 10]


@pytest.mark.parametrize("what", [None, 1.0, "loss", gf.nn.Linear(1, 1, device="cpu")])
def test_other_things_are_refused(tmp_path: Path, what: Any) -> None:
    with TensorBoard(tmp_path) as board, pytest.raises(TypeError, match="takes epochs, snapshots such as watch"):
        board.add(what)


def test_a_closed_board_takes_nothing(tmp_path: Path) -> None:
    trainer = make()
    (epoch,) = trainer.epochs(1)
    with TensorBoard(tmp_path) as board:
        pass
    with pytest.raises(ValueError, match="this TensorBoard is closed: add within its `with`"):
        board.add(epoch)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        TensorBoard(tmp_path / "file")


def test_without_tensorboardx_the_extra_is_named(tmp_path: Path) -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorboardX":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from gradflow.training import TensorBoard
try:
    TensorBoard({str(tmp_path / "board")!r})
except ModuleNotFoundError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.startswith('TensorBoard needs tensorboardX from the extra "tensorboard" of gradflow-autograd; type')
    assert not (tmp_path / "board").exists()
