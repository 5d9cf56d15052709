"""The errors for names and arguments of PyTorch say what gradflow calls them."""

from __future__ import annotations

import importlib
import math
import re
from functools import reduce
from inspect import signature
from typing import Any

import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.pytorch_names import KEYWORDS, METHODS, MODULE_METHODS, MODULES, OPTIMIZER_METHODS

NAMES = [(module, name, text) for module, table in MODULES.items() for name, text in table.items()]
OBJECTS: dict[str, Any] = {
    "Tensor": gf.ones(2), "Module": nn.Linear(2, 2), "Optimizer": optim.SGD([gf.ones(2, requires_grad=True)])
}  # fmt: skip
ATTRIBUTES = [
    (kind, name, text)
    for kind, table in (("Tensor", METHODS), ("Module", MODULE_METHODS), ("Optimizer", OPTIMIZER_METHODS))
    for name, text in table.items()
]


def hint(name: str, text: str) -> str:
    start = f"gradflow has no {name}: " if text.startswith("none: ") else f"PyTorch's {name} is "
    return start + text.removeprefix("none: ")


@pytest.mark.parametrize(("module", "name", "text"), NAMES)
def test_a_name_of_pytorch_is_missing_with_a_hint(module: str, name: str, text: str) -> None:
    place = importlib.import_module(module)
    assert not hasattr(place, name)
    assert name not in dir(place)
    with pytest.raises(AttributeError) as read:
        getattr(place, name)
    assert str(read.value) == f"module {module!r} has no attribute {name!r}; {hint(name, text)}"
    with pytest.raises(ImportError) as imported:
        exec(f"from {module} import {name}")
    assert str(imported.value) == f"cannot import name {name!r} from {module!r}; {hint(name, text)}"


@pytest.mark.parametrize(("kind", "name", "text"), ATTRIBUTES)
def test_an_attribute_of_pytorch_is_missing_with_a_hint(kind: str, name: str, text: str) -> None:
    x = OBJECTS[kind]
    assert not hasattr(x, name)
    assert not hasattr(type(x), name)
    assert name not in dir(x)
    with pytest.raises(AttributeError) as read:
        getattr(x, name)
    assert str(read.value) == f"{type(x).__name__!r} object has no attribute {name!r}; {hint(name, text)}"


TEXTS = [text for *_, text in (*NAMES, *ATTRIBUTES)] + list(KEYWORDS.values())


def test_there_is_what_the_hints_name() -> None:
    roots = {"gradflow": gf, **OBJECTS}
    found = [path for text in TEXTS for path in re.findall(r"\b(?:gradflow|Tensor|Module|Optimizer)(?:\.\w+)+", text)]
    assert len(found) > 200
    for path in found:
        root, *names = path.split(".")
        if names[0] in ("testing", "training", "data"):
            importlib.import_module(f"{root}.{names[0]}")
        assert reduce(getattr, names, roots[root]) is not None, path


def test_other_missing_names_are_pythons_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'gradflow' has no attribute 'nonsense'$"):
        _ = gf.nonsense  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"^'Tensor' object has no attribute 'nonsense'$"):
        _ = gf.ones(2).nonsense  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match=r"^cannot import name 'nonsense' from 'gradflow.nn' \("):
        exec("from gradflow.nn import nonsense")


def test_functions_of_pytorchs_functional_are_functions_of_gradflow() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'relu'; PyTorch's relu is gradflow.relu$"):
        _ = nn.functional.relu  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match=r"PyTorch's softmax is gradflow.softmax$"):
        exec("from gradflow.nn.functional import softmax")


def test_a_subclass_or_an_instance_may_have_the_name() -> None:
    class Viewed(gf.Tensor):
        def view(self) -> str:
            return "a view"

    x = gf.ones(2)
    viewed = Viewed(x.array, x.backend)
    assert viewed.view() == "a view"
    assert "view" in dir(viewed)
    layer = nn.Identity()
    layer.half = nn.Identity()
    assert "half" in dir(layer)
    assert [name for name, _ in layer.named_children()] == ["half"]


