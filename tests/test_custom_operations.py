"""Operations that users declare: values, derivatives of every order, parameters, and errors that say what is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from devices import require_gpu

import gradflow as gf
from gradflow.ops.table import OPERATIONS


def host(x: gf.Tensor) -> np.ndarray:
    return np.asarray(x.backend.to_host(x.array))


def normal(*shape: int, seed: int = 0) -> gf.Tensor:
    return gf.tensor(np.asarray(np.random.default_rng([seed, *shape]).normal(size=shape)))


softsign = gf.operation(
    "softsign",
    lambda F, x: F.divide(x, F.add(F.abs(x), 1.0)),
    lambda F, g, _out, x: F.divide(g, F.square(F.add(F.abs(x), 1.0))),
)
hypot = gf.operation(
    "hypot",
    lambda F, a, b: F.sqrt(F.add(F.square(a), F.square(b))),
    lambda F, g, out, a, _b: F.multiply(g, F.divide(a, out)),
    lambda F, g, out, _a, b: F.multiply(g, F.divide(b, out)),
)
swish = gf.operation(
    "swish",
    lambda F, x, *, beta: F.multiply(x, F.sigmoid(F.multiply(x, beta))),
    lambda F, g, _out, x, *, beta: F.multiply(g, _swish_slope(F, x, beta)),
)


def _swish_slope(F: Any, x: Any, beta: float) -> Any:
    s = F.sigmoid(F.multiply(x, beta))
    return F.add(s, F.multiply(F.multiply(F.multiply(x, beta), s), F.subtract(1.0, s)))


# ---------------------------------------------------------------------- values and derivatives


def test_value_and_gradient(device: str) -> None:
    x = gf.tensor([-1.0, 0.0, 3.0], requires_grad=True)
    y = softsign(x)
    assert y.tolist() == [-0.5, 0.0, 0.75]
    y.sum().backward()
    assert x.grad.tolist() == [0.25, 1.0, 0.0625]
    assert (y.dtype, x.grad.dtype, x.grad.device) == (gf.float32, gf.float32, x.device)


def test_derivatives_of_three_orders_are_those_of_the_same_function_in_operations() -> None:
    def elementary(a: gf.Tensor, b: gf.Tensor) -> gf.Tensor:
        return gf.sqrt(a * a + b * b)

    a, b = normal(2, 3), normal(3)  # broadcast
    ours, expected = (lambda a, b, f=f: (f(a, b) ** 2 * a).sum() for f in (hypot, elementary))
    for _ in range(3):
        first, second = gf.grad(ours, (0, 1))(a, b), gf.grad(expected, (0, 1))(a, b)
        for g, e in zip(first, second, strict=True):
            assert g.shape == e.shape
            np.testing.assert_allclose(host(g), host(e), rtol=1e-11, atol=1e-12)
        ours, expected = (
            lambda a, b, f=f: sum((g * g).sum() for g in gf.grad(f, (0, 1))(a, b)) for f in (ours, expected)
        )


def test_jacobian_by_rows_and_by_columns_and_hessian() -> None:
    x = normal(4)
    slope = 1 / (1 + np.abs(host(x))) ** 2
    np.testing.assert_allclose(host(gf.jacobian(softsign)(x)), np.diag(slope), rtol=1e-14)
    tall = gf.jacobian(lambda x: gf.concat([softsign(x)] * 3))(x)
    np.testing.assert_allclose(host(tall), np.concatenate([np.diag(slope)] * 3), rtol=1e-14)
    curvature = -2 * np.sign(host(x)) / (1 + np.abs(host(x))) ** 3
    np.testing.assert_allclose(host(gf.hessian(lambda x: softsign(x).sum())(x)), np.diag(curvature), rtol=1e-13)


@pytest.mark.parametrize("function", [gf.gradcheck, gf.gradgradcheck])
def test_right_rules_pass_the_checks(function: Any) -> None:
    function(softsign, normal(3))
    function(hypot, normal(2, 3), normal(2, 1))
    function(lambda x: swish(x, beta=1.5), normal(3))


def test_an_operation_of_a_tensor_with_itself_and_of_numbers() -> None:
    x = gf.tensor([3.0], requires_grad=True)
    hypot(x, x).backward()
    assert x.grad.item() == pytest.approx(math.sqrt(2), rel=1e-6)
    assert hypot(gf.tensor([3.0]), 4.0).tolist() == [5.0]
    assert hypot(3, gf.tensor([4.0])).tolist() == [5.0]


def test_parameters_are_handed_on() -> None:
    x = normal(3).requires_grad_()
    y = swish(x, beta=2.0)
    np.testing.assert_allclose(host(y), host(x) / (1 + np.exp(-2 * host(x))), rtol=1e-14)
    y.sum().backward()
    z = 2 * host(x)
    s = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(host(x.grad), s + z * s * (1 - s), rtol=1e-13)


def test_parameters_with_defaults_and_parameters_of_any_name() -> None:
    def forward(F: Any, x: Any, factor: float = 2.0) -> Any:
        """The operation's own words."""
        return F.multiply(x, factor)

    scaled = gf.operation("scaled", forward, lambda F, g, _out, _x, factor=2.0: F.multiply(g, factor))
    x = gf.tensor([1.0], requires_grad=True)
    scaled(x).backward()
    scaled(x, factor=5.0).backward()
    assert x.grad.item() == 7.0
    assert (scaled.__name__, scaled.__doc__) == ("scaled", "The operation's own words.")
    anything = gf.operation(
        "anything",
        lambda F, x, **how: F.multiply(x, how["by"]),
        lambda F, g, _out, _x, **how: F.multiply(g, how["by"]),
    )
    assert gf.grad(lambda x: anything(x, by=4.0).sum())(gf.ones(2)).tolist() == [4.0, 4.0]


