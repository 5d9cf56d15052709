"""`gradflow agree`: devices that agree, planted faults that fail in their own rows, and the output."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.backend import discovery, registry
from gradflow.cli import main
from gradflow.testing import compare_devices as agree
from gradflow.testing.compare_devices import Row
from gradflow.testing.workloads import Check, Place, Workload, workloads
from tests.test_cli import child_environment
from tests.twin import twin_device

Cpu: Any = type(gf.get_backend("cpu"))


@pytest.fixture(autouse=True)
def _no_device_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADFLOW_DEVICE", raising=False)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    diagnose = gf.diagnose
    broken = gf.Diagnosis(False, "the driver is on holiday", "type: nvidia-smi")
    monkeypatch.setattr(gf, "diagnose", lambda prefix: broken if prefix == "cuda" else diagnose(prefix))


@contextlib.contextmanager
def planted(**attributes: Any) -> Iterator[str]:
    """The name of a device whose backend is the CPU's, with some attributes replaced."""
    gf.register_backend("planted", type("Planted", (Cpu,), {"name": "planted", **attributes}))
    try:
        yield "planted"
    finally:
        registry.unregister_backend("planted")


@cache
def rows_of_the_fake_device() -> list[Row]:
    return agree.compare("cpu", "fake")


def failing(rows: list[Row]) -> set[str]:
    return {row.what for row in rows if not row.passed}


# ---------------------------------------------------------------------- agreement


def test_the_cpu_and_the_fake_device_agree() -> None:
    rows = rows_of_the_fake_device()
    assert failing(rows) == set()
    assert {row.kind for row in rows} == {"exact", "ulp", "bound"}
    assert len({(row.group, row.what) for row in rows}) == len(rows) > 100
    for row in rows:
        assert 0 <= row.share <= 1
        assert 0 <= row.ulp < math.inf
        assert row.kind != "exact" or (row.bound, row.ulp, row.share) == ("exact", 0, 0)
        assert len(row.bound) <= 34, "the columns to its right would move"


def test_a_backend_of_the_same_library_agrees_too() -> None:
    with twin_device() as twin:
        assert [row._replace(ulp=0, share=0) for row in agree.compare(twin, "cpu")] == [
            row._replace(ulp=0, share=0) for row in rows_of_the_fake_device()
        ]


