"""Transforms: against PyTorch's, against loops of single passes, against central differences; nested; on bad input."""

from __future__ import annotations

import collections
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import CASES, Case

import gradflow as gf
from gradflow.autograd import grad_mode
from gradflow.autograd.batching import Batch, Batching, batched
from gradflow.autograd.graph import Node
from gradflow.autograd.observers import Observer, observe
from gradflow.backend import ACTIVATIONS
from gradflow.backend.array_functions import ELEMENTWISE
from gradflow.ops import namespace as tensor_functions
from gradflow.random import generator
from gradflow.transforms import jacobians
from gradflow.transforms.trace import Trace
from gradflow.tree import flatten, map_tree, rebuild

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]


def needs_torch(test: Any) -> Any:
    """Skip a test without PyTorch, and ignore the deprecation warning that its forward mode raises."""
    test = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")(test)
    return pytest.mark.skipif(torch is None, reason="PyTorch, the reference, is not installed")(test)


every_case = pytest.mark.parametrize("case", [c for c in CASES if c.differentiable()], ids=str)


# ---------------------------------------------------------------------- helpers


def normal(*shape: int, seed: int = 0) -> gf.Tensor:
    return gf.tensor(np.asarray(np.random.default_rng([seed, *shape]).normal(size=shape)))


def host(x: Any) -> np.ndarray:
    """The values of a tensor, of gradflow or PyTorch."""
    return np.asarray(x.backend.to_host(x.array)) if isinstance(x, gf.Tensor) else x.detach().numpy()


def assert_same(actual: Any, expected: Any, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Assert that two trees match in structure and all tensors satisfy |a - e| <= rtol |e| + atol max(1, max |e|)."""
    ours, theirs = flatten(actual), flatten(expected)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, a), (_, e) in zip(ours, theirs, strict=True):
        a, e = host(a), host(e)
        assert a.shape == e.shape, f"result{path} has shape {a.shape}, not {e.shape}"
        bound = rtol * np.abs(e) + atol * np.max(np.abs(e), initial=1.0)
        excess = np.max(np.abs(a - e) / bound, initial=0.0)
        assert excess <= 1.0, f"result{path} is off by {excess:.3g} times its bound:\n{a}\nnot\n{e}"


def to_torch(tree: Any) -> Any:
    return map_tree(lambda x: torch.tensor(host(x)) if isinstance(x, gf.Tensor) else x, tree)


def as_list(out: Any) -> list[Any]:
    return list(out) if isinstance(out, (list, tuple)) else [out]


def of_case(case: Case) -> tuple[Callable[..., list[gf.Tensor]], list[gf.Tensor]]:
    """The case as a function of the inputs to differentiate by, and these inputs."""
    inputs = [gf.tensor(x) for x in case.inputs]
    places = case.differentiable()

    def function(*values: gf.Tensor) -> list[gf.Tensor]:
        full = list(inputs)
        for i, x in zip(places, values, strict=True):
            full[i] = x
        return as_list(case.call(*full))

    return function, [inputs[i] for i in places]


def projections(shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape)) for shape in shapes]


def dot(values: list[Any], weights: list[Any]) -> Any:
    total = None
    for value, weight in zip(values, weights, strict=True):
        term = (value * weight).sum()
        total = term if total is None else total + term
    return total


class Counter(Observer):
    """Counts operations and rules by the operation's name."""

    def __init__(self) -> None:
        self.operations: list[str] = []
        self.rules: list[str] = []

    def forward(self, op: Any, inputs: Any, out: Any, parameters: Any) -> None:
        self.operations.append(op.name)

    def before_rules(self, node: Node, g: Any, out: Any, values: Any) -> None:
        self.rules.append(node.op.name)


def state() -> dict[str, Any]:
    """Everything global that a transform or a traced function could leave changed."""
    return {
        "grad mode": grad_mode.grad_enabled.get(),
        "observer": grad_mode.current_observer.get(),
        "used generators": generator._used.get(),
        "device": gf.current_device(),
    }


# ---------------------------------------------------------------------- every case: Jacobians


def _by_single_passes(case: Case) -> list[list[np.ndarray]]:
    """The Jacobian of a case by a loop of VJPs, each with a unit vector as its cotangent."""
    function, xs = of_case(case)
    outputs, back = gf.vjp(function, *xs)
    blocks = []
    for j, y in enumerate(outputs):
        rows = []
        for k in range(y.size):
            unit = np.zeros(y.size, str(y.dtype))
            unit[k] = 1
            cotangents = [gf.zeros(u.shape, dtype=u.dtype) for u in outputs]
            cotangents[j] = gf.tensor(unit.reshape(y.shape))
            rows.append(back(cotangents))
        blocks.append(
            [
                np.array([host(row[i]) for row in rows], str(x.dtype)).reshape(y.shape + x.shape)
                for i, x in enumerate(xs)
            ]
        )
    return blocks


@pytest.mark.slow
@every_case
def test_jacobians_by_rows_by_columns_and_recorded_equal_a_loop_of_vjps(case: Case) -> None:
    """Neither rows on arrays, nor columns, nor rows on tensors may differ from one row at a time."""
    expected = _by_single_passes(case)
    function, xs = of_case(case)
    trace = Trace("jacobian", function, xs, range(len(xs)), {})
    outputs = list(trace.output)
    found = {
        "rows": jacobians.by_rows(trace.inputs, outputs, False),
        "columns": jacobians.by_columns(trace, outputs, False),
        "recorded rows": jacobians.by_rows(trace.inputs, outputs, True),
        "recorded columns": jacobians.by_columns(trace, outputs, True),
    }
    for how, blocks in found.items():
        for j, (row, expected_row) in enumerate(zip(blocks, expected, strict=True)):
            for i, (block, e) in enumerate(zip(row, expected_row, strict=True)):
                a = host(block)
                assert a.shape == e.shape, f"{how}: block {j}, {i} has shape {a.shape}, not {e.shape}"
                np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-12, err_msg=f"{how}: block {j}, {i}")


@pytest.mark.parametrize("case", [c for c in CASES if c.differentiable() and c.smooth], ids=str)
def test_jvp_equals_central_differences_and_the_jacobian_times_the_tangent(case: Case) -> None:
    """Differences of step 1e-5 on numbers near 1: truncation and rounding are both below 2e-8 here."""
    function, xs = of_case(case)
    tangents = [gf.tensor(t) for t in projections([x.shape for x in xs], 7)]
    value, direction = gf.jvp(function, xs, tangents)
    assert_same(value, function(*xs), rtol=0, atol=1e-15)
    step = 1e-5
    above = function(*[x + t * step for x, t in zip(xs, tangents, strict=True)])
    below = function(*[x - t * step for x, t in zip(xs, tangents, strict=True)])
    slopes = [(a - b) / (2 * step) for a, b in zip(above, below, strict=True)]
    assert_same(direction, slopes, rtol=1e-7, atol=2e-8)
    blocks = gf.jacobian(function, tuple(range(len(xs))))(*xs)
    for d, row in zip(direction, blocks, strict=True):
        product = sum(np.tensordot(host(b), host(t), t.ndim) for b, t in zip(row, tangents, strict=True))
        np.testing.assert_allclose(host(d), product, rtol=1e-10, atol=1e-11)


# ---------------------------------------------------------------------- every case: third derivatives


def twice_projected(case: Case) -> tuple[Callable[..., gf.Tensor], list[gf.Tensor]]:
    """<w2, gradient of <w1, gradient of <w0, f>>> as a function of the inputs, whose gradient is a third derivative."""
    function, xs = of_case(case)
    numbers = tuple(range(len(xs)))
    outputs = function(*xs)
    w0 = [
        gf.tensor(w.astype(str(y.dtype)))
        for y, w in zip(outputs, projections([y.shape for y in outputs], 10), strict=True)
    ]
    w1, w2 = ([gf.tensor(w) for w in projections([x.shape for x in xs], seed)] for seed in (11, 12))
    first = gf.grad(lambda *v: dot(function(*v), w0), numbers)
    second = gf.grad(lambda *v: dot(list(first(*v)), w1), numbers)
    return lambda *v: dot(list(second(*v)), w2), xs


