"""NumPy's files: `.npz` with inputs and targets by name, `.npy` with inputs. Nothing in them is ever unpickled."""

from __future__ import annotations

import os
import zipfile
from typing import Any, BinaryIO

import numpy as np

from gradflow.data.inputs import DataError, listed
from gradflow.data.reading import DEFLATED, Array, Samples, read_numbers, reading
from gradflow.files import FilePath, open_file

NAMES = {
    "inputs": ("x", "inputs", "data", "x_train"),
    "targets": ("y", "targets", "target", "labels", "y_train"),
    "test inputs": ("x_test",),
    "test targets": ("y_test",),
    "features": ("feature_names",),
    "names": ("classes", "target_names"),
}
"""The names that an array may have in an npz file, by what it is; upper and lower case are the same."""

NPZ_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
NPY_MAGIC = b"\x93NUMPY"

_SAVE = "save it with numpy.savez(file, X=inputs, y=targets)"


def is_npz(file: BinaryIO) -> bool:
    """Return whether a zip archive is an npz file, which holds arrays or nothing; others may be workbooks of Excel.

    Raises zipfile.BadZipFile for a file that is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    return not names or any(name.endswith(".npy") for name in names)


def read_npz(path: FilePath) -> tuple[Samples, Samples | None]:
    """Return the samples of an npz file, and its test part, if it has one.

    Raises DataError, which names the file and what is in it, if it has no inputs, two arrays that could be the same
    thing, arrays of Python objects, or is damaged.
    """
    source = os.fspath(path)
    with reading(path), open_file(path) as file, zipfile.ZipFile(file) as archive:
        size = os.fstat(file.fileno()).st_size
        there = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        found: dict[str, Array] = {}
        for what, names in NAMES.items():
            chosen = [name for name in there if name.lower() in names]
            if len(chosen) > 1:
                raise DataError(f"{source} has {listed(chosen)}, and only one of them can be the {what}: keep one")
            for name in chosen:
                found[what] = _member(archive, there[name], f"{name} in {source}", size)
    if "inputs" not in found:
        raise DataError(f"{source} has no array X, x, inputs, data or x_train; it has {listed(list(there))}: {_SAVE}")
    if "test targets" in found and "test inputs" not in found:
        raise DataError(f"{source} has y_test, but no x_test")
    features, names = _texts(found.get("features")), _texts(found.get("names"))
    unused = [name for name in there if not any(name.lower() in known for known in NAMES.values())]
    main = Samples(source, found["inputs"], found.get("targets"), features, names, unused)
    if "test inputs" not in found:
        return main, None
    return main, Samples(source, found["test inputs"], found.get("test targets"), features, names)


def read_npy(path: FilePath) -> Samples:
    """Return the inputs in an npy file. Raises DataError for arrays of Python objects and damaged files."""
    with reading(path), open_file(path) as file:
        return Samples(os.fspath(path), _array(file, os.fspath(path), os.fstat(file.fileno()).st_size))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, size: int) -> Array:
    """Return an array of an npz file of `size` bytes."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{name} is compressed in a way that NumPy does not use")
    most = min(info.file_size, DEFLATED * size if info.compress_type else size)
    with archive.open(info) as file:
        return _array(file, name, most)  # type: ignore[arg-type]


def _array(file: BinaryIO, name: str, most: int) -> Array:
    """Return the array whose header and numbers are the rest of a file, which can hold at most so many bytes."""
    form = np.lib.format
    try:
        version = form.read_magic(file)
        header = {(1, 0): form.read_array_header_1_0, (2, 0): form.read_array_header_2_0}[version]
        shape, columns_first, dtype = header(file)
    except KeyError:
        raise DataError(f"{name} holds records, or has a newer format of NumPy's: save numbers or text") from None
    except (EOFError, OSError):
        raise
    except Exception as error:  # NumPy's parser raises several kinds
        raise DataError(f"{name} is damaged or cut off, or no array of NumPy's: {error}") from None
    if dtype.hasobject:
        raise DataError(f"{name} holds pickled Python objects, which are never loaded: save numbers, or text as str")
    values = read_numbers(file, name, shape[::-1] if columns_first else shape, dtype, most)
    return values.T if columns_first else values


def _texts(names: Any) -> tuple[str, ...]:
    """Return an array of names as text; () for None."""
    if names is None:
        return ()
    return tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names.reshape(-1).tolist())