@pytest.mark.slow
def test_the_cupy_backend_agrees_on_an_emulated_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """EMULATED: NumPy behind CuPy's names, and the kernels through g++. It says nothing about a GPU."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "cupy_backend"))
    import emulated_cupy
    from emulated_device import COMPILER, NO_COMPILER, EmulatedBackend

    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    emulated_cupy.install(monkeypatch)
    monkeypatch.setitem(discovery._registered, "emulated", EmulatedBackend)
    try:
        rows = agree.compare("cpu", "emulated")
    finally:
        registry._backends.pop(gf.Device("emulated"), None)
    assert [(row.what, row.problem) for row in rows if not row.passed] == []


@pytest.mark.gpu
def test_the_cpu_and_cuda_agree() -> None:
    from devices import require_gpu

    require_gpu()
    assert [(row.what, row.problem) for row in agree.compare("cpu", "cuda") if not row.passed] == []


FORMER = {
    "gradflow.testing.agree": ("gradflow.testing.compare_devices", "compare"),
    "gradflow.testing.agreement": ("gradflow.testing.tolerances", "compare"),
    "gradflow.testing.contract": ("gradflow.testing.contract_docs", "update"),
}


@pytest.mark.parametrize("name", FORMER)
def test_former_module_names_are_importable(name: str) -> None:
    module, offered = FORMER[name]
    assert getattr(importlib.import_module(name), offered) is getattr(importlib.import_module(module), offered)


def test_the_former_command_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["contract"])
    monkeypatch.delitem(sys.modules, "gradflow.testing.contract", raising=False)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("gradflow.testing.contract", run_name="__main__")
    assert capsys.readouterr().err.startswith("usage:")


def test_everything_that_matters_has_a_row() -> None:
    found = {row.what for row in rows_of_the_fake_device()}
    assert {
        "exp", "tanh", "tanh: gradient", "less", "sum over axis 1", "argmax", "take", "take: gradient", "random bits",
        "initial weights", "dropout: mask", "permutation", "softmax", "cross_entropy: gradient", "loss", "output",
        "gradient of 0.weight", "10 steps of adamw", "losses with sgd", "moved to the CPU midway",
    } <= found  # fmt: skip


def test_bounds_are_not_far_above_what_a_correct_device_needs() -> None:
    """Bounds in ulp are used to a tenth at least; results that round once are within half an ulp."""
    for row in rows_of_the_fake_device():
        if row.kind == "ulp":
            assert row.share > 0.1, row
        if row.what in ("add", "subtract", "multiply", "divide", "sqrt", "square"):
            assert row.ulp <= 0.5, row


def test_the_generators_of_the_user_are_left_alone() -> None:
    gf.manual_seed(3)
    for workload in workloads():
        with gf.use_device("cpu"):
            workload.run(Place("cpu"))
    assert gf.random.default_generator.counter == 0


# ---------------------------------------------------------------------- planted faults


def sin_off_by_1e5(x: Any, /) -> Any:
    return np.sin(x) * np.asarray(1 + 1e-5, x.dtype)


def fused_gelu_without_its_cube(
    self: Any, x: Any, weight: Any, bias: Any, activation: str | None, parameter: float
) -> Any:
    if activation != "gelu":
        return Cpu.linear(self, x, weight, bias, activation, parameter)
    z, _ = Cpu.linear(self, x, weight, bias, None, 0.0)
    return z * 0.5 * (1 + np.tanh(np.float32(0.8) * z)), z


def sum_in_float16(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return np.asarray(np.sum(x.astype(np.float16), axis=axis, keepdims=keepdims, dtype=np.float16)).astype(x.dtype)


def matmul_in_float16(a: Any, b: Any, /) -> Any:
    return np.matmul(a.astype(np.float16), b.astype(np.float16)).astype(a.dtype)


def last_maximum(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
    return x.shape[axis] - 1 - np.argmax(np.flip(x, axis=axis), axis=axis, keepdims=keepdims)


def sqrt_to_float64(x: Any, /) -> Any:
    return np.sqrt(x.astype(np.float64))


def missing(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("no such function here")


def shifted_dropout(self: Any, x: Any, p: float, key: int, counter: int) -> Any:
    return Cpu.dropout(self, x, p, key, counter + 1)


def shifted_bits(self: Any, key: int, counter: int, n: int) -> Any:
    return Cpu.random_bits(self, key, counter, n + 1)[1:]


def late_adam(
    self: Any, parameter: Any, gradient: Any, mean: Any, square: Any, options: Any, scalars: Any, **results: Any
) -> None:
    beta1, beta2, *_ = options
    correction1, root = scalars.bias_correction1, scalars.bias_correction2_root
    later = scalars._replace(
        bias_correction1=1 - beta1 * (1 - correction1), bias_correction2_root=math.sqrt(1 - beta2 * (1 - root**2))
    )
    Cpu.adam_step(self, parameter, gradient, mean, square, options, later, **results)


FAULTS: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "sin off by 1e-5": (
        {"sin": staticmethod(sin_off_by_1e5)}, {"sin"}, {"exp", "tanh", "sigmoid", "add", "random bits"},
    ),
    "a fused activation": (
        {"linear": fused_gelu_without_its_cube},
        {"linear with gelu"}, {"gelu", "gelu: gradient", "linear with silu", "linear 784-100"},
    ),
    "dropout mask shifted": (
        {"dropout": shifted_dropout},
        {"dropout: mask", "dropout: mask of the gradient", "dropout: values", "losses with sgd"},
        {"random bits", "initial weights", "permutation", "loss", "10 steps of sgd"},
    ),
    "sum in float16": (
        {"sum": staticmethod(sum_in_float16)},
        {"sum over axis 0", "sum over axis 1"},
        {"max", "argmax", "mean", "7x784 @ 784x100", "add"},
    ),
    "random bits off by one": (
        {"random_bits": shifted_bits},
        {"random bits", "random bits, far in the stream", "uniform", "normal", "permutation", "initial weights"},
        {"exp", "1x1 @ 1x1", "10 steps of adam"},
    ),
    "argmax takes the last": ({"argmax": staticmethod(last_maximum)}, {"argmax"}, {"argmin", "max", "argsort"}),
    "a silent float64 result": ({"sqrt": staticmethod(sqrt_to_float64)}, {"sqrt"}, {"exp", "square"}),
    "a function that raises": ({"sin": missing}, {"sin", "sin: gradient"}, {"exp", "tanh"}),
    "adam a step ahead": (
        {"adam_step": late_adam},
        {"10 steps of adam", "10 steps of adamw", "losses with adam", "moved from the CPU midway"},
        {"10 steps of sgd", "losses with sgd", "gradient of 0.weight"},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_in_its_own_rows(fault: str) -> None:
    attributes, wrong, right = FAULTS[fault]
    with planted(**attributes) as device:
        rows = agree.compare("cpu", device)
    assert wrong <= failing(rows), f"passed: {wrong - failing(rows)}"
    assert not right & failing(rows)
    assert right <= {row.what for row in rows}
    for row in rows:
        if not row.passed:
            assert row.problem.startswith("planted:0: "), "the fault is on one device, which is named"
            assert row.share > 1


def test_a_backend_that_gives_lists_and_cannot_be_described_is_told_so() -> None:
    with planted(to_host=lambda self, x: Cpu.to_host(self, x).tolist(), describe=missing) as device:
        (row,) = [row for row in agree.compare("cpu", device) if row.what == "exp"]
        told = agree.heading(agree.choose([device]))
    assert row.problem == "planted:0: TypeError: to_host must return a NumPy array; it returned list"
    assert "planted:0: device 'planted:0' cannot be described: NotImplementedError: no such function here" in " ".join(
        told.split()
    )


def test_a_product_in_half_precision_is_beyond_its_bound_where_it_is_tight() -> None:
    """The bound of a long sum is wide; that of 65 terms is below the error of float16."""
    with planted(matmul=staticmethod(matmul_in_float16)) as device:
        assert {"1x1 @ 1x1", "5x33x65 @ 5x65x17"} <= failing(agree.compare("cpu", device))


def test_a_problem_says_how_far_off_the_result_is() -> None:
    with planted(sin=staticmethod(sin_off_by_1e5)) as device:
        (row,) = [row for row in agree.compare(device, "cpu") if row.what == "sin"]
    assert 50 < row.ulp < 300
    assert row.share == pytest.approx(row.ulp / 4, rel=0.01)
    assert re.search(r"an error of \S+ \(.+ ulp\), \S+ times its bound", row.problem)


def test_the_words_of_an_exception_are_cut() -> None:
    def run(_: Place) -> list[Check]:
        return [Check("good", lambda: np.ones(1)), Check("bad", lambda: wrong())]

    def wrong() -> Any:
        if gf.current_device().type == "cpu":
            return np.ones(1)
        raise ValueError("wrong\n" * 1000)

    good, bad = agree._judge(Workload("group", run, exact=True), ["fake:0"])
    assert good.passed
    assert re.fullmatch(r"fake:0: ValueError: (wrong )+\.\.\.", bad.problem)
    assert len(bad.problem) < 300


# ---------------------------------------------------------------------- the command


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    return (main(["agree", *words]), *capsys.readouterr())


@pytest.mark.usefixtures("no_cuda")
def test_without_cuda_the_fake_device_is_compared_and_the_diagnosis_told(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys)
    assert (status, err) == (0, "")
    head, *groups, last = out.split("\n\n")
    assert head.startswith(f"gradflow {gf.__version__}, Python ")
    assert f"NumPy {np.__version__}" in head
    told = " ".join(head.split())
    assert "cpu: " in told
    assert "fake:0: " in told
    assert "no CUDA device: the driver is on holiday; type: nvidia-smi" in told
    rows = rows_of_the_fake_device()
    assert sum(line.endswith(" pass") for line in out.splitlines()) == len(rows)
    assert max(map(len, out.splitlines())) <= 80
    for group in groups:
        names = [line[:57] for line in group.splitlines()]
        assert len(set(names)) == len(names), "two rows look alike"
    assert [g.split("  ")[0] for g in groups] == list(dict.fromkeys(row.group for row in rows))
    assert re.fullmatch(rf"all {len(rows)} agree; the nearest to its bound is .+, at 0\.\d+ of it\n", last)


def test_a_failure_is_a_line_below_its_row_and_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with planted(sin=staticmethod(sin_off_by_1e5)) as device:
        status, out, err = run(capsys, device)
    assert (status, err) == (1, "")
    lines = out.splitlines()
    (place,) = [i for i, line in enumerate(lines) if re.match(r"  sin +\d+ ulp +\S+ +\S+ FAIL$", line)]
    assert max(map(len, lines)) <= 80
    assert re.match(r"      planted:0: np\.float32\(", lines[place + 1])
    assert re.match(r"\d+ of \d+ FAIL: sin", lines[-1] if "FAIL:" in lines[-1] else "".join(lines[-2:]))
    assert max(map(len, lines)) <= 100


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with planted(sin=missing) as device:
        status, out, err = run(capsys, "cpu", device, "--json")
    assert (status, err) == (1, "")
    found = json.loads(out)
    assert set(found) == {"passed", "devices", "reason", "versions", "rows"}
    assert found["passed"] is False
    assert [d["name"] for d in found["devices"]] == ["cpu", "planted:0"]
    assert found["versions"]["gradflow"] == gf.__version__
    assert set(found["versions"]) == {"gradflow", "python", "numpy"}
    assert [row["what"] for row in found["rows"]] == [row.what for row in rows_of_the_fake_device()]
    for row in found["rows"]:
        assert set(row) == {*Row._fields, "passed"}
        assert row["passed"] is (row["problem"] == "")
    (sin,) = [row for row in found["rows"] if row["what"] == "sin"]
    assert (sin["passed"], sin["ulp"], sin["share"], sin["kind"]) == (False, None, None, "ulp")
    assert sin["problem"] == "planted:0: NotImplementedError: no such function here"


@pytest.mark.slow
@pytest.mark.usefixtures("no_cuda")
def test_json_of_devices_that_agree(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["passed"] is True
    assert [d["name"] for d in found["devices"]] == ["cpu", "fake:0"]
    assert "the driver is on holiday" in found["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cpu cpu", "agree compares two devices; got cpu twice"),
        ("fake fake:0", "agree compares two devices; got fake:0 twice"),
        ("cpu fake cuda", "agree compares two devices; got 3: cpu, fake, cuda"),
        ("nonsense", "unknown device 'nonsense'; there are cpu, cuda"),
        ("cpu nonsense", "unknown device 'nonsense'"),
        ("cuda:x", "a device is a name like 'cpu', 'cuda' or 'cuda:0'; got 'cuda:x'"),
        ("cpu cpu:1", "there is one; use 'cpu'"),
        ("fake:7", "there are 2 of type 'fake'"),
        ("closed", "the lab is closed; ask for the key"),
        ("poor", "lacks required array functions: expm1"),
        ("--jsn", "gradflow agree does not know '--jsn'"),
        ("cpu nosuch --module nosuch", "--module nosuch: ModuleNotFoundError: No module named 'nosuch'"),
        ("cpu nosuch --module=", "--module : ValueError: Empty module name"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poor(Cpu):  # type: ignore[misc]
        def __init__(self, index: int = 0) -> None:
            raise NotImplementedError("backend 'poor' lacks required array functions: expm1")

    class Closed(Cpu):  # type: ignore[misc]
        @classmethod
        def diagnose(cls) -> gf.Diagnosis:
            return gf.Diagnosis(False, "the lab is closed", "ask for the key")

    for name, backend in (("closed", Closed), ("poor", Poor)):
        monkeypatch.setitem(discovery._registered, name, backend)
    status, out, err = run(capsys, *words.split())
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"gradflow: error: .*{re.escape(message)}.*\n", err), err


def test_without_the_cpu_there_is_no_reference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for device in ("fake:0", "fake:1"):  # these use the CPU's
        gf.get_backend(device)
    monkeypatch.setenv("GRADFLOW_BACKEND_BLOCK", "cpu")
    monkeypatch.delitem(registry._backends, gf.Device("cpu"))
    status, out, err = run(capsys, "fake:0", "fake:1")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"gradflow: error: the backend of 'cpu' is not loaded, because GRADFLOW_BACKEND_.*\n", err)


def test_cuda_without_a_gpu_is_an_error_that_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = gf.diagnose("cuda")
    if diagnosis.usable:
        pytest.skip("there is a CUDA device")
    for words in (("cuda",), ("cpu", "cuda"), ("cuda", "fake")):
        status, out, err = run(capsys, *words)
        assert (status, out) == (2, "")
        assert err.count("\n") == 1
        assert " ".join(diagnosis.state.split()) in err


@pytest.mark.usefixtures("no_cuda")
def test_which_devices_the_words_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, fake = gf.Device("cpu"), gf.Device("fake")
    assert agree.choose()[:2] == agree.choose(["cpu"])[:2] == (cpu, fake)
    assert agree.choose(["fake"]) == (cpu, fake, "")
    assert agree.choose(["fake", "cpu"]) == (fake, cpu, "")
    assert agree.choose(["fake:1", "fake:0"]) == (gf.Device("fake", 1), fake, "")
    monkeypatch.setenv("GRADFLOW_DEVICE", "fake:1")
    assert agree.choose(["cpu", "auto"]) == (cpu, gf.Device("fake", 1), "")
    monkeypatch.setenv("GRADFLOW_DEVICE", "nonsense")
    with pytest.raises(ValueError, match="unknown device 'nonsense'"):
        agree.choose(["cpu", "auto"])


def test_with_cuda_it_is_compared_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gf, "diagnose", lambda prefix: gf.Diagnosis(True, "an emulated GPU"))
    cuda = type("Cuda", (Cpu,), {"name": "cuda"})
    monkeypatch.setitem(registry._backends, gf.Device("cuda"), cuda())
    assert agree.choose() == agree.choose(["cpu"]) == (gf.Device("cpu"), gf.Device("cuda"), "")


ONLY_NUMPY = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package not in sys.stdlib_module_names and package not in ("numpy", "gradflow", "gradflow_numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from gradflow.cli import main
sys.exit(main(["agree", "fake"]))
"""


@pytest.mark.slow
def test_only_numpy_is_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONLY_NUMPY], env=child_environment(), capture_output=True, encoding="utf-8", timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^all \d+ agree; ", done.stdout, re.M)


def test_help_says_what_is_judged_and_how(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for words in ("float64 on the CPU", "--json", "fake", "exit status"):
        assert words in out
