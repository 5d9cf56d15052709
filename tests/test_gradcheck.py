"""gradcheck and gradgradcheck: correct rules pass; the error for each kind of mistake says where and by how much."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case

import gradflow as gf
from gradflow import GradcheckError, gradcheck, gradgradcheck
from gradflow.autograd.batching import Batch
from gradflow.autograd.observers import Observer, observe
from gradflow.ops.table import OPERATIONS


def normal(*shape: int, seed: int = 0) -> gf.Tensor:
    return gf.tensor(np.asarray(np.random.default_rng([seed, *shape]).normal(size=shape)))


def of_case(case: Case) -> tuple[Callable[..., Any], list[gf.Tensor]]:
    """The case as a function of the inputs to differentiate by, and these inputs."""
    inputs = [gf.tensor(x) for x in case.inputs]
    places = case.differentiable()

    def function(*values: gf.Tensor) -> Any:
        full = list(inputs)
        for i, x in zip(places, values, strict=True):
            full[i] = x
        return case.call(*full)

    return function, [inputs[i] for i in places]


SMOOTH = [c for c in CASES if c.differentiable() and c.smooth]


class _Names(Observer):
    def __init__(self) -> None:
        self.names: set[str] = set()

    def forward(self, op: Any, inputs: Any, out: gf.Tensor, parameters: Any) -> None:
        if out.requires_grad:
            self.names.add(op.name)


def _smallest_for_each_entry() -> dict[str, Case]:
    """For each entry of the table the smooth case with the fewest elements, at least one, that records it.

    Recorded in the value or in its gradient: some entries occur in gradients alone.
    """
    found: dict[str, Case] = {}
    for case in sorted(SMOOTH, key=lambda c: sum(x.size for x in c.inputs)):
        function, xs = of_case(case)
        if not all(x.size for x in xs):
            continue
        with observe(seen := _Names()):
            _, back = gf.vjp(function, *[x.requires_grad_() for x in xs])
            value = function(*xs)
            many = isinstance(value, (list, tuple))
            back([gf.ones_like(y) for y in value] if many else gf.ones_like(value))
        for name in seen.names & set(OPERATIONS):
            found.setdefault(name, case)
    return found


FOR_EACH_ENTRY = _smallest_for_each_entry()


# ---------------------------------------------------------------------- right rules


@pytest.mark.slow
@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_every_smooth_case_passes(case: Case) -> None:
    function, xs = of_case(case)
    gradcheck(function, *xs)


def test_every_entry_of_the_table_has_a_case() -> None:
    missing = set(OPERATIONS) - set(FOR_EACH_ENTRY)
    itself = {"astype", "to_device"}  # of float64 on one device
    assert missing == itself | {"perceptron"}, "an observer, as gradcheck is, sees the layers of a perceptron"


@pytest.mark.parametrize("name", sorted(FOR_EACH_ENTRY))
def test_every_entry_passes_to_the_second_order(name: str) -> None:
    function, xs = of_case(FOR_EACH_ENTRY[name])
    gradgradcheck(function, *xs)


def test_nested_arguments_and_results_and_arguments_that_are_not_differentiated_by() -> None:
    def function(p: Any, labels: gf.Tensor, how: str, flag: bool) -> Any:
        assert how == "mean"
        assert flag is True
        logits = p["w"] @ p["x"][0]
        return {"loss": gf.cross_entropy(logits.T, labels, reduction=how), "parts": [gf.sin(p["w"]), (logits * 2,)]}

    arguments = ({"w": normal(2, 3), "x": [normal(3, 4)]}, gf.tensor(np.array([0, 1, 1, 0])), "mean", True)
    gradcheck(function, *arguments)
    gradgradcheck(function, *arguments)


def test_modules_numbers_and_closed_over_tensors() -> None:
    gf.manual_seed(0)
    model = gf.nn.MLP([3, 4, 2], activation="gelu", dtype="float64")
    own = dict(model.named_parameters())
    gradcheck(lambda p, x: gf.nn.functional_call(model, p, x), own, normal(2, 3))
    w = normal(3).requires_grad_()
    gradcheck(lambda x: gf.sin(x * w), normal(3))
    gradcheck(lambda x: x * x, gf.tensor(2.0, dtype="float64"))
    assert w.grad is None
    assert all(p.grad is None for p in model.parameters())


def test_on_a_device(device: str) -> None:
    x = gf.tensor([0.1, -0.7], dtype="float64", device=device)
    gradcheck(gf.tanh, x)
    gradgradcheck(gf.tanh, x)
    with pytest.raises(GradcheckError):
        gradcheck(lambda x: WRONG_FACTOR(x), x)


def test_inside_no_grad_and_with_inputs_that_need_gradients() -> None:
    x = normal(2).requires_grad_()
    with gf.no_grad():
        gradcheck(gf.sin, x)
        gradgradcheck(gf.sin, x)
    gradcheck(gf.sin, x)
    gradgradcheck(gf.sin, x)
    assert x.grad is None


def test_seeded_randomness_is_allowed() -> None:
    gradcheck(lambda x: gf.dropout(x, 0.5, generator=gf.Generator(1)), normal(6))
    before = gf.random.default_generator.state_dict()
    gradgradcheck(gf.sin, normal(2))
    assert gf.random.default_generator.state_dict() == before, "it drew from the global stream"


def test_results_without_elements_and_results_that_are_constant() -> None:
    gradcheck(lambda x: x[:0], normal(2))
    gradcheck(lambda x: (gf.ones(2, dtype="float64"), x), normal(2))
    gradcheck(lambda x: x, gf.zeros((0, 2), dtype="float64"))


# ---------------------------------------------------------------------- wrong rules

WRONG_FACTOR = gf.operation(
    "wrong_factor",
    lambda F, x: F.multiply(F.square(x), 3.0),
    lambda F, g, _out, x: F.multiply(F.multiply(g, x), 5.0),
)


def test_a_wrong_rule_is_found_with_the_entry_both_values_and_the_bound() -> None:
    x = gf.tensor(np.array([[0.0, 2.0], [1.0, 4.0]]))
    with pytest.raises(GradcheckError) as caught:
        gradcheck(lambda p: {"y": [WRONG_FACTOR(p["x"])]}, {"x": x})
    lines = str(caught.value).split("\n  ")
    assert lines[0] == "gradcheck: the derivative of result['y'][0][0, 1] by argument 0['x'][0, 1]"
    assert lines[1] == "by the rules: 10"
    assert float(lines[2].removeprefix("by central differences: ")) == pytest.approx(12.0, rel=1e-7)
    assert re.fullmatch(r"off by 2(\.0+)?; the bound is 0.00012\d*", lines[3]), lines[3]
    assert len(lines) == 4


def test_a_gradient_at_the_wrong_place_is_found() -> None:
    rolled = gf.operation(
        "rolled", lambda F, x: F.multiply(x, 2.0), lambda F, g, _out, _x: F.multiply(F.flip(g, axis=0), 2.0)
    )
    with pytest.raises(
        GradcheckError, match=r"of result\[0\] by argument 0\[0\]\n  by the rules: 0\n.*: 2\n  off by 2"
    ):
        gradcheck(rolled, normal(2))


def test_a_wrong_rule_for_one_argument_names_that_argument() -> None:
    half = gf.operation(
        "half_right",
        lambda F, a, b: F.multiply(a, b),
        lambda F, g, _out, _a, b: F.multiply(g, b),
        lambda F, g, _out, a, _b: F.negative(F.multiply(g, a)),
    )
    with pytest.raises(GradcheckError, match=r"of result\[0\] by argument 1\[0\]"):
        gradcheck(half, normal(2), normal(2, seed=1))


def test_a_missing_rule_is_found() -> None:
    missing = gf.operation("missing", lambda F, x: F.square(x), None)
    with pytest.raises(GradcheckError, match=r"by the rules: 0\n  by central differences: "):
        gradcheck(missing, normal(2))


def test_a_gradient_that_is_not_a_number_is_found() -> None:
    nan = gf.operation("nan", lambda F, x: F.square(x), lambda F, g, _out, _x: F.multiply(g, float("nan")))
    with pytest.raises(GradcheckError, match="by the rules: nan"):
        gradcheck(nan, normal(2))


def test_a_value_that_is_not_a_number_is_found() -> None:
    bad = gf.operation("bad", lambda F, x: F.multiply(x, float("nan")), lambda F, g, _out, _x: g)
    with pytest.raises(GradcheckError, match=r"by central differences: nan"):
        gradcheck(bad, normal(2))


def test_a_wrong_second_derivative_is_found_by_gradgradcheck_alone() -> None:
    """The rule is right in value, but `_x` is a stand-in that cannot be differentiated by: a constant by mistake."""
    saved: list[Any] = []

    def forward(F: Any, x: Any) -> Any:
        saved[:] = [x]
        return F.multiply(F.square(x), 0.5)

    def rule(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        x = saved[0] if not isinstance(g, gf.Tensor) else gf.tensor(saved[0])
        return F.multiply(g, x)

    constant = gf.operation("constant", forward, rule)
    x = normal(1)
    gradcheck(constant, x)
    with pytest.raises(GradcheckError, match="gradgradcheck: the derivative of result"):
        gradgradcheck(constant, x)


def test_a_rule_right_on_arrays_and_wrong_on_tensors_is_found() -> None:
    def rule(F: Any, g: Any, _out: Any, x: Any) -> Any:
        return F.multiply(F.multiply(g, x), 2.0 if not isinstance(g, gf.Tensor) else 4.0)

    two_faced = gf.operation("two_faced", lambda F, x: F.square(x), rule)
    with pytest.raises(GradcheckError) as caught:
        gradcheck(two_faced, gf.tensor(np.array([3.0])))
    lines = str(caught.value).split("\n  ")
    assert lines == [
        "gradcheck: the derivative of result[0] by argument 0[0]",
        "by the rules on arrays: 6",
        "by the same rules on tensors: 12",
        "off by 6; the bound is 6.01e-05: write rules with functions of F only",
    ]


def test_a_rule_that_changes_the_gradient_is_found() -> None:
    def rule(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        g *= 2.0
        return g

    doubling = gf.operation("doubling", lambda F, x: F.multiply(x, 2.0), rule)
    with pytest.raises(GradcheckError, match="the rule of doubling for argument 0 changed the gradient in place"):
        gradcheck(lambda x: doubling(gf.sin(x)) * 1.0, normal(2))


def test_a_rule_that_changes_an_input_or_the_result_is_found() -> None:
    def of_input(F: Any, g: Any, _out: Any, a: Any, b: Any) -> Any:
        F.setitem(b, ..., 0.0)
        return g

    def of_result(F: Any, g: Any, out: Any, x: Any) -> Any:
        F.setitem(out, ..., 0.0)
        return g

    first = gf.operation("of_input", lambda F, a, b: F.add(a, b), of_input, of_input)
    with pytest.raises(GradcheckError, match="the rule of of_input for argument 0 changed input 1 in place"):
        gradcheck(lambda x: first(gf.sin(x), gf.cos(x)), normal(2))
    second = gf.operation("of_result", lambda F, x: F.multiply(x, 1.0), of_result)
    with pytest.raises(GradcheckError, match="the rule of of_result for argument 0 changed the result in place"):
        gradcheck(lambda x: second(gf.sin(x)), normal(2))


def test_a_rule_that_gives_another_dtype_is_found() -> None:
    narrow = gf.operation(
        "narrow",
        lambda F, x: F.multiply(x, 2.0),
        lambda F, g, _out, _x: F.astype(F.multiply(g, 2.0), F.dtypes["float32"]),
    )
    message = "the rule of narrow for argument 0 gave float32 for a gradient of float64"
    with pytest.raises(GradcheckError, match=message):
        gradcheck(narrow, normal(2))


def test_a_forward_that_gives_another_dtype_is_found() -> None:
    narrow = gf.operation(
        "narrow", lambda F, x: F.astype(x, F.dtypes["float32"]), lambda F, g, _out, _x: F.multiply(g, 1.0)
    )
    with pytest.raises(GradcheckError, match="narrow gave float32 for inputs of float64"):
        gradcheck(narrow, normal(2))
    gradcheck(lambda x: x.astype("float32").astype("float64") * 0.0, normal(2))  # astype may change the dtype


# ---------------------------------------------------------------------- functions that cannot be checked


def test_a_function_that_changes_its_input_is_found() -> None:
    def function(x: gf.Tensor) -> gf.Tensor:
        y = x + 1.0
        with gf.no_grad():
            x += 1.0
        return y

    with pytest.raises(GradcheckError, match=r"changed argument 0\['x'\] in place"):
        gradcheck(lambda p: function(p["x"]), {"x": normal(2)})


def test_a_function_that_changes_its_input_outside_no_grad_is_refused_and_the_input_stays() -> None:
    x = normal(2)
    before = x.tolist()

    def function(x: gf.Tensor) -> gf.Tensor:
        x *= 2.0
        return x

    with pytest.raises(RuntimeError, match="in place"):
        gradcheck(function, x)
    assert x.tolist() == before


def test_a_function_with_other_values_each_time_is_found() -> None:
    with pytest.raises(GradcheckError, match="returns other values when called again: seed its random numbers"):
        gradcheck(lambda x: gf.dropout(x, 0.5), normal(50))
    with pytest.raises(GradcheckError, match="gradgradcheck: the function returns other values when called again"):
        gradgradcheck(lambda x: gf.dropout(x * x, 0.5), normal(50))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_inputs_that_are_not_float64_are_refused_by_name(check: Any) -> None:
    with pytest.raises(TypeError, match=r"argument 1 is a tensor of shape \(2,\), float32 on cpu: convert it"):
        check(lambda x, y: x, normal(2), gf.ones(2))
    with pytest.raises(TypeError, match=r"argument 0\['b'\] is a tensor of shape \(3,\), int64"):
        check(lambda p: p["a"], {"a": normal(2), "b": gf.tensor(np.arange(3))})
    with pytest.raises(TypeError, match=r"argument 0\[1\] is float"):
        check(lambda p: p[0], (normal(2), 1.0))


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("inputs", [(), (gf.tensor(np.arange(3)),), ("a", 1, None)], ids=["none", "int", "other"])
def test_nothing_to_differentiate_by_is_refused(check: Any, inputs: Any) -> None:
    with pytest.raises(TypeError, match="needs at least one float64 tensor to differentiate by"):
        check(lambda *x: gf.ones(1, dtype="float64"), *inputs)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda x: 1.0, "float"),
        (lambda x: x.argmax(), "int64"),
        (lambda x: x > 0, "bool"),
    ],
    ids=["float", "int tensor", "bool tensor"],
)
def test_results_that_carry_no_gradient_are_refused_by_name(check: Any, value: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=rf"{check.__name__} .*result\['y'\]\[1\].*({kind})"):
        check(lambda x: {"y": (x, value(x))}, normal(2))


def test_a_kink_is_found() -> None:
    with pytest.raises(GradcheckError, match=r"by the rules: 0\n  by central differences: 0\.5"):
        gradcheck(gf.relu, gf.zeros(1, dtype="float64"))


# ---------------------------------------------------------------------- bounds


def test_rtol_and_atol_set_the_bound() -> None:
    off = gf.operation("off", lambda F, x: F.multiply(x, 1.0), lambda F, g, _out, _x: F.multiply(g, 1.001))
    x = normal(2)
    gradcheck(off, x, rtol=2e-3)
    gradcheck(off, x, rtol=0.0, atol=2e-3)
    with pytest.raises(GradcheckError, match=r"off by 0\.001; the bound is 0\.0005$"):
        gradcheck(off, x, rtol=5e-4, atol=0.0)
    with pytest.raises(GradcheckError, match=r"the bound is 1\.01e-05"):
        gradcheck(off, x)


def test_step_sets_the_step_of_the_differences() -> None:
    seen: list[float] = []

    def function(x: gf.Tensor) -> gf.Tensor:
        seen.append(x.item())
        return x * x

    gradcheck(function, gf.tensor(4.0, dtype="float64"), step=0.125)
    assert sorted(set(seen)) == [3.5, 4.0, 4.5], "a step is relative to numbers above 1"


def test_state_is_as_before_after_a_failure() -> None:
    from gradflow.autograd import grad_mode

    with pytest.raises(GradcheckError):
        gradcheck(WRONG_FACTOR, normal(2))
    assert grad_mode.current_observer.get() is None
    assert grad_mode.grad_enabled.get() is grad_mode.FAST


@pytest.mark.parametrize(
    "rule", [lambda F, g, x: F.multiply(F.square(g), F.cos(x)), lambda F, g, x: F.multiply(F.abs(g), F.cos(x))]
)
def test_a_rule_that_is_not_linear_in_the_gradient_is_found(rule: Any) -> None:
    sine = gf.operation("sine", lambda F, x: F.sin(x), lambda F, g, _out, x: rule(F, g, x))
    with pytest.raises(gf.GradcheckError, match="not linear in the incoming gradient"):
        gf.gradcheck(sine, gf.tensor([0.3, 0.4, 0.5], dtype="float64"))


def test_a_rule_that_fails_on_batches_is_found() -> None:
    square = gf.operation("square", lambda F, x: F.multiply(x, x), lambda F, g, _out, x: g * x * 2)
    with pytest.raises(TypeError, match="functions of F only"):
        gf.gradcheck(square, gf.tensor([0.3, 0.4], dtype="float64"))


def test_a_rule_right_one_by_one_and_wrong_on_batches_is_found() -> None:
    def rule(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        return F.multiply(g, 3.0 if isinstance(g, Batch) else 2.0)

    double = gf.operation("double", lambda F, x: F.multiply(x, 2.0), rule)
    with pytest.raises(GradcheckError, match=r"(?s)on one gradient: 2\n.*on a batch: 3\n.*functions of F only"):
        gradcheck(double, gf.tensor([0.3, 0.4], dtype="float64"))