class _Torch:
    """PyTorch, but layer and batch norm by their formulas: the built-in third derivatives differ (in version 2.13)."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name == "layer_norm":
            return self._layer_norm
        if name == "batch_norm":
            return self._batch_norm
        found = getattr(self._module, name)
        return _Torch(found) if name in ("nn", "functional") else found

    @staticmethod
    def _layer_norm(x: Any, shape: tuple[int, ...], w: Any = None, b: Any = None, eps: float = 1e-5) -> Any:
        axes = tuple(range(-len(shape), 0))
        y = (x - x.mean(axes, keepdim=True)) / torch.sqrt(x.var(axes, correction=0, keepdim=True) + eps)
        y = y if w is None else y * w
        return y if b is None else y + b

    @staticmethod
    def _batch_norm(
        x: Any, mean: Any, var: Any, w: Any = None, b: Any = None, training: bool = False, *_: Any, eps: float = 1e-5
    ) -> Any:
        axes, shape = [i for i in range(x.ndim) if i != 1], (-1, *(1,) * (x.ndim - 2))
        if training:
            mean, var = x.mean(axes), x.var(axes, correction=0)
        y = (x - mean.reshape(shape)) / torch.sqrt(var.reshape(shape) + eps)
        y = y if w is None else y * w.reshape(shape)
        return y if b is None else y + b.reshape(shape)


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("case", [c for c in CASES if c.differentiable() and c.torch is not None], ids=str)
def test_third_derivatives_equal_those_of_torch(case: Case) -> None:
    """Projected on random directions: the gradient of <w2, gradient of <w1, gradient of <w0, f>>>."""
    scalar, xs = twice_projected(case)
    ours = gf.grad(scalar, tuple(range(len(xs))))(*xs)
    inputs = [torch.tensor(x, requires_grad=i in case.differentiable()) for i, x in enumerate(case.inputs)]
    wanted = [inputs[i] for i in case.differentiable()]
    outputs = as_list(case.torch(_Torch(torch), *inputs))
    current = dot(outputs, [torch.tensor(w) for w in projections([tuple(y.shape) for y in outputs], 10)])
    for seed in (11, 12, None):
        gradients = [torch.zeros_like(x) for x in wanted]
        if current.requires_grad:
            gradients = torch.autograd.grad(
                current, wanted, create_graph=True, allow_unused=True, materialize_grads=True
            )
        if seed is not None:
            weights = projections([tuple(x.shape) for x in wanted], seed)
            current = dot(list(gradients), [torch.tensor(w) for w in weights])
    # std of two numbers is |a - b| / 2: near each other, as some here are, terms of up to 1e7 must cancel
    assert_same(list(ours), list(gradients), rtol=1e-10, atol=1e-7 if "std" in case.covers else 1e-11)


ONE_EACH = list({name: c for c in reversed(CASES) if c.differentiable() and c.smooth for name in c.covers}.values())
"""One smooth case for every function."""


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_third_derivatives_equal_central_differences_of_second_ones(case: Case) -> None:
    """In a random direction, with step 1e-5: errors of both kinds are below 1e-6 of the largest derivative here."""
    scalar, xs = twice_projected(case)
    gradient = gf.grad(scalar, tuple(range(len(xs))))(*xs)
    tangents = [gf.tensor(t) for t in projections([x.shape for x in xs], 13)]
    found = dot(list(gradient), tangents).item()
    step = 1e-5
    above = scalar(*[x + t * step for x, t in zip(xs, tangents, strict=True)]).item()
    below = scalar(*[x - t * step for x, t in zip(xs, tangents, strict=True)]).item()
    scale = max([1.0, *(float(np.max(np.abs(host(g)), initial=0.0)) for g in gradient)])
    assert found == pytest.approx((above - below) / (2 * step), rel=1e-6, abs=1e-6 * scale)


# ---------------------------------------------------------------------- against torch.func


class Layer(NamedTuple):
    weight: Any
    bias: Any


def _dense(p: Any, x: Any) -> Any:
    return (x @ p.weight.T + p.bias).tanh()


def _of_layers(layers: Any, x: Any) -> Any:
    for p in layers:
        x = _dense(p, x)
    return x


LAYERS = [Layer(normal(4, 3), normal(4)), Layer(normal(2, 4), normal(2, seed=1))]

SCALARS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "one tensor": (lambda x: (x.sin() * x.exp()).sum(), (normal(2, 3),)),
    "a number": (lambda x: x.sin() * x.exp(), (normal(),)),
    "a product": (lambda a, b: ((a @ b).tanh() ** 2).sum(), (normal(2, 3), normal(3, 2))),
    "three that broadcast": (
        lambda x, y, z: (x.sin() * y.exp() + z * x * y).sum() * z.cos().sum(),
        (normal(2, 3), normal(3), normal(2, 1)),
    ),
    "a dict": (
        lambda p, x: ((x @ p["w"].T + p["b"]).tanh() ** 3).mean(),
        ({"w": normal(2, 3), "b": normal(2)}, normal(4, 3)),
    ),
    "a list of named tuples": (lambda layers, x: (_of_layers(layers, x) ** 2).sum(), (LAYERS, normal(3, 3))),
    "a nest": (
        lambda t, u: (t[0]["a"] * t[1][0] * u).sin().sum() + (t[1][1] ** 3).sum() * t[0]["b"]["c"].exp().sum(),
        (({"a": normal(3), "b": {"c": normal(2)}}, [normal(3, seed=1), normal(2, 2)]), normal()),
    ),
}  # fmt: skip
"""Functions that also accept PyTorch's tensors, with arguments."""

TREES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "a vector": (lambda x: x.sin() * x.sum(), (normal(4),)),
    "a tall one": (lambda x: (x.reshape(2, 1) * x.reshape(1, 2)).exp().reshape(2, 2, 1) * x.sin(), (normal(2),)),
    "a wide one": (lambda x, y: (x.sin().sum() * y.sum()).reshape(1), (normal(3, 4), normal(2, 2))),
    "a tuple": (lambda x, y: (x @ y, x.sum() * y.exp()), (normal(2, 3), normal(3, 2))),
    "a dict of lists": (
        lambda p: {"a": [p["x"] * p["y"], p["x"].sum()], "b": p["y"].exp()},
        ({"x": normal(3), "y": normal(3, seed=1)},),
    ),
    "a named tuple": (lambda p, x: Layer(_dense(p, x), (p.bias**2).sum()), (LAYERS[0], normal(2, 3))),
    "one that ignores an argument": (lambda x, y: (x.sin(), x.cos() * 2), (normal(3), normal(2))),
}
"""The same for functions that return trees."""

every_scalar = pytest.mark.parametrize("name", list(SCALARS))
every_tree = pytest.mark.parametrize("name", list(TREES))


def like(tree: Any, seed: int) -> Any:
    leaves = [x for _, x in flatten(tree)]
    return rebuild(tree, [normal(*x.shape, seed=seed + i) for i, x in enumerate(leaves)])


@needs_torch
@every_scalar
def test_grad_and_value_and_grad_equal_torchs(name: str) -> None:
    function, arguments = SCALARS[name]
    theirs = to_torch(arguments)
    every = tuple(range(len(arguments)))
    for argnums in (0, len(arguments) - 1, every, every[::-1], (0,)):
        expected = torch.func.grad(function, argnums)(*theirs)
        assert_same(gf.grad(function, argnums)(*arguments), expected)
        value, gradient = gf.value_and_grad(function, argnums)(*arguments)
        assert_same(value, function(*theirs))
        assert_same(gradient, expected)
    assert_same(gf.grad(function, -1)(*arguments), torch.func.grad(function, len(arguments) - 1)(*theirs))


@needs_torch
@every_scalar
def test_hessian_equals_torchs(name: str) -> None:
    function, arguments = SCALARS[name]
    theirs = to_torch(arguments)
    assert_same(gf.hessian(function)(*arguments), torch.func.hessian(function)(*theirs))
    if len(arguments) > 1:
        ours, expected = gf.hessian(function, (0, 1))(*arguments), torch.func.hessian(function, (0, 1))(*theirs)
        assert_same(ours, expected)


