"""Files that are whole or absent: written beside their place and renamed; read only if they are regular files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

FilePath = str | os.PathLike[str]
_PART = re.compile(r"\.gradflow-[0-9a-f]{16}\.part")
_RELATIVE = {os.open, os.rename, os.stat, os.unlink} <= os.supports_dir_fd
"""Whether files can be named relative to an open folder, as on POSIX."""


def write_file(path: FilePath, content: bytes | Iterable[bytes], folder: int | None = None) -> None:
    """Write a file such that at any moment, also after a crash, its old or its new content is there as a whole.

    path: the file; with `folder`, its name in that folder. content: all of it, or its parts one after another.
    folder: the descriptor of an open folder, on POSIX. If the folder is moved, or a link takes its place, the file is
    still written into it.

    The content goes to a new file beside it, which is synced to the disk and renamed; then the folder is synced. The
    file has the permissions of a new one (see umask). A link at `path` is replaced, and what it points to stays as it
    is. An error leaves no other file behind; a process that is killed may: see `remove_parts`.

    Raises OSError, which names the file, also for a folder, a device or a pipe at `path`; ValueError for a `path` of
    several parts with `folder`.
    """
    path = os.fspath(path)
    head, name = os.path.split(path)
    if folder is not None and head:
        raise ValueError(f"in an open folder, a file is written by its name; got {path!r}")
    beside = f".gradflow-{secrets.token_hex(8)}.part"
    try:
        with _opened(head, folder) as (prefix, where):
            _check_replaceable(prefix + name, where)
            try:
                with open(prefix + beside, "xb", opener=_opener("O_NOFOLLOW", where=where)) as file:
                    for part in [content] if isinstance(content, bytes) else content:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(prefix + beside, prefix + name, src_dir_fd=where, dst_dir_fd=where)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(prefix + beside, dir_fd=where)
                raise
            if where is not None:
                _sync_folder(where)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from None


def open_file(path: FilePath) -> BinaryIO:
    """A regular file, open for reading.

    Raises ValueError, with one line that names the file, for a folder, a device or a pipe; OSError where it cannot be
    opened.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = _opener("O_NONBLOCK", "O_NOCTTY")(name, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise ValueError(f"{os.fspath(path)} is not a regular file")
        return descriptor

    return open(path, "rb", opener=opener)


def read_file(path: FilePath, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises ValueError, with one line that names the file, for a longer file, a folder, a device or a pipe; OSError where
    it cannot be read.
    """
    with open_file(path) as file:
        content = file.read(min(os.fstat(file.fileno()).st_size, limit + 1))
    if len(content) > limit:
        raise ValueError(f"{os.fspath(path)} is too long: it has more than {limit} bytes")
    return content


def is_part(name: str) -> bool:
    """Whether this is the name of a file that `write_file` has not finished."""
    return _PART.fullmatch(name) is not None


def remove_parts(folder: FilePath | int) -> list[str]:
    """Remove the files that `write_file` left in a folder when its process was killed; returns their names.

    folder: a path, or the descriptor of an open folder. No process may be writing into it.
    """
    prefix, where = ("", folder) if isinstance(folder, int) else (os.path.join(folder, ""), None)
    names = sorted(name for name in os.listdir(folder) if is_part(name))
    for name in names:
        os.unlink(prefix + name, dir_fd=where)
    return names


@contextlib.contextmanager
def _opened(head: str, folder: int | None) -> Iterator[tuple[str, int | None]]:
    """What goes before the names of files in a folder, and the descriptor of the folder, which is open in the `with`.

    Without a descriptor, where files cannot be named relative to one, it is the path of the folder that goes before.
    """
    if folder is not None or not _RELATIVE:
        yield ("" if folder is not None else os.path.join(head, "")), folder
        return
    where = os.open(head or os.curdir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield "", where
    finally:
        os.close(where)


def _opener(*flags: str, where: int | None = None) -> Callable[[str, int], int]:
    """An opener for `open` that adds flags, where the system has them."""
    added = sum(getattr(os, flag, 0) for flag in flags)
    return lambda path, usual: os.open(path, usual | added, 0o666, dir_fd=where)


def _check_replaceable(path: str, where: int | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path, dir_fd=where, follow_symlinks=False).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(errno.EEXIST, "Something else than a regular file is there", path)


def _sync_folder(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # from network file systems that cannot sync a folder
            raise
