"""Every kernel of a backend, and its composed default on the same device, against the composed default in float64.

A case is a call of one kernel. It runs for each floating dtype and for arrays that are contiguous, strided (with NaN
between the elements) and transposed. Results lie within a bound that the case derives from the formula; masks, random
bits, moves and selections are equal to the bit. What the contract does not change stays as it was.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.backend import ACTIVATIONS, KERNELS, Backend
from gradflow.testing import assert_agree, eps, product_bound, sum_bound

ROOT = Path(__file__).resolve().parent.parent
REALS = ("float16", "float32", "float64")
WIDE = ("float32", "float64")
LAYOUTS = ("contiguous", "strided", "transposed")
NUMPY_NATIVE = {
    "layer_norm", "layer_norm_backward",
    "activate", "activate_backward", "softmax", "gemm", "linear", "linear_backward", "one_hot",
    "softmax_cross_entropy", "softmax_cross_entropy_backward", "squared_error", "random_bits", "dropout",
    "dropout_backward", "scatter_add", "sgd_step", "adam_step", "clip_global_norm",
}  # fmt: skip


@functools.cache
def composed(device: str) -> Backend:
    """The backend of a device with the composed defaults alone."""
    native = gf.get_backend(device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADFLOW_FUSED", "0")
        backend: Backend = type(native)(native.device.index)  # type: ignore[call-arg]
    assert set(backend.kernels().values()) == {"composed"}
    return backend


@dataclass(frozen=True)
class Case:
    """A call of `kernel` with `arguments`, whose floating arrays are cast to the dtype under test.

    `call(backend, *arguments)` gives the arrays to compare, by default the kernel's result. `bound(eps, *arguments)`
    says for each how far it may be from the float64 value; None: equal to the composed default in the same dtype.
    `changes`: the arguments that the kernel may change. `special`: infinities and NaN are among the arguments.
    `aliases`: a result may share memory with an argument.
    """

    kernel: str
    name: str
    arguments: tuple[Any, ...]
    bound: Callable[..., Sequence[Any]] | None = None
    call: Callable[..., Sequence[Any]] | None = None
    changes: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = REALS
    special: bool = False
    aliases: bool = False

    def run(self, backend: Backend, arguments: Sequence[Any]) -> list[Any]:
        """The results on a backend."""
        if self.call is not None:
            return list(self.call(backend, *arguments))
        return [getattr(backend, self.kernel)(*arguments)]

    def __str__(self) -> str:
        return f"{self.kernel}-{self.name}"


def cast(x: Any, dtype: str) -> Any:
    """A copy of an argument, its floating arrays in another dtype."""
    if isinstance(x, (tuple, list)):
        return type(x)(cast(part, dtype) for part in x)
    if not isinstance(x, np.ndarray):
        return x
    return x.astype(dtype) if x.dtype.kind == "f" else x.copy()


class Placed:
    """Arguments on a device in one of the layouts, and what must be as before after a call."""

    def __init__(self, backend: Backend, arguments: Sequence[Any], layout: str) -> None:
        self.backend, self.layout = backend, layout
        self.originals = [np.copy(x) for x in leaves(arguments)]
        self.wholes: list[tuple[Any, Any]] = []
        self.arguments = tuple(self._place(x) for x in arguments)

    def _place(self, x: Any) -> Any:
        if isinstance(x, (tuple, list)):
            return type(x)(self._place(part) for part in x)
        if not isinstance(x, np.ndarray):
            return x
        if self.layout == "transposed" and x.ndim > 1:
            return self.backend.permute_dims(self.backend.from_host(x.T.copy()), tuple(range(x.ndim))[::-1])
        if self.layout == "strided" and x.ndim:
            filler = np.nan if x.dtype.kind == "f" else True if x.dtype.kind == "b" else np.iinfo(x.dtype).max
            wide = np.full((*x.shape, 2), filler, x.dtype)
            wide[..., 0] = x
            whole = self.backend.from_host(wide)
            self.wholes.append((whole, wide[..., 1].copy()))
            return whole[..., 0]
        return self.backend.from_host(x)

    def check_the_rest(self, what: str, changes: Sequence[int]) -> None:
        """What is no argument to be changed must be as before, and so must be the memory between elements."""
        position = 0
        for i, argument in enumerate(self.arguments):
            for x in leaves([argument]):
                if i not in changes:
                    found = self.backend.to_host(x)
                    same = np.array_equal(found, self.originals[position], equal_nan=found.dtype.kind == "f")
                    assert same, f"{what}: argument {i} was changed"
                position += 1
        for whole, filler in self.wholes:
            found = self.backend.to_host(whole)[..., 1]
            assert np.array_equal(found, filler, equal_nan=found.dtype.kind == "f"), f"{what}: wrote between elements"


def leaves(x: Any) -> list[Any]:
    """The arrays among arguments."""
    if isinstance(x, (tuple, list)):
        return [array for part in x for array in leaves(part)]
    return [x] if hasattr(x, "dtype") else []


def assert_result(what: str, found: np.ndarray, expected: np.ndarray, dtype: str, bound: Any) -> None:
    """Within the bound, or equal where there is none; infinities and NaN in the same places."""
    if bound is not None:
        kind = np.dtype(dtype) if expected.dtype.kind == "f" else expected.dtype
        assert found.dtype == kind, f"{what}: {found.dtype}, not {kind}"
        bound = (2 if dtype == "float64" else 1) * bound + 64 * float(np.finfo(dtype).smallest_subnormal)
    assert_agree(what, found, expected, bound)


def check(device: str, case: Case, dtype: str) -> None:
    """Run a case on a device, native and composed, in every layout."""
    native = gf.get_backend(device)
    if not native.supports(dtype):
        pytest.skip(f"{device} has no {dtype}")
    given = cast(case.arguments, dtype)
    exact = cast(given, "float64")
    quiet: Any = functools.partial(np.errstate, all="ignore") if case.special else contextlib.nullcontext
    with quiet():
        results = case.run(composed("cpu"), cast(given, dtype) if case.bound is None else cast(exact, "float64"))
    expected = [None if x is None else np.array(x) for x in results]
    bounds: Sequence[Any] = [None] * len(expected)
    if case.bound is not None:
        with np.errstate(all="ignore"):
            bounds = case.bound(eps(dtype), *exact)
    assert len(bounds) == len(expected)
    for kind, backend in (("native", native), ("composed", composed(device))):
        for layout in LAYOUTS:
            what = f"{case} {dtype} {layout}, {kind} on {device}"
            placed = Placed(backend, given, layout)
            with quiet():
                found = case.run(backend, placed.arguments)
            for i, (x, y, bound) in enumerate(zip(found, expected, bounds, strict=True)):
                assert (x is None) == (y is None), f"{what}: result {i} is {x!r}"
                if y is not None:
                    assert_result(f"{what}, result {i}", backend.to_host(x), y, dtype, bound)
            placed.check_the_rest(what, case.changes)
            if device == "cpu" and not case.aliases:
                changed = [id(x) for i in case.changes for x in leaves([placed.arguments[i]])]
                for x, y in itertools.product([x for x in found if x is not None and id(x) not in changed],
                                              leaves(placed.arguments)):  # fmt: skip
                    assert not np.shares_memory(x, y), f"{what}: a result shares memory with an argument"


# ---------------------------------------------------------------------- cases: activations and rows


def normal(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape) * scale)


def name_of(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "0d"


SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 80.0, -80.0, 1e-6, -1e-6, 3.0, -3.0])
PARAMETERS = [*((name, ACTIVATIONS[name].parameter) for name in ACTIVATIONS), ("leaky_relu", 0.3), ("elu", 0.7)]


def activation_bound(e: float, x: np.ndarray, name: str, parameter: float) -> Sequence[Any]:
    # the tanh form of GELU adds 1 and tanh, which nearly cancel for negative x
    value = np.abs(ACTIVATIONS[name].forward(composed("cpu"), x, parameter))
    return [8 * e * (value + (np.abs(x) if name == "gelu" else 0.0))]


def slope_bound(e: float, g: Any, x: Any, name: str | None) -> Any:
    """Of the VJP of an activation at x: the terms of a slope, which may cancel, times g."""
    size = {"gelu": 1 + np.abs(x) + np.abs(x) ** 3 / 8, "silu": 1 + np.abs(x)}.get(name or "", 1.0)
    return 16 * e * np.abs(g) * size


def activation_cases() -> list[Case]:
    cases = []
    for name, parameter in PARAMETERS:
        title = f"{name}-{parameter:g}"
        exact = name == "relu"
        for shape in [(3, 5), (0, 5), (1, 33), (7,), (), (2, 3, 4)]:
            x = normal(shape, 1, 3.0)
            saved = x if ACTIVATIONS[name].saves == "x" else np.asarray(composed("cpu").activate(x, name, parameter))
            cases.append(
                Case("activate", f"{title}-{name_of(shape)}", (x, name, parameter), None if exact else activation_bound)
            )
            cases.append(
                Case(
                    "activate_backward", f"{title}-{name_of(shape)}", (normal(shape, 2), saved, name, parameter),
                    None if exact else lambda e, g, saved, name, _p: [slope_bound(e, g, saved, name)],
                )
            )  # fmt: skip
        cases.append(
            Case("activate", f"{title}-special", (SPECIAL, name, parameter), activation_bound, special=True)
        )  # fmt: skip
        if ACTIVATIONS[name].saves == "x":
            cases.append(
                Case(
                    "activate_backward", f"{title}-special", (normal(SPECIAL.shape, 2), SPECIAL, name, parameter),
                    lambda e, g, saved, name, _p: [slope_bound(e, g, saved, name)], special=True,
                )
            )  # fmt: skip
    pairs = np.array(list(itertools.product([np.inf, -np.inf, np.nan, 2.0], [0.0, -0.0, 1.0, 1e-30, np.inf]))).T
    cases.append(Case("activate_backward", "relu-special", (*pairs.copy(), "relu", 0.0), special=True))
    return cases


def softmax_parts(x: np.ndarray, axis: Any) -> tuple[Any, Any, Any, int]:
    """x less its maximum, log of the sum of its exponentials, the softmax, and the number of terms."""
    shifted = x - x.max(axis=axis, keepdims=True)
    total = np.exp(shifted).sum(axis=axis, keepdims=True)
    return shifted, np.log(total), np.exp(shifted) / total, x.shape[axis]


def softmax_bound(e: float, x: np.ndarray, axis: int) -> Sequence[Any]:
    shifted, _, p, n = softmax_parts(x, axis)
    return [e * p * (np.abs(shifted) + n + 8)]


def log_softmax_bound(e: float, x: np.ndarray, axis: int) -> Sequence[Any]:
    shifted, log_total, _, n = softmax_parts(x, axis)
    return [e * (2 * np.abs(shifted) + log_total + n + 8)]


def logsumexp_bound(e: float, x: np.ndarray, axis: Any, keepdims: bool) -> Sequence[Any]:
    top = np.max(np.where(np.isfinite(x), np.abs(x), 0.0), axis=axis, keepdims=keepdims)
    return [e * (2 * top + 2 * np.log(x.size) + x.size + 8)]


def row_cases() -> list[Case]:
    cases = []
    shapes = [((3, 10), (-1, 0)), ((1, 1), (1,)), ((0, 4), (1,)), ((4, 33), (1,)), ((2, 700), (-1, 0)), ((5,), (0,)),
              ((2, 3, 4), (0, 1, 2))]  # fmt: skip
    for shape, axes in shapes:
        for axis in axes:
            title, x = f"{name_of(shape)}-axis{axis}", normal(shape, 3, 8.0)
            cases.append(Case("softmax", title, (x, axis), softmax_bound))
            cases.append(Case("log_softmax", title, (x, axis), log_softmax_bound))
    masked = np.array([[0.5, -np.inf, 2.0], [-np.inf, 1.0, -np.inf]])
    cases.append(Case("softmax", "masked", (masked, 1), lambda e, x, _a: [8 * e]))
    cases.append(Case("log_softmax", "masked", (masked, 1), lambda e, x, _a: [16 * e]))
    for shape, axis in [
        ((3, 10), 1), ((3, 10), 0), ((3, 10), None), ((2, 3, 4), (0, 2)), ((2, 3, 4), (1,)), ((), None), ((0, 4), 1),
        ((1, 700), -1),
    ]:  # fmt: skip
        for keepdims in (False, True):
            arguments = (normal(shape, 4, 8.0), axis, keepdims)
            cases.append(Case("logsumexp", f"{name_of(shape)}-{axis}-{keepdims}", arguments, logsumexp_bound))
    infinite = np.array([[-np.inf, -np.inf, -np.inf], [1.0, np.inf, -np.inf], [-np.inf, 2.0, 1.0], [np.nan, 1.0, 2.0]])
    cases.append(Case("logsumexp", "special", (infinite, 1, False), logsumexp_bound, special=True))
    return cases


# ---------------------------------------------------------------------- cases: linear layers


def run_gemm(B: Any, a: Any, b: Any, out: Any, accumulate: bool) -> Sequence[Any]:
    result = B.gemm(a, b, out, accumulate)
    assert result is out
    return [result]


def gemm_bound(e: float, a: Any, b: Any, out: Any, accumulate: bool) -> Sequence[Any]:
    product = product_bound(a, b, "float64") / eps("float64")
    return [e * (product + 2 * (np.abs(out) + np.abs(a) @ np.abs(b) if accumulate else 0.0))]


def affine(e: float, x: Any, weight: Any, bias: Any) -> tuple[np.ndarray, np.ndarray]:
    """x @ weight.T + bias, and its bound."""
    z, size = x @ weight.T, np.abs(x) @ np.abs(weight.T)
    if bias is not None:
        z, size = z + bias, size + np.abs(bias)
    return z, (x.shape[-1] + 2) * e * size


def linear_bound(e: float, x: Any, weight: Any, bias: Any, activation: str | None, parameter: float) -> Sequence[Any]:
    z, error = affine(e, x, weight, bias)
    return [1.2 * error + (0.0 if activation is None else 8 * e * np.abs(z))]  # no slope is above 1.2


def run_linear_backward(
    B: Any, g: Any, x: Any, weight: Any, bias: Any, into: Any, activation: Any, parameter: Any, needs: Any, keep: bool
) -> Sequence[Any]:
    out, residual = B.linear(x, weight, bias, activation, parameter)
    before = B.to_host(out)
    found = B.linear_backward(
        g, out, x, weight, bias, activation, parameter, residual if keep else None, needs, into
    )  # fmt: skip
    assert [f is not None for f in found] == list(needs)
    for gradient, buffer in zip(found, into, strict=True):
        assert buffer is None or gradient is buffer, "a gradient is not in the buffer for it"
    assert np.array_equal(B.to_host(out), before), "the result was changed"
    return list(found)


def linear_backward_bound(
    e: float, g: Any, x: Any, weight: Any, bias: Any, into: Any, activation: Any, parameter: Any, needs: Any, keep: bool
) -> Sequence[Any]:
    z, error = affine(e, x, weight, bias)
    slope = 0.0 if activation is None else slope_bound(e, g, z, activation) + 1.2 * np.abs(g) * error
    size, slope = 1.2 * np.abs(g), slope + 0 * g
    wide, rows, columns = np.abs(weight), (-1, weight.shape[0]), (-1, weight.shape[1])
    gx = weight.shape[0] * e * (size @ wide) + slope @ wide
    n = g.size // weight.shape[0]
    flat = np.abs(x).reshape(columns)
    gw = n * e * (size.reshape(rows).T @ flat) + slope.reshape(rows).T @ flat
    gb = sum_bound(size.reshape(rows), 0, "float64") * e / eps("float64") + slope.reshape(rows).sum(axis=0)
    return [bound if need else None for bound, need in zip((gx, gw, gb), needs, strict=True)]


def linear_case(
    shape: tuple[int, ...],
    features: int,
    activation: str | None,
    with_bias: bool,
    needs: tuple[bool, bool, bool] = (True, True, True),
    buffers: bool = False,
    keep: bool = True,
) -> Case:
    x, weight = normal(shape, 5), normal((features, shape[-1]), 6)
    bias = normal((features,), 7) if with_bias else None
    if not with_bias:
        needs = (*needs[:2], False)
    parameter = 0.0 if activation is None else ACTIVATIONS[activation].parameter
    z = affine(0.0, x, weight, bias)[0]
    g = np.where(np.abs(z) < 0.05, 0.0, normal(z.shape, 8))  # a sign of z that rounding decides decides a slope
    into = tuple(
        np.full(part.shape, np.nan) if part is not None and buffers and need else None
        for part, need in zip((x, weight, bias), needs, strict=True)
    )
    title = "-".join(
        [name_of(shape), str(features), str(activation), "bias" if with_bias else "plain",
         "".join("ny"[n] for n in needs), *["buffers"] * buffers, *["recompute"] * (not keep)]
    )  # fmt: skip
    return Case(
        "linear_backward", title, (g, x, weight, bias, into, activation, parameter, needs, keep),
        linear_backward_bound, run_linear_backward, changes=(4,),
    )  # fmt: skip


def linear_cases() -> list[Case]:
    cases = []
    for n, k, m in [(3, 4, 5), (1, 1, 1), (0, 3, 2), (3, 0, 2), (2, 3, 0), (33, 65, 17)]:
        for accumulate in (False, True):
            out = normal((n, m), 9) if accumulate else np.full((n, m), np.nan)
            arguments = (normal((n, k), 10), normal((k, m), 11), out, accumulate)
            cases.append(Case("gemm", f"{n}x{k}x{m}-{accumulate}", arguments, gemm_bound, run_gemm, changes=(2,)))
    shapes = [((3, 5), 4), ((0, 5), 4), ((1, 5), 3), ((5,), 4), ((2, 3, 5), 4), ((0, 3, 5), 2), ((33, 17), 9)]
    layers = {
        (shape, m, name, bias) for shape, m in shapes for name in (None, "relu", "gelu") for bias in (True, False)
    }
    layers |= {((3, 5), 4, name, bias) for name in ACTIVATIONS for bias in (True, False)}
    for shape, m, name, bias in sorted(layers, key=str):
        title = f"{name_of(shape)}-{m}-{name}-{'bias' if bias else 'plain'}"
        arguments = (
            normal(shape, 5), normal((m, shape[-1]), 6), normal((m,), 7) if bias else None, name,
            0.0 if name is None else ACTIVATIONS[name].parameter,
        )  # fmt: skip
        cases.append(
            Case("linear", title, arguments, linear_bound, lambda B, *arguments: [B.linear(*arguments)[0]])
        )  # fmt: skip
        for buffers in (False, True):
            cases.append(linear_case(shape, m, name, bias, buffers=buffers))
    for needs in itertools.product((True, False), repeat=3):
        for buffers in (False, True):
            for name in (None, "tanh", "silu"):
                cases.append(linear_case((4, 3), 2, name, True, needs, buffers))
    cases += [linear_case(shape, 4, name, True, keep=False) for name in ACTIVATIONS for shape in [(6, 3), (2, 2, 3)]]
    return list({str(case): case for case in cases}.values())


# ---------------------------------------------------------------------- cases: layer norm


def norm_parts(e: float, x: Any, axes: Any, epsilon: float) -> tuple[Any, Any, Any, Any, int]:
    """The normalised x and its bound, the scale and its relative bound, and the number of terms."""
    n = int(np.prod([x.shape[a] for a in axes]))
    centred = x - x.mean(axis=axes, keepdims=True)
    scale = 1 / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)
    shift = (n + 2) * e * np.abs(x).max(axis=axes, keepdims=True, initial=0)
    relative = 2 * shift * scale + (n + 8) * e
    return centred * scale, shift * scale + np.abs(centred * scale) * relative, scale, relative, n


def layer_norm_bound(e: float, x: Any, weight: Any, bias: Any, axes: Any, epsilon: float) -> Sequence[Any]:
    value, error, _, _, _ = norm_parts(e, x, axes, epsilon)
    factor = 1.0 if weight is None else np.abs(weight)
    return [error * factor + 4 * e * (np.abs(value) * factor + (0.0 if bias is None else np.abs(bias)))]


def run_layer_norm_backward(
    B: Any, g: Any, x: Any, weight: Any, axes: Any, epsilon: float, needs: Any, keep: bool
) -> Sequence[Any]:
    residual = B.layer_norm(x, weight, None, axes, epsilon)[1] if keep else None
    found = B.layer_norm_backward(g, x, weight, axes, epsilon, residual, needs)
    assert [f is not None for f in found] == list(needs)
    return list(found)


def layer_norm_backward_bound(
    e: float, g: Any, x: Any, weight: Any, axes: Any, epsilon: float, needs: Any, keep: bool
) -> Sequence[Any]:
    value, error, scale, relative, n = norm_parts(e, x, axes, epsilon)
    rows = g.size // max(n, 1)
    largest = np.abs(g if weight is None else g * weight).max(axis=axes, keepdims=True, initial=0)
    size = np.abs(value).max(axis=axes, keepdims=True, initial=0)
    wrong = np.abs(error).max(axis=axes, keepdims=True, initial=0)
    gx = scale * largest * ((2 + size**2) * (relative + (n + 8) * e) + 3 * size * wrong) + np.zeros_like(x)
    leading = tuple(range(x.ndim - len(axes)))
    gw = ((rows + 2) * e * np.abs(g * value) + np.abs(g) * error).sum(axis=leading)
    gb = ((rows + 2) * e * np.abs(g)).sum(axis=leading)
    return [bound if need else None for bound, need in zip((gx, gw, gb), needs, strict=True)]


def layer_norm_cases() -> list[Case]:
    cases = []
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((3, 10), (1,)), ((1, 10), (1,)), ((0, 4), (1,)), ((5, 1), (1,)), ((7,), (0,)), ((2, 3, 4), (2,)),
        ((2, 3, 4), (1, 2)), ((3, 2), (0, 1)), ((4, 300), (1,)), ((300, 33), (1,)),
    ]  # fmt: skip
    for shape, axes in shapes:
        inner = tuple(shape[a] for a in axes)
        x, g, leading = normal(shape, 12) * 2 + 0.5, normal(shape, 13), len(axes) < len(shape)
        for weighted, shifted in itertools.product((True, False), repeat=2):
            weight, bias = (normal(inner, 14) if weighted else None, normal(inner, 15) if shifted else None)
            title = f"{name_of(shape)}-{len(axes)}-{'weight' if weighted else ''}{'bias' if shifted else ''}"
            cases.append(
                Case(
                    "layer_norm", title, (x, weight, bias, axes, 1e-5), layer_norm_bound,
                    lambda B, *arguments: [B.layer_norm(*arguments)[0]],
                )
            )  # fmt: skip
            if not shifted:
                continue
            every = itertools.product((True, False), repeat=3) if shape == (3, 10) else [(True, weighted, True)]
            for needs, keep in itertools.product(every, (True, False)):
                cases.append(
                    Case(
                        "layer_norm_backward",
                        f"{title}-{''.join('ny'[n] for n in needs)}{'' if keep else '-recompute'}",
                        (g, x, weight, axes, 1e-5, needs, keep), layer_norm_backward_bound, run_layer_norm_backward,
                        aliases=not leading,
                    )
                )  # fmt: skip
    return cases


# ---------------------------------------------------------------------- cases: losses


def dense_target(target: Any, logits: Any) -> Any:
    return target if target.ndim == 2 else np.eye(logits.shape[1])[target.astype(np.int64)]


def loss_bound(e: float, logits: Any, target: Any, reduction: str) -> Sequence[Any]:
    shifted, log_total, _, n = softmax_parts(logits, 1)
    t, error = dense_target(target, logits), e * (2 * np.abs(shifted) + log_total + n + 8)
    size = np.abs(shifted) + log_total
    terms = np.where(t != 0, np.abs(t) * (error + (n + 2) * e * size), 0.0)
    losses = np.where(t != 0, np.abs(t) * size, 0.0).sum(axis=1)
    rows = terms.sum(axis=1)
    if reduction == "none":
        return [rows]
    total = rows.sum() + (len(rows) + 4) * e * losses.sum()
    return [total / len(rows) if reduction == "mean" else total]


def run_loss_backward(B: Any, g: Any, logits: Any, target: Any, reduction: str, needs: Any, keep: bool) -> Any:
    residual = B.softmax_cross_entropy(logits, target, reduction)[1] if keep else None
    found = B.softmax_cross_entropy_backward(g, logits, target, reduction, residual, needs)
    assert [f is not None for f in found] == list(needs)
    again = B.softmax_cross_entropy_backward(g, logits, target, reduction, residual, needs)
    for x, y in zip(found, again, strict=True):  # a second pass (retain_graph) has the same residual
        assert x is None or np.array_equal(B.to_host(x), B.to_host(y)), "the residual was changed"
    return list(found)


def loss_backward_bound(
    e: float, g: Any, logits: Any, target: Any, reduction: str, needs: Any, keep: bool
) -> Sequence[Any]:
    shifted, log_total, p, n = softmax_parts(logits, 1)
    t = dense_target(target, logits)
    g = np.abs(g).reshape(-1, 1) / (logits.shape[0] if reduction == "mean" else 1)
    total = t.sum(axis=1, keepdims=True)
    gl = g * e * (total * p * (np.abs(shifted) + 2 * n + 16) + (n + 8) * t)
    gt = g * e * (6 * np.abs(shifted) + 6 * log_total + n + 8)
    return [bound if need else None for bound, need in zip((gl, gt), needs, strict=True)]


def loss_cases() -> list[Case]:
    cases = []
    random = np.random.default_rng(16)
    for labels, classes in [
        (np.array([0, 9, 3, 3]), 10), (np.array([[1, 0], [2, 2]]), 3), (np.array(2), 4), (np.array([], np.int64), 5),
        (np.array([0, 0]), 1), (random.integers(0, 300, 77), 300), (np.array([5, 255, 0], np.uint8), 300),
        (np.array([5, 127], np.int8), 300), (np.array([1, 2], np.int32), 4), (np.array([3, 1], np.uint64), 4),
    ]:  # fmt: skip
        for dtype in ("float16", "float32", "float64", "int64", "bool"):
            cases.append(
                Case(
                    "one_hot", f"{name_of(labels.shape)}-{labels.dtype}-{classes}-{dtype}", (labels, classes, dtype),
                    call=lambda B, labels, classes, dtype: [B.one_hot(labels, classes, B.dtypes[dtype])],
                    dtypes=("float32",),
                )
            )  # fmt: skip
    for rows, classes in [(3, 10), (1, 1), (1, 5), (5, 33), (2, 700), (0, 4), (300, 3)]:
        x = normal((rows, classes), 17, 6.0)
        p = composed("cpu").softmax(normal((rows, classes), 18), -1)
        labels = random.integers(0, classes, rows)
        smoothed = np.eye(classes)[labels] * 0.9 + 0.1 / classes
        targets = {
            "int64": labels, "int32": labels.astype(np.int32), "uint8": (labels % 256).astype(np.uint8),
            "probabilities": p, "smoothed": smoothed,
            "weighted": smoothed * np.where(np.arange(classes) % 3 == 1, 0.0, 1 + np.arange(classes) % 3),
        }  # fmt: skip
        for (kind, target), reduction in itertools.product(targets.items(), ("mean", "sum", "none")):
            if reduction == "mean" and not rows:
                continue
            title = f"{rows}x{classes}-{kind}-{reduction}"
            cases.append(
                Case(
                    "softmax_cross_entropy", title, (x, target, reduction), loss_bound,
                    lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
                )
            )  # fmt: skip
            if kind in ("int32", "smoothed"):
                continue
            g = normal((rows,) if reduction == "none" else (), 19)
            wanted = [(True, False), (False, False)] if target.ndim == 1 else itertools.product((True, False), repeat=2)
            for needs, keep in itertools.product(wanted, (True, False)):
                cases.append(
                    Case(
                        "softmax_cross_entropy_backward",
                        f"{title}-{''.join('ny'[n] for n in needs)}{'' if keep else '-recompute'}",
                        (g, x, target, reduction, needs, keep), loss_backward_bound, run_loss_backward,
                    )
                )  # fmt: skip
    masked, label = np.array([[0.5, -np.inf, 2.0], [-np.inf, 1.0, -np.inf]]), np.array([2, 1])
    cases.append(
        Case(
            "softmax_cross_entropy", "masked", (masked, label, "none"), lambda e, *_: [16 * e],
            lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
        )
    )  # fmt: skip
    cases.append(
        Case(
            "softmax_cross_entropy_backward", "masked",
            (np.array([1.0, 2.0]), masked, label, "none", (True, False), True),
            lambda e, *_: [32 * e, None], run_loss_backward,
        )
    )  # fmt: skip
    far = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    cases.append(
        Case(
            "softmax_cross_entropy", "far", (far, np.array([1, 0]), "mean"), loss_bound,
            lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
        )
    )  # fmt: skip
    return cases + squared_error_cases()


def squared_error_bound(e: float, x: Any, target: Any, reduction: str) -> Sequence[Any]:
    squares = (x - target) ** 2
    if reduction == "none":
        return [4 * e * squares]
    return [(squares.size + 4) * e * (squares.mean() if reduction == "mean" else squares.sum())]


def run_squared_error_backward(B: Any, g: Any, x: Any, target: Any, reduction: str, needs: Any, keep: bool) -> Any:
    residual = B.squared_error(x, target, reduction)[1] if keep else None
    found = B.squared_error_backward(g, x, target, reduction, residual, needs)
    assert [f is not None for f in found] == list(needs)
    return list(found)


def squared_error_backward_bound(
    e: float, g: Any, x: Any, target: Any, reduction: str, needs: Any, keep: bool
) -> Sequence[Any]:
    # in half precision, 2 g / n may be below the normal numbers
    bound = (8 * e * np.abs(g) + 1e-7 * (e > 1e-4)) * np.abs(x - target) * (2 / x.size if reduction == "mean" else 2)
    return [bound if need else None for need in needs]


def squared_error_cases() -> list[Case]:
    cases = []
    for shape, reduction in itertools.product(
        [(3, 5), (), (0, 5), (1,), (7,), (2, 3, 4), (3000,)], ("mean", "sum", "none")
    ):
        if reduction == "mean" and 0 in shape:
            continue
        x, target, title = normal(shape, 20), normal(shape, 21), f"{name_of(shape)}-{reduction}"
        cases.append(
            Case(
                "squared_error", title, (x, target, reduction), squared_error_bound,
                lambda B, *arguments: [B.squared_error(*arguments)[0]],
            )
        )  # fmt: skip
        g = normal(shape if reduction == "none" else (), 22)
        for needs, keep in itertools.product(itertools.product((True, False), repeat=2), (True, False)):
            cases.append(
                Case(
                    "squared_error_backward",
                    f"{title}-{''.join('ny'[n] for n in needs)}{'' if keep else '-recompute'}",
                    (g, x, target, reduction, needs, keep), squared_error_backward_bound, run_squared_error_backward,
                )
            )  # fmt: skip
    return cases


# ---------------------------------------------------------------------- cases: randomness and scatter, exact

KEY = (2**127 + 12345) ^ 2**63


def random_cases() -> list[Case]:
    cases = []
    for counter, n in itertools.product(
        [0, 7, 2**64 - 2, 2**128 - 3, 2**192 - 1, 2**256 - 1, 2**256 - 40], [0, 1, 4, 5, 1027]
    ):
        cases.append(Case("random_bits", f"{counter:x}-{n}", (KEY, counter, n), dtypes=("float32",)))
    for shape, p in itertools.product([(3, 5), (), (0, 5), (1,), (7,), (2, 3, 4), (2049,)], [0.0, 0.1, 0.5, 0.999]):
        x = normal(shape, 23)
        cases.append(
            Case(
                "dropout", f"{name_of(shape)}-{p}", (x, p, KEY, 2**64 - 3),
                call=lambda B, *arguments: B.dropout(*arguments),
            )
        )  # fmt: skip
        mask = np.asarray(np.random.default_rng(24).random(shape) >= p)
        cases.append(Case("dropout_backward", f"{name_of(shape)}-{p}", (x, mask, p)))
    half = int(np.random.Philox(key=KEY, counter=3).random_raw(2)[1]) & 0xFFFFFFFF  # of element 2: at the threshold
    cases.append(
        Case(
            "dropout", "edge", (normal((5,), 23), half / 2**32, KEY, 3),
            call=lambda B, *arguments: B.dropout(*arguments),
        )
    )  # fmt: skip
    infinite = np.repeat([np.inf, -np.inf, np.nan, 1.0], 2)
    cases.append(
        Case(
            "dropout", "special", (np.tile(infinite, 8), 0.5, KEY, 3), special=True,
            call=lambda B, *arguments: B.dropout(*arguments),
        )
    )  # fmt: skip
    cases.append(Case("dropout_backward", "special", (infinite, np.tile([True, False], 4), 0.5), special=True))
    return cases


def scatter_bound(e: float, values: Any, key: Any, shape: tuple[int, ...]) -> Sequence[Any]:
    size = np.zeros(shape)
    np.add.at(size, key, np.abs(values))
    return [e * (values.size + 2) * size]


def scatter_cases() -> list[Case]:
    cases = []
    keys: dict[str, tuple[Any, tuple[int, ...]]] = {
        "integer": (2, (4, 3)), "negative": (-1, (4, 3)), "integers": ((1, 2), (4, 3)),
        "slice": (slice(1, None, 2), (5, 3)), "reversed": (slice(None, None, -2), (5, 3)),
        "none": ((None, slice(None)), (4, 3)), "ellipsis": ((..., 1), (2, 3, 4)), "nothing": (slice(0, 0), (4, 3)),
        "mask": (normal((4, 3), 25) > 0, (4, 3)), "rows": (np.array([True, False, True, True]), (4, 3)),
    }  # fmt: skip
    for name, (key, shape) in keys.items():
        cases.append(Case("scatter_add", name, (normal(np.zeros(shape)[key].shape, 26), key, shape)))
    repeated: dict[str, tuple[Any, tuple[int, ...]]] = {
        "array": (np.array([0, 2, 2, -1]), (4, 3)), "table": (np.array([[0, 1], [1, 1], [3, 0]]), (4, 3)),
        "one": (np.array([1, 1, 1, 1, 0]), (4,)), "two": ((np.array([0, 1, 1]), np.array([2, 0, 0])), (4, 3)),
        "broadcast": ((np.array([[0], [1]]), np.array([2, 0, 0])), (4, 3)),
        "columns": ((slice(None), np.array([2, 2, 0])), (4, 3)), "with none": ((None, np.array([1, 1])), (4, 3)),
        "apart": ((np.array([0, 1, 1]), slice(None), np.array([1, 1, 1])), (2, 3, 4)),
        "integer too": ((np.array([0, 0]), 1), (4, 3)), "narrow": (np.array([3, 250, 3], np.uint8), (300,)),
        "ellipsis too": ((..., np.array([1, 1])), (2, 3, 4)), "empty": (np.array([], np.int64), (4, 3)),
        "many": (np.random.default_rng(27).integers(0, 20, 500), (20, 2)),
    }  # fmt: skip
    for name, (key, shape) in repeated.items():
        cases.append(Case("scatter_add", name, (normal(np.zeros(shape)[key].shape, 28), key, shape), scatter_bound))
    rows = np.arange(300)[:, None]
    for name, indices, shape, axis in [
        ("last", np.array([[0, 3, 3], [1, 1, 1]]), (2, 4), 1), ("first", np.array([[0, 3, 3, 0]]), (5, 4), 0),
        ("negative", np.array([[-1, 3, 0], [1, -2, 1]]), (2, 4), -1), ("empty", np.zeros((0, 2), np.int64), (0, 4), 1),
        ("nothing", np.zeros((2, 0), np.int64), (2, 4), 1), ("vector", np.array([2, 2, 0, 2]), (3,), 0),
        ("three", np.random.default_rng(29).integers(0, 3, (2, 5, 4)), (2, 3, 4), 1),
        ("int8", (rows % 3).astype(np.int8), (300, 3), 1), ("uint8", (rows % 3).astype(np.uint8), (300, 3), -1),
        ("int32", np.array([[0, 3], [1, 1]], np.int32), (2, 4), 1),
    ]:  # fmt: skip
        cases.append(
            Case(
                "scatter_add_along_axis", name, (normal(indices.shape, 30), indices, shape, axis),
                lambda e, values, indices, shape, axis: scatter_bound(e, values, along(indices, axis), shape),
            )
        )  # fmt: skip
    return cases


def along(indices: np.ndarray, axis: int) -> tuple[Any, ...]:
    """The key that `indices` along `axis` are."""
    key = list(np.indices(indices.shape, sparse=True))
    key[axis] = indices
    return tuple(key)


# ---------------------------------------------------------------------- cases: optimizers

SIZES = (0, 1, 7, 65539)
"""One beyond a chunk of NumPy's backend, of 65536 elements."""


