"""The process around gradflow: variables, Ctrl-C during an import, and instructions for installing an extra."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gradflow.backend.discovery import backend_class
from gradflow.environment import VariableError, delayed_interrupts, switch, to_install


class Installed:
    """An installed distribution, with the file that PEP 610 describes."""

    requires = (
        "numpy>=2.1", "tqdm>=4.66; extra == 'train'", 'matplotlib>=3.8; extra == "train"',
        "cupy-cuda12x[ctk]>=14; (sys_platform != 'darwin') and extra == 'cuda12'",
        "cupy-cuda13x[ctk]>=14; (sys_platform != 'darwin') and extra == 'cuda13'",
    )  # fmt: skip

    def __init__(self, origin: Any) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        return json.dumps(self.origin) if self.origin is not None and name == "direct_url.json" else None


EDITABLE = {"url": "file:///a/clone", "dir_info": {"editable": True}}
ELSEWHERE: dict[str, Any] = {
    "a folder": {"url": "file:///a/clone", "dir_info": {}},
    "a wheel": {"url": "file:///a/x.whl", "archive_info": {}},
    "an address": {"url": "https://example.org/gradflow.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
    "an index": None,
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(origin: Any) -> None:
        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed(origin))

    return install


def test_in_a_clone_gradflow_is_installed_with_the_extra(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(EDITABLE)
    assert to_install("train") == 'type, in the clone of gradflow: pip install -e ".[train]"'

    def none(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", none)
    assert to_install("fast") == 'type, in the clone of gradflow: pip install -e ".[fast]"'


@pytest.mark.parametrize("origin", ELSEWHERE)
def test_without_a_clone_the_packages_of_the_extra_are_installed(origin: str, installed: Any) -> None:
    """The instruction needs neither an address nor the original file, which may be gone."""
    installed(ELSEWHERE[origin])
    assert to_install("train") == 'type: pip install "tqdm>=4.66" "matplotlib>=3.8"'
    assert to_install("cuda12") == 'type: pip install "cupy-cuda12x[ctk]>=14"'


def test_the_diagnosis_of_cuda_gives_the_matching_instruction(installed: Any) -> None:
    from gradflow_cupy import diagnosis

    installed(EDITABLE)
    assert diagnosis._install() == (
        'type, in the clone of gradflow: pip install -e ".[cuda12]", or ".[cuda13]" if nvidia-smi says '
        '"CUDA Version: 13"'
    )
    installed(ELSEWHERE["a wheel"])
    assert diagnosis._install() == (
        'type: pip install "cupy-cuda12x[ctk]>=14", or "cupy-cuda13x[ctk]>=14" if nvidia-smi says "CUDA Version: 13"'
    )


@pytest.mark.parametrize(("value", "meaning"), [("", None), ("0", False), ("1", True)])
def test_a_switch(value: str, meaning: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_FUSED", value)
    assert switch("GRADFLOW_FUSED") is meaning
    monkeypatch.delenv("GRADFLOW_FUSED")
    assert switch("GRADFLOW_FUSED") is None


def test_an_invalid_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_FUSED", "off")
    message = "GRADFLOW_FUSED must be 0, 1 or unset; it is 'off'; type: unset GRADFLOW_FUSED"
    with pytest.raises(VariableError, match=message):
        backend_class("cpu")(0)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def importing(work: Callable[[], None]) -> None:
    with delayed_interrupts():
        work()


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_end_of_an_import() -> None:
    reached = []

    def work() -> None:
        interrupt()
        reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        importing(work)
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_is_not_lost_in_the_failure_of_an_import() -> None:
    def work() -> None:
        interrupt()
        raise ImportError("broken")

    with pytest.raises(KeyboardInterrupt):
        importing(work)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_for_the_end_of_the_outermost() -> None:
    reached = []

    def work() -> None:
        importing(interrupt)
        reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        importing(work)
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_does_not_wait() -> None:
    def work() -> None:
        interrupt()
        interrupt()
        pytest.fail("it waited")

    with pytest.raises(KeyboardInterrupt):
        importing(work)


def test_a_program_that_handles_interrupts_itself_is_left_alone() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("at once"))
    try:
        with delayed_interrupts():
            interrupt()
            seen.append("the end")
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["at once", "the end"]