def test_no_rule_no_gradient() -> None:
    """Such an argument is a mask, an index or a label; the other arguments still get their gradients."""
    masked = gf.operation("masked", lambda F, x, m: F.multiply(x, m), lambda F, g, _out, _x, m: F.multiply(g, m), None)
    x, m = gf.ones(2, requires_grad=True), gf.tensor([1.0, 0.0], requires_grad=True)
    masked(x, m).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
    assert m.grad is None
    assert gf.grad(lambda m: masked(x.detach(), m).sum())(m.detach()).tolist() == [0.0, 0.0]
    constant = gf.operation("constant", lambda F, x: F.multiply(x, 0.0), None)
    assert not constant(x).requires_grad
    whole = gf.operation("whole", lambda F, x: F.astype(x, F.dtypes["int64"]), lambda F, g, _out, _x: g)
    assert not whole(x).requires_grad


def test_defaults_of_the_parameters_are_those_of_forward() -> None:
    scale = gf.operation(
        "scale", lambda F, x, *, s=2.0: F.multiply(x, s), lambda F, g, _out, _x, *, s=3.0: F.multiply(g, s)
    )
    x = gf.ones(2, requires_grad=True)
    scale(x).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_a_forward_that_returns_a_view_gives_a_copy() -> None:
    flat = gf.operation("flat", lambda F, x: F.reshape(x, (-1,)), lambda F, g, _out, _x: F.reshape(g, _x.shape))
    x = gf.tensor([[1.0, 2.0]], requires_grad=True)
    y = flat(x)
    z = (y * y).sum()
    with gf.no_grad():
        x.zero_()
    z.backward()
    assert x.grad.tolist() == [[2.0, 4.0]]


def test_a_gradient_with_more_axes_than_argument_and_result_is_refused() -> None:
    wide = gf.operation("wide", lambda F, x: F.multiply(x, 1.0), lambda F, g, _out, _x: F.broadcast_to(g, (3, 2)))
    with pytest.raises(ValueError, match=r"rule of wide for argument 0 gave a gradient of shape \(3, 2\)"):
        wide(gf.ones(2, requires_grad=True)).sum().backward()


