"""Who imports whom, what is imported when, and that everything public is documented.

The core, from `nn` and `optim` down, knows no array library. Imports go down one list of layers. Packages that only
some users have are imported where they are used.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gradflow as gf
from gradflow.backend import ARRAY_FUNCTIONS, discovery

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ROOT / "backends"

LAYERS: tuple[set[str], ...] = (
    {"dtypes", "environment", "files", "interception", "modes", "pytorch_names", "shapes", "text", "tree"},
    {
        "default_dtype",
        "backend.array_functions",
        "backend.device",
        "backend.half_floats",
        "backend.kernels",
        "backend.launches",
        "backend.precision",
    },
    {
        "backend.activations",
        "backend.erf",
        "backend.graphs",
        "backend.normalization",
        "backend.optimizer_steps",
        "backend.philox",
    },
    {"backend.composed"},
    {"backend.contract"},
    {"backend.discovery", "backend.sums"},
    {"backend", "backend.registry"},
    {"autograd.grad_mode", "autograd.memory", "autograd.parts", "autograd.wrapping"},
    {"autograd.batching", "autograd.observers", "autograd.saved"},
    {"autograd.graph", "autograd.hooks", "autograd.leaf", "autograd.mapping"},
    {"autograd.autocast", "autograd.fitting"},
    {"autograd.backward"},
    {"autograd"},
    {"printing", "tensor_methods"},
    {"tensor"},
    {"random.generator", "random.quantile"},
    {"random.sampling", "random.shares"},
    {"random.discrete"},
    {"random"},
    {"ops.checks", "ops.examples", "ops.host"},
    {"ops.table"},
    {"ops.custom", "ops.elementwise", "ops.reductions", "ops.transfer"},
    {"ops.creation", "ops.elementary", "ops.exchange", "ops.mapping"},
    {"ops.indexing"},
    {"ops.shape"},
    {"ops.activations", "ops.network"},
    {"ops.normalization"},
    {"ops.in_place", "ops.losses", "ops.places"},
    {"ops.aggregates", "ops.closeness", "ops.likelihoods", "ops.matrices", "ops.ordering", "ops.updates"},
    {"ops.namespace"},
    {"ops.backpropagate"},
    {"ops.methods"},
    {"ops"},
    {"transforms.arguments"},
    {"transforms.trace"},
    {"transforms.derivatives", "transforms.jacobians", "transforms.mapping", "transforms.recompute"},
    {"transforms"},
    {"debug"},
    {"replay.host_state", "replay.reasons", "replay.recheck"},
    {"replay.guards", "replay.interception"},
    {"replay.recording"},
    {"replay.tracing"},
    {"replay.program"},
    {"replay.recorder"},
    {"replay.plan"},
    {"replay.batches"},
    {"replay.step"},
    {"replay"},
    {"profiling.traffic"},
    {"profiling.spans"},
    {"profiling.chrome", "profiling.rows", "profiling.wrappers"},
    {"profiling.table"},
    {"profiling.profiles"},
    {"profiling.profile"},
    {"profiling"},
    {"saving"},
    {"nn.hooks", "nn.parameter", "nn.state"},
    {"nn.module"},
    {"nn.constructors", "nn.functional", "nn.measuring", "nn.vectors"},
    {"nn.activations", "nn.containers", "nn.init", "nn.losses", "nn.summaries"},
    {"nn.columns", "nn.embedding", "nn.layers", "nn.normalization"},
    {"nn.perceptron"},
    {"nn", "optim"},  # the core up to here
    {"drawing"},
    {"public"},
    {"distributed.communicator", "distributed.faults"},
    {"distributed.mpi", "distributed.reduction"},
    {"distributed.nccl"},
    {"distributed.world"},
    {"distributed"},
    {"data", "testing"},
    {"tables"},
    {"training.epoch", "training.host_metrics", "training.layers", "training.threads"},
    {"training.metrics"},
    {"training.curves"},
    {"training.report"},
    {"training.bar", "training.objective"},
    {"training.checks", "training.finiteness", "training.precision", "training.shares"},
    {"training.evaluation"},
    {"training.progress", "training.step"},
    {"training.tensorboard", "training.updates", "training.watching"},
    {"training.trainer_state"},
    {"training.ranks"},
    {"training.work"},
    {"training.trainer"},
    {"training.loop"},
    {"training.runs"},
    {"training"},
    {"onnx", "sklearn"},
    {"benchmarking", "plot"},
    {"cli"},
    {"__main__"},
)
"""The modules and packages of gradflow, the lowest first: each imports from layers below its own, and no other.

