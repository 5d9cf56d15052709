"""Backends of installed packages are found, are chosen by name only, and never disturb gradflow, whatever they do.

The packages are created here. One is installed with pip into a new virtual environment; the others are unpacked, as by
pip, in separate folders on the path. Each test starts a new process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.backend import discovery

ROOT = Path(__file__).resolve().parent.parent

BACKEND = """
import os, sys
import numpy as np
from gradflow.backend import Backend, Diagnosis, MemoryStats

print("loaded NAME", file=sys.stderr)


class NAMEBackend(Backend):
    name = "NAME"

    def __init__(self, index=0):
        super().__init__(np, index)

    @classmethod
    def device_count(cls):
        return 2

    @classmethod
    def diagnose(cls):
        return Diagnosis(True, "it is fine")

    def to_host(self, array):
        return np.array(array)

    def from_host(self, values):
        return np.array(values)

    def synchronize(self):
        pass

    def memory_stats(self):
        return MemoryStats(0, None, 0)

    def describe(self):
        return "a toy called NAME"
"""


def backend(name: str, *changes: tuple[str, str]) -> str:
    """The source of a backend, with the given texts replaced."""
    source = BACKEND.replace("NAME", name)
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    return source


def package(folder: Path, name: str, module: str, source: str, *entry_points: str, version: str = "1.0") -> Path:
    """Unpack a package of one module into `folder`, as pip does; returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "entry_points.txt").write_text("\n".join(["[gradflow.backends]", *entry_points, ""]))
    files = [p.relative_to(folder).as_posix() for p in [folder / f"{module}.py", *sorted(info.iterdir())]]
    (info / "RECORD").write_text("".join(f"{f},,\n" for f in [*files, f"{info.name}/RECORD"]))
    return folder


def run(code: str, *path: Path, python: str = sys.executable, **variables: str) -> tuple[str, str]:
    """Run a new process with these folders first on its path; returns what it prints to stdout and stderr."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADFLOW_")}
    numpy_folder = Path(np.__file__).resolve().parent.parent
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*path, ROOT, ROOT / "backends", numpy_folder]))
    environment["PYTHONIOENCODING"] = "utf-8"
    done = subprocess.run(
        [python, "-c", code], env={**environment, **variables}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


DEVICES = """
import sys
from gradflow.cli import main
status = [main(["devices"]), print("--"), main(["devices", "--json"])]
"""

ERROR = """
import gradflow
def error(device):
    try:
        gradflow.zeros(1, device=device)
    except (gradflow.DeviceUnavailableError, ValueError) as e:
        return f"{type(e).__name__}: {e}"
"""


def devices(*path: Path, **variables: str) -> tuple[str, dict[str, Any]]:
    """The table of `gradflow devices`, and its JSON, with the backends by prefix under the key "by"."""
    out, _ = run(DEVICES, *path, **variables)
    table, text = out.split("--\n")
    report = json.loads(text)
    report["by"] = {found["prefix"]: found for found in report["backends"]}
    return table, report


# ---------------------------------------------------------------------- a package that works


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A folder with a package whose backend is called `toy`."""
    return package(tmp_path / "toy", "gradflow-toy", "toy_backend", backend("toy"), "toy = toy_backend:toyBackend")


USE = """
import sys
import gradflow as gf
assert "toy_backend" not in sys.modules and "importlib.metadata" not in sys.modules
gf.zeros(1)
assert "importlib.metadata" not in sys.modules, "the packages are searched for a name that needs no search"
print(gf.choose_device()[0].type == "toy")
assert "toy_backend" not in sys.modules
w = gf.ones((2, 3), device="toy:1", requires_grad=True)
gf.linear(gf.ones((4, 3), device="toy:1"), w, activation="tanh").sum().backward()
print(w.grad.device, w.grad.shape, round(w.grad.sum().item(), 4))
print([str(d) for d in gf.devices() if d.type == "toy"], gf.diagnose("toy"))
"""


def assert_usable(out: str, err: str) -> None:
    slope = 24 * (1 - np.tanh(3.0) ** 2)
    assert out.splitlines() == [
        "False", f"toy:1 (2, 3) {slope:.4f}", "['toy:0', 'toy:1'] " + str(gf.Diagnosis(True, "it is fine")),
    ]  # fmt: skip
    assert err.splitlines() == ["loaded toy"], "once"


