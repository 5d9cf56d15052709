"""The conformance kit: its results for good and for broken backends, and its output.

The kit itself is collected from `gradflow/testing/conformance` with the rest of the tests and then checks `cpu`. Here
it runs as users run it, in processes of its own from another folder: whole on other backends (40 s each), and in parts
on backends with one planted fault each.

The CuPy backend on an emulated CuPy, which is no run on a GPU, is checked here with float32 and bfloat16 alone and
without arrays of 300 rows, for each of which the emulation starts a block of threads. The whole takes 3 to 5 minutes:

    cd tests && python -m pytest -p gradflow.testing.plugin --pyargs gradflow.testing.conformance \
        --gradflow-backend=emulated --gradflow-backend-module=conformance_emulated
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conformance_backends import FAULTS
from devices import require

from gradflow.testing.causes import Outcome, cause, declaration, report

ROOT = Path(__file__).resolve().parent.parent
KIT = "gradflow.testing.conformance"
LEAST = 5000
"""The least number of checks; `cpu` has 7571, and far fewer would mean that some are not collected."""


def environment() -> dict[str, str]:
    path = [str(ROOT), str(ROOT / "backends"), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}


def run_kit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with the kit in a folder without settings; warnings are failures."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-W", "error",
               "--tb=short", "-p", "gradflow.testing.plugin", "--pyargs", *arguments]  # fmt: skip
    return subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True)


def counts(out: str) -> dict[str, int]:
    """Return the numbers in the kit's last line."""
    found = re.search(r"^conformance of \S+: (\d+) checks: (\d+) passed, (\d+) failed, (\d+) declared", out, re.M)
    assert found is not None, out
    return dict(zip(("checks", "passed", "failed", "declared"), map(int, found.groups()), strict=True))


# ---------------------------------------------------------------------- good backends