def test_a_forward_that_returns_its_input_gives_a_copy() -> None:
    """Otherwise an in-place change of the result would change the input, unnoticed."""
    same = gf.operation("same", lambda F, x: x, lambda F, g, _out, _x: g)
    x = gf.tensor([1.0, 2.0], requires_grad=True)
    y = same(x)
    with gf.no_grad():
        y *= 10.0
    assert x.tolist() == [1.0, 2.0]
    same(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_what_is_not_read_is_not_kept_and_what_is_read_is_watched() -> None:
    import weakref

    x = gf.tensor([1.0, 2.0], requires_grad=True)
    a = x * 2.0
    watch = weakref.ref(a)
    reads_out = gf.operation("double_exp", lambda F, x: F.exp(x), lambda F, g, out, _x: F.multiply(g, out))
    y = reads_out(a)
    del a
    assert watch() is None
    with gf.no_grad():
        y += 1.0
    with pytest.raises(RuntimeError, match=r"the result of double_exp, .* was changed in place"):
        y.sum().backward()
    b = x * 2.0
    z = softsign(b)
    with gf.no_grad():
        b += 1.0
    with pytest.raises(RuntimeError, match=r"input 0 of softsign, .* was changed in place"):
        z.sum().backward()


def test_rules_may_call_every_kind_of_function_on_batches() -> None:
    """A rule with reductions, shapes, products, and stacks, in a Jacobian by rows, by columns and recorded."""

    def rule(F: Any, g: Any, _out: Any, x: Any) -> Any:
        n = x.shape[0]
        rows = F.stack([F.multiply(g, F.cos(x)), F.multiply(g, 0.0)], axis=0)
        total = F.sum(F.concat([rows, rows], axis=0), axis=0)
        column = F.reshape(total, (n, 1))
        eye = F.matmul(column, F.ones_like(F.reshape(x, (1, n))))
        return F.divide(F.mean(F.squeeze(F.expand_dims(eye, axis=(0, -1)), axis=(0, -1)), axis=1), 2.0)

    sine = gf.operation("long_sine", lambda F, x: F.sin(x), rule)
    x = normal(3)
    np.testing.assert_allclose(host(gf.jacobian(sine)(x)), np.diag(np.cos(host(x))), rtol=1e-13)
    tall = gf.jacobian(lambda x: gf.concat([sine(x)] * 3))(x)
    np.testing.assert_allclose(host(tall), np.concatenate([np.diag(np.cos(host(x)))] * 3), rtol=1e-13)
    second = gf.hessian(lambda x: sine(x).sum())(x)
    np.testing.assert_allclose(host(second), np.diag(-np.sin(host(x))), rtol=1e-13, atol=1e-16)
    gf.gradcheck(sine, x)
    gf.gradgradcheck(sine, x)


def test_an_operation_is_no_entry_of_the_table() -> None:
    before = dict(OPERATIONS)
    twin = gf.operation("softsign", lambda F, x: F.negative(x), lambda F, g, _out, _x: F.negative(g))
    assert twin(gf.ones(1)).tolist() == [-1.0]
    assert before == OPERATIONS
    assert softsign(gf.ones(1)).tolist() == gf.softsign(gf.ones(1)).tolist() == [0.5]


def test_an_operation_in_modules_checkpoints_and_under_detect_anomaly() -> None:
    layer = gf.nn.Linear(3, 3, dtype="float64")
    x = normal(2, 3)
    softsign(layer(x)).sum().backward()
    expected = host(layer.weight.grad)
    layer.zero_grad()
    with gf.detect_anomaly():
        gf.checkpoint(lambda x: softsign(layer(x)), x).sum().backward()
    np.testing.assert_array_equal(host(layer.weight.grad), expected)


# ---------------------------------------------------------------------- mistakes in the declaration


def one(F: Any, g: Any, out: Any, x: Any) -> Any:
    return g


WRONG: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "too few rules": (
        (lambda F, a, b: a, one),
        ValueError,
        r"operation op: forward takes 2 arrays \(a, b\), so there must be as many rules; got 1",
    ),
    "too many rules": ((lambda F, x: x, one, one), ValueError, r"takes 1 arrays \(x\), .*; got 2"),
    "no rules": ((lambda F, x: x,), ValueError, "got 0"),
    "no arrays": ((lambda F: 1.0,), ValueError, "forward takes F and at least one array"),
    "no F": ((lambda: 1.0,), ValueError, "forward must name each of its arguments"),
    "any number of arrays": ((lambda F, *xs: xs[0], one), ValueError, "must name each of its arguments"),
    "a rule with too few arguments": (
        (lambda F, a, b: a, lambda F, g, out, a, b: g, lambda F, g, out, a: g),
        ValueError,
        r"the rule for argument 1 \(b\) must take F, g, out and the 2 arrays \(a, b\); it is <lambda>\(F, g, out, a\)",
    ),
    "a rule with too many arguments": (
        (lambda F, x: x, lambda F, g, out, x, y: g),
        ValueError,
        r"the rule for argument 0 \(x\) must take F, g, out and the 1 arrays",
    ),
    "a rule without the result": ((lambda F, x: x, lambda F, g: g), ValueError, r"the rule for argument 0 \(x\)"),
    "a rule without a parameter": (
        (lambda F, x, *, alpha, beta: x, lambda F, g, out, x, *, beta: g),
        ValueError,
        r"the rule for argument 0 \(x\) must take the parameters of forward too; it lacks alpha",
    ),
    "a forward that is no function": ((math.sin, one), TypeError, "forward must be a function written in Python"),
    "a rule that is no function": ((lambda F, x: x, 3.0), TypeError, r"the rule for argument 0 \(x\) must be a func"),
    "a forward that is None": ((None, one), TypeError, "forward must be a function"),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_mistakes_in_a_declaration_are_errors_at_once(what: str) -> None:
    arguments, error, message = WRONG[what]
    with pytest.raises(error, match=message):
        gf.operation("op", *arguments)


# ---------------------------------------------------------------------- mistakes in a call


def test_mistakes_in_a_call() -> None:
    x = gf.ones(2)
    with pytest.raises(TypeError, match=r"hypot takes 2 tensors \(a, b\); got 1"):
        hypot(x)
    with pytest.raises(TypeError, match=r"hypot takes tensors and numbers; argument 1 \(b\) is list"):
        hypot(x, [1.0, 2.0])
    with pytest.raises(TypeError, match="ndarray"):
        hypot(np.ones(2), x)
    with pytest.raises(TypeError, match="hypot needs at least one tensor; got only numbers"):
        hypot(1.0, 2.0)
    with pytest.raises(TypeError, match="beta"):
        swish(x)
    with pytest.raises(TypeError, match="gamma"):
        swish(x, gamma=1.0)


@pytest.mark.parametrize(
    ("value", "kind"), [(1.0, "float"), (None, "NoneType"), ([1.0], "list"), ((1.0, 2.0), "tuple")]
)
def test_a_forward_that_gives_no_array_says_so(value: Any, kind: str) -> None:
    bad = gf.operation("bad", lambda F, x: value, one)
    with pytest.raises(TypeError, match=f"the forward of bad must return an array; it returned {kind}"):
        bad(gf.ones(1))


def backward_of(*rules: Any, create_graph: bool) -> None:
    bad = gf.operation("bad", lambda F, a, b: F.add(a, b), *rules)
    bad(gf.ones((2, 3), requires_grad=True), gf.ones((2, 3), requires_grad=True)).sum().backward(
        create_graph=create_graph
    )


def right(F: Any, g: Any, _out: Any, _a: Any, _b: Any) -> Any:
    return g


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (lambda F, g, _out, _a, _b: F.sum(g), r"\(\)"),
        (lambda F, g, _out, _a, _b: F.sum(g, axis=0), r"\(3,\)"),
        (lambda F, g, _out, _a, _b: F.sum(g, axis=1, keepdims=True), r"\(2, 1\)"),
        (lambda F, g, _out, _a, _b: F.matrix_transpose(g), r"\(3, 2\)"),
        (lambda F, g, _out, _a, _b: F.reshape(g, (6,)), r"\(6,\)"),
        (lambda F, g, _out, _a, _b: F.concat([g, g], axis=1), r"\(2, 6\)"),
    ],
)
def test_a_gradient_of_the_wrong_shape_names_the_rule(rule: Any, shape: str, create_graph: bool) -> None:
    message = rf"the rule of bad for argument 1 gave a gradient of shape {shape}; the argument has shape \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        backward_of(right, rule, create_graph=create_graph)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("value", "kind"), [(1.0, "float"), (None, "NoneType"), ([1.0], "list")])
