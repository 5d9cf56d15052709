"""Modules, layers, losses and initializers."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from twin import twin_device

import gradflow as gf
from gradflow import nn
from gradflow.backend import ACTIVATIONS, registry
from gradflow.nn import init
from gradflow.testing import assert_agree, host


class Two(nn.Module):
    """A module with modules, parameters and plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, activation="tanh")
        self.scale = nn.Parameter(gf.ones((4,)))
        self.rate = 0.5
        self.last = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Dropout(0.5))

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return self.last(self.first(x) * self.scale)


def names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


def values(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: host(p) for name, p in module.named_parameters()}


@pytest.fixture
def other_device() -> Iterator[str]:
    with twin_device() as name:
        yield name


# ---------------------------------------------------------------------- registration


def test_parameters_are_found_by_dotted_names_in_the_order_of_assignment(device: str) -> None:
    model = Two()
    assert names(model) == ["scale", "first.weight", "first.bias", "last.0.weight"]
    assert [name for name, _ in model.named_modules()] == ["", "first", "last", "last.0", "last.1"]
    assert [type(m).__name__ for m in model.modules()] == ["Two", "Linear", "Sequential", "Linear", "Dropout"]
    assert [p.shape for p in model.parameters()] == [(4,), (4, 3), (4,), (2, 4)]


def test_replacing_a_parameter_or_module_replaces_it_everywhere() -> None:
    model = Two()
    old = model.scale
    model.scale = nn.Parameter(gf.zeros((4,)))
    model.first = nn.Linear(3, 4, bias=False)
    assert model.scale is not old
    assert names(model) == ["scale", "first.weight", "last.0.weight"]
    model.scale = nn.Linear(1, 1)  # a parameter's name may become a module's, and back
    assert names(model) == ["first.weight", "last.0.weight", "scale.weight", "scale.bias"]
    model.scale = old
    assert names(model)[0] == "scale"
    assert "scale" not in dict(model.named_modules())


def test_deleting_an_attribute_unregisters_it() -> None:
    model = Two()
    del model.scale, model.first
    assert names(model) == ["last.0.weight"]
    assert not hasattr(model, "first")
    with pytest.raises(AttributeError):
        del model.first


def test_a_parameter_may_be_none() -> None:
    layer = nn.Linear(3, 2)
    layer.bias = None
    assert names(layer) == ["weight"]
    layer(gf.ones((1, 3)))
    layer.bias = nn.Parameter(gf.ones((2,)))
    assert names(layer) == ["weight", "bias"]


@pytest.mark.parametrize("name", ["scale", "first"])
@pytest.mark.parametrize("value", [1.0, "text", gf.ones((4,))], ids=["number", "text", "tensor"])
def test_a_parameter_cannot_become_something_else_by_mistake(name: str, value: Any) -> None:
    model = Two()
    with pytest.raises(TypeError, match=name):
        setattr(model, name, value)
    assert names(model) == ["scale", "first.weight", "first.bias", "last.0.weight"]


def test_assigning_before_init_is_refused() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"super\(\).__init__"):
        Late()


def test_a_plain_tensor_is_not_a_parameter() -> None:
    model = Two()
    model.offset = gf.ones((2,), requires_grad=True)
    assert "offset" not in names(model)


def test_shared_parameters_and_modules_count_once() -> None:
    model = nn.Module()
    model.a = nn.Linear(3, 3)
    model.b = model.a
    model.c = nn.Linear(3, 3, bias=False)
    model.c.weight = model.a.weight
    assert names(model) == ["a.weight", "a.bias"]
    assert len(list(model.modules())) == 3
    x = gf.ones((1, 3))
    (model.a(x) + model.c(x)).sum().backward()
    np.testing.assert_array_equal(host(model.a.weight.grad), np.full((3, 3), 2.0))
    model.to("float64")
    assert model.c.weight is model.a.weight
    assert model.c.weight.dtype is gf.float64


def test_parameter_shares_the_values_of_its_tensor() -> None:
    t = gf.ones((3,))
    p = nn.Parameter(t)
    assert p.array is t.array
    assert p.requires_grad
    assert p.is_leaf
    assert not t.requires_grad
    assert nn.Parameter(p * 2).is_leaf


@pytest.mark.parametrize("bad", [[1.0, 2.0], np.ones(3), 1.0, None])
def test_a_parameter_is_made_of_a_tensor(bad: Any) -> None:
    with pytest.raises(TypeError, match="tensor"):
        nn.Parameter(bad)


def test_a_parameter_carries_a_gradient() -> None:
    with pytest.raises(TypeError, match="floating"):
        nn.Parameter(gf.arange(3))


def test_a_parameter_may_start_frozen() -> None:
    p = nn.Parameter(gf.ones((2,)), requires_grad=False)
    assert not p.requires_grad
    assert p.requires_grad_().requires_grad
    with pytest.raises(TypeError, match="floating"):
        nn.Parameter(gf.arange(3), requires_grad=False)


def test_a_module_may_become_none_and_come_back() -> None:
    model = Two()
    old, model.first = model.first, None
    assert names(model) == ["scale", "last.0.weight"]
    assert [name for name, _ in model.named_modules()] == ["", "last", "last.0", "last.1"]
    assert "(first): None" in repr(model)
    model.eval().to("float64")
    with pytest.raises(TypeError, match="a module"):
        model.first = 3
    model.first = old
    assert names(model) == ["scale", "first.weight", "first.bias", "last.0.weight"]


