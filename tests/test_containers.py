"""Containers of modules and parameters are changed as PyTorch's are."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim

CHANGES: dict[str, Any] = {
    "assigned": lambda s, new: s.__setitem__(1, new(2)),
    "assigned from the end": lambda s, new: s.__setitem__(-1, new(2)),
    "inserted": lambda s, new: s.insert(1, new(2)),
    "inserted at the end": lambda s, new: s.insert(3, new(2)),
    "removed": lambda s, new: s.__delitem__(0),
    "removed by a slice": lambda s, new: s.__delitem__(slice(0, 2)),
    "removed, then appended": lambda s, new: (s.__delitem__(1), s.append(new(2))),
}


@pytest.mark.parametrize("kind", ["Sequential", "ModuleList"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_sequence_has_the_names_and_shapes_of_pytorchs(kind: str, change: str) -> None:
    torch = pytest.importorskip("torch")
    shapes = []
    for library in (nn, torch.nn):
        layers = [library.Linear(n, n + 1) for n in (3, 4, 5)]
        sequence = getattr(library, kind)(*layers) if kind == "Sequential" else getattr(library, kind)(layers)
        CHANGES[change](sequence, lambda n, library=library: library.Linear(n, n))
        shapes.append({name: tuple(value.shape) for name, value in sequence.state_dict().items()})
        assert len(sequence) == len(list(sequence)) == len(shapes[-1]) // 2
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_changed_model_computes_with_the_modules_that_it_holds(how: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    first, _, last = model
    model[1] = nn.Tanh()
    del model[0]
    model.insert(0, nn.Linear(5, 3)).insert(-1, nn.Identity())
    x = gf.random.normal((4, 5))
    expected = last(gf.tanh(model[0](x)))
    twin = how(model)
    assert model(x).tolist() == twin(x).tolist() == expected.tolist()
    assert list(twin.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert first not in list(model.modules())
    twin.load_state_dict(model.state_dict())


def test_a_perceptron_keeps_the_names_of_its_dropout_and_tells_its_sizes() -> None:
    model = nn.MLP([2, 3, 4, 1], dropout=0.5)
    model[0] = nn.Linear(7, 3, activation="relu")
    model.insert(2, nn.Linear(3, 3, activation="relu"))
    assert [name for name, _ in model.named_children()] == ["0", "dropout0", "1", "2", "dropout1", "3"]
    assert model.sizes == (7, 3, 3, 4, 1)
    del model[1], model[3:]
    assert (list(model.state_dict()), model.sizes) == (
        [f"{i}.{kind}" for i in range(3) for kind in ("weight", "bias")],
        (7, 3, 3, 4),
    )
    assert model(gf.ones((1, 7))).shape == (1, 4)


def test_refused_changes_of_a_sequence_change_nothing() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    before = list(model)
    with pytest.raises(TypeError, match="a Sequential is made of modules; got NoneType at position 1"):
        model[1] = None
    with pytest.raises(TypeError, match="one position of a Sequential at a time; got a slice"):
        model[0:1] = [nn.Tanh()]
    with pytest.raises(TypeError, match="got Parameter at position 0"):
        model.insert(0, nn.Parameter(gf.ones(1)))
    for wrong in (
        lambda: model[2], lambda: model.__delitem__(-3), lambda: model.insert(3, nn.Tanh()),
        lambda: model.__setitem__(2, nn.Tanh()),
    ):  # fmt: skip
        with pytest.raises(IndexError, match=r"there is no position -?\d in a Sequential of length 2"):
            wrong()
    assert list(model) == before


def test_an_optimizer_keeps_the_parameters_that_it_was_created_with() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    old, new = model[1], nn.Linear(2, 1, bias=False)
    model[1] = new
    before = new.weight.tolist(), old.weight.tolist(), model[0].weight.tolist()
    model(gf.ones((1, 2))).sum().backward()
    optimizer.step()
    after = new.weight.tolist(), old.weight.tolist(), model[0].weight.tolist()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False]
    optimizer.add_param_group({"params": list(new.parameters())})
    optimizer.step()
    assert new.weight.tolist() != before[0]


# ---------------------------------------------------------------------- dicts


def test_a_module_dict_is_a_dict_whose_modules_are_registered() -> None:
    heads = nn.ModuleDict({"a": nn.Linear(2, 1)})
    heads["b"] = nn.Linear(2, 3, bias=False)
    heads.update([("a", nn.Linear(2, 4)), ("c", nn.Tanh())])
    assert (list(heads), len(heads), "b" in heads, "d" in heads) == (["a", "b", "c"], 3, True, False)
    assert [list(heads.keys()), list(heads.values()), list(heads.items())] == [
        ["a", "b", "c"], [heads["a"], heads["b"], heads["c"]], [(name, heads[name]) for name in heads]
    ]  # fmt: skip
    assert {name: x.shape for name, x in heads.state_dict().items()} == {
        "a.weight": (4, 2), "a.bias": (4,), "b.weight": (3, 2)
    }  # fmt: skip
    twin = pickle.loads(pickle.dumps(heads))
    gone = heads.pop("a")
    assert (type(gone), list(heads), list(twin), list(copy.copy(twin))) == (
        nn.Linear, ["b", "c"], ["a", "b", "c"], ["a", "b", "c"]
    )  # fmt: skip
    twin.clear()
    assert (len(twin), list(twin.parameters()), repr(twin)) == (0, [], "ModuleDict()")
    with pytest.raises(KeyError, match="this ModuleDict has no module 'a'; it has b, c"):
        heads["a"]
    with pytest.raises(KeyError):
        del heads["a"]


def test_a_module_dict_refuses_names_and_values_and_then_changes_nothing() -> None:
    heads: Any = nn.ModuleDict()
    for name in ("", "a.b", "training", "keys", "forward"):
        with pytest.raises(ValueError, match="cannot hold a module under"):
            heads.update({"fine": nn.Tanh(), name: nn.Tanh()})
    for name, value in (("a", 1.0), ("a", None), (1, nn.Tanh())):
        with pytest.raises(TypeError, match="holds modules under names that are texts; got"):
            heads.update({"fine": nn.Tanh(), name: value})
    assert len(heads) == 0


# ---------------------------------------------------------------------- lists of parameters


def test_a_parameter_list_registers_what_it_holds(device: str) -> None:
    own = nn.Parameter(gf.ones(2))
    given = nn.ParameterList([own, gf.zeros((2, 3))])
    given.append(gf.ones(4)).insert(1, gf.ones(()))
    del given[2]
    given[-1] = gf.ones(5)
    assert [(name, p.shape, p.requires_grad) for name, p in given.named_parameters()] == [
        ("0", (2,), True), ("1", (), True), ("2", (5,), True)
    ]  # fmt: skip
    assert given[0] is own
    assert (type(given[1:]), len(given[1:]), repr(given)) == (nn.ParameterList, 2, "ParameterList((2,), (), (5,))")
    for wrong, kind in ((gf.arange(3, dtype="int64"), "a tensor of int64"), (1.0, "float"), (nn.Tanh(), "Tanh")):
        with pytest.raises(TypeError, match=f"made of floating-point tensors; got {kind} at position 3"):
            given.append(wrong)
    assert pickle.loads(pickle.dumps(given)).state_dict().keys() == given.state_dict().keys()


def test_the_parameters_of_a_list_are_replaced_by_functional_call() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.ParameterList([gf.ones(2), gf.ones(2)])

        def forward(self, x: Any) -> Any:
            return sum((p * x).sum() for p in self.factors) + (self.factors[0] * x).sum()

    gradients = gf.grad(lambda p, x: nn.functional_call(Sum(), p, x))(
        dict(Sum().named_parameters()), gf.tensor([1.0, 2.0])
    )
    assert {name: g.tolist() for name, g in gradients.items()} == {"factors.0": [2.0, 4.0], "factors.1": [1.0, 2.0]}


# ---------------------------------------------------------------------- parameters as a vector


def test_parameters_as_a_vector_are_pytorchs_and_are_recorded(device: str) -> None:
    model = nn.MLP([2, 3, 1])
    vector = nn.parameters_to_vector(model.parameters())
    gf.sum(vector * gf.arange(vector.size)).backward()
    assert vector.tolist() == [v for p in model.parameters() for v in p.flatten().tolist()]
    assert [v for p in model.parameters() for v in p.grad.flatten().tolist()] == list(range(13))  # type: ignore[union-attr]
    nn.vector_to_parameters(vector * 2, model.parameters())
    assert nn.parameters_to_vector(model.parameters()).tolist() == [2 * v for v in vector.tolist()]
    assert model(gf.ones((1, 2))).requires_grad


def test_a_vector_that_does_not_fit_changes_nothing() -> None:
    model = nn.Linear(2, 1)
    before = model.state_dict()
    for wrong in (gf.zeros(2), gf.zeros(4), gf.zeros((1, 3))):
        with pytest.raises(ValueError, match="needs a vector of 3 elements"):
            nn.vector_to_parameters(wrong, model.parameters())
    with pytest.raises(TypeError, match="vector_to_parameters takes tensors; got"):
        nn.vector_to_parameters(gf.ones(3), [*model.parameters(), np.zeros(0)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="needs at least one parameter"):
        nn.parameters_to_vector([])
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {k: v.tolist() for k, v in before.items()}


# ---------------------------------------------------------------------- what other parts make of them


def test_weights_go_to_pytorchs_containers_and_back(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")

    def model(library: Any, ones: Any) -> Any:
        module = library.Module()
        module.heads = library.ModuleDict({"a": library.Linear(2, 3), "b": library.Linear(2, 1)})
        module.factors = library.ParameterList([ones(2), ones((2, 2))])
        return module

    mine, theirs = model(nn, gf.ones), model(torch.nn, torch.ones)
    path = str(tmp_path / "weights.safetensors")
    files.save_file(theirs.state_dict(), path)
    mine.load(path, names="torch")
    for name, value in theirs.state_dict().items():
        assert mine.state_dict()[name].tolist() == value.tolist()
    nn.vector_to_parameters(nn.parameters_to_vector(mine.parameters()) * 2, mine.parameters())
    mine.save(path, names="torch")
    theirs.load_state_dict(files.load_file(path))
    assert {name: x.tolist() for name, x in mine.state_dict().items()} == {
        name: x.tolist() for name, x in theirs.state_dict().items()
    }


def test_a_summary_counts_their_parameters_and_calls_no_hooks() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 3)})
            self.factors = nn.ParameterList([gf.ones(3), gf.ones(3)])

        def forward(self, x: Any) -> Any:
            return sum(factor * head(x) for factor, head in zip(self.factors, self.heads.values(), strict=True))

    model, called = Model(), []
    model.heads["a"].register_forward_pre_hook(lambda *_: called.append(1))
    model.heads["b"].register_full_backward_hook(lambda *_: called.append(2))
    summary = nn.summary(model, 2)
    assert (summary.parameters, [layer.name for layer in summary.layers]) == (24, ["heads.a", "heads.b", "factors"])
    assert not called
