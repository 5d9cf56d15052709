"""Each public function, class and method has an example in its docstring, which runs, and tells of its arguments."""

from __future__ import annotations

import doctest
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import gradflow as gf

PACKAGES = (
    "gradflow", "gradflow.nn", "gradflow.nn.functional", "gradflow.nn.init", "gradflow.optim",
    "gradflow.optim.schedules", "gradflow.random", "gradflow.data", "gradflow.training", "gradflow.testing",
)  # fmt: skip
METHODS_OF = (gf.Tensor, gf.nn.Module, gf.optim.Optimizer)
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


def is_collected(value: Any) -> bool:
    """Whether pytest collects the doctest where the docstring is: not for functions made from tables, or wrapped."""
    return inspect.isclass(value) or value.__globals__ is vars(importlib.import_module(value.__module__))


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if not is_collected(value)])
def test_examples_that_are_not_collected_run(name: str) -> None:
    doc = inspect.getdoc(PUBLIC[name]) or ""
    test = doctest.DocTestParser().get_doctest(doc, {"gf": gf, name.rpartition(".")[2]: PUBLIC[name]}, name, None, None)
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert report == []
