"""Random training runs: a captured run has the bits of a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from captured_runs import RandomRun

import gradflow as gf

hypothesis = pytest.importorskip("hypothesis")
given, strategies = hypothesis.given, hypothesis.strategies


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinities, which a scaler skips
def test_a_random_run_has_the_same_bits(random_examples: Callable[[int], Any]) -> None:
    @random_examples(12)
    @given(seed=strategies.integers(0, 2**31), device=strategies.sampled_from(["cpu", "cpu", "fake"]))
    def check(seed: int, device: str) -> None:
        with gf.use_device(device):
            assert RandomRun(seed, gf.capture).run(24) == RandomRun(seed).run(24)

    check()
