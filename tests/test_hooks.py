"""Hooks: on the gradients of tensors, and on what modules compute."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn
from gradflow.autograd import backward, hooks


def leaf(*values: float, dtype: str = "float64") -> gf.Tensor:
    return gf.tensor(np.array(values, dtype), requires_grad=True)


def host(x: gf.Tensor) -> np.ndarray:
    return np.asarray(x.backend.to_host(x.array))


@pytest.fixture(autouse=True)
def _no_hooked_node_is_left() -> Iterator[None]:
    """A hook is freed with its tensor: nothing global refers to it."""
    yield
    gc.collect()
    assert len(hooks.hooked_nodes) == 0


# ---------------------------------------------------------------------- what a hook sees


def test_a_hook_sees_the_gradient_of_a_leaf_and_changes_nothing(device: str) -> None:
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    seen: list[gf.Tensor] = []
    x.register_hook(seen.append)
    (x * x).sum().backward()
    assert [g.tolist() for g in seen] == [[2.0, 4.0]]
    assert x.grad.tolist() == [2.0, 4.0]
    assert (seen[0].device, seen[0].dtype, seen[0].requires_grad) == (x.device, gf.float32, False)


def test_a_hook_on_a_computed_tensor_sees_the_sum_over_all_paths_once() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2.0
    seen: list[list[float]] = []
    y.register_hook(lambda g: seen.append(g.tolist()))
    (y * 3.0 + y * y + gf.concat([y, y])[2:] * 10).sum().backward()
    assert seen == [[3 + 4 + 10, 3 + 8 + 10]]
    assert x.grad.tolist() == [34.0, 42.0]


def test_a_hook_on_the_root_sees_the_cotangent() -> None:
    x = leaf(1.0, 2.0)
    y = x * 2.0
    y.register_hook(lambda g: g * 5)
    y.backward(gf.tensor(np.array([1.0, 10.0])))
    assert x.grad.tolist() == [10.0, 100.0]
    x.zero_grad()
    x.register_hook(lambda g: g + 1)
    x.backward(gf.tensor(np.array([1.0, 2.0])))
    assert x.grad.tolist() == [2.0, 3.0]


def test_a_hook_is_called_in_every_pass_and_sees_that_pass_alone() -> None:
    x = leaf(1.0)
    seen: list[float] = []
    x.register_hook(lambda g: seen.append(g.item()))
    y = (x * 3.0).sum()
    y.backward(retain_graph=True)
    y.backward()
    (x * 5.0).sum().backward()
    assert seen == [3.0, 3.0, 5.0]
    assert x.grad.item() == 11.0


def test_a_hook_is_not_called_where_no_gradient_flows() -> None:
    x, y = leaf(1.0), leaf(2.0)
    called: list[Any] = []
    for t in (x, x * 2.0, y * 3.0):
        t.register_hook(called.append)
    (y * 2.0).sum().backward()
    assert called == []


@pytest.mark.parametrize("create_graph", [False, True])
def test_what_a_hook_returns_replaces_the_gradient(create_graph: bool) -> None:
    x = leaf(1.0, 2.0)
    y = x * 2.0
    y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: g + 1)
    (y * 3.0).sum().backward(create_graph=create_graph)
    assert x.grad.tolist() == [61.0, 61.0]


def test_hooks_of_one_tensor_run_in_the_order_of_registration() -> None:
    x = leaf(2.0)
    seen: list[float] = []

    def add_one(g: gf.Tensor) -> gf.Tensor:
        seen.append(g.item())
        return g + 1

    def double(g: gf.Tensor) -> gf.Tensor:
        seen.append(g.item())
        return g * 2

    for hook in (add_one, double, seen.append, add_one):
        x.register_hook(hook)
    (x * 3.0).sum().backward()
    assert [float(s) for s in seen] == [3.0, 4.0, 8.0, 8.0]
    assert x.grad.item() == 9.0


def test_hooks_of_several_tensors_run_from_the_newest_to_the_oldest() -> None:
    order: list[str] = []
    x = leaf(1.0)
    a = x * 2.0
    b = gf.exp(a)
    for name, t in (("x", x), ("a", a), ("b", b)):
        t.register_hook(lambda g, name=name: order.append(name))
    b.sum().backward()
    assert order == ["b", "a", "x"]


def test_a_hook_changes_only_what_flows_to_older_tensors() -> None:
    x = leaf(1.0)
    a = x * 2.0
    b = a * 3.0
    seen: dict[str, float] = {}
    b.register_hook(lambda g: seen.update(b=g.item()))
    a.register_hook(lambda g: g * 0)
    (b + a).sum().backward()
    assert seen == {"b": 1.0}
    assert x.grad.item() == 0.0


def test_a_hook_within_no_grad_and_on_a_number() -> None:
    x = gf.tensor(3.0, requires_grad=True)
    x.register_hook(lambda g: g * 2)
    y = x * x
    with gf.no_grad():
        y.backward()
    assert x.grad.item() == 12.0
    assert x.grad.shape == ()


# ---------------------------------------------------------------------- with an optimizer


@pytest.mark.parametrize("fused", [False, True], ids=["computed and copied", "written straight"])
def test_a_hook_on_a_parameter_in_an_optimizers_buffer(fused: bool, device: str) -> None:
    gf.manual_seed(1)
    layer = nn.Linear(3, 2)
    plain = copy.deepcopy(layer)
    optimizers = [gf.optim.SGD(m.parameters(), lr=0.1) for m in (layer, plain)]
    seen: list[gf.Tensor] = []

    def scale(g: gf.Tensor) -> gf.Tensor:
        seen.append(g)
        return g * 2

    handle = layer.weight.register_hook(scale)
    x = gf.random.normal((4, 3))
    for step in range(3):
        if step == 2:
            handle.remove()
        for m in (layer, plain):
            m.zero_grad()
            out = m(x) if fused else x @ m.weight.T + m.bias
            (out * out).sum().backward()
        factor = 2.0 if step < 2 else 1.0
        np.testing.assert_allclose(host(layer.weight.grad), factor * host(plain.weight.grad), rtol=1e-6)
        np.testing.assert_allclose(host(layer.bias.grad), host(plain.bias.grad), rtol=1e-6)
        for m, optimizer in zip((layer, plain), optimizers, strict=True):
            with gf.no_grad():
                m.weight.grad *= 0.5 if m is layer and step < 2 else 1.0
            optimizer.step()
        np.testing.assert_allclose(host(layer.weight), host(plain.weight), rtol=1e-6)
    assert len(seen) == 2
    assert not np.array_equal(host(seen[0]), host(seen[1])), "a gradient that a hook holds was overwritten"


def test_gradient_statistics_of_every_layer() -> None:
    """A typical use: a norm for each parameter and each layer's output, without changing the training loop."""
    gf.manual_seed(0)
    model = nn.MLP([4, 8, 8, 3], activation="tanh")
    norms: dict[str, list[float]] = {}

    def note(name: str) -> Any:
        return lambda g: norms.setdefault(name, []).append((g * g).sum().item() ** 0.5)

    handles = [p.register_hook(note(name)) for name, p in model.named_parameters()]
    handles += [
        layer.register_forward_hook(lambda m, i, out, name=name: out.register_hook(note(f"{name} output")) and None)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    x, t = gf.random.normal((16, 4)), gf.tensor(np.arange(16) % 3)
    optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        gf.cross_entropy(model(x), t).backward()
        for name, p in model.named_parameters():
            assert norms[name][step] == pytest.approx(float(np.linalg.norm(host(p.grad))), rel=1e-5)
        optimizer.step()
    assert sorted(norms) == sorted([*dict(model.named_parameters()), "0 output", "1 output", "2 output"])
    assert {len(found) for found in norms.values()} == {3}
    for handle in handles:
        handle.remove()
    gf.cross_entropy(model(x), t).backward()
    assert {len(found) for found in norms.values()} == {3}


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "hook",
    [lambda g: g[:1], lambda g: g.astype("float32"), lambda g: g.tolist(), lambda g: host(g), lambda g: 1.0],
    ids=["shape", "dtype", "list", "array", "number"],
)
def test_a_gradient_that_does_not_fit_raises(hook: Any, create_graph: bool) -> None:
    x = leaf(1.0, 2.0)
    x.register_hook(hook)
    with pytest.raises(TypeError, match=r"a hook must return None or a gradient of shape \(2,\), float64 on cpu; got"):
        (x * x).sum().backward(create_graph=create_graph)
    assert x.grad is None


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("how", ["operator", "item", "view", "copy_", "zero_", "another name"])
def test_a_change_in_place_raises(how: str, create_graph: bool) -> None:
    x = leaf(1.0, 2.0)

    def hook(g: gf.Tensor) -> None:
        with gf.no_grad():
            if how == "operator":
                g *= 2.0
            elif how == "item":
                g[0] = 1.0
            elif how == "view":
                g[1:].zero_()
            elif how == "copy_":
                g.copy_(gf.ones(2, dtype="float64"))
            elif how == "zero_":
                g.zero_()
            else:
                d = g.detach()
                d += 1.0

    x.register_hook(hook)
    with pytest.raises(RuntimeError, match=r"a hook changed the gradient in place, .*; return a new tensor instead"):
        (x * x).sum().backward(create_graph=create_graph)


