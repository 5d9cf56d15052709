"""Every name of CuPy that the backend uses exists in the installed CuPy, and takes the keywords that it is given.

The names are read from the source of the backend, so that no list becomes stale. CuPy imports without a GPU.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import inspect
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import emulated_cupy
import gradflow_cupy
import host_kernels
import ml_dtypes
import numpy as np
import pytest
from gradflow_cupy import CupyBackend
from gradflow_cupy.backend import _WITH_PYTHON_FLOATS

from gradflow.backend import ARRAY_FUNCTIONS
from gradflow.dtypes import DTYPES

ROOTS = {"cupy": "cupy", "self.cupy": "cupy", "cupyx": "cupyx", "self.cupyx": "cupyx"}

CORE_CALLS: dict[str, set[str]] = {
    "asarray": {"dtype", "copy"},
    "empty": {"dtype"}, "zeros": {"dtype"}, "ones": {"dtype"}, "full": {"dtype"}, "arange": {"dtype"},
    "zeros_like": set(), "ones_like": set(), "where": set(), "matmul": {"out"}, "broadcast_to": {"shape"},
    "round": set(), "sum": {"axis", "keepdims"}, "prod": {"axis", "keepdims"}, "mean": {"axis", "keepdims"},
    "max": {"axis", "keepdims"}, "min": {"axis", "keepdims"}, "any": {"axis", "keepdims"},
    "all": {"axis", "keepdims"}, "argmax": {"axis", "keepdims"}, "argmin": {"axis", "keepdims"},
    "cumulative_sum": {"axis"}, "permute_dims": {"axes"}, "matrix_transpose": set(), "squeeze": {"axis"},
    "expand_dims": {"axis"}, "concat": {"axis"}, "stack": {"axis"}, "flip": {"axis"}, "take_along_axis": {"axis"},
}  # fmt: skip
"""How the core calls the array functions that the backend does not adapt and that are no ufuncs: the keywords."""


@pytest.fixture(scope="module")
def cupy() -> ModuleType:
    module: ModuleType = pytest.importorskip("cupy", reason="CuPy is not installed")
    return module


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def uses() -> dict[tuple[str, str], set[str]]:
    """For each (module, dotted name in it): the keywords of all its calls."""
    found: dict[tuple[str, str], set[str]] = {}
    for path in Path(gradflow_cupy.__path__[0]).glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        for node in ast.walk(tree):
            call = node if isinstance(node, ast.Call) else None
            name = dotted(call.func if call else node)
            if not call and (not isinstance(node, ast.Attribute) or id(node) in inner):
                continue
            for root, module in ROOTS.items():
                if name.startswith(root + ".") and name not in ROOTS:
                    keywords = found.setdefault((module, name.removeprefix(root + ".")), set())
                    keywords |= {k.arg for k in call.keywords if k.arg} if call else set()
    return found


def parameters(cupy: ModuleType, module: str, name: str) -> list[str] | None:
    """The parameters of a function; None if Python does not know them. AttributeError if there is no such name."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    try:
        return list(inspect.signature(found).parameters)
    except (TypeError, ValueError):
        return None


@pytest.mark.parametrize(("module", "name"), sorted(uses()), ids=lambda part: part)
def test_a_name_and_its_keywords(cupy: ModuleType, module: str, name: str) -> None:
    keywords = uses()[module, name]
    accepted = parameters(cupy, module, name)
    if accepted is not None:
        assert keywords <= set(accepted)
    elif name != "RawModule":
        assert not keywords, f"{name} is called with {keywords}, and its parameters are unknown"


def test_names_are_found_in_the_source() -> None:
    names = {name for _, name in uses()}
    assert {"RawModule", "matmul", "add.at", "cuda.Stream", "asnumpy"} <= names


@pytest.mark.parametrize("name", ARRAY_FUNCTIONS)
def test_array_functions(cupy: ModuleType, name: str) -> None:
    """A function copied from CuPy is a ufunc (positional operands), or takes the keywords that the core passes."""
    if name in vars(CupyBackend) or name in ("mean", "var", "std"):  # which are composed
        return
    function = getattr(cupy, name)
    if name in CORE_CALLS:
        assert CORE_CALLS[name] <= set(inspect.signature(function).parameters)
    else:
        assert isinstance(function, cupy.ufunc)