The name of a package covers its modules that are not listed themselves; these may import each other.
"""

CORE = {
    name.partition(".")[0]
    for layer in LAYERS[: 1 + next(i for i, layer in enumerate(LAYERS) if "nn" in layer)]
    for name in layer
} | {"gradflow", "public"}
HOST = {"numpy"}
"""What the packages above the core, which work on the host, import like the standard library."""
IN_PLACE_OF_A_DEVICE = {("gradflow.backend.philox", "numpy.random.Philox")}
"""What the core imports of NumPy, in a function: random words for a library that has no arithmetic of uint64."""
PYTEST_ONLY = ("gradflow.testing.benchmark", "gradflow.testing.conformance", "gradflow.testing.plugin")
"""What only pytest imports."""
ALLOWED_OF_BACKENDS = {"gradflow.backend", "gradflow.dtypes", "gradflow.environment", "gradflow.files"}
LIBRARIES_OF_BACKENDS = {"gradflow_numpy": {"numpy"}, "gradflow_cupy": set()}
ESTIMATORS = "gradflow.sklearn."
"""The modules of this package are imported when a name of it is used first: its classes extend scikit-learn's."""
EMITTING = tuple(f"gradflow_numpy.native.{name}" for name in ("emit", "formulas", "rows", "sharing", "sums"))
"""What is imported when the first kernel is compiled: code that writes code."""


@dataclass(frozen=True)
class Import:
    """An import of a module: what, in which line, whether in a function, whether for type checkers alone."""

    name: str
    line: int
    in_function: bool
    typing: bool

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def imports(tree: ast.AST, in_function: bool = False, typing: bool = False) -> Iterator[Import]:
    """All imports in a source, also those by `importlib.import_module` of a name written out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, in_function, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import in line {node.lineno}"
            yield from (Import(f"{node.module}.{a.name}", node.lineno, in_function, typing) for a in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield Import(name.value, node.lineno, in_function, typing)
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        checking = isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "_typing.TYPE_CHECKING")
        yield from imports(node, in_function or function, typing or checking)


def module_name(path: Path, base: Path) -> str:
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(p, ROOT): p for p in sorted((ROOT / "gradflow").rglob("*.py"))}
BACKEND_FILES = {module_name(p, BACKENDS): p for p in sorted(BACKENDS.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in {**FILES, **BACKEND_FILES}.items()}


def unit(name: str) -> str:
    """The package or module that a name is in: "nn" of gradflow.nn.layers.Linear; "gradflow" for other names."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and f"gradflow.{parts[1]}" in FILES else "gradflow"


LEVELS = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def layer_of(name: str) -> str | None:
    """The longest name in LAYERS that is this module, or a module or package that contains it."""
    parts = name.split(".")[1:]
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((n for n in names if n in LEVELS), None)


def run(code: str, *options: str, path: tuple[Path, ...] = (ROOT, BACKENDS)) -> list[str]:
    """The lines that a new Python prints, which must succeed. `options` are the interpreter's."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "GRADFLOW"))}
    code = f"import sys; sys.path[:0] = {[str(p) for p in path]}\n{code}"
    out = subprocess.run(
        [sys.executable, *options, "-W", "error", "-c", code], env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return out.stdout.splitlines()


REFUSE = """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if refused(name.partition(".")[0]):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""

BARE = f"""
def refused(package):
    return package not in sys.stdlib_module_names and not package.startswith("gradflow")
{REFUSE}
"""
"""A Python in which nothing is installed: with the option -S, and other packages on its path refused."""


# ---------------------------------------------------------------------- no array library in the core


def test_the_core_is_there() -> None:
    assert {"gradflow", "backend", "dtypes", "autograd", "tensor", "ops", "random", "nn", "optim"} <= CORE
    assert not CORE & {"data", "training", "cli"}


@pytest.mark.parametrize("name", [name for name in FILES if unit(name) in CORE])
def test_the_core_imports_the_standard_library_and_itself(name: str) -> None:
    found = [i for i in imports(TREES[name]) if i.package not in sys.stdlib_module_names]
    found = [i for i in found if not (i.in_function and (name, i.name) in IN_PLACE_OF_A_DEVICE)]
    assert [i for i in found if i.package != "gradflow"] == []


def test_the_core_is_imported_where_nothing_is_installed() -> None:
    core = [name for name in FILES if unit(name) in CORE]
    code = f"{BARE}\nimport importlib\nfor name in {core}: importlib.import_module(name)\nprint(*sys.modules)"
    (line,) = run(code, "-S", path=(ROOT,))
    loaded = line.split()
    assert set(loaded) >= set(core)
    others = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"gradflow", "__main__"}
    assert others == set()


