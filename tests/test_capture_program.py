"""The programs of captured steps: how two recordings are compared, and the Python generated from one."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.interception import Snapshot
from gradflow.replay.guards import Guards
from gradflow.replay.program import compile_replay, difference, split
from gradflow.replay.recording import Call, Constant, Input, NewTensor, Recording, Ref


def recording(*calls: Call, result: Any = None, backend: Any = None, inputs: int = 1) -> Recording:
    return Recording(backend, inputs, calls, result, Guards(Snapshot([]), [], [], 0))


def call(*arguments: Any, **options: Any) -> Call:
    return Call("add", arguments, options, "step.py, line 3")


def status(before: Recording, after: Recording) -> str | None:
    found = difference(before, after)
    return None if found is None else str(found)


# ---------------------------------------------------------------------- comparison


ARRAY = np.zeros(3)

SAME: list[tuple[Any, Any]] = [
    (1, 1), (0.5, 0.5), ("a", "a"), (None, None), (..., ...), (True, True),
    ((1, [2, {"a": slice(0, 3)}]), (1, [2, {"a": slice(0, 3)}])), (Ref(0, "[1]"), Ref(0, "[1]")), (Input(0), Input(0)),
    (Constant(ARRAY), Constant(ARRAY)), (Constant(np.dtype("f4")), Constant(np.dtype("f4"))),
    (Constant(float("inf")), Constant(float("inf"))), (Constant(float("nan")), Constant(float("nan"))),
    (NewTensor(Input(1)), NewTensor(Input(1))),
]  # fmt: skip

DIFFERENT: list[tuple[Any, Any]] = [
    (1, True), (0, False), (1, 1.0), (0.0, -0.0), (1, 2), ("a", "b"), (None, False), (None, ...), ("1", 1),
    ((1, 2), (1, 2, 3)), ((1,), [1]), ((), []), ([], [[]]), ({"a": 1}, {"b": 1}), ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (slice(0, 1), slice(False, True)), (slice(0, 2), slice(0, 3)), ([0.0], [-0.0]), ({1: 2}, {True: 2}),
    (Ref(0), Ref(1)), (Ref(0, "[0]"), Ref(0, "[1]")), (Ref(0), Input(0)), (Input(0), 0),
    (Input(0), NewTensor(Input(0))),
    (Constant(ARRAY), Constant(ARRAY.copy())), (Constant(np.dtype("f4")), Constant(np.dtype("f8"))),
    (Constant(gf.ones(1)), Constant(gf.ones(1))), (Constant(1), 1), (Constant(float("nan")), Constant(-float("nan"))),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SAME)
def test_arguments_that_are_the_same(a: Any, b: Any) -> None:
    assert status(recording(call(a)), recording(call(a))) is None
    assert status(recording(call(a)), recording(call(b))) is None
    assert status(recording(call(key=a)), recording(call(key=b))) is None
    assert status(recording(result=a), recording(result=b)) is None


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_arguments_that_differ(a: Any, b: Any) -> None:
    found = status(recording(call(1), call(a)), recording(call(1), call(b)))
    assert found is not None
    assert found.startswith("two recordings differ at step.py, line 3: add(")
    assert status(recording(call(key=a)), recording(call(key=b))) is not None
    assert str(status(recording(result=a), recording(result=b))).startswith("two recordings differ at the results: ")


def test_the_line_of_a_call_makes_no_difference() -> None:
    assert status(recording(call(1)), recording(call(1)._replace(place="step.py, line 4"))) is None


def test_a_difference_is_described_by_its_calls() -> None:
    def described(a: Any, b: Any) -> str:
        text = str(status(recording(*a), recording(*b)))
        return text.removeprefix("two recordings differ at step.py, line 3: ")

    def total(optimizer: Any) -> None: ...

    one, other = call(Input(0), Constant(ARRAY)), call(Input(0), Constant(ARRAY.copy()))
    opaque = Call(Constant(total), (Constant(total),), {}, "step.py, line 3")
    name = f"{test_a_difference_is_described_by_its_calls.__name__}.<locals>.total"
    assert described([one], [call(Ref(2, "[1]"), axis=(0,))]) == (
        "add(input 0, a tensor of shape (3,)), then add(result 3[1], axis=(0,))"
    )
    assert described([one], [other]) == (
        "add(input 0, a tensor of shape (3,)), then the same with another tensor of shape (3,)"
    )
    assert described([opaque], [one]) == f"{name}({name}), then add(input 0, a tensor of shape (3,))"
    assert described([call(1)], [call(1), call(2)]) == "no call, then add(2)"
    assert described([call(1), call(2)], [call(1)]) == "add(2), then no call"


# ---------------------------------------------------------------------- Python


def test_arguments_of_all_kinds_are_given_again() -> None:
    """A program passes the arguments that the recording lists."""
    seen: list[Any] = []

    def pair(*arguments: Any, **options: Any) -> Any:
        seen.append((arguments, options))
        return "first", SimpleNamespace(array="second")

    backend, known = SimpleNamespace(pair=pair), object()
    plain = (1, True, -0.0, 1e-45, 'it\'s "quoted"', None, ..., (), (2,), [3, (4, 5)], {"a": [6], 7: {}})
    slices = (slice(None), slice(1, None, -1), (slice(0, 2), ...))
    program = compile_replay(
        recording(
            Call("pair", plain, {"key": slices}, ""),
            Call("pair", (Ref(0, "[0]"), [Ref(0, "[1].array")], slice(Input(1), None)), {"of": {"a": Input(0)}}, ""),
            Call(Constant(pair), (Constant(known), (Constant(known),), Constant(ARRAY)), {}, ""),
            result={"x": Ref(1, "[0]"), "y": [None, Input(1)]},
            backend=backend,
            inputs=2,
        )
    )
    assert program("in 0", "in 1") == {"x": "first", "y": [None, "in 1"]}
    assert repr(seen[0]) == repr((plain, {"key": slices}))
    assert seen[1] == (("first", ["second"], slice("in 1", None)), {"of": {"a": "in 0"}})
    (first, (second,), third), _ = seen[2]
    assert first is second is known
    assert third is ARRAY


def test_a_tensor_around_an_array_has_no_graph() -> None:
    backend, x = gf.get_backend("cpu"), gf.ones(2)
    tensor = compile_replay(recording(result=NewTensor(Input(0)), backend=backend))(x.array)
    assert tensor.array is x.array
    assert not tensor.requires_grad


def test_each_result_is_deleted_after_its_last_use() -> None:
    class Result:
        pass

    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    counts = []

    def new(*_: Any, **__: Any) -> Any:
        result = Result()
        alive.add(result)
        counts.append(len(alive))
        return [result]

    program = compile_replay(
        recording(
            Call("new", (), {}, ""),  # 0 is used by 1 and 3
            Call("new", (Ref(0),), {}, ""),
            Call("new", (), {}, ""),  # not used
            Call("new", ([Ref(1, "[0]")], {"a": (Ref(0),)}), {}, ""),
            Call("new", (slice(Ref(3), None),), {}, ""),
            Call("new", (), {"x": Ref(4)}, ""),
            result=(Ref(5), Ref(3)),
            backend=SimpleNamespace(new=new),
            inputs=0,
        )
    )
    assert len(program()) == 2
    assert counts == [1, 2, 3, 3, 2, 3]
    assert len(alive) == 0


def test_a_split_leaves_nothing_to_the_garbage_collector() -> None:
    returned = {"a": [NewTensor(Ref(1))], "b": (NewTensor(Ref(0)),)}
    made = recording(Call("abs", (Input(0),), {}, ""), Call("copy", (Ref(0),), {}, ""), result=returned)
    gc.collect()
    gc.disable()
    try:
        calls, results = split(made)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert calls.result == (Ref(0), Ref(0))
    assert results.result == {"a": [NewTensor(Input(0))], "b": (NewTensor(Input(1)),)}