@needs_torch
@every_scalar
def test_hvp_equals_torchs_jvp_of_its_grad(name: str) -> None:
    function, arguments = SCALARS[name]
    tangents = like(arguments, 5)
    theirs, their_tangents = to_torch(arguments), to_torch(tangents)
    gradient = torch.func.grad(function, tuple(range(len(arguments))))
    assert_same(gf.hvp(function, arguments, tangents), torch.func.jvp(gradient, theirs, their_tangents)[1])


@needs_torch
@every_tree
def test_vjp_and_jvp_equal_torchs(name: str) -> None:
    function, arguments = TREES[name]
    theirs, tangents = to_torch(arguments), like(arguments, 5)
    value, direction = gf.jvp(function, arguments, tangents)
    expected_value, expected = torch.func.jvp(function, theirs, to_torch(tangents))
    assert_same(value, expected_value)
    assert_same(direction, expected)
    value, back = gf.vjp(function, *arguments)
    _, their_back = torch.func.vjp(function, *theirs)
    for seed in (6, 60):
        cotangents = like(value, seed)
        assert_same(back(cotangents), their_back(to_torch(cotangents)))
    assert_same(value, expected_value)


@needs_torch
@every_tree
def test_jacobian_equals_torchs(name: str) -> None:
    function, arguments = TREES[name]
    theirs = to_torch(arguments)
    assert_same(gf.jacobian(function)(*arguments), torch.func.jacrev(function)(*theirs))
    every = tuple(range(len(arguments)))
    assert_same(gf.jacobian(function, every)(*arguments), torch.func.jacrev(function, every)(*theirs))


@needs_torch
@every_tree
def test_a_jacobian_of_a_jacobian_equals_torchs(name: str) -> None:
    function, arguments = TREES[name]
    ours, theirs = gf.jacobian(gf.jacobian(function)), torch.func.jacrev(torch.func.jacrev(function))
    assert_same(ours(*arguments), theirs(*to_torch(arguments)))


def _pairs(T: Any) -> dict[str, Callable[[Any], Any]]:
    """Compositions of transforms, by name; T is a namespace of transforms with PyTorch's names."""

    def cubic(x: Any) -> Any:
        return (x.sin() * x * x).sum() * x.exp().mean()

    def vector(x: Any) -> Any:
        return x.sin() * x.exp().sum()

    def direction(x: Any) -> Any:
        return T.jvp(vector, (x,), (x * x,))[1]

    return {
        "grad of grad": T.grad(lambda x: (T.grad(cubic)(x) ** 2).sum()),
        "grad of grad of grad": T.grad(lambda x: T.grad(lambda y: (T.grad(cubic)(y) * y).sum())(x).sin().sum()),
        "jacobian of grad": T.jacrev(T.grad(cubic)),
        "grad of jacobian": T.grad(lambda x: (T.jacrev(vector)(x) ** 2).sum()),
        "jacobian of jacobian of grad": T.jacrev(T.jacrev(T.grad(cubic))),
        "jvp of grad": lambda x: T.jvp(T.grad(cubic), (x,), (x.cos(),))[1],
        "grad through jvp": T.grad(lambda x: (direction(x) ** 2).sum()),
        "jacobian of jvp": T.jacrev(direction),
        "jvp of jvp": lambda x: T.jvp(direction, (x,), (x,))[1],
        "jvp of jacobian": lambda x: T.jvp(T.jacrev(vector), (x,), (x,))[1],
        "vjp of vjp": lambda x: T.vjp(lambda y: T.vjp(vector, y)[1](y.sin())[0], x)[1](x.exp())[0],
        "grad through a cotangent": T.grad(lambda x: (T.vjp(vector, x * 0 + 1)[1](x * x)[0] ** 2).sum()),
        "hessian of hessian": T.hessian(lambda x: (T.hessian(cubic)(x) ** 2).sum()),
    }


class _Ours:
    grad, jvp, vjp = staticmethod(gf.grad), staticmethod(gf.jvp), staticmethod(gf.vjp)
    jacrev, hessian = staticmethod(gf.jacobian), staticmethod(gf.hessian)


@needs_torch
@pytest.mark.parametrize("name", list(_pairs(_Ours)))
def test_compositions_equal_torchs(name: str) -> None:
    x = normal(3)
    assert_same(_pairs(_Ours)[name](x), _pairs(torch.func)[name](to_torch(x)), rtol=1e-9, atol=1e-11)


def test_derivatives_of_a_sine_of_every_order() -> None:
    function: Callable[..., Any] = gf.sin
    for order, expected in enumerate([math.sin, math.cos, lambda x: -math.sin(x), lambda x: -math.cos(x)] * 3):
        assert function(gf.tensor(0.7, dtype="float64")).item() == pytest.approx(expected(0.7), rel=1e-12), order
        function = gf.grad(function)


@every_scalar
def test_hvp_is_the_hessian_times_the_vector(name: str) -> None:
    function, arguments = SCALARS[name]
    every = tuple(range(len(arguments)))
    tangents = like(arguments, 5)
    product = gf.hvp(function, arguments, tangents)
    blocks = gf.hessian(function, every)(*arguments)
    inputs = [x for _, x in flatten(arguments)]
    flat = [b for _, b in flatten(blocks)]
    for i, (_, p) in enumerate(flatten(product)):
        row = flat[i * len(inputs) : (i + 1) * len(inputs)]
        expected = sum(np.tensordot(host(b), host(t), t.ndim) for b, (_, t) in zip(row, flatten(tangents), strict=True))
        np.testing.assert_allclose(host(p), expected, rtol=1e-10, atol=1e-11)


def test_hvp_does_not_form_the_hessian() -> None:
    """100,000 parameters: their Hessian would have 10^10 elements."""
    x = normal(100_000)
    (product,) = gf.hvp(lambda x: (x**3).sum() + x.sum() ** 2, (x,), (gf.ones_like(x),))
    np.testing.assert_allclose(host(product), 6 * host(x) + 2 * x.size, rtol=1e-10)


def test_transforms_on_a_device(device: str) -> None:
    values = np.array([0.5, -1.0, 2.0], "float32")
    x = gf.tensor(values, device=device)

    def cube(x: gf.Tensor) -> gf.Tensor:
        return x * x * x

    def total(x: gf.Tensor) -> gf.Tensor:
        return cube(x).sum()

    expected = {
        "grad": (gf.grad(total)(x), 3 * values**2),
        "rows": (gf.jacobian(cube)(x), np.diag(3 * values**2)),
        "columns": (gf.jacobian(lambda x: gf.concat([cube(x)] * 3))(x), np.concatenate([np.diag(3 * values**2)] * 3)),
        "hessian": (gf.hessian(total)(x), np.diag(6 * values)),
        "jvp": (gf.jvp(cube, (x,), (x,))[1], 3 * values**3),
        "hvp": (gf.hvp(total, (x,), (x,))[0], 6 * values**2),
        "vjp": (gf.vjp(cube, x)[1](x)[0], 3 * values**3),
    }
    for name, (found, e) in expected.items():
        assert found.device == x.device, name
        assert found.dtype is gf.float32, name
        np.testing.assert_allclose(host(found), e, rtol=1e-6, err_msg=name)


# ---------------------------------------------------------------------- fused operations

FUSED: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    f"linear {name}": (
        lambda x, w, b, name=name: gf.linear(x, w, b, activation=name),
        lambda x, w, b, name=name: _activate(name, x @ w.T + b),
        ((3, 4), (2, 4), (2,)),
    )
    for name in ACTIVATIONS
}


