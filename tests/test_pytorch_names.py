"""The errors for PyTorch's names say what gradflow calls them."""

from __future__ import annotations

from functools import reduce

import pytest

import gradflow as gf
from gradflow.pytorch_names import FUNCTIONS, METHODS


@pytest.mark.parametrize(("name", "own"), FUNCTIONS.items())
def test_a_function_of_pytorch_is_missing_with_a_hint(name: str, own: str) -> None:
    assert callable(reduce(getattr, own.split("."), gf))
    assert not hasattr(gf, name)
    with pytest.raises(AttributeError, match=f"^module 'gradflow' has no attribute '{name}'; .* is gradflow.{own}$"):
        getattr(gf, name)


@pytest.mark.parametrize(("name", "own"), METHODS.items())
def test_a_method_of_pytorch_is_missing_with_a_hint(name: str, own: str) -> None:
    x = gf.ones(2)
    assert hasattr(x, own)
    assert not hasattr(x, name)
    assert not hasattr(gf.Tensor, name)
    with pytest.raises(AttributeError, match=f"^'Tensor' object has no attribute '{name}'; .* is Tensor.{own} in"):
        getattr(x, name)


def test_another_missing_name_is_pythons_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'gradflow' has no attribute 'nonsense'$"):
        _ = gf.nonsense  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"^'Tensor' object has no attribute 'nonsense'$"):
        _ = gf.ones(2).nonsense  # type: ignore[attr-defined]


def test_a_subclass_may_define_the_name() -> None:
    class Viewed(gf.Tensor):
        def view(self) -> str:
            return "a view"

    x = gf.ones(2)
    assert Viewed(x.array, x.backend).view() == "a view"


def test_the_names_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    assert [name for name in FUNCTIONS if not hasattr(torch, name)] == []
    assert [name for name in METHODS if not hasattr(torch.Tensor, name)] == []
