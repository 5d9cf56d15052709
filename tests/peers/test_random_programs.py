"""Random programs agree with PyTorch: values, gradients, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")

from hypothesis import given  # noqa: E402
from random_programs import Program, assert_agrees, programs  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_random_programs_agree_with_pytorch(dtype: str, random_examples) -> None:
    @random_examples(300)
    @given(programs(dtype))
    def check(program: Program) -> None:
        assert_agrees(program)

    check()


def test_gradients_of_gradients_of_random_programs_agree_with_pytorch(random_examples) -> None:
    @random_examples(300)
    @given(programs("float64", smooth=True))
    def check(program: Program) -> None:
        assert_agrees(program, second=True)

    check()
