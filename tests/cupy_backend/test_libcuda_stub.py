"""The states of CUDA on a machine without a GPU, with the real CuPy and CUDA runtime but a fake driver.

A stand-in for `libcuda.so.1`, compiled here, answers the runtime's first calls (`cuInit`, `cuDriverGetVersion`) with
the status and version that environment variables give; the loader finds it first. The output of `gradflow devices` and
the error of `device="cuda"` are read from a new process. No GPU and no driver is needed, or used if there is one. Later
states (libraries, memory, kernels) cannot be produced like this, because the runtime asks the driver for undocumented
tables before it shows a device. They are tested in `test_diagnosis.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gradflow_cupy.diagnosis import CODES, KERNEL_DRIVER, installed

ROOT = Path(__file__).resolve().parent.parent.parent
COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libcuda.so.1 is a library of Linux"),
    pytest.mark.skipif(not installed(), reason="CuPy is not installed"),
]

STAND_IN = r"""
#include <stdlib.h>
#include <string.h>

static int named(const char *variable, int otherwise)
{
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return named("STAND_IN_STATUS", 999); }

int cuDriverGetVersion(int *version)
{
    *version = named("STAND_IN_VERSION", 99000);
    return 0;
}

static int unknown(void) { return 999; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *found)
{
    if (found)
        *found = 0;
    if (!strcmp(name, "cuInit"))
        *function = (void *)cuInit;
    else if (!strcmp(name, "cuDriverGetVersion"))
        *function = (void *)cuDriverGetVersion;
    else if (!strncmp(name, "cuGetProcAddress", 16))
        *function = (void *)cuGetProcAddress_v2;
    else
        *function = (void *)unknown;
    return 0;
}

int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
"""

ASK = """
import sys
import gradflow
from gradflow.cli import main
assert "cupy" not in sys.modules
main(["devices"])
print("--")
try:
    gradflow.zeros(1, device="cuda")
except gradflow.DeviceUnavailableError as error:
    print(" ".join(str(error).split()))
print("--")
main(["devices", "--json"])
"""


class Answer(NamedTuple):
    """What a process reports about CUDA: in the table, in the error, and in JSON."""

    table: str
    error: str
    cuda: dict[str, Any]
    auto: dict[str, Any]


def ask(*path: Path, **variables: str) -> Answer:
    """What gradflow reports in a process with these variables, and with these folders first on its path."""
    unwanted = ("CUDA_", "NVIDIA_", "GRADFLOW_", "STAND_IN_", "LD_LIBRARY_PATH")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*path, ROOT, ROOT / "backends"]))
    done = subprocess.run(
        [sys.executable, "-c", ASK], env={**environment, **variables}, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    table, error, report = done.stdout.split("--\n")
    found = json.loads(report)
    (cuda,) = [backend for backend in found["backends"] if backend["prefix"] == "cuda"]
    return Answer(table, error.strip(), cuda, found["auto"])


def assert_says(answer: Answer, code: str, *words: str) -> None:
    """Check that the three reports agree, name what to type, and contain these words."""
    cuda = answer.cuda
    assert (cuda["code"], cuda["usable"], cuda["devices"]) == (code, False, [])
    assert cuda["fix"]
    for place in (answer.table, answer.error):
        assert cuda["state"] in place
        assert cuda["fix"] in place
    assert answer.error.startswith("device 'cuda:0' cannot be used: ")
    assert answer.auto == {"device": "cpu", "reason": f"no CUDA device: {cuda['state']}"}
    for word in words:
        assert word in f"{cuda['state']}; {cuda['fix']}"


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the stand-in."""
    if COMPILER is None:
        pytest.skip("no C compiler: the stand-in for libcuda.so.1 cannot be made")
    folder = tmp_path_factory.mktemp("libcuda")
    (folder / "libcuda.c").write_text(STAND_IN)
    command = [COMPILER, "-shared", "-fPIC", "-w", "-o", str(folder / "libcuda.so.1"), str(folder / "libcuda.c")]
    subprocess.run(command, check=True, timeout=120)
    return folder