def in_place(kernel: str, *changed: int) -> Callable[..., Sequence[Any]]:
    """Calls a kernel that returns nothing; what is compared are the arguments that it changes."""

    def call(B: Any, *arguments: Any) -> Sequence[Any]:
        assert getattr(B, kernel)(*arguments) is None
        return [arguments[i] for i in changed]

    return call


def sgd_bound(
    e: float, p: Any, g: Any, v: Any, lr: float, momentum: float, dampening: float, nesterov: bool, decay: float,
    first: bool,
) -> Sequence[Any]:  # fmt: skip
    size = np.abs(g) + decay * np.abs(p)
    if v is None:
        return [8 * e * (np.abs(p) + lr * size), None]
    velocity = size if first else momentum * np.abs(v) + (1 - dampening) * size
    size = size + momentum * velocity if nesterov else velocity
    return [8 * e * (np.abs(p) + lr * size), 8 * e * velocity]


def root_bound(e: float, wrong: Any, square: Any, share: float) -> tuple[Any, Any]:
    """The root of an average of squares and its bound, where `wrong` is that of what is squared with this share."""
    root = np.sqrt(square)
    return root, np.sqrt(share) * wrong + 4 * e * root


def adam_bound(
    e: float, p: Any, g: Any, m: Any, v: Any, step: int, lr: float, b1: float, b2: float, epsilon: float, decay: float,
    decoupled: bool,
) -> Sequence[Any]:  # fmt: skip
    coupled = 0.0 if decoupled else decay
    size, g = np.abs(g) + coupled * np.abs(p), g + coupled * p
    mean, square = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    root, wrong = root_bound(e, 4 * e * size, square, 1 - b2)
    wrong_mean = 6 * e * (b1 * np.abs(m) + (1 - b1) * size)
    rate, correction = lr / (1 - b1**step), 1 / np.sqrt(1 - b2**step)
    below = correction * root + epsilon
    update = rate * np.abs(mean) / below
    change = rate * wrong_mean / below + update * (correction * wrong / below + 8 * e)
    return [8 * e * np.abs(p) + 2 * change, wrong_mean, 2 * root * wrong + wrong**2 + 4 * e * square]


