"""The compiler of native code, and its cache."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from gradflow_numpy.native import kernels, llvm

posix = pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")


def module(number: int = 42) -> str:
    return f"define i64 @answer() {{ ret i64 {number} }}"


def answer(library: llvm.Library) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64)(library.address("answer"))())


def no_compiler() -> str:
    pytest.fail("compiled again")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gradflow"


def object_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


# ---------------------------------------------------------------------- what is kept


def test_a_kept_object_file_is_not_compiled_again(folder: Path) -> None:
    assert answer(llvm.compiled("m", module)) == 42
    assert object_file(folder).name.startswith("m-")
    assert answer(llvm.compiled("m", no_compiler)) == 42


@posix
def test_only_the_user_has_access_to_the_cache(folder: Path) -> None:
    llvm.compiled("m", module)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(object_file(folder).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: bytes(len(data)),
    ],
    ids=["empty", "a piece", "truncated", "longer", "a bit", "zeros"],
)
def test_a_damaged_file_is_compiled_again_and_replaced(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    llvm.compiled("m", module)
    path = object_file(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert answer(llvm.compiled("m", module)) == 42
    assert path.read_bytes() == whole
    assert answer(llvm.compiled("m", no_compiler)) == 42


def test_the_key_is_all_that_code_depends_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, features = llvm.processor()
    paths = [llvm._path("m"), llvm._path("n")]
    changes: dict[str, Any] = {
        "processor": lambda: ("other", features),
        "_source_hash": lambda: "other",
        "version": lambda: "other",
    }
    for attribute, change in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(llvm, attribute, change)
            paths.append(llvm._path("m"))
    monkeypatch.setattr(llvm, "processor", lambda: (name, features + ",+other"))
    paths.append(llvm._path("m"))
    assert len(set(paths)) == 6
    assert None not in paths


def test_a_change_of_a_source_changes_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "__file__", str(tmp_path / "llvm.py"))
    hashes = set()
    for name, text in [("llvm.py", "a"), ("llvm.py", "b"), ("other.py", "c")]:
        (tmp_path / name).write_text(text)
        hashes.add(llvm._source_hash.__wrapped__())
    assert len(hashes) == 3


# ---------------------------------------------------------------------- what is not used


@posix
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_not_used(folder: Path, mode: int) -> None:
    llvm.compiled("m", module)
    folder.chmod(mode)
    assert answer(llvm.compiled("m", lambda: module(7))) == 7
    llvm.compiled("n", module)
    assert len(list(folder.iterdir())) == 1


@posix
def test_a_file_that_others_can_write_to_is_not_used(folder: Path) -> None:
    llvm.compiled("m", module)
    object_file(folder).chmod(0o620)
    assert answer(llvm.compiled("m", lambda: module(7))) == 7
    assert stat.S_IMODE(object_file(folder).stat().st_mode) == 0o600


@posix
def test_a_folder_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(0o700)
    user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: user)
    assert answer(llvm.compiled("m", module)) == 42
    assert list(folder.iterdir()) == []


def test_without_a_folder_each_process_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert answer(llvm.compiled("m", module)) == 42
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert answer(llvm.compiled("m", lambda: module(7))) == 7


def test_without_sources_each_process_compiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sources() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(llvm, "_source_hash", no_sources)
    assert answer(llvm.compiled("m", module)) == 42
    assert answer(llvm.compiled("m", lambda: module(7))) == 7


def test_a_folder_is_in_the_home_unless_the_environment_names_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert llvm._cache_folder() == tmp_path / "home" / ".cache" / "gradflow"
    assert not (tmp_path / "relative").exists()


def test_a_cache_that_cannot_be_written_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llvm.compiled("m", module)

    def read_only(*_args: Any, **_options: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(llvm.tempfile, "NamedTemporaryFile", read_only)
    monkeypatch.setattr(os, "utime", read_only)
    assert answer(llvm.compiled("m", no_compiler)) == 42
    assert answer(llvm.compiled("n", module)) == 42


# ---------------------------------------------------------------------- writing


def test_an_interrupted_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_source: Any, _target: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llvm.compiled("m", module)
    assert list(folder.iterdir()) == []


def test_files_unused_for_a_month_are_removed_when_one_is_added(folder: Path) -> None:
    for name in ("used", "unused"):
        llvm.compiled(name, module)
    (folder / "note").touch()
    old = time.time() - 31 * 24 * 3600
    for path in folder.iterdir():
        os.utime(path, (old, old))
    llvm.compiled("used", no_compiler)
    llvm.compiled("new", module)
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["new", "note", "used"]


def test_threads_may_compile_the_same_module_at_once(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        libraries = list(pool.map(lambda _: llvm.compiled("m", module), range(8)))
    assert [answer(x) for x in libraries] == [42] * 8
    assert answer(llvm.compiled("m", no_compiler)) == 42
    object_file(folder)


_PROCESS = """
import ctypes, sys
from gradflow_numpy.native import kernels, llvm
llvm.processor()
print("ready", flush=True)
sys.stdin.readline()
for i in range(10):
    library = llvm.compiled(f"m{i}", lambda: "define i64 @answer() { ret i64 42 }")
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(library.address("answer"))() == 42
"""


@pytest.mark.slow
def test_processes_may_compile_the_same_modules_at_once(folder: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", _PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(list(folder.iterdir())) == 10
    for i in range(10):
        assert answer(llvm.compiled(f"m{i}", no_compiler)) == 42


# ---------------------------------------------------------------------- compiling


def test_a_library_has_only_its_functions(folder: Path) -> None:
    with pytest.raises(KeyError, match="question"):
        llvm.compiled("m", module).address("question")


def test_a_module_that_is_not_valid_is_an_error_and_not_kept(folder: Path) -> None:
    for text in ("define i64 @answer() { ret i32 1 }", "nonsense"):
        with pytest.raises(RuntimeError):
            llvm.compiled("m", lambda text=text: text)
    assert answer(llvm.compiled("m", module)) == 42


def test_each_library_has_its_own_functions(folder: Path) -> None:
    libraries = [llvm.compiled(f"m{i}", lambda i=i: module(i)) for i in range(5)]
    assert [answer(x) for x in libraries] == [0, 1, 2, 3, 4]


def test_a_library_that_is_dropped_does_not_harm_others() -> None:
    code = llvm.object_code(module())
    kept = llvm.Library(code)
    for _ in range(5):
        assert answer(llvm.Library(code)) == 42
    assert answer(kept) == 42
    llvm.object_code(module(1))


def test_code_calls_the_mathematics_of_the_system(folder: Path) -> None:
    text = """
    declare double @exp(double)
    define double @answer(double %x) {
      %y = call double @exp(double %x)
      ret double %y
    }"""
    function = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(llvm.compiled("m", lambda: text).address("answer"))
    assert function(0.0) == 1.0
    assert function(1.0) == pytest.approx(2.718281828459045, rel=1e-15)


def test_features_are_those_of_the_processor() -> None:
    name, features = llvm.processor()
    assert name
    given = features.split(",")
    assert all(x[0] in "+-" for x in given)
    assert llvm.has(next(x for x in given if x[0] == "+")[1:])
    assert not llvm.has("no such feature")


def test_a_kernel_may_have_the_name_of_a_function_of_the_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_GROUPS", {})

    @kernels.kernel("named", "rw")
    def exp(fn: Any, x: Any, out: Any, start: Any, stop: Any, _scratch: Any) -> None:
        with fn.loop(start, stop) as i:
            fn.store(fn.intrinsic("exp", fn.load(x + i * fn.size, fn.real)), out + i * fn.size)

    x = np.linspace(-3.0, 3.0, 7)
    out = np.zeros(7)
    kernels.launch(exp, x.dtype, 7, 10.0, x, out)
    np.testing.assert_allclose(out, np.exp(x), rtol=1e-15)
