"""`gradflow.files`: files that are whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import pytest

from gradflow import files
from gradflow.files import open_file, read_file, remove_parts, write_file

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and open folders are those of POSIX")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["relative", "by path"])
def naming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files named relative to an open folder, and by their paths as on Windows."""
    if request.param == "by path":
        monkeypatch.setattr(files, "_RELATIVE", False)
    elif not files._RELATIVE:
        pytest.skip("this system has no open folders")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------- writing


@pytest.mark.usefixtures("naming")
def test_a_file_is_written_and_replaced(in_folder: Path) -> None:
    for path in ("a", "./b", in_folder / "c", "d" * 255):
        for content in (b"first", b"", bytes(range(256)) * 9999):
            write_file(path, content)
            assert Path(path).read_bytes() == content
    assert {p.name for p in in_folder.iterdir()} == {"a", "b", "c", "d" * 255}


@posix
@pytest.mark.usefixtures("naming")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_a_new_file(in_folder: Path, umask: int, mode: int) -> None:
    Path("old").touch(0o400)
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            write_file(name, b"x")
            assert stat.S_IMODE(os.stat(name).st_mode) == mode
    finally:
        os.umask(before)


@posix
@pytest.mark.usefixtures("naming")
def test_a_link_is_replaced_and_its_target_stays(in_folder: Path) -> None:
    Path("target").write_bytes(b"target")
    for name, target in (("link", "target"), ("dangling", "nowhere"), ("loop", "loop")):
        os.symlink(target, name)
        write_file(name, b"new")
        assert not Path(name).is_symlink()
        assert Path(name).read_bytes() == b"new"
    assert Path("target").read_bytes() == b"target"
    assert not Path("nowhere").exists()


@posix
@pytest.mark.usefixtures("naming")
def test_what_is_no_regular_file_is_not_replaced(in_folder: Path) -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
    for name in ("folder", "pipe", "socket", "/dev/null"):
        mode = os.stat(name).st_mode
        with pytest.raises(FileExistsError, match=f"^\\[Errno 17\\] Something else .*: '{name}'$"):
            write_file(name, b"x")
        assert os.stat(name).st_mode == mode
    assert len(list(in_folder.iterdir())) == 3


@pytest.mark.usefixtures("naming")
def test_errors_name_the_file(in_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(repr(os.path.join("no", "file")))):
        write_file(os.path.join("no", "file"), b"x")
    Path("file").touch()
    with pytest.raises(NotADirectoryError, match=re.escape(repr(os.path.join("file", "x")))):
        write_file(os.path.join("file", "x"), b"x")
    with pytest.raises(OSError, match=r"'d{256}'"):
        write_file("d" * 256, b"x")
    assert [p.name for p in in_folder.iterdir()] == ["file"]


@posix
def test_a_folder_that_is_moved_still_gets_its_file(in_folder: Path) -> None:
    """And not the one that took its place, nor what a link in its place points to."""
    for name in ("mine", "other"):
        Path(name).mkdir()
    folder = os.open("mine", os.O_RDONLY)
    try:
        write_file("a", b"1", folder)
        os.rename("mine", "moved")
        os.symlink("other", "mine")
        write_file("a", b"2", folder)
        write_file("b", b"3", folder)
        for path in ("x/a", "../a", "/a"):
            with pytest.raises(ValueError, match=f"written by its name; got '{path}'"):
                write_file(path, b"x", folder)
    finally:
        os.close(folder)
    assert {p.name: p.read_bytes() for p in Path("moved").iterdir()} == {"a": b"2", "b": b"3"}
    assert not list(Path("other").iterdir())


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


class Faults:
    """Replaces the calls of `write_file` in a `with` and raises an error at one of them.

    calls: how many there were. renamed: whether the file was already in its place at the error.
    """

    def __init__(self, error: BaseException, at: int) -> None:
        self.error, self.at, self.calls, self.renamed = error, at, 0, False
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Faults:
        for name in ("open", "stat", "fsync", "replace"):
            self.patch.setattr(os, name, self.wrapped(getattr(os, name)))
        self.patch.setattr(files, "open", lambda *a, **k: File(self, open(*a, **k)), raising=False)  # noqa: SIM115
        return self

    def __exit__(self, *details: object) -> None:
        self.patch.undo()

    def call(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self.call()
            result = function(*arguments, **options)
            self.renamed |= function.__name__ == "replace"
            return result

        return wrapper


class File:
    """A file that fails halfway through writing, at flushing, or after closing."""

    def __init__(self, faults: Faults, file: BinaryIO) -> None:
        self.faults, self.file, self.fileno = faults, file, file.fileno

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.faults.call()
        self.file.write(content[len(content) // 2 :])

    def flush(self) -> None:
        self.faults.call()
        self.file.flush()

    def __enter__(self) -> File:
        return self

    def __exit__(self, *details: object) -> None:
        self.file.close()
        self.faults.call()


@posix
@pytest.mark.usefixtures("naming")
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), SystemExit(1)]
)
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failure_at_any_call_leaves_a_whole_file_and_no_other(
    in_folder: Path, error: BaseException, old: bytes | None
) -> None:
    before, at = open_descriptors(), 0
    while True:
        Path("file").unlink(missing_ok=True)
        if old is not None:
            Path("file").write_bytes(old)
        at += 1
        with contextlib.suppress(type(error)), Faults(error, at) as faults:
            write_file("file", b"new" * 1000)
        found = {p.name: p.read_bytes() for p in in_folder.iterdir()}
        assert found == ({"file": b"new" * 1000} if faults.renamed else {} if old is None else {"file": old})
        assert open_descriptors() == before
        if faults.calls < at:
            break
    assert at > 7  # of them, opening the folder and syncing it only where files are named relative to one
    assert faults.renamed