def test_a_package_that_lies_on_the_path(toy: Path) -> None:
    assert_usable(*run(USE, toy))
    table, report = devices(toy)
    for i in (0, 1):
        assert re.search(rf"^toy:{i} +yes +a toy called toy$", table, re.M)
    assert report["by"]["toy"] == {
        "prefix": "toy", "source": "gradflow-toy 1.0 (toy_backend:toyBackend)", "usable": True, "code": "fine",
        "state": "it is fine", "fix": "",
        "devices": [
            {"device": f"toy:{i}", "description": "a toy called toy",
             "memory": {"current": 0, "peak": None, "reserved": 0}} for i in (0, 1)
        ],
    }  # fmt: skip
    assert report["notes"] == []
    assert report["auto"]["device"] != "toy:0", "a third party's backend is chosen by name only"


@pytest.mark.slow
def test_a_package_installed_with_pip_into_a_fresh_environment(toy: Path, tmp_path: Path) -> None:
    """Found after `pip install`, usable, and gone after `pip uninstall`."""
    try:
        subprocess.run([sys.executable, "-m", "pip", "--version"], check=True, capture_output=True, timeout=120)
    except subprocess.CalledProcessError:
        pytest.skip("there is no pip here to install a package with")
    wheel = tmp_path / "gradflow_toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in toy.rglob("*.*"):
            if file.is_file():
                archive.write(file, file.relative_to(toy))
        archive.write(toy / "gradflow_toy-1.0.dist-info" / "METADATA", "gradflow_toy-1.0.dist-info/METADATA")
        for name in ("WHEEL", "RECORD"):
            archive.write(toy / "gradflow_toy-1.0.dist-info" / name, f"gradflow_toy-1.0.dist-info/{name}")
    venv.create(tmp_path / "environment", symlinks=os.name != "nt")
    python = tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    known = "import gradflow.backend.discovery as d; print('toy' in d.backend_prefixes())"
    assert run(known, python=str(python)) == ("False\n", "")
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", str(wheel)], check=True, timeout=120)
    assert_usable(*run(USE, python=str(python)))
    subprocess.run([*pip, "uninstall", "-q", "-y", "gradflow-toy"], check=True, timeout=120)
    assert run(known, python=str(python)) == ("False\n", "")


def test_the_environment_names_the_device(toy: Path) -> None:
    out, _ = run("import gradflow as gf; print(*gf.choose_device())", toy, GRADFLOW_DEVICE="toy:1")
    assert out == "toy:1 GRADFLOW_DEVICE is set\n"
    table, _ = devices(toy, GRADFLOW_DEVICE="toy")
    assert table.endswith("auto is toy:0 (GRADFLOW_DEVICE is set)\n")


def test_the_same_package_twice_on_the_path_is_one(toy: Path, tmp_path: Path) -> None:
    changed = backend("toy", ("a toy called toy", "the second"))
    second = package(
        tmp_path / "second", "gradflow_toy", "toy_backend", changed, "toy = toy_backend:toyBackend", version="0.9"
    )
    _, report = devices(toy, second)
    assert report["by"]["toy"]["source"].startswith("gradflow-toy 1.0 ")
    assert report["by"]["toy"]["devices"][0]["description"] == "a toy called toy"


def test_what_a_program_registers_comes_before_a_package(toy: Path) -> None:
    source = backend("toy", ("a toy called toy", "the program's own"))
    code = f"import gradflow as gf\n{source}\ngf.register_backend('toy', toyBackend)\n" + (
        "print(gf.get_backend('toy').describe(), 'toy_backend' in sys.modules)"
    )
    assert run(code, toy)[0] == "the program's own False\n"


# ---------------------------------------------------------------------- packages that do not work