def _activate(name: str, z: Any) -> Any:
    """The activations in elementary operations."""
    positive = z > 0
    small = gf.where(positive, z * 0.0, z)
    return {
        "relu": lambda: gf.where(positive, z, z * 0.0),
        "leaky_relu": lambda: gf.where(positive, z, z * 0.01),
        "elu": lambda: gf.where(positive, z, gf.exp(small) - 1),
        "selu": lambda: gf.where(positive, z, (gf.exp(small) - 1) * 1.6732632423543772) * 1.0507009873554805,
        "mish": lambda: z * gf.tanh(gf.log(gf.exp(z) + 1)),
        "hardtanh": lambda: gf.clip(z, -1, 1),
        "softsign": lambda: z / (gf.where(positive, z, -z) + 1),
        "gelu": lambda: z * 0.5 * (gf.tanh((z + z * z * z * 0.044715) * math.sqrt(2 / math.pi)) + 1),
        "gelu_exact": lambda: z * 0.5 * (gf.erf(z * math.sqrt(0.5)) + 1),
        "silu": lambda: z / (gf.exp(-z) + 1),
        "sigmoid": lambda: 1 / (gf.exp(-z) + 1),
        "softplus": lambda: gf.log(gf.exp(z) + 1),
        "tanh": lambda: (gf.exp(z * 2) - 1) / (gf.exp(z * 2) + 1),
    }[name]()


def _norm(x: Any, w: Any, b: Any) -> Any:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / gf.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5) * w + b


def _log_probabilities(x: Any) -> Any:
    return x - gf.log(gf.exp(x).sum(axis=1, keepdims=True))


_LABELS = gf.tensor(np.array([2, 0, 2]))
_TARGETS = gf.softmax(normal(3, 4, seed=9))
_MASK = gf.dropout(gf.ones((3, 4), dtype="float64"), 0.4, generator=gf.Generator(3))
FUSED |= {
    "cross_entropy of labels": (
        lambda x: gf.cross_entropy(x, _LABELS),
        lambda x: -(_log_probabilities(x) * gf.one_hot(_LABELS, 4, "float64")).sum() / 3,
        ((3, 4),),
    ),
    "cross_entropy of probabilities": (
        lambda x, t: gf.cross_entropy(x, t, reduction="none"),
        lambda x, t: -(_log_probabilities(x) * t).sum(axis=1),
        ((3, 4), (3, 4)),
    ),
    "dropout": (lambda x: gf.dropout(x**3, 0.4, generator=gf.Generator(3)), lambda x: x**3 * _MASK, ((3, 4),)),
    "layer_norm": (lambda x, w, b: gf.layer_norm(x, (4,), w, b), _norm, ((3, 4), (4,), (4,))),
    "mse_loss": (gf.mse_loss, lambda x, y: ((x - y) * (x - y)).mean(), ((3, 4), (3, 4))),
    "softmax": (gf.softmax, lambda x: gf.exp(_log_probabilities(x)), ((3, 4),)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FUSED))
def test_fused_operations_agree_with_elementary_ones_to_the_third_order(name: str) -> None:
    """Each order is the gradient of a projection, nonlinear in the values, of the one before."""
    fused, elementary, shapes = FUSED[name]
    arguments = [normal(*shape, seed=20 + i) for i, shape in enumerate(shapes)]
    every = tuple(range(len(arguments)))

    def next_order(function: Any, seed: int) -> Any:
        def scalar(*xs: Any) -> Any:
            values = as_list(function(*xs))
            return dot([v + v * v for v in values], [normal(*v.shape, seed=seed) for v in values])

        return gf.grad(scalar, every)

    for order in range(4):
        values, expected = (as_list(f(*arguments)) for f in (fused, elementary))
        assert_same(values, expected, rtol=1e-9, atol=1e-10)
        if order < 3:
            fused, elementary = next_order(fused, 30 + order), next_order(elementary, 30 + order)


# ---------------------------------------------------------------------- arguments


def test_has_aux_passes_on_the_second_part_of_the_result() -> None:
    x = normal(3)

    def function(x: gf.Tensor) -> Any:
        y = x * x
        return y.sum(), {"squares": y, "n": 3, "none": None}

    gradient, aux = gf.grad(function, has_aux=True)(x)
    np.testing.assert_array_equal(host(gradient), 2 * host(x))
    np.testing.assert_array_equal(host(aux["squares"]), host(x) ** 2)
    assert not aux["squares"].requires_grad
    assert (aux["n"], aux["none"]) == (3, None)
    (value, aux), gradient = gf.value_and_grad(function, has_aux=True)(x)
    assert value.item() == (host(x) ** 2).sum()
    np.testing.assert_array_equal(host(gradient), 2 * host(x))
    assert list(aux) == ["squares", "n", "none"]


def test_aux_keeps_its_part_in_an_outer_computation() -> None:
    w = normal(3).requires_grad_()
    x = normal(3, seed=1)
    _, aux = gf.grad(lambda x: ((x * x).sum(), x * w), has_aux=True)(x)
    aux.sum().backward()
    np.testing.assert_array_equal(host(w.grad), host(x))


def test_keyword_arguments_and_other_arguments_are_passed_on() -> None:
    def function(x: gf.Tensor, how: str, labels: gf.Tensor, scale: float = 1.0) -> gf.Tensor:
        assert how == "sum"
        assert labels.dtype is gf.int64
        return (x[labels] * scale).sum()

    labels = gf.tensor(np.array([0, 0, 2]))
    assert gf.grad(function)(gf.tensor([1.0, 2.0, 3.0]), "sum", labels, scale=2.0).tolist() == [4.0, 0.0, 2.0]
    assert gf.jacobian(function)(gf.tensor([1.0, 2.0, 3.0]), "sum", labels=labels).tolist() == [2.0, 0.0, 1.0]


def test_python_numbers_are_differentiated_by_as_float32() -> None:
    gradient = gf.grad(lambda x, y: x * y)(2, 3.0)
    assert (gradient.item(), gradient.dtype, gradient.shape) == (3.0, gf.float32, ())
    assert gf.jvp(lambda x: x * x, (3.0,), (1.0,))[1].item() == 6.0
    assert gf.hessian(lambda x: x**3)(2.0).item() == 12.0


def test_the_types_of_containers_are_kept() -> None:
    tree = OrderedDict(b=[normal(2)], a=(Layer(normal(2), normal()),))
    gradient = gf.grad(lambda t: (t["b"][0] * t["a"][0].weight).sum() * t["a"][0].bias)(tree)
    assert type(gradient) is OrderedDict
    assert list(gradient) == ["b", "a"]
    assert type(gradient["b"]) is list
    assert type(gradient["a"]) is tuple
    assert type(gradient["a"][0]) is Layer


def test_unused_arguments_have_zero_gradients() -> None:
    x, y = normal(2, 3), gf.tensor([1.0, 2.0])
    gradient = gf.grad(lambda x, y: (y * y).sum())(x, y)
    assert (gradient.shape, gradient.dtype, gradient.device) == (x.shape, x.dtype, x.device)
    assert not host(gradient).any()
    assert gf.grad(lambda x: gf.tensor(3.0))(x).tolist() == np.zeros((2, 3)).tolist()
    assert gf.grad(lambda x: gf.grad(lambda y: y.sum())(x).sum())(x).tolist() == np.zeros((2, 3)).tolist()
    assert gf.jacobian(lambda x: gf.ones(2))(x).tolist() == np.zeros((2, 2, 3)).tolist()
    assert gf.hessian(lambda x: x.sum())(y).tolist() == np.zeros((2, 2)).tolist()
    assert gf.jvp(lambda x: gf.ones(2), (x,), (x,))[1].tolist() == [0.0, 0.0]
    assert gf.hvp(lambda x: x.sum(), (y,), (y,))[0].tolist() == [0.0, 0.0]
    _, back = gf.vjp(lambda x, y: y * 2, x, y)
    assert [g.tolist() for g in back(y)] == [np.zeros((2, 3)).tolist(), [2.0, 4.0]]


def test_the_dtype_of_a_jacobian_is_that_of_the_argument_by_rows_and_by_columns() -> None:
    """As for a gradient: float32 in, float32 out, whatever dtype the computation used."""
    x = gf.tensor([1.0, 2.0])
    wide = gf.jacobian(lambda x: x.astype("float64").sum())(x)
    tall = gf.jacobian(lambda x: gf.concat([x.astype("float64")] * 5) ** 2)(x)
    assert wide.dtype is gf.float32
    assert tall.dtype is gf.float32
    assert tall.tolist() == [[2.0, 0.0], [0.0, 4.0]] * 5