def rmsprop_bound(
    e: float, p: Any, g: Any, square: Any, mean: Any, velocity: Any, lr: float, alpha: float, epsilon: float,
    decay: float, momentum: float,
) -> Sequence[Any]:  # fmt: skip
    size, g = np.abs(g) + decay * np.abs(p), g + decay * p
    square = alpha * square + (1 - alpha) * g**2
    root, wrong = root_bound(e, 4 * e * size, square, 1 - alpha)
    wrong_square = 2 * root * wrong + wrong**2 + 4 * e * square
    bounds = [wrong_square, None, None]
    average, wrong = square, wrong_square
    if mean is not None:
        bounds[1] = 6 * e * (alpha * np.abs(mean) + (1 - alpha) * size)
        mean = alpha * mean + (1 - alpha) * g
        average, wrong = square - mean**2, wrong + 2 * np.abs(mean) * bounds[1] + 4 * e * (square + mean**2)
    below = np.sqrt(average) + epsilon
    update = np.abs(g) / below
    change = 4 * e * size / below + update * (wrong / np.sqrt(average) / below + 8 * e)
    if velocity is not None:
        update = momentum * np.abs(velocity) + update
        change = bounds[2] = change + 4 * e * update
    return [4 * e * (np.abs(p) + lr * update) + lr * change, *bounds]