SERVICE = "    def to_host(self, array):\n        return np.array(array)\n"
NAMESPACE = """
class Poor:
    def __getattr__(self, name):
        if name in ("matmul", "expm1"):
            raise AttributeError(name)
        return getattr(np, name)

"""
FAULTS: dict[str, tuple[str, str, list[str]]] = {
    "raises": ("raise RuntimeError('no licence\\nfound')", "cannot-be-loaded", ["RuntimeError: no licence found"]),
    "exits": ("import sys; sys.exit('goodbye')", "cannot-be-loaded", ["SystemExit: goodbye"]),
    "exits0": ("raise SystemExit", "cannot-be-loaded", ["SystemExit"]),
    "base": ("class Odd(BaseException): pass\nraise Odd('odd')", "cannot-be-loaded", ["Odd: odd"]),
    "syntax": ("this is no Python", "cannot-be-loaded", ["SyntaxError"]),
    "needs": ("import no_such_library", "cannot-be-loaded", ["No module named 'no_such_library'"]),
    "misses": ("", "cannot-be-loaded", ["AttributeError", "missesBackend"]),
    "function": ("def functionBackend(): ...", "cannot-be-loaded", ["gradflow.backend.Backend; it is of type f"]),
    "other": ("class otherBackend: name = 'other'", "cannot-be-loaded", ["Backend; it is the class otherB"]),
    "abstract": (backend("abstract", (SERVICE, "")), "cannot-be-loaded", ["lacks required services: to_host"]),
    "misnamed": (
        backend("misnamed", ('name = "misnamed"', 'name = "cpu"')), "cannot-be-loaded",
        ["prefix of its devices, 'misnamed'; it is 'cpu': set name"],
    ),
    "poor": (
        backend("poor", ("\n\nclass poor", NAMESPACE + "\nclass poor"), ("(np, index)", "(Poor(), index)")),
        "cannot-be-started", ["lacks required array functions: expm1, matmul"],
    ),
    "unmade": (
        backend("unmade", ("super().__init__(np, index)", "sys.exit(3)")), "cannot-be-started", ["SystemExit: 3"],
    ),
    "headless": (
        backend("headless", ("super().__init__(np, index)", "pass")), "cannot-be-started",
        ["must call super().__init__(namespace, index)"],
    ),
    "asked": (
        backend("asked", ('return Diagnosis(True, "it is fine")', "raise OSError('gone')")), "cannot-be-asked",
        ["OSError: gone"],
    ),
    "tuple": (
        backend("tuple", ('Diagnosis(True, "it is fine")', '(True, "fine")')), "cannot-be-asked", ["(True, 'fine')"],
    ),
    "counts": (
        backend("counts", ("return 2", "return 'two'")), "cannot-be-asked",
        ["device_count() must return an integer of at most 4096; it returns 'two'"],
    ),
    "none": (backend("none", ("return 2", "return 0")), "no-device", ["it is fine; but there is no device"]),
    "unready": (
        backend("unready", ('Diagnosis(True, "it is fine")', 'Diagnosis(False, "it is off", "type: on")')),
        "unusable", ["it is off"],
    ),
    "speechless": (
        backend("speechless", ('return "a toy called speechless"', "1 / 0")), "unusable",
        ["cannot be described: ZeroDivisionError"],
    ),
    "leaves": (
        backend("leaves", ('return "a toy called leaves"', "sys.exit(7)")), "unusable",
        ["cannot be described: SystemExit: 7"],
    ),
    "cancels": (
        backend("cancels", ('return "a toy called cancels"', "raise __import__('asyncio').CancelledError('late')")),
        "unusable", ["cannot be described: CancelledError: late"],
    ),
    "bytes": (
        backend("bytes", ('return "a toy called bytes"', 'return b"a toy"')), "unusable",
        ["describe() must return a string; it returns b'a toy'"],
    ),
    "remembers": (
        backend("remembers", ("return MemoryStats(0, None, 0)", "return {'current': 0}")), "unusable",
        ["memory_stats() must return gradflow.backend.MemoryStats of integers; it returns {'current': 0}"],
    ),
    "measures": (
        backend("measures", ("return MemoryStats(0, None, 0)", "return MemoryStats('much', None, 0)")), "unusable",
        ["memory_stats() must return gradflow.backend.MemoryStats of integers"],
    ),
    "many": (
        backend("many", ("return 2", "return 10**9")), "cannot-be-asked",
        ["device_count() must return an integer of at most 4096; it returns 1000000000"],
    ),
    "wordless": (
        backend("wordless", ('Diagnosis(True, "it is fine")', "Diagnosis(True, 3)")), "cannot-be-asked",
        ["diagnose() must return strings as state, fix and code"],
    ),
    "unsayable": (
        "class Odd(Exception):\n    def __str__(self): raise OSError\nraise Odd", "cannot-be-loaded",
        ["Odd: an error that cannot be shown (OSError)"],
    ),
    "red": (
        "raise RuntimeError('\\x1b[31mred\\x1b]0;title\\x07 \\u202etxt.exe')", "cannot-be-loaded",
        ["RuntimeError: \\x1b[31mred\\x1b]0;title\\x07 \\u202etxt.exe"],
    ),
    "nameless": (
        backend("nameless", ('    name = "nameless"\n', "")), "cannot-be-loaded",
        ["prefix of its devices, 'nameless'; it is missing: set name = "],
    ),
    "renamed": (
        backend("renamed", ("super().__init__(np, index)", 'self.name = "other"; super().__init__(np, index)')),
        "cannot-be-started", ["the prefix of its devices, 'renamed'; it is 'other'"],
    ),
}  # fmt: skip
"""For each backend: the source of its module, the code of the diagnosis, and texts in the diagnosis."""

WORKS_ANYWAY = {"speechless", "leaves", "cancels", "bytes", "remembers", "measures"}
"""Backends that compute, but fail in a service that only `gradflow devices` uses."""
LOUD = """
import os, subprocess, sys
print("hello from loud")
os.write(1, b"and from below\\n")
subprocess.run([sys.executable, "-c", "print('and from a child')"])
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders with a package for each of `FAULTS`, some that work, and one with malformed entry points."""
    folder = tmp_path_factory.mktemp("faulty")
    for name, (source, _, _) in FAULTS.items():
        package(folder, f"gradflow-{name}", f"{name}_backend", source, f"{name} = {name}_backend:{name}Backend")
    package(folder, "gradflow-zebra", "zebra_backend", backend("zebra"), "zebra = zebra_backend:zebraBackend")
    closer = "import sys\nsys.stdout.close()\nsys.stderr.close()\n" + backend("closer")  # before loud, by name
    package(folder, "gradflow-closer", "closer_backend", closer, "closer = closer_backend:closerBackend")
    loud = LOUD + backend("loud", ('return "a toy called loud"', 'print("louder"); return "\\x1b[1ma loud\\n toy"'))
    package(folder, "gradflow-loud", "loud_backend", loud, "loud = loud_backend:loudBackend")
    package(folder, "unreadable", "unreadable", "")
    (folder / "unreadable-1.0.dist-info" / "entry_points.txt").write_bytes(b"[gradflow.backends]\n\xff = x:Y\n")
    return [folder]


@pytest.fixture(scope="module")
def report(faulty: list[Path]) -> tuple[str, dict[str, Any]]:
    """The output of `gradflow devices` with all of them installed."""
    return devices(*faulty)


def test_those_that_work_are_listed_beside_those_that_do_not(report: Any) -> None:
    table, found = report
    assert "zebra:0" in table
    assert found["by"]["zebra"]["usable"]
    assert found["by"]["closer"]["usable"]
    assert found["by"]["cpu"]["usable"]
    assert set(FAULTS) < set(found["by"])
    assert any("package unreadable cannot be read" in note for note in found["notes"])
    assert "note: the entry points of the package unreadable cannot be read" in table


def test_what_a_package_prints_is_not_in_the_report(report: Any, faulty: list[Path]) -> None:
    """It sends no control codes to the terminal either; the fixture parses the JSON, which such output would break."""
    table, found = report
    assert table.startswith("device ")
    assert all(character.isprintable() or character == "\n" for character in table)
    assert re.search(r"^loud:0 +yes +\\x1b\[1ma loud toy$", table, re.M)
    assert found["by"]["loud"]["devices"][1]["description"] == "\\x1b[1ma loud toy"
    command = "from gradflow.cli import main; main(['agree', 'cpu', 'loud', '--json'])"
    out, err = run(command, *faulty)
    assert json.loads(out)["devices"][1]["name"] == "loud:0"
    for words in ("hello from loud", "and from below", "and from a child", "louder"):
        assert words in err


@pytest.mark.parametrize("name", FAULTS)
def test_a_package_with_a_fault_is_a_line(report: Any, name: str) -> None:
    table, found = report
    _, code, words = FAULTS[name]
    entry = found["by"][name]
    assert (entry["usable"], entry["code"], entry["devices"]) == (False, code, [])
    for word in words:
        assert word in entry["state"]
    (line,) = [line for line in table.splitlines() if line.startswith(f"{name} ")]
    assert line.split(None, 2)[1:] == ["no", entry["state"]]
    if code.startswith("cannot-be"):
        assert f"gradflow-{name} 1.0 ({name}_backend:{name}Backend)" in entry["state"]
        assert f"pip uninstall gradflow-{name}" in entry["fix"]
        assert f"export GRADFLOW_BACKEND_BLOCK={name}" in entry["fix"]


def test_the_error_of_a_device_says_the_same(report: Any, faulty: list[Path]) -> None:
    """Neither the import of gradflow nor the CPU is affected."""
    names = [name for name in FAULTS if name not in WORKS_ANYWAY]
    code = f"{ERROR}\nprint(gradflow.ones(2).sum().item())\nfor name in {names}: print(' '.join(error(name).split()))"
    first, *errors = run(code, *faulty)[0].splitlines()
    assert first == "2.0"
    assert len(errors) == len(names)
    for name, line in zip(names, errors, strict=True):
        assert line.startswith("DeviceUnavailableError: "), line
        assert report[1]["by"][name]["state"] in line
        assert report[1]["by"][name]["fix"] in line


def test_a_package_that_fails_is_loaded_once(tmp_path: Path) -> None:
    source = "import sys; print('once', file=sys.stderr); raise RuntimeError('no')"
    folder = package(tmp_path / "x", "gradflow-bad", "bad_backend", source, "bad = bad_backend:X")
    out, err = run(f"{ERROR}\nprint(error('bad') == error('bad:1'), gradflow.diagnose('bad').usable)", folder)
    assert (out, err) == ("True False\n", "once\n")


def test_an_interrupt_while_a_package_is_loaded_goes_through(tmp_path: Path) -> None:
    folder = package(tmp_path / "x", "gradflow-bad", "bad_backend", "raise KeyboardInterrupt", "bad = bad_backend:X")
    code = "import gradflow\ntry:\n    gradflow.diagnose('bad')\nexcept KeyboardInterrupt:\n    print('stopped')"
    assert run(code, folder)[0] == "stopped\n"


@pytest.mark.slow
def test_a_package_that_closes_stdout_is_no_traceback(faulty: list[Path], tmp_path: Path) -> None:
    words = ["train", "iris", "--device", "closer:5", "--out", str(tmp_path / "run")]
    out, err = run(f"from gradflow.cli import main; print(main({words}))", *faulty)
    assert out.splitlines()[1:] == ["2"], "the first line says that training starts"
    assert err.splitlines()[-1].startswith("gradflow: error: device 'closer:5' does not exist")


def test_a_faulty_backend_that_the_environment_names(faulty: list[Path]) -> None:
    out, err = run("from gradflow.cli import main; print(main(['devices']))", *faulty, GRADFLOW_DEVICE="poor")
    assert out.endswith("\n2\n")
    assert "zebra:0" in out
    assert "gradflow: error: auto selects the device of GRADFLOW_DEVICE: the backend of 'poor'" in err
    assert "expm1, matmul" in err


# ---------------------------------------------------------------------- claims


def test_two_packages_that_claim_one_name_get_it_neither(toy: Path, tmp_path: Path) -> None:
    rival = package(tmp_path / "rival", "gradflow-rival", "rival", backend("toy"), "toy = rival:toyBackend")
    table, found = devices(toy, rival)
    entry = found["by"]["toy"]
    assert (entry["code"], entry["usable"]) == ("claimed-twice", False)
    both = "gradflow-rival 1.0 (rival:toyBackend) and gradflow-toy 1.0 (toy_backend:toyBackend)"
    assert entry["state"] == f"2 packages claim the device 'toy', so none gets it: {both}"
    assert entry["fix"] == "keep only one of them; type: pip uninstall gradflow-rival, or: pip uninstall gradflow-toy"
    assert re.search(rf"^toy +no +{re.escape(entry['state'])}$", table, re.M)
    out, err = run(f"{ERROR}\nprint(error('toy'))", rival, toy)
    assert out == f"DeviceUnavailableError: {entry['state']}; {entry['fix']}\n"
    assert err == "", "neither is loaded"


@pytest.mark.parametrize(
    ("name", "why"), [("cpu", "gradflow's own"), ("cuda", "gradflow's own"), ("auto", "not a valid")]
)
def test_a_package_that_claims_what_cannot_be_claimed_is_ignored(tmp_path: Path, name: str, why: str) -> None:
    folder = package(tmp_path / "x", "gradflow-thief", "thief", "raise SystemExit", f"{name} = thief:Backend")
    table, found = devices(folder)
    (note,) = found["notes"]
    assert note.startswith(f"the package gradflow-thief 1.0 (thief:Backend) claims the device '{name}', which is {why}")
    assert "ignored; type: pip uninstall gradflow-thief" in note
    assert f"note: {note}\n" in table
    assert found["by"]["cpu"]["usable"]
    assert "auto" not in found["by"]


# ---------------------------------------------------------------------- what is left out


def test_a_blocked_backend_is_not_loaded(toy: Path) -> None:
    out, err = run(f"{DEVICES}{ERROR}\nprint('--')\nprint(error('toy'))", toy, GRADFLOW_BACKEND_BLOCK="cuda, toy,nix")
    table, text, error = out.split("--\n")
    report = json.loads(text)
    entry = {found["prefix"]: found for found in report["backends"]}["toy"]
    assert (entry["code"], entry["usable"]) == ("blocked", False)
    assert entry["state"] == "the backend of 'toy' is not loaded, because GRADFLOW_BACKEND_BLOCK names it"
    assert entry["fix"] == "remove toy from GRADFLOW_BACKEND_BLOCK, or type: unset GRADFLOW_BACKEND_BLOCK"
    assert re.search(rf"^toy +no +{re.escape(entry['state'])}$", table, re.M)
    assert error == f"DeviceUnavailableError: {entry['state']}; {entry['fix']}\n"
    assert report["auto"]["device"] == "cpu"
    assert "the backend of 'cuda' is not loaded" in report["auto"]["reason"]
    (note,) = report["notes"]
    assert "'nix'" in note
    assert err == ""


def test_blocking_keeps_cupy_out() -> None:
    code = "import sys, gradflow as gf; print(gf.choose_device()[0], [str(d) for d in gf.devices()])\n" + (
        "print('cupy' in sys.modules, 'gradflow_cupy' in sys.modules)"
    )
    assert run(code, GRADFLOW_BACKEND_BLOCK="cuda")[0] == "cpu ['cpu']\nFalse False\n"


def test_blocking_the_cpu_is_said(tmp_path: Path) -> None:
    out, _ = run(f"{ERROR}\nprint(error('cpu'))", GRADFLOW_BACKEND_BLOCK="cpu")
    assert "GRADFLOW_BACKEND_BLOCK names it" in out
    report = "from gradflow.cli import main; main(['devices', '--json'])"
    auto = json.loads(run(report, GRADFLOW_BACKEND_BLOCK="cpu,cuda")[0])["auto"]
    assert auto["device"] is None
    assert auto["reason"].startswith("the backend of 'cpu' is not loaded, because GRADFLOW_BACKEND_BLOCK names it")


def test_blocking_holds_for_what_a_program_registers(toy: Path) -> None:
    code = f"{backend('mine')}\n{ERROR}\ngradflow.register_backend('mine', mineBackend)\nprint(error('mine'))"
    assert "GRADFLOW_BACKEND_BLOCK names it" in run(code, GRADFLOW_BACKEND_BLOCK="mine")[0]


def test_a_search_that_fails_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def fail() -> Any:
        raise OSError("the disk is gone")

    monkeypatch.setattr(importlib.metadata, "distributions", fail)
    discovery._scan.cache_clear()
    try:
        assert discovery.backend_prefixes()[:2] == ["cpu", "cuda"]
        assert any("OSError: the disk is gone" in note for note in discovery.discovery_notes())
        with pytest.raises(ValueError, match="unknown device 'toy'"):
            gf.zeros(1, device="toy")
    finally:
        discovery._scan.cache_clear()


def test_the_help_names_all_that_is_in_the_json(report: Any) -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(keys, value))
        return set(value).union(*map(keys, value.values())) if isinstance(value, dict) else set()

    found = {name: value for name, value in report[1].items() if name != "by"}
    help_text, _ = run("from gradflow.cli import main; main(['devices', '--help'])")
    names = keys(found) - set(gf.memory_stats("cpu"))
    assert {"prefix", "code", "fix", "device", "notes"} <= names
    assert [name for name in names if not re.search(rf"\b{name}\b", help_text)] == []


def test_the_fake_device_is_defined_by_the_testing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(discovery._registered, "fake", raising=False)
    with pytest.raises(ValueError, match=r"unknown device 'fake'; .*; in Python, import gradflow.testing defines it"):
        discovery.find("fake")
