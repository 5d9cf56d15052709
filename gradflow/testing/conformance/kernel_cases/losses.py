"""Cases of `one_hot`, `softmax_cross_entropy`, `squared_error` and their backward kernels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.testing.conformance.harness import REFERENCE, Case
from gradflow.testing.conformance.kernel_cases.inputs import half_case, name_of, normal
from gradflow.testing.conformance.kernel_cases.softmax import softmax_parts


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


def run_loss_backward(
    B: Any, g: Any, logits: Any, target: Any, reduction: str, needs: Any, keep: bool, *options: Any
) -> Any:
    residual = B.softmax_cross_entropy(logits, target, reduction, True, *options)[1] if keep else None
    arguments = g, logits, target, reduction, residual, needs, *options
    found = B.softmax_cross_entropy_backward(*arguments)
    assert [f is not None for f in found] == list(needs)
    again = B.softmax_cross_entropy_backward(*arguments)
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


def ignoring_bound(
    e: float, x: Any, labels: Any, reduction: str, ignored: int, smoothing: float = 0.0
) -> Sequence[Any]:
    """The bound for the rows of other labels; the others are exactly 0."""
    kept, bound = labels != ignored, np.zeros(len(x))
    target = smoothed(labels[kept], x.shape[1], smoothing) if smoothing else labels[kept]
    found = loss_bound(e, x[kept], target, reduction)[0] if kept.any() else 0.0
    bound[kept] = found
    return [bound if reduction == "none" else found]


def smoothed(labels: Any, classes: int, smoothing: float) -> Any:
    return np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes


def ignoring_backward_bound(
    e: float, g: Any, x: Any, labels: Any, reduction: str, needs: Any, keep: bool, ignored: int, smoothing: float = 0.0
) -> Sequence[Any]:
    kept, bound = labels != ignored, np.zeros(x.shape)
    if kept.any():
        g = g[kept] if g.ndim else g
        target = smoothed(labels[kept], x.shape[1], smoothing) if smoothing else labels[kept]
        bound[kept] = loss_backward_bound(e, g, x[kept], target, reduction, needs, keep)[0]
    return [bound, None]


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
                    "one_hot", f"{name_of(labels.shape)}-{labels.dtype}-{classes}-as-{dtype}", (labels, classes, dtype),
                    call=lambda B, labels, classes, dtype: [B.one_hot(labels, classes, B.dtypes[dtype])],
                    dtypes=(dtype,),
                )
            )  # fmt: skip
    for rows, classes in [(3, 10), (1, 1), (1, 5), (5, 33), (2, 700), (0, 4), (300, 3)]:
        x = normal((rows, classes), 17, 6.0)
        p = REFERENCE.softmax(normal((rows, classes), 18), -1)
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
    for ignored, rows, every, reduction in [
        *[(ignored, rows, 3, how) for ignored, rows in [(-100, 300), (1, 4)] for how in ("mean", "sum", "none")],
        (-100, 4, 1, "mean"),
    ]:
        x, labels = normal((rows, 5), 23, 6.0), np.arange(rows) % 2 * 2
        labels[::every] = ignored
        title = f"{rows}x5-but-{ignored}-{reduction}{'' if every > 1 else '-of-none'}"
        cases.append(
            Case(
                "softmax_cross_entropy", title, (x, labels, reduction, ignored), ignoring_bound,
                lambda B, x, labels, how, ignored: [B.softmax_cross_entropy(x, labels, how, ignore_index=ignored)[0]],
                special=every == 1,
            )
        )  # fmt: skip
        g = normal((rows,) if reduction == "none" else (), 24)
        for keep in (True, False):
            arguments = (g, x, labels, reduction, (True, False), keep, ignored)
            how = f"{title}{'' if keep else '-recompute'}"
            cases.append(
                Case("softmax_cross_entropy_backward", how, arguments, ignoring_backward_bound, run_loss_backward)
            )
    for rows, smoothing, reduction in [(4, 0.1, "mean"), (300, 0.25, "none"), (4, 1.0, "sum")]:
        x, labels = normal((rows, 5), 25, 6.0), np.arange(rows) % 2 * 2
        labels[::3] = -100
        title = f"{rows}x5-smoothed-{smoothing}"
        cases.append(
            Case(
                "softmax_cross_entropy", title, (x, labels, reduction, -100, smoothing), ignoring_bound,
                lambda B, x, labels, how, *options: [B.softmax_cross_entropy(x, labels, how, True, *options)[0]],
            )
        )  # fmt: skip
        g = normal((rows,) if reduction == "none" else (), 26)
        for keep in (True, False):
            how = f"{title}{'' if keep else '-recompute'}"
            cases.append(
                Case(
                    "softmax_cross_entropy_backward", how,
                    (g, x, labels, reduction, (True, False), keep, -100, smoothing),
                    ignoring_backward_bound, run_loss_backward,
                )
            )  # fmt: skip
    far = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    cases.append(
        Case(
            "softmax_cross_entropy", "far", (far, np.array([1, 0]), "mean"), loss_bound,
            lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
        )
    )  # fmt: skip
    return cases


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


def half_cases() -> list[Case]:
    cases = []
    many = 70_000  # more than the largest float16
    row, rows = normal((2, many), 45, 0.1), normal((many, 3), 46)
    labels, shares = np.arange(many) % 3, np.asarray(REFERENCE.softmax(normal((many, 3), 48), -1))
    scale = np.asarray(1000.0)
    for kind, target in {"labels": labels, "shares": shares}.items():
        cases.append(
            half_case(
                "softmax_cross_entropy", f"long-{kind}", (rows, target, "mean"),
                lambda B, *arguments: [B.softmax_cross_entropy(*arguments)[0]],
            )
        )  # fmt: skip
        for keep in (True, False):
            arguments = (scale, rows, target, "mean", (True, False), keep)
            cases.append(
                half_case("softmax_cross_entropy_backward", f"long-{kind}-{keep}", arguments, run_loss_backward)
            )
    cases.append(
        half_case(
            "squared_error", "long", (row, 2 * row, "mean"), lambda B, *arguments: [B.squared_error(*arguments)[0]]
        )
    )  # fmt: skip
    for keep in (True, False):
        arguments = (scale, rows, 2 * rows, "mean", (True, True), keep)
        cases.append(half_case("squared_error_backward", f"long-{keep}", arguments, run_squared_error_backward))
    return cases


CASES = [*loss_cases(), *squared_error_cases(), *half_cases()]