def test_the_names_are_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    places = {module: reduce(getattr, module.split(".")[1:], torch) for module in MODULES if "schedules" not in module}
    places["gradflow.optim.schedules"] = torch.optim.lr_scheduler
    assert [(module, name) for module, name, _ in NAMES if not hasattr(places[module], name)] == []
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)])
    objects = {"Tensor": torch.ones(2), "Module": torch.nn.Linear(2, 2), "Optimizer": optimizer}
    assert [(kind, name) for kind, name, _ in ATTRIBUTES if name not in dir(objects[kind])] == []


def test_functions_that_are_no_methods_are_named() -> None:
    x: Any = gf.ones(2)
    with pytest.raises(AttributeError, match=r"no attribute 'where'; PyTorch's where is gradflow.where$"):
        _ = x.where
    for name in gf.ops.__all__:
        if not hasattr(x, name):
            with pytest.raises(AttributeError, match=rf"gradflow\.|{METHODS.get(name)}"):
                getattr(x, name)


def test_hints_are_pytorchs_numbers() -> None:
    torch = pytest.importorskip("torch")
    a, b = [1.0, 2.0], [3.0, 4.0]
    x, y, tx, ty = gf.tensor(a), gf.tensor(b), torch.tensor(a), torch.tensor(b)
    assert gf.stack([x, y]).tolist() == torch.vstack([tx, ty]).tolist()
    assert gf.concat([x, y], axis=0).tolist() == torch.hstack([tx, ty]).tolist()
    assert gf.concat([x[-1:], x[:-1]]).tolist() == torch.roll(tx, 1).tolist()
    drawn = gf.floor(gf.random.uniform(1000, low=-2, high=2)).astype("int64").numpy()
    assert {*drawn.tolist()} == {-2, -1, 0, 1}
    assert (gf.log(x) / math.log(2)).tolist() == pytest.approx(torch.log2(tx).tolist())


def test_size_is_an_int() -> None:
    assert type(gf.ones((2, 3)).size) is int
    assert gf.ones((2, 3)).size == 6


# ---------------------------------------------------------------------- set_to_none


def steps(set_to_none: bool, zero_grad: Any) -> list[list[float]]:
    """The gradient and the parameter after one step with momentum, `zero_grad`, and another step."""
    layer = nn.Linear(1, 1, bias=False)
    with gf.no_grad():
        layer.weight.copy_(2.0)
    optimizer = optim.SGD(layer.parameters(), lr=0.1, momentum=0.5)
    layer(gf.ones(1)).sum().backward()
    optimizer.step()
    zero_grad(layer, optimizer)(set_to_none=set_to_none)
    gradient = layer.weight.grad
    optimizer.step()
    return [[] if gradient is None else gradient.reshape(-1).tolist(), layer.weight.reshape(-1).tolist()]


@pytest.mark.parametrize("zero_grad", [lambda m, o: m.zero_grad, lambda m, o: o.zero_grad], ids=["module", "optimizer"])
def test_set_to_none_is_pytorchs(zero_grad: Any) -> None:
    assert steps(True, zero_grad) == [[], [pytest.approx(1.9)]]  # no gradient, so the parameter does not move
    assert steps(False, zero_grad) == [[0.0], [pytest.approx(1.85)]]  # a gradient of 0: the velocity moves it
    torch = pytest.importorskip("torch")
    weight = torch.tensor([2.0], requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5)
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert weight.tolist() == [pytest.approx(1.85)]


def test_a_captured_step_zeroes_gradients() -> None:
    x = gf.tensor([2.0], requires_grad=True)
    optimizer = optim.SGD([x], lr=0.1)

    @gf.capture
    def step() -> gf.Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = (x * x).sum()
        loss.backward()
        optimizer.step()
        return loss

    values = [step().item() for _ in range(6)]
    assert values == pytest.approx([4.0 * 0.64**n for n in range(6)])


# ---------------------------------------------------------------------- keywords

