"""Random training runs with graphs, on the emulated CuPy: a captured run has the bits of a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from captured_runs import RandomRun
from emulated_device import needs_compiler
from gradflow_cupy import kernels

import gradflow as gf

pytestmark = needs_compiler
hypothesis = pytest.importorskip("hypothesis")
given, strategies = hypothesis.given, hypothesis.strategies


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of infinities, which a scaler skips
def test_a_random_run_has_the_same_bits(
    cupy: Any, random_examples: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "THREADS", 32)  # the emulation takes time for each thread

    @random_examples(4)
    @given(seed=strategies.integers(0, 2**31))
    def check(seed: int) -> None:
        with gf.use_device("emulated"):
            assert RandomRun(seed, gf.capture).run(24) == RandomRun(seed).run(24)

    check()
