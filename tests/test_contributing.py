"""CONTRIBUTING.md is true: its commands name what exists, and the fast tests reach every part."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMANDS = [
    line[2:].partition("  #")[0].strip()
    for text in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in text.splitlines()
]
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PROGRAMS = {"pip", "pre-commit", "pytest", "python", "ruff", "mypy"}
ALL_SLOW = {
    "tests/cupy_backend/test_cupy_kernels.py", "tests/cupy_backend/test_emulated_batches.py",
    "tests/cupy_backend/test_emulated_bench.py", "tests/cupy_backend/test_emulated_columns.py",
    "tests/cupy_backend/test_graph_random.py", "tests/cupy_backend/test_host_kernels.py",
    "tests/cupy_backend/test_launches.py", "tests/cupy_backend/test_nvrtc.py", "tests/test_capture_random.py",
    "tests/test_distributed_mpi.py", "tests/test_mnist.py", "tests/test_trainer_interrupts.py",
    "tests/test_training_vs_torch.py",
}  # fmt: skip
"""The test files without a fast test, other than those of `tests/peers`: they compile kernels, need PyTorch, fetch
data, start processes, try each line or train at random."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_exists(command: str) -> None:
    for part in command.split(" && "):
        words = [word for word in shlex.split(part) if not re.match(r"GRADFLOW_\w+=", word)]
        if words[:3] == ["python3", "-m", "venv"]:
            continue
        assert words[0].startswith(".venv/bin/")
        assert words[0].removeprefix(".venv/bin/") in PROGRAMS
        if words[1:2] == ["-m"]:
            assert words[0].endswith("pytest") or words[2] == "sphinx" or importlib.util.find_spec(words[2])
        for word in words[1:]:
            if "/" in word and word != "docs/_build":  # which the command makes
                assert (ROOT / word).exists(), word
            if extra := re.fullmatch(r"\.\[(.*)\]", word):
                assert extra[1] in EXTRAS


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:[\w.-]+/)+[\w.*-]*)`", PAGE))))
def test_a_path_exists(path: str) -> None:
    assert list(ROOT.glob(path))


def test_the_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#\s]+)\)", PAGE)
    assert targets
    assert all((ROOT / target).exists() for target in targets)


def test_the_names_in_capitals_are_in_the_files_that_a_recipe_names() -> None:
    """As in "`FUNCTIONS` and a case to `CASES` in `tests/cases.py`": a recipe says what to change where."""
    recipes = " ".join(PAGE.partition("## Recipes")[2].split())
    pairs = [
        (name, path)
        for names, path in re.findall(r"((?:`[A-Z_]+`[^`.;:()]*)+) in `([\w/.]+\.py)`", recipes)
        for name in re.findall(r"`([A-Z_]+)`", names)
    ]
    assert len(pairs) >= 6
    for name, path in pairs:
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), (name, path)


def test_the_fast_tests_are_those_that_ci_runs_on_other_pythons() -> None:
    assert '.venv/bin/pytest -n auto -m "not slow"' in COMMANDS
    assert '-n auto -q -p no:cacheprovider -m "not slow"' in CI


def test_the_pythons_that_are_named_are_those_that_ci_runs() -> None:
    versions = [
        classifier.rpartition(" ")[2]
        for classifier in PROJECT["project"]["classifiers"]
        if re.search(r"Python :: 3\.\d+$", classifier)
    ]
    assert versions[0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"export PYENV_VERSION={':'.join(versions)} " in CI
    assert f"for python in {' '.join(f'python{version}' for version in versions[1:])}; do" in CI
    others = " and ".join(versions[1:])
    assert f"CI runs everything on Python {versions[0]}, and a part of the fast tests on {others}." in PAGE


def test_ci_runs_the_tests_that_need_pytorch_beside_it() -> None:
    step = CI.partition("torch==")[2].partition("\nstep ")[0]
    named = set(re.findall(r"\w+", step))
    needed = re.compile(r'^ *torch = pytest\.importorskip\("torch"', re.MULTILINE)
    files = [path.stem for path in ROOT.glob("tests/test_*.py") if needed.search(path.read_text("utf-8"))]
    assert "test_torch_weights" in files
    assert [name for name in files if not {name, name.removeprefix("test_")} & named] == []


def test_the_hooks_are_programs_of_the_extra_dev_and_ci_runs_them() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    programs = set(re.findall(r"entry: \.venv/bin/(\w+)", hooks))
    assert programs == {"ruff", "mypy"}
    assert programs | {"pre-commit"} <= {re.match(r"[\w-]+", requirement)[0] for requirement in EXTRAS["dev"]}  # type: ignore[index]
    assert ".venv/bin/pre-commit run --all-files" in CI


def _marked_slow(node: ast.AST) -> bool:
    return "mark.slow" in ast.unparse(node)


def _has_a_fast_test(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if any(isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "pytestmark" and _marked_slow(n) for n in body):
        return False
    tests = [n for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    return any(not any(map(_marked_slow, test.decorator_list)) for test in tests)


def test_every_test_file_has_a_fast_test() -> None:
    without = {
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("tests/**/test_*.py") if not _has_a_fast_test(path)
    }
    assert without == ALL_SLOW
