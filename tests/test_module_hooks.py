"""Hooks before a module, and on the gradients of a module, are PyTorch's."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest

import gradflow as gf
from gradflow import nn


def product(library: Any) -> Any:
    """A module of two inputs and two results."""

    class Product(library.Module):  # type: ignore[misc]
        def forward(self, a: Any, b: Any, power: int = 1) -> Any:
            return a * b**power, a + b

    return Product()


def test_pre_hooks_replace_the_inputs_in_order() -> None:
    torch = pytest.importorskip("torch")
    found = []
    for one, library in ((gf.ones(2), nn), (torch.ones(2), torch.nn)):
        layer, seen = product(library), []
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1, inputs[1] * 3))
        layer.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].tolist()))
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 10, *inputs[1:]))
        with layer.register_forward_hook(lambda module, inputs, out, seen=seen: seen.append(inputs[0].tolist())):
            found.append(([x.tolist() for x in layer(one, one, power=2)], seen))
    assert found[0] == found[1] == ([[180.0, 180.0], [23.0, 23.0]], [[2.0, 2.0], [20.0, 20.0]])


def test_a_pre_hook_may_return_the_only_input_and_go() -> None:
    layer = nn.Identity()
    with layer.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2):
        assert layer(gf.ones(1)).tolist() == [2.0]
    assert layer(gf.ones(1)).tolist() == [1.0]


def changed(library: Any, a: Any, b: Any, seen: list[Any], replace: bool) -> Any:
    """A sum of what `product` returns with backward hooks, and the second derivative of its result by a."""
    layer = product(library)

    def note(module: Any, grad_input: Any, grad_output: Any) -> None:
        seen.append([[None if g is None else g.tolist() for g in given] for given in (grad_input, grad_output)])

    if replace:
        layer.register_full_backward_hook(lambda m, grad_input, grad_output: (grad_input[0] * 2, grad_input[1] ** 2))
    layer.register_full_backward_hook(note)
    first, second = layer(a, b, power=3)
    return (first * first).sum() + second.sum()


@pytest.mark.parametrize("replace", [False, True])
def test_backward_hooks_get_and_replace_pytorchs_gradients_to_the_second_order(replace: bool, device: str) -> None:
    torch = pytest.importorskip("torch")
    values = [[0.5, -1.0], [2.0, 1.5]]
    mine: list[Any] = []
    theirs: list[Any] = []
    a, b = (gf.tensor(v, dtype="float64", requires_grad=True) for v in values)
    loss = changed(nn, a, b, mine, replace)
    found = gf.gradients(loss, [a, b], create_graph=True)
    found += gf.gradients((found[0] * found[1]).sum(), [a, b])
    ta, tb = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values)
    loss = changed(torch.nn, ta, tb, theirs, replace)
    expected = torch.autograd.grad(loss, [ta, tb], create_graph=True)
    expected += torch.autograd.grad((expected[0] * expected[1]).sum(), [ta, tb])
    for x, y in zip(found, expected, strict=True):
        assert x.tolist() == pytest.approx(y.tolist(), rel=1e-12)
    assert len(mine) == len(theirs) >= 1
    for x, y in zip(mine[0], theirs[0], strict=True):
        assert [row == pytest.approx(other, rel=1e-12) for row, other in zip(x, y, strict=True)] == [True, True]


def test_a_hook_of_a_layer_whose_input_needs_no_gradient_gets_that_of_its_result() -> None:
    layer, seen = nn.Linear(2, 3), []
    layer.register_full_backward_hook(lambda m, grad_input, grad_output: seen.append((grad_input, grad_output)))
    layer(gf.ones((1, 2))).sum().backward()
    ((grad_input, grad_output),) = seen
    assert (grad_input, [g.tolist() for g in grad_output]) == ((None,), [[[1.0, 1.0, 1.0]]])
    with gf.no_grad():
        layer(gf.ones((1, 2)))
    assert len(seen) == 1


def test_hooks_of_the_layers_of_a_perceptron_run_from_the_last_to_the_first() -> None:
    model, order, x = nn.MLP([2, 3, 3, 1]), [], gf.ones((1, 2), requires_grad=True)
    handles = [
        layer.register_full_backward_hook(lambda m, i, o, name=name: order.append(name))
        for name, layer in model.named_children()
    ]
    model(x).sum().backward()
    assert order == ["2", "1", "0"]
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert len(order) == 3
    assert not any(layer._hooked for layer in model)


def test_a_jacobian_calls_a_backward_hook_for_each_row() -> None:
    layer, seen = nn.Tanh(), []

    def double(module: Any, grad_input: Any, grad_output: Any) -> Any:
        seen.append(grad_output[0].tolist())
        return grad_input[0] * 2

    x = gf.tensor([0.0, 1.0])
    plain = gf.jacobian(layer)(x)
    with layer.register_full_backward_hook(double):
        found, hessian = gf.jacobian(layer)(x), gf.hessian(lambda x: layer(x).sum())(x)
    assert found.tolist() == (plain * 2).tolist()
    assert seen[:2] == [[1.0, 0.0], [0.0, 1.0]]
    assert hessian.shape == (2, 2)


def test_a_walk_that_passes_by_the_inputs_leaves_nothing_for_the_next() -> None:
    layer, seen = nn.Linear(2, 2), []
    layer.register_full_backward_hook(lambda m, i, o: seen.append((i[0].tolist(), o[0].tolist())))
    x = gf.ones((1, 2), requires_grad=True)
    y = layer(x)
    gf.gradients(y.sum(), [layer.bias], retain_graph=True)
    (y * 5).sum().backward()
    assert [g for _, g in seen] == [[[5.0, 5.0]]]


def test_what_does_not_fit_is_refused() -> None:
    layer: Any = product(nn)
    x, y = gf.ones(2, requires_grad=True), gf.ones(2, dtype="float64", requires_grad=True)
    refused = pytest.raises(TypeError, match="a backward hook of Product needs arguments of one dtype")
    with layer.register_full_backward_hook(lambda *_: None), refused:
        layer(x, y)
    with pytest.raises(TypeError, match="a hook is a function; got int"):
        layer.register_forward_pre_hook(3)
    for wrong in (1.0, gf.ones(3), (gf.ones(2),), (gf.ones(2), gf.ones(2), None)):
        with layer.register_full_backward_hook(lambda m, i, o, wrong=wrong: wrong):
            a, b = layer(x, x)
        with pytest.raises(TypeError, match="a backward hook of Product must return None, or gradients of the shapes"):
            (a + b).sum().backward()
    with layer.register_full_backward_hook(lambda m, i, o: (None, i[1])):
        a, _ = layer(x, y.astype("float32").detach().requires_grad_())
    a.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0]


def test_hooks_belong_to_a_copy_and_a_fused_perceptron_is_undone() -> None:
    model = nn.MLP([2, 3, 1])
    model[0].register_forward_pre_hook(lambda m, inputs: inputs[0] * 0)
    twin = copy.deepcopy(model)
    assert twin(gf.ones((1, 2))).tolist() == model(gf.zeros((1, 2))).tolist()
    pytest.importorskip("onnx")
    with pytest.raises(TypeError, match="has hooks or a forward of its own"):
        gf.onnx.export(model, "unused.onnx")


def test_a_call_with_hooks_makes_no_reference_cycle() -> None:
    layer, x = nn.Linear(2, 2), gf.ones((1, 2), requires_grad=True)
    layer.register_full_backward_hook(lambda m, i, o: i[0] * 2)
    gc.disable()
    try:
        y = layer(x)
        node: Any = y._node
        nodes = [weakref.ref(each) for each in (node, node.parents[0], node.parents[0].parents[0])]
        y.sum().backward()
        del y, node
        assert [each() for each in nodes] == [None, None, None]
    finally:
        gc.enable()