def test_a_gradient_that_is_no_array_names_the_rule(value: Any, kind: str, create_graph: bool) -> None:
    with pytest.raises(TypeError, match=f"the rule of bad for argument 0 must return an array; it returned {kind}"):
        backward_of(lambda F, g, _out, _a, _b: value, right, create_graph=create_graph)


def test_a_gradient_of_the_wrong_shape_in_a_jacobian_names_the_rule() -> None:
    bad = gf.operation("bad", lambda F, x: F.multiply(x, 2.0), lambda F, g, _out, _x: F.sum(g, axis=0))
    with pytest.raises(ValueError, match=r"the rule of bad for argument 0 gave a gradient of shape \(3,\)"):
        gf.jacobian(bad)(gf.ones((2, 3)))


def test_a_gradient_of_another_dtype_is_cast() -> None:
    """As for all operations: float32 in, float32 gradients out."""
    wide = gf.operation(
        "wide",
        lambda F, x: F.add(x, 0.0),
        lambda F, g, _out, _x: F.astype(g, F.dtypes["float64"] if hasattr(F, "dtypes") else "float64"),
    )
    x = gf.ones(2, requires_grad=True)
    wide(x).sum().backward()
    assert x.grad.dtype is gf.float32


@pytest.mark.gpu
def test_tensors_of_two_devices_are_refused() -> None:
    require_gpu()
    with pytest.raises(gf.DeviceMismatchError, match="hypot"):
        hypot(gf.ones(2, device="cpu"), gf.ones(2, device="cuda"))