def test_a_library_that_is_there_is_not_imported_before_it_is_used() -> None:
    libraries = ("numpy", "cupy", "torch", "jax", "gradflow_numpy", "gradflow_cupy", "sklearn", "matplotlib")
    code = f"""
def show(): print(*[name for name in {libraries} if name in sys.modules])
import gradflow, gradflow.nn, gradflow.optim, gradflow.ops, gradflow.random, gradflow.autograd.backward
show()
gradflow.manual_seed(1); gradflow.Device("cuda:1"); gradflow.current_device()
show()
gradflow.nn.Linear(2, 3)(gradflow.ones((1, 2))).sum().backward()
show()
"""
    assert run(code) == ["", "", "numpy gradflow_numpy"]


def test_without_numpy_the_cpu_says_what_is_missing() -> None:
    code = f"""{BARE}
import gradflow
print(gradflow.diagnose("cpu"))
try:
    gradflow.zeros(1)
except gradflow.DeviceUnavailableError as error:
    print(error)
"""
    diagnosis, error = run(code, "-S")
    assert diagnosis == error
    assert "'cpu'" in error
    assert "No module named 'numpy'" in error


# ---------------------------------------------------------------------- directions


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down_the_list_of_layers(name: str) -> None:
    here = layer_of(name)
    assert here or name == "gradflow", f"{name} is in no layer: give it one in LAYERS"
    for found in imports(TREES[name]):
        if found.package != "gradflow" or found.typing:
            continue
        there, where = layer_of(found.name), f"{name}, line {found.line}: {found.name}"
        if here is None:  # the package itself offers the core
            assert unit(found.name) in CORE, where
        elif there is None:
            assert unit(name) not in CORE, f"{where} imports the whole package"
        elif there != here:
            assert LEVELS[there] < LEVELS[here], f"{where} is in no layer below {here}"


def test_each_layer_has_modules() -> None:
    assert {name for name in LEVELS if f"gradflow.{name}" not in FILES} == set()


def test_autograd_does_not_know_the_operations() -> None:
    """What LAYERS implies, checked directly for the most important modules."""
    for here, never in {
        "autograd": {"tensor", "ops", "nn", "optim"}, "ops": {"nn", "optim", "transforms"}, "nn": {"optim", "training"},
        "optim": {"nn", "training"}, "data": {"training", "cli"},
    }.items():  # fmt: skip
        names = [name for name in FILES if unit(name) == here]
        assert names
        assert not {unit(i.name) for name in names for i in imports(TREES[name]) if not i.typing} & never, here


@pytest.mark.parametrize("name", BACKEND_FILES)
def test_a_backend_imports_the_contract_and_its_library(name: str) -> None:
    package = name.partition(".")[0]
    for found in imports(TREES[name]):
        where = f"{name}, line {found.line}: {found.name}"
        if found.package == "gradflow":
            assert any(found.name.startswith(f"{m}.") for m in ALLOWED_OF_BACKENDS), where
        elif found.package.startswith("gradflow"):
            assert found.package == package, where


@pytest.mark.parametrize("name", FILES)
def test_gradflow_does_not_import_a_backend(name: str) -> None:
    assert not {i.package for i in imports(TREES[name])} & {"gradflow_numpy", "gradflow_cupy"}


# ---------------------------------------------------------------------- optional packages


@pytest.mark.parametrize("name", TREES)
def test_optional_packages_are_imported_in_functions(name: str) -> None:
    package = name.partition(".")[0]
    allowed = LIBRARIES_OF_BACKENDS.get(package, HOST if unit(name) not in CORE else set())
    if name.startswith(PYTEST_ONLY):
        allowed = allowed | {"pytest"}
    if name.startswith(ESTIMATORS):
        allowed = allowed | {"sklearn"}
    if name in EMITTING:
        allowed = allowed | {"llvmlite"}
    found = {
        i.package for i in imports(TREES[name])
        if not i.in_function and not i.typing and i.package not in sys.stdlib_module_names
    }  # fmt: skip
    assert {p for p in found if not p.startswith("gradflow")} <= allowed


