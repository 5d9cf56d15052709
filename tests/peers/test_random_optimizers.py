"""Random histories of optimizers agree with PyTorch's: gradients, changed settings, saved states, new groups.

The bound is found as for random programs: the history runs in PyTorch in float64 a few times, with each parameter,
gradient and state array perturbed at random by a few roundings of the dtype under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from random_programs import PERTURBATION, PERTURBED_RUNS, ROUNDINGS, signs  # noqa: E402

import gradflow as gf  # noqa: E402
from gradflow import optim  # noqa: E402
from gradflow.testing import eps, host  # noqa: E402

SHAPES = [(), (3,), (2, 3), (70,), (0, 2)]
NAMES = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam"]
LARGE = {"float64": 1e3, "float32": 1e3, "float16": 30.0}
"""The scale of large gradients, whose squares do not overflow the dtype."""


def settings_of(draw: Any, name: str, dtype: str) -> dict[str, Any]:
    """Draw hyperparameters of an optimizer; the names are the same in PyTorch and gradflow."""

    def one_of(*options: Any) -> Any:
        return draw(st.sampled_from(options))

    # in float16 a tiny mean square becomes 0, and a small epsilon alone would decide the step
    small = [1e-2, 1e-3] if dtype == "float16" else [1e-8, 1e-3]
    chosen = {"lr": one_of(0.1, 0.01, 0.0), "weight_decay": one_of(0.0, 0.1)}
    if draw(st.booleans()):
        chosen["maximize"] = True
    if name == "SGD":
        chosen["momentum"] = one_of(0.0, 0.9)
        if chosen["momentum"] and draw(st.booleans()):
            chosen["nesterov"] = True
        else:
            chosen["dampening"] = one_of(0.0, 0.5)
    elif name == "RMSprop":
        chosen |= {"alpha": one_of(0.99, 0.5), "momentum": one_of(0.0, 0.9), "centered": one_of(False, True)}
        chosen["eps"] = one_of(*small)
    elif name == "Adagrad":
        chosen |= {"lr_decay": one_of(0.0, 0.1), "eps": one_of(*small)}
    else:
        chosen |= {"betas": one_of((0.9, 0.999), (0.0, 0.9), (0.5, 0.5)), "eps": one_of(*small)}
        if name in ("NAdam", "RAdam"):
            chosen["decoupled_weight_decay"] = one_of(False, True)
        else:
            chosen["amsgrad"] = one_of(False, True)
    return chosen


def changes_of(draw: Any, name: str) -> dict[str, Any]:
    """Draw a hyperparameter that may change during a history, whatever the others are."""
    options = {"lr": [0.02, 0.0], "weight_decay": [0.0, 0.01]}
    own: dict[str, dict[str, Any]] = {
        "SGD": {"dampening": [0.0]}, "RMSprop": {"alpha": [0.9]}, "Adagrad": {"lr_decay": [0.2]},
        "NAdam": {},  # PyTorch keeps the product of the earlier momenta
    }  # fmt: skip
    options |= own.get(name, {"betas": [(0.8, 0.9)]})
    key = draw(st.sampled_from(sorted(options)))
    return {key: draw(st.sampled_from(options[key]))}


@dataclass
class History:
    """An optimizer's class and settings, the shapes of its parameters, and its events."""

    dtype: str
    name: str
    settings: dict[str, Any]
    shapes: list[tuple[int, ...]]
    events: list[tuple[str, Any]]


@st.composite
def histories(draw: Any, dtype: str) -> History:
    """Draw histories of up to 12 events."""
    name = draw(st.sampled_from(NAMES))
    settings = settings_of(draw, name, dtype)
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    events: list[tuple[str, Any]] = []
    count = len(shapes)
    kinds = st.sampled_from(["normal", "large", "small", "zero", "constant", "none"])
    for _ in range(draw(st.integers(1, 12))):
        event = draw(
            st.sampled_from(["step", "step", "step", "step without zero_grad", "change", "reload", "group", "clip"])
        )
        if event.startswith("step"):
            events.append((event, [draw(kinds) for _ in range(count)]))
        elif event == "change":
            events.append((event, changes_of(draw, name)))
        elif event == "group":
            if count < 5:
                shape = draw(st.sampled_from(SHAPES))
                events.append((event, (shape, {"lr": draw(st.sampled_from([0.05, 0.1]))})))
                count += 1
        else:
            events.append((event, None))
    return History(dtype, name, settings, shapes, events)


def gradient(history: History, kind: str, shape: tuple[int, ...], event: int, parameter: int) -> np.ndarray | None:
    """Return the gradient of a parameter at an event, in the history's dtype."""
    if kind == "none":
        return None
    rng = np.random.default_rng([event, parameter])
    g = rng.normal(size=shape)
    if kind == "constant":  # nearly the same each time: its variance is lost in rounding
        g = np.full(shape, 0.7) * (1 + 4 * eps(history.dtype) * g)
    g = g * {"large": LARGE[history.dtype], "small": 1e-3, "zero": 0.0}.get(kind, 1.0)
    return np.asarray(g).astype(history.dtype)