def test_an_error_names_the_file_and_not_its_part(in_folder: Path) -> None:
    for at in range(1, 8):
        with (
            pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: 'file'$"),
            Faults(OSError(errno.ENOSPC, "No space left on device", "x", None, "y"), at),
        ):
            write_file("file", b"x")


@posix
@pytest.mark.usefixtures("naming")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that is closed as garbage
def test_an_interrupt_at_any_line_leaves_a_whole_file_and_no_other(in_folder: Path) -> None:
    lines, outcomes, before = 0, set(), sys.gettrace()

    def tracer(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal countdown
        if frame.f_code.co_filename != files.__file__:
            return None
        if event == "line":
            countdown -= 1
            if countdown == 0:
                raise KeyboardInterrupt
        return tracer

    while True:
        Path("file").write_bytes(b"old")
        lines += 1
        countdown = lines
        sys.settrace(tracer)
        try:
            write_file("file", b"new")
            done = countdown > 0
        except KeyboardInterrupt:
            done = False
        finally:
            sys.settrace(before)
        ((name, content),) = ((p.name, p.read_bytes()) for p in in_folder.iterdir())
        assert name == "file"
        outcomes.add(content)
        if done:
            break
    assert outcomes == {b"old", b"new"}
    assert lines > 20


@posix
def test_a_folder_that_cannot_be_synced_is_no_error(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    write_file("file", b"x")
    assert Path("file").read_bytes() == b"x"


@posix
def test_the_order_is_write_sync_rename_sync_folder(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)

    def replace(*arguments: Any, **options: Any) -> None:
        done.append("rename")
        os.rename(*arguments, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_file("file", b"12345")
    assert done == [5, "rename", "folder"]


@posix
def test_a_part_is_not_opened_through_a_link(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * 2 * n)
    os.symlink("victim", ".gradflow-0000000000000000.part")
    with pytest.raises(FileExistsError, match="'file'"):
        write_file("file", b"x")
    assert not Path("victim").exists()


# ---------------------------------------------------------------------- several processes, and a kill

WRITER = """
import sys
from gradflow.files import write_file
for i in range(int(sys.argv[3])):
    write_file(sys.argv[1], sys.argv[2].encode() * (100_000 + i))
"""


def start(*arguments: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", WRITER, *map(str, arguments)], env=environment)


@posix
def test_a_limit_of_the_system_leaves_the_old_file(tmp_path: Path) -> None:
    """As a full disk, which tests cannot make; the limit is that of the size of a file."""
    code = """
import resource, sys
from gradflow.files import write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    write_file(sys.argv[1], bytes(100_000))
except OSError as error:
    print(error)
"""
    (tmp_path / "file").write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert out == f"[Errno {errno.EFBIG}] File too large: '{tmp_path / 'file'}'\n"
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.slow
@posix
def test_two_writers_of_one_file_never_tear_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"a" * 100_000)
    writers = [start(path, letter, 200) for letter in "ab"]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        content = read_file(path, 1 << 20)
        assert len(content) >= 100_000
        assert content in (b"a" * len(content), b"b" * len(content))
        reads += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads > 50
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@posix
def test_a_killed_writer_leaves_a_whole_file_and_parts_that_are_removed(tmp_path: Path) -> None:
    path, parts = tmp_path / "file", 0
    write_file(path, b"a" * 100_000)
    for i in range(10):
        writer = start(path, "b", 1_000_000)
        started, before = time.monotonic(), path.stat().st_ino
        while path.stat().st_ino == before and time.monotonic() < started + 60:  # until it has written once
            time.sleep(0.001)
        time.sleep(0.001 * i)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_bytes()
        assert len(content) >= 100_000
        assert content == b"b" * len(content)
        parts += len(remove_parts(tmp_path))
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert parts > 0  # else nothing was tested


@pytest.mark.parametrize("by", ["path", pytest.param("descriptor", marks=posix)])
def test_parts_are_removed_and_nothing_else(in_folder: Path, by: str) -> None:
    part, kept = ".gradflow-0123456789abcdef.part", {"file", ".gradflow-0123456789abcdef.part.txt", ".x.part"}
    for name in (part, *kept):
        Path(name).touch()
    if by == "path":
        assert remove_parts(in_folder) == [part]
    else:
        folder = os.open(in_folder, os.O_RDONLY)
        assert remove_parts(folder) == [part]
        os.close(folder)
    assert {p.name for p in in_folder.iterdir()} == kept


# ---------------------------------------------------------------------- reading


def test_a_file_is_read_up_to_the_limit(in_folder: Path) -> None:
    Path("file").write_bytes(b"12345")
    assert read_file("file", 5) == read_file(in_folder / "file", 1 << 40) == b"12345"
    with pytest.raises(ValueError, match=r"^file is too long: it has more than 4 bytes$"):
        read_file("file", 4)
    with pytest.raises(FileNotFoundError, match="'missing'"):
        read_file("missing", 5)


@posix
def test_only_regular_files_are_read(in_folder: Path) -> None:
    os.mkfifo("pipe")
    Path("file").write_bytes(b"x")
    os.symlink("file", "link")
    assert read_file("link", 1) == b"x"
    before = open_descriptors()
    for name in ("pipe", ".", "/dev/zero", "/dev/tty"):
        watchdog = threading.Timer(20, os._exit, [3])  # opening a pipe waits for a writer, if it is done naively
        watchdog.start()
        with pytest.raises(ValueError if name != "/dev/tty" else (ValueError, OSError), match=re.escape(name)):
            read_file(name, 10)
        watchdog.cancel()
    with pytest.raises(ValueError, match=r"^pipe is not a regular file$"):
        open_file("pipe")
    assert open_descriptors() == before