def run_clip(B: Any, gradients: list[Any], max_norm: float) -> Sequence[Any]:
    return [B.clip_global_norm(gradients, max_norm), *gradients]


def clip_bound(e: float, gradients: list[Any], max_norm: float) -> Sequence[Any]:
    n = sum(g.size for g in gradients) + 8
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    return [n * e * norm, *[n * e * np.abs(g) * min(1.0, max_norm / (norm + 1e-6)) for g in gradients]]


def optimizer_cases() -> list[Case]:
    cases = []
    for n in SIZES:
        p, g, v = normal((n,), 31), normal((n,), 32), normal((n,), 33)
        some = (n == 7,)
        for velocity, first, nesterov, dampening, decay in [
            (False, False, False, 0.0, 0.0), (False, False, False, 0.0, 0.1), (True, True, False, 0.0, 0.0),
            (True, False, False, 0.0, 0.0), (True, False, True, 0.0, 0.1), (True, True, True, 0.0, 0.1),
            (True, False, False, 0.3, 0.0), (True, False, False, 0.3, 0.1), (True, True, False, 0.3, 0.1),
        ]:  # fmt: skip
            before = None if not velocity else np.full(n, np.nan) if first else v  # nothing reads it at the first step
            title = f"{n}-{'velocity' if velocity else 'plain'}{'-first' * first}{'-nesterov' * nesterov}"
            cases.append(
                Case(
                    "sgd_step", f"{title}-{dampening}-{decay}",
                    (p, g, before, 0.1, 0.9 if velocity else 0.0, dampening, nesterov, decay, first),
                    sgd_bound, in_place("sgd_step", 0, 2), changes=(0, 2),
                )
            )  # fmt: skip
        for step, (decay, decoupled) in itertools.product(
            (1, 2, 1000) if some[0] else (1, 3), ((0.0, False), (0.1, False), (0.1, True), (0.0, True))
        ):
            m, square = (np.zeros(n), np.zeros(n)) if step == 1 else (v * 0.3, normal((n,), 34) ** 2)
            cases.append(
                Case(
                    "adam_step", f"{n}-{step}-{decay}-{decoupled}",
                    (p, g, m, square, step, 0.01, 0.9, 0.999, 1e-8, decay, decoupled),
                    adam_bound, in_place("adam_step", 0, 2, 3), changes=(0, 2, 3), dtypes=WIDE,
                )
            )  # fmt: skip
        for centred, with_velocity, decay in itertools.product((False, True), (False, True), (0.0, 0.1)):
            cases.append(
                Case(
                    "rmsprop_step", f"{n}{'-centred' * centred}{'-velocity' * with_velocity}-{decay}",
                    (p, g, 1 + normal((n,), 35) ** 2, v * 0.2 if centred else None, v if with_velocity else None,
                     0.01, 0.99, 1e-8, decay, 0.9 if with_velocity else 0.0),
                    rmsprop_bound, in_place("rmsprop_step", 0, 2, 3, 4), changes=(0, 2, 3, 4), dtypes=WIDE,
                )
            )  # fmt: skip
    several = [normal((3, 5), 36), normal((4,), 37), normal((), 38), normal((0, 2), 39), normal((2, 3, 4), 40)]
    for (name, gradients), max_norm in itertools.product(
        {"one": several[:1], "several": several, "zeros": [np.zeros(4)], "empty": several[3:4],
         "long": [normal((3000,), 41), several[0]]}.items(), (0.0, 0.5, 1e3)
    ):  # fmt: skip
        cases.append(
            Case(
                "clip_global_norm", f"{name}-{max_norm}", (gradients, max_norm), clip_bound, run_clip, changes=(0,),
                dtypes=WIDE if name in ("zeros", "empty") else REALS,  # max_norm / 1e-6 overflows, with a warning
            )
        )  # fmt: skip
    broken = [np.array([1.0, np.nan]), np.array([2.0])]
    cases.append(
        Case("clip_global_norm", "special", (broken, 1.0), None, run_clip, changes=(0,), special=True)
    )  # fmt: skip
    return cases