def test_registering_says_what_is_wrong() -> None:
    class Late(nn.Module):
        def __init__(self, register: Callable[[nn.Module], Any]) -> None:
            register(self)

    for register in (
        lambda m: m.register_parameter("p", nn.Parameter(gf.ones((1,)))),
        lambda m: m.register_buffer("b", gf.ones((1,))),
    ):
        with pytest.raises(AttributeError, match=r"super\(\).__init__"):
            Late(register)
    with pytest.raises(TypeError, match="Parameter"):
        nn.Module().register_parameter("p", gf.ones((1,)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tensor"):
        nn.Module().register_buffer("b", 1.0)  # type: ignore[arg-type]


def test_children_and_apply() -> None:
    model = Two()
    model.again = model.first
    assert [name for name, _ in model.named_children()] == ["first", "last"]
    assert list(model.children()) == [model.first, model.last]
    seen: list[str] = []
    assert model.apply(lambda m: seen.append(type(m).__name__)) is model
    assert seen == ["Linear", "Linear", "Dropout", "Sequential", "Two"]


def test_forward_must_be_defined() -> None:
    with pytest.raises(NotImplementedError, match="forward"):
        nn.Module()(1)


# ---------------------------------------------------------------------- modes, gradients


def test_train_and_eval_reach_every_module() -> None:
    model = Two()
    assert model.eval() is model
    assert [m.training for m in model.modules()] == [False] * 5
    assert model.train() is model
    assert [m.training for m in model.modules()] == [True] * 5
    x = gf.ones((50, 3))
    assert (host(model(x)) == 0).any()
    model.eval()
    assert_agree("evaluation is deterministic", model(x), host(model(x)))
    assert (host(model(x)) != 0).all()


def test_zero_grad_and_requires_grad() -> None:
    model = Two().eval()
    model(gf.ones((2, 3))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert model.requires_grad_(False) is model
    assert not model(gf.ones((2, 3))).requires_grad
    model.zero_grad()
    model.first.requires_grad_()
    model(gf.ones((2, 3))).sum().backward()
    assert [p.grad is not None for p in model.parameters()] == [False, True, True, False]


# ---------------------------------------------------------------------- moving


def test_to_dtype(device: str) -> None:
    model = Two().eval()
    before = values(model)
    ids = [id(p) for p in model.parameters()]
    model.scale.requires_grad_(False)
    model(gf.ones((2, 3))).sum().backward()
    assert model.to("float64") is model
    assert [id(p) for p in model.parameters()] == ids
    assert {p.dtype for p in model.parameters()} == {gf.float64}
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(host(p), before[name].astype(np.float64))
    out = model(gf.ones((2, 3), dtype="float64"))
    assert out.dtype is gf.float64
    out.sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {gf.float64}
    model.to(gf.float32)
    for name, p in model.named_parameters():
        assert_agree(name, p, before[name])


def test_to_the_same_device_keeps_everything(device: str) -> None:
    model = Two().eval()
    model(gf.ones((2, 3))).sum().backward()
    arrays = [p.array for p in model.parameters()]
    model.to(device).to("float32")
    assert all(p.array is a for p, a in zip(model.parameters(), arrays, strict=True))
    assert all(p.grad is not None for p in model.parameters())


def test_to_another_device(other_device: str) -> None:
    model = Two().eval()
    before = values(model)
    model.to(other_device)
    assert {str(p.device) for p in model.parameters()} == {f"{other_device}:0"}
    with pytest.raises(gf.DeviceMismatchError):
        model(gf.ones((2, 3)))
    out = model(gf.ones((2, 3), device=other_device))
    out.sum().backward()
    assert {str(p.grad.device) for p in model.parameters()} == {f"{other_device}:0"}
    model.to("cpu")
    for name, p in model.named_parameters():
        assert_agree(name, p, before[name])


@pytest.mark.parametrize("target", ["int64", gf.bool, gf.int32])
def test_parameters_stay_floating(target: Any) -> None:
    model = Two()
    with pytest.raises(TypeError, match="floating"):
        model.to(target)
    assert {p.dtype for p in model.parameters()} == {gf.float32}


@pytest.mark.parametrize("target", ["nowhere", "cpu:7", "floot32"])
def test_a_target_that_does_not_exist_leaves_the_model(target: str) -> None:
    model = Two()
    with pytest.raises((ValueError, gf.DeviceUnavailableError)):
        model.to(target)
    assert {str(p.device) for p in model.parameters()} == {"cpu"}


# ---------------------------------------------------------------------- state


def test_state_dict_is_a_copy(device: str) -> None:
    model = Two()
    state = model.state_dict()
    assert list(state) == names(model)
    before = values(model)
    with gf.no_grad():
        for p in model.parameters():
            p.zero_()
    for name, value in state.items():
        assert not value.requires_grad
        assert_agree(name, value, before[name])


def test_load_state_dict_overwrites_in_place(device: str) -> None:
    model, source = Two(), Two()
    arrays = [p.array for p in model.parameters()]
    ids = [id(p) for p in model.parameters()]
    model.load_state_dict(source.state_dict())
    assert all(p.array is a for p, a in zip(model.parameters(), arrays, strict=True))
    assert [id(p) for p in model.parameters()] == ids
    for name, p in model.named_parameters():
        assert_agree(name, p, values(source)[name])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_load_state_dict_takes_numpy_values_of_any_float_width(device: str, dtype: str) -> None:
    model, source = Two(), Two()
    model.load_state_dict({name: v.astype(dtype) for name, v in values(source).items()})
    for name, p in model.named_parameters():
        assert_agree(name, p, values(source)[name])


def test_load_state_dict_takes_values_from_another_device(other_device: str) -> None:
    model, source = Two(), Two().to(other_device)
    model.load_state_dict(source.state_dict())
    for name, p in model.named_parameters():
        assert str(p.device) == "cpu"
        assert_agree(name, p, values(source)[name])


def test_numpy_values_are_copied() -> None:
    layer = nn.Linear(2, 2, bias=False)
    given = np.ones((2, 2), dtype=np.float32)
    layer.load_state_dict({"weight": given})
    given[...] = 7
    assert host(layer.weight).max() == 1


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda s: s.pop("scale"), KeyError, "missing: scale"),
        (lambda s: s.update(extra=gf.ones((1,))), KeyError, "unexpected: extra"),
        (lambda s: s.update({"last.0.weight": gf.ones((4, 2))}), ValueError, "last.0.weight"),
        (lambda s: s.update({"last.0.weight": gf.ones((1, 4))}), ValueError, "last.0.weight"),
        (lambda s: s.update({"last.0.weight": gf.zeros((2, 4), dtype="int64")}), TypeError, "last.0.weight"),
        (lambda s: s.update({"last.0.weight": np.zeros((2, 4), dtype=bool)}), TypeError, "last.0.weight"),
        (lambda s: s.update({"last.0.weight": "text"}), TypeError, "tensor is made of"),
        (lambda s: s.update({"last.0.weight": None}), TypeError, "tensor is made of"),
    ],
)
def test_a_state_dict_that_does_not_match_leaves_the_model_untouched(
    change: Callable[[dict[str, Any]], Any], error: type[Exception], says: str
) -> None:
    model = Two()
    before = values(model)
    state: dict[str, Any] = dict(Two().state_dict())
    change(state)
    with pytest.raises(error, match=says):
        model.load_state_dict(state)
    for name, p in model.named_parameters():
        assert_agree(name, p, before[name])


def test_loading_without_strict_uses_the_names_that_match() -> None:
    model, source = Two(), Two()
    before = values(model)
    state = {"scale": gf.full((4,), 3.0), "last.0.weight": source.state_dict()["last.0.weight"], "extra": gf.ones((1,))}
    found = model.load_state_dict(state, strict=False)
    assert found == (["first.weight", "first.bias"], ["extra"])
    assert found.missing_keys == found[0]
    assert host(model.scale).tolist() == [3.0] * 4
    assert_agree("last", model.last[0].weight, values(source)["last.0.weight"])
    assert_agree("first", model.first.weight, before["first.weight"])
    with pytest.raises(ValueError, match="scale"):
        model.load_state_dict({"scale": gf.ones((5,))}, strict=False)


def test_a_backward_pass_through_overwritten_weights_is_refused() -> None:
    model = nn.MLP([2, 3, 1])
    loss = model(gf.ones((1, 2))).sum()
    model.load_state_dict(nn.MLP([2, 3, 1]).state_dict())
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


