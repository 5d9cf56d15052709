"""Reading numbers from files that may be anything: cut off, hostile, or of another kind than their name says."""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gradflow.data.inputs import DataError
from gradflow.environment import physical_memory
from gradflow.files import FilePath

Array = npt.NDArray[Any]

DEFLATED = 1032
"""The most bytes that one compressed byte becomes (the zlib manual, "Technical Details")."""

_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples as a file holds them, not yet checked.

    source: the file or folder, for messages.
    inputs: an array with the samples along its first axis. targets: one for each sample, or None.
    features: the names of the features, or (). names: of the classes or target columns, or ().
    unused: the names of the arrays in the file that are not used.

    >>> import os, tempfile
    >>> import numpy as np
    >>> from gradflow.data import load_inputs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "new.npz")
    ...     np.savez(path, X=np.ones((3, 2)))
    ...     samples = load_inputs(path)
    >>> samples.inputs.shape, samples.targets
    ((3, 2), None)
    """

    source: str
    inputs: Array
    targets: Array | None = None
    features: Sequence[str] = ()
    names: Sequence[str] = ()
    unused: Sequence[str] = ()


@contextlib.contextmanager
def reading(path: FilePath) -> Iterator[None]:
    """Inside a `with`, whatever goes wrong with the reading or content of a file raises DataError, which names it."""
    path = os.fspath(path)
    try:
        yield
    except DataError:
        raise
    except (EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged or cut off: {error}") from None
    except MemoryError:
        raise DataError(f"{path} needs more memory than there is") from None
    except OSError as error:  # also of a damaged gzip file
        what = f"cannot read {path}: {error.strerror}" if error.strerror else f"{path} is damaged: {error}"
        raise DataError(what) from None
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise DataError(str(error) if path in str(error) else f"{path} cannot be read: {error}") from None


def read_numbers(file: BinaryIO, path: FilePath, shape: Sequence[int], dtype: np.dtype[Any], most: int) -> Array:
    """Return the array of this shape and dtype whose bytes are the rest of a file.

    most: the bytes that there can be, by the size of the file.

    Raises DataError, before any memory is taken, for a shape that needs more; and if there are fewer or more bytes.
    """
    count = dtype.itemsize
    for n in shape:
        count *= n
    claim = f"{path} says that it holds {' x '.join(map(str, shape)) or 'one'} numbers of {dtype} ({count:,} bytes)"
    if min(shape, default=0) < 0 or count > most:
        raise DataError(f"{claim}, and there are at most {most:,} bytes: it is damaged or cut off")
    if count > physical_memory():
        raise DataError(f"{claim}, which is more than the memory of this machine")
    content = np.empty(count, np.uint8)
    view, done = content.data, 0
    while done < count:
        got = file.readinto(view[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not got:
            raise DataError(f"{claim}, and it ends after {done:,}: it is cut off")
        done += got
    if file.read(1):
        raise DataError(f"{claim}, and more bytes follow: it is damaged")
    return content.view(dtype).reshape(shape) if count else np.empty(shape, dtype)
