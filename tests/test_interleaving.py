"""The engine when another thread, or an interrupt, comes between any two of its bytecode instructions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

import gradflow as gf
from gradflow.autograd import backward, leaf, saved
from gradflow.autograd.memory import Clock
from gradflow.autograd.observers import Observer, observe


def before_instruction(count: int, codes: set[CodeType], action: Callable[[], None], run: Callable[[], Any]) -> bool:
    """Call `run`, and `action` before the instruction number `count` of these functions. False if they have fewer."""
    remaining = count

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal remaining
        if frame.f_code not in codes:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            remaining -= 1
            if remaining == 0:
                sys.settrace(None)
                action()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 traces instructions only if a frame asked for it beforehand
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return remaining <= 0


def test_a_change_in_place_is_never_forgotten_when_threads_interleave() -> None:
    """Otherwise a node saved between the two changes would not be checked."""
    for count in range(1, 1000):
        clock, others = Clock(), [0]

        def another_thread(clock: Clock = clock, others: list[int] = others) -> None:
            clock.tick()  # a node
            others.append(clock.change())

        if not before_instruction(count, {Clock.change.__code__}, another_thread, clock.change):
            break
        assert clock.last_change[0] >= max(others)
    assert 3 < count < 999


def losses() -> Iterator[tuple[str, gf.Tensor]]:
    """Graphs with a node that saves its inputs, its result, its parameters, or what a joint rule reads."""
    x = gf.ones((2, 3), requires_grad=True)
    yield "inputs", x * x
    yield "result", gf.exp(x)
    yield "joint", gf.linear(x, gf.ones((2, 3), requires_grad=True), None, "tanh")
    yield "residual", gf.dropout(x, 0.5)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("name", ["inputs", "result", "joint", "residual"])
def test_two_passes_through_one_graph_at_once_both_succeed_or_one_finds_it_freed(name: str, observed: bool) -> None:
    walk = backward._walk if observed else backward._walk_to_buffers
    codes = {walk.__code__, saved.saved_values.__code__}
    outcomes = set()
    for count in range(1, 5000):
        y = dict(losses())[name]
        node = y._node
        g = gf.ones(y.shape)

        def run(y: gf.Tensor = y, g: gf.Tensor = g) -> None:
            if observed:
                with observe(Observer()):
                    y.backward(g)
            else:
                y.backward(g)

        try:
            if not before_instruction(count, codes, lambda node=node: saved.free(node), run):
                break
            outcomes.add("succeeded")
        except RuntimeError as error:
            assert "were freed by an earlier backward pass" in str(error)  # noqa: PT017 - any point may be the one
            outcomes.add("freed")
    assert outcomes == {"succeeded", "freed"}
    assert 20 < count < 4999


def test_an_interrupt_of_a_pass_leaves_no_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that is never released keeps gradients out of the optimizer's buffer until `zero_grad`.

    Python itself handles no signal between the acquisition of a lock and its `with` block: this test takes no lock.
    """
    monkeypatch.setattr(leaf.locks, "claims", contextlib.nullcontext())
    w = gf.ones((2, 3), requires_grad=True)
    optimizer = gf.optim.SGD([w], lr=1.0)

    def interrupt() -> None:
        raise KeyboardInterrupt

    interrupted = 0
    for count in range(1, 5000):
        loss = gf.linear(gf.ones((1, 3)), w).sum()
        try:
            if not before_instruction(count, {leaf.claim.__code__}, interrupt, loss.backward):
                break
        except KeyboardInterrupt:
            interrupted += 1
        assert w._node.state is leaf.RESERVED or w._node.state is leaf.EMPTY
        w.zero_grad()
    assert 20 < interrupted < 4999
    optimizer.step()
    assert w.tolist() == [[0.0] * 3] * 2


def test_an_optimizer_created_during_a_pass_that_writes_to_the_buffer_of_another_raises() -> None:
    """It would read a buffer that nothing was written to."""
    w = gf.ones((2, 3), requires_grad=True)
    optimizer = gf.optim.SGD([w], lr=1.0)

    def create(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        with pytest.raises(RuntimeError, match=r"create optimizers before or after backward\(\)"):
            gf.optim.SGD([w], lr=1.0)
        return g

    x = gf.operation("create", lambda F, x: F.add(x, 0.0), create)(gf.ones((1, 3), requires_grad=True))
    gf.linear(x, w).sum().backward()
    assert w.grad.tolist() == [[1.0] * 3] * 2
    optimizer.step()
    assert w.tolist() == [[0.0] * 3] * 2
