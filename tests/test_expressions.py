"""Expressions of `gradflow graph`: values and gradients against Python's own evaluation, and errors that say where."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow.drawing.expressions import ExpressionError, functions, parse

NAMES = ("x", "y", "z", "가중치")


class Dual:
    """A number and its derivative: Python evaluates an expression of these to the value and the derivative."""

    def __init__(self, number: float, slope: float = 0.0) -> None:
        self.number, self.slope = number, slope

    def __add__(self, other: Dual) -> Dual:
        return Dual(self.number + other.number, self.slope + other.slope)

    def __sub__(self, other: Dual) -> Dual:
        return Dual(self.number - other.number, self.slope - other.slope)

    def __mul__(self, other: Dual) -> Dual:
        return Dual(self.number * other.number, self.slope * other.number + self.number * other.slope)

    def __truediv__(self, other: Dual) -> Dual:
        return self * Dual(1 / other.number, -other.slope / other.number**2)

    def __pow__(self, other: Dual) -> Dual:
        power = self.number**other.number
        slope = other.number * self.number ** (other.number - 1) * self.slope if other.number else 0.0
        return Dual(power, slope + (power * math.log(self.number) * other.slope if other.slope else 0.0))

    def __neg__(self) -> Dual:
        return Dual(-self.number, -self.slope)

    def __pos__(self) -> Dual:
        return self


def _smooth(f: Callable[[float], float], slope: Callable[[float], float]) -> Callable[[Dual], Dual]:
    return lambda x: Dual(f(x.number), slope(x.number) * x.slope)


FUNCTIONS: dict[str, Any] = {
    "sin": _smooth(math.sin, math.cos),
    "exp": _smooth(math.exp, math.exp),
    "tanh": _smooth(math.tanh, lambda x: 1 - math.tanh(x) ** 2),
    "log": _smooth(math.log, lambda x: 1 / x),
    "sqrt": _smooth(math.sqrt, lambda x: 0.5 / math.sqrt(x)),
    "relu": _smooth(lambda x: max(x, 0.0), lambda x: float(x > 0)),
    "square": lambda x: x * x,
}


def _one_of(better: Callable[[float, float], bool]) -> Callable[[Dual, Dual], Dual]:
    def choose(a: Dual, b: Dual) -> Dual:
        if a.number == b.number:
            raise ArithmeticError("a tie has no derivative")
        return a if better(a.number, b.number) else b

    return choose


OF_TWO: dict[str, Any] = {
    "maximum": _one_of(operator.gt),
    "min": _one_of(operator.lt),
    "add": Dual.__add__,
}


def value(text: str, **given_: Any) -> Any:
    """The result of an expression of float64 tensors, as nested lists."""
    return result(text, **given_)[0].tolist()


def result(text: str, **given_: Any) -> tuple[gf.Tensor, dict[str, gf.Tensor]]:
    expression = parse(text)
    expression.check(given_)
    tensors = {n: gf.tensor(v, dtype="float64", requires_grad=True) for n, v in given_.items()}
    return list(expression.compute(tensors).values())[-1], tensors


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):  # divisions by 0 are no mistakes here
        yield


# ---------------------------------------------------------------------- what is computed

leaves = st.one_of(
    st.sampled_from(NAMES),
    st.integers(0, 9).map(str),
    st.sampled_from(["0.5", ".25", "2.", "3E0", "1e2", "0.01e+2", "1e-3", "pi", "e"]),
)


def _extended(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**", " + ", " * "]), inner).map("".join),
        st.tuples(inner, st.sampled_from(["**2", "**-1", "**3"])).map("".join),
        st.tuples(st.sampled_from(["({})", "-{}", "+ {}"]), inner).map(lambda t: t[0].format(t[1])),
        st.tuples(st.sampled_from([*FUNCTIONS]), inner).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(st.sampled_from([*OF_TWO]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
    )


_NUMBER = re.compile(r"(?<![\w.])(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def test_values_and_gradients_are_those_of_python(random_examples: Callable[[int], Any]) -> None:
    compared = [0, 0]

    @random_examples(400)
    @given(st.recursive(leaves, _extended, max_leaves=10), st.lists(st.floats(0.25, 3.0), min_size=4, max_size=4))
    def compare(text: str, numbers: list[float]) -> None:
        code = compile(_NUMBER.sub(lambda n: f"Dual({float(n[0])})", text), "", "eval")
        constants = {"pi": Dual(math.pi), "e": Dual(math.e)}
        names = [name for name in parse(text).names if name in NAMES]
        at = dict(zip(NAMES, numbers, strict=True))
        expected: Dual | None = None
        slopes = {}
        try:
            for name in names or NAMES[:1]:
                values = {n: Dual(number, float(n == name)) for n, number in at.items()}
                expected = eval(code, {"Dual": Dual, **FUNCTIONS, **OF_TWO, **constants, **values})
                slopes[name] = expected.slope
        except (ArithmeticError, ValueError, TypeError):  # where gradflow has inf and NaN, or Python complex numbers
            return
        assert expected is not None
        if isinstance(expected.number, complex) or not max(map(abs, [expected.number, *slopes.values()])) < 1e100:
            return
        out, tensors = result(text.replace("**", "^"), **{n: at[n] for n in names})
        assert out.item() == pytest.approx(expected.number, rel=1e-9, abs=1e-9)
        compared[0] += 1
        if out.requires_grad:
            out.backward()
            for name in names:
                gradient = tensors[name].grad
                assert (0.0 if gradient is None else gradient.item()) == pytest.approx(slopes[name], rel=1e-7, abs=1e-7)
                compared[1] += 1

    compare()
    assert min(compared) > 200


def test_any_text_is_computed_or_refused(random_examples: Callable[[int], Any]) -> None:
    messages = []

    @random_examples(300)
    @given(st.text("xy()+-*/^@,;=.[]0123e \t\n\0'\"가²😀", max_size=30))
    def try_it(text: str) -> None:
        try:
            expression = parse(text)
            expression.compute({n: gf.tensor(2.0, dtype="float64") for n in expression.names})
        except ExpressionError as error:
            messages.append(str(error))

    try_it()
    assert len(messages) > 100
    assert all(message.isprintable() and message for message in messages)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-2^2", -4.0), ("(-2)^2", 4.0), ("2^3^2", 512.0), ("2^-1", 0.5), ("2^-1*3", 1.5), ("2**-3**2", 2.0**-9),
        ("1-2-3", -4.0), ("8/4/2", 1.0), ("2*3+4", 10.0), ("2+3*4", 14.0), ("--3", 3.0), ("-+-3", 3.0), ("2*-3", -6.0),
        ("1e-3", 1e-3), (".5", 0.5), ("1.", 1.0), ("99999999999999999999", 1e20), ("pi", math.pi), ("e^1", math.e),
        ("max(1, 2)", 2.0), ("min(1, 2)", 1.0), ("sum(3)", 3.0), ("clip(5, 0, 1)", 1.0), ("1/0", math.inf),
        ("log(0)", -math.inf), ("10^400", math.inf),
    ],
)  # fmt: skip
def test_numbers(text: str, expected: float) -> None:
    assert value(text) == pytest.approx(expected, rel=1e-15)


def test_0_by_0_is_nan() -> None:
    assert math.isnan(value("x/x", x=0.0))


def test_example_6_has_its_values_and_gradients() -> None:
    w, x = [[0.1, 0.5], [-0.3, 0.8]], [0.2, 0.4]
    out, tensors = result("q = W @ x; f = sum(q^2)", W=w, x=x)
    assert out.item() == pytest.approx(0.116)
    out.backward()
    assert tensors["W"].grad is not None
    assert tensors["x"].grad is not None
    assert tensors["W"].grad.reshape(4).tolist() == pytest.approx([0.088, 0.176, 0.104, 0.208])
    assert tensors["x"].grad.tolist() == pytest.approx([-0.112, 0.636])


def test_a_name_may_be_hangul_in_either_normal_form() -> None:
    assert value("\u1100\u1161 * 2", 가=3.0) == 6.0  # as macOS types it, and composed


def test_a_value_takes_the_place_of_a_constant() -> None:
    assert value("e + 1", e=2.0) == 3.0
    assert parse("e * x").names == ("e", "x")


def test_names_of_steps_are_reused() -> None:
    out = parse("q = x + y; r = q * q; r - q").compute({n: gf.tensor(2.0) for n in "xy"})
    assert {name: t.item() for name, t in out.items()} == {"q": 4.0, "r": 16.0, "": 12.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(" * 10_000 + "x" + ")" * 10_000, 2.0),
        ("-" * 10_000 + "x", 2.0),
        ("abs(" * 5_000 + "x" + ")" * 5_000, 2.0),
        ("1^" * 5_000 + "x", 1.0),
        ("+".join(["x"] * 5_000), 10_000.0),
    ],
    ids=["parentheses", "signs", "calls", "powers", "sums"],
)
def test_depth_and_length_need_no_recursion(text: str, expected: float) -> None:
    assert value(text, x=2.0) == expected


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the expression is empty"),
        ("  ", "the expression is empty"),
        ("x +", "a number, a name or ( is missing, at the end of 'x +'"),
        ("x + * y", "a number, a name or ( is missing before *, at character 5 of 'x + * y'"),
        ("x y", "an operator is missing before y, at character 3 of 'x y'"),
        ("2x", "an operator is missing before x, at character 2 of '2x'"),
        ("(x)(y)", "an operator is missing before (, at character 4 of '(x)(y)'"),
        ("(x", "this ( is never closed, at character 1 of '(x'"),
        ("x)", "this ) closes nothing, at character 2 of 'x)'"),
        ("(x, y)", "a comma only separates the arguments of a function, at character 3 of '(x, y)'"),
        ("sigmod(x)", "unknown function sigmod, at character 1 of 'sigmod(x)'; did you mean sigmoid?"),
        ("x(2)", "unknown function x, at character 1 of 'x(2)'; a product is x * (...)"),
        ("eval(x)", "unknown function eval, at character 1 of 'eval(x)'"),
        ("exp()", "exp takes 1 argument; got none, at character 1 of 'exp()'"),
        ("exp(x, y)", "exp takes 1 argument; got 2, at character 1 of 'exp(x, y)'"),
        ("maximum(x)", "maximum takes 2 arguments; got 1, at character 1 of 'maximum(x)'"),
        ("softmax(x, 0, 1)", "softmax takes 1 to 2 arguments; got 3, at character 1 of 'softmax(x, 0, 1)'"),
        ("x.real", "attributes cannot be used at character 2 of 'x.real'"),
        ("x.__class__()", "attributes cannot be used at character 2 of 'x.__class__()'"),
        ("x[0]", "an expression has no brackets at character 2 of 'x[0]'"),
        ("x == y", "a number, a name or ( is missing before =, at character 4 of 'x == y'"),
        ("sum(x, axis=0)", "arguments have no names here: write them in their order, as in sum(x, 0), at character 12"),
        ("x + y = z", "= gives a name to a whole step, as in q = x + y; f = q * z, at character 7"),
        ("ln(x)", "unknown function ln, at character 1 of 'ln(x)'; write log(x)"),
        ("square(W@x).sum()", "'square(W@x).sum()': write sum(...)"),
        ("np.sin(x)", "'np.sin(x)': write sin(x)"),
        ("w.T @ x", "'w.T @ x': write matrix_transpose(w)"),
        ("|x|", "'|x|': write abs(x)"),
        ("x if x>0 else 0", "'x if x>0 else 0': write relu(x), min(x, y) or max(x, y)"),
        ("x; y", "what is before this ; needs a name, as in q = x + y; f = q * z, at character 2 of 'x; y'"),
        ("f =", "a number, a name or ( is missing, at the end of 'f ='"),
        ("'a'", '"\'" cannot be used at character 1'),
        ("x²", "'²' cannot be used at character 2 of 'x²'"),
        ("😀 + 1", "'😀' cannot be used at character 1 of '😀 + 1'"),
        ("1e400 * x", "this number is too large for float64, at character 1 of '1e400 * x'"),
        ("(" * 10_000 + "x", "this ( is never closed, at character 10000 of ...'(((((((((((((((((((((x'"),
        ("x" + ")" * 10_000, "this ) closes nothing, at character 2 of 'x))))))))))))))))))))'"),
        ("x+" * 500_000 + "x", "the expression has 1,000,001 characters; at most 100,000 are allowed"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(message)):
        parse(text)


@pytest.mark.parametrize(
    ("text", "given_", "message"),
    [
        ("x + weigth", {"x": 1.0, "weight": 2.0}, "weigth has no value at character 5 of 'x + weigth'; did you mean"),
        ("x + y", {"x": 1.0}, "y has no value at character 5 of 'x + y': give it one: y=2"),
        ("exp + x", {"x": 1.0}, "exp is a function, at character 1 of 'exp + x': it needs arguments, as in exp(x)"),
        ("q = x*q; q", {"x": 1.0}, "q is used before it is computed, at character 7 of 'q = x*q; q'"),
        ("f = q; q = x", {"x": 1.0}, "q is used before it is computed, at character 5 of 'f = q; q = x'"),
        ("q = x + 1; k * q", {"x": 1.0}, "k has no value at character 12 of 'q = x + 1; k * q': give it one: k=2"),
        ("x * 2", {"x": 1.0, "y": 2.0}, "y has a value, but the expression does not use it; its names are x"),
        ("1 + 2", {"y": 2.0}, "y has a value, but the expression does not use it; it has no names"),
        ("q = x; q", {"x": 1.0, "q": 2.0}, "q has a value, q=..., and is computed at character 1 of 'q = x; q'"),
    ],
)
def test_values_must_be_those_of_the_expression(text: str, given_: dict[str, float], message: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(message)):
        parse(text).check(given_)


@pytest.mark.parametrize(
    ("text", "given_", "message"),
    [
        ("x @ y", {"x": 1.0, "y": 2.0}, "matmul needs at least one axis on each side; got shapes () and (), at char"),
        ("2 + x*y", {"x": [1.0, 2.0], "y": [1.0, 2.0, 3.0]}, "multiply: the shapes (2,) and (3,) do not broadcast"),
        ("sum(x, 5)", {"x": [1.0]}, "axis 5 is out of range for a tensor of 1 axes, at character 1 of 'sum(x, 5)'"),
        ("softmax(x, y)", {"x": [1.0], "y": 1.0}, "at character 1 of 'softmax(x, y)'"),
        ("tile(x, 1000000000)", {"x": [1.0]}, "1,000,000,000 is more than 10,000, at character 1 of"),
        (
            "tile(tile(x, 9000), 2)",
            {"x": [1.0]},
            "a value of 18,000 elements; at most 10,000 are drawn, at character 1",
        ),
        ("reshape(x, 3)", {"x": [1.0]}, "at character 1 of 'reshape(x, 3)'"),
    ],
)
def test_what_a_function_refuses_is_named_with_its_place(text: str, given_: dict[str, Any], message: str) -> None:
    with pytest.raises(ExpressionError, match=re.escape(message)):
        result(text, **given_)


def test_the_functions_are_those_of_the_library() -> None:
    found = functions()
    assert {"exp", "log", "sin", "tanh", "sigmoid", "relu", "maximum", "sum", "softmax", "mse_loss", "where"} <= set(
        found
    )
    assert not {"zeros", "tensor", "stack", "split", "save", "load"} & set(found)
    assert all(found[name] is getattr(gf, name) for name in found)