CASES = [
    *activation_cases(), *row_cases(), *linear_cases(), *layer_norm_cases(), *loss_cases(), *random_cases(),
    *scatter_cases(), *optimizer_cases(),
]  # fmt: skip


# ---------------------------------------------------------------------- every kernel against its default


def test_every_kernel_has_a_case() -> None:
    assert {case.kernel for case in CASES} == set(KERNELS)
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kernel_agrees_with_its_composed_default(device: str, case: Case) -> None:
    for dtype in case.dtypes:
        if gf.get_backend(device).supports(dtype):
            check(device, case, dtype)


@pytest.mark.parametrize("counter", [0, 2**64 - 2, 2**128 - 3, 2**256 - 1])
@pytest.mark.parametrize("n", [1, 5, 1027])
def test_random_bits_are_those_of_numpy(device: str, counter: int, n: int) -> None:
    expected = np.random.Philox(key=KEY, counter=counter).random_raw(n)
    for backend in (gf.get_backend(device), composed(device)):
        assert_agree("random bits", backend.to_host(backend.random_bits(KEY, counter, n)), expected)


@pytest.mark.parametrize("dtype", REALS)
def test_gradients_below_the_norm_are_left_alone(device: str, dtype: str) -> None:
    given = [normal((7,), 42).astype(dtype), normal((3, 2), 43).astype(dtype)]
    for backend in (gf.get_backend(device), composed(device)):
        gradients = [backend.from_host(g) for g in given]
        backend.clip_global_norm(gradients, 1e4)
        for gradient, g in zip(gradients, given, strict=True):
            assert_agree("a gradient", backend.to_host(gradient), g)
        backend.clip_global_norm(gradients, 0.5)
        total = sum((backend.to_host(g).astype("float64") ** 2).sum() for g in gradients)
        assert abs(total**0.5 - 0.5) < 20 * eps(dtype) + 1e-6


