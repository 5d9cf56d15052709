"""Captured steps in threads, forks, failures and long runs, and at the end of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from perceptrons import Training

import gradflow as gf

pytest.importorskip("llvmlite", reason="llvmlite, of the extra 'fast', is not installed")
slow = pytest.mark.slow


def plain(steps: int, seed: int = 0) -> bytes:
    return Training(lambda step: step, seed).run(steps)


def run_python(code: str, timeout: int = 120) -> str:
    """What a new process prints that runs the code, which must end well."""
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert result.returncode == 0, (result.returncode, result.stdout, result.stderr)
    assert not result.stderr, result.stderr
    return result.stdout


# ---------------------------------------------------------------------- threads


@slow
@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_train_their_own_models(threads: int) -> None:
    before = gf.get_num_threads()
    expected = [plain(12, seed) for seed in range(8)]
    gf.set_num_threads(threads)
    try:
        with ThreadPoolExecutor(8) as pool:
            trainings = [Training(seed=seed) for seed in range(8)]
            found = list(pool.map(lambda training: training.run(12), trainings))
        assert found == expected
        for training in trainings:
            training.run(3)  # no other thread records
            assert training.step.status == "replaying"
    finally:
        gf.set_num_threads(before)


@slow
def test_the_number_of_threads_may_change_between_steps() -> None:
    before = gf.get_num_threads()
    training, other = Training(), Training(lambda step: step)
    try:
        for n in (1, 2, 3, 2, 1, 8, 1):
            gf.set_num_threads(n)
            found = training.run(3)
            gf.set_num_threads(1)
            assert found == other.run(3)
        assert training.step.status == "replaying"
    finally:
        gf.set_num_threads(before)


def test_a_training_goes_on_in_another_thread() -> None:
    training = Training()
    training.run(5)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(training.run, 5).result()
    other = Training(lambda step: step)
    for _ in range(2):
        other.run(5)
    assert training.run(5) == other.run(5)


# ---------------------------------------------------------------------- processes

_FORK = """
import os, sys
import gradflow as gf
from perceptrons import Training

gf.set_num_threads(2)
training, children = Training(), []
training.run(6)
for _ in range(3):
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        found = training.run(6) + training.run(2)
        with os.fdopen(send, "wb") as file:
            file.write(found)
        {end}
    os.close(send)
    children.append((child, receive))
expected = training.run(6) + training.run(2)
for child, receive in children:
    with os.fdopen(receive, "rb") as file:
        assert file.read() == expected
    assert os.waitpid(child, 0)[1] == 0
other = Training(lambda step: step)
other.run(6)
assert expected == other.run(6) + other.run(2)
"""


@slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_parent_and_children_of_a_fork_go_on(end: str) -> None:
    run_python("import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n" + _FORK.format(end=end))


_FORK_DURING_STEPS = """
import os, threading
import numpy as np
import gradflow as gf
from perceptrons import Training

gf.set_num_threads(2)
training, others = Training(), [Training(seed=1), Training(seed=2)]
for each in (training, *others):
    each.run(4)
for each in others:
    threading.Thread(target=each.run, args=(10**9,), daemon=True).start()
children, expected = [], Training(lambda step: step)
expected.run(4)
for _ in range(10):
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        found = training.run(3)
        for each in others:  # perhaps in the middle of a step
            each.numbers = np.random.default_rng(0)  # the lock of the old one may be held for ever
            each.run(2)
        os.write(send, found[:12])
        os._exit(0)
    os.close(send)
    children.append((child, receive))
losses = expected.run(3)[:12]
for child, receive in children:
    assert os.read(receive, 12) == losses
    assert os.waitpid(child, 0)[1] == 0
assert training.run(3)[:12] == losses
"""


@slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_may_come_while_other_threads_train() -> None:
    run_python("import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n" + _FORK_DURING_STEPS)


_END = """
import sys, threading, time
import gradflow as gf
from perceptrons import Training