STATUSES = {
    100: ("no-device", "nvidia-smi -L"),
    803: ("driver-mismatch", "CUDA error 803", "sudo reboot"),
    804: ("compat-unsupported", "CUDA error 804", "cuda-compat"),
    34: ("stub-library", "CUDA error 34", "stubs"),
    999: ("driver-unknown-error", "CUDA error 999", "modprobe nvidia_uvm"),
    802: ("system-not-ready", "CUDA error 802", "nvidia-fabricmanager"),
    46: ("device-busy", "CUDA error 46", "nvidia-smi -c DEFAULT"),
    3: ("driver-not-initialized", "CUDA error 3", "spawn"),
    2: ("out-of-memory", "the GPU's memory is full"),
    201: ("driver-error", "CUDA error 201"),
}
"""For what the driver answers: the code of the state, and words of the diagnosis."""


@pytest.mark.parametrize("status", STATUSES)
def test_a_driver_that_answers(libcuda: Path, status: int) -> None:
    answer = ask(LD_LIBRARY_PATH=str(libcuda), STAND_IN_STATUS=str(status))
    assert_says(answer, *STATUSES[status])


@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_hidden_devices(libcuda: Path, visible: str) -> None:
    answer = ask(LD_LIBRARY_PATH=str(libcuda), STAND_IN_STATUS="100", CUDA_VISIBLE_DEVICES=visible)
    assert_says(answer, "device-hidden", repr(visible), "unset CUDA_VISIBLE_DEVICES")


def test_a_driver_that_is_too_old(libcuda: Path) -> None:
    answer = ask(LD_LIBRARY_PATH=str(libcuda), STAND_IN_STATUS="0", STAND_IN_VERSION="11040")
    assert_says(answer, "driver-too-old", "supports CUDA 11.4", "update the driver")


def test_an_older_driver_of_the_same_generation_is_not_too_old(libcuda: Path) -> None:
    import cupy

    version = cupy.cuda.runtime.runtimeGetVersion() // 1000 * 1000
    answer = ask(LD_LIBRARY_PATH=str(libcuda), STAND_IN_STATUS="100", STAND_IN_VERSION=str(version))
    assert_says(answer, "no-device")


NO_DRIVER = "no-driver-library" if os.path.exists(KERNEL_DRIVER) else "no-driver"


def test_no_driver_by_its_version(libcuda: Path) -> None:
    answer = ask(LD_LIBRARY_PATH=str(libcuda), STAND_IN_STATUS="0", STAND_IN_VERSION="0")
    assert_says(answer, NO_DRIVER, "driver")


def test_a_driver_that_is_an_empty_file(tmp_path: Path) -> None:
    """As in an image built without a GPU: the loader skips the file, and finds the machine's driver, if any."""
    (tmp_path / "libcuda.so.1").touch()
    answer = ask(LD_LIBRARY_PATH=str(tmp_path))
    if answer.cuda["usable"]:
        pytest.skip("the loader went on to the driver of this machine")
    assert_says(answer, NO_DRIVER, "driver")


# ---------------------------------------------------------------------- before the driver


def test_two_packages_of_cupy(tmp_path: Path) -> None:
    for name in ("cupy_cuda11x", "cupy_cuda13x"):
        folder = tmp_path / f"{name}-13.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 13.0\n")
    answer = ask(tmp_path)
    assert_says(answer, "two-packages", "cupy-cuda11x", "cupy-cuda13x", "pip uninstall -y ")


@pytest.mark.parametrize(
    "source", ["raise ImportError('libfoo.so: undefined symbol: bar')", "import no_such_module_of_cupy", "1 / 0"]
)
def test_a_cupy_whose_import_fails(tmp_path: Path, source: str) -> None:
    (tmp_path / "cupy").mkdir()
    (tmp_path / "cupy" / "__init__.py").write_text(source)
    answer = ask(tmp_path)
    word = {"r": "undefined symbol: bar", "i": "no_such_module_of_cupy", "1": "ZeroDivisionError"}[source[0]]
    assert_says(answer, "import-broken", word, "pip install --force-reinstall cupy")


def test_every_state_is_reached_by_a_test() -> None:
    """Here or with a fake CuPy in `test_diagnosis.py`."""
    text = "".join((Path(__file__).parent / name).read_text() for name in ("test_libcuda_stub.py", "test_diagnosis.py"))
    assert [code for code in CODES if f'"{code}"' not in text] == []
