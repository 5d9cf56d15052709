"""Optimizer steps with normal momentum, and with momentum that has decayed to subnormal numbers."""

from __future__ import annotations

from typing import Any

import pytest

import gradflow as gf
from benchmarks.conftest import Measure

SIZE, STEPS = 100_000, 10


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("numbers", ["normal", "subnormal"])
def test_step_of_decayed_momentum(optimizer: str, numbers: str, measure: Measure) -> None:
    parameter = gf.nn.Parameter(gf.random.normal((SIZE,)))
    kinds: dict[str, Any] = {"SGD": lambda p: gf.optim.SGD(p, 0.01, momentum=0.9), "Adam": gf.optim.Adam}
    trained = kinds[optimizer]([parameter])
    parameter.grad = gf.ones((SIZE,))
    trained.step()
    state = trained.state_dict()
    for name, array in state["state"][0].items():
        if isinstance(array, gf.Tensor):
            state["state"][0][name] = array * {"normal": 1.0, "subnormal": 1e-41}[numbers]

    def start() -> None:
        trained.load_state_dict(state)
        parameter.grad = gf.zeros((SIZE,))

    name = f"{optimizer}, {numbers} numbers"
    measure(name, trained.step, size=str(SIZE), batch=1, steps=STEPS, setup=start, torch=None)
    assert gf.isfinite(parameter).all()
