"""The search for the fastest algorithms of products, whose times tests set. EMULATED: no GPU."""

from __future__ import annotations

import json
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cublaslt_stand_in import number, stand_in
from emulated_device import losses_of, needs_compiler, numbers
from gradflow_cupy import cublaslt, tuning
from gradflow_cupy.cublaslt import CublasLt

import gradflow as gf
from gradflow.environment import VariableError

pytestmark = needs_compiler

DEVICE = "EMULATED on the CPU, cuBLASLt 13.1.2"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cublaslt, "ALIGNMENT", 16)  # that of NumPy's arrays: all are one kind of product, as with CuPy
    path = tmp_path / "products.json"
    monkeypatch.setenv("GRADFLOW_TUNING_FILE", str(path))
    return path


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the algorithms take, from the first on; those of a search are removed."""
    given: list[float] = []

    def seconds(_: Any, run: Any) -> float:
        return given.pop(0) if run() else float("inf")

    monkeypatch.setattr(tuning, "seconds", seconds)
    return given


def multiply(backend: Any, rows: int = 4, lt: CublasLt | None = None) -> tuple[CublasLt, int]:
    """Multiply by cuBLASLt, and compare the product with NumPy's; returns the number of the algorithm, too."""
    lt = CublasLt(backend.cupy, backend.dtypes) if lt is None else lt
    a, b = numbers((rows, 5)), numbers((5, 3), seed=1)
    out = backend.from_host(np.ones((rows, 3), np.float32))
    assert lt.product(backend.from_host(a), backend.from_host(b), out, accumulate=True)
    assert np.allclose(backend.to_host(out), a @ b + 1, atol=1e-5), "searching writes to other memory"
    return lt, number("algorithm").value


def test_the_fastest_is_kept(backend: Any, file: Path, times: list[float]) -> None:
    times += [3.0, 1.0, 2.0]
    lt, used = multiply(backend)
    assert used == 1
    assert not times
    assert multiply(backend, lt=lt)[1] == 1
    assert set(json.loads(file.read_text())) == {DEVICE}
    assert multiply(backend)[1] == 1, "another process finds it in the file, and searches no more"
    times += [1.0, 2.0, 3.0]
    assert multiply(backend, rows=6)[1] == 0
    (choices,) = json.loads(file.read_text()).values()
    assert len(choices) == 2


def test_choices_of_other_devices_and_processes_stay(backend: Any, file: Path, times: list[float]) -> None:
    times += [1.0, 2.0, 3.0, 3.0, 2.0, 1.0]
    lt, _ = multiply(backend)
    written = json.loads(file.read_text())
    file.write_text(json.dumps({"another": {"1": [2]}, DEVICE: {**written[DEVICE], "1,2": [3] * 8}}))
    assert multiply(backend, rows=6, lt=lt)[1] == 2
    found = json.loads(file.read_text())
    assert found["another"] == {"1": [2]}
    assert len(found[DEVICE]) == 3


def test_an_algorithm_that_is_no_candidate_is_not_used(backend: Any, file: Path, times: list[float]) -> None:
    """So bytes of the file never reach the library."""
    times += [2.0, 3.0, 1.0] * 2
    multiply(backend)
    choices = json.loads(file.read_text())
    (key,) = choices[DEVICE]
    choices[DEVICE][key] = [7] * 8
    file.write_text(json.dumps(choices))
    assert multiply(backend)[1] == 2
    assert not times


def test_algorithms_that_fail(backend: Any, file: Path, times: list[float]) -> None:
    """If cuBLASLt refuses all when they are called, the product is CuPy's, as without a search."""
    lt = CublasLt(backend.cupy, backend.dtypes)
    x = backend.from_host(numbers((4, 4)))
    with stand_in(status=15):
        assert not lt.product(x, x, backend.empty((4, 4), dtype=np.float32))
    assert not file.exists()


def test_nothing_is_timed_while_a_stream_is_captured(
    backend: Any, file: Path, times: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = type(backend.cupy.cuda.get_current_stream())
    monkeypatch.setattr(stream, "is_capturing", lambda self: True)
    assert multiply(backend)[1] == 0
    assert not file.exists()


def test_threads_take_turns(backend: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one stream: what another thread queues there would be timed as well. A product is searched for once."""
    lt, inside, timed = CublasLt(backend.cupy, backend.dtypes), [0], [0]

    def seconds(cupy: Any, run: Callable[[], bool]) -> float:
        inside[0] += 1
        assert inside == [1]
        time.sleep(0.01)
        inside[0] -= 1
        timed[0] += 1
        return 1.0

    monkeypatch.setattr(tuning, "seconds", seconds)
    x = backend.from_host(numbers((4, 4)))
    with ThreadPoolExecutor(4) as pool:
        outs = [backend.empty((4, 4), dtype=np.float32) for _ in range(4)]
        assert all(pool.map(lambda out: lt.product(x, x, out), outs))
    assert timed == [3]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', '{"a": {"1": ["x"]}}', "[" * 100_000, None])
def test_another_file_is_refused(backend: Any, file: Path, content: str | None) -> None:
    """Before anything is computed, and it stays as it is."""
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    with pytest.raises(
        VariableError, match=r"^GRADFLOW_TUNING_FILE must .*products\.json: .*unset GRADFLOW_TUNING_FILE$"
    ):
        CublasLt(backend.cupy, backend.dtypes)
    assert content is None or file.read_text() == content


def test_a_file_that_cannot_be_written(
    backend: Any,
    file: Path,
    times: list[float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("GRADFLOW_TUNING_FILE", str(tmp_path / "missing" / "products.json"))
    times += [3.0, 1.0, 2.0]
    assert multiply(backend)[1] == 1
    assert "the fastest algorithms of products are not kept" in caplog.text


def test_a_captured_step_uses_what_the_plain_step_found(backend: Any, file: Path) -> None:
    """The search itself, with graphs of its own, also where the first products are those of a step to be captured."""

    losses = partial(losses_of, [70, 16, 3], 4, partial(gf.optim.Adam, lr=0.01), 8)
    first = losses(True)
    choices = file.read_text()
    assert len(json.loads(choices)[DEVICE]) == 5, "products of a step"
    assert losses(False) == first
    assert file.read_text() == choices


def test_the_time_of_a_graph() -> None:
    """Per product: the least of the rounds; the two calls before the capture are not in it."""
    clock, calls, captured = [0.0], [0], [False]

    class Stream:
        def synchronize(self) -> None:
            assert not captured[0]

        def begin_capture(self) -> None:
            assert calls[0] == 2
            captured[0] = True

        def end_capture(self) -> Any:
            captured[0] = False
            return types.SimpleNamespace(launch=self.launch)

        def launch(self, stream: Any) -> None:
            assert stream is self
            clock[0] += 40.0 if clock[0] < 100 else 20.0  # milliseconds

        def record(self) -> Any:
            return types.SimpleNamespace(at=clock[0], synchronize=lambda: None)

    def run() -> bool:
        calls[0] += 1
        return True

    stream = Stream()
    cuda = types.SimpleNamespace(get_current_stream=lambda: stream, get_elapsed_time=lambda a, b: b.at - a.at)
    assert tuning.seconds(types.SimpleNamespace(cuda=cuda), run) == pytest.approx(0.020 / tuning.REPEAT)
    assert calls[0] == 2 + tuning.REPEAT
    assert tuning.seconds(types.SimpleNamespace(cuda=cuda), lambda: False) == float("inf")
