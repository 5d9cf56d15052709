"""Datasets from files: what they hold, and one line for files that are cut off, foreign or hostile."""

from __future__ import annotations

import gzip
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import cifar_bytes, idx_bytes, npy_bytes, write_idx, write_npz

from gradflow.data import DataError, Dataset, load, load_inputs

pytest.importorskip("sklearn")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4))
Y = np.arange(30) % 3
IMAGES = RNG.integers(0, 256, (30, 5, 7), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


def refused(path: Path, message: str, way: Callable[[Path], Any] = load) -> None:
    """Assert that a file is refused in one line that names it and contains this."""
    with pytest.raises(DataError) as caught:
        way(path)
    told = str(caught.value)
    assert told.isprintable()
    assert str(path) in told
    assert message in told


# ---------------------------------------------------------------------- npz and npy


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("X", "y"), ("x", "y"), ("inputs", "targets"), ("data", "target"), ("data", "targets"), ("data", "labels"),
        ("x_train", "y_train"), ("X_train", "y_train"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_have_the_names_that_are_common(tmp_path: Path, x: str, y: str, save: Any) -> None:
    save(tmp_path / "a.npz", **{x: np.asfortranarray(X), y: Y, "other": np.array([None])})
    data = load(tmp_path / "a.npz")
    assert data.name == str(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.inputs, X)
    np.testing.assert_array_equal(data.targets, Y)
    assert data.test is None
    assert data.fingerprint == Dataset.from_arrays(X, Y).fingerprint


def test_npz_files_may_name_features_and_classes_and_have_a_test_part(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    names = {"feature_names": np.array(list("abcd")), "target_names": np.array([b"one", b"two", b"three"])}
    np.savez(path, x_train=X, y_train=Y, x_test=X[:5], y_test=np.array([2, 2, 2, 1, 1]), **names)
    data = load(str(path))
    assert data.features == ("a", "b", "c", "d")
    assert data.classes == ("one", "two", "three")
    assert data.test is not None
    assert data.test.targets.tolist() == [2, 2, 2, 1, 1]
    assert data.test.classes == data.classes
    held_out = load_inputs(path)
    np.testing.assert_array_equal(held_out.inputs, X[:5])
    assert held_out.targets is not None
    assert list(held_out.features) == ["a", "b", "c", "d"]


def test_arrays_of_a_file_that_are_not_used_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=X, y=Y, w=np.ones(len(Y)), weights=np.ones(len(Y)))
    assert load_inputs(tmp_path / "a.npz").unused == ["w", "weights"]
    assert load(tmp_path / "a.npz").notes == [f"{tmp_path / 'a.npz'}: not used: w, weights"]
    np.savez(tmp_path / "b.npz", X=X, y=Y, X_test=X, y_test=Y, feature_names=list("abcd"), classes=list("uvw"))
    assert load(tmp_path / "b.npz").notes == []


def test_inputs_alone_are_enough_to_predict(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=X)
    np.save(tmp_path / "a.npy", X)
    write_idx(tmp_path / "pictures", IMAGES)
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes(COLOURS, Y[:20]))
    for name, expected in {"a.npz": X, "a.npy": X, "pictures": IMAGES, "test_batch.bin": COLOURS}.items():
        found = load_inputs(tmp_path / name)
        np.testing.assert_array_equal(found.inputs, expected)
        assert (found.targets is None) == (name != "test_batch.bin")
    for name in ("a.npz", "a.npy", "pictures"):
        refused(tmp_path / name, "has no targets: a dataset needs inputs and targets, such as X and y")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"arr_0": X, "arr_1": Y},
            "has no array X, x, inputs, data or x_train; it has arr_0, arr_1: save it",
        ),
        ({"X": X, "data": X, "y": Y}, "has X, data, and only one of them can be the inputs: keep one"),
        ({"X": X, "y": Y, "y_test": Y}, "has y_test, but no x_test"),
        ({"X": X, "y": Y, "x_test": X}, "has no targets for its test part"),
        ({"X": X, "y": np.array([None] * 30)}, "y in {path} holds pickled Python objects, which are never loaded"),
        ({"X": X, "y": Y[:9]}, "{path}: each input needs one target; got 30 and 9"),
        ({"X": X, "y": Y, "x_test": X[:, :3], "y_test": Y}, "the test part of {path}: 4 features are expected; got 3"),
        (
            {"X": X, "y": Y, "x_test": X, "y_test": Y + 1},
            "the test part of {path}: there is no class 3 in the training data",
        ),
        ({"X": X, "y": Y, "feature_names": list("ab")}, "{path}: 4 features need as many names; got 2"),
        ({"X": np.zeros(30, [("a", "f4")]), "y": Y}, "{path}: the inputs are no numbers: got records"),
        ({"X": X.astype("datetime64[s]"), "y": Y}, "{path}: the inputs are no numbers: got dates"),
        ({"X": X.astype(np.longdouble), "y": Y}, "{path}: the inputs are no numbers: got "),
    ],
)
def test_npz_files_that_cannot_be_used(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", message.replace("{path}", str(tmp_path / "a.npz")))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_files_that_are_cut_off_are_told(kept: float, save: Any, tmp_path: Path) -> None:
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    if save is np.save:
        save(path, X)
    else:
        save(path, X=X, y=Y)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    refused(path, "cut off", load_inputs)


class Harmful:
    """What calls `os.mkdir` when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", X=np.array([[Harmful()]], object), y=Y)
    np.save("a.npy", np.array([[Harmful()]], object))
    Path("a.pkl").write_bytes(pickle.dumps(Harmful()))
    refused(Path("a.npz"), "never loaded")
    refused(Path("a.npy"), "never loaded", load_inputs)
    refused(Path("a.pkl"), "is of an unknown kind; give an npz or npy file")
    assert not Path("harm").exists()


HUGE = (1 << 40, 1 << 20)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((30, 5), "and there are at most 1,088 bytes: it is damaged or cut off"),
        ((30, 3), "and more bytes follow: it is damaged"),
        (HUGE, "and there are at most 1,088 bytes"),
        ((-30, -4), "and there are at most 1,088 bytes"),
        ((1 << 62, 0, 1 << 62), ""),
    ],
)
def test_headers_that_lie_are_found_before_memory_is_taken(header: Any, message: str, tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "a.npz", {"X": npy_bytes(header, "<f8", X.tobytes()), "y": npy_bytes((30,), "<i8", b"")}
    )
    refused(path, message)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = bytes(1 << 24)
    path = write_npz(tmp_path / "a.npz", {"X": npy_bytes((1 << 24, 1), "u1", zeros)}, zipfile.ZIP_DEFLATED)
    packed = tmp_path / "t10k-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(b"\0\0\x08\x01\x01\0\0\0" + zeros))
    assert path.stat().st_size < 1 << 15
    assert load_inputs(path).inputs.nbytes == load_inputs(packed).inputs.nbytes == 1 << 24
    monkeypatch.setattr("gradflow.data.reading.physical_memory", lambda: float(1 << 23))
    for bomb in (path, packed):
        refused(bomb, "which is more than the memory of this machine", load_inputs)
    packed.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x01" + zeros))  # one number, then zeros without end
    refused(packed, "and more bytes follow", load_inputs)
    packed.write_bytes(gzip.compress(b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff"))
    refused(packed, "says that it holds 4294967295 x 4294967295 numbers of uint8", load_inputs)


def test_a_zip_that_is_encrypted_or_packed_in_another_way_is_told(tmp_path: Path) -> None:
    members = {"X": npy_bytes((30, 4), "<f8", X.tobytes())}
    refused(write_npz(tmp_path / "a.npz", members, zipfile.ZIP_BZIP2), "compressed in a way that NumPy does not use")
    path = write_npz(tmp_path / "b.npz", members)
    content = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(sign) + place] |= 1  # the flag of encryption
    path.write_bytes(content)
    refused(path, "encrypted")


# ---------------------------------------------------------------------- MNIST's and CIFAR-10's files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
def test_a_folder_of_idx_files_is_a_dataset_with_its_own_test_set(tmp_path: Path, dash: str, suffix: str) -> None:
    folder = tmp_path / "mnist"
    for part, n in (("train", 30), ("t10k", 9)):
        write_idx(folder / f"{part}-images{dash}idx3-ubyte{suffix}", IMAGES[:n])
        write_idx(folder / f"{part}-labels{dash}idx1-ubyte{suffix}", Y[:n].astype(np.uint8))
    data = load(folder)
    assert data.image_shape == (5, 7)
    assert data.inputs.dtype == np.uint8
    np.testing.assert_array_equal(data.inputs, IMAGES.reshape(30, -1))
    np.testing.assert_array_equal(data.targets, Y)
    assert data.test is not None
    np.testing.assert_array_equal(data.test.inputs, data.inputs[:9])
    assert len(data.split(0).train) == 24
    assert data.fingerprint == Dataset.from_arrays(IMAGES, Y, test=(IMAGES[:9], Y[:9])).fingerprint
    np.testing.assert_array_equal(load_inputs(folder).inputs, IMAGES[:9])
    for path in folder.glob("train-*"):
        path.unlink()
    refused(folder, "has test images only")


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_files_of_each_type_are_read(dtype: str, tmp_path: Path) -> None:
    values = np.array([[-3, 100], [7, 0]]).astype(dtype)
    found = load_inputs(write_idx(tmp_path / "any", values)).inputs
    np.testing.assert_array_equal(found, values)
    assert found.dtype.newbyteorder("=") == values.dtype
    data = Dataset.from_arrays(found, ["a", "b"])
    assert data.inputs.dtype.isnative


def test_a_folder_of_cifar_files_is_a_dataset_with_its_own_test_set(tmp_path: Path) -> None:
    for i in range(2):
        part = slice(8 * i, 8 * i + 8)
        (tmp_path / f"data_batch_{i + 1}.bin").write_bytes(cifar_bytes(COLOURS[part], Y[part]))
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes(COLOURS[16:], Y[16:20]))
    (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\nbird\n\n")
    data = load(tmp_path)
    assert data.image_shape == (32, 32, 3)
    assert data.classes == ("airplane", "automobile", "bird")
    np.testing.assert_array_equal(data.inputs, COLOURS[:16].reshape(16, -1))
    np.testing.assert_array_equal(data.targets, Y[:16])
    assert data.test is not None
    np.testing.assert_array_equal(data.test.inputs, COLOURS[16:].reshape(4, -1))


GOOD = {"train-images-idx3-ubyte": idx_bytes(IMAGES), "train-labels-idx1-ubyte": idx_bytes(Y.astype(np.uint8))}
IMAGE_FILE, LABEL_FILE = GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({IMAGE_FILE: GOOD[IMAGE_FILE][:-1]}, "says that it holds 30 x 5 x 7 numbers of uint8 (1,050 bytes), and"),
        ({IMAGE_FILE: GOOD[IMAGE_FILE] + b"!"}, "and more bytes follow: it is damaged"),
        ({IMAGE_FILE: GOOD[IMAGE_FILE][:9]}, "is cut off in its header"),
        ({IMAGE_FILE: b""}, "is not an IDX file: it starts with the bytes of nothing"),
        ({IMAGE_FILE: b"\0\0\x0a\x03" + GOOD[IMAGE_FILE][4:]}, "is not an IDX file: it starts with the bytes 00 00 0a"),
        ({IMAGE_FILE: b"\0\0\x08\x00"}, "is not an IDX file"),
        ({IMAGE_FILE: b"<html>"}, "is not an IDX file: it starts with the bytes 3c 68"),
        ({IMAGE_FILE: gzip.compress(GOOD[IMAGE_FILE])[:-20]}, "is damaged or cut off"),
        ({IMAGE_FILE: gzip.compress(GOOD[IMAGE_FILE])[:-6] + b"123456"}, "is damaged"),
        ({LABEL_FILE: idx_bytes(Y[:9].astype(np.uint8))}, f"{IMAGE_FILE} has 30 images, {LABEL_FILE} has 9 labels"),
        ({LABEL_FILE: None}, "has no targets"),
        ({IMAGE_FILE: None}, f"has {LABEL_FILE}, but no images for it: train-images-idx3-ubyte is missing"),
        ({"t10k-labels-idx1-ubyte": GOOD[LABEL_FILE]}, "but no images for it: t10k-images-idx3-ubyte is missing"),
        ({"t10k-images-idx3-ubyte": GOOD[IMAGE_FILE]}, "has no targets for its test part"),
        ({IMAGE_FILE: None, LABEL_FILE: None, "a": b"", "b": b""}, "(CIFAR-10's); there are: a, b"),
        ({IMAGE_FILE: None, LABEL_FILE: None}, "(CIFAR-10's); there are: none"),
        ({IMAGE_FILE: None, LABEL_FILE: None, "data_batch_1": b"\x80"}, "data_batch_1 is a pickle"),
        ({IMAGE_FILE: None, LABEL_FILE: None, "data_batch_1.bin": bytes(3072)}, "has 3,072 bytes; a file of CIFAR"),
        ({IMAGE_FILE: None, LABEL_FILE: None, "data_batch_1.bin": b""}, "has 0 bytes; a file of CIFAR-10 has 3,073"),
        ({IMAGE_FILE: None, LABEL_FILE: None, "data_batch_1.bin": bytes(3073) + b"\n" * 3073}, "image 1 has the label"),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used(change: dict[str, bytes | None], message: str, tmp_path: Path) -> None:
    for name, content in {**GOOD, **change}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    refused(tmp_path, message)


# ---------------------------------------------------------------------- anything else


def test_what_is_not_a_file_of_data_is_told(tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", "none.npz does not exist")
    (tmp_path / "table.csv").write_text("1,2\n")
    refused(tmp_path / "table.csv", "is of an unknown kind; give an npz or npy file of NumPy's")
    (tmp_path / "empty.npz").touch()
    refused(tmp_path / "empty.npz", "is empty; give an npz")
    with pytest.raises(DataError, match=r"unknown dataset 'digts': .*; did you mean digits\?"):
        load("digts")
    for name in ("", "a\0b", "x" * 10_000):
        with pytest.raises(DataError, match="unknown dataset"):
            load(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is not a regular file")
    refused(Path("/dev/zero"), "is not a regular file")
    (tmp_path / "data_batch_1.bin").symlink_to("/dev/zero")
    refused(tmp_path, "is not a regular file")
    (tmp_path / "train-images-idx3-ubyte").symlink_to(tmp_path / "pipe")
    refused(tmp_path, "is not a regular file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    (tmp_path / "a.npz").chmod(0)
    refused(tmp_path / "a.npz", "cannot read")


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with some bytes changed, or a part cut out, doubled or cut off."""
    made = bytearray(content)
    first, last = sorted(chance.randrange(len(made) + 1) for _ in range(2))
    kind = chance.randrange(4)
    if kind == 0:
        for _ in range(chance.randrange(1, 9)):
            made[chance.randrange(len(made))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    elif kind == 1:
        del made[first:last]
    elif kind == 2:
        made[first:first] = made[first:last]
    else:
        del made[first:]
    return bytes(made)


MUTATIONS = int(os.environ.get("GRADFLOW_TEST_MUTATIONS", "150"))


@pytest.mark.parametrize("kind", ["npz", "compressed npz", "npy", "idx", "idx.gz", "bin"])
def test_mutated_files_give_an_error_of_ours_or_numbers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind.split()[-1]}"
    if "npz" in kind:
        save = np.savez_compressed if "compressed" in kind else np.savez
        save(path, X=X[:9], y=np.array(["a", "b", "c"] * 3), feature_names=list("abcd"))
    elif kind == "npy":
        np.save(path, X[:9])
    elif kind == "bin":
        path.write_bytes(cifar_bytes(COLOURS[:2], Y[:2]))
    else:
        content = idx_bytes(IMAGES[:9])
        path.write_bytes(gzip.compress(content) if kind == "idx.gz" else content)
    content, chance = path.read_bytes(), random.Random(0)
    refusals: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(MUTATIONS):
            path.write_bytes(mutated(content, chance))
            for way in (load, load_inputs):
                try:
                    way(path)
                except DataError as error:
                    refusals.append(str(error))
    assert len(refusals) > MUTATIONS
    assert all(told.isprintable() and len(told) < 1000 for told in refusals)