gf.set_num_threads(2)
training = Training()
training.run(5)
{last}
"""


@slow
@pytest.mark.parametrize(
    "last",
    [
        "pass",
        "time.sleep(0.05)",
        "sys.exit(0)",
        "del training, sys.modules['gradflow']",
        "kept = [Training(seed=i) for i in range(5)]\nfor x in kept: x.run(4)",
        "threading.Thread(target=Training(seed=1).run, args=(50,)).start()",
        "threading.Thread(target=Training(seed=1).run, args=(10**9,), daemon=True).start()\ntime.sleep(0.3)",
        "import atexit\natexit.register(lambda: training.run(3))",
        "training.cycle = training",
        "raise SystemExit",
    ],
)
def test_a_process_with_captured_steps_ends(last: str) -> None:
    run_python(_END.format(last=last))


# ---------------------------------------------------------------------- failures


def test_a_step_that_fails_leaves_what_a_plain_one_leaves() -> None:
    """The learning rate of one step fails: gradients are new, parameters are not."""
    failing = False

    def rate(step: int) -> float:
        if failing:
            raise RuntimeError("no rate")
        return 1e-3 / (1 + step)

    trainings = [Training(through, lr=rate) for through in (gf.capture, lambda step: step)]
    for at in (5, 2, 1):
        for training in trainings:
            training.run(at)
        failing = True
        for training in trainings:
            with pytest.raises(RuntimeError, match="no rate"):
                training.run(1)
        failing = False
        left = [[p.grad.numpy().tobytes() for p in t.model.parameters() if p.grad is not None] for t in trainings]
        assert left[0] == left[1]
        assert len(left[0]) == 6
    assert trainings[0].run(6) == trainings[1].run(6)
    assert trainings[0].step.status.startswith("replaying")


@pytest.mark.parametrize("wrong", [10, -1])
def test_a_label_that_is_no_class_fails_as_in_a_plain_step(wrong: int) -> None:
    trainings = [Training(through) for through in (gf.capture, lambda step: step)]
    errors = []
    for training in trainings:
        training.run(5)
        labels = gf.tensor([wrong] * training.rows, dtype="int64")
        with pytest.raises(Exception, match="label") as error:
            training.step(gf.zeros((training.rows, training.sizes[0])), labels)
        errors.append((type(error.value), str(error.value)))
    assert errors[0] == errors[1]
    assert trainings[0].run(3) == trainings[1].run(3)


_INTERRUPTED = """
import random, signal, sys
import gradflow as gf
from perceptrons import Training

gf.set_num_threads(2)
sys.unraisablehook = lambda _: None  # an interrupt in a destructor
training, draw = Training(), random.Random(0)
training.run(5)
interrupts = 0
for _ in range(200):
    try:
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.0002, 0.004))
        training.run(100)
    except KeyboardInterrupt:
        interrupts += 1
training.run(5)
assert training.step.status.startswith("replaying"), training.step.status
assert interrupts > 100
"""


@slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_a_training_goes_on_after_interrupts_at_any_time() -> None:
    begin = "import signal\nsignal.signal(signal.SIGALRM, signal.default_int_handler)\n"
    run_python(begin + _INTERRUPTED)


def test_inputs_that_kernels_do_not_take_have_the_bits_of_a_plain_step() -> None:
    """Strided and read-only arrays go to NumPy's functions, in a plain step as in a captured one."""
    trainings = [Training(through) for through in (gf.capture, lambda step: step)]
    whole = gf.random.normal((40, 64))
    labels = gf.tensor([1, 2] * 32, dtype="int64")
    read_only = whole.T.numpy().copy()
    read_only.flags.writeable = False
    kinds = [whole.T.clone(), whole.T, gf.from_dlpack(read_only), whole.T[::-1]]
    for k in (0, 0, 0, 0, 1, 2, 3, 0, 1, 0, 1, 1, 1, 0):
        losses = [training.step(kinds[k], labels).detach().numpy() for training in trainings]
        assert losses[0].tobytes() == losses[1].tobytes()
    assert trainings[0].run(1) == trainings[1].run(1)


# ---------------------------------------------------------------------- long runs


@slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory from /proc")
def test_many_steps_need_no_more_memory_and_threads() -> None:
    """10^5 steps; what grew with each by 16 bytes would be found."""
    run_python(
        """
import gc, os
import gradflow as gf
from perceptrons import Training

def used():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/task"))

training = Training(sizes=(2, 16, 16, 2), rows=32)
x, labels = gf.zeros((32, 2)), gf.tensor([0, 1] * 16, dtype="int64")
def steps(n):
    for _ in range(n):
        training.step(x, labels)
steps(20_000)
before, threads = used()
steps(100_000)
after, threads_after = used()
assert training.step.status.startswith("replaying")
assert threads_after == threads, (threads, threads_after)
assert after - before < 1_600_000, (before, after)
""",
        300,
    )