def test_a_composed_default_uses_no_native_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a case calls composed is, so that a native kernel is not compared with itself."""
    backend, native = composed("cpu"), type(gf.get_backend("cpu"))

    def refuse(*_: Any) -> Any:
        raise AssertionError("a native kernel was called")

    for name in NUMPY_NATIVE:
        monkeypatch.setattr(native, name, refuse)
    for case in CASES:
        with np.errstate(all="ignore"):
            case.run(backend, cast(case.arguments, "float32"))


def layer_norm_value(x: Any, weight: Any, bias: Any, axes: Any, epsilon: float) -> Any:
    value = norm_parts(0.0, x, axes, epsilon)[0]
    return (value if weight is None else value * weight) + (0.0 if bias is None else bias)


def layer_norm_slopes(g: Any, x: Any, weight: Any, axes: Any, epsilon: float, needs: Any, keep: bool) -> Sequence[Any]:
    leading = tuple(range(x.ndim - len(axes)))
    gx, h = np.zeros(x.shape), 1e-5
    for i in np.ndindex(*(x.shape if x.size < 100 else (0,))):  # central differences
        step = np.zeros(x.shape)
        step[i] = h
        up, down = (layer_norm_value(x + sign * step, weight, None, axes, epsilon) for sign in (1, -1))
        gx[i] = (g * (up - down)).sum() / (2 * h)
    found = (gx if x.size < 100 else None, (g * norm_parts(0.0, x, axes, epsilon)[0]).sum(axis=leading),
             g.sum(axis=leading))  # fmt: skip
    return [part if need else None for part, need in zip(found, needs, strict=True)]


def scattered(values: Any, key: Any, shape: tuple[int, ...]) -> Sequence[Any]:
    out = np.zeros(shape)
    np.add.at(out, key, values)
    return [out]


def rmsprop_values(
    p: Any, g: Any, square: Any, mean: Any, velocity: Any, lr: float, alpha: float, epsilon: float, decay: float,
    momentum: float,
) -> Sequence[Any]:  # fmt: skip
    g = g + decay * p
    square = alpha * square + (1 - alpha) * g**2
    mean = None if mean is None else alpha * mean + (1 - alpha) * g
    update = g / (np.sqrt(square if mean is None else square - mean**2) + epsilon)
    velocity = None if velocity is None else momentum * velocity + update
    return [p - lr * (update if velocity is None else velocity), square, mean, velocity]


FORMULAS: dict[str, Callable[..., Sequence[Any]]] = {
    "log_softmax": lambda x, axis: [softmax_parts(x, axis)[0] - softmax_parts(x, axis)[1]],
    "logsumexp": lambda x, axis, keepdims: [np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))],
    "layer_norm": lambda *arguments: [layer_norm_value(*arguments)],
    "layer_norm_backward": layer_norm_slopes,
    "squared_error_backward": lambda g, x, target, reduction, needs, keep: [
        sign * 2 * g * (x - target) / (x.size if reduction == "mean" else 1) if need else None
        for sign, need in zip((1, -1), needs, strict=True)
    ],
    "one_hot": lambda labels, classes, dtype: [np.eye(classes, dtype=dtype)[labels]],
    "scatter_add": scattered,
    "scatter_add_along_axis": lambda values, i, shape, axis: scattered(values, along(i, axis), shape),
    "rmsprop_step": rmsprop_values,
}  # fmt: skip
"""In plain NumPy, kernels that NumPy's backend leaves composed, and those whose indices a narrow dtype may spoil."""


