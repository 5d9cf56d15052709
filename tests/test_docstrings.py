"""Each public function, class and method has an example in its docstring, which runs, and tells of its arguments."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import gradflow as gf

PACKAGES = (
    "gradflow", "gradflow.nn", "gradflow.nn.functional", "gradflow.nn.init", "gradflow.optim",
    "gradflow.optim.schedules", "gradflow.random", "gradflow.data", "gradflow.tables", "gradflow.training",
    "gradflow.onnx", "gradflow.sklearn", "gradflow.testing",
)  # fmt: skip
METHODS_OF = (gf.Tensor, *gf.nn.Module.__mro__[:3], *gf.optim.Optimizer.__mro__[:2])
"""The classes whose methods have examples of their own."""


def documented(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value) or callable(getattr(value, "__wrapped__", None))


def public() -> Iterator[tuple[str, Any]]:
    """The functions and classes by their first public names, then the methods of METHODS_OF."""
    seen: set[int] = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        names = getattr(module, "__all__", None) or [
            name for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == package
        ]  # fmt: skip
        for name in names:
            value = getattr(module, name)
            if documented(value) and id(value) not in seen:
                seen.add(id(value))
                yield f"{package}.{name}", value
    for cls in METHODS_OF:
        for name, value in vars(cls).items():
            if not name.startswith("_") and documented(value) and id(value) not in seen:
                yield f"{cls.__module__}.{cls.__name__}.{name}", value


PUBLIC = dict(public())


def examples(value: Any) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")


@functools.cache
def collected(module: str) -> set[str]:
    """The names of the docstrings with examples that pytest finds in a module."""
    return {test.name for test in doctest.DocTestFinder().find(importlib.import_module(module)) if test.examples}


@pytest.mark.parametrize("name", PUBLIC)
def test_there_is_an_example(name: str) -> None:
    assert examples(PUBLIC[name]), f"{name} needs an example in its docstring"


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_is_run(name: str) -> None:
    value = PUBLIC[name]
    assert f"{value.__module__}.{value.__qualname__}" in collected(value.__module__)


CLEAR = {"self", "x", "x1", "x2", "arrays", "tensor", "inputs", "options"}
"""Names of arguments that need no words."""
MADE_BY_GRADFLOW = {
    "gradflow.Tensor", "gradflow.nn.Parameter", "gradflow.nn.StepMemory", "gradflow.training.Run",
    "gradflow.testing.Agreement", "gradflow.testing.Counts", "gradflow.testing.FakeArray",
    "gradflow.testing.FakeBackend", "gradflow.testing.Transfers",
}  # fmt: skip
"""Classes that users do not call: their docstrings tell of the attributes that they read."""


def arguments(value: Any) -> set[str]:
    if inspect.isclass(value) and issubclass(value, Exception):
        return set()
    return set(inspect.signature(value).parameters) - CLEAR


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in MADE_BY_GRADFLOW])
def test_the_arguments_are_told(name: str) -> None:
    text = (inspect.getdoc(PUBLIC[name]) or "").partition(">>>")[0]
    if not re.search(r"[Aa]rguments (as|are those) (for|of)|[ ,]as for `", text):
        assert {argument for argument in arguments(PUBLIC[name]) if not re.search(rf"\b{argument}\b", text)} == set()
