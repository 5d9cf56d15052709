"""The scalars that captured steps compute ahead are those that a step passes to its kernels, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import gradflow as gf
from gradflow import optim

MAKE: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: optim.Adam(p, lr=0.1, betas=(0.8, 0.99), weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, lr=0.1, betas=(0.8, 0.99), weight_decay=0.1),
    "AMSGrad": lambda p: optim.Adam(p, lr=0.1, amsgrad=True, eps=1e-3),
    "AMSGrad and decay": lambda p: optim.AdamW(p, lr=0.1, amsgrad=True, weight_decay=0.3),
}


class Kernels:
    """Stands for a backend: keeps the scalars, which are the last argument of a kernel."""

    def __init__(self) -> None:
        self.scalars: list[float] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **_: self.scalars.extend(arguments[-1])


class Flat(NamedTuple):
    backend: Any
    parameters: None = None
    gradients: None = None
    state: Any = dict.fromkeys(("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
    options: Any = {}  # noqa: RUF012


@pytest.mark.parametrize("name", MAKE)
def test_the_scalars_of_an_optimizer_are_those_of_its_update(name: str) -> None:
    optimizer: Any = MAKE[name]([gf.ones(2, requires_grad=True)])
    group = optimizer.param_groups[0]
    for step, rate in ((1, 0.1), (2, 0.3), (1000, 1e-5), (10**6, 0.0)):
        kernels: Any = Kernels()
        optimizer.update(Flat(kernels), group, rate, step, step == 1)
        assert [*optimizer._scalars(group, rate, step, step == 1)] == kernels.scalars


def test_only_the_class_that_defines_an_update_defines_its_scalars() -> None:
    """So a subclass with another update does not inherit them."""
    for cls in vars(optim).values():
        if isinstance(cls, type) and issubclass(cls, optim.Optimizer) and cls._scalars is not None:
            for each in cls.__mro__:
                assert ("update" in vars(each)) == ("_scalars" in vars(each))
