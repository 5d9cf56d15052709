"""Every operation's value and its first and second derivatives: against PyTorch, and against central differences."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import CASES, FUNCTIONS, NONDIFFERENTIABLE, Case, torch_bce, torch_nll, torch_weighted

import gradflow as gf
from gradflow.ops.table import OPERATIONS

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch, the reference, is not installed")
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def as_list(out: Any) -> list[Any]:
    return list(out) if isinstance(out, (list, tuple)) else [out]


def cotangents(shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape)) for shape in shapes]


def leaves(case: Case, device: str, dtype: str = "float64", layout: Callable[[np.ndarray], Any] | None = None) -> list:
    """The inputs as tensors: floating ones in `dtype`, leaves where they need a gradient."""
    made = []
    for i, x in enumerate(case.inputs):
        t = gf.tensor(x.astype(dtype) if x.dtype.kind == "f" else x, device=device)
        if layout is not None and x.dtype.kind == "f":
            t = layout(t)
        made.append(t.requires_grad_(i in case.differentiable()))
    return made


def weighted(outs: list[Any], weights: list[Any]) -> Any:
    """The sum of all elements, each times its weight."""
    total = None
    for out, weight in zip(outs, weights, strict=True):
        term = (out * weight).sum()
        total = term if total is None else total + term
    return total


def take_gradients(tensors: list[Any]) -> list[np.ndarray]:
    """The gradients as NumPy arrays (zeros where there is none); clears them."""
    found = [t.backend.to_host(t.grad.array if t.grad is not None else gf.zeros_like(t).array) for t in tensors]
    for t in tensors:
        t.zero_grad()
    return found


class Derivatives:
    """Values, gradients of a weighted sum, and gradients of a weighted sum of those (by inputs and cotangents)."""

    def __init__(self, values: list[Any], first: list[Any], second: list[Any]) -> None:
        self.values, self.first, self.second = values, first, second


def differentiate(case: Case, device: str = "cpu", dtype: str = "float64", layout: Any = None) -> Derivatives:
    """Differentiate with gradflow: on arrays (an ordinary backward pass), recorded, and through the recorded pass."""
    inputs = leaves(case, device, dtype, layout)
    chosen = [inputs[i] for i in case.differentiable()]
    outs = as_list(case.call(*inputs))
    values = [o.backend.to_host(o.array) for o in outs]
    weights = [
        gf.tensor(w.astype(str(o.dtype)), device=device, requires_grad=True)
        for w, o in zip(cotangents([o.shape for o in outs], 1), outs, strict=True)
    ]
    weighted(outs, weights).backward()
    first = take_gradients([*chosen, *weights])
    weighted(as_list(case.call(*inputs)), weights).backward(create_graph=True)
    gradients = [t.grad for t in (*chosen, *weights)]
    for t in (*chosen, *weights):
        t.zero_grad()
    seeds = cotangents([t.shape for t in (*chosen, *weights)], 2)
    known = [(g, s) for g, s in zip(gradients, seeds, strict=True) if g is not None]
    again = [g.detach().numpy() for g, _ in known]
    for plain, recorded in zip([f for f, g in zip(first, gradients, strict=True) if g is not None], again, strict=True):
        scale = np.max(np.abs(plain), initial=1.0)
        bound = 64 * np.finfo(plain.dtype).eps * scale
        worst = np.max(np.abs(plain.astype("float64") - recorded.astype("float64")), initial=0.0)
        assert worst <= bound, f"the recorded backward differs from the plain one by {worst:.3g} (bound {bound:.3g})"
    scalar = weighted([g for g, _ in known], [gf.tensor(s.astype(str(g.dtype)), device=device) for g, s in known])
    if scalar.requires_grad:
        scalar.backward()
    return Derivatives(values, first, take_gradients([*chosen, *weights]))


def differentiate_torch(case: Case) -> Derivatives:
    assert case.torch is not None
    inputs = [torch.tensor(x, requires_grad=i in case.differentiable()) for i, x in enumerate(case.inputs)]
    chosen = [inputs[i] for i in case.differentiable()]
    outs = as_list(case.torch(torch, *inputs))
    weights = [torch.tensor(w, requires_grad=True) for w in cotangents([tuple(o.shape) for o in outs], 1)]
    wanted = [*chosen, *weights]

    def gradients(of: Any, **options: Any) -> list[Any]:
        if not of.requires_grad:
            return [torch.zeros_like(t) for t in wanted]
        return list(torch.autograd.grad(of, wanted, allow_unused=True, materialize_grads=True, **options))

    first = gradients(weighted(outs, weights), create_graph=True)
    seeds = [torch.tensor(s) for s in cotangents([tuple(t.shape) for t in wanted], 2)]
    second = gradients(weighted(first, seeds))
    return Derivatives(*([t.detach().numpy() for t in ts] for ts in (outs, first, second)))


def assert_close(what: str, actual: list[Any], expected: list[Any], rtol: float, atol: float) -> None:
    """|actual - expected| <= rtol |expected| + atol max(1, max |expected|), element by element."""
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, f"{what} {i} has shape {a.shape}, not {e.shape}"
        a, e = np.asarray(a, "float64"), np.asarray(e, "float64")
        bound = rtol * np.abs(e) + atol * np.max(np.abs(e), initial=1.0)
        excess = np.max(np.abs(a - e) / bound, initial=0.0)
        assert excess <= 1.0, f"{what} {i} is off by {excess:.3g} times its bound:\n{a}\nnot\n{e}"


# ---------------------------------------------------------------------- coverage


def test_every_function_has_a_case() -> None:
    covered = {name for case in CASES for name in case.covers}
    assert set(FUNCTIONS) - covered == set(), "functions without a case"
    assert all(hasattr(gf, name) for name in set(FUNCTIONS) - {"getitem"})
    assert set(gf.ops.__all__) > NONDIFFERENTIABLE


def test_case_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


def test_every_entry_of_the_table_is_recorded_by_a_case() -> None:
    seen: set[str] = set()

    def note(tensors: list[Any]) -> None:
        stack, known = [t._node for t in tensors if t._node is not None], set()
        while stack:
            node = stack.pop()
            if node in known or node.op is None:
                continue
            known.add(node)
            seen.add(node.op.name)
            stack += [p for p in node.parents if p is not None]

    for case in CASES:
        inputs = leaves(case, "cpu", "float32")
        outs = as_list(case.call(*inputs))
        note(outs)
        weighted(outs, [gf.ones_like(o) for o in outs]).backward(create_graph=True)
        note([t.grad for t in inputs if t.grad is not None])
    missing = set(OPERATIONS) - seen
    assert missing == {"to_device"}, f"never recorded: {missing} (to_device has test_device)"


# ---------------------------------------------------------------------- against PyTorch


@pytest.mark.slow
@needs_torch
@every_case
def test_value_and_derivatives_equal_those_of_torch(case: Case) -> None:
    ours, theirs = differentiate(case), differentiate_torch(case)
    assert_close("value", ours.values, theirs.values, rtol=1e-10, atol=1e-12)
    assert_close("first derivative", ours.first, theirs.first, rtol=1e-10, atol=1e-12)
    assert_close("second derivative", ours.second, theirs.second, rtol=1e-10, atol=1e-12)


@needs_torch
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_references_equal_torchs_own_losses(shape: tuple[int, ...], reduction: str, smoothing: float) -> None:
    """`cases` spells some losses out, since PyTorch has no gradient for their weights: they are the same losses."""
    rng = np.random.default_rng(0)
    x, w = torch.tensor(rng.normal(size=shape)), torch.tensor(rng.uniform(0.5, 2.0, 4))
    t = torch.tensor(rng.integers(0, 4, (shape[0], *shape[2:]) if len(shape) > 1 else ()))
    dense = torch.softmax(torch.tensor(rng.normal(size=shape)), min(1, len(shape) - 1))
    functional = torch.nn.functional
    for target in (t, dense):
        expected = functional.cross_entropy(x, target, w, reduction=reduction, label_smoothing=smoothing)
        torch.testing.assert_close(torch_weighted(torch, x, target, w, reduction, smoothing), expected)
    torch.testing.assert_close(torch_nll(torch, x, t, w, reduction), functional.nll_loss(x, t, w, reduction=reduction))
    p = torch.tensor(rng.uniform(0.5, 2.0, shape[-1]))
    torch.testing.assert_close(
        torch_bce(torch, x, dense, w.sum(), p, reduction),
        functional.binary_cross_entropy_with_logits(x, dense, w.sum(), reduction=reduction, pos_weight=p),
    )


# ---------------------------------------------------------------------- against central differences

STEP = 1e-5  # truncation is about STEP^2 f''' / 6, rounding about 2e-16 / STEP: both near 2e-11


def _numeric(function: Callable[[list[np.ndarray]], float], arrays: list[np.ndarray]) -> list[np.ndarray]:
    gradients = []
    for array in arrays:
        gradient = np.zeros(array.shape)
        for i in np.ndindex(array.shape):
            center = array[i]
            array[i] = center + STEP
            above = function(arrays)
            array[i] = center - STEP
            below = function(arrays)
            array[i] = center
            gradient[i] = (above - below) / (2 * STEP)
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=str)
def test_derivatives_equal_central_differences(case: Case) -> None:
    ours = differentiate(case)
    arrays = [np.array(x, dtype=x.dtype) for x in case.inputs]
    chosen = [arrays[i] for i in case.differentiable()]
    weights = cotangents([v.shape for v in ours.values], 1)
    seeds = cotangents([f.shape for f in ours.first], 2)
    moving = [*chosen, *weights]

    def value(_: list[np.ndarray]) -> float:
        outs = as_list(case.call(*[gf.tensor(a) for a in arrays]))
        return sum(float(np.sum(o.numpy() * w)) for o, w in zip(outs, weights, strict=True))

    def gradient(_: list[np.ndarray]) -> float:
        inputs = [gf.tensor(a, requires_grad=i in case.differentiable()) for i, a in enumerate(arrays)]
        outs = as_list(case.call(*inputs))
        weighted(outs, [gf.tensor(w) for w in weights]).backward()
        found = take_gradients([inputs[i] for i in case.differentiable()])
        found += [o.detach().numpy() for o in outs]  # the gradient by the cotangents
        return sum(float(np.sum(g * s)) for g, s in zip(found, seeds, strict=True))

    assert_close("first derivative", ours.first, _numeric(value, moving), rtol=1e-7, atol=2e-8)
    assert_close("second derivative", ours.second, _numeric(gradient, moving), rtol=1e-7, atol=2e-8)


# ---------------------------------------------------------------------- memory layouts


def _every_other(t: gf.Tensor) -> gf.Tensor:
    if t.ndim == 0:
        return t
    wide = gf.stack([t, t + 99.0], axis=-1).reshape(*t.shape[:-1], 2 * t.shape[-1])
    return wide[..., ::2].detach()


def _transposed(t: gf.Tensor) -> gf.Tensor:
    return t.T.clone().T.detach() if t.ndim != 1 else t[::-1].clone()[::-1].detach()


@pytest.mark.slow
@pytest.mark.parametrize("layout", [_every_other, _transposed], ids=["strided", "transposed"])
@every_case
def test_memory_layout_does_not_matter(case: Case, layout: Any) -> None:
    plain, other = differentiate(case), differentiate(case, layout=layout)
    for what in ("values", "first", "second"):
        assert_close(what, getattr(other, what), getattr(plain, what), rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------------- devices


@functools.cache
def on_the_cpu(case: Case) -> Derivatives:
    return differentiate(case)


@pytest.mark.slow
@every_case
def test_a_device_gives_the_values_and_derivatives_of_numpy(case: Case, other_device: str) -> None:
    """In float64: the value, and the first and second derivatives, by inputs and cotangents."""
    reference, ours = on_the_cpu(case), differentiate(case, other_device)
    for what in ("values", "first", "second"):
        found, expected = getattr(ours, what), getattr(reference, what)
        assert [a.dtype for a in found] == [a.dtype for a in expected]
        assert_close(what, found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@every_case
def test_float32_on_a_device_agrees_with_float64_on_the_cpu(case: Case, other_device: str) -> None:
    """Within 64 ulp of the largest number: sums here have at most 24 terms, and functions are right to 4 ulp."""
    check_float32(case, other_device)


@pytest.mark.slow
@every_case
def test_float32_on_the_cpu_agrees_with_float64(case: Case) -> None:
    check_float32(case, "cpu")


@functools.cache
def rounded(case: Case) -> tuple[Case, Derivatives]:
    """The case with inputs that float32 can hold, and its derivatives in float64 on the CPU."""
    inputs = tuple(x.astype("f4").astype("f8") if x.dtype == "f8" else x for x in case.inputs)
    case = dataclasses.replace(case, inputs=inputs)
    return case, differentiate(case)


def check_float32(case: Case, device: str) -> None:
    case, reference = rounded(case)
    ours = differentiate(case, device, "float32")
    eps = float(np.finfo("float32").eps)
    assert {str(a.dtype) for a in ours.values} == {case.dtype or "float32"}
    assert_close("value", ours.values, reference.values, rtol=0, atol=64 * eps)
    n = len(case.differentiable())
    # the cotangents are rounded to float32, too: one more ulp of each product
    assert_close("first derivative", ours.first[:n], reference.first[:n], rtol=0, atol=64 * eps)
