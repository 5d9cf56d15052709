"""Modes as `with` and as decorators, of functions, generators, coroutines and asynchronous generators."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import inspect
import math
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.autograd.grad_mode import FAST, OBSERVED, current_observer, grad_enabled
from gradflow.testing import SyncError, forbid_sync
from gradflow.testing.counting import _forbidden
from tests.devices import replays


class Case:
    """A mode: how to make it, and how to tell that it is active."""

    def __init__(self, make: Callable[[], Any], holds: Callable[[], Any], opposite: Callable[[], Any] | None) -> None:
        self.make, self.holds, self.opposite = make, holds, opposite


MODES = {
    "no_grad": Case(gf.no_grad, lambda: not gf.is_grad_enabled(), gf.enable_grad),
    "enable_grad": Case(gf.enable_grad, gf.is_grad_enabled, gf.no_grad),
    "use_device": Case(lambda: gf.use_device("fake:1"), lambda: str(gf.current_device()) == "fake:1", None),
    "use_dtype": Case(lambda: gf.use_dtype("float64"), lambda: gf.current_dtype() is gf.float64, None),
    "detect_anomaly": Case(gf.detect_anomaly, lambda: current_observer.get() is not None, None),
    "forbid_sync": Case(forbid_sync, _forbidden.get, lambda: forbid_sync(False)),
}


@pytest.fixture(params=MODES)
def case(request: pytest.FixtureRequest) -> Any:
    """A mode, in a context where it is not active."""
    found = MODES[request.param]
    if request.param == "enable_grad":
        with gf.no_grad():
            yield found
    else:
        yield found


def test_a_mode_holds_while_a_function_runs(case: Case) -> None:
    @case.make()
    def f(x: int, *, y: int = 2) -> tuple[Any, int, int]:
        """Its docstring."""
        return case.holds(), x, y

    assert f(1, y=3) == (True, 1, 3)
    assert f(1) == (True, 1, 2)
    assert (f.__name__, f.__doc__) == ("f", "Its docstring.")
    assert not case.holds()


def test_a_mode_holds_while_the_body_of_a_generator_runs_and_not_between(case: Case) -> None:
    log: list[Any] = []

    @case.make()
    def numbers(start: int) -> Any:
        try:
            log.append(case.holds())
            got = yield start
            log.append((case.holds(), got))
            try:
                yield start + 1
            except KeyError as error:
                log.append((case.holds(), repr(error)))
            yield start + 2
            return "the end"
        finally:
            log.append(("closed", case.holds()))

    assert inspect.isgeneratorfunction(numbers)
    body = numbers(10)
    assert not log
    assert next(body) == 10
    assert not case.holds()
    assert body.send("sent") == 11
    assert not case.holds()
    assert body.throw(KeyError("thrown")) == 12
    assert not case.holds()
    with pytest.raises(StopIteration) as end:
        next(body)
    assert end.value.value == "the end"
    assert not case.holds()
    assert log == [True, (True, "sent"), (True, "KeyError('thrown')"), ("closed", True)]

    log.clear()
    body = numbers(0)
    next(body)
    body.close()
    assert log == [True, ("closed", True)]
    assert not case.holds()
    body = numbers(0)
    next(body)
    with pytest.raises(ValueError, match="out"):
        body.throw(ValueError("out"))
    assert not case.holds()
    body = numbers(0)
    next(body)
    del body
    gc.collect()
    assert log[-1] == ("closed", True)
    assert not case.holds()
    assert list(numbers(5)) == [5, 6, 7]


def test_a_mode_holds_while_coroutines_and_asynchronous_generators_run(case: Case) -> None:
    log: list[Any] = []

    @case.make()
    async def pause(name: str) -> str:
        log.append(case.holds())
        await asyncio.sleep(0)
        log.append(case.holds())
        return name

    @case.make()
    async def numbers(n: int) -> Any:
        try:
            for i in range(n):
                await asyncio.sleep(0)
                log.append(case.holds())
                try:
                    log.append((yield i))
                except KeyError as error:
                    log.append((case.holds(), repr(error)))
        finally:
            await asyncio.sleep(0)
            log.append(("closed", case.holds()))

    async def main() -> None:
        assert await pause("a") == "a"
        assert not case.holds()
        assert await asyncio.gather(pause("b"), pause("c")) == ["b", "c"]
        assert all(log)
        assert len(log) == 6
        log.clear()
        async for _ in numbers(2):
            assert not case.holds()
        assert log == [True, None, True, None, ("closed", True)]
        log.clear()
        body = numbers(3)
        assert await body.asend(None) == 0
        assert await body.asend("sent") == 1
        assert not case.holds()
        assert await body.athrow(KeyError("thrown")) == 2
        await body.aclose()
        assert log == [True, "sent", True, (True, "KeyError('thrown')"), True, ("closed", True)]
        assert not case.holds()
        with pytest.raises(StopAsyncIteration):
            await body.asend(None)

    assert inspect.iscoroutinefunction(pause)
    assert inspect.isasyncgenfunction(numbers)
    asyncio.run(main())
    by_hand = pause("d")
    by_hand.send(None)
    assert not case.holds()  # no mode leaks to code that drives a coroutine in its own context
    by_hand.close()


def test_one_object_is_entered_again_nested_and_by_several_threads_and_tasks(case: Case) -> None:
    mode = case.make()
    for _ in range(2):
        with mode, mode:
            assert case.holds()
            with mode:
                assert case.holds()
            assert case.holds()
        assert not case.holds()

    @mode
    def f(n: int) -> bool:
        return case.holds() and (n == 0 or f(n - 1)) and case.holds()

    assert f(3)
    assert not case.holds()

    async def task(pauses: int) -> None:
        with mode:
            for _ in range(pauses):
                await asyncio.sleep(0)
                assert case.holds()
        assert not case.holds()

    async def main() -> None:
        await asyncio.gather(task(1), task(4), task(2))

    asyncio.run(main())
    context, inside, leave = contextvars.copy_context(), threading.Event(), threading.Event()

    def other_thread() -> None:
        with mode:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=context.run, args=(other_thread,))
    thread.start()
    inside.wait(10)
    with mode:
        leave.set()
        thread.join()
        assert case.holds()
    assert not case.holds()


def test_what_a_body_does_to_its_mode_stays_with_it(case: Case) -> None:
    if case.opposite is None:
        pytest.skip("this mode has no opposite")
    opposite = case.opposite

    @case.make()
    def body() -> Any:
        with opposite():
            yield case.holds()
            yield case.holds()
        yield case.holds()

    steps = body()
    assert [(next(steps), case.holds()) for _ in range(3)] == [(False, False), (False, False), (True, False)]


def test_a_body_pauses_inside_the_mode_that_decorates_it(case: Case) -> None:
    mode = case.make()

    @mode
    def body() -> Any:
        with mode, mode:
            yield case.holds()
        yield case.holds()

    steps = body()
    assert [(bool(next(steps)), bool(case.holds())) for _ in range(2)] == [(True, False)] * 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_mode_of_a_decorated_body_holds_while_it_pauses(case: Case, asynchronous: bool) -> None:
    other = gf.use_device("fake:1") if case.make is not MODES["use_device"].make else forbid_sync()

    def state() -> tuple[Any, ...]:
        return (
            gf.is_grad_enabled(),
            gf.current_dtype(),
            str(gf.current_device()),
            current_observer.get(),
            _forbidden.get(),
        )

    @types.coroutine
    def pause() -> Any:
        yield state()

    if asynchronous:

        @case.make()
        async def body() -> None:
            with other, case.make():
                await pause()
                await pause()
            await pause()
    else:

        @case.make()
        def body() -> Any:
            with other, case.make():
                yield state()
                yield state()
            yield state()

    steps, before = body(), state()
    inside = []
    for _ in range(3):
        inside.append(steps.send(None))
        assert state() == before
    assert inside[0] == inside[1] != inside[2] != before
    steps.close()


def test_a_mode_is_closed_in_another_context_than_entered(case: Case) -> None:
    def without_decorator() -> Any:
        with case.make():
            yield

    steps = without_decorator()
    contextvars.copy_context().run(next, steps)
    steps.close()
    assert not case.holds()


def test_modes_left_in_another_order_than_entered() -> None:
    def without_decorator() -> Any:
        with gf.no_grad():
            yield

    steps = without_decorator()
    next(steps)
    with gf.use_device("fake"), gf.enable_grad():
        steps.close()
        assert gf.is_grad_enabled()
        assert gf.current_device().type == "fake"
    assert gf.is_grad_enabled()
    assert gf.current_device().type == "cpu"
    elsewhere = without_decorator()
    contextvars.copy_context().run(next, elsewhere)
    with gf.no_grad():
        elsewhere.close()  # in another context, whose stack has no entry of the mode
        assert not gf.is_grad_enabled()
    assert gf.is_grad_enabled()


@pytest.mark.parametrize("mode", [gf.no_grad, gf.enable_grad, gf.detect_anomaly, forbid_sync])
def test_modes_without_arguments_decorate_without_parentheses(mode: Any) -> None:
    @mode
    def f(x: int) -> Any:
        return x, gf.is_grad_enabled(), current_observer.get() is not None, _forbidden.get()

    with gf.no_grad():
        expected = {
            gf.no_grad: (1, False, False, False),
            gf.enable_grad: (1, True, False, False),
            gf.detect_anomaly: (1, False, True, False),
            forbid_sync: (1, False, False, True),
        }
        assert f(1) == expected[mode]


def test_a_mode_refuses_what_it_cannot_decorate() -> None:
    with pytest.raises(TypeError, match="use_device takes a device, also as a decorator"):
        gf.use_device(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decorates functions, generators and coroutines"):
        gf.no_grad(type("Model", (), {}))
    with pytest.raises(TypeError, match="decorates functions"):
        gf.no_grad(1)  # type: ignore[type-var]


def test_nothing_is_recorded_in_a_generator_and_gradients_are_outside() -> None:
    w = gf.ones(2, requires_grad=True)

    @gf.no_grad()
    def predictions() -> Any:
        for x in (1.0, 2.0):
            yield w * x

    for y in predictions():
        assert not y.requires_grad
        assert (w * 1.0).requires_grad


def test_detect_anomaly_checks_a_generator_at_each_pause_and_knows_its_earlier_lines() -> None:
    inverse = gf.operation("inverse", lambda F, x: F.add(x, x), lambda F, g, _out, _x: F.multiply(g, math.inf))

    @gf.detect_anomaly
    def steps() -> Any:
        x = gf.tensor([0.0], requires_grad=True)
        y = inverse(x)  # the line to blame
        yield y
        y.sum().backward()
        yield "too late"

    body = steps()
    next(body)
    with pytest.raises(gf.NonFiniteError, match="the line to blame"):
        next(body)

    @gf.detect_anomaly
    def at_once() -> Any:
        yield gf.tensor([1.0]) * math.inf

    with pytest.raises(gf.NonFiniteError, match="multiply gave inf"):
        next(at_once())


def test_a_generator_of_detect_anomaly_follows_the_grad_mode_of_its_caller() -> None:
    @gf.detect_anomaly
    def recording() -> Any:
        while True:
            yield gf.is_grad_enabled()

    body = recording()
    found = []
    for mode in (gf.no_grad(), contextlib.nullcontext(), gf.no_grad(), gf.enable_grad()):
        with mode:
            found.append(next(body))
    assert found == [False, True, False, True]


def test_enable_grad_takes_no_fast_path_under_an_observer_that_came_later() -> None:
    @gf.enable_grad
    def body() -> Any:
        while True:
            yield grad_enabled.get()

    steps = body()
    assert next(steps) is FAST
    with gf.detect_anomaly():
        assert next(steps) is OBSERVED
        assert gf.is_grad_enabled()
    assert next(steps) is FAST


def test_forbid_sync_decorates() -> None:
    @forbid_sync
    def reads(x: gf.Tensor) -> Any:
        yield x * 2
        yield x.item()

    body = reads(gf.tensor(1.0))
    assert next(body).item() == 2.0
    with pytest.raises(SyncError):
        next(body)
    assert gf.tensor(1.0).item() == 1.0


def test_use_dtype_is_the_dtype_of_what_is_made_without_one(device: str) -> None:
    whole = gf.tensor([1, 4], dtype="int64")
    with gf.use_dtype("float64") as dtype:
        assert dtype is gf.current_dtype() is gf.float64
        model = gf.nn.Sequential(gf.nn.Linear(2, 3), gf.nn.LayerNorm(3), gf.nn.PiecewiseLinear([[0.0, 0.5, 1.0]] * 3))
        made = {
            "tensor": gf.tensor([1, 2.5]), "zeros": gf.zeros(2), "eye": gf.eye(2), "full": gf.full(2, 1.0),
            "linspace": gf.linspace(0, 1, 3), "arange": gf.arange(0.5), "asarray": gf.asarray(1.0),
            "one_hot": gf.one_hot(whole, 5), "sqrt": gf.sqrt(whole), "mean": gf.mean(whole), "divide": whole / 2,
            "two": whole / whole, "float": whole.astype(float), "uniform": gf.random.uniform(2),
            "normal": gf.random.normal(2), "batches": next(iter(gf.data.Batches([[1.0]], [2.0], 1)))[0],
            **model.state_dict(),
        }  # fmt: skip
        kept = [
            gf.tensor(np.ones(2, np.float32)), gf.tensor([True]), gf.arange(3), gf.zeros(2, "float32"),
            gf.tensor(np.ones(2, np.float32)) + 1.5, gf.mse_loss(*(gf.ones(2, "float32"),) * 2),
        ]  # fmt: skip
    assert {name for name, x in made.items() if x.dtype is not gf.float64} == set()
    assert [str(x.dtype) for x in kept] == ["float32", "bool", "int64", "float32", "float32", "float32"]
    assert gf.current_dtype() is gf.zeros(1).dtype is gf.float32
    assert gf.nn.PiecewiseLinear([[0.0, 1.0]]).starts.dtype is gf.float32


def test_the_default_dtype_is_that_of_the_context() -> None:
    with gf.use_dtype("float64"):
        thread = threading.Thread(target=lambda: found.append(gf.current_dtype()))
        found: list[Any] = []
        thread.start()
        thread.join()
        assert found == [gf.float32]
        with gf.use_dtype(gf.float16):
            assert gf.zeros(1).dtype is gf.float16
    with pytest.raises(TypeError, match="floating-point dtype; got int64"):
        gf.use_dtype("int64")
    assert repr(gf.use_dtype("float64")) == "use_dtype('float64')"


def test_captured_steps_and_checkpoints_keep_the_default_dtype_they_were_recorded_with(device: str) -> None:
    x = gf.tensor([2, 3], dtype="int64")
    captured = gf.capture(lambda: gf.sqrt(x) * gf.random.uniform(2))
    for dtype in ("float32", "float64", "float32"):
        with gf.use_dtype(dtype):
            assert [captured().dtype for _ in range(4)] == [dtype] * 4
    assert replays(captured.status)
    weight = gf.ones(2, "float64", requires_grad=True)
    seen: list[Any] = []

    def segment(w: gf.Tensor) -> gf.Tensor:
        made = gf.ones(2)
        seen.append(made.dtype)
        return w * made

    with gf.use_dtype("float64"):
        loss = gf.checkpoint(segment, weight).sum()
    loss.backward()
    assert seen == [gf.float64] * 2
