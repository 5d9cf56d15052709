"""The precision of products of float32: one setting for the process, which captured steps notice."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gradflow as gf
from tests.devices import replays


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    gf.set_matmul_precision("highest")


def test_it_is_highest_at_first() -> None:
    assert gf.get_matmul_precision() == "highest"


def test_threads_share_it() -> None:
    gf.set_matmul_precision("tf32")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(gf.get_matmul_precision).result() == "tf32"
        pool.submit(gf.set_matmul_precision, "highest").result()
    assert gf.get_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["high", "medium", "TF32", "", None, 32])
def test_another_precision_is_refused(precision: object) -> None:
    gf.set_matmul_precision("tf32")
    with pytest.raises(ValueError, match=r'the precision of products is "highest" or "tf32"; got ') as caught:
        gf.set_matmul_precision(precision)  # type: ignore[arg-type]
    assert ("PyTorch's" in str(caught.value)) == (precision in ("high", "medium"))
    assert gf.get_matmul_precision() == "tf32", "nothing has changed"


def test_the_cpu_multiplies_as_before() -> None:
    x = gf.tensor(np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32))
    before = (x @ x).numpy()
    gf.set_matmul_precision("tf32")
    assert np.array_equal((x @ x).numpy(), before)


def test_a_captured_step_is_recorded_for_each_precision() -> None:
    step = gf.capture(lambda x: x @ x)
    x = gf.ones((3, 3))
    seen = []
    for precision in ("highest", "tf32", "highest"):
        gf.set_matmul_precision(precision)
        for _ in range(3):
            step(x)
            seen.append(replays(step.status) or step.status)
    assert seen == (["recording"] * 2 + [True]) * 2 + [True] * 3