class Counting(nn.Module):
    """A module with persistent and other buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(gf.ones((2,)))
        self.register_buffer("mean", gf.full((2,), 0.5))
        self.register_buffer("count", gf.tensor(3, dtype="int64"))
        self.register_buffer("scratch", gf.zeros((1,)), persistent=False)
        self.register_buffer("nothing", None)


def test_buffers_are_found_moved_and_saved(device: str) -> None:
    model = nn.Sequential(Counting())
    assert [name for name, _ in model.named_buffers()] == ["0.mean", "0.count", "0.scratch"]
    assert [b.shape for b in model.buffers()] == [(2,), (), (1,)]
    assert names(model) == ["0.weight"]
    assert list(model.state_dict()) == ["0.weight", "0.mean", "0.count"]
    model.to("float64")
    assert [b.dtype for b in model.buffers()] == [gf.float64, gf.int64, gf.float64]
    assert model[0].mean is dict(model.named_buffers())["0.mean"]
    model[0].mean = gf.zeros((2,))
    assert dict(model.named_buffers())["0.mean"].dtype is gf.float32
    with pytest.raises(TypeError, match="a buffer"):
        model[0].mean = 1.0
    model[0].mean = None
    assert list(model.state_dict()) == ["0.weight", "0.count"]
    del model[0].count
    assert [name for name, _ in model.named_buffers()] == ["0.scratch"]


def test_buffers_move_to_another_device(other_device: str) -> None:
    model = Counting().to(other_device)
    assert {str(b.device) for b in model.buffers()} == {f"{other_device}:0"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_buffers_are_loaded_and_copied(device: str, copied: Callable[[Any], Any]) -> None:
    model, other = Counting(), Counting()
    model.mean, model.count = gf.tensor([1.0, 2.0]), gf.tensor(7, dtype="int64")
    assert other.load_state_dict(model.state_dict()) == ([], [])
    twin = copied(other)
    assert (twin.mean.tolist(), twin.count.item()) == ([1, 2], 7)
    assert twin.mean is dict(twin.named_buffers())["mean"]
    assert list(twin.state_dict()) == list(model.state_dict())
    with pytest.raises(TypeError, match="count"):
        other.load_state_dict({**model.state_dict(), "count": gf.tensor(7.0)})


@pytest.mark.parametrize(
    ("make", "saved"),
    [
        (lambda w: nn.CrossEntropyLoss(weight=w), ["weight"]),
        (lambda w: nn.NLLLoss(weight=w), ["weight"]),
        (lambda w: nn.BCEWithLogitsLoss(weight=w, pos_weight=w), ["weight", "pos_weight"]),
        (lambda w: nn.BCEWithLogitsLoss(pos_weight=w), ["pos_weight"]),
        (lambda w: nn.CrossEntropyLoss(), []),
    ],
)
def test_weights_of_losses_are_buffers_as_in_pytorch(device: str, make: Callable[[Any], Any], saved: list[str]) -> None:
    weight = gf.tensor([1.0, 2.0, 3.0])
    loss = make(weight)
    assert list(loss.state_dict()) == saved
    loss.to("float64")
    assert all(getattr(loss, name).dtype is gf.float64 for name in saved)
    assert weight.dtype is gf.float32
    assert not list(loss.parameters())


def tied() -> nn.Module:
    model = nn.Module()
    model.a, model.b = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    model.b.weight = model.a.weight
    model.c = model.a
    return model


def test_the_state_dict_has_every_name_of_a_shared_tensor(device: str) -> None:
    model, other = tied(), tied()
    state = model.state_dict()
    assert list(state) == ["a.weight", "a.bias", "b.weight", "c.weight", "c.bias"]
    assert names(model) == ["a.weight", "a.bias"]
    assert [name for name, _ in model.named_parameters(remove_duplicate=False)] == list(state)
    other.load_state_dict({name: host(value) for name, value in state.items()})
    assert_agree("weight", other.b.weight, host(model.a.weight))
    with pytest.raises(nn.StateError, match=r"missing: b\.weight, c\.bias$"):
        other.load_state_dict({n: v for n, v in state.items() if n not in ("b.weight", "c.bias")})


def test_differing_values_of_one_parameter_are_refused(device: str) -> None:
    model = tied()
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"a\.weight and b\.weight share"):
        model.load_state_dict({**state, "b.weight": state["a.weight"] + 1})
    assert_agree("weight", model.a.weight, host(state["a.weight"]))
    state["a.weight"][0, 0] = math.nan
    model.load_state_dict({**state, "b.weight": host(state["a.weight"]).copy()})
    assert math.isnan(host(model.b.weight)[0, 0])


def test_functional_call_takes_a_state_dict(device: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied, self.counting = tied(), Counting()

        def forward(self, x: gf.Tensor) -> gf.Tensor:
            return self.tied.b(self.tied.c(x)) * self.counting.mean

    model, x = Net(), gf.ones((1, 2))
    state = {name: value * 2 for name, value in model.state_dict().items()}
    expected = Net()
    expected.load_state_dict(state)
    before = model(x)
    assert_agree("call", nn.functional_call(model, state, x), host(expected(x)))
    assert_agree("after", model(x), host(before))


def test_a_state_error_is_a_key_error_that_reads_well() -> None:
    with pytest.raises(KeyError) as caught:
        nn.Linear(1, 1).load_state_dict({"weight": gf.ones((1, 1)), "wait": gf.ones((1,))})
    assert str(caught.value) == "load_state_dict of Linear: missing: bias; unexpected: wait"


# ---------------------------------------------------------------------- copies and text


def test_pickles_of_models_that_name_former_modules_load() -> None:
    layers = [nn.ReLU(), nn.ELU(), nn.GELU(), nn.LeakyReLU(), nn.LogSoftmax(), nn.SiLU(), nn.Sigmoid(), nn.Softmax()]
    model = nn.Sequential(nn.MLP([2, 3, 2], dropout=0.5), nn.LayerNorm(2), *layers, nn.Softplus(), nn.Tanh()).eval()
    model[1].more = nn.ModuleList([nn.Linear(2, 2)])
    written = pickle.dumps((model, gf.optim.Adam(model.parameters()), nn.StateError("x"), nn.functional_call), 0)
    former = re.sub(rb"gradflow\.nn\.(activations|containers|perceptron)\n", b"gradflow.nn.layers\n", written)
    former = re.sub(rb"gradflow\.nn\.(functional|parameter|state)\n", b"gradflow.nn.module\n", former)
    assert len(former) < len(written)
    assert b"_transient" in former  # the name of an attribute of every module
    loaded, optimizer, error, function = pickle.loads(former)
    assert (type(error), function) == (nn.StateError, nn.functional_call)
    assert loaded(gf.ones((1, 2))).tolist() == model(gf.ones((1, 2))).tolist()
    loaded.register_buffer("kept", gf.ones(1))
    assert list(loaded.state_dict()) == ["kept", *model.state_dict()]
    loaded[0](gf.ones((1, 2))).sum().backward()
    optimizer.step()
    assert loaded[0][-1].bias.tolist() != model[0][-1].bias.tolist()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("trained", [False, True], ids=["new", "in an optimizer"])
def test_a_copy_of_a_model_is_equal_and_independent(device: str, copied: Callable[[Any], Any], trained: bool) -> None:
    model = Two().eval()
    model.first.bias.requires_grad_(False)
    model.tied = model.scale
    if trained:
        optimizer = gf.optim.Adam(model.parameters())
        model(gf.ones((1, 3))).sum().backward()
        optimizer.step()
    twin = copied(model)
    assert names(twin) == names(model)
    assert twin.tied is twin.scale
    assert twin.first.weight is dict(twin.named_parameters())["first.weight"]
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in model.parameters()]
    assert [m.training for m in twin.modules()] == [False] * 5
    assert all(type(p) is nn.Parameter for p in twin.parameters())
    before = values(model)
    x = gf.ones((2, 3))
    assert_agree("output", twin(x), host(model(x)))
    with gf.no_grad():
        for p in twin.parameters():
            p.zero_()
    for name, p in model.named_parameters():
        assert_agree(name, p, before[name])


def test_repr() -> None:
    class Bare(nn.Module):
        pass

    assert repr(Bare()) == "Bare()"
    assert repr(Two()) == (
        "Two(\n"
        "  (first): Linear(in_features=3, out_features=4, bias=True, activation='tanh')\n"
        "  (last): Sequential(\n"
        "    (0): Linear(in_features=4, out_features=2, bias=False)\n"
        "    (1): Dropout(p=0.5)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.LayerNorm((2, 3))) == "LayerNorm((2, 3), eps=1e-05, elementwise_affine=True)"
    assert repr(nn.LeakyReLU(0.2)) == "LeakyReLU(negative_slope=0.2)"
    assert repr(nn.PReLU(3)) == "PReLU(num_parameters=3)"
    assert repr(nn.Hardtanh()) == "Hardtanh(min_val=-1.0, max_val=1.0)"
    assert repr(nn.GLU()) == "GLU(axis=-1)"
    assert repr(nn.ELU()) == "ELU(alpha=1.0)"
    assert repr(nn.Softmax(axis=0)) == "Softmax(axis=0)"
    assert repr(nn.MSELoss()) == "MSELoss()"
    assert repr(nn.MSELoss("sum")) == "MSELoss(reduction='sum')"


# ---------------------------------------------------------------------- layers


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_linear_is_the_affine_map_and_its_activation(device: str, activation: str | None) -> None:
    layer = nn.Linear(5, 3, activation=activation, dtype="float64")
    x = gf.random.normal((2, 4, 5), dtype="float64")
    z = host(x) @ host(layer.weight).T + host(layer.bias)
    functions = {None: lambda z: z, "gelu_exact": lambda z: gf.gelu(z, approximate="none")}
    function = functions[activation] if activation in functions else getattr(gf, activation)
    expected = host(function(gf.tensor(z)))
    np.testing.assert_allclose(host(layer(x)), expected, rtol=1e-13, atol=1e-15)
    assert layer(x[0, 0]).shape == (3,)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (nn.ReLU(), gf.relu),
        (nn.Sigmoid(), gf.sigmoid),
        (nn.Tanh(), gf.tanh),
        (nn.GELU(), gf.gelu),
        (nn.GELU(approximate="none"), lambda x: gf.gelu(x, approximate="none")),
        (nn.SiLU(), gf.silu),
        (nn.Softplus(), gf.softplus),
        (nn.LeakyReLU(0.3), lambda x: gf.leaky_relu(x, 0.3)),
        (nn.ELU(0.7), lambda x: gf.elu(x, 0.7)),
        (nn.SELU(), gf.selu),
        (nn.Mish(), gf.mish),
        (nn.Softsign(), gf.softsign),
        (nn.Hardtanh(-0.5, 2), lambda x: gf.hardtanh(x, -0.5, 2)),
        (nn.PReLU(4, 0.5), lambda x: gf.prelu(x, gf.full((4,), 0.5))),
        (nn.Softmax(), lambda x: gf.softmax(x, -1)),
        (nn.Softmax(0), lambda x: gf.softmax(x, 0)),
        (nn.LogSoftmax(1), lambda x: gf.log_softmax(x, 1)),
        (nn.LayerNorm(6), lambda x: gf.layer_norm(x, (6,), gf.ones((6,)), gf.zeros((6,)))),
        (nn.LayerNorm((4, 6), eps=0.1, elementwise_affine=False), lambda x: gf.layer_norm(x, (4, 6), eps=0.1)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_a_module_is_its_function(device: str, module: nn.Module, function: Callable[[gf.Tensor], gf.Tensor]) -> None:
    x, y = (gf.random.normal((3, 4, 6), generator=gf.Generator(1)).requires_grad_() for _ in range(2))
    module.to(device)
    out, expected = module(x), function(y)
    assert_agree("value", out, host(expected))
    g = gf.random.normal((3, 4, 6))
    out.backward(g)
    expected.backward(g)
    assert_agree("gradient", x.grad, host(y.grad))


LABELS = [1, 0, 2, 1]


@pytest.mark.parametrize(
    ("module", "function", "kind"),
    [
        (nn.MSELoss, gf.mse_loss, "values"),
        (nn.L1Loss, gf.l1_loss, "values"),
        (lambda r: nn.SmoothL1Loss(r, 0.4), lambda x, t, reduction: gf.smooth_l1_loss(x, t, reduction, 0.4), "values"),
        (lambda r: nn.KLDivLoss(r, True), lambda x, t, reduction: gf.kl_div(x, t, reduction, True), "values"),
        (lambda r: nn.HuberLoss(r, delta=0.4), lambda x, t, reduction: gf.huber_loss(x, t, reduction, 0.4), "values"),
        (lambda r: nn.BCEWithLogitsLoss(reduction=r),
         lambda x, t, reduction: gf.binary_cross_entropy_with_logits(x, t, reduction=reduction), "shares"),
        (lambda r: nn.CrossEntropyLoss(reduction=r, label_smoothing=0.1, ignore_index=1),
         lambda x, t, reduction: gf.cross_entropy(x, t, reduction=reduction, label_smoothing=0.1, ignore_index=1),
         "labels"),
        (lambda r: nn.NLLLoss(reduction=r, ignore_index=1),
         lambda x, t, reduction: gf.nll_loss(x, t, reduction=reduction, ignore_index=1), "labels"),
    ],
    ids=["mse", "l1", "smooth-l1", "kl", "huber", "bce", "cross-entropy", "nll"],
)  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_is_its_function(device: str, module: Any, function: Any, kind: str, reduction: str) -> None:
    rng = np.random.default_rng(0)
    x = gf.tensor(rng.normal(size=(4, 3)).astype(np.float32))
    target = {
        "values": gf.tensor(rng.normal(size=(4, 3)).astype(np.float32)),
        "shares": gf.tensor(rng.uniform(size=(4, 3)).astype(np.float32)),
        "labels": gf.tensor(LABELS, dtype="int64"),
    }[kind]
    assert_agree(reduction, module(reduction)(x, target), host(function(x, target, reduction=reduction)))


MASKED = np.array([[0.0, -np.inf, 1.0], [2.0, 0.5, -np.inf], [0.5, -0.3, 0.1]])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.filterwarnings("error")
def test_weighted_cross_entropy_of_masked_logits_is_pytorchs(device: str, reduction: str) -> None:
    torch = pytest.importorskip("torch")
    labels, weight = [0, 1, 2], [1.0, 2.0, 3.0]
    x = gf.tensor(MASKED, requires_grad=True)
    y = torch.tensor(MASKED, requires_grad=True)
    loss = gf.cross_entropy(x, gf.tensor(labels, dtype="int64"), gf.tensor(weight, dtype="float64"), reduction)
    expected = torch.nn.functional.cross_entropy(
        y, torch.tensor(labels), torch.tensor(weight, dtype=y.dtype), reduction=reduction
    )
    np.testing.assert_allclose(host(loss), expected.detach().numpy(), rtol=1e-14)
    loss.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(host(x.grad), y.grad.numpy(), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("loss", [gf.cross_entropy, gf.nll_loss])
@pytest.mark.parametrize("fused", ["1", "0"])
@pytest.mark.parametrize(
    ("shape", "labels", "says"),
    [
        ((3,), 5, r"\[0, 3\); got 5$"),
        ((1, 3), [-1], r"\[0, 3\); got -1 at index 0$"),
        ((3, 3), [0, 7, 9], r"\[0, 3\); got 7 at index 1$"),
        ((2, 3, 2), [[0, 1], [2, 3]], r"\[0, 3\); got 3 at index \(1, 1\)$"),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_label_out_of_range_is_named(
    monkeypatch: pytest.MonkeyPatch,
    loss: Any,
    fused: str,
    shape: tuple[int, ...],
    labels: Any,
    says: str,
    weighted: bool,
) -> None:
    monkeypatch.setenv("GRADFLOW_FUSED", fused)
    monkeypatch.setattr(registry, "_backends", {})  # a backend reads the variable when it is created
    weight = gf.ones((3,)) if weighted else None
    with pytest.raises(ValueError, match=says):
        loss(gf.zeros(shape), gf.tensor(labels, dtype="int64"), weight)


@pytest.mark.parametrize("options", [{}, {"weight": [1.0, 2.0, 3.0]}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("ignored", [[1, 3], [0, 1, 2, 3]], ids=["some", "all"])
def test_labels_that_are_ignored_are_as_in_pytorch(device: str, options: dict[str, Any], ignored: list[int]) -> None:
    """The mean is that of the other labels: NaN, with gradients of 0, if there are none."""
    torch = pytest.importorskip("torch")
    values, labels = np.random.default_rng(0).normal(size=(4, 3)), np.array(LABELS)
    labels[ignored] = -100
    for reduction in ("mean", "none"):
        x, y = gf.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
        ours = {k: gf.tensor(v, "float64") if k == "weight" else v for k, v in options.items()}
        theirs = {k: torch.tensor(v, dtype=y.dtype) if k == "weight" else v for k, v in options.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = gf.cross_entropy(x, gf.tensor(labels), reduction=reduction, **ours)
            loss.sum().backward()
        expected = torch.nn.functional.cross_entropy(y, torch.tensor(labels), reduction=reduction, **theirs)
        expected.sum().backward()
        np.testing.assert_allclose(host(loss), expected.detach().numpy(), rtol=1e-14)
        np.testing.assert_allclose(host(x.grad), y.grad.numpy(), rtol=1e-13, atol=1e-16)


def test_ignore_index_is_an_integer_for_labels() -> None:
    x, labels = gf.zeros((2, 3)), gf.tensor([-1, 7], dtype="int64")
    with pytest.raises(ValueError, match=r"\[0, 3\); got 7 at index 1"):
        gf.cross_entropy(x, labels, ignore_index=-1)
    for loss in (gf.cross_entropy, gf.nll_loss):
        with pytest.raises(TypeError, match="ignore_index is a label"):
            loss(x, labels, ignore_index=1.0)
    with pytest.raises(ValueError, match="ignore_index=0 with integer labels; got float32"):
        gf.cross_entropy(x, x, ignore_index=0)
    unsigned = gf.tensor([2, 0], dtype="uint8")  # which does not hold -100
    assert_agree("loss", gf.cross_entropy(x, unsigned), host(gf.cross_entropy(x, unsigned.astype("int64"))))


@pytest.mark.filterwarnings("error")
def test_binary_cross_entropy_at_its_ends_is_pytorchs(device: str) -> None:
    torch = pytest.importorskip("torch")
    values, targets = np.array([0, 0, 1, 1, 0.3, 1e-8]), np.array([0, 1, 0, 1, 0.4, 0.2])
    for dtype in ("float64", "float32"):
        x, y = gf.tensor(values, dtype, requires_grad=True), torch.tensor(values.astype(dtype), requires_grad=True)
        t = targets.astype(dtype)
        loss = gf.binary_cross_entropy(x, gf.tensor(t), reduction="none")
        loss.sum().backward()
        expected = torch.nn.functional.binary_cross_entropy(y, torch.tensor(t), reduction="none")
        expected.sum().backward()
        np.testing.assert_allclose(host(loss), expected.detach().numpy(), rtol=3e-7)
        np.testing.assert_allclose(host(x.grad), y.grad.numpy(), rtol=3e-7)


def test_the_variance_of_a_normal_distribution_is_at_least_eps_but_has_a_gradient(device: str) -> None:
    torch = pytest.importorskip("torch")
    values = np.array([0.0, 1e-8, 0.5, 2.0])
    v, w = gf.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    ones = np.ones(4)
    gf.gaussian_nll_loss(gf.tensor(ones), gf.tensor(3 * ones), v).backward()
    torch.nn.functional.gaussian_nll_loss(torch.tensor(ones), torch.tensor(3 * ones), w).backward()
    np.testing.assert_allclose(host(v.grad), w.grad.numpy(), rtol=1e-14)


def test_losses_of_distributions_explain_what_does_not_fit() -> None:
    ones = gf.ones((2, 3))
    for call, says in (
        (lambda: gf.binary_cross_entropy(ones * 2, ones), "as its input; got numbers from 2 to 2: apply gradflow.sig"),
        (lambda: gf.binary_cross_entropy(ones, ones * -1), "as its target; got numbers from -1 to -1"),
        (lambda: gf.gaussian_nll_loss(ones, ones, -ones), "variances >= 0; got -1"),
        (lambda: gf.gaussian_nll_loss(ones, ones, gf.ones(3)), "or one for each row; got shape"),
        (lambda: gf.gaussian_nll_loss(ones, ones, ones, eps=0), "finite eps > 0"),
        (lambda: gf.kl_div(ones, ones[0]), "equal shapes"),
        (lambda: gf.kl_div(ones.sum(), ones.sum(), "batchmean"), "length of the first axis"),
        (lambda: nn.MSELoss("batchmean"), "reductions mean, sum, none"),
        (lambda: nn.SmoothL1Loss(beta=-1), "beta >= 0"),
        (lambda: gf.smooth_l1_loss(ones, ones, beta=math.inf), "finite beta >= 0"),
        (lambda: nn.GaussianNLLLoss(eps=0), "eps > 0"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    with gf.autocast("bfloat16"), pytest.raises(RuntimeError, match="use binary_cross_entropy_with_logits"):
        gf.binary_cross_entropy(ones, ones)
    assert gf.smooth_l1_loss(ones, ones * 3, beta=0).item() == gf.l1_loss(ones, ones * 3).item()


def test_labels_of_every_integer_dtype(device: str) -> None:
    x = gf.random.normal((3, 4))
    for dtype in ("uint8", "int8", "int32", "uint64"):
        for loss in (gf.cross_entropy, gf.nll_loss):
            found, expected = (loss(x, gf.tensor([3, 0, 2], dtype=d)) for d in (dtype, "int64"))
            assert_agree(dtype, found, host(expected))


@pytest.mark.parametrize("loss", [gf.mse_loss, gf.l1_loss, gf.huber_loss])
def test_losses_of_small_integers_do_not_wrap(device: str, loss: Any) -> None:
    x, y = [1, 200, 0], [3, 0, 255]
    found = loss(gf.tensor(x, dtype="uint8"), gf.tensor(y, dtype="uint8"))
    assert_agree("loss", found, host(loss(gf.tensor(x), gf.tensor(y))))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: gf.cross_entropy(gf.zeros((3, 3)), gf.tensor([0, 1, 2])), ValueError, "dtype='int64'"),
        (lambda: gf.cross_entropy(gf.zeros((3,)), gf.tensor(1)), ValueError, "dtype='int64'"),
        (lambda: gf.nll_loss(gf.zeros((3, 3)), gf.tensor([0, 1, 2])), TypeError, "dtype='int64'"),
        (lambda: gf.cross_entropy(gf.zeros((3, 0)), gf.zeros((3,), "int64")), ValueError, "at least one class"),
        (lambda: gf.cross_entropy(gf.zeros((3, 0)), gf.zeros((3, 0))), ValueError, "at least one class"),
        (lambda: gf.nll_loss(gf.zeros((0,)), gf.tensor(0, dtype="int64")), ValueError, "at least one class"),
    ],
)
def test_invalid_labels_are_explained(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("loss", [gf.cross_entropy, gf.nll_loss])
def test_an_empty_batch_of_labels_with_several_axes(device: str, loss: Any) -> None:
    x, labels = gf.zeros((0, 3, 2)), gf.zeros((0, 2), dtype="int64")
    assert loss(x, labels, reduction="none").shape == (0, 2)
    assert loss(x, labels, reduction="sum").item() == 0


def test_dropout_keeps_the_mean_and_draws_from_its_generator(device: str) -> None:
    drop = nn.Dropout(0.3, generator=gf.Generator(5))
    x = gf.ones((200, 500))
    out = host(drop(x))
    kept = out != 0
    sigma = math.sqrt(0.3 * 0.7 / out.size)
    assert abs(kept.mean() - 0.7) < 5 * sigma, f"{kept.mean():.5f} of the elements kept"
    np.testing.assert_allclose(out[kept], 1 / 0.7, rtol=1e-6)
    assert_agree("the same seed", nn.Dropout(0.3, generator=gf.Generator(5))(x), out)
    assert (host(drop(x)) != out).any(), "the next mask is another one"
    state = gf.random.default_generator.state_dict()
    drop(x)
    assert gf.random.default_generator.state_dict() == state
    assert drop.eval()(x) is x
    assert nn.Dropout(0.0)(x) is x


def test_sequential_calls_its_modules_in_order() -> None:
    a, b = nn.Linear(2, 3), nn.ReLU()
    row = nn.Sequential(a, b)
    assert (len(row), row[0], row[-1], list(row)) == (2, a, b, [a, b])
    x = gf.ones((1, 2))
    assert_agree("result", row(x), host(b(a(x))))
    assert nn.Sequential()(x) is x
    with pytest.raises(IndexError):
        row[2]


def test_a_slice_of_a_sequence_shares_its_modules() -> None:
    model = nn.MLP([2, 3, 4, 1])
    head = model[:-1]
    assert type(head) is nn.Sequential
    assert list(head) == [model[0], model[1]]
    assert names(head) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert head(gf.ones((5, 2))).shape == (5, 4)
    assert head.append(nn.ReLU()) is head
    assert (len(head), len(model)) == (3, 3)


def test_a_module_list_registers_its_modules() -> None:
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    assert layers.append(nn.ReLU()).extend([nn.Identity()]) is layers
    assert (len(layers), type(layers[1:])) == (5, nn.ModuleList)
    assert names(layers[1:2]) == ["0.weight", "0.bias"]
    assert list(layers)[-1] is layers[-1]
    with pytest.raises(TypeError, match="ModuleList is made of modules; got float at position 5"):
        layers.append(1.0)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        layers(gf.ones((1, 2)))


def test_identity_and_flatten(device: str) -> None:
    x = gf.random.normal((2, 3, 4, 5))
    assert nn.Identity()(x) is x
    for layer, shape in (
        (nn.Flatten(), (2, 60)),
        (nn.Flatten(0), (120,)),
        (nn.Flatten(1, 2), (2, 12, 5)),
        (nn.Flatten(-2, -1), (2, 3, 20)),
        (nn.Flatten(2, 2), (2, 3, 4, 5)),
    ):
        assert_agree(repr(layer), layer(x), host(x).reshape(shape))
    assert nn.Flatten()(gf.zeros((0, 3, 2))).shape == (0, 6)
    assert repr(nn.Flatten()) == "Flatten(start_axis=1, end_axis=-1)"
    for wrong, given in ((nn.Flatten(2, 1), x), (nn.Flatten(), x[0, 0, 0])):
        with pytest.raises(ValueError):
            wrong(given)


def test_layer_norm_takes_a_length(device: str) -> None:
    x = gf.random.normal((2, 3))
    assert_agree("layer_norm", gf.layer_norm(x, 3), host(gf.layer_norm(x, (3,))))


def test_mlp_is_linear_layers_with_activations_between() -> None:
    model = nn.MLP([4, 8, 6, 2], activation="tanh", dropout=0.2)
    assert [type(m).__name__ for m in model] == ["Linear", "Dropout", "Linear", "Dropout", "Linear"]
    assert [m.activation for m in model if isinstance(m, nn.Linear)] == ["tanh", "tanh", None]
    assert model.sizes == (4, 8, 6, 2)
    assert model(gf.ones((3, 4))).shape == (3, 2)
    assert len(nn.MLP([4, 2])) == 1


def test_widths_may_be_numpy_integers() -> None:
    labels = np.array([0, 2, 1])
    model = nn.MLP([np.int64(4), np.prod((2, 3)), labels.max() + 1])
    assert model.sizes == (4, 6, 3)
    assert all(type(n) is int for n in model.sizes)
    assert nn.LayerNorm(np.int32(3)).normalized_shape == (3,)


def test_the_same_seed_gives_the_same_model(device: str) -> None:
    a, b = (nn.MLP([5, 4, 3], generator=gf.Generator(3)) for _ in range(2))
    for name, p in a.named_parameters():
        assert_agree(name, p, values(b)[name])
    different = nn.MLP([5, 4, 3], generator=gf.Generator(4))
    assert all((host(p) != values(different)[name]).all() for name, p in a.named_parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(0, 3),
        lambda: nn.Linear(3, 0),
        lambda: nn.Linear(-1, 3),
        lambda: nn.Linear(3.0, 3),  # type: ignore[arg-type]
        lambda: nn.Linear(True, 3),
        lambda: nn.Linear("3", 3),  # type: ignore[arg-type]
        lambda: nn.Linear(3, 3, activation="nonsense"),
        lambda: nn.Dropout(1.0),
        lambda: nn.Dropout(-0.1),
        lambda: nn.Dropout(math.nan),
        lambda: nn.LayerNorm(0),
        lambda: nn.LayerNorm((3, 0)),
        lambda: nn.LayerNorm(()),
        lambda: nn.MLP([3]),
        lambda: nn.MLP([]),
        lambda: nn.MLP([3, 0, 2]),
        lambda: nn.MLP([3, 2], activation="nonsense"),
        lambda: nn.MLP([3, 2], dropout=1.0),
        lambda: nn.MLP([3, 4, 2], dropout=-0.5),
        lambda: nn.MSELoss("average"),
        lambda: nn.CrossEntropyLoss(reduction="average"),
        lambda: nn.CrossEntropyLoss(label_smoothing=1.5),
        lambda: nn.HuberLoss(delta=0.0),
        lambda: nn.HuberLoss(delta=-1.0),
        lambda: nn.PReLU(0),
        lambda: nn.Hardtanh(1.0, 0.0),
    ],
)
def test_settings_out_of_range_are_refused_by_the_constructor(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: nn.Sequential(nn.ReLU(), gf.relu), TypeError),
        (lambda: nn.Linear(2, 2, dtype="int64"), TypeError),
        (lambda: nn.Linear(2, 2, device="nowhere"), ValueError),
        (lambda: nn.Linear(2, 2)(gf.ones((3, 4))), ValueError),
        (lambda: nn.Linear(2, 2)(gf.ones(())), ValueError),
        (lambda: nn.Linear(2, 2)(gf.ones((3, 2), dtype="float64")), TypeError),
        (lambda: nn.Linear(2, 2)(np.ones((3, 2), dtype=np.float32)), TypeError),
        (lambda: nn.LayerNorm(3)(gf.ones((2, 4))), ValueError),
        (lambda: nn.LayerNorm(3)(gf.ones((2, 3), dtype="float64")), TypeError),
        (lambda: nn.PReLU(2)(gf.ones((2, 3))), ValueError),
        (lambda: gf.prelu(gf.ones((2, 3)), gf.ones((1, 3))), ValueError),
        (lambda: nn.GLU()(gf.ones((2, 3))), ValueError),
        (lambda: nn.GLU()(gf.ones(())), (ValueError, IndexError)),
        (lambda: nn.Softmax(2)(gf.ones((2, 3))), (ValueError, IndexError)),
        (lambda: nn.MSELoss()(gf.ones((2, 1)), gf.ones((2,))), ValueError),
        (lambda: nn.CrossEntropyLoss()(gf.ones((2, 3)), gf.ones((2,))), ValueError),
        (lambda: nn.CrossEntropyLoss()(gf.ones((2, 3)), gf.tensor([0, 3], dtype="int64")), ValueError),
        (lambda: nn.CrossEntropyLoss()(gf.ones((2, 3)), gf.tensor([0, -1], dtype="int64")), ValueError),
        (lambda: nn.CrossEntropyLoss(weight=gf.ones((2,)))(gf.ones((1, 3)), gf.tensor([0], dtype="int64")), ValueError),
        (lambda: nn.NLLLoss()(gf.ones((2, 3)), gf.ones((2,))), TypeError),
    ],
)
def test_inputs_that_do_not_match_are_refused(make: Callable[[], Any], error: Any) -> None:
    with pytest.raises(error):
        make()


# ---------------------------------------------------------------------- initializers


def uniforms(seed: int, n: int) -> np.ndarray:
    """The generator's numbers in (0, 1) by NumPy's own Philox: the upper 52 bits and a half."""
    words = np.random.Philox(key=seed).random_raw(n)
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


SHAPE = (30, 50)  # fan-out 30, fan-in 50

UNIFORM = {
    "uniform_": (lambda t, g: init.uniform_(t, -0.3, 0.7, g), -0.3, 0.7),
    "xavier_uniform_": (lambda t, g: init.xavier_uniform_(t, generator=g), *[s * math.sqrt(6 / 80) for s in (-1, 1)]),
    "xavier_uniform_ gain": (
        lambda t, g: init.xavier_uniform_(t, 5 / 3, g), *[s * 5 / 3 * math.sqrt(6 / 80) for s in (-1, 1)]
    ),
    "kaiming_uniform_": (
        lambda t, g: init.kaiming_uniform_(t, generator=g), *[s * math.sqrt(6 / 50) for s in (-1, 1)]
    ),
    "kaiming_uniform_ fan_out relu": (
        lambda t, g: init.kaiming_uniform_(t, mode="fan_out", nonlinearity="relu", generator=g),
        *[s * math.sqrt(6 / 30) for s in (-1, 1)],
    ),
    "kaiming_uniform_ a": (
        lambda t, g: init.kaiming_uniform_(t, a=math.sqrt(5), generator=g), *[s / math.sqrt(50) for s in (-1, 1)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_initializers_are_their_formula_of_the_generators_numbers(device: str, name: str, dtype: str) -> None:
    fill, low, high = UNIFORM[name]
    t = gf.zeros(SHAPE, dtype=dtype)
    assert fill(t, gf.Generator(7)) is t
    expected = (uniforms(7, t.size).reshape(SHAPE) * (high - low) + low).astype(dtype)
    width = high - low
    if name == "uniform_":
        assert_agree("the numbers", t, expected)
    else:  # the bounds themselves, computed in another order, may differ by an ulp or two
        np.testing.assert_allclose(host(t), expected, rtol=np.finfo(dtype).eps, atol=2 * width * 2.0**-52)
    slack = 2 * width * np.finfo(dtype).eps
    assert low - slack <= host(t).min()
    assert host(t).max() <= high + slack
    sigma = width / math.sqrt(12 * t.size)
    assert abs(host(t).mean() - (low + high) / 2) < 5 * sigma, "the mean"
    assert host(t).std() == pytest.approx(width / math.sqrt(12), rel=0.1)


NORMAL = {
    "normal_": (lambda t, g: init.normal_(t, 0.5, 2.0, g), 0.5, 2.0),
    "xavier_normal_": (lambda t, g: init.xavier_normal_(t, 2.0, g), 0.0, 2 * math.sqrt(2 / 80)),
    "kaiming_normal_": (lambda t, g: init.kaiming_normal_(t, generator=g), 0.0, math.sqrt(2 / 50)),
    "kaiming_normal_ tanh fan_out": (
        lambda t, g: init.kaiming_normal_(t, mode="fan_out", nonlinearity="tanh", generator=g),
        0.0,
        5 / 3 / math.sqrt(30),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMAL)
def test_normal_initializers_are_quantiles_of_the_generators_numbers(device: str, name: str) -> None:
    from statistics import NormalDist

    fill, mean, std = NORMAL[name]
    t = gf.zeros(SHAPE, dtype="float64")
    assert fill(t, gf.Generator(7)) is t
    expected = [NormalDist().inv_cdf(u) * std + mean for u in uniforms(7, t.size)]
    np.testing.assert_allclose(host(t).reshape(-1), expected, rtol=1e-13, atol=1e-13)
    assert abs(host(t).mean() - mean) < 5 * std / math.sqrt(t.size), "the mean"
    assert host(t).std() == pytest.approx(std, rel=0.1)


TRUNCATED = [(0.0, 1.0, -2.0, 2.0), (0.5, 2.0, -0.3, 4.0), (0.0, 1.0, -math.inf, 0.0), (-1.0, 0.5, 1.0, math.inf)]


@pytest.mark.parametrize(("mean", "std", "a", "b"), TRUNCATED)
def test_truncated_normal_numbers_are_quantiles_between_those_of_the_limits(
    device: str, mean: float, std: float, a: float, b: float
) -> None:
    from statistics import NormalDist

    t = gf.zeros(SHAPE, dtype="float64")
    assert init.trunc_normal_(t, mean, std, a, b, gf.Generator(7)) is t
    normal = NormalDist(mean, std)
    low, high = normal.cdf(a), normal.cdf(b)
    expected = np.array([normal.inv_cdf(low + u * (high - low)) for u in uniforms(7, t.size)])
    np.testing.assert_allclose(host(t).reshape(-1), expected, rtol=1e-9, atol=1e-13)
    assert a <= host(t).min() <= host(t).max() <= b
    single = init.trunc_normal_(gf.zeros(SHAPE), mean, std, a, b, gf.Generator(7))
    assert_agree("float32", single, host(t).astype("float32"))


def test_truncated_normal_numbers_are_distributed_as_pytorchs() -> None:
    """The largest distance of the distribution functions of n numbers each is below 1.95 sqrt(2 / n) in 99.9%."""
    torch = pytest.importorskip("torch")
    n = 20_000
    ours = init.trunc_normal_(gf.zeros(n), 0.3, 0.5, -0.2, 1.5, gf.Generator(1)).numpy()
    theirs = torch.nn.init.trunc_normal_(torch.zeros(n), 0.3, 0.5, -0.2, 1.5, torch.Generator().manual_seed(1)).numpy()
    places = np.concatenate([ours, theirs])
    distance = np.searchsorted(np.sort(ours), places) - np.searchsorted(np.sort(theirs), places)
    assert np.abs(distance).max() / n < 1.95 * math.sqrt(2 / n)


@pytest.mark.parametrize("shape", [(1, 1), (40, 40), (30, 50), (50, 7), (4, 3, 5), (64, 1)])
def test_orthogonal_weights_are_the_q_of_normal_numbers(device: str, shape: tuple[int, ...]) -> None:
    """The Q of a QR decomposition whose R has a positive diagonal, which is unique, as PyTorch computes it."""
    t = gf.zeros(shape, dtype="float64")
    assert init.orthogonal_(t, 2.0, gf.Generator(7)) is t
    found = host(t).reshape(shape[0], -1) / 2.0
    n, m = found.shape
    gram = found @ found.T if n < m else found.T @ found
    np.testing.assert_allclose(gram, np.eye(min(n, m)), atol=1e-14)
    numbers = gf.random.normal((max(n, m), min(n, m)), dtype="float64", device="cpu", generator=gf.Generator(7))
    q, r = np.linalg.qr(numbers.numpy())
    expected = q * np.sign(np.diag(r))
    np.testing.assert_allclose(found, expected.T if n < m else expected, atol=1e-12)
    single = init.orthogonal_(gf.zeros(shape), 2.0, gf.Generator(7))
    assert_agree("float32", single, host(t).astype("float32"))


def test_orthogonal_weights_favour_no_direction() -> None:
    """Each entry has mean 0 and variance 1 / n, also on the diagonal, which a QR without signs makes negative."""
    found = np.array([init.orthogonal_(gf.zeros((4, 4)), generator=gf.Generator(i)).numpy() for i in range(500)])
    np.testing.assert_allclose(found.mean(axis=0), 0.0, atol=5 * 0.5 / math.sqrt(500))
    np.testing.assert_allclose((found**2).mean(axis=0), 0.25, atol=5 * 0.25 / math.sqrt(500))
    assert init.orthogonal_(gf.zeros((0, 3))).shape == (0, 3)


def test_constants(device: str) -> None:
    p = nn.Parameter(gf.random.normal((3, 2)))
    assert init.constant_(p, 2.5) is p
    assert set(host(p).reshape(-1).tolist()) == {2.5}
    assert set(host(init.ones_(p)).reshape(-1).tolist()) == {1.0}
    assert set(host(init.zeros_(p)).reshape(-1).tolist()) == {0.0}
    assert p.requires_grad


def test_the_fans_of_convolution_weights_count_the_kernel() -> None:
    t = gf.zeros((8, 4, 3, 3), dtype="float64")
    init.kaiming_uniform_(t)
    bound = math.sqrt(6 / (4 * 9))
    assert 0.95 * bound < host(t).max() <= bound
    init.kaiming_uniform_(t, mode="fan_out")
    bound = math.sqrt(6 / (8 * 9))
    assert 0.95 * bound < host(t).max() <= bound


def test_linear_starts_as_in_pytorch(device: str) -> None:
    layer = nn.Linear(20, 30, generator=gf.Generator(7), dtype="float64")
    bound = 1 / math.sqrt(20)
    u = uniforms(7, 600)
    np.testing.assert_allclose(host(layer.weight).reshape(-1), u * 2 * bound - bound, rtol=1e-14, atol=1e-17)
    assert np.abs(host(layer.bias)).max() <= bound
    assert np.abs(host(layer.bias)).max() > bound / 2


def test_gains() -> None:
    found = [init.calculate_gain(n) for n in ("linear", "sigmoid", "tanh", "relu", "selu", "leaky_relu")]
    assert found == pytest.approx([1, 1, 5 / 3, math.sqrt(2), 0.75, math.sqrt(2 / 1.0001)], rel=1e-15)
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx(math.sqrt(2 / 1.04), rel=1e-15)


@pytest.mark.parametrize(
    "fill",
    [
        lambda: init.calculate_gain("nonsense"),
        lambda: init.xavier_uniform_(gf.zeros((3,))),
        lambda: init.xavier_normal_(gf.zeros(())),
        lambda: init.kaiming_uniform_(gf.zeros((3,))),
        lambda: init.kaiming_normal_(gf.zeros((3, 3)), mode="fan"),
        lambda: init.kaiming_uniform_(gf.zeros((3, 3)), nonlinearity="gelu"),
        lambda: init.normal_(gf.zeros((3,)), std=-1.0),
        lambda: init.orthogonal_(gf.zeros((3,))),
        lambda: init.trunc_normal_(gf.zeros((3,)), std=0.0),
        lambda: init.trunc_normal_(gf.zeros((3,)), a=1.0, b=1.0),
        lambda: init.trunc_normal_(gf.zeros((3,)), a=5.0, b=9.0),
    ],
)
def test_initializers_refuse_invalid_arguments(fill: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        fill()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 3, 0)])
@pytest.mark.parametrize(
    "fill", [init.xavier_uniform_, init.xavier_normal_, init.kaiming_uniform_, init.kaiming_normal_]
)
def test_initializers_of_empty_tensors(device: str, fill: Callable[[gf.Tensor], gf.Tensor], shape: Any) -> None:
    assert fill(gf.zeros(shape)).shape == shape


def test_initializers_refuse_integers() -> None:
    with pytest.raises(TypeError, match="floating"):
        init.uniform_(gf.arange(3))


# ---------------------------------------------------------------------- copies


def test_a_shallow_copy_of_a_module_has_its_own_registries_and_the_same_parameters(device: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model.register_buffer("scale", gf.ones(2), persistent=False)
    with model.register_forward_hook(lambda module, inputs, output: None):
        before, hooks = list(model.state_dict()), len(model._forward_hooks)
        twin = copy.copy(model)
        assert all(p is q for p, q in zip(model.parameters(), twin.parameters(), strict=True))
        setattr(twin, "2", nn.Linear(4, 7))
        twin.append(nn.Linear(7, 1))
        twin.extra = nn.Parameter(gf.ones(3))
        twin.register_buffer("scale", gf.ones(2))
        twin.register_forward_hook(lambda module, inputs, output: output * 0.0)
        del twin.training
    assert list(model.state_dict()) == before
    assert [p.shape for p in model.parameters()] == [(4, 3), (4,), (2, 4), (2,)]
    assert len(model) == 3
    assert hooks == 1
    assert model.training
    assert model(gf.ones((1, 3))).tolist() != [[0.0, 0.0]]
    assert twin(gf.ones((1, 3))).shape == (1, 1)
    assert [p.shape for p in twin.parameters()] == [(3,), (4, 3), (4,), (7, 4), (7,), (1, 7), (1,)]


@pytest.mark.parametrize("kind", [nn.MLP, nn.ModuleList, nn.Linear, nn.CrossEntropyLoss, nn.LayerNorm])
def test_assignments_to_a_copy_do_not_reach_the_original(kind: Any) -> None:
    first = {
        nn.MLP: lambda: nn.MLP([3, 4, 2], dropout=0.5), nn.ModuleList: lambda: nn.ModuleList([nn.Linear(2, 2)]),
        nn.Linear: lambda: nn.Linear(3, 2), nn.CrossEntropyLoss: lambda: nn.CrossEntropyLoss(gf.ones(3)),
        nn.LayerNorm: lambda: nn.LayerNorm(3),
    }[kind]()  # fmt: skip
    names, twin = list(first.state_dict()), copy.copy(first)
    for name in [*first._parameters, *first._buffers, *first._modules]:
        delattr(twin, name)
    twin.new = nn.Parameter(gf.ones(1))
    assert list(first.state_dict()) == names
    assert not hasattr(first, "new")


# ---------------------------------------------------------------------- names and settings


@pytest.mark.parametrize("sizes", [[3, 2], [3, 4, 2], [3, 4, 5, 6, 2]])
def test_the_names_of_an_mlp_depend_only_on_its_layers(sizes: list[int], device: str) -> None:
    plain, dropped = nn.MLP(sizes), nn.MLP(sizes, dropout=0.3)
    expected = [f"{i}.{kind}" for i in range(len(sizes) - 1) for kind in ("weight", "bias")]
    assert list(plain.state_dict()) == list(dropped.state_dict()) == expected
    dropped.load_state_dict(plain.state_dict())
    x = gf.ones((2, sizes[0]))
    assert dropped.eval()(x).tolist() == plain(x).tolist()
    assert sum(isinstance(module, nn.Dropout) for module in dropped) == len(sizes) - 2
    assert [type(module).__name__ for module in dropped][:2] == ["Linear", "Dropout"][: len(sizes) - 1]


@pytest.mark.parametrize("sizes", [[3, 4, 2], [3, 4, 5, 6, 2]])
def test_a_state_that_counts_the_dropout_among_the_layers_is_refused_with_the_line_that_renames_them(
    sizes: list[int],
) -> None:
    model, other = nn.MLP(sizes, dropout=0.3), nn.MLP(sizes)
    state = {f"{2 * int(k[0])}{k[1:]}": v for k, v in other.state_dict().items()}
    with pytest.raises(nn.StateError, match="numbers the layers 0, 2, 4") as refused:
        model.load_state_dict(state)
    line = re.search(r"\{.*\}$", str(refused.value))
    assert line is not None
    model.load_state_dict(eval(line[0], {"state": state}))
    x = gf.ones((2, 3))
    assert model.eval()(x).tolist() == other(x).tolist()
    with pytest.raises(nn.StateError) as other_names:
        model.load_state_dict({"2.weight": gf.ones(2)})
    assert "halve" not in str(other_names.value)


def test_an_mlp_grows_by_the_next_number() -> None:
    model = nn.MLP([3, 4, 2], dropout=0.3).append(nn.Linear(2, 1))
    assert list(model.state_dict())[-1] == "2.bias"
    assert model(gf.ones((2, 3))).shape == (2, 1)
    row = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    delattr(row, "0")
    assert [name for name, _ in row.append(nn.ReLU()).named_children()] == ["1", "2"]


@pytest.mark.parametrize("shape", [(3, 0), (2, 3, 0), (0,), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("features", [0, 5])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_linear_layer_without_inputs_rows_or_outputs(
    device: str, shape: tuple[int, ...], features: int, create_graph: bool
) -> None:
    shapes = shape, (features, shape[-1]), (features,)
    x, weight, bias = (gf.zeros(s, requires_grad=True) for s in shapes)
    out = gf.linear(x, weight, bias)
    assert out.shape == (*shape[:-1], features)
    out.sum().backward(create_graph=create_graph)
    assert (x.grad.shape, weight.grad.shape) == shapes[:2]
    assert bias.grad.tolist() == [math.prod(shape[:-1])] * features


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_activation_of_an_mlp_may_be_changed(device: str, dropout: float) -> None:
    model = nn.MLP([3, 4, 5, 2], dropout=dropout).eval()
    x = gf.random.normal((6, 3))
    before = model(x)
    model.activation = "tanh"
    expected = x
    for i, layer in enumerate([module for module in model if isinstance(module, nn.Linear)]):
        expected = gf.linear(expected, layer.weight, layer.bias, "tanh" if i < 2 else None)
    assert_agree("values", model(x), expected, ulp=4)
    assert model(x).tolist() != before.tolist()
    assert model.activation == "tanh"
    with pytest.raises(ValueError, match="unknown activation 'tangent'"):
        model.activation = "tangent"
    assert model.activation == "tanh"
    assert copy.deepcopy(model).activation == pickle.loads(pickle.dumps(model)).activation == "tanh"


def test_settings_act_or_cannot_be_assigned() -> None:
    x = gf.tensor([[-1.0, 2.0, 5.0]])
    acts: list[tuple[Callable[[], nn.Module], str, Any]] = [
        (lambda: nn.LeakyReLU(0.1), "negative_slope", 0.5),
        (lambda: nn.ELU(), "alpha", 2.0),
        (lambda: nn.Softmax(), "axis", 0),
        (lambda: nn.LogSoftmax(), "axis", 0),
        (lambda: nn.LayerNorm(3), "eps", 10.0),
        (lambda: nn.Linear(3, 2, generator=gf.Generator(0)), "activation", "tanh"),
        (lambda: nn.Linear(3, 2, generator=gf.Generator(0)), "bias", None),
        (lambda: nn.MLP([3, 4, 2], generator=gf.Generator(0)), "activation", "tanh"),
        (lambda: nn.Dropout(0.5, gf.Generator(0)), "p", 0.0),
        (lambda: nn.Flatten(), "start_axis", 0),
    ]
    for make, name, value in acts:
        module = make()
        before = module(x)
        setattr(module, name, value)
        after = module(x)
        assert (after.shape, after.tolist()) != (before.shape, before.tolist()), (module, name)
    for module, name in (
        (nn.Linear(3, 2), "in_features"),
        (nn.Linear(3, 2), "out_features"),
        (nn.MLP([3, 2]), "sizes"),
    ):
        with pytest.raises(
            AttributeError, match=f"{name} of a {type(module).__name__} is read-only: create a new module"
        ):
            setattr(module, name, 5)
    layer = nn.Linear(3, 2)
    layer.weight = nn.Parameter(gf.ones((2, 7)))
    assert (layer.in_features, layer.out_features) == (7, 2)


LOSSES: dict[str, Callable[[], nn.Module]] = {
    "MSELoss()": lambda: nn.MSELoss(),
    "MSELoss(reduction='sum')": lambda: nn.MSELoss("sum"),
    "L1Loss(reduction='none')": lambda: nn.L1Loss("none"),
    "HuberLoss()": lambda: nn.HuberLoss(),
    "HuberLoss(reduction='sum', delta=2.0)": lambda: nn.HuberLoss("sum", delta=2.0),
    "CrossEntropyLoss(label_smoothing=0.1)": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    "CrossEntropyLoss(weight=tensor of shape (3,), reduction='sum')": lambda: nn.CrossEntropyLoss(gf.ones(3), "sum"),
    "NLLLoss(weight=tensor of shape (3,))": lambda: nn.NLLLoss(gf.ones(3)),
    "BCEWithLogitsLoss(pos_weight=tensor of shape (1,))": lambda: nn.BCEWithLogitsLoss(pos_weight=gf.ones(1)),
}


@pytest.mark.parametrize("text", LOSSES)
def test_losses_show_their_settings(text: str) -> None:
    assert repr(LOSSES[text]()) == text


Call = tuple[Callable[[], Any], type[Exception], str]
I64 = {"dtype": "int64"}
WORDS: dict[str, Call] = {
    "inplace": (lambda: nn.ReLU(inplace=True), TypeError, "^ReLU: .*takes no arguments; .*inplace: .*leave it out"),
    "inplace by place": (lambda: nn.Tanh(True), TypeError, "^Tanh: .*it takes no arguments"),
    "inplace of a setting": (lambda: nn.Dropout(0.5, inplace=True), TypeError, "^Dropout: .*it takes p, .*leave it"),
    "dim": (lambda: nn.Softmax(dim=1), TypeError, "^Softmax: .*it takes axis; for dim: gradflow says axis="),
    "dim of another": (lambda: nn.LogSoftmax(dim=1), TypeError, "^LogSoftmax: .*takes axis; .*gradflow says axis="),
    "start_dim": (lambda: nn.Flatten(start_dim=1), TypeError, "^Flatten: .*for start_dim: gradflow says start_axis="),
    "size_average": (lambda: nn.MSELoss(size_average=True), TypeError, "^MSELoss: .*takes reduction; .*use reduction="),
    "unknown": (lambda: nn.L1Loss(speed=1), TypeError, "^L1Loss: .*'speed'; it takes reduction"),
    "a missing width": (lambda: nn.Linear(3), TypeError, "^Linear: .*missing.*'out_features'; it takes in_features, "),
    "an MLP of numbers": (lambda: nn.MLP(2, 3, 1), TypeError, r"one sequence: nn.MLP\(\[2, 3, 1\]\); got 2"),
    "an MLP of text": (lambda: nn.MLP("2,4"), TypeError, r"one sequence: nn.MLP\(\[2, 3, 1\]\); got '2,4'"),
    "a negative eps": (lambda: nn.LayerNorm(3, eps=-1.0), ValueError, "eps is a finite number >= 0; got -1.0"),
    "an eps of NaN": (lambda: nn.LayerNorm(3, eps=math.nan), ValueError, "eps is a finite number"),
    "a negative eps later": (
        lambda: gf.layer_norm(gf.ones((2, 3)), 3, eps=-1e-9), ValueError, "eps is a finite number >= 0",
    ),
    "float64 to float32": (
        lambda: nn.Linear(3, 2)(gf.ones((1, 3), dtype="float64")), TypeError,
        r"x is float64, its weight float32 and its bias float32; .*x.astype\('float32'\), or .*to\('float64'\)",
    ),
    "float64 to an MLP": (
        lambda: nn.MLP([3, 2])(gf.ones((1, 3), dtype="float64")), TypeError, r"x is float64.*x.astype\('float32'\)",
    ),
    "integers to a layer": (
        lambda: nn.Linear(3, 2)(gf.ones((1, 3), **I64)), TypeError, r"x is int64, .*with x.astype\('float32'\)$",
    ),
    "float64 to LayerNorm": (
        lambda: nn.LayerNorm(3)(gf.ones((1, 3), dtype="float64")), TypeError, r"layer_norm .*x is float64, its weight",
    ),
    "weights that differ": (
        lambda: gf.linear(gf.ones((1, 3)), gf.ones((2, 3)), gf.ones(2, dtype="float64")), TypeError,
        "its weight float32 and its bias float64; convert them",
    ),
    "one hot integers": (
        lambda: gf.cross_entropy(gf.ones((4, 3)), gf.ones((4, 3), **I64)), ValueError,
        r"labels of shape \(4,\).*got int64 \(4, 3\); .*target.argmax\(axis=1\), or .*target.astype\('float32'\)",
    ),
    "one hot bools": (
        lambda: gf.cross_entropy(gf.ones((4, 3)), gf.ones((4, 3), dtype="bool")), ValueError, "got bool .*argmax",
    ),
    "one hot integers of nll": (
        lambda: gf.nll_loss(gf.ones((4, 3)), gf.ones((4, 3), **I64)), ValueError, r"target.argmax\(axis=1\)$",
    ),
    "an array": (lambda: nn.Linear(3, 2)(np.ones((1, 3))), TypeError, r"takes tensors; got numpy.ndarray: make a"),
    "a list": (lambda: nn.Linear(3, 2)([1.0]), TypeError, "linear takes tensors; got list: make a tensor of it with"),
    "a file of a state": (
        lambda: nn.Linear(3, 2).load_state_dict("model.pt"), TypeError, "got str 'model.pt': read the file first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WORDS)
def test_errors_name_what_came_and_what_to_do(what: str) -> None:
    call, error, message = WORDS[what]
    with pytest.raises(error, match=message):
        call()


def test_a_torch_tensor_is_named() -> None:
    torch = pytest.importorskip("torch")
    for call in (nn.Linear(3, 2), gf.exp, lambda x: gf.ones(3) @ x, lambda x: gf.mse_loss(gf.ones(3), x)):
        with pytest.raises(
            TypeError, match=r"got torch\.Tensor: make a tensor .* gradflow\.from_dlpack\(x\.detach\(\)\)"
        ):
            call(torch.ones(3, requires_grad=True))


def test_widths_may_be_numpys_integers(device: str) -> None:
    n = np.int64(3)
    x = gf.ones((2, 3))
    assert nn.LayerNorm(n)(x).shape == nn.LayerNorm([n])(x).shape == nn.LayerNorm(np.array([3]))(x).shape == (2, 3)
    assert gf.layer_norm(x, n).shape == gf.layer_norm(x, np.array([2, 3])).shape == (2, 3)
    assert nn.Linear(n, np.uint8(2))(x).shape == nn.MLP(np.array([3, 4, 2]))(x).shape == (2, 2)
    assert nn.LayerNorm(3, eps=np.float32(1e-3))(x).shape == (2, 3)
    assert nn.LayerNorm(3, eps=0)(gf.tensor([[1.0, 2.0, 3.0]])).shape == (1, 3)


def test_functional_call_takes_numpy_arrays(device: str) -> None:
    layer, x = nn.Linear(3, 2), gf.ones((1, 3))
    weight = np.full((2, 3), 2.0, "float32")
    out = nn.functional_call(layer, {"weight": weight, "bias": np.zeros(2, "float32")}, x)
    assert out.tolist() == [[6.0, 6.0]]
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\); got \(3, 2\)"):
        nn.functional_call(layer, {"weight": weight.T}, x)
    with pytest.raises(TypeError, match="its weight float64"):
        nn.functional_call(layer, {"weight": weight.astype("float64")}, x)