REALS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def _dtype(name: str) -> Any:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _loop(function: Any, *types: Any) -> Any:
    """The dtype of a result by CuPy's own rules, which need no GPU; `types` are dtypes, or float or int for numbers."""
    weaks = tuple(t if t in (float, int) else False for t in types)
    dtypes = tuple(np.dtype(t) for t in types)
    return function._ops._guess_routine_from_in_types(dtypes, weaks if any(weaks) else None).out_types[0]


@pytest.mark.parametrize("name", [n for n in ARRAY_FUNCTIONS if hasattr(np, n)])
def test_dtypes_of_results(cupy: ModuleType, name: str) -> None:
    """CuPy's ufuncs give NumPy's dtypes; with bfloat16 those of the emulation, which has its own tests."""
    function = getattr(cupy, name, None)
    if not isinstance(function, cupy.ufunc):
        return
    emulated = getattr(emulated_cupy.modules()["cupy"], name)
    for dtype in ("bool", *INTEGERS, *REALS):
        native = _dtype(dtype)
        others: list[Any] = [native] * (function.nin - 1)
        for rest in [others, *([[float], [int]] if others and dtype in REALS else [])]:
            operands = [np.ones(2, native), *(np.ones(2, t) if isinstance(t, np.dtype) else t(1) for t in rest)]
            try:
                expected = getattr(np, name)(*operands).dtype
            except TypeError:  # NumPy has no such function of this dtype
                continue
            if dtype == "bfloat16":
                moved = (emulated_cupy.ndarray(x) if isinstance(x, np.ndarray) else x for x in operands)
                expected = emulated(*moved).dtype
            assert _loop(function, native, *rest) == expected, (dtype, rest)


def test_what_knows_no_bfloat16(cupy: ModuleType) -> None:
    """Exactly the functions that the backend adapts."""
    half = _dtype("bfloat16")
    where = importlib.import_module("cupy._sorting.search")._where_ufunc
    assert _loop(where, np.dtype("bool"), half, half) == "float32"
    assert _loop(cupy._core.core._round_ufunc, half, np.dtype("int64")) == "float32"
    for name in ARRAY_FUNCTIONS:
        function = getattr(cupy, name, None)
        if isinstance(function, cupy.ufunc) and function.nin == 2 and "bit" not in name and "logical" not in name:
            known = any("E" in part for part in function.types)
            assert known == (name in _WITH_PYTHON_FLOATS), name


def test_dtypes(cupy: ModuleType) -> None:
    for name in DTYPES:
        if name != "bfloat16":
            assert cupy.dtype(getattr(cupy, name)).name == name


@pytest.mark.parametrize("name", [*ARRAY_FUNCTIONS, "array", "asnumpy", "ascontiguousarray"])
def test_the_emulation_has_the_same_parameters(cupy: ModuleType, name: str) -> None:
    ours = getattr(emulated_cupy.modules()["cupy"], name)
    if ours is None or isinstance(getattr(cupy, name), cupy.ufunc):
        return
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(getattr(cupy, name)).parameters)


@pytest.mark.parametrize("value", [0.5, -3, 2**63, True, np.float32(0.5), np.int32(7), np.uint64(9), np.bool_(1)])
def test_numbers_lie_in_memory_as_in_cupy(cupy: ModuleType, value: Any) -> None:
    """The emulation passes a number to a kernel as CuPy does; the memory after it is not zero."""
    number = importlib.import_module("cupy._core._scalar").CScalar(value)
    size = number.descr.itemsize
    found = host_kernels._slot(value).raw
    assert found[:size] == ctypes.string_at(number.ptr, size)
    assert 0 not in found[size:-1]


def test_the_extras_ask_for_the_cupy_that_was_read() -> None:
    """14.2 is the first to cache kernels of templates on disk; the emulation follows its rules."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [r for extra in project["optional-dependencies"].values() for r in extra if r.startswith("cupy")]
    assert len(asked) == 3
    assert all(">=14.2;" in requirement for requirement in asked)