def test_everything_is_imported_with_numpy_alone() -> None:
    left_out = (*EMITTING, ESTIMATORS)
    names = [name for name in TREES if not name.endswith("__main__") and not name.startswith(left_out)]
    optional = {"cupy", "cupyx", "llvmlite", "matplotlib", "safetensors", "sklearn", "threadpoolctl", "tomli_w", "tqdm"}
    code = f"""
def refused(package):
    return package in {optional}
{REFUSE}
import importlib
for name in {names}: importlib.import_module(name)
print("done")
"""
    assert run(code) == ["done"]


CUPY = """
import gradflow
from gradflow_cupy import CupyBackend
diagnosis = CupyBackend.diagnose()
print(diagnosis.usable, CupyBackend.device_count())
print(diagnosis.state)
print(diagnosis.fix)
print(gradflow.diagnose("cuda") == diagnosis)
try:
    CupyBackend()
except ModuleNotFoundError as error:
    print(error.name)
try:
    gradflow.zeros(1, device="cuda")
except gradflow.DeviceUnavailableError as error:
    print(diagnosis.state in str(error))
"""


def test_the_cupy_backend_says_that_cupy_is_missing() -> None:
    usable, state, fix, same, missing, raised = run(BARE + CUPY, "-S")
    assert (usable, state, same, missing, raised) == ("False 0", "CuPy is not installed", "True", "cupy", "True")
    assert "pip install" in fix


def test_the_cupy_backend_where_the_import_of_cupy_fails() -> None:
    code = f'def refused(package): return package in ("cupy", "cupyx")\n{REFUSE}{CUPY}'
    usable, state, fix, same, missing, raised = run(code)
    assert (usable, same, missing, raised) == ("False 0", "True", "cupy", "True")
    assert "CuPy" in state
    assert "pip" in fix


# ---------------------------------------------------------------------- documentation


@pytest.mark.parametrize("name", [name for name in TREES if ".conformance." not in name])  # those name themselves
def test_everything_public_in_a_module_has_a_docstring(name: str) -> None:
    assert ast.get_docstring(TREES[name]), f"{name} has none"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [n for n in TREES[name].body if isinstance(n, kinds) and not n.name.startswith("_")]
    public = [n for n in public if not any(ast.unparse(d) == "overload" for d in n.decorator_list)]
    assert [n.name for n in public if not ast.get_docstring(n)] == []


OFFERING = [
    name for name, path in {**FILES, **BACKEND_FILES}.items()
    if re.search(r"^ *__all__ = ", path.read_text("utf-8"), re.MULTILINE)
]  # fmt: skip


def load(name: str) -> Any:
    for prefix in ("cpu", "cuda"):
        discovery.backend_class(prefix)
    return importlib.import_module(name)


def test_packages_offer_names() -> None:
    assert {"gradflow", "gradflow.nn", "gradflow.optim", "gradflow_numpy", "gradflow_cupy"} <= set(OFFERING)


@pytest.mark.parametrize("name", OFFERING)
def test_every_offered_name_exists_and_is_documented(name: str) -> None:
    module = load(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [n for n in module.__all__ if not hasattr(module, n)] == []
    assert [n for n in module.__all__ if not inspect.getdoc(getattr(module, n))] == []


def test_what_gradflow_imports_for_its_users_it_offers() -> None:
    names = {n for n in vars(gf) if not n.startswith("_")}
    submodules = {name.split(".")[1] for name in FILES if name.count(".")}
    assert names - submodules <= set(gf.__all__)


@pytest.mark.slow
def test_type_checkers_see_every_offered_name(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    names = [*gf.__all__, *(f"gradflow.{name}" for name in gf.__all__), *(f"ops.{name}" for name in gf.ops.__all__)]
    methods = [f"x.{name}" for name in vars(gf.Tensor) if not name.startswith("_") and hasattr(gf.Tensor, name)]
    lines = [
        "import gradflow",
        "from gradflow import *",
        "from gradflow import ops",
        *names,
        "x = gradflow.ones(2)",
        *methods,
    ]
    (tmp_path / "uses.py").write_text("\n".join(lines), "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}/cache", "uses.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", OFFERING)
def test_the_methods_of_offered_classes_are_documented(name: str) -> None:
    """By themselves, by the class that they override, or by the Array API."""
    module = load(name)
    bare = []
    for cls in [c for c in (getattr(module, n) for n in module.__all__) if inspect.isclass(c)]:
        for method, value in vars(cls).items():
            documents = callable(value) or isinstance(value, (property, staticmethod, classmethod))
            if method.startswith("_") or not documents or method in ARRAY_FUNCTIONS:
                continue
            if not inspect.getdoc(getattr(cls, method)):
                bare.append(f"{cls.__name__}.{method}")
    assert bare == []
