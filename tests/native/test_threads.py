"""Kernels on several threads: the numbers never depend on the threads, whatever happens to these."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradflow_numpy.threads import count, set_count

if importlib.util.find_spec("llvmlite") is None:
    pytest.skip("llvmlite, of the extra 'fast', is not installed", allow_module_level=True)

from gradflow_numpy.native import kernels, threads
from gradflow_numpy.native.kernels import Kernel, Launch, launch
from gradflow_numpy.native.threads import Input, Program

if not kernels.is_supported():
    pytest.skip("no kernels for this processor", allow_module_level=True)

from kernels_for_threads import fold, folded, folds, refuse_negative, through_scratch, who

HERE = Path(__file__).parent
COSTLY = 1000.0
"""The nanoseconds that tests claim for an item, to have few items divided among threads."""


@pytest.fixture(autouse=True)
def restored_count() -> Iterator[None]:
    before = count()
    yield
    set_count(before)


def in_process(code: str, seconds: float = 60) -> None:
    """Run code in a new Python, where the end of the process is part of the test."""
    path = os.pathsep.join([str(HERE), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=seconds,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_launch_gives_the_same_numbers_with_any_number_of_threads(dtype: Any, n: int) -> None:
    set_count(n)
    for items in (0, 1, 2, 3, 5, 7, 64, 1001, 30_000):
        x, out = np.random.default_rng(1).standard_normal(items).astype(dtype), np.zeros(items, dtype)
        launch(fold, dtype, items, COSTLY, x, out, items, 0.25)
        np.testing.assert_array_equal(out, folded(x, 1))


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_level_begins_when_all_of_the_level_before_is_done(dtype: Any, n: int) -> None:
    set_count(n)
    for items in (1, 17, 1000):
        program, x, out = folds(dtype, items, 100, COSTLY)
        for _ in range(20):
            program.run()
            np.testing.assert_array_equal(out, folded(x, 100))
            out[:] = 0


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("cost", [0.001, 40.0, COSTLY])
def test_groups_of_different_sizes_are_all_done_in_a_level(cost: float, n: int) -> None:
    set_count(n)
    rng = np.random.default_rng(2)
    sizes = [0, *rng.integers(0, 300, 60).tolist(), 5000, 1]
    given = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    between, out = ([np.zeros_like(x) for x in given] for _ in range(2))
    chains = zip(given, between, out, strict=True)
    level = [
        [
            Launch(through_scratch, np.float32, x.size, cost, (x, y, 0)),
            Launch(through_scratch, np.float32, x.size, cost, (y, z, 0)),
        ]
        for x, y, z in chains
    ]  # fmt: skip
    Program([[], level, []]).run()
    for x, z in zip(given, out, strict=True):
        np.testing.assert_array_equal(z, 4 * x)


def test_an_empty_program_does_nothing() -> None:
    assert Program([]).run() == 0


def test_chunks_start_at_multiples_of_the_kernels() -> None:
    set_count(3)
    for items in (1, 4, 9, 50, 1003):
        out = np.ones(items, np.int64)
        launch(who, np.float32, items, COSTLY, out, 0)
        assert not (out % 64).any()
        out[:] = 1
        Program([[[Launch(who, np.float32, items, COSTLY, (out, 0))]]]).run()
        assert not (out % 64).any()


@pytest.mark.parametrize("items", [0, 1, 64, 65, 128, 1000])
def test_the_chunks_of_a_group_differ_by_one_multiple_at_most(items: int) -> None:
    group = [Launch(who, np.float32, items, COSTLY, (np.ones(items, np.int64), 0))]
    found = threads._ranges(group, max(items, 1) * COSTLY / 6, 2)
    sizes = [-(-(stop - start) // who.multiple) for start, stop, _ in found]
    assert [i for start, stop, _ in found for i in range(start, stop)] == list(range(items))
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert sizes == sorted(sizes, reverse=True)  # the last ones are the small ones


def test_a_range_has_enough_items_where_there_are_enough_for_all_threads() -> None:
    kernel = Kernel("none", "none", "w", lambda *_: None, enough=64)

    def sizes(items: int, threads_: int) -> list[int]:
        group = [Launch(kernel, np.float32, items, COSTLY, (np.ones(items),))]
        return [stop - start for start, stop, _ in threads._ranges(group, items * COSTLY / 6, threads_)]

    assert sizes(640, 2) == [107, 107, 107, 107, 106, 106]
    assert sizes(300, 2) == [75, 75, 75, 75]
    assert sizes(100, 2) == [50, 50]
    assert sizes(100, 5) == [20] * 5


@pytest.mark.parametrize("items", [3, 3000])
def test_a_program_reads_the_inputs_that_it_is_given(items: int) -> None:
    program, x, out = folds(np.float32, items, 2, COSTLY, Input(1, 8))
    x = np.random.default_rng(4).standard_normal(items + 2).astype(np.float32)
    program.run(None, x)
    np.testing.assert_array_equal(out, folded(x[2:], 2))
    program.run(None, -x)
    np.testing.assert_array_equal(out, folded(-x[2:], 2))
    program.run(0, x.ctypes.data)
    np.testing.assert_array_equal(out, folded(x[2:], 2))
    with pytest.raises(TypeError, match="2 inputs, not 1"):
        program.run(x)
    with pytest.raises(TypeError):
        program.run(None, "x")


@pytest.mark.parametrize("n", [1, 2])
def test_later_levels_are_not_run_when_a_level_sets_the_status(n: int) -> None:
    set_count(n)
    x, out, status = np.zeros(1000, np.float32), np.zeros(1000, np.float32), np.zeros(1, np.int64)
    program = Program(
        [
            [[Launch(refuse_negative, np.float32, 1000, COSTLY, (x, status))]],
            [[Launch(through_scratch, np.float32, 1000, COSTLY, (x, out, 0))]],
        ],
        status,
    )
    x[:] = 1
    x[777] = -1
    assert program.run() == 7
    assert not out.any()
    x[777] = 1
    assert program.run() == 0
    assert (out == 2).all()


def test_subclasses_of_arrays_are_arguments_and_other_objects_are_refused(tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(5,))
    x[:] = 3
    out = np.zeros(5, np.float32)
    launch(through_scratch, np.float32, 5, 1.0, x, out, 0)
    assert (out == 6).all()
    for wrong in ((np.float32(1), out, 0), (x, out, 1.5), (x, out), (x, out, 0, 0), (x, [1.0], 0)):
        with pytest.raises(TypeError):
            launch(through_scratch, np.float32, 5, 1.0, *wrong)


def test_python_threads_that_launch_at_the_same_time_do_not_disturb_each_other() -> None:
    set_count(2)
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal(2000).astype(np.float32)
        out = np.zeros_like(x)
        program, first, last = folds(np.float32, 300, 10, COSTLY)
        first[:] = x[:300]
        for i in range(100):
            out[:] = 0
            cost = (0.1, 20.0, COSTLY)[i % 3]
            launch(through_scratch, np.float32, 2000, cost, x, out, 5000)
            program.run()
            if not ((out == 2 * x).all() and (last == folded(first, 10)).all()):
                wrong.append(seed)

    together = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert not wrong


def test_the_number_of_threads_may_change_while_work_runs() -> None:
    program, x, out = folds(np.float32, 500, 20, COSTLY)
    expected, done = folded(x, 20), threading.Event()

    def change() -> None:
        for i in range(100):
            set_count(1 + i % 4)
            time.sleep(0.001)
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    while not done.is_set():
        program.run()
        np.testing.assert_array_equal(out, expected)
        out[:] = 0
    thread.join()
    set_count(2)
    program.run()
    assert sum(each.name == "gradflow" for each in threading.enumerate()) == 1


def test_threads_that_sleep_are_woken() -> None:
    set_count(2)
    out = np.zeros(600, np.int64)
    for _ in range(3):
        for _ in range(200):
            launch(who, np.float32, 600, COSTLY, out, 1000)
            if len(set(out.tolist())) == 2:
                break
        else:
            pytest.fail("a thread does not work")
        deadline = time.monotonic() + 30
        while not threads.pool()._slots[0, 0]:
            assert time.monotonic() < deadline, "a thread does not sleep"
            time.sleep(0.01)


def test_work_is_done_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr(threads, "current", None)
    set_count(3)
    program, x, out = folds(np.float32, 500, 20, COSTLY)
    program.run()
    np.testing.assert_array_equal(out, folded(x, 20))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers on this system")
def test_an_interrupt_is_raised_after_the_work_and_leaves_the_threads_in_order() -> None:
    set_count(2)
    program, x, out = folds(np.float32, 20_000, 40, COSTLY)
    expected, raised = folded(x, 40), 0

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    program.run()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(30):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 * (i + 1))
                for _ in range(1000):
                    program.run()
            except KeyboardInterrupt:
                raised += 1
            np.testing.assert_array_equal(out, expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised == 30
    program.run()
    np.testing.assert_array_equal(out, expected)


BUSY = """
import os, sys, threading, time
import numpy as np
from gradflow_numpy.threads import set_count
from kernels_for_threads import folds, folded
set_count(3)
program, x, out = folds(np.float32, 3000, 10, 1000.0)
expected = folded(x, 10)
def check():
    out[:] = 0
    program.run()
    assert (out == expected).all()