def test_a_hook_does_not_hide_earlier_changes_of_the_cotangent() -> None:
    """The cotangent of a recorded pass is the user's own tensor, whose record of changes other graphs use."""
    x, w, cotangent = leaf(1.0, 2.0), leaf(1.0, 1.0), gf.tensor(np.array([1.0, 1.0]))
    product = (cotangent * w).sum()
    cotangent += 1
    y = x * 2.0
    y.register_hook(lambda g: None)
    y.backward(cotangent, create_graph=True)
    with pytest.raises(RuntimeError, match="input 0 of multiply"):
        product.backward()


def test_only_a_tensor_that_requires_grad_can_be_hooked() -> None:
    with pytest.raises(RuntimeError, match=r"shape \(2,\), float32 on cpu that does not require grad: it has"):
        gf.ones(2).register_hook(print)


def test_an_exception_in_a_hook_passes_through() -> None:
    x = leaf(1.0)

    def hook(g: gf.Tensor) -> None:
        raise KeyError("mine")

    with x.register_hook(hook), pytest.raises(KeyError, match="mine"):
        (x * x).sum().backward()
    assert gf.is_grad_enabled()
    (x * x).sum().backward()
    assert x.grad.item() == 2.0


# ---------------------------------------------------------------------- removing hooks


def test_a_handle_removes_only_its_own_hook_and_may_do_so_twice() -> None:
    x = leaf(1.0)
    first, second = x.register_hook(lambda g: g * 2), x.register_hook(lambda g: g * 3)
    first.remove()
    first.remove()
    (x * 1.0).sum().backward()
    assert x.grad.item() == 3.0
    second.remove()
    x.zero_grad()
    (x * 1.0).sum().backward()
    assert x.grad.item() == 1.0


