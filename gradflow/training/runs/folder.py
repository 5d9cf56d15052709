"""The folder of a run, which belongs to one run at a time; no file in it is ever half written.

The folder is held by a descriptor, and locked as long as it is held, so that two runs are never in one folder; a
process that is killed gives up its lock. Files are written through the descriptor, so a folder or a link that takes the
place of the folder gets none of them. A folder without results is removed, with the parents that were made for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradflow.files import is_part, remove_parts, write_file
from gradflow.training.runs.settings import SettingsError, check_unicode, read_config

CONFIG, CHECKPOINT, MODEL = "config.toml", "checkpoint.safetensors", "model.safetensors"
METRICS, CURVES, REPORT = "metrics.csv", "curves.png", "report.html"
"""The names of the files of a run."""


class RunFolder:
    """A folder that belongs to this process until the end of a `with`; `claim` and `reopen` make one.

    path: the folder. kept: whether it holds something worth keeping; if not, it is removed at the end.
    """

    def __init__(self, path: Path, made: list[Path], kept: bool = False, locks_needed: bool = False) -> None:
        self.path = path
        self.kept = kept
        self._made = made
        self._written: set[str] = set()
        self._absolute = path.absolute()
        self._descriptor = _lock(path, locks_needed)

    @classmethod
    def claim(cls, out: str | Path | None, default: str | Path) -> Self:
        """Return a new or empty folder, for a new run.

        out: the folder; it must be empty or not exist.
        default: used if `out` is None: the first of default-1, default-2, ... that does not exist.

        Raises SettingsError if the folder is used, or cannot be made.
        """
        if out is not None:
            return cls._claim(Path(out))
        for count in itertools.count(1):
            path = Path(f"{default}-{count}")
            if not os.path.lexists(path):
                with contextlib.suppress(_UsedError):  # by another run just now
                    return cls._claim(path)
        raise AssertionError("there is always a next number")

    @classmethod
    def _claim(cls, path: Path) -> Self:
        made: list[Path] = []
        try:
            refuse_used(path)
            for folder in [*reversed([p for p in path.parents if not p.exists()]), path]:
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    made.append(folder)
            alone = path in made
            made = made[:-1] if alone else made  # the last is removed by whoever locks it
            claimed = cls(path, [*made, path] if alone else made, locks_needed=not alone)
            remove_parts(claimed._absolute if claimed._descriptor is None else claimed._descriptor)
            if os.listdir(claimed._absolute):
                claimed._unlock()
                raise _UsedError(f"{path} is already used: another run was in it; choose a new folder")
        except BaseException as error:
            _remove(made)
            if isinstance(error, OSError):
                raise SettingsError(f"cannot write to {path}: {error.strerror or error}") from None
            raise
        return claimed

    @classmethod
    def reopen(cls, path: str | Path) -> Self:
        """Return the folder of a run, to go on with it, without what a killed run left half written.

        Raises SettingsError if another run is using the folder, or if it cannot be read.
        """
        path = Path(path)
        try:
            folder = cls(path, [], kept=True)
            remove_parts(path if folder._descriptor is None else folder._descriptor)
        except OSError as error:
            raise SettingsError(f"cannot use {path}: {error.strerror or error}") from None
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.kept:
            for name in self._written:
                with contextlib.suppress(OSError):
                    self.remove(name)
            if self._made[-1:] == [self.path] and not self.is_at_its_path():
                self._made.pop()
            _remove(self._made)
        self._unlock()

    def write(self, name: str, content: bytes) -> None:
        """Write a file into the folder, completely or not at all.

        Raises OSError, which names the file, if that fails or if the folder is no longer at its path.
        """
        self._check(name)
        try:
            write_file(name if self._descriptor is not None else self._absolute / name, content, self._descriptor)
        except OSError as error:
            raise OSError(f"cannot write {self.path / name}: {error.strerror or error}") from None
        self._written.add(name)
        self._check(name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name if self._descriptor is not None else self._absolute / name, dir_fd=self._descriptor)

    def _check(self, name: str) -> None:
        if not self.is_at_its_path():
            raise OSError(f"cannot write {self.path / name}: its folder was removed, or replaced by another one")

    def is_at_its_path(self) -> bool:
        """Return whether the folder is still where it was."""
        return self._descriptor is None or _is_at(self._descriptor, self._absolute)

    def _unlock(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _UsedError(SettingsError):
    """The folder is used."""


def refuse_used(path: str | Path) -> None:
    """Raise SettingsError if there is a file at this path, or a folder that is not empty, or if it is not text."""
    check_unicode(os.fspath(path), "out")
    path = Path(path)
    if path.is_dir():
        if not all(map(is_part, os.listdir(path))):  # of a run that was killed at once
            raise _UsedError(f"{path} is already used: it is a folder that is not empty; choose a new one")
    elif path.exists() or path.is_symlink():
        raise _UsedError(f"{path} is already used: it is a file; choose a new folder")


def unfinished_config(path: str | Path) -> dict[str, Any]:
    """Return the content of the config of a run that can go on; see `read_config`.

    Raises SettingsError if the folder is not that of a run, or if there is nothing left to do.
    """
    path = Path(path)
    if not path.exists():
        raise SettingsError(f"{path} does not exist; it must be the folder of a run")
    if not (path / CONFIG).exists():
        raise SettingsError(f"{path} is not the folder of a run: it has no {CONFIG}")
    content = read_config(path / CONFIG)
    result = content.get("result")
    if "data" not in content:
        raise SettingsError(f"{path} is of an earlier version, which saved no states; to repeat it: --config {path}")
    if "dataset" not in content["settings"]:
        raise SettingsError(f"{path / CONFIG} has no setting dataset, which the run needs to go on")
    if result is not None and not ("stopped" in result and (path / CHECKPOINT).exists()):
        raise SettingsError(f"{path} is finished; to repeat it: --config {path}")
    return content


def going_on(path: str | Path) -> str:
    """Return why the run in a folder has no result: "it is running", "it was killed"; "" if it has one."""
    if "result" in read_config(path):
        return ""
    try:
        descriptor = _lock(Path(path), needed=False)
    except _UsedError:
        return "it is running"
    if descriptor is None:
        return "it is running, or was killed"
    os.close(descriptor)
    return "it was killed"


def _lock(path: Path, needed: bool) -> int | None:
    """Return a descriptor of a folder, locked as long as it is open; None on systems that have no such thing.

    needed: whether a file system without locks is an error; a folder that was just made belongs to its maker anyway.
    """
    if os.name != "posix":
        return None
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _UsedError(f"{path} is already used: another run is writing to it") from None
        except OSError:
            if needed:
                raise _UsedError(f"{path} is on a file system without locks: choose a folder that is new") from None
        if not _is_at(descriptor, path):
            raise _UsedError(f"{path} is already used: another run has just removed it; try again")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the folder of this descriptor is at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _remove(folders: list[Path]) -> None:
    """Remove these folders, the last first, as far as they are empty."""
    while folders:
        with contextlib.suppress(OSError):
            folders.pop().rmdir()