CALLS: dict[str, Any] = {
    **{f"x.{name}": lambda x, name=name, **given: getattr(x, name)(**given) for name in (
        "all", "any", "argmax", "argmin", "argsort", "cumulative_prod", "cumulative_sum", "log_softmax", "logsumexp",
        "max", "mean", "median", "min", "norm", "prod", "softmax", "sort", "squeeze", "std", "sum", "unbind", "var",
    )},
    "concat": lambda x, **given: gf.concat([x, x], **given),
    "gather": lambda x, **given: x.gather(x, **given),
    "quantile": lambda x, **given: x.quantile(0.5, **given),
    "scatter": lambda x, **given: x.scatter(x, 0.0, **given),
    "topk": lambda x, **given: x.topk(1, **given),
    "expand_dims": lambda x, **given: gf.expand_dims(x, 0, **given),
    "repeat": lambda x, **given: gf.repeat(x, 2, **given),
    "split": lambda x, **given: x.split(2, **given),
    "stack": lambda x, **given: gf.stack([x, x], **given),
    "take": lambda x, **given: x.take([0], **given),
    "take_along_axis": lambda x, **given: x.take_along_axis(x, **given),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_dim_is_refused_with_a_hint(name: str) -> None:
    name_alone = name.removeprefix("x.")
    error = rf"^{name_alone}\(\) got an unexpected keyword argument 'dim': gradflow says axis=$"
    with pytest.raises(TypeError, match=error):
        CALLS[name](gf.ones((2, 2)), dim=0)


@pytest.mark.parametrize("name", ["any", "argmax", "logsumexp", "max", "mean", "median", "norm", "std", "sum", "var"])
def test_keepdim_is_refused_with_a_hint(name: str) -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'keepdim': gradflow says keepdims=$"):
        CALLS[f"x.{name}"](gf.ones((2, 2)), axis=0, keepdim=True)


def test_other_keywords_are_refused_with_a_hint() -> None:
    x = gf.ones((2, 2))
    for call, hinted in {
        "x.std(unbiased=False)": "correction=1 for True, correction=0",
        "x.flip(dims=(0,))": "gradflow says axis=",
        "x.roll(1, dims=0)": "gradflow says axis=",
        "x.diag(diagonal=1)": "gradflow says k=",
        "x.tril(diagonal=1)": "gradflow says k=",
        "x.triu(diagonal=1)": "gradflow says k=",
        "nn.Softmax(dim=1)": "gradflow says axis=",
        "gf.vmap(gf.sum, in_dims=1)": "gradflow says in_axes=",
        "gf.vmap(gf.sum, out_dims=1)": "gradflow says out_axes=",
        "nn.ReLU(inplace=True)": "so leave it out",
        "optim.Adagrad([x], initial_accumulator_value=0.1)": "start at 0",
        "optim.SGD(params=[x])": "gradflow says parameters=",
        "optim.AdamW([x], fused=True)": "one kernel updates all",
    }.items():
        with pytest.raises(TypeError, match=hinted):
            eval(call, {"gf": gf, "x": x, "nn": nn, "optim": optim})


@pytest.mark.parametrize("name", ["sum", "softmax", "std", "stack", "any", "argmax", "flip"])
def test_signatures_do_not_show_the_keywords(name: str) -> None:
    shown = signature(getattr(gf, name))
    assert "axis" in shown.parameters
    assert not KEYWORDS.keys() & shown.parameters.keys()
    assert shown.parameters["axis"].default in (None, -1, 0)
    assert shown.return_annotation == "Tensor"


def test_every_function_with_an_axis_refuses_dim() -> None:
    for name in gf.ops.__all__:
        function = getattr(gf, name)
        if "axis" in signature(function).parameters and name not in ("flip", "roll"):
            taken: set[str] = set()
            while function is not None:  # through its decorators
                taken |= signature(function, follow_wrapped=False).parameters.keys()
                function = getattr(function, "__wrapped__", None)
            assert "dim" in taken, name