READS = {
    "in a function of F": (lambda F, g, _out, _x: F.multiply(g, _x), "_x"),
    "in a function of F, first": (lambda F, g, _out, _x: F.multiply(_x, g), "_x"),
    "the result": (lambda F, g, _out, _x: F.multiply(g, _out), "_out"),
    "an operator": (lambda F, g, _out, _x: g * _x, "_x"),
    "an operator, first": (lambda F, g, _out, _x: _x * 2.0, "_x"),
    "a method": (lambda F, g, _out, _x: F.multiply(g, _x.sum()), "_x"),
    "an element": (lambda F, g, _out, _x: F.multiply(g, _x[0]), "_x"),
    "as the gradient": (lambda F, g, _out, _x: _x, "_x"),
    "a comparison": (lambda F, g, _out, _x: F.where(_x > 0, g, 0.0), "_x"),
    "in where": (lambda F, g, _out, _x: F.where(F.greater(_x, 0.0), g, 0.0), "_x"),
    "as a sum": (lambda F, g, _out, _x: F.add(g, F.sum(_x)), "_x"),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("how", READS)
def test_a_rule_that_reads_what_it_says_it_does_not_is_told_so(how: str, create_graph: bool, device: str) -> None:
    rule, name = READS[how]
    op = gf.operation("reader", lambda F, x: F.multiply(x, 2.0), rule)
    y = op(gf.ones(3, requires_grad=True))
    with pytest.raises(TypeError, match=f"rule of reader for argument 0 reads {name}.*drop the underscore"):
        y.sum().backward(create_graph=create_graph)
    with pytest.raises(TypeError, match=r"drop the underscore|F.multiply\(g, x\) rather than g \* x"):
        gf.jacobian(op)(gf.ones(3))


def test_a_rule_that_reads_an_argument_without_a_gradient_is_told_so(device: str) -> None:
    product = gf.operation(
        "product", lambda F, x, y: F.multiply(x, y), lambda F, g, _out, _x, _y: F.multiply(g, _y), None
    )
    for other in (gf.ones(2), 3.0):
        with pytest.raises(TypeError, match=r"reads _y, .*: drop the underscore and call it y"):
            product(gf.ones(2, requires_grad=True), other).sum().backward()


def test_an_operation_of_many_arguments_is_defined_at_once() -> None:
    names = [f"x{i}" for i in range(60)]
    scope: dict[str, Any] = {}
    exec(f"def forward(F, {', '.join(names)}):\n    return F.add(x0, x59)", scope)
    exec(f"def rule(F, g, _out, {', '.join('_' + n for n in names)}):\n    return g", scope)
    many = gf.operation("many", scope["forward"], *[scope["rule"]] * 60)  # 2^60 sets of arguments
    x, y = gf.ones(2, requires_grad=True), gf.ones(2, requires_grad=True)
    many(x, *[gf.ones(2)] * 58, y).sum().backward()
    assert x.grad.tolist() == y.grad.tolist() == [1.0, 1.0]