class Ours:
    """A history, run in gradflow."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.parameters: list[Any] = []

    def parameter(self, shape: tuple[int, ...]) -> Any:
        self.parameters.append(gf.tensor(initial(self.history, shape, len(self.parameters)), requires_grad=True))
        return self.parameters[-1]

    def make(self, groups: list[Any], **settings: Any) -> Any:
        return getattr(optim, self.history.name)(groups, **settings)

    def add(self, p: Any, g: np.ndarray) -> None:
        (p * gf.tensor(g)).sum().backward()

    def clip(self) -> None:
        optim.clip_grad_norm_(self.parameters, 1.0)

    def after_step(self, optimizer: Any) -> None:
        pass

    def values(self) -> list[np.ndarray]:
        return [host(p) for p in self.parameters]


class Theirs(Ours):
    """A history, run in PyTorch in float64; `noise`: a seed, to perturb it by roundings."""

    def __init__(self, history: History, noise: int | None = None) -> None:
        super().__init__(history)
        self.size = 0.0 if noise is None else PERTURBATION[history.dtype] * eps(history.dtype)
        self.tiny = (
            0.0 if noise is None else PERTURBATION[history.dtype] * float(np.finfo(history.dtype).smallest_subnormal)
        )
        self.rng = torch.Generator().manual_seed(noise or 0)

    def perturb(self, x: Any) -> None:
        with torch.no_grad():
            x += (self.size * x.abs() + torch.where(x == 0, 0.0, self.tiny)) * signs(x, self.rng)

    def parameter(self, shape: tuple[int, ...]) -> Any:
        x = initial(self.history, shape, len(self.parameters)).astype("float64")
        self.parameters.append(torch.from_numpy(x).requires_grad_())
        return self.parameters[-1]

    def make(self, groups: list[Any], **settings: Any) -> Any:
        return getattr(torch.optim, self.history.name)(groups, foreach=False, **settings)

    def add(self, p: Any, g: np.ndarray) -> None:
        (p * torch.from_numpy(g.astype("float64"))).sum().backward()

    def clip(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)

    def after_step(self, optimizer: Any) -> None:
        for p in self.parameters:
            for x in (p, p.grad, *(v for k, v in optimizer.state.get(p, {}).items() if k != "step")):
                if x is not None:
                    self.perturb(x)
            for k, v in optimizer.state.get(p, {}).items():
                if k in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"):
                    v.abs_()

    def values(self) -> list[np.ndarray]:
        return [p.detach().numpy() for p in self.parameters]


def initial(history: History, shape: tuple[int, ...], index: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(index).normal(size=shape)).astype(history.dtype)


def live(history: History, library: Ours) -> list[list[np.ndarray]]:
    """Return the parameters after each event."""
    shapes = list(history.shapes)
    optimizer = library.make([library.parameter(shape) for shape in shapes], **history.settings)
    states = []
    for i, (event, what) in enumerate(history.events):
        if event.startswith("step"):
            if event == "step":
                optimizer.zero_grad()
            for k, (p, kind) in enumerate(zip(library.parameters, what, strict=True)):
                g = gradient(history, kind, shapes[k], i, k)
                if g is not None:
                    library.add(p, g)
            optimizer.step()
            library.after_step(optimizer)
        elif event == "change":
            optimizer.param_groups[0].update(what)
        elif event == "reload":
            saved = optimizer.state_dict()
            groups = [{"params": group["params"]} for group in optimizer.param_groups]
            optimizer = library.make(groups, **history.settings)
            optimizer.load_state_dict(saved)
        elif event == "group":
            shapes.append(what[0])
            optimizer.add_param_group({"params": [library.parameter(what[0])], **what[1]})
        else:
            library.clip()
        states.append([x.copy() for x in library.values()])
    return states


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """PyTorch's NAdam keeps its product of momenta in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_random_histories_of_optimizers_agree_with_pytorch(dtype: str, random_examples: Any) -> None:
    @random_examples(300)
    @given(histories(dtype))
    def check(history: History) -> None:
        expected = live(history, Theirs(history))
        noisy = [live(history, Theirs(history, seed)) for seed in range(PERTURBED_RUNS)]
        got = live(history, Ours(history))
        largest = [np.abs(initial(history, p.shape, k)).astype("float64") for k, p in enumerate(expected[-1])]
        for i, (ours, reference, *others) in enumerate(zip(got, expected, *noisy, strict=True)):
            for k, (x, y, *moved) in enumerate(zip(ours, reference, *others, strict=True)):
                where = f"parameter {k} after event {i}"
                assert np.isfinite(x).all(), f"{where} is {x}"
                largest[k] = np.maximum(largest[k], np.abs(y))
                with np.errstate(invalid="ignore"):
                    apart = np.max([np.abs(z - y) for z in moved], axis=0, initial=0.0)
                    bound = ROUNDINGS * (
                        apart + PERTURBATION[dtype] * eps(dtype) * largest[k] + np.finfo(dtype).smallest_subnormal
                    )
                # if rounding makes the variance negative in PyTorch too, check only that the result is finite
                wrong = ~((np.abs(x - y) <= bound) | ~np.isfinite(bound))
                assert not wrong.any(), f"{where} is {x[wrong]} for {y[wrong]}, more than {bound[wrong]} apart"

    check()
