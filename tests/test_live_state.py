"""`gradflow.testing.live_state`: what a step changes is found among everything that is alive, and restored."""

from __future__ import annotations

from typing import Any

import pytest

import gradflow as gf
from gradflow.testing import live_state


def test_a_broken_object_is_left_out_and_others_are_found() -> None:
    class Broken:
        def state_dict(self) -> None:
            raise RuntimeError

        load_state_dict = state_dict

    class Counter:
        n = 0

        def state_dict(self) -> dict[str, int]:
            return {"n": self.n}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.n = state["n"]

    owners: list[Any] = [Broken(), Counter()]
    before = live_state.saved()
    owners[1].n = 7
    (changed,) = [each for each in before if each.changed()]
    assert changed.owner is owners[1]
    changed.restore()
    assert owners[1].n == 0


def test_a_module_is_restored_once_with_its_parts_in_the_same_memory(device: str) -> None:
    model = gf.nn.MLP([2, 3, 1])
    arrays = [id(p.array) for p in model.parameters()]
    before = live_state.saved()
    with gf.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    (changed,) = [each for each in before if each.changed()]
    assert changed.owner is model
    changed.restore()
    assert not changed.changed()
    assert [id(p.array) for p in model.parameters()] == arrays


@pytest.mark.slow
def test_the_saved_state_of_pytorch_is_no_part_of_the_optimizer() -> None:
    """PyTorch's optimizers keep the tensors that they load, and change them in place."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.dropout(layer(torch.ones(4, 2))).square().sum().backward()
        optimizer.step()

    step()
    before = live_state.saved()
    step()
    changed = [each for each in before if each.changed()]
    assert {type(each.owner).__name__ for each in changed} == {"Linear", "Adam", "_TorchDraws"}
    for _ in range(2):
        for each in changed:
            each.restore()
        assert not any(each.changed() for each in changed)
        assert optimizer.state[layer.weight]["step"].item() == 1
        step()
