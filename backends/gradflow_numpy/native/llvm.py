"""Compiles LLVM IR to machine code for this processor, and keeps the object files for later processes.

The cache is a folder of the user's, `gradflow` in $XDG_CACHE_HOME or ~/.cache, that nobody else can write to. An object
file is used only if it is whole and was made from the same source, by the same llvmlite, for the same processor.
Without such a folder, every process compiles again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DIGEST = hashlib.sha256().digest_size


class Library:
    """Compiled functions: `address(name)`. Its code stays in memory as long as the process."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

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
    llvm = _llvm()
    key = hashlib.sha256(repr((name, _source_hash(), llvm.llvm_version_info, _version(), processor())).encode())
    folder = _cache_folder()
    path = None if folder is None else folder / f"{name}-{key.hexdigest()[:32]}.o"
    code = None if path is None else _read(path)
    if code is None:
        code = _compile(make_ir())
        if path is not None:
            _write(path, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
    engine.finalize_object()
    library = Library(engine)
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
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def _version() -> str:
    import llvmlite

    return str(llvmlite.__version__)


@functools.cache
def _machine() -> Any:
    name, features = processor()
    return _llvm().Target.from_default_triple().create_target_machine(cpu=name, features=features, opt=2)


def _compile(ir: str) -> bytes:
    llvm, machine = _llvm(), _machine()
    module = llvm.parse_assembly(ir)
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


# ---------------------------------------------------------------------- the cache


@functools.cache
def _source_hash() -> str:
    text = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        text.update(file.read_bytes())
    from gradflow.backend import activations, erf  # whose formulas kernels are made of

    for module in (activations, erf):
        text.update(Path(str(module.__file__)).read_bytes())
    return text.hexdigest()


@functools.cache
def _cache_folder() -> Path | None:
    """The folder of the cache, or None if there is none that only this user can write to."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "gradflow"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError):
        return None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[_DIGEST:]
    return code if hashlib.sha256(code).digest() == data[:_DIGEST] else None


def _write(path: Path, code: bytes) -> None:
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(hashlib.sha256(code).digest() + code)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise
