"""Image datasets in the files that they are published in: MNIST's IDX files, and CIFAR-10's binary version."""

from __future__ import annotations

import gzip
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from gradflow.data.inputs import DataError, listed
from gradflow.data.reading import DEFLATED, Array, Samples, read_numbers, reading
from gradflow.files import FilePath, open_file, read_file

IDX_NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx\d-\w+(\.gz)?")
"""The names of MNIST's files, such as train-images-idx3-ubyte, with a dash or a dot before "idx", also with .gz."""

CIFAR_NAME = re.compile(r"(data_batch_\d+|test_batch)\.bin")
"""The names of the files in CIFAR-10's binary version."""

GZIP_MAGIC = b"\x1f\x8b"

_ELEMENTS = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CIFAR_RECORD = 1 + 3 * 32 * 32


def read_idx(path: FilePath) -> Array:
    """Return the array in an IDX file, which may be compressed with gzip.

    The format: two zero bytes, the type of an element, the number of axes, the length of each axis as a big-endian
    integer of 32 bits, and the elements, big-endian, the last axis fastest (http://yann.lecun.com/exdb/mnist).

    Raises DataError for a file that is not IDX, is longer or shorter than its header says, or is damaged.
    """
    with reading(path), open_file(path) as raw:
        size = os.fstat(raw.fileno()).st_size
        compressed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _ELEMENTS or not 1 <= magic[3] <= 4:
            raise DataError(f"{path} is not an IDX file: it starts with the bytes {magic.hex(' ') or 'of nothing'}")
        axes = file.read(4 * magic[3])
        if len(axes) < 4 * magic[3]:
            raise DataError(f"{path} is cut off in its header")
        most = DEFLATED * size if compressed else size - 4 - len(axes)
        return read_numbers(file, path, struct.unpack(f">{magic[3]}I", axes), np.dtype(_ELEMENTS[magic[2]]), most)


def read_idx_folder(folder: FilePath) -> tuple[Samples | None, Samples | None]:
    """Return the samples in the train files and in the t10k files of a folder, None for files that are not there.

    Raises DataError for labels without images, and for another number of labels than of images.
    """
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(Path(folder).iterdir()):  # a plain file before the same one with .gz
        if found := IDX_NAME.fullmatch(path.name):
            files.setdefault((found[1], found[2]), path)
    train, test = (_idx_part(os.fspath(folder), part, files) for part in ("train", "t10k"))
    return train, test


def _idx_part(folder: str, part: str, files: dict[tuple[str, str], Path]) -> Samples | None:
    images, labels = files.get((part, "images")), files.get((part, "labels"))
    if images is None:
        if labels is not None:
            raise DataError(f"{folder} has {labels.name}, but no images for it: {part}-images-idx3-ubyte is missing")
        return None
    inputs, targets = read_idx(images), None if labels is None else read_idx(labels)
    if targets is not None and labels is not None and len(targets) != len(inputs):
        raise DataError(f"{folder}: {images.name} has {len(inputs)} images, {labels.name} has {len(targets)} labels")
    return Samples(folder, inputs, targets)


def read_cifar(paths: Sequence[FilePath], source: str, names: Sequence[str] = ()) -> Samples:
    """Return the samples in files of CIFAR-10's binary version, as images (32, 32, 3).

    Each record is a label and the red, green and blue planes of 32x32 pixels
    (https://www.cs.toronto.edu/~kriz/cifar.html).

    names: of the classes. Raises DataError for a file that does not consist of such records.
    """
    parts = []
    for path in paths:
        with reading(path), open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not size or size % _CIFAR_RECORD:
                raise DataError(f"{path} has {size:,} bytes; a file of CIFAR-10 has {_CIFAR_RECORD:,} for each image")
            part = read_numbers(file, path, (size // _CIFAR_RECORD, _CIFAR_RECORD), np.dtype(np.uint8), size)
        if part[:, 0].max() > 9:
            worst = int(part[:, 0].argmax())
            raise DataError(f"{path}: image {worst} has the label {part[worst, 0]}; CIFAR-10 has the labels 0 to 9")
        parts.append(part)
    records = np.concatenate(parts)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Samples(source, images, records[:, 0], names=names)


def read_cifar_folder(folder: FilePath) -> tuple[Samples | None, Samples | None]:
    """Return the samples in the data batches and in the test batch of a folder, None for files that are not there."""
    where, source = Path(folder), os.fspath(folder)
    batches = sorted(p for p in where.iterdir() if CIFAR_NAME.fullmatch(p.name) and p.name != "test_batch.bin")
    meta, test = where / "batches.meta.txt", where / "test_batch.bin"
    names: list[str] = []
    if meta.exists():
        with reading(meta):
            names = [line for line in read_file(meta, 1 << 16).decode().splitlines() if line.strip()]
    return (
        read_cifar(batches, source, names) if batches else None,
        read_cifar([test], source, names) if test.exists() else None,
    )


def read_image_folder(folder: FilePath) -> tuple[Samples | None, Samples | None]:
    """Return the training samples and the test samples of a folder, None for those that are not there.

    Raises DataError for a folder with no known files, which says what is in it.
    """
    with reading(folder):
        names = sorted(os.listdir(folder))
        if any(IDX_NAME.fullmatch(name) for name in names):
            return read_idx_folder(folder)
        if any(CIFAR_NAME.fullmatch(name) for name in names):
            return read_cifar_folder(folder)
    pickled = "; data_batch_1 is a pickle, take the binary version of CIFAR-10" if "data_batch_1" in names else ""
    raise DataError(
        f"{os.fspath(folder)} has no files train-images-idx3-ubyte and train-labels-idx1-ubyte (MNIST's) or "
        f"data_batch_1.bin (CIFAR-10's); there are: {listed(names) or 'none'}{pickled}"
    )