def keep_busy():
    other = folds(np.float32, 100_000, 3, 1000.0)[0]
    while True:
        other.run()
check()
"""


@pytest.mark.slow
def test_the_interpreter_ends_while_threads_work() -> None:
    in_process(BUSY)
    for _ in range(5):
        in_process(BUSY + "threading.Thread(target=keep_busy, daemon=True).start()\nfor _ in range(9): check()")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("at_the_end", ["", "threading.Thread(target=keep_busy, daemon=True).start(); check()"])
def test_a_forked_child_works_with_threads_of_its_own_and_ends(at_the_end: str) -> None:
    in_process(
        BUSY
        + f"""
threading.Thread(target=keep_busy, daemon=True).start()
for i in range(20):
    check()
    child = os.fork()
    if child == 0:
        for _ in range(3): check()
        assert sum(t.name == "gradflow" for t in threading.enumerate()) == 2
        {at_the_end}
        sys.exit(0)
    check()
    assert os.waitpid(child, 0)[1] == 0
"""
    )


@pytest.mark.slow
def test_work_is_done_after_the_threads_have_ended_at_the_end_of_the_interpreter() -> None:
    after = "check(); assert 'gradflow' not in [t.name for t in threading.enumerate()]"
    in_process(f"import atexit\n@atexit.register\ndef _(): {after}\n" + BUSY)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc on this system")
def test_many_launches_take_no_more_memory_or_threads() -> None:
    set_count(2)
    x, out = np.ones(100, np.float32), np.zeros(100, np.float32)
    program = folds(np.float32, 100, 5, COSTLY)[0]

    def memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def work(n: int) -> None:
        for i in range(n):
            launch(through_scratch, np.float32, 100, 300.0 if i % 10 == 0 else 0.1, x, out, 0)
            if i % 10 == 0:
                program.run()

    def together(n: int) -> None:
        threads = [threading.Thread(target=work, args=(n // 2,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    together(10_000)
    before, alive = memory(), threading.active_count()
    together(100_000)
    assert threading.active_count() == alive
    assert memory() - before < 8 << 20