def test_a_with_statement_removes_a_hook_at_its_end_also_after_an_exception() -> None:
    x = leaf(1.0)
    with x.register_hook(lambda g: g * 2):
        (x * 1.0).sum().backward()
    with pytest.raises(KeyError), x.register_hook(lambda g: g * 2):
        raise KeyError
    (x * 1.0).sum().backward()
    assert x.grad.item() == 3.0


def test_passes_are_fast_again_once_all_hooks_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    fast: list[int] = []
    walk = backward._walk_to_buffers
    monkeypatch.setattr(backward, "_walk_to_buffers", lambda *arguments: fast.append(1) or walk(*arguments))
    x, unrelated = leaf(1.0), leaf(1.0)

    def passes_are_fast() -> bool:
        fast.clear()
        (x * 1.0).sum().backward()
        return bool(fast)

    first, second = unrelated.register_hook(print), unrelated.register_hook(print)
    assert not passes_are_fast()
    first.remove()
    assert not passes_are_fast()
    second.remove()
    assert passes_are_fast()
    third = unrelated.register_hook(print)
    first.remove()  # again
    assert not passes_are_fast()
    twin = copy.deepcopy(third)
    twin.remove()  # changes only the copy
    assert not passes_are_fast()
    pickle.loads(pickle.dumps(third)).remove()
    assert not passes_are_fast()
    third.remove()
    assert passes_are_fast()


def test_a_tensor_whose_hooks_are_removed_still_retains_its_gradient() -> None:
    x = leaf(1.0)
    y = x * 2.0
    handle = y.register_hook(lambda g: g * 3)
    y.retain_grad()
    handle.remove()
    (y * 5.0).sum().backward()
    assert y.grad.tolist() == [5.0]
    assert x.grad.tolist() == [10.0]


def test_one_function_registered_twice_is_called_twice_and_removed_once() -> None:
    x = leaf(1.0)

    def double(g: gf.Tensor) -> gf.Tensor:
        return g * 2

    handle = x.register_hook(double)
    x.register_hook(double)
    (x * 1.0).sum().backward()
    handle.remove()
    (x * 1.0).sum().backward()
    assert x.grad.item() == 4.0 + 2.0


def test_a_hook_may_remove_itself_and_register_others() -> None:
    x = leaf(1.0)
    calls: list[str] = []

    def once(g: gf.Tensor) -> None:
        calls.append("once")
        handle.remove()
        x.register_hook(lambda g: calls.append("later"))

    handle = x.register_hook(once)
    for _ in range(2):
        (x * 1.0).sum().backward()
    assert calls == ["once", "later"]


