"""Broadcasting, reductions and indexing against NumPy, over generated shapes and keys."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradflow as gf
from gradflow.testing import count_transfers

modest = settings(max_examples=50, deadline=None, derandomize=True, database=None)
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng([seed, *shape]).uniform(0.5, 2.0, shape))


def summed_to(g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of what was broadcast, by NumPy: extra axes summed away, then axes of length 1."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    for axis, n in enumerate(shape):
        if n == 1:
            g = g.sum(axis=axis, keepdims=True)
    return g.reshape(shape)


def close(actual: Any, expected: np.ndarray) -> None:
    values = actual.detach().numpy()
    assert values.shape == expected.shape, f"shape {values.shape}, not {expected.shape}"
    np.testing.assert_allclose(values, expected, rtol=1e-13, atol=1e-13)


# ---------------------------------------------------------------------- broadcasting

RULES: dict[str, Any] = {
    "add": (np.add, lambda g, a, b: (g, g)),
    "subtract": (np.subtract, lambda g, a, b: (g, -g)),
    "multiply": (np.multiply, lambda g, a, b: (g * b, g * a)),
    "divide": (np.divide, lambda g, a, b: (g / b, -g * a / b**2)),
    "power": (np.power, lambda g, a, b: (g * b * a ** (b - 1), g * a**b * np.log(a))),
    "maximum": (np.maximum, lambda g, a, b: (g * (a > b), g * (a < b))),
    "minimum": (np.minimum, lambda g, a, b: (g * (a < b), g * (a > b))),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", RULES)
@modest
@given(broadcast=hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_dims=4, max_side=3))
def test_binary_operations_broadcast_as_numpy(name: str, create_graph: bool, broadcast: Any) -> None:
    (shape_a, shape_b), shape = broadcast.input_shapes, broadcast.result_shape
    value, rule = RULES[name]
    x, y, g = numbers(shape_a, 1), numbers(shape_b, 2), numbers(shape, 3)
    a, b = gf.tensor(x, requires_grad=True), gf.tensor(y, requires_grad=True)
    out = getattr(gf, name)(a, b)
    close(out, value(x, y))
    out.backward(gf.tensor(g), create_graph=create_graph)
    for t, gradient in zip((a, b), rule(g, x, y), strict=True):
        close(t.grad, summed_to(np.broadcast_to(gradient, shape), t.shape))


@modest
@given(broadcast=hnp.mutually_broadcastable_shapes(num_shapes=3, min_side=0, max_dims=3, max_side=3))
def test_where_broadcasts_as_numpy(broadcast: Any) -> None:
    s0, s1, s2 = broadcast.input_shapes
    c, x, y = numbers(s0, 1) > 1.2, numbers(s1, 2), numbers(s2, 3)
    a, b = gf.tensor(x, requires_grad=True), gf.tensor(y, requires_grad=True)
    out = gf.where(gf.tensor(c), a, b)
    close(out, np.where(c, x, y))
    g = numbers(broadcast.result_shape, 4)
    out.backward(gf.tensor(g))
    close(a.grad, summed_to(np.where(c, g, 0.0), s1))
    close(b.grad, summed_to(np.where(c, 0.0, g), s2))


@modest
@given(data=st.data(), signature=hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2))
def test_matmul_broadcasts_as_numpy(data: Any, signature: Any) -> None:
    s1, s2 = signature.input_shapes
    x, y = numbers(s1, 1), numbers(s2, 2)
    a, b = gf.tensor(x, requires_grad=True), gf.tensor(y, requires_grad=True)
    out = a @ b
    close(out, np.matmul(x, y))
    g = numbers(out.shape, 3)
    out.backward(gf.tensor(g))
    rows = x[None, :] if x.ndim == 1 else x
    columns = y[:, None] if y.ndim == 1 else y
    full = g.reshape((*np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2]), rows.shape[-2], columns.shape[-1]))
    close(a.grad, summed_to(full @ columns.swapaxes(-1, -2), rows.shape).reshape(x.shape))
    close(b.grad, summed_to(rows.swapaxes(-1, -2) @ full, columns.shape).reshape(y.shape))


@pytest.mark.parametrize("name", ["add", "where", "matmul"])
def test_shapes_that_do_not_broadcast_are_refused(name: str) -> None:
    a, b = gf.ones((2, 3)), gf.ones((4, 5))
    with pytest.raises(ValueError):
        gf.where(a > 0, a, b) if name == "where" else getattr(gf, name)(a, b)


# ---------------------------------------------------------------------- reductions


@st.composite
def reductions(draw: Any, min_side: int = 0) -> tuple[tuple[int, ...], Any, bool]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=min_side, max_side=3))
    axes = draw(st.one_of(st.none(), hnp.valid_tuple_axes(len(shape))))
    if axes and len(axes) == 1 and draw(st.booleans()):
        axes = axes[0]
    return shape, axes, draw(st.booleans())


def _kept(g: np.ndarray, x: np.ndarray, axis: Any) -> np.ndarray:
    axes = range(x.ndim) if axis is None else [a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,))]
    return g.reshape([1 if i in set(axes) else n for i, n in enumerate(x.shape)])


@pytest.mark.parametrize("name", ["sum", "prod", "mean", "max", "min", "var", "std"])
@modest
@given(data=st.data())
def test_reductions_over_axes_as_numpy(name: str, data: Any) -> None:
    shape, axis, keepdims = data.draw(reductions(min_side=0 if name in ("sum", "prod") else 1))
    x = numbers(shape)
    a = gf.tensor(x, requires_grad=True)
    out = getattr(gf, name)(a, axis=axis, keepdims=keepdims)
    expected = np.asarray(getattr(np, name)(x, axis=axis, keepdims=keepdims))
    close(out, expected)
    g = numbers(expected.shape, 1)
    out.backward(gf.tensor(g))
    kept = _kept(g, x, axis)
    n = x.size / max(g.size, 1)
    centred = x - np.mean(x, axis=axis, keepdims=True) if x.size else x
    extreme = {"max": np.max, "min": np.min}.get(name)
    if name == "sum":
        gradient = np.broadcast_to(kept, shape)
    elif name == "mean":
        gradient = np.broadcast_to(kept / n, shape)
    elif name == "prod":
        gradient = kept * np.prod(x, axis=axis, keepdims=True) / x
    elif extreme is not None:
        gradient = kept * (x == extreme(x, axis=axis, keepdims=True))
    elif name == "var":
        gradient = kept * 2 * centred / n
    else:
        deviation = np.std(x, axis=axis, keepdims=True)
        gradient = kept * centred / n / np.where(deviation == 0, 1.0, deviation)
    close(a.grad, gradient)


@pytest.mark.parametrize("name", ["any", "all"])
@modest
@given(data=st.data())
def test_any_and_all_as_numpy(name: str, data: Any) -> None:
    shape, axis, keepdims = data.draw(reductions())
    x = numbers(shape) > 1.2
    out = getattr(gf, name)(gf.tensor(x), axis=axis, keepdims=keepdims)
    np.testing.assert_array_equal(out.numpy(), getattr(np, name)(x, axis=axis, keepdims=keepdims))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@modest
@given(shape=hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), data=st.data())
def test_argmax_and_argmin_as_numpy(name: str, shape: tuple[int, ...], data: Any) -> None:
    axis = data.draw(st.one_of(st.none(), st.integers(-len(shape), len(shape) - 1)))
    keepdims = data.draw(st.booleans())
    x = np.round(numbers(shape) * 3)  # with ties: the first is taken
    out = getattr(gf, name)(gf.tensor(x), axis=axis, keepdims=keepdims)
    np.testing.assert_array_equal(out.numpy(), getattr(np, name)(x, axis=axis, keepdims=keepdims))


@modest
@given(shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5), data=st.data())
def test_argsort_is_stable_in_both_directions(shape: tuple[int, ...], data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = np.round(numbers(shape) * 2)
    order = np.argsort(x, axis=axis, kind="stable")
    np.testing.assert_array_equal(gf.argsort(gf.tensor(x), axis=axis).numpy(), order)
    order = np.argsort(-x, axis=axis, kind="stable")
    np.testing.assert_array_equal(gf.argsort(gf.tensor(x), axis=axis, descending=True).numpy(), order)


@modest
@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4), data=st.data())
def test_cumulative_sum_as_numpy(shape: tuple[int, ...], data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, g = numbers(shape, 1), numbers(shape, 2)
    a = gf.tensor(x, requires_grad=True)
    out = gf.cumulative_sum(a, axis=axis)
    close(out, np.cumsum(x, axis=axis))
    out.backward(gf.tensor(g))
    close(a.grad, np.flip(np.cumsum(np.flip(g, axis), axis=axis), axis))


@pytest.mark.parametrize("name", ["sum", "mean", "max", "softmax", "flip", "cumulative_sum", "logsumexp"])
def test_an_axis_out_of_range_is_refused(name: str) -> None:
    for axis in (2, -3):
        with pytest.raises(ValueError, match=f"axis {axis} is out of range for a tensor of 2 axes"):
            getattr(gf, name)(gf.ones((2, 3)), axis=axis)


def test_axes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="named twice"):
        gf.sum(gf.ones((2, 3)), axis=(0, -2))
    with pytest.raises(TypeError, match="int or a tuple"):
        gf.sum(gf.ones((2, 3)), axis=1.0)  # type: ignore[arg-type]
    for function in (gf.argmax, gf.argmin, gf.argsort, gf.cumulative_sum):
        with pytest.raises(TypeError, match=f"{function.__name__} takes one axis"):
            function(gf.ones((2, 3)), axis=(0, 1))


@pytest.mark.parametrize("name", ["mean", "max", "min", "var", "std", "logsumexp", "softmax", "log_softmax"])
def test_a_reduction_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(2, 0\)"):
        getattr(gf, name)(gf.ones((2, 0)), axis=1)


# ---------------------------------------------------------------------- indexing


def check_index(x: np.ndarray, key: Any, ours: Any = None, create_graph: bool = False) -> None:
    """x[key]: the value by NumPy, the gradient by numpy.add.at."""
    a = gf.tensor(x, requires_grad=True)
    out = a[key if ours is None else ours]
    expected = np.asarray(x[key])
    close(out, expected)
    g = numbers(expected.shape, 5)
    out.backward(gf.tensor(g), create_graph=create_graph)
    gradient = np.zeros(x.shape)
    np.add.at(gradient, key, g)
    close(a.grad, gradient)


@pytest.mark.parametrize("create_graph", [False, True])
@modest
@given(shape=shapes, data=st.data())
def test_basic_indexing_as_numpy(create_graph: bool, shape: tuple[int, ...], data: Any) -> None:
    key = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    check_index(numbers(shape), key, create_graph=create_graph)


@modest
@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4), data=st.data())
def test_integer_array_indexing_as_numpy(shape: tuple[int, ...], data: Any) -> None:
    key = data.draw(hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)))
    tensors = tuple(gf.tensor(np.asarray(k)) for k in key)
    check_index(numbers(shape), key, tensors)
    check_index(numbers(shape), key)


@modest
@given(shape=hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=4), data=st.data())
def test_mixed_indexing_as_numpy(shape: tuple[int, ...], data: Any) -> None:
    """Arrays next to and apart from integers, slices and new axes."""
    result = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    key: list[Any] = []
    for n in shape[: data.draw(st.integers(0, len(shape)))]:
        part = data.draw(
            st.one_of(
                st.integers(-n, n - 1),
                st.slices(n),
                hnp.arrays(np.int64, result, elements=st.integers(-n, n - 1)),
            )
        )
        if data.draw(st.booleans()) and data.draw(st.booleans()):
            key.append(None)
        key.append(part)
    ours = tuple(gf.tensor(k) if isinstance(k, np.ndarray) else k for k in key)
    check_index(numbers(shape), tuple(key), ours)


@modest
@given(shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4), data=st.data())
def test_mask_indexing_as_numpy(shape: tuple[int, ...], data: Any) -> None:
    mask = data.draw(hnp.arrays(np.bool_, shape[: data.draw(st.integers(1, len(shape)))]))
    check_index(numbers(shape), mask, gf.tensor(mask))


@st.composite
def masked(draw: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """A key with masks among integers, slices, integer arrays, None and an Ellipsis."""
    key: list[Any] = []
    axis, count = 0, draw(st.integers(0, 3))
    while axis < len(shape):
        what = draw(st.sampled_from(["mask", "integer", "slice", "array", "none", "ellipsis", "stop"]))
        n = shape[axis]
        if what == "mask":
            axes = draw(st.integers(1, len(shape) - axis))
            mask = np.zeros(shape[axis : axis + axes], bool)
            mask.reshape(-1)[draw(st.permutations(range(mask.size)))[:count]] = True
            key.append(mask)
            axis += axes
            continue
        if what == "ellipsis" and all(k is not ... for k in key):
            key.append(...)
            axis += draw(st.integers(0, len(shape) - axis))
            key += [slice(None)] * (len(shape) - axis)  # so that it stands for that many
            break
        if what == "stop":
            break
        if what == "none":
            key.append(None)
            if len(key) > 6:
                break
            continue
        if what in ("integer", "array") and not n:
            what = "slice"
        part: Any = draw(st.slices(n))
        if what == "integer":
            part = draw(st.integers(-n, n - 1))
        elif what == "array":
            part = np.array(draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=1)))
        key.append(part)
        axis += 1
    return tuple(key)


@pytest.mark.slow
@pytest.mark.parametrize("create_graph", [False, True])
@settings(modest, max_examples=300)
@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=3), data=st.data())
def test_masks_with_other_indices_as_numpy(create_graph: bool, shape: tuple[int, ...], data: Any) -> None:
    key, x = data.draw(masked(shape)), numbers(shape)
    ours = tuple(gf.tensor(k) if isinstance(k, np.ndarray) else k for k in key)
    try:
        expected = np.asarray(x[key])
    except IndexError:  # masks that select different numbers
        with pytest.raises(IndexError, match="indexing: the shapes"):
            gf.tensor(x)[ours]
        with pytest.raises(IndexError, match="indexing: the shapes"):
            gf.tensor(x)[ours] = 0.0
        return
    check_index(x, key, ours, create_graph)
    changed, copy = gf.tensor(x), x.copy()
    copy[key] = -numbers(expected.shape, 7)
    changed[ours] = gf.tensor(-numbers(expected.shape, 7))
    close(changed, copy)
    copy[key] = 3.0
    changed[key] = 3
    close(changed, copy)


def test_masks_with_other_indices_on_every_device(device: str) -> None:
    values, mask, other = numbers((3, 4, 2)), np.array([True, False, True, True]), np.array([False, True])
    place = {id(m): gf.tensor(m) for m in (mask, other)}
    keys: list[Any] = [
        (slice(None), mask), (mask[:3], 0), (mask[:3], ..., 1), (slice(None), mask, None), (slice(None), mask, 1),
        (0, mask, [1, 0, 1]), (mask[:3], [3, 0]), (..., other),
    ]  # fmt: skip
    for key in keys:
        ours = tuple(place.get(id(k), gf.tensor(k) if isinstance(k, np.ndarray) else k) for k in key)
        x = gf.tensor(values, requires_grad=True)
        first = gf.grad(lambda x, k=ours: (x[k] ** 3).sum())(x)
        expected = np.zeros(values.shape)
        np.add.at(expected, key, 3 * values[key] ** 2)
        close(first.cpu(), expected)
        second = gf.grad(lambda x, k=ours: gf.grad(lambda x: (x[k] ** 3).sum())(x).sum())(x)
        np.add.at(expected := np.zeros(values.shape), key, 6 * values[key])
        close(second.cpu(), expected)
        assigned = gf.tensor(values)
        assigned[ours] = 0.0
        expected = values.copy()
        expected[key] = 0.0
        close(assigned.cpu(), expected)


def test_a_mask_waits_no_more_often_than_it_must() -> None:
    """One wait for each axis of the mask; copying an index does not wait."""
    x = gf.tensor(numbers((3, 4)), device="fake")
    rows = gf.tensor([True, False, True], device="fake")
    with count_transfers() as count:
        x[rows, 0]
        x[:, x[0] > 1.0]
    assert (count.to_host, count.from_host, count.synchronizations) == (0, 0, 0)


INDICES: dict[str, Any] = {
    "range": range(2, 0, -1), "list": [2, 0], "tuple in a tuple": ((0, 2), 1), "list of NumPy's": [np.int64(2), 0],
    "nested": [[0, 1], [2, 0]], "NumPy integer": np.int64(1), "narrow": np.uint8(2), "0-d array": np.array(-1),
    "0-d in a tuple": (np.array(1), np.int32(1)), "slice of NumPy's": slice(np.int64(0), np.array(2)),
    "range beside": (range(3), slice(None)), "list of bools": [True, False, True],
    "bools beside": ([True, False, True], 1), "array": np.array([2, 1]), "empty": [],
    "nested tuples": (((0, 1), (1, 2)),),
}  # fmt: skip


@pytest.mark.parametrize("what", INDICES)
def test_what_stands_for_integers_is_an_index(what: str) -> None:
    x, key = numbers((3, 2)), INDICES[what]
    plain = tuple(list(k) if isinstance(k, range) else k for k in key) if isinstance(key, tuple) else key
    plain = np.array([], int) if what == "empty" else list(plain) if isinstance(plain, range) else plain  # type: ignore[comparison-overlap]
    check_index(x, plain, key)
    changed, copy = gf.tensor(x), x.copy()
    changed[key] = -1.0
    copy[plain] = -1.0
    close(changed, copy)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ([[0], [0, 1]], "unequal lengths"), (["a"], "got 'a'"), ([0.5], r"got 0\.5"), (slice("a"), "got 'a'"),
        (np.bool_(True), "True and False are not indices"), ([gf.tensor(0.0)], "gradflow.stack"), ([2**70], "64 bits"),
    ],
)  # fmt: skip
def test_what_is_no_index_is_named(key: Any, message: str) -> None:
    x = gf.ones((3, 2))
    with pytest.raises(IndexError, match=message):
        x[key]


def test_a_value_that_does_not_fit_is_refused_by_name() -> None:
    x = gf.ones((3, 2))
    for key in (0, [0, 1], (slice(None), [True, False]), slice(1)):
        with pytest.raises(ValueError, match=r"item assignment: a value of shape \(5,\) does not broadcast"):
            x[key] = gf.ones(5)
    assert (x.numpy() == 1).all()


def test_assigning_to_what_is_recorded_names_where() -> None:
    x = gf.ones((3, 2), requires_grad=True)
    for recorded in (x, x * 2):
        with pytest.raises(RuntimeError, match=r"x = x\.at\[key\]\.set\(value\), which is recorded, or do"):
            recorded[x > 0] = 0.0


NUMBERS: dict[str, Any] = {
    "reshape": lambda x, n: (x.reshape(n(3), n(2)), x.reshape(np.array([3, 2])), gf.reshape(x, (n(3), n(-1)))),
    "repeat": lambda x, n: (gf.repeat(x, n(2), axis=n(1)),),
    "tile": lambda x, n: (gf.tile(x, n(2)), gf.tile(x, (n(2), n(1))), gf.tile(x, np.array([2, 1]))),
    "split": lambda x, n: (*gf.split(x, n(2)), *gf.split(x, [n(1)], axis=n(1)), *gf.split(x, np.array([1]))),
    "broadcast_to": lambda x, n: (gf.broadcast_to(x, (n(4), n(2), n(3))),),
    "permute_dims": lambda x, n: (x.permute_dims(n(1), n(0)), gf.permute_dims(x, np.array([1, 0]))),
    "pad": lambda x, n: (gf.pad(x, n(1)), gf.pad(x, (n(1), n(2))), gf.pad(x, np.array([[1, 0], [0, 1]]))),
    "axis": lambda x, n: (x.sum(n(1)), x.max((n(0), n(1))), x.softmax(n(-1)), x.flip(n(0)), x.argmax(n(1)),
                          gf.stack([x, x], n(1)), gf.concat([x, x], n(1)), x.swapaxes(n(0), n(1)), x.expand_dims(n(0)),
                          gf.moveaxis(x, n(0), n(1)), x.take([0], axis=n(1)), x.cumulative_sum(n(0)), x.var(n(0)),
                          x.unbind(n(1))[0]),
}  # fmt: skip


@pytest.mark.parametrize("integer", [np.int64, np.uint8, lambda n: np.array(n)], ids=["int64", "int32", "0-d"])
@pytest.mark.parametrize("name", NUMBERS)
def test_integers_of_numpy_are_integers(name: str, integer: Any) -> None:
    x = gf.tensor(numbers((2, 3)))

    def as_given(n: int) -> Any:
        return np.int32(n) if n < 0 else integer(n)

    for found, expected in zip(NUMBERS[name](x, as_given), NUMBERS[name](x, int), strict=True):
        assert found.shape == expected.shape
        assert all(type(n) is int for n in found.shape)
        assert found.tolist() == expected.tolist()


WIDTHS: list[Any] = [1, (1, 2), (2,), ((1, 2),), ((1,), (2,)), [[1, 0], [0, 2]], np.array([1, 2]), ((3,),)]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_pad_takes_the_widths_that_numpy_takes(widths: Any) -> None:
    x = numbers((2, 3))
    close(gf.pad(gf.tensor(x), widths, 7.0), np.pad(x, widths, constant_values=7.0))


@pytest.mark.parametrize("widths", [-1, (1, 2, 3), ((1, 2),) * 3, ((1, 2, 3),) * 2, "a", 1.5, None, ((1, 2), (1, -1))])
def test_pad_refuses_other_widths(widths: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="pad"):
        gf.pad(gf.ones((2, 3)), widths)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gf.ones((2, 3, 4)) @ gf.ones((3, 4, 3)), r"matmul of shapes \(2, 3, 4\) and \(3, 4, 3\), all axes"),
        (lambda: gf.where(gf.ones(2) > 0, None, 1), "where takes tensors and Python numbers; got None$"),
        (lambda: gf.where(gf.ones(2) > 0, 1, "a"), "where takes tensors and Python numbers; got str"),
        (lambda: gf.exp(np.ones(2)), r"got numpy\.ndarray: make a tensor of it with gradflow\.tensor"),
        (lambda: gf.exp([1.0]), r"exp takes tensors; got list: make a tensor of it"),
        (lambda: gf.ones((2, 3)).sum(0, 1), "keepdims of sum is True or False; got 1"),
        (lambda: gf.sum(gf.ones((2, 3)), (0, 1), (1, 2)), r"got \(1, 2\): pass several axes as one tuple"),
        (lambda: gf.tensor([1, 2], dtype="int64") ** -1, "integers to a negative power"),
        (lambda: gf.take_along_axis(gf.ones(3), gf.tensor([7], dtype="int64")), r"must be in \[-3, 3\)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        call()


@modest
@given(shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), data=st.data())
def test_take_and_take_along_axis_as_numpy(shape: tuple[int, ...], data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    n = shape[axis]
    x = numbers(shape)
    indices = data.draw(hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=2), elements=st.integers(-n, n - 1)))
    a = gf.tensor(x, requires_grad=True)
    out = gf.take(a, gf.tensor(indices), axis=axis)
    close(out, np.take(x, indices, axis=axis))
    g = numbers(out.shape, 1)
    out.backward(gf.tensor(g))
    gradient = np.zeros(shape)
    np.add.at(gradient, (slice(None),) * (axis % len(shape)) + (indices,), g)
    close(a.grad, gradient)

    along = list(shape)
    along[axis] = data.draw(st.integers(0, 4))
    where = data.draw(hnp.arrays(np.int64, tuple(along), elements=st.integers(0, n - 1)))
    a.zero_grad()
    out = gf.take_along_axis(a, gf.tensor(where), axis=axis)
    close(out, np.take_along_axis(x, where, axis=axis))
    g = numbers(out.shape, 2)
    out.backward(gf.tensor(g))
    gradient, key = np.zeros(shape), list(np.indices(where.shape))
    key[axis] = where
    np.add.at(gradient, tuple(key), g)
    close(a.grad, gradient)


@pytest.mark.parametrize(
    "key",
    [3, -4, (0, 2), (0, 0, 0), (..., ...), "a", 1.0, True, (0, True), {"a": 1}, [0.5], [[0], [0.5]]],
    ids=repr,
)
def test_an_index_that_does_not_fit_is_refused(key: Any) -> None:
    with pytest.raises((IndexError, TypeError)):
        gf.ones((3, 2))[key]


@pytest.mark.parametrize("where", [[3], [-4], [0, 99]])
def test_an_index_array_out_of_range_is_refused(where: list[int]) -> None:
    x = gf.ones((3, 2))
    wrong = next(i for i in where if not -3 <= i < 3)
    message = rf"index {wrong} is out of range for axis 0 of a tensor of shape \(3, 2\)"
    with pytest.raises(IndexError, match=message):
        x[gf.tensor(np.array(where))]
    with pytest.raises(IndexError, match=message):
        gf.take(x, where, axis=0)
    with pytest.raises(IndexError, match=message):
        x[where] = 0.0


def test_masks_that_do_not_fit_are_refused() -> None:
    x = gf.ones((3, 2))
    with pytest.raises(IndexError, match=r"\(2,\) does not fit a tensor of shape \(3, 2\)"):
        x[gf.tensor([True, False])]
    with pytest.raises(IndexError, match=r"\(3,\) does not fit a tensor of shape \(3, 2\) at axis 1"):
        x[:, gf.tensor([True, False, True])]
    with pytest.raises(IndexError, match="too many indices for a tensor of shape"):
        x[gf.ones((3, 2)) > 0, 0]
    with pytest.raises(IndexError, match="without axes must be the only index"):
        x[gf.tensor(1.0) > 0, 0]


def test_an_index_of_python_integers_tells_how_to_make_it() -> None:
    with pytest.raises(IndexError, match=r"this one is float32: create it with dtype='int64'.*astype\('int64'\)"):
        gf.ones(3)[gf.tensor([0, 1])]


def test_take_refuses_what_is_no_integer() -> None:
    x = gf.ones((3, 2))
    for wrong in (gf.tensor([True, False, True]), [True, False, True], gf.tensor([0.0]), slice(1), None):
        with pytest.raises(IndexError):
            gf.take(x, wrong, axis=0)
    with pytest.raises(ValueError, match="needs an axis"):
        gf.take(x, [0])
    with pytest.raises(IndexError, match="integer indices"):
        gf.take_along_axis(x, gf.ones((3, 2)), axis=0)
    with pytest.raises(ValueError, match="do not fit"):
        gf.take_along_axis(x, gf.tensor(np.zeros((2, 2), int)), axis=1)


# ---------------------------------------------------------------------- shape


@modest
@given(shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=3), data=st.data())
def test_permutations_and_flips_as_numpy(shape: tuple[int, ...], data: Any) -> None:
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    x, g = numbers(shape, 1), numbers(tuple(shape[a] for a in axes), 2)
    a = gf.tensor(x, requires_grad=True)
    out = gf.permute_dims(a, axes)
    close(out, np.transpose(x, axes))
    out.backward(gf.tensor(g))
    close(a.grad, np.transpose(g, np.argsort(axes)))
    turned = data.draw(hnp.valid_tuple_axes(len(shape)))
    close(gf.flip(a, axis=turned), np.flip(x, axis=turned))


@modest
@given(data=st.data())
def test_concat_split_and_stack_as_numpy(data: Any) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    parts = []
    for i, n in enumerate(lengths):
        part = list(shape)
        part[axis] = n
        parts.append(numbers(tuple(part), i))
    tensors = [gf.tensor(p, requires_grad=True) for p in parts]
    whole = gf.concat(tensors, axis=axis)
    expected = np.concatenate(parts, axis=axis)
    close(whole, expected)
    cuts = list(np.cumsum(lengths)[:-1].tolist())
    pieces = gf.split(whole, cuts, axis=axis)
    for piece, part in zip(pieces, parts, strict=True):
        close(piece, part)
    g = numbers(expected.shape, 9)
    whole.backward(gf.tensor(g))
    for t, gradient in zip(tensors, np.split(g, cuts, axis=axis), strict=True):
        close(t.grad, gradient)
    new_axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    close(gf.stack([tensors[0]] * 3, axis=new_axis), np.stack([parts[0]] * 3, axis=new_axis))


@modest
@given(shape=shapes, data=st.data())
def test_padding_as_numpy(shape: tuple[int, ...], data: Any) -> None:
    widths = tuple((data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in shape)
    x = numbers(shape)
    a = gf.tensor(x, requires_grad=True)
    out = gf.pad(a, widths, 7.0)
    expected = np.pad(x, widths, constant_values=7.0) if shape else x
    close(out, expected)
    out.backward(gf.tensor(numbers(out.shape, 1)))
    inner = tuple(slice(before, before + n) for (before, _), n in zip(widths, shape, strict=True))
    close(a.grad, numbers(out.shape, 1)[inner])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.reshape(4), "cannot be reshaped"),
        (lambda x: x.reshape(-1, -1), "cannot be reshaped"),
        (lambda x: x.reshape(-2, 3), "cannot be reshaped"),
        (lambda x: gf.broadcast_to(x, (3, 3)), "does not broadcast"),
        (lambda x: gf.broadcast_to(x, (3,)), "does not broadcast"),
        (lambda x: gf.squeeze(x, 0), "axes of length 1"),
        (lambda x: gf.permute_dims(x, (0,)), "needs all 2 axes"),
        (lambda x: gf.permute_dims(x, (0, 0)), "named twice"),
        (lambda x: gf.matrix_transpose(x[0]), "at least two axes"),
        (lambda x: gf.expand_dims(x, 4), "out of range"),
        (lambda x: gf.concat([x, gf.ones((2, 2))], axis=0), "equal shapes except along that axis"),
        (lambda x: gf.concat([]), "at least one"),
        (lambda x: gf.stack([x, gf.ones((2, 2))]), "equal shapes"),
        (lambda x: gf.split(x, 2, axis=1), "3 does not split into 2"),
        (lambda x: gf.split(x, 0), "does not split"),
        (lambda x: gf.pad(x, -1), "pad_width"),
        (lambda x: gf.pad(x, ((1, 1),) * 3), "2 such pairs for this tensor of 2 axes"),
        (lambda x: gf.matmul(x, x), "inner lengths differ: 3 and 2"),
        (lambda x: gf.matmul(x, gf.tensor(1.0)), "at least one axis"),
        (lambda x: gf.cumulative_sum(x), "needs an axis"),
        (lambda x: gf.clip(x, 2, 1), "min <= max"),
        (lambda x: gf.outer(x, x), "two tensors of one axis"),
        (lambda x: gf.moveaxis(x, (0, 1), 0), "a destination for each source"),
        (lambda x: gf.repeat(x, -1), "integers >= 0"),
        (lambda x: gf.tile(x, (1, -1)), "integers >= 0"),
        (lambda x: gf.argmax(x[:0]), r"argmax of no elements .* \(0, 3\)"),
        (lambda x: gf.argmin(x[:0], axis=0), "argmin of no elements .* the axis 0"),
        (lambda x: gf.var(x, correction=6), "more elements than its correction"),
        (lambda x: gf.linear(x, gf.ones((2, 2))), r"\(2, 3\), must be the last of the weight, of shape \(2, 2\)"),
        (lambda x: gf.linear(x, gf.ones((4, 3)), gf.ones(3)), r"needs a bias of shape \(4,\); got \(3,\)"),
        (lambda x: gf.linear(x, gf.ones((4, 3)), activation="swish"), "unknown activation 'swish'"),
        (lambda x: gf.layer_norm(x, (2,)), "last axes"),
        (lambda x: gf.layer_norm(x, (3,), gf.ones(2)), "weights of that shape"),
        (lambda x: gf.dropout(x, 1.0), "0 <= p < 1"),
        (lambda x: gf.dropout(x, -0.1), "0 <= p < 1"),
        (lambda x: gf.mse_loss(x, gf.ones(3)), "equal shapes"),
        (lambda x: gf.mse_loss(x, x, reduction="avg"), "mean, sum, none"),
        (lambda x: gf.huber_loss(x, x, delta=0), "delta > 0"),
        (lambda x: gf.cross_entropy(x, gf.tensor(np.array([0]))), r"labels of shape \(2,\)"),
        (lambda x: gf.cross_entropy(x, gf.tensor(np.array([0, 3]))), r"\[0, 3\)"),
        (lambda x: gf.cross_entropy(x, gf.tensor(np.array([0, -1]))), r"\[0, 3\)"),
        (lambda x: gf.cross_entropy(x, gf.ones(2)), "class probabilities"),
        (lambda x: gf.cross_entropy(x, x, label_smoothing=2.0), r"share in \[0, 1\]"),
        (lambda x: gf.cross_entropy(x, x, weight=gf.ones(2)), r"weight of shape \(3,\); got \(2,\)"),
        (lambda x: gf.nll_loss(x, gf.tensor(np.array([0, 1])), weight=gf.ones(2)), "weight"),
        (lambda x: gf.nll_loss(x[:0], gf.tensor(np.zeros(0, int))), "empty"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_the_numbers(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(gf.ones((2, 3)))


@pytest.mark.parametrize("name", ["add", "multiply", "divide", "power", "maximum", "less", "equal"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_shapes_that_do_not_broadcast_are_told(name: str, requires_grad: bool) -> None:
    x = gf.ones((2, 3), requires_grad=requires_grad)
    with pytest.raises(ValueError, match=rf"^{name}: the shapes \(2, 3\) and \(2, 4\) do not broadcast") as found:
        getattr(gf, name)(x, gf.ones((2, 4)))
    assert found.value.__suppress_context__, "the library's own error is left out"


def test_shapes_of_where_and_of_bools_that_do_not_broadcast_are_told() -> None:
    x = gf.ones((2, 3))
    with pytest.raises(ValueError, match=r"where: the shapes \(2, 3\) and \(2, 4\) do not"):
        gf.where(x > 0, gf.ones((2, 4)), 0.0)
    with pytest.raises(ValueError, match=r"logical_xor: the shapes \(2, 3\) and \(2,\) do not"):
        (x > 0) ^ (x[:, 0] > 0)


@pytest.mark.parametrize(
    ("name", "call"), [("negative", lambda p: -p), ("subtract", lambda p: p - p), ("subtract", lambda p: True - p),
                       ("sign", gf.sign)]
)  # fmt: skip
def test_arithmetic_that_bools_have_not_is_refused_by_name(name: str, call: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name} does not take bools: use ~, .*astype\('int64'\)"):
        call(gf.tensor([True, False]))


@pytest.mark.parametrize("name", ["floor", "ceil", "round"])
def test_rounding_leaves_integers_as_they_are(name: str) -> None:
    x = gf.tensor(np.array([2**62 + 1, -3]))
    out = getattr(gf, name)(x)
    assert (out.dtype, out.tolist()) == (gf.int64, x.tolist())
    ties = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, np.inf])
    np.testing.assert_array_equal(getattr(gf, name)(gf.tensor(ties)).numpy(), getattr(np, name)(ties))


def test_isinf_is_neither_isfinite_nor_isnan() -> None:
    x = gf.tensor([1.0, float("inf"), -float("inf"), float("nan")])
    assert gf.isinf(x).tolist() == [False, True, True, False]


@modest
@given(shape=hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3), data=st.data())
def test_repeat_tile_and_moved_axes_as_numpy(shape: tuple[int, ...], data: Any) -> None:
    x = numbers(shape)
    t, axes = gf.tensor(x), st.integers(-len(shape), len(shape) - 1)
    n, axis = data.draw(st.integers(0, 3)), data.draw(st.one_of(st.none(), axes))
    close(gf.repeat(t, n, axis=axis), np.repeat(x, n, axis=axis))
    times = data.draw(st.lists(st.integers(0, 3), max_size=4))
    close(gf.tile(t, times), np.tile(x, times))
    close(gf.tile(t, n), np.tile(x, n))
    a, b = data.draw(axes), data.draw(axes)
    close(gf.swapaxes(t, a, b), np.swapaxes(x, a, b))
    close(gf.moveaxis(t, a, b), np.moveaxis(x, a, b))
    some = tuple(data.draw(hnp.valid_tuple_axes(len(shape))))
    places = tuple(data.draw(st.permutations(range(len(shape))))[: len(some)])
    close(gf.moveaxis(t, some, places), np.moveaxis(x, some, places))


def test_arguments_of_the_wrong_type_are_refused() -> None:
    x = gf.ones((2, 3))
    for call in (
        lambda: gf.exp(1.0), lambda: gf.add(1, 2), lambda: gf.add(x, np.ma.ones(3)), lambda: gf.add(x, [1.0]),
        lambda: gf.matmul(x, 2.0), lambda: gf.where(x, x, x), lambda: gf.where(True, x, x), lambda: gf.concat([x, 1.0]),
        lambda: gf.linear(x, gf.ones((2, 3), dtype="float64")), lambda: gf.clip(x, gf.tensor(0.0)),
        lambda: gf.nll_loss(x, x[:, 0]), lambda: gf.one_hot(x, 3), lambda: gf.mse_loss(x, 0.0),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call()
