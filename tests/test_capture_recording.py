"""capture: what a recording notices besides the calls of one device, what it leaves behind, and when it is repeated."""

from __future__ import annotations

import contextlib
import gc
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from captured_steps import Step, as_it_is, held, make_training_of_a_layer

import gradflow as gf
from gradflow import optim
from gradflow.backend import ARRAY_FUNCTIONS
from gradflow.interception import opaque_call, recorders
from gradflow.replay import interception, reasons
from gradflow.replay.plan import Plan
from gradflow.replay.program import Program
from gradflow.replay.recorder import StepRecorder
from tests.devices import replays

pytestmark = pytest.mark.usefixtures("no_hooks_of_earlier_tests")


class Pair(NamedTuple):
    first: gf.Tensor
    second: gf.Tensor


# ---------------------------------------------------------------------- other devices and threads


@pytest.mark.parametrize("work", ["changes a tensor", "reads a value", "computes"])
def test_work_on_another_device_is_not_replayed(work: str) -> None:
    counter = gf.tensor([0.0], device="fake")

    def step(x: gf.Tensor) -> gf.Tensor:
        nonlocal counter
        if work == "changes a tensor":
            counter += 1.0
        elif work == "reads a value":
            return x * 2 if counter.item() < 3 else x * 3
        else:
            counter = counter + 1.0
        return x * 2

    captured = gf.capture(step)
    for i in range(5):
        if work == "reads a value":
            counter.copy_(gf.tensor([float(i)], device="fake"))
        assert captured(gf.ones(1)).tolist() == ([3.0] if work == "reads a value" and i >= 3 else [2.0])
        assert captured.status.startswith("also uses fake:0 (")
        assert f"{__file__}, line " in captured.status
    assert counter.item() == (4.0 if work == "reads a value" else 5.0)


def test_calls_on_another_device_by_another_thread_leave_it_replaying() -> None:
    other = gf.ones(2, device="fake")
    with ThreadPoolExecutor(1) as pool:
        captured = gf.capture(lambda x: x * 2 if pool.submit(lambda: other * 2).result() is not None else x)
        for _ in range(3):
            captured(gf.ones(1))
    assert replays(captured.status)


def test_other_threads_find_all_functions_when_a_recording_ends() -> None:
    backend = gf.get_backend("cpu")

    class Watched(dict[str, Any]):
        """The attributes of the backend; looks for a missing function after each change, as another thread may."""

        missing: ClassVar[list[str]] = []

        def look(self) -> None:
            self.missing += [name for name in ARRAY_FUNCTIONS if name not in self and not hasattr(type(backend), name)]

        def pop(self, *arguments: Any) -> Any:
            value = super().pop(*arguments)
            self.look()
            return value

        def __setitem__(self, name: str, value: Any) -> None:
            super().__setitem__(name, value)
            self.look()

    before = dict(vars(backend))
    backend.__dict__ = Watched(before)
    try:
        gf.capture(lambda x: x * 2)(gf.ones(2))
        assert Watched.missing == []
        assert vars(backend) == before
    finally:
        backend.__dict__ = before


# ---------------------------------------------------------------------- what a recording leaves behind