def test_a_hook_that_holds_its_own_tensor_is_collected() -> None:
    x = leaf(1.0, 2.0)

    def hooked() -> weakref.ref[gf.Tensor]:
        y = gf.exp(x)
        y.register_hook(lambda g: g * y.size)
        y.sum().backward()
        return weakref.ref(y)

    watch = hooked()
    gc.collect()
    assert watch() is None


def test_a_handle_may_outlive_its_tensor() -> None:
    handle = leaf(1.0).register_hook(print)
    gc.collect()
    handle.remove()


# ---------------------------------------------------------------------- higher orders, transforms


def test_a_hook_in_a_recorded_pass_is_part_of_what_is_differentiated() -> None:
    x = leaf(2.0)
    x.register_hook(lambda g: g * g)
    (x**3).sum().backward(create_graph=True)  # the gradient becomes (3 x^2)^2
    first = x.grad
    assert first.item() == 144.0
    x.zero_grad()
    seen: list[float] = []
    x.register_hook(lambda g: seen.append(g.item()))
    first.backward()  # 36 x^3 = 288, which the hook squares
    assert x.grad.item() == 288.0**2
    assert seen == [288.0**2]


def test_a_hook_inside_a_function_that_is_transformed() -> None:
    calls: list[tuple[int, ...]] = []

    def clipped(x: gf.Tensor) -> gf.Tensor:
        y = x * x

        def hook(g: gf.Tensor) -> gf.Tensor:
            calls.append(g.shape)
            return gf.clip(g, -1.0, 1.0)

        y.register_hook(hook)
        return y * 3.0

    x = gf.tensor(np.array([1.0, 2.0]))
    assert gf.grad(lambda x: clipped(x).sum())(x).tolist() == [2.0, 4.0]
    assert calls == [(2,)]
    calls.clear()
    assert gf.jacobian(clipped)(x).tolist() == [[2.0, 0.0], [0.0, 4.0]]
    assert calls == [(2,), (2,)], "a hook sees one gradient at a time"
    assert gf.hessian(lambda x: clipped(x).sum())(x).tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_a_hook_on_an_outer_leaf_is_not_called_by_a_transform_and_is_by_the_pass_after() -> None:
    w = leaf(3.0)
    seen: list[float] = []
    w.register_hook(lambda g: seen.append(g.item()))
    gradient = gf.grad(lambda x: (x * x * w).sum())(gf.tensor(np.array([2.0])))
    assert seen == []
    gradient.sum().backward()
    assert seen == [4.0]


def test_hooks_and_checkpoints() -> None:
    x = leaf(1.0, 2.0)
    seen: list[list[float]] = []

    def function(x: gf.Tensor) -> gf.Tensor:
        y = gf.exp(x)
        y.register_hook(lambda g: seen.append(g.tolist()))
        return y * 2.0

    x.register_hook(lambda g: g * 10)
    gf.checkpoint(function, x).sum().backward()
    np.testing.assert_allclose(host(x.grad), 20 * np.exp([1.0, 2.0]), rtol=1e-15)
    assert seen == [[2.0, 2.0]], "the hooks of the first run, whose graph is gone, are not called"


# ---------------------------------------------------------------------- modules


def test_a_forward_hook_sees_module_inputs_and_output(device: str) -> None:
    layer = nn.Linear(2, 3)
    x = gf.ones((4, 2))
    seen: list[Any] = []
    layer.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs, output)))
    y = layer(x)
    ((module, inputs, output),) = seen
    assert module is layer
    assert len(inputs) == 1
    assert inputs[0] is x
    assert output is y


def test_forward_hooks_replace_the_output_in_order() -> None:
    layer = nn.ReLU()
    layer.register_forward_hook(lambda m, i, out: out + 1)
    layer.register_forward_hook(lambda m, i, out: None)
    layer.register_forward_hook(lambda m, i, out: out * 10)
    assert layer(gf.tensor([-1.0, 2.0])).tolist() == [10.0, 30.0]


def test_forward_hooks_of_modules_in_modules() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    order: list[str] = []
    handles = [
        m.register_forward_hook(lambda m, i, out, name=name: order.append(name or "whole"))
        for name, m in model.named_modules()
    ]
    model(gf.ones((1, 2)))
    assert order == ["0", "1", "2", "whole"]
    handles[0].remove()
    with handles[1]:
        pass
    model(gf.ones((1, 2)))
    assert order[4:] == ["1", "2"]