GOOD = ["fake", "strict", "torch", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_a_good_backend_passes(name: str, tmp_path: Path) -> None:
    require(name)
    done = run_kit(tmp_path, KIT, f"--gradflow-backend={name}", "--gradflow-backend-module=conformance_backends")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    found = counts(done.stdout)
    assert found["checks"] > LEAST
    assert found["failed"] == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile the CUDA sources for the CPU with")
def test_the_cupy_backend_passes_emulated(tmp_path: Path) -> None:
    """EMULATED on the CPU: nothing here ran on a GPU."""
    options = ["--gradflow-backend=emulated", "--gradflow-backend-module=conformance_emulated"]
    chosen = "half- and not long or (not float16 or bfloat16) and not float64 and not 300x"
    done = run_kit(tmp_path, KIT, *options, "-k", chosen)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    found = counts(done.stdout)
    assert found["checks"] > 3000
    assert found["failed"] == 0


@pytest.mark.slow
def test_the_options_as_the_documentation_has_them(tmp_path: Path) -> None:
    done = run_kit(tmp_path, f"{KIT}.test_services", "-k", "test_declarations or test_describe")
    assert done.returncode == 0, done.stdout + done.stderr
    assert counts(done.stdout) == {"checks": 2, "passed": 2, "failed": 0, "declared": 0}
    for name, why in (("nothing", "unknown device 'nothing'"), ("cpu:7", "does not exist")):
        done = run_kit(tmp_path, KIT, f"--gradflow-backend={name}")
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert why in done.stderr


def test_the_kit_needs_pytest_and_numpy_alone() -> None:
    code = (
        "import sys, gradflow.testing.plugin\n"
        "from gradflow.testing.conformance import test_services\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'hypothesis', 'torch', 'array_api_strict'}))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    out = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---------------------------------------------------------------------- planted faults

SWEEP = """
import contextlib, io, json, sys
import pytest
import conformance_backends

class Outcomes:
    def __init__(self):
        self.failed, self.passed, self.declared = {}, [], {}

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.rpartition("::")[2]
        if report.failed:
            self.failed[name] = str(report.longrepr).strip()
        elif hasattr(report, "wasxfail"):
            self.declared[name] = report.wasxfail
        elif report.when == "call":
            self.passed.append(name)

found = {}
for name, checks in json.loads(sys.argv[1]).items():
    outcomes = Outcomes()
    options = ["-q", "-p", "no:cacheprovider", "-p", "gradflow.testing.plugin", "--tb=line", "--pyargs"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        status = pytest.main([*options, *checks, f"--gradflow-backend={name}"], plugins=[outcomes])
    assert outcomes.failed or outcomes.passed, out.getvalue()
    found[name] = {"status": int(status), "out": out.getvalue(), **vars(outcomes)}
print(json.dumps(found))
"""


def node(check: str) -> str:
    """Return the file of a check, by its name."""
    module = {"test_kernel[": "test_kernels", "test_array_function[": "test_array_functions",
              "test_what_has_no_result_raises[": "test_array_functions", "test_python_numbers[": "test_array_functions",
              "test_random_bits[": "test_random", "test_dropout_masks[": "test_random",
              "test_training_run[": "test_training"}  # fmt: skip
    return f"{KIT}.{module.get(check.partition('[')[0] + '[', 'test_services')}::{check}"


def sweep(folder: Path, runs: dict[str, list[str]]) -> dict[str, Any]:
    """Return, for each backend, the checks that fail and those that pass."""
    command = [sys.executable, "-c", SWEEP, json.dumps(runs)]
    out = subprocess.run(command, env=environment(), cwd=folder, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    found: dict[str, Any] = json.loads(out.stdout)
    return found


@pytest.mark.slow
def test_each_planted_fault_is_found_by_its_check_which_passes_without(tmp_path: Path) -> None:
    """One test, so that one worker does the slow runs."""
    runs = {name: [node(check)] for name, (check, _) in FAULTS.items()}
    every = sorted({check for checks in runs.values() for check in checks})
    outcomes = sweep(tmp_path, {**runs, "cpu": every})
    sound = outcomes.pop("cpu")
    assert sound["failed"] == {}
    assert sorted(sound["passed"]) == sorted(check for check, _ in FAULTS.values())
    for fault, outcome in outcomes.items():
        check = FAULTS[fault][0]
        assert list(outcome["failed"]) == [check], fault
        assert outcome["failed"][check], f"{fault}: a failure says what is wrong"
        assert outcome["status"] == pytest.ExitCode.TESTS_FAILED, fault


# ---------------------------------------------------------------------- declarations


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the checks that the declarations of the backends are about."""
    about = [f"{KIT}.test_services", f"{KIT}.test_array_functions", "-k", "cumulative_sum or event or declarations"]
    return sweep(tmp_path_factory.mktemp("kit"), dict.fromkeys(("lacking", "humble", "confused"), about))


@pytest.mark.slow
def test_a_declared_failure_is_none(outcomes: dict[str, Any]) -> None:
    found = outcomes["lacking"]
    assert found["status"] == pytest.ExitCode.OK
    assert found["failed"] == {}
    assert found["declared"].pop("test_event") == "declared unsupported: test_event: no clock"
    assert len(found["declared"]) >= 10
    for check, reason in found["declared"].items():
        assert check.startswith("test_array_function[cumulative_sum-")
        assert check.endswith("-float16]")
        assert reason == "declared unsupported: cumulative_sum[float16]: not in half precision"
    assert f"{len(found['passed'])} passed, 0 failed, {len(found['declared']) + 1} declared unsupported" in found["out"]


@pytest.mark.slow
def test_a_declaration_that_nothing_fails_is_a_failure(outcomes: dict[str, Any]) -> None:
    found = outcomes["humble"]
    assert found["status"] == pytest.ExitCode.TESTS_FAILED
    assert found["declared"] == {}
    messages = {
        f"{k}: declared unsupported, but passes: remove it from `unsupported`" for k in ("cumulative_sum", "test_event")
    }
    assert set(found["failed"].values()) == messages


@pytest.mark.slow
def test_a_declaration_of_nothing_is_a_failure(outcomes: dict[str, Any]) -> None:
    found = outcomes["confused"]
    assert found["status"] == pytest.ExitCode.TESTS_FAILED
    assert "`unsupported` names 'cumulative_product': no check" in found["failed"]["test_declarations"]


# ---------------------------------------------------------------------- causes

SCANLESS = """
import gradflow as gf

class Scanless(type(gf.get_backend("cpu"))):
    name = "scanless"
    unsupported = {}

    def cumulative_sum(self, x, /, *, axis=None):
        raise NotImplementedError(f"no scan of {x.shape[0]} ({x.dtype})")

    def event(self):
        raise NotImplementedError("no clock")

gf.register_backend("scanless", Scanless)
"""


@pytest.mark.slow
def test_failures_end_by_cause_with_the_declaration_to_paste(tmp_path: Path) -> None:
    """With the suggested declaration, the kit passes."""
    about = [f"{KIT}.test_services", f"{KIT}.test_array_functions", "-k", "cumulative_sum or event or declarations"]
    options = ["--gradflow-backend=scanless", "--gradflow-backend-module=scanless", "--tb=no"]
    (tmp_path / "scanless.py").write_text(SCANLESS)
    out = run_kit(tmp_path, *about, *options).stdout
    failed = counts(out)["failed"]
    assert failed > 10
    assert re.search(rf"^by cause \({failed} failures, \d causes\):$", out, re.M)
    assert f"{failed - 1:6} NotImplementedError: no scan of N\n" in out
    assert "     1 NotImplementedError: no clock\n" in out
    assert out.index("by cause") > out.rindex("\nFAILED "), "the list of failures must come first"
    pasted = re.search(r"^    unsupported = \{$.*?^    \}$", out, re.M | re.S)
    assert pasted is not None
    assert '"cumulative_sum' in pasted[0]
    assert pasted[0].count("\n") <= 6, "more than a few names"
    (tmp_path / "scanless.py").write_text(SCANLESS.replace("    unsupported = {}", pasted[0]))
    done = run_kit(tmp_path, *about, *options)
    assert done.returncode == 0, done.stdout
    found = counts(done.stdout)
    assert (found["failed"], found["declared"]) == (0, failed)
    assert "by cause" not in done.stdout
    assert "XFAIL [1] declared unsupported: event: NotImplementedError: no clock\n" in done.stdout


def test_wrong_results_and_checks_of_the_kit_are_not_declared() -> None:
    scan = [Outcome(["cumulative_sum", f"test_scan[{i}]"], "NotImplementedError: no scan") for i in range(2)]
    event = Outcome(["event", "test_event"], "NotImplementedError: no clock")
    calls = Outcome(["test_every_function_has_a_call"], "assert {'sinh'} == set()", wrong=True)
    total = [Outcome(["sum", f"test_sum[{i}]"], "sum: wrong result", wrong=True) for i in range(3)]
    assert set(declaration([*scan, event, calls, *total])) == {"cumulative_sum", "event"}
    last = Outcome(["cumulative_sum", "test_scan[2]"], "cumulative_sum: wrong result", wrong=True)
    assert set(declaration([*scan, event, last])) == {"event"}, "the declaration would hide the wrong result"
    half = [Outcome(["exp", "float16", "exp[float16]"], "TypeError: no float16")] * 2
    single = [Outcome(["exp", "float32", "exp[float32]"], "exp: wrong result", wrong=True)] * 3
    log = Outcome(["log", "float16", "log[float16]"], "")
    assert set(declaration([*half, *single, log])) == {"exp[float16]"}
    lines = report([*scan, calls, *total])
    assert "Wrong results and other failed checks: 4. Correct them: they are not for `unsupported`." in lines
    assert not [line for line in lines if "sum: wrong" in line and "unsupported" in line]
    assert "    unsupported = {" in lines
    assert "    unsupported = {" not in report([calls, *total])


def outcomes_of(failing: Any) -> list[Outcome]:
    """Return outcomes of checks of two functions for three dtypes; `failing` says which fail."""
    return [
        Outcome([f, d, f"{f}[{d}]", f"test_{f}", f"test_{f}[{d}-{i}]"], "why" if failing(f, d, i) else "")
        for f in ("exp", "log") for d in ("float16", "float32", "float64") for i in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("failing", "declared"),
    [
        (lambda f, d, i: False, []),
        (lambda f, d, i: True, ["exp", "log"]),
        (lambda f, d, i: d == "float16", ["float16"]),
        (lambda f, d, i: f == "exp", ["exp"]),
        (lambda f, d, i: (f, d) == ("log", "float32"), ["log[float32]"]),
        (lambda f, d, i: f == "log" and i == 0, ["log"]),
    ],
)
def test_few_names_are_declared(failing: Any, declared: list[str]) -> None:
    assert sorted(declaration(outcomes_of(failing))) == sorted(declared)


def test_a_cause_is_the_same_for_other_numbers_and_shapes() -> None:
    def of(error: Exception) -> str:
        return cause(error, {"exp"})

    assert of(IndexError("no axis 3 (of [1, (2, 3)]) here")) == of(IndexError("no axis 12 (of []) here"))
    assert of(IndexError("no axis 3")) != of(IndexError("no axes"))
    assert of(AssertionError("exp: 1.0, not 2.0")) == of(AssertionError("exp: 3.0, not 2.0")) == ("exp: wrong result")
    assert cause(AssertionError("cpu:0 has none\nassert False"), ()) == "cpu:0 has none"
