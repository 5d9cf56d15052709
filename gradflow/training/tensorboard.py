"""`TensorBoard`: what a loop adds to it is a folder that TensorBoard shows."""

from __future__ import annotations

import os
import struct
from types import TracebackType
from typing import Any, Self

import numpy as np

from gradflow.drawing.picture import Picture
from gradflow.environment import imported_extra
from gradflow.files import FilePath
from gradflow.training.epoch import Epoch
from gradflow.training.layers import EDGES, Snapshot, Spread

_SECONDS = 2
"""The time between two writes to the disk, by a thread."""


class TensorBoard:
    """Writes epochs, snapshots of layers and pictures of graphs for TensorBoard: `tensorboard --logdir FOLDER`.

    folder: where to write; it is made if it does not exist. What is in it stays, so a resumed run adds to it.

    Use it in a `with`, whose end closes the file. The x-axis counts optimizer steps. Raises ModuleNotFoundError without
    tensorboardX, of the extra `tensorboard`, OSError where the folder cannot be written.

    >>> import tempfile
    >>> import gradflow as gf
    >>> from gradflow.data import Batches
    >>> from gradflow.training import TensorBoard, Trainer
    >>> model = gf.nn.MLP([2, 8, 1])
    >>> x = gf.random.normal((64, 2), generator=gf.Generator(1))
    >>> optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    >>> trainer = Trainer(model, gf.mse_loss, optimizer, Batches(x, x[:, :1], 16))
    >>> watch = trainer.watch()
    >>> with tempfile.TemporaryDirectory() as folder, TensorBoard(folder) as board:
    ...     for epoch in trainer.epochs(3):
    ...         board.add(epoch)
    ...         board.add(watch[-1])
    """

    def __init__(self, folder: FilePath) -> None:
        library = imported_extra("tensorboardX", "tensorboardX", "tensorboard", "TensorBoard")
        os.makedirs(folder, exist_ok=True)
        own = f".{os.getpid()}.{len(os.listdir(folder))}"  # its names have the second alone, and it overwrites files
        self._writer: Any = library.SummaryWriter(os.fspath(folder), filename_suffix=own, flush_secs=_SECONDS)
        self._step = 0
        self._closed = False

    def add(self, what: Epoch | Snapshot | Picture) -> None:
        """Write what TensorBoard shows of an epoch, a snapshot or a picture; it is in the file within two seconds.

        what: an `Epoch`: its loss and metrics, those of training and validation in one chart, and its learning rate. A
            `Snapshot` of a `Watch`: histograms of weights and gradients, update / weight and dead units of each layer.
            A trace, or the result of `gf.draw` or `gf.explain`: its picture, which needs the extra `viz`.

        Raises TypeError for anything else, ValueError after the end of the `with`.
        """
        if self._closed:
            raise ValueError("this TensorBoard is closed: add within its `with`, or make a new one for the same folder")
        if isinstance(what, Epoch):
            self._add_epoch(what)
        elif isinstance(what, Snapshot):
            self._add_snapshot(what)
        elif isinstance(what, Picture):
            self._add_picture(what)
        else:
            raise TypeError(
                f"TensorBoard takes epochs, snapshots such as watch[-1], and pictures such as gf.draw(loss); "
                f"got a {type(what).__name__}"
            )

    def _add_epoch(self, epoch: Epoch) -> None:
        self._step = epoch.step
        figures = {"training": {"loss": epoch.train_loss, **epoch.train_metrics}}
        if epoch.validation_loss is not None:
            figures["validation"] = {"loss": epoch.validation_loss, **epoch.validation_metrics}
        for part, values in figures.items():
            for name, value in values.items():
                self._scalar(f"{name}/{part}", value, epoch.step)
        self._scalar("learning_rate", epoch.learning_rate, epoch.step)
        self._scalar("samples_per_second", epoch.samples_per_second, epoch.step)

    def _add_snapshot(self, snapshot: Snapshot) -> None:
        step = snapshot.step
        for kind, spreads in (("weights", snapshot.weights), ("gradients", snapshot.gradients)):
            for name, spread in spreads.items():
                if spread.counts is not None and spread.counts.any():
                    self._writer.add_histogram_raw(f"{kind}/{name}", **_histogram(spread), global_step=step)
        for name, ratio in snapshot.ratios.items():
            self._scalar(f"update_to_weight/{name}", ratio, step)
        for name, share in snapshot.dead.items():
            self._scalar(f"dead_units/{name}", share, step)

    def _add_picture(self, picture: Picture) -> None:
        from gradflow.drawing.svg import to_bytes

        summary = imported_extra("tensorboardX.proto.summary_pb2", "tensorboardX", "tensorboard").Summary
        png = to_bytes(picture.graph, "png")
        width, height = struct.unpack(">II", png[16:24])  # of its header
        image = summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        content = summary(value=[summary.Value(tag=picture.graph.title or "graph", image=image)])
        self._writer.file_writer.add_summary(content, self._step)

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the file. The end of a `with` does this."""
        self._closed = True
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _histogram(spread: Spread) -> dict[str, Any]:
    """A histogram as TensorBoard has it: the upper limit of each bin, the first one empty."""
    counts = np.asarray(spread.counts, np.float64)
    used = counts.nonzero()[0]
    first, last = int(used[0]), int(used[-1])
    limits, counts = EDGES[first : last + 2], counts[first : last + 1]
    middles = (limits[1:] + limits[:-1]) / 2
    return {
        "min": float(limits[0]),
        "max": float(limits[-1]),
        "num": float(counts.sum()),
        "sum": float(counts @ middles),
        "sum_squares": float(counts @ middles**2),
        "bucket_limits": limits.tolist(),
        "bucket_counts": [0.0, *counts.tolist()],
    }