@pytest.mark.parametrize(
    ("function", "x", "shape"),
    [
        (lambda x: x * 2, gf.zeros((0, 2)), (0, 2, 0, 2)),
        (lambda x: x.sum(), gf.zeros(0), (0,)),
        (lambda x: x[:0], gf.zeros(3), (0, 3)),
        (lambda x: gf.concat([x, gf.ones(2)]), gf.zeros(0), (2, 0)),
        (lambda x: x[:0].reshape(0, 4), gf.zeros((3, 4)), (0, 4, 3, 4)),
    ],
)
def test_jacobians_without_elements(function: Any, x: gf.Tensor, shape: tuple[int, ...]) -> None:
    assert gf.jacobian(function)(x).shape == shape
    assert gf.jacobian(lambda x: {"a": function(x), "b": (x * x).sum()})(x)["a"].shape == shape


def test_derivatives_by_empty_tensors_only() -> None:
    x = gf.zeros((0, 2))
    assert gf.grad(lambda x: x.sum())(x).shape == (0, 2)
    assert gf.hessian(lambda x: (x * x).sum())(x).shape == (0, 2, 0, 2)
    assert gf.hvp(lambda x: (x * x).sum(), (x,), (x,))[0].shape == (0, 2)
    assert gf.jvp(lambda x: x * x, (x,), (x,))[1].shape == (0, 2)


# ---------------------------------------------------------------------- recording


def test_gradients_of_outer_tensors_are_left_alone() -> None:
    w, x = normal(3).requires_grad_(), normal(3, seed=1).requires_grad_()
    (w * x).sum().backward()
    before = [w.grad, x.grad]
    values = [g.tolist() for g in before]

    def loss(x: gf.Tensor) -> gf.Tensor:
        return (w * x * x).sum()

    gf.grad(loss)(x)
    gf.value_and_grad(loss)(x)
    gf.jacobian(lambda x: w * x)(x)
    gf.hessian(loss)(x)
    gf.hvp(loss, (x,), (x,))
    gf.jvp(loss, (x,), (x,))
    gf.vjp(loss, x)[1](gf.tensor(1.0, dtype="float64"))
    assert w.grad is before[0]
    assert x.grad is before[1]
    assert [w.grad.tolist(), x.grad.tolist()] == values


def test_closed_over_tensors_can_be_differentiated_by_afterwards() -> None:
    w, x = normal(3).requires_grad_(), normal(3, seed=1)
    gradient = gf.grad(lambda x: (w * x * x).sum())(x)
    np.testing.assert_array_equal(host(gradient), 2 * host(w) * host(x))
    gradient.sum().backward()
    np.testing.assert_array_equal(host(w.grad), 2 * host(x))
    w.zero_grad()
    jacobian = gf.jacobian(lambda x: w * w * x)(x)
    (jacobian.sum() * 3).backward()
    np.testing.assert_allclose(host(w.grad), 6 * host(w), rtol=1e-15)


def test_closed_over_tensors_that_were_computed_too() -> None:
    w, x = normal(3).requires_grad_(), normal(3, seed=1)
    e = gf.exp(w)
    gf.jvp(lambda x: e * x * x, (x,), (x,))[1].sum().backward()
    np.testing.assert_allclose(host(w.grad), 2 * np.exp(host(w)) * host(x) ** 2, rtol=1e-14)


def test_tensors_made_inside_a_function_can_be_differentiated_by_afterwards() -> None:
    made: list[gf.Tensor] = []

    def function(x: gf.Tensor) -> gf.Tensor:
        made.append(normal(3, seed=1).requires_grad_())
        return (made[-1] * x * x).sum()

    x = normal(3)
    gf.grad(function)(x).sum().backward()
    np.testing.assert_array_equal(host(made[0].grad), 2 * host(x))


def test_nothing_is_recorded_where_nothing_outside_needs_it() -> None:
    x = normal(3)
    value, gradient = gf.value_and_grad(lambda x: (x * x).sum())(x)
    (y, direction), (z, back) = gf.jvp(gf.sin, (x,), (x,)), gf.vjp(gf.sin, x)
    results = [
        value,
        gradient,
        y,
        direction,
        z,
        *back(x),
        gf.jacobian(gf.sin)(x),
        *gf.hvp(lambda x: gf.sin(x).sum(), (x,), (x,)),
    ]
    assert not any(t.requires_grad for t in results)
    assert not x.requires_grad


def test_inside_no_grad_derivatives_are_computed_and_not_recorded() -> None:
    x = normal(3).requires_grad_()
    w = normal(3, seed=1).requires_grad_()
    with gf.no_grad():
        gradient = gf.grad(lambda x: (w * x * x).sum())(x)
        second = gf.hessian(lambda x: (w * x * x).sum())(x)
        _, direction = gf.jvp(lambda x: w * x, (x,), (x,))
        assert not gf.is_grad_enabled()
    np.testing.assert_array_equal(host(gradient), 2 * host(w) * host(x))
    np.testing.assert_allclose(host(second), np.diag(2 * host(w)), rtol=1e-15)
    assert not gradient.requires_grad
    assert not second.requires_grad
    assert not direction.requires_grad
    assert gf.is_grad_enabled()


def test_no_grad_inside_a_function_makes_a_constant() -> None:
    def function(x: gf.Tensor) -> gf.Tensor:
        with gf.no_grad():
            c = x * x
        return (c * x).sum()

    x = normal(3)
    np.testing.assert_array_equal(host(gf.grad(function)(x)), host(x) ** 2)


@needs_torch
def test_a_gradient_penalty_inside_a_recorded_computation() -> None:
    """The gradient by the input is part of the loss: parameters get their gradients through it."""
    gf.manual_seed(4)
    model = gf.nn.MLP([3, 5, 1], activation="tanh", dtype="float64")
    x = normal(4, 3)

    def score(x: gf.Tensor) -> gf.Tensor:
        return model(x).sum()

    penalty = (gf.grad(score)(x) ** 2).sum() + model(x).mean()
    penalty.backward()

    parameters = {n: torch.tensor(host(p), requires_grad=True) for n, p in model.named_parameters()}
    t = torch.tensor(host(x), requires_grad=True)
    hidden = torch.tanh(t @ parameters["0.weight"].T + parameters["0.bias"])
    out = hidden @ parameters["1.weight"].T + parameters["1.bias"]
    (gradient,) = torch.autograd.grad(out.sum(), t, create_graph=True)
    ((gradient**2).sum() + out.mean()).backward()
    for name, p in model.named_parameters():
        assert_same(p.grad, parameters[name].grad)


@pytest.mark.parametrize("needed", [False, True])
def test_results_share_no_memory(needed: bool) -> None:
    x, v = normal(3), normal(3, seed=1)
    x.requires_grad_(needed)

    def function(x: gf.Tensor) -> gf.Tensor:
        return x + x.reshape(3)

    (value, back), tangent = gf.vjp(function, x), gf.jvp(lambda x: x.reshape(3), (x,), (v,))[1]
    results = [
        *back(v),
        *back(v),
        tangent,
        gf.grad(lambda x: x.sum())(x),
        *gf.grad(lambda a, b: (a + b).sum(), (0, 1))(x, x),
        *gf.hvp(lambda x: (x * x).sum(), (x,), (v,)),
        gf.jacobian(lambda x: x * 1.0)(x),
    ]
    arrays = [host_array(t) for t in [x, v, value, *results]]
    for i, a in enumerate(arrays):
        for b in arrays[i + 1 :]:
            assert not np.shares_memory(a, b)
    with gf.no_grad():
        for t in results:
            t += 100.0
    assert v.tolist() == normal(3, seed=1).tolist()


def host_array(t: gf.Tensor) -> np.ndarray:
    return np.asarray(t.array)


def test_a_pullback_can_be_called_repeatedly() -> None:
    _, back = gf.vjp(lambda x: gf.exp(x), normal(3))
    first = back(gf.ones(3, dtype="float64"))[0].tolist()
    for _ in range(3):
        assert back(gf.ones(3, dtype="float64"))[0].tolist() == first


def test_randomness_inside_a_function_is_drawn_once() -> None:
    gf.manual_seed(1)
    expected = gf.dropout(gf.ones(100), 0.5).tolist()
    gf.manual_seed(1)
    jacobian = gf.jacobian(lambda x: gf.dropout(x, 0.5))(gf.ones(100))
    assert np.diag(host(jacobian)).tolist() == expected