@pytest.mark.parametrize("when", [1, 40])
def test_an_interrupt_while_a_recording_begins_leaves_nothing_behind(
    when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = gf.get_backend("cpu")
    before, calls = dict(vars(backend)), itertools.count(1)
    intercepted = StepRecorder._intercepted

    def interrupt(*arguments: Any) -> Any:
        if next(calls) == when:
            raise KeyboardInterrupt
        return intercepted(*arguments)

    monkeypatch.setattr(StepRecorder, "_intercepted", interrupt)
    captured = gf.capture(lambda x: x * 2)
    with pytest.raises(KeyboardInterrupt):
        captured(gf.ones(2))
    assert vars(backend) == before
    assert interception._undo == []
    for _ in range(3):
        captured(gf.ones(2))
    assert replays(captured.status)


# ---------------------------------------------------------------------- inputs, arguments and results


@pytest.mark.parametrize("through", [as_it_is, gf.capture])
def test_an_input_that_required_a_gradient_before(through: Callable[[Step], Step]) -> None:
    x = gf.ones(3, requires_grad=True)
    (x * 2).sum().backward()
    x.requires_grad_(False)

    def step(x: gf.Tensor) -> None:
        x.requires_grad_(True)
        (x * 3).sum().backward()

    through(step)(x)
    assert held(x).tolist() == [5.0] * 3


@pytest.mark.parametrize("through", [as_it_is, gf.capture])
def test_a_step_that_fails_after_it_has_made_an_input_require_a_gradient(through: Callable[[Step], Step]) -> None:
    x = gf.ones(3)

    def step(x: gf.Tensor) -> None:
        x.requires_grad_(True)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        through(step)(x)
    assert x.requires_grad


def test_a_step_that_asks_whether_two_inputs_are_one_tensor() -> None:
    captured = gf.capture(lambda x, y, z: x * 2 if x is y else z * 3 if y is z else x + y + z)
    for _ in range(4):
        x, y = gf.ones(2), gf.full(2, 10.0)
        assert captured(x, x, y).tolist() == [2.0, 2.0]
        assert captured(x, y, y).tolist() == [30.0, 30.0]
        assert captured(x, y, gf.zeros(2)).tolist() == [11.0, 11.0]
    assert replays(captured.status)


def test_an_argument_whose_comparison_fails() -> None:
    p = gf.ones(3, requires_grad=True)

    class Parameters:
        __hash__ = object.__hash__

        def __eq__(self, other: object) -> bool:
            raise ArithmeticError

        def __iter__(self) -> Iterator[gf.Tensor]:
            return iter([p])

    @opaque_call
    def clip(parameters: Iterable[gf.Tensor]) -> gf.Tensor:
        return optim.clip_grad_norm_(parameters, 1.0)

    def step(x: gf.Tensor) -> gf.Tensor:
        (p * x).sum().backward()
        return clip(Parameters())

    captured = gf.capture(step)
    for _ in range(3):
        captured(gf.ones(3))
    assert captured.status.startswith("two recordings differ")


@pytest.mark.parametrize("when", [0, 1, 4])
def test_parameters_of_a_group_that_are_no_list(when: int) -> None:
    """The captured step raises what the plain step raises."""
    errors = []
    for through in (as_it_is, gf.capture):
        model, optimizer, step = make_training_of_a_layer()
        call = through(step)
        for _ in range(when):
            call(gf.ones((2, 3)))
        optimizer.param_groups[0]["params"] = (p for p in model.parameters())
        with pytest.raises(TypeError) as error:
            call(gf.ones((2, 3)))
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_a_report_that_fails_is_not_the_last() -> None:
    _, optimizer, _ = make_training_of_a_layer()
    group = optimizer.param_groups[0]
    hyperparameters = dict(group)

    def step(x: gf.Tensor) -> gf.Tensor:
        group.clear()
        with contextlib.suppress(KeyError):
            optimizer.param_groups  # noqa: B018
        group.update(hyperparameters)
        return x * x.sum().item()

    captured = gf.capture(step)
    captured(gf.ones(2))
    assert captured.status.startswith("reads a value (item)")


@pytest.mark.parametrize("result", [
    lambda x: Pair(x * 2, x * 3), lambda x: {"a": [OrderedDict(b=x * 2)]},
])  # fmt: skip
def test_results_of_other_classes_are_named(result: Step) -> None:
    captured = gf.capture(result)
    for _ in range(3):
        captured(gf.ones(2))
    assert re.match("returns an? (Pair|OrderedDict): return a tuple, list or dict$", captured.status)


def test_nan_as_an_argument_is_replayed() -> None:
    captured = gf.capture(lambda x: x * float("nan"))
    for _ in range(3):
        captured(gf.ones(2))
    assert replays(captured.status)


# ---------------------------------------------------------------------- reasons, and trying again


def test_the_names_in_reasons_are_functions_of_gradflow() -> None:
    """Otherwise a reason would name an internal function after a change of its name."""
    source = "".join(path.read_text() for path in Path(gf.__file__).parent.rglob("*.py"))
    defined = set(re.findall(r"\bdef (\w+)\(", source))
    assert {*reasons._INTERNAL, *reasons._PUBLIC_NAMES} <= defined


@pytest.mark.parametrize("period", [2, 3, 4])
def test_gradient_accumulation_is_replayed(period: int) -> None:
    def train_by_parts(through: Callable[[Step], Step]) -> tuple[Any, list[str]]:
        model, optimizer, _ = make_training_of_a_layer()
        call = through(lambda x: model(x).square().mean().backward())
        seen = []
        for i in range(40):
            if i % period == 0:
                optimizer.zero_grad()
            call(gf.full((2, 3), 1 + 0.01 * i))
            seen.append(getattr(call, "status", ""))
            if i % period == period - 1:
                optimizer.step()
        return [p.tolist() for p in model.parameters()], seen

    plain, (values, seen) = train_by_parts(as_it_is), train_by_parts(gf.capture)
    assert values == plain[0]
    assert all(map(replays, seen[10:]))


def test_the_status_of_calls_between_two_recordings_is_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """Gradients in more places than there are programs: some calls are replayed, and the others run normally."""
    tensors = [gf.ones(2, requires_grad=True) for _ in range(3)]
    recorded: list[bool] = []

    def step(x: gf.Tensor) -> None:
        recorded.append(bool(recorders))
        for w in tensors:
            (w * x).sum().backward()

    captured, normal = gf.capture(step), set()
    for i in range(400):
        for k, w in enumerate(tensors):
            if i % 8 & 1 << k:
                w.zero_grad()
        recorded.clear()
        captured(gf.ones(2))
        if recorded == [False]:
            normal.add(captured.status)
    assert normal == {"begins with gradients in more than 4 combinations of places"}
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [*normal]


def programs() -> set[int]:
    gc.collect()
    return {id(each) for each in gc.get_objects() if isinstance(each, Program)}


def test_a_plan_that_a_check_dropped_is_freed() -> None:
    flags, scale = {"double": True}, gf.ones(2)
    before = programs()
    captured = gf.capture(lambda x: x * 2 * scale if flags["double"] else x - scale, check=4)
    for _ in range(3):
        captured(gf.ones(2))
    assert len(programs()) == len(before) + 1
    flags["double"] = False
    with contextlib.suppress(RuntimeError):
        captured(gf.ones(2))
        pytest.fail("the check finds no difference")
    assert programs() <= before


def test_plans_may_be_dropped_while_another_thread_looks_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = gf.capture(lambda x: x * 2)
    plans = dict(zip(captured.__code__.co_freevars, captured.__closure__, strict=True))["plans"].cell_contents  # type: ignore[attr-defined]
    captured(gf.ones(1)), captured(gf.ones(2))
    monkeypatch.setattr(Plan, "drop_invalid", lambda self, call: plans.pop(next(iter(plans))))
    captured(gf.ones(3))
    assert len(plans) == 1
