"""Compiles LLVM IR to machine code for this processor, and keeps the object files for later processes.

The cache is the folder `gradflow` in $XDG_CACHE_HOME, or in ~/.cache. An object file is used only if it is whole, was
made from the same sources, by the same llvmlite, for the same processor, and nobody but the user can write to it or to
the folder. Files that were not used for a month are removed when one is added. Without such a folder, every process
compiles again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradflow.environment import delayed_interrupts, to_install

_DIGEST = hashlib.sha256().digest_size
_MONTH = 30 * 24 * 3600.0


class Library:
    """The functions of an object file, in memory as long as this object."""

    def __init__(self, code: bytes) -> None:
        llvm = _llvm()
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
        self._engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """The address of a function; KeyError if there is none of this name."""
        found = self._engine.get_function_address(name)
        if not found:
            raise KeyError(name)
        return int(found)


_libraries: list[Library] = []  # threads may run their code until the process ends


def compiled(name: str, make_ir: Callable[[], str]) -> Library:
    """The functions of an LLVM module, from the cache if possible.

    name: names the module in the cache. make_ir: makes its text, which depends only on the processor and on the sources
    of this package.
    """
    path = _path(name)
    code = None if path is None else _read(path)
    if code is None:
        code = object_code(make_ir())
        if path is not None:
            _write(path, code)
    library = Library(code)
    _libraries.append(library)
    return library


@functools.cache
def processor() -> tuple[str, str]:
    """LLVM's name of this processor, and its features, as LLVM takes them."""
    llvm = _llvm()
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def has(feature: str) -> bool:
    """Whether this processor has a feature, such as "avx2"."""
    return f"+{feature}" in processor()[1].split(",")


@functools.cache
def _llvm() -> Any:
    try:
        with delayed_interrupts():
            import llvmlite.binding as llvm
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ImportError(
            f"llvmlite, of the extra 'fast', cannot be imported ({reason}); {to_install('fast')}; or set "
            "GRADFLOW_FAST=0 to use NumPy's kernels"
        ) from error
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def version() -> str:
    """That of llvmlite. Raises ImportError, which says what to type, without it."""
    _llvm()
    import llvmlite

    return str(llvmlite.__version__)


def _machine() -> Any:
    """A new one: an engine takes it over."""
    name, features = processor()
    return _llvm().Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=2)


def object_code(ir: str) -> bytes:
    """The object file of an LLVM module's text."""
    llvm, machine = _llvm(), _machine()
    module = llvm.parse_assembly(ir)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


# ---------------------------------------------------------------------- the cache


def _path(name: str) -> Path | None:
    """Where the object file of a module is kept; None without a folder, or without the sources of kernels."""
    folder = _cache_folder()
    try:
        made_from = (name, _source_hash(), _llvm().llvm_version_info, version(), processor())
    except OSError:
        return None
    return None if folder is None else folder / f"{name}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:32]}.o"


@functools.cache
def _source_hash() -> str:
    from gradflow.backend import activations, erf  # whose formulas kernels are made of

    text = hashlib.sha256()
    for file in (*sorted(Path(__file__).parent.glob("*.py")), activations.__file__, erf.__file__):
        text.update(Path(str(file)).read_bytes())
    return text.hexdigest()


def _cache_folder() -> Path | None:
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "gradflow"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _is_private(folder.stat()) else None
    except (OSError, RuntimeError):  # there is no home, or it is read-only
        return None


def _is_private(found: os.stat_result) -> bool:
    """Whether a file or folder is the user's, and nobody else can write to it (on Windows, its place decides that)."""
    return os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read() if _is_private(os.fstat(file.fileno())) else b""
    except OSError:
        return None
    code = data[_DIGEST:]
    if hashlib.sha256(code).digest() != data[:_DIGEST]:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return code


def _write(path: Path, code: bytes) -> None:
    """Write a file at once, so that no process reads a part of it; an error leaves the folder as it was."""
    with contextlib.suppress(OSError):
        for each in path.parent.glob("*.o"):
            if each.stat().st_mtime < time.time() - _MONTH:
                each.unlink()
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=path.parent, suffix=".o", delete=False) as file:
        try:
            file.write(hashlib.sha256(code).digest() + code)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise
