"""The page "Write a backend" is true: its examples print what they say, its commands exist, its contract is current."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.backend import (
    ARRAY_FUNCTIONS,
    KERNELS,
    AdamOptions,
    AdamScalars,
    Backend,
    MomentOptions,
    MomentScalars,
    RMSpropOptions,
    RMSpropScalars,
    SGDOptions,
    SGDScalars,
    discovery,
    registry,
)
from gradflow.cli import build_parser
from gradflow.testing import compare_devices, contract_docs
from gradflow.testing.workloads import Place, workloads
from tests.test_cli import child_environment

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "write-a-backend.md"
PAGE = PATH.read_text(encoding="utf-8")
WRITTEN, _, MADE = PAGE.partition(contract_docs.BEGIN)
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", WRITTEN, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line[2:] for language, text in BLOCKS if language == "console" for line in text.splitlines() if line[:2] == "$ "
]


# ---------------------------------------------------------------------- the examples


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first example of the page, unchanged, as the module gradflow_plain."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "gradflow_plain.py").write_text(PYTHON[0], encoding="utf-8")
    return folder


def run(*words: str, folder: Path | None = None) -> str:
    """Run a new Python, which must succeed without a warning; returns what it prints."""
    environment = child_environment()
    if folder is not None:
        environment["PYTHONPATH"] = f"{folder}:{environment['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-W", "error", *words],
        env=environment, cwd=folder, capture_output=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_print_what_their_comments_say(example: Path) -> None:
    text = "\n".join(PYTHON)
    (example / "page.py").write_text(text, encoding="utf-8")
    expected = re.findall(r"^print\(.*?\)\s+# (.*)$", text, re.MULTILINE)
    assert len(expected) == 4
    assert run("page.py", folder=example).splitlines() == expected


def test_the_example_takes_about_twenty_lines() -> None:
    lines = [line for line in PYTHON[0].splitlines() if line and not line.startswith(("import", "from", "gf."))]
    assert lines[0].startswith("class PlainBackend")
    assert len(lines) == 22
    assert "about 20 lines" in WRITTEN


def test_the_example_agrees_with_the_cpu(example: Path) -> None:
    (command,) = [c for c in COMMANDS if "--module" in c]
    assert '"passed": true' in run(*shlex.split(command)[1:], "--json", folder=example)


@pytest.mark.slow
def test_the_example_conforms(example: Path) -> None:
    """With the page's command that names the module, and the checks of the kit that take seconds."""
    (command,) = [c for c in COMMANDS if "--gradflow-backend-module" in c]
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "pytest"]
    few = "test_services or test_random or test_training"
    out = run(*words[1:], "-q", "-p", "no:cacheprovider", "-k", few, folder=example)
    assert re.search(r"\d{3,} passed", out)


# ---------------------------------------------------------------------- what the page says


def test_the_commands_exist() -> None:
    assert len(COMMANDS) == 5
    for command in COMMANDS:
        program, *words = shlex.split(command)
        if words[:2] == ["-m", "gradflow"]:
            program, words = "gradflow", words[2:]
        if program == "gradflow":
            assert build_parser().parse_args(words).command == "agree"
        elif words[1] != "pytest":
            assert words == ["-m", "gradflow.testing.contract_docs", "docs/write-a-backend.md"]
        else:
            assert program == "python"
            assert words[2:6] == ["-p", "gradflow.testing.plugin", "--pyargs", "gradflow.testing.conformance"]


@pytest.mark.parametrize(
    "page", [PATH, ROOT / "docs/cpu.md", ROOT / "docs/concepts.md", ROOT / "docs/command-line.md", ROOT / "README.md"]
)
def test_the_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    assert targets
    for target in targets:
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_name_of_gradflow_on_the_page_exists() -> None:
    for name in set(re.findall(r"`(gradflow(?:\.\w+)+)", PAGE)) - {"gradflow.backends"}:
        head, _, attribute = name.rpartition(".")
        __import__(head)
        if not hasattr(sys.modules[head], attribute):
            __import__(name)


def test_the_entry_point_on_the_page_names_the_example() -> None:
    (project,) = [tomllib.loads(text) for language, text in BLOCKS if language == "toml"]
    points = project["project"]["entry-points"][discovery.ENTRY_POINT_GROUP]
    assert points == {"plain": "gradflow_plain:PlainBackend"}


def test_the_services_and_results_are_counted_right() -> None:
    assert len(Backend.__abstractmethods__) == 6
    assert WRITTEN.count("six methods") == 2
    assert f"some {round(len(compare_devices.compare('cpu', 'cpu')), -1)} results of operations" in WRITTEN


def test_the_readme_links_the_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/write-a-backend.md)" in readme
    assert "`gradflow agree`" in readme


# ---------------------------------------------------------------------- calls of array functions


class Recorder(Backend):
    """NumPy with the composed kernels; it records each call of an array function with its arguments."""

    name = "recorder"
    device_count = classmethod(lambda cls: 1)
    diagnose = classmethod(lambda cls: gf.Diagnosis(True, "records"))

    def __init__(self, index: int = 0) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        for name in ARRAY_FUNCTIONS:
            setattr(self, name, self._recorded(name, getattr(gf.get_backend("cpu"), name)))
        super().__init__(np, index)

    def _recorded(self, name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            return function(*args, **options)

        return call

    def to_host(self, array: Any) -> Any:
        return np.array(array)

    def from_host(self, values: Any) -> Any:
        return np.array(values)

    def synchronize(self) -> None: ...

    def memory_stats(self) -> Any:
        raise NotImplementedError


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    gf.register_backend("recorder", Recorder)
    backend = gf.get_backend("recorder")
    assert isinstance(backend, Recorder)
    yield backend
    registry.unregister_backend("recorder")


def test_gradflow_passes_what_the_page_says_and_nothing_else(recorder: Recorder) -> None:
    """Every call in the workloads of `gradflow agree` fits the signature on the page."""
    signatures: dict[str, inspect.Signature] = {}
    for name, text in ARRAY_FUNCTIONS.items():
        scope: dict[str, Any] = {}
        exec(f"def function{text}: ...", scope)
        signatures[name] = inspect.signature(scope["function"])
    with gf.use_device("recorder"), np.errstate(all="ignore"):
        for workload in workloads():
            for check in workload.run(Place("recorder")):
                if callable(check.value):
                    check.value()
    called = {name for name, _, _ in recorder.calls}
    assert set(ARRAY_FUNCTIONS) - called <= {"empty", "ones_like", "zeros_like"}
    wrong = set()
    for name, args, options in recorder.calls:
        try:
            signatures[name].bind(*args, **options)
        except TypeError as error:
            wrong.add(f"{name} is called with {len(args)} arguments and {sorted(options)}: {error}")
    assert wrong == set()


def test_the_signatures_are_part_of_the_standards() -> None:
    xp = pytest.importorskip("array_api_strict")
    for name, text in ARRAY_FUNCTIONS.items():
        (node,) = ast.parse(f"def function{text}: ...").body
        assert isinstance(node, ast.FunctionDef)
        standard = list(inspect.signature(getattr(xp, name)).parameters.values())
        positional = [*node.args.posonlyargs, *node.args.args]
        assert [p.name for p in standard[: len(positional)]] == [a.arg for a in positional], name
        assert all(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in standard[: len(positional)]), name
        assert {a.arg for a in node.args.kwonlyargs} <= {p.name for p in standard}, name


def test_the_calls_of_the_defaults_are_counted_right(recorder: Recorder) -> None:
    def f(*shape: int) -> Any:
        return np.ones(shape, np.float32)

    def calls(kernel: str, *args: Any) -> int:
        del recorder.calls[:]
        getattr(recorder, kernel)(*args)
        return len(recorder.calls)

    assert recorder.uint64_works, "it is tried once, by the first that asks"
    labels, needs, none = np.array([0, 1, 2, 0, 1]), (True,) * 3, (None,) * 3
    relu, gelu = ((f(5, 4), f(3, 4), f(3), name, 0.0) for name in ("relu", "gelu"))
    normalized, residual = recorder.layer_norm(f(5, 3), f(3), f(3), (1,), 1e-5)
    found = [
        calls("random_bits", 1, 2, 100), calls("dropout", f(5, 5), 0.5, 1, 2),
        calls("sgd_step", f(9), f(9), f(9), SGDOptions(0.9, 0.0, 0.01, True), SGDScalars(0.1, False)),
        calls("adam_step", f(9), f(9), f(9), f(9), AdamOptions(0.9, 0.99, 1e-8, 0.0),
              AdamScalars.at(1, 0.1, 0.9, 0.99, 0.01)),
        calls("rmsprop_step", f(9), f(9), f(9), None, f(9), RMSpropOptions(0.9, 1e-8, 0.01, 0.9), RMSpropScalars(0.1)),
        calls("moment_step", *[f(9)] * 5, MomentOptions(0.9, 0.99, 0.01, 0.01),
              MomentScalars(0.1, 0.9, 0.1, 1.0, 1e-8, 1.0)),
        calls("linear", *relu), calls("linear_backward", f(5, 3), f(5, 3), *relu, None, needs, none),
        calls("linear", *gelu), calls("linear_backward", f(5, 3), f(5, 3), *gelu, f(5, 3), needs, none),
        calls("softmax_cross_entropy", f(5, 3), labels, "mean"),
        calls("softmax_cross_entropy_backward", np.float32(1), f(5, 3), labels, "mean", None, (True, False)),
        calls("layer_norm", f(5, 3), f(3), f(3), (1,), 1e-5),
        calls("layer_norm_backward", f(5, 3), normalized, f(3), (1,), 1e-5, residual, needs),
    ]  # fmt: skip
    table = WRITTEN[WRITTEN.index("| kernel |") :].partition("\n\n")[0]
    assert [int(n) for n in re.findall(r"(?<!uint)\b(\d+)\b", table)] == found


# ---------------------------------------------------------------------- the contract


def test_the_page_is_current() -> None:
    assert contract_docs.update(PAGE) == PAGE, "type: python -m gradflow.testing.contract_docs docs/write-a-backend.md"


def test_every_function_service_and_kernel_is_in_the_contract() -> None:
    for name in ARRAY_FUNCTIONS:
        assert f"`{name}`" in MADE
    classes = [cls for cls in Backend.__mro__ if cls.__module__.startswith("gradflow.")]
    public = {n for c in classes for n, value in vars(c).items() if not n.startswith("_") and inspect.isroutine(value)}
    assert set(KERNELS) | Backend.__abstractmethods__ <= public
    for name in public:
        assert re.search(rf"^{name}[(:]", MADE, re.M), name
        (text,) = re.findall(rf"^{name}[(:][^`]*```\n\n(.*)", MADE, re.M)
        assert text.startswith("Required. ") == (name in Backend.__abstractmethods__)
        assert text.startswith("Inherited. ") == (name not in {*Backend.__abstractmethods__, *KERNELS})


def test_the_signatures_are_those_of_the_code() -> None:
    for name in KERNELS:
        (signature,) = re.findall(rf"^({name}\([^`]*)```", MADE, re.M)
        (node,) = ast.parse(f"def {signature.strip()}: ...").body
        assert isinstance(node, ast.FunctionDef)
        named = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
        assert ["self", *named] == list(inspect.signature(getattr(Backend, name)).parameters)


def test_a_change_of_the_code_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "def softmax(self, x: Array, axis: int)", "def softmax(self, x: Array, axis: int = -1)"
    getsource = inspect.getsource
    monkeypatch.setattr(contract_docs.inspect, "getsource", lambda module: getsource(module).replace(old, new))
    assert "softmax(x: Array, axis: int = -1) -> Array" in contract_docs.update(PAGE)


def test_the_command_brings_a_page_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{contract_docs.BEGIN}\nold\n{contract_docs.END}\nafter\n", encoding="utf-8")
    assert contract_docs.main([str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{contract_docs.BEGIN}\n\n### {len(ARRAY_FUNCTIONS)} array functions")
    assert text.endswith(f"{contract_docs.END}\nafter\n")
    assert "old" not in text.split()
    assert contract_docs.main([str(page)]) == 0
    assert page.read_text(encoding="utf-8") == text
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: python -m gradflow.testing.contract_docs PAGE"),
        (["missing.md"], "missing.md: No such file"),
        (["bare.md"], "bare.md: the page needs a line"),
    ],
)
def test_a_page_that_cannot_be_brought_up_to_date(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bare.md").write_text("nothing\n", encoding="utf-8")
    assert contract_docs.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert Path("bare.md").read_text(encoding="utf-8") == "nothing\n"
