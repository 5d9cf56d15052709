"""Files that are whole or absent: written beside their place and renamed; read only if they are regular files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from typing import Any

Path = str | os.PathLike[str]
_PART = re.compile(r"\.gradflow-[0-9a-f]{16}\.part")
_RELATIVE = {os.open, os.stat, os.unlink} <= os.supports_dir_fd
"""Whether this system opens and renames files relative to an open folder, as POSIX does and Windows does not."""


def write_file(path: Path, content: bytes, folder: int | None = None) -> None:
    """Write a file such that at each moment, also after a crash, the old content or the new one is there as a whole.

    path: the file. With `folder`, it is a name in that folder.
    folder: the descriptor of an open folder (POSIX only): a folder that is moved or replaced by a link meanwhile does
    not redirect the write.

    The content is written to a new file beside it and synced to the disk, then the new file is renamed, and the folder
    is synced. The new file has the permissions of any new file. A link at `path` is replaced, and what it points to
    stays. An error leaves no file behind, unless the process is killed: see `remove_parts`. Raises OSError, which names
    the file, and so too if there is something at `path` that is no regular file.
    """
    path = os.fspath(path)
    head, name = os.path.split(path)
    if folder is not None and (head or not _RELATIVE):
        raise ValueError(f"relative to an open folder, a file is written by its name; got {path!r}")
    part = f".gradflow-{secrets.token_hex(8)}.part"
    try:
        with _opened(head, folder) as (prefix, where):
            _check_replaceable(prefix + name, where)
            try:
                with open(prefix + part, "xb", opener=_opener(os.O_CREAT, where)) as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(prefix + part, prefix + name, src_dir_fd=where, dst_dir_fd=where)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(prefix + part, dir_fd=where)
                raise
            if where is not None:
                _sync_folder(where)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from None


def read_file(path: Path, limit: int | None = None) -> bytes:
    """The content of a regular file.

    limit: the most bytes that it may have (default: any number).

    Raises ValueError, with one line that names the file, for a folder, a device, a pipe or a longer file; OSError where
    it cannot be read.
    """
    path = os.fspath(path)
    with open(path, "rb", opener=_opener(getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a regular file")
        content = file.read() if limit is None or status.st_size > limit else file.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise ValueError(f"{path} has more than {limit} bytes")
    return content


def remove_parts(folder: Path | int) -> list[str]:
    """Remove the files that `write_file` left in a folder when its process was killed; returns their names.

    folder: a path, or the descriptor of an open folder. No process may be writing a file there.
    """
    where = folder if isinstance(folder, int) else None
    prefix = "" if isinstance(folder, int) else os.path.join(os.fspath(folder), "")
    names = sorted(name for name in os.listdir(folder) if _PART.fullmatch(name))
    for name in names:
        os.unlink(prefix + name, dir_fd=where)
    return names


@contextlib.contextmanager
def _opened(head: str, folder: int | None) -> Iterator[tuple[str, int | None]]:
    """What goes before the names of files in a folder, and the descriptor of the folder, open inside the `with`."""
    if folder is not None:
        yield "", folder
    elif not _RELATIVE:
        yield os.path.join(head, ""), None
    else:
        where = os.open(head or os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield "", where
        finally:
            os.close(where)


def _opener(flags: int, where: int | None = None) -> Any:
    """An opener for `open` with more flags; a new file is never opened through a link."""
    if flags & os.O_CREAT:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    return lambda path, usual: os.open(path, usual | flags, 0o666, dir_fd=where)


def _check_replaceable(path: str, where: int | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path, dir_fd=where, follow_symlinks=False).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(errno.EEXIST, "there is something else than a regular file", path)


def _sync_folder(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