def test_a_forward_hook_with_keyword_arguments_and_several_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: gf.Tensor, scale: float = 1.0) -> tuple[gf.Tensor, gf.Tensor]:
            return x * scale, x

    module, seen = Two(), []
    module.register_forward_hook(lambda m, inputs, out: seen.append((inputs, out)))
    out = module(gf.ones(1), scale=3.0)
    assert seen[0][1] is out
    assert len(seen[0][0]) == 1


def test_what_a_forward_hook_computes_is_recorded() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.register_forward_hook(lambda m, i, out: out * 5)
    x = gf.tensor([[1.0, 2.0]])
    layer(x).sum().backward()
    assert layer.weight.grad.tolist() == [[5.0, 10.0]]


def test_a_forward_hook_may_remove_itself() -> None:
    layer, calls = nn.ReLU(), []

    def once(*_: Any) -> None:
        calls.append(1)
        handle.remove()

    handle = layer.register_forward_hook(once)
    layer(gf.ones(1))
    layer(gf.ones(1))
    assert calls == [1]


def test_an_exception_in_a_forward_hook_passes_through_and_the_hook_stays() -> None:
    layer = nn.ReLU()

    def fail(*_: Any) -> None:
        raise KeyError("mine")

    with layer.register_forward_hook(fail):
        for _ in range(2):
            with pytest.raises(KeyError, match="mine"):
                layer(gf.ones(1))
    assert layer(gf.ones(1)).tolist() == [1.0]


def test_forward_hooks_under_functional_call_see_the_tensors_in_place() -> None:
    layer = nn.Linear(2, 1)
    weights: list[Any] = []
    layer.register_forward_hook(lambda m, i, out: weights.append(m.weight))
    other = gf.zeros((1, 2))
    nn.functional_call(layer, {"weight": other}, gf.ones((1, 2)))
    assert weights[0] is other


def test_hooks_are_not_in_the_state_dict() -> None:
    layer = nn.Linear(2, 1)
    layer.register_forward_hook(lambda m, i, out: out * 0)
    layer.weight.register_hook(lambda g: g * 0)
    state = layer.state_dict()
    assert sorted(state) == ["bias", "weight"]
    fresh = nn.Linear(2, 1)
    fresh.load_state_dict(state)
    x = gf.ones((1, 2))
    assert fresh(x).tolist() == (x @ layer.weight.T + layer.bias).tolist()
    assert "hook" not in repr(layer)


def double(module: nn.Module, inputs: Any, output: gf.Tensor) -> gf.Tensor:
    """A hook that can be pickled."""
    return output * 2


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_of_a_module_have_its_forward_hooks_and_not_those_of_its_parameters_gradients(how: Any) -> None:
    """A forward hook belongs to the module, like an attribute; a gradient hook belongs to one tensor and is not copied.

    A copy has its own hooks: removing one from the original does not change the copy.
    """
    gf.manual_seed(0)
    layer = nn.Linear(2, 1)
    handle = layer.register_forward_hook(double)
    gradient_handle = layer.weight.register_hook(lambda g: g * 100)
    twin = how(layer)
    x = gf.ones((1, 2))
    expected = (x @ layer.weight.T + layer.bias) * 2
    assert twin(x).tolist() == expected.tolist()
    handle.remove()
    gradient_handle.remove()
    assert twin(x).tolist() == expected.tolist()
    assert layer(x).tolist() == (expected / 2).tolist()
    twin(x).sum().backward()
    assert twin.weight.grad.tolist() == [[2.0, 2.0]]


def test_a_module_with_a_hook_that_cannot_be_pickled_says_so() -> None:
    layer = nn.Linear(2, 1)
    with layer.register_forward_hook(lambda m, i, out: None), pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(layer)
    assert pickle.loads(pickle.dumps(layer)).weight.tolist() == layer.weight.tolist()


def test_a_copied_leaf_has_no_hooks() -> None:
    x = leaf(1.0)
    x.register_hook(lambda g: g * 10)
    twin = copy.deepcopy(x)
    (twin * 2.0).sum().backward()
    assert twin.grad.item() == 2.0


def test_hooks_make_no_reference_cycle() -> None:
    seen: list[int] = []
    gc.collect()
    gc.disable()
    try:
        x = gf.ones(2, requires_grad=True)
        y = x * 2.0
        node = weakref.ref(y._node)
        y.register_hook(lambda g: seen.append(1))
        y.sum().backward()
        del y
        assert node() is None
    finally:
        gc.enable()
    assert seen == [1]