def test_what_numpy_leaves_composed_has_a_formula() -> None:
    assert set(FORMULAS) >= set(KERNELS) - NUMPY_NATIVE


@pytest.mark.parametrize("kernel", FORMULAS)
def test_a_composed_default_is_the_formula(kernel: str) -> None:
    for case in [case for case in CASES if case.kernel == kernel and not case.special]:
        with np.errstate(all="ignore"):
            expected = FORMULAS[kernel](*cast(case.arguments, "float64"))
        found = case.run(composed("cpu"), cast(case.arguments, "float64"))
        for i, (x, y) in enumerate(zip(found, expected, strict=True)):
            if y is not None:
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=2e-7 if "norm_backward" in kernel else 1e-12,
                                           err_msg=f"{case}, result {i}")  # fmt: skip


# ---------------------------------------------------------------------- native or composed


def test_kernels_tells_native_from_composed(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADFLOW_FUSED", raising=False)
    cls: Any = type(gf.get_backend(device))
    found = cls().kernels()
    assert list(found) == KERNELS
    assert "native" in found.values()
    for name, kind in found.items():
        assert kind == ("composed" if getattr(cls, name) is getattr(Backend, name) else "native"), name


def test_the_native_kernels_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    cls: Any = type(gf.get_backend("cpu"))
    for value in ("1", "", "yes"):
        monkeypatch.setenv("GRADFLOW_FUSED", value)
        assert {name for name, kind in cls().kernels().items() if kind == "native"} == NUMPY_NATIVE
    monkeypatch.delenv("GRADFLOW_FUSED")
    assert {name for name, kind in cls().kernels().items() if kind == "native"} == NUMPY_NATIVE
    monkeypatch.setenv("GRADFLOW_FUSED", "0")
    assert cls().kernels() == dict.fromkeys(KERNELS, "composed")


@pytest.mark.parametrize("how", ["method", "staticmethod"])
def test_a_kernel_of_a_third_party_counts_as_native(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADFLOW_FUSED", raising=False)

    def softmax(*arguments: Any) -> Any:
        return np.full(arguments[-2].shape, 7.0)

    method: Any = softmax if how == "method" else staticmethod(softmax)
    cls: Any = type(
        "Third", (type(gf.get_backend("cpu")),), {"name": "third", "softmax": method, "linear": Backend.linear}
    )
    backend = cls()
    assert backend.kernels() == {
        name: "native" if name in NUMPY_NATIVE - {"linear"} else "composed" for name in KERNELS
    }  # fmt: skip
    x = np.zeros((1, 2))
    assert backend.softmax(x, 1).tolist() == [[7.0, 7.0]]
    monkeypatch.setenv("GRADFLOW_FUSED", "0")
    assert cls().kernels() == dict.fromkeys(KERNELS, "composed")
    assert cls().softmax(x, 1).tolist() == [[0.5, 0.5]]


TRAINING = """
import json, sys
import gradflow as gf
from gradflow import nn, optim

device, dtype = sys.argv[1:]
gf.manual_seed(3)
with gf.use_device(device):
    model = nn.Sequential(
        nn.MLP([7, 16, 12], activation="gelu", dropout=0.2, dtype=dtype), nn.LayerNorm((12,), dtype=dtype), nn.Tanh(),
        nn.Dropout(0.3), nn.Linear(12, 5, dtype=dtype),
    )
    x, labels = gf.random.normal((33, 7), dtype=dtype), gf.tensor([i % 5 for i in range(33)], dtype="int64")
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = gf.cross_entropy(model(x), labels, label_smoothing=0.1)
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    print(json.dumps([gf.get_backend().kernels(), losses]))
"""


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-4)])
def test_a_run_without_native_kernels_has_the_losses_of_one_with_them(device: str, dtype: str, rtol: float) -> None:
    found = {}
    for fused in ("0", "1"):
        environment = {**os.environ, "GRADFLOW_FUSED": fused, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", TRAINING, device, dtype]
        out = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
        found[fused] = json.loads(out.stdout)
    kernels, losses = found["0"]
    assert kernels == dict.fromkeys(KERNELS, "composed")
    assert "native" in found["1"][0].values()
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(losses, found["1"][1], rtol=rtol, atol=0)