# ---------------------------------------------------------------------- batches


def _network(x: gf.Tensor) -> gf.Tensor:
    h = gf.layer_norm(gf.linear(x, normal(6, 4), normal(6), activation="gelu"), (6,))
    return gf.softmax(gf.linear(h, normal(5, 6), activation="tanh"))


@pytest.mark.parametrize("recorded", [False, True])
def test_the_number_of_rules_does_not_grow_with_the_number_of_rows(recorded: bool) -> None:
    counts = []
    for n in (1, 2, 40):
        x = normal(n, 4).requires_grad_(recorded)
        with observe(counter := Counter()):
            jacobian = gf.jacobian(_network)(x)
        assert jacobian.shape == (n, 5, n, 4)
        counts.append((len(counter.operations), len(counter.rules)))
    assert counts[0] == counts[1] == counts[2], f"operations and rules: {counts}"


def test_the_number_of_rules_does_not_grow_with_the_number_of_columns() -> None:
    counts = []
    for n in (3, 30):
        x = normal(n)
        with observe(counter := Counter()):
            jacobian = gf.jacobian(lambda x, n=n: gf.sin(gf.broadcast_to(x, (5, n))) * x)(x)
        assert jacobian.shape == (5, n, n)
        counts.append((len(counter.operations), len(counter.rules)))
    assert counts[0] == counts[1], f"operations and rules: {counts}"


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("largest", [1, 50, 200])
def test_large_jacobians_go_in_chunks(monkeypatch: pytest.MonkeyPatch, largest: int, recorded: bool) -> None:
    x = normal(3, 4).requires_grad_(recorded)
    with observe(whole := Counter()):
        expected = gf.jacobian(_network)(x)
    monkeypatch.setattr(jacobians, "_LARGEST_BATCH", largest)
    with observe(counter := Counter()):
        chunked = gf.jacobian(_network)(x)
    chunks = math.ceil(15 / max(1, largest // 18))  # 15 rows; the largest node has 18 elements
    assert len(counter.rules) == chunks * len(whole.rules)
    assert_same(chunked.detach(), expected.detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("largest", [1, 36, 60, 1 << 20])
def test_a_chunk_may_hold_rows_of_several_results(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    x = normal(3, 4)
    monkeypatch.setattr(jacobians, "_LARGEST_BATCH", largest)
    blocks = gf.jacobian(lambda x: (_network(x), x.sum(), [x, gf.ones(2, dtype="float64")], x[0] * 2))(x)
    assert_same(blocks[0], gf.jacobian(_network)(x), rtol=1e-13, atol=1e-15)
    eye = np.eye(12).reshape(3, 4, 3, 4)
    for block, expected in zip(
        [blocks[1], *blocks[2], blocks[3]], [np.ones((3, 4)), eye, np.zeros((2, 3, 4)), 2 * eye[0]], strict=True
    ):
        np.testing.assert_array_equal(host(block), expected)


def test_functions_without_a_batched_form_go_one_by_one_and_are_right() -> None:
    x, mask = normal(4, 3), gf.tensor(np.array([True, False, True, True]))
    with observe(Counter()):
        jacobian = gf.jacobian(lambda x: x[mask])(x)
    expected = np.eye(12).reshape(4, 3, 4, 3)[host(mask)]
    np.testing.assert_array_equal(host(jacobian), expected)


NAMESPACES = {"a backend": lambda: gf.get_backend("cpu"), "tensors": lambda: tensor_functions}
_BATCHED_CALLS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "add": lambda F, x, y, m: F.add(x, y),
    "subtract from a number": lambda F, x, y, m: F.subtract(1.0, x),
    "multiply by a row": lambda F, x, y, m: F.multiply(x, F.getitem(y, (0,))),
    "pow": lambda F, x, y, m: F.pow(F.abs(x), y),
    "where": lambda F, x, y, m: F.where(F.greater(x, y), x, 0.5),
    "where of a constant": lambda F, x, y, m: F.where(F.greater(m, 0.0), x, y),
    "clip": lambda F, x, y, m: F.clip(x, -0.5, 0.5),
    "sum": lambda F, x, y, m: F.sum(x, axis=0),
    "sum of all": lambda F, x, y, m: F.sum(x),
    "sum over two axes, kept": lambda F, x, y, m: F.sum(x, axis=(0, -1), keepdims=True),
    "mean": lambda F, x, y, m: F.mean(x, axis=-1, keepdims=True),
    "var": lambda F, x, y, m: F.var(x, axis=1),
    "max": lambda F, x, y, m: F.max(x, axis=1),
    "prod": lambda F, x, y, m: F.prod(x, axis=0),
    "cumulative_sum": lambda F, x, y, m: F.cumulative_sum(x, axis=1),
    "flip": lambda F, x, y, m: F.flip(x, axis=0),
    "flip of all": lambda F, x, y, m: F.flip(x),
    "argmax": lambda F, x, y, m: F.argmax(x, axis=1),
    "reshape": lambda F, x, y, m: F.reshape(x, (3, 2)),
    "reshape with -1": lambda F, x, y, m: F.reshape(x, (-1,)),
    "broadcast_to": lambda F, x, y, m: F.broadcast_to(x, (4, 2, 3)),
    "permute_dims": lambda F, x, y, m: F.permute_dims(x, (1, 0)),
    "permute_dims from the end": lambda F, x, y, m: F.permute_dims(x, (-1, 0)),
    "matrix_transpose": lambda F, x, y, m: F.matrix_transpose(x),
    "expand_dims and squeeze": lambda F, x, y, m: F.squeeze(F.expand_dims(x, axis=1), axis=1),
    "expand_dims at the end": lambda F, x, y, m: F.expand_dims(x, axis=-1),
    "expand_dims twice": lambda F, x, y, m: F.expand_dims(x, axis=(0, -1)),
    "squeeze of two axes": lambda F, x, y, m: F.squeeze(F.reshape(x, (1, 6, 1)), axis=(0, -1)),
    "concat": lambda F, x, y, m: F.concat([x, y], axis=1),
    "concat with a constant": lambda F, x, y, m: F.concat([x, m], axis=-1),
    "stack": lambda F, x, y, m: F.stack([x, y], axis=1),
    "stack with a constant": lambda F, x, y, m: F.stack([m, x], axis=-1),
    "matmul": lambda F, x, y, m: F.matmul(x, F.matrix_transpose(y)),
    "matmul by a constant": lambda F, x, y, m: F.matmul(x, F.matrix_transpose(m)),
    "matmul of a constant": lambda F, x, y, m: F.matmul(F.matrix_transpose(m), x),
    "matmul of batches": lambda F, x, y, m: F.matmul(F.expand_dims(x, axis=1), F.expand_dims(m, axis=2)),
    "getitem": lambda F, x, y, m: F.getitem(x, (slice(None), 1)),
    "getitem by an integer": lambda F, x, y, m: F.getitem(x, 1),
    "astype": lambda F, x, y, m: F.astype(x, m.dtype if F is not tensor_functions else gf.float64),
    "zeros_like": lambda F, x, y, m: F.add(F.zeros_like(x), F.ones_like(y)),
    "softmax": lambda F, x, y, m: F.softmax(x, 1),
    "softmax along the last": lambda F, x, y, m: F.softmax(x, -1),
    "log_softmax": lambda F, x, y, m: F.log_softmax(x, 0),
    "logsumexp": lambda F, x, y, m: F.logsumexp(x, (0, 1), False),
    "sigmoid": lambda F, x, y, m: F.sigmoid(x),
    "isfinite": lambda F, x, y, m: F.logical_not(F.isfinite(x)),
    "a 0-d sum": lambda F, x, y, m: F.sum(F.sum(x), axis=()),
}  # fmt: skip


@pytest.mark.parametrize("namespace", list(NAMESPACES))
@pytest.mark.parametrize("name", list(_BATCHED_CALLS))
def test_functions_of_batches_equal_a_loop(name: str, namespace: str) -> None:
    """Each function that a rule may call, on a batch and on each of its elements."""
    F = NAMESPACES[namespace]()
    rng = np.random.default_rng(5)
    xs, ys = (rng.normal(size=(4, 2, 3)) for _ in range(2))
    constant = rng.normal(size=(2, 3))

    def made(values: np.ndarray) -> Any:
        return gf.tensor(values) if F is tensor_functions else np.array(values)

    call = _BATCHED_CALLS[name]
    result = call(batched(F), Batch(made(xs)), Batch(made(ys)), made(constant))
    expected = np.stack([np.asarray(call(F, made(x), made(y), made(constant))) for x, y in zip(xs, ys, strict=True)])
    assert isinstance(result, Batch)
    assert result.shape == expected.shape[1:]
    assert result.ndim == expected.ndim - 1
    np.testing.assert_allclose(np.asarray(result.values), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_an_elementwise_function_of_the_contract_is_called_once_for_a_batch(name: str) -> None:
    calls = []

    def function(*inputs: Any) -> Any:
        calls.append(inputs)
        return inputs[0]

    getattr(Batching(SimpleNamespace(**{name: function})), name)(Batch(np.ones((4, 2))))
    assert len(calls) == 1


def test_batched_functions_of_plain_arrays_call_the_backend() -> None:
    F = batched(gf.get_backend("cpu"))
    x = np.arange(6.0).reshape(2, 3)
    assert isinstance(F, Batching)
    for name, call in _BATCHED_CALLS.items():
        result = call(F, x, x + 1, x - 1)
        assert not isinstance(result, Batch), name
        np.testing.assert_array_equal(result, call(F.F, x, x + 1, x - 1))


# ---------------------------------------------------------------------- functional_call


class Tied(gf.nn.Module):
    """Two names for one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = gf.nn.Linear(3, 3, bias=False, dtype="float64")
        self.second = gf.nn.Linear(3, 3, bias=False, dtype="float64")
        self.second.weight = self.first.weight

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return self.second(gf.tanh(self.first(x)))


def test_functional_call_makes_a_function_of_the_parameters() -> None:
    gf.manual_seed(2)
    model = gf.nn.MLP([3, 4, 2], activation="tanh", dtype="float64")
    x, t = normal(5, 3), gf.tensor(np.array([0, 1, 1, 0, 1]))
    own = dict(model.named_parameters())

    def loss(parameters: Any) -> gf.Tensor:
        return gf.cross_entropy(gf.nn.functional_call(model, parameters, x), t)

    gradient = gf.grad(loss)(own)
    assert all(p.grad is None for p in model.parameters())
    gf.cross_entropy(model(x), t).backward()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(host(gradient[name]), host(p.grad), rtol=1e-12, atol=1e-15, err_msg=name)
    hessian = gf.hessian(loss)(own)
    assert hessian["0.weight"]["1.bias"].shape == (4, 3, 2)
    product = gf.hvp(loss, (own,), (own,))[0]
    expected = sum(np.tensordot(host(hessian["0.weight"][name]), host(p), p.ndim) for name, p in own.items())
    np.testing.assert_allclose(host(product["0.weight"]), expected, rtol=1e-10, atol=1e-12)


def test_functional_call_replaces_some_parameters_temporarily() -> None:
    layer = gf.nn.Linear(2, 1, dtype="float64")
    x = normal(3, 2)
    expected = host(x @ layer.weight.T) + 7.0
    before = (layer.weight, layer.bias)
    np.testing.assert_allclose(host(gf.nn.functional_call(layer, {"bias": gf.tensor(np.array([7.0]))}, x)), expected)
    assert layer.weight is before[0]
    assert layer.bias is before[1]


def test_functional_call_replaces_a_tied_parameter_everywhere() -> None:
    gf.manual_seed(3)
    model, x = Tied(), normal(2, 3)
    own = dict(model.named_parameters())
    assert list(own) == ["first.weight"]
    gradient = gf.grad(lambda p: gf.nn.functional_call(model, p, x).sum())(own)
    model(x).sum().backward()
    np.testing.assert_allclose(host(gradient["first.weight"]), host(model.first.weight.grad), rtol=1e-14)
    assert model.second.weight is model.first.weight


def test_functional_call_refuses_an_unknown_name_and_a_wrong_shape() -> None:
    layer = gf.nn.Linear(2, 1)
    with pytest.raises(KeyError, match=r"Linear has no parameter 'wieght'; it has weight, bias"):
        gf.nn.functional_call(layer, {"wieght": gf.ones((1, 2))}, gf.ones(2))
    with pytest.raises(ValueError, match=r"weight has shape \(1, 2\); got \(2, 2\)"):
        gf.nn.functional_call(layer, {"weight": gf.ones((2, 2))}, gf.ones(2))
    with pytest.raises(KeyError, match=r"Tied has no parameter 'weight'; it has first.weight"):
        gf.nn.functional_call(Tied(), {"weight": gf.ones((3, 3))}, gf.ones(3))


def test_an_exception_in_forward_leaves_the_module_as_it_was() -> None:
    layer = gf.nn.Linear(2, 1)
    before = (layer.weight, layer.bias)
    with pytest.raises(ValueError, match="linear"):
        gf.nn.functional_call(layer, {"weight": gf.ones((1, 2))}, gf.ones(3))
    assert layer.weight is before[0]
    assert layer.bias is before[1]


# ---------------------------------------------------------------------- bad input


X = gf.tensor(np.array([1.0, 2.0]))
INTEGERS = gf.tensor(np.array([1, 2]))
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a vector": (lambda: gf.grad(lambda x: x * 2)(X), ValueError, r"tensor of shape \(2,\), .*: reduce it"),
    "one element with an axis": (lambda: gf.grad(lambda x: x[:1])(X), ValueError, r"shape \(1,\)"),
    "a float": (lambda: gf.grad(lambda x: 3.0)(X), TypeError, "returns a scalar tensor; it returned float"),
    "None": (lambda: gf.value_and_grad(lambda x: None)(X), TypeError, "it returned None"),
    "a tuple without has_aux": (lambda: gf.grad(lambda x: (x.sum(), 1))(X), TypeError, "it returned tuple"),
    "an array": (lambda: gf.grad(lambda x: host(x))(X), TypeError, "it returned ndarray"),
    "an int tensor": (lambda: gf.grad(lambda x: x.argmax())(X), TypeError, "result, a tensor .*int64"),
    "a bool tensor": (lambda: gf.jacobian(lambda x: x > 0)(X), TypeError, "result, a tensor .*bool"),
    "an int within": (lambda: gf.jacobian(lambda x: {"y": [x, x.argmax()]})(X), TypeError, r"result\['y'\]\[1\]"),
    "a float among results": (lambda: gf.vjp(lambda x: (x, 1.0), X), TypeError, r"result\[1\] is float"),
    "None of a jvp": (lambda: gf.jvp(lambda x: None, (X,), (X,)), TypeError, "returned None"),
    "a hessian of a vector": (lambda: gf.hessian(lambda x: x)(X), ValueError, "scalar"),
    "an hvp of a vector": (lambda: gf.hvp(lambda x: x, (X,), (X,)), ValueError, "scalar"),
    "an int argument": (lambda: gf.grad(lambda x: x.sum())(INTEGERS), TypeError, "argument 0, .*int64.*: convert it"),
    "an int in a tree": (lambda: gf.grad(lambda p: X.sum())({"n": INTEGERS}), TypeError, r"argument 0\['n'\]"),
    "a bool argument": (lambda: gf.grad(lambda x: 1.0)(True), TypeError, "argument 0 is bool"),
    "a string argument": (lambda: gf.jacobian(lambda x, s: x, 1)(X, "a"), TypeError, "argument 1 is str"),
    "an array as argument": (lambda: gf.grad(lambda x: x)(np.ones(2)), TypeError, "argument 0 is ndarray"),
    "None as argument": (lambda: gf.vjp(lambda x: x, None), ValueError, "nothing to differentiate by"),
    "no tensors": (lambda: gf.jacobian(lambda x: X)([]), ValueError, "jacobian has nothing to differentiate by"),
    "no argnums": (lambda: gf.grad(lambda x: x.sum(), ())(X), ValueError, "nothing to differentiate by"),
    "no primals": (lambda: gf.vjp(lambda: X), ValueError, "nothing to differentiate by"),
    "argnums out of range": (lambda: gf.grad(lambda x: x.sum(), 1)(X), ValueError, "argument 1, but .* got 1"),
    "argnums before the first": (lambda: gf.jacobian(lambda x: x, -2)(X), ValueError, "argument -2, but .* got 1"),
    "argnums of no arguments": (lambda: gf.grad(lambda: X)(), ValueError, "argument 0, but .* got 0"),
    "argnums twice": (lambda: gf.grad(lambda x, y: x.sum(), (0, 0))(X, X), ValueError, r"twice: \(0, 0\)"),
    "argnums twice, once from the end": (lambda: gf.hessian(lambda x, y: x.sum(), (1, -1))(X, X), ValueError, "twice"),
    "argnums True": (lambda: gf.grad(lambda x, y: x.sum(), True)(X, X), TypeError, "got True"),
    "argnums with a float": (lambda: gf.grad(lambda x, y: x.sum(), (0, 1.0))(X, X), TypeError, r"got \(0, 1.0\)"),
    "argnums a float": (lambda: gf.grad(lambda x, y: x.sum(), 1.0)(X, X), TypeError, "must be numbers .*; got 1.0"),
    "argnums a string": (lambda: gf.jacobian(lambda x: x, "x")(X), TypeError, "got 'x'"),
    "too many cotangents": (lambda: gf.vjp(lambda x: x, X)[1]((X, X)), ValueError, r"one tensor; got \[0\], \[1\]"),
    "another structure": (lambda: gf.vjp(lambda x: {"a": x}, X)[1]({"b": X}), ValueError, r"\['a'\]; got \['b'\]"),
    "a cotangent of another shape": (lambda: gf.vjp(gf.sin, X)[1](gf.ones(3)), ValueError, r"\(2,\).*; got a .*\(3,\)"),
    "a cotangent of another dtype": (lambda: gf.vjp(gf.sin, X)[1](gf.ones(2)), ValueError, "got a .*float32"),
    "a number as cotangent": (lambda: gf.vjp(gf.sin, X)[1](1.0), TypeError, "cotangent must be a .*; got float"),
    "a tangent of another shape": (lambda: gf.jvp(lambda x: x, (X,), (X[:1],)), ValueError, r"tangent\[0\]"),
    "a tangent of another dtype": (lambda: gf.jvp(gf.sin, (X,), (X.astype("float32"),)), ValueError, r"tangent\[0\]"),
    "too few tangents": (lambda: gf.jvp(lambda x, y: x, (X, X), (X,)), ValueError, "got 2 primals, 1 tangents"),
    "primals no tuple": (lambda: gf.jvp(lambda x: x, X, (X,)), TypeError, "primals as a tuple, .*; got Tensor"),
    "tangents no tuple": (lambda: gf.hvp(lambda x: x.sum(), (X,), X), TypeError, "takes tangents as a tuple"),
    "a tangent of an hvp": (lambda: gf.hvp(lambda x: x.sum(), (X,), (X[:1],)), ValueError, "must be a tensor of shape"),
    "None as tangent": (lambda: gf.jvp(lambda x: x, (X,), (None,)), ValueError, "got nothing"),
    "a tensor as a pair": (lambda: gf.grad(lambda x: x * x, 0, True)(X), TypeError, r"grad with has_aux .* a pair"),
    "nothing at all": (lambda: gf.jacobian(lambda x: {})(X), TypeError, "returns tensors; it returned {}"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_is_a_clear_error_and_changes_nothing(what: str) -> None:
    call, error, message = BAD[what]
    before = state()
    with pytest.raises(error, match=message):
        call()
    assert state() == before


class BoomError(Exception):
    pass


def _boom(*arguments: Any) -> Any:
    gf.dropout(gf.ones(2), 0.5)
    with gf.use_device("cpu"), gf.no_grad(), gf.enable_grad():
        raise BoomError


BOOMS: dict[str, Callable[[], Any]] = {
    "grad": lambda: gf.grad(_boom)(X),
    "value_and_grad": lambda: gf.value_and_grad(_boom)(X),
    "vjp": lambda: gf.vjp(_boom, X),
    "jvp": lambda: gf.jvp(_boom, (X,), (X,)),
    "jacobian": lambda: gf.jacobian(_boom)(X),
    "hessian": lambda: gf.hessian(_boom)(X),
    "hvp": lambda: gf.hvp(_boom, (X,), (X,)),
    "grad of grad": lambda: gf.grad(lambda x: gf.grad(_boom)(x).sum())(X),
    "checkpoint": lambda: gf.checkpoint(_boom, X),
    "grad of checkpoint": lambda: gf.grad(lambda x: gf.checkpoint(_boom, x))(X),
    "gradcheck": lambda: gf.gradcheck(_boom, X),
    "gradgradcheck": lambda: gf.gradgradcheck(_boom, X),
    "no_grad": lambda: gf.no_grad()(lambda: gf.grad(_boom)(X))(),
}


def _boom_in_anomaly() -> None:
    with gf.detect_anomaly():
        gf.grad(_boom)(X)


def _boom_in_a_rule() -> None:
    def rule(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        raise BoomError

    bad = gf.operation("bad", lambda F, x: F.add(x, 0.0), rule)
    gf.grad(lambda x: gf.checkpoint(lambda x: gf.dropout(bad(x), 0.5), x).sum())(X)


def _boom_in_a_hook() -> None:
    def hook(g: gf.Tensor) -> None:
        raise BoomError

    def function(x: gf.Tensor) -> gf.Tensor:
        x.register_hook(hook)
        return (x * 2).sum()

    gf.grad(function)(X)


BOOMS |= {"anomaly": _boom_in_anomaly, "a rule": _boom_in_a_rule, "a hook": _boom_in_a_hook}


@pytest.mark.parametrize("mode", ["recording", "no_grad", "detect_anomaly"])
@pytest.mark.parametrize("name", list(BOOMS))
def test_exceptions_inside_leave_every_global_state_as_it_was(name: str, mode: str) -> None:
    context: dict[str, Callable[[], Any]] = {
        "recording": gf.enable_grad, "no_grad": gf.no_grad, "detect_anomaly": gf.detect_anomaly
    }  # fmt: skip
    with context[mode]():
        before = state()
        with pytest.raises(BoomError):
            BOOMS[name]()
        assert state() == before
        y = gf.tensor([2.0], requires_grad=True) * 3.0
        assert y.requires_grad == (mode != "no_grad")
        assert gf.grad(lambda x: (x * x).sum())(X).tolist() == [2.0, 4.0]


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = state()
    yield
    assert state() == before


# ---------------------------------------------------------------------- trees


def test_none_is_an_empty_tree_and_keys_have_no_order() -> None:
    parameters = {"weight": X, "bias": None}
    gradient = gf.grad(lambda p: (p["weight"] * p["weight"]).sum())(parameters)
    assert gradient["bias"] is None
    assert gradient["weight"].tolist() == (X * 2).tolist()
    one, other = {"a": X, "b": X * 2}, {"b": X * 3, "a": X}
    (found,) = gf.hvp(lambda p: (p["a"] * p["b"] * p["b"]).sum(), (one,), (other,))
    direct = gf.hvp(lambda a, b: (a * b * b).sum(), (one["a"], one["b"]), (other["a"], other["b"]))
    assert [found["a"].tolist(), found["b"].tolist()] == [h.tolist() for h in direct]


def test_subclasses_of_dict_keep_their_type() -> None:
    given = collections.defaultdict(list, a=X)
    gradient = gf.grad(lambda p: p["a"].sum())(given)
    assert isinstance(gradient, collections.defaultdict)
    assert gradient.default_factory is list


def test_an_argument_that_the_function_freezes_still_has_its_gradient() -> None:
    def f(x: gf.Tensor) -> gf.Tensor:
        y = (x * x).sum()
        x.requires_grad_(False)
        return y

    assert gf.grad(f)(X).tolist() == (X * 2).tolist()


def test_numpy_numbers_keep_their_dtype() -> None:
    assert gf.grad(lambda x: x * x)(np.float64(0.1)).dtype is gf.float64
