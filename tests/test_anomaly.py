"""detect_anomaly: which value it reports, its message, and its cost."""

# ruff: noqa: PT012 (which of several statements is blamed is the point)

from __future__ import annotations

import gc
import re
import sys
import weakref
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import NonFiniteError
from gradflow.autograd import grad_mode
from gradflow.autograd.observers import Observer, observe
from gradflow.debug import anomaly

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, about the values that are looked for

HERE = __file__


def line_after(count: int = 1) -> int:
    """The number of the line so many lines after the caller's."""
    return sys._getframe(1).f_lineno + count


def leaf(*values: float, dtype: str = "float32") -> gf.Tensor:
    return gf.tensor(np.array(values, dtype), requires_grad=True)


def lines_of(error: Any) -> list[str]:
    return str(error.value).split("\n  ")


# ---------------------------------------------------------------------- the forward pass


def test_the_message_of_an_elementwise_operation(device: str) -> None:
    x = gf.tensor([[1.0, 4.0], [0.0, 9.0]], requires_grad=True)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        number = line_after()
        y = gf.log(x)
        y.sum()
    head, where, result, first, *rest = lines_of(error)
    assert head == "log gave -inf at index (1, 0)"
    assert where == f"in the forward pass, at {HERE}:{number}: y = gf.log(x)"
    assert result == f"result: tensor of shape (2, 2), float32 on {x.device}"
    assert first == f"input 0: tensor of shape (2, 2), float32 on {x.device}, 0.0 there, from 0.0 to 9.0"
    assert rest == []
    assert isinstance(error.value, FloatingPointError)


def test_two_operands_that_broadcast_and_a_number() -> None:
    a, b = gf.tensor([[1.0], [2.0]]), gf.tensor([1.0, 0.0, 0.0])
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        a / b
    lines = lines_of(error)
    assert lines[0] == "divide gave inf at index (0, 1), the first of 4 non-finite elements of 6"
    assert lines[3] == "input 0: tensor of shape (2, 1), float32 on cpu, 1.0 there, from 1.0 to 2.0"
    assert lines[4] == "input 1: tensor of shape (3,), float32 on cpu, 0.0 there, from 0.0 to 1.0"
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        gf.tensor([0.0]) / 0.0
    assert lines_of(error)[4] == "input 1: the number 0.0"


def test_a_product_and_an_index_without_a_counterpart() -> None:
    a, b = gf.full((2, 3), 1e30), gf.full((3, 4), 1e30)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        a @ b
    lines = lines_of(error)
    assert lines[0].startswith("matmul gave inf at index (0, 0), the first of 8 non-finite elements of 8")
    assert lines[3].startswith("input 0: tensor of shape (2, 3), float32 on cpu, from 1")


def test_a_fused_layer_in_a_module_names_the_users_line() -> None:
    layer = gf.nn.Linear(2, 3, activation="gelu")
    with gf.no_grad():
        layer.bias[1] = float("nan")
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        number = line_after()
        out = layer(gf.ones((4, 2)))
        out.sum()
    lines = lines_of(error)
    assert lines[0] == "linear gave nan at index (0, 1), the first of 4 non-finite elements of 12"
    assert lines[1] == f"in the forward pass, at {HERE}:{number}: out = layer(gf.ones((4, 2)))"
    assert lines[5].startswith("input 2: tensor of shape (3,), float32 on cpu, nan there, from ")
    assert lines[5].endswith(", 1 of 3 elements non-finite")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("cross_entropy", lambda x: gf.cross_entropy(x, gf.tensor(np.array([0, 1])))),
        ("mse_loss", lambda x: gf.mse_loss(x, gf.zeros((2, 2)))),
        ("softmax", gf.softmax),
        ("layer_norm", lambda x: gf.layer_norm(x, (2,))),
        ("sum", gf.sum),
        ("concat", lambda x: gf.concat([gf.ones((1, 2)), x])),
        ("getitem", lambda x: x[:, 0]),
        ("astype", lambda x: x.astype("float64")),
    ],
)
def test_operations_of_every_kind_are_named(name: str, function: Any) -> None:
    x = gf.tensor([[float("nan"), 1.0], [2.0, 3.0]])
    with (
        pytest.raises(NonFiniteError, match=rf"^{name}(_view)? gave nan at index .*\n.*{re.escape(HERE)}"),
        gf.detect_anomaly(),
    ):
        function(x)


def test_the_first_in_order_is_reported() -> None:
    x = gf.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(NonFiniteError, match=r"^log gave -inf"), gf.detect_anomaly():
        y = gf.log(x)
        z = gf.sqrt(x - 5.0)
        ((y * z).sum() / 0.0).backward()


def test_an_input_that_was_not_finite_before_is_reported_as_such() -> None:
    x = gf.tensor([1.0, float("nan"), float("inf")])
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        x + 1.0
    assert lines_of(error)[3] == (
        "input 0: tensor of shape (3,), float32 on cpu, nan there, from 1.0 to 1.0, 2 of 3 elements non-finite"
    )
    with pytest.raises(NonFiniteError, match=r"nan there, 1 of 1 elements non-finite"), gf.detect_anomaly():
        gf.exp(gf.tensor([float("nan")]))


def test_operations_that_are_not_recorded_are_seen_too() -> None:
    with pytest.raises(NonFiniteError, match=r"^exp gave inf"), gf.no_grad(), gf.detect_anomaly():
        gf.exp(gf.tensor([1000.0]))
    with pytest.raises(NonFiniteError, match=r"^exp gave inf"), gf.detect_anomaly(), gf.no_grad():
        gf.exp(leaf(1000.0))
    with (
        pytest.raises(NonFiniteError, match=r"^exp gave inf"),
        gf.no_grad(),
        gf.detect_anomaly(),
        gf.enable_grad(),
    ):
        gf.exp(leaf(1000.0))


def test_integers_and_bools_and_empty_tensors_are_finite() -> None:
    with gf.detect_anomaly():
        x = gf.tensor(np.arange(3))
        (x * 2 + x).sum()
        gf.where(x > 1, x, 0)
        gf.exp(gf.zeros((0, 3))).sum()


# ---------------------------------------------------------------------- the backward pass


def test_the_message_of_a_gradient() -> None:
    x = leaf(4.0, 0.0, 1.0)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        number = line_after()
        y = gf.sqrt(x)
        loss = (y * 3.0).sum()
        loss.backward()
    lines = lines_of(error)
    assert lines == [
        "the gradient of input 0 of sqrt is inf at index (1,)",
        f"in the backward pass of {HERE}:{number}: y = gf.sqrt(x)",
        "result: tensor of shape (3,), float32 on cpu",
        "gradient of the result: tensor of shape (3,), float32 on cpu, 3.0 there, from 3.0 to 3.0",
    ]


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_gradient_that_is_no_number_with_its_inputs(create_graph: bool) -> None:
    a, b = leaf(0.0, 2.0), leaf(0.5, 0.5)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        (a**b).sum().backward(create_graph=create_graph)
    lines = lines_of(error)
    if not create_graph:
        assert re.match(r"the gradient of input 0 of power? is inf at index \(0,\)", lines[0])
        assert any(line.startswith("input 0: tensor of shape (2,), float32 on cpu, 0.0 there") for line in lines)
    assert f"{HERE}:" in lines[1]


def test_a_graph_from_before_says_so() -> None:
    x = leaf(0.0)
    y = gf.sqrt(x)
    with (
        pytest.raises(NonFiniteError, match=r"in the backward pass of an operation before detect_anomaly"),
        gf.detect_anomaly(),
    ):
        y.backward()


def test_a_cotangent_that_is_not_finite() -> None:
    x = leaf(1.0, 2.0)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        (x * 2.0).backward(gf.tensor([float("inf"), 1.0]))
    lines = lines_of(error)
    assert lines[0] == "the gradient of input 0 of multiply is inf at index (0,)"
    assert "inf there" in lines[3]


def test_an_error_of_the_backward_pass_is_raised_there() -> None:
    x = leaf(0.0)
    reached = []
    with pytest.raises(NonFiniteError), gf.detect_anomaly():
        y = gf.sqrt(x)
        reached.append("forward")
        y.backward()
        reached.append("after")
    assert reached == ["forward"]


def test_an_error_of_a_forward_pass_alone_is_raised_at_the_end() -> None:
    reached = []
    with pytest.raises(NonFiniteError), gf.detect_anomaly():
        gf.log(gf.tensor([0.0]))
        reached.append("after")
    assert reached == ["after"]


def test_long_computations_are_checked_before_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "_LONGEST", 10)
    done = []
    with pytest.raises(NonFiniteError, match=r"^log"), gf.detect_anomaly():
        x = gf.log(gf.tensor([0.0]))
        for _ in range(100):
            x = x * 1.0
            done.append(1)
    assert len(done) < 15


# ---------------------------------------------------------------------- the line of the user


def test_the_line_is_the_users_also_where_their_files_name_begins_like_the_packages() -> None:
    name = anomaly._PACKAGE.rstrip("/\\") + "_of_mine.py"
    code = compile("import gradflow as gf\n\ndef f(x):\n    return gf.log(x)\n", name, "exec")
    scope: dict[str, Any] = {}
    exec(code, scope)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        scope["f"](gf.tensor([0.0]))
    assert lines_of(error)[1].startswith(f"in the forward pass, at {name}:4: ")


def test_the_line_in_a_function_that_is_transformed() -> None:
    def function(x: gf.Tensor) -> gf.Tensor:
        return gf.sqrt(x).sum()  # MARK

    x = gf.tensor([0.0, 1.0])
    in_arrays = r"the gradient of input 0 of sqrt is .*\n  in the backward pass of .*# MARK"
    in_tensors = r"divide gave (inf|nan) .*\n  in the rule of sqrt, in the backward pass of .*# MARK"
    for transform, message in (
        (lambda: gf.grad(function)(x), in_arrays),
        (lambda: gf.jacobian(lambda x: gf.stack([function(x), function(x)]))(x), in_arrays),
        (lambda: gf.hessian(function)(x), in_tensors),
        (lambda: gf.jvp(function, (x,), (x,)), in_tensors),
    ):
        with pytest.raises(NonFiniteError, match=message), gf.detect_anomaly():
            transform()


def test_an_operation_of_a_rule_in_a_recorded_pass_names_the_line_of_what_is_differentiated() -> None:
    x = leaf(0.0, 1.0)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        number = line_after()
        y = gf.sqrt(x)
        y.sum().backward(create_graph=True)
    lines = lines_of(error)
    assert lines[0] == "divide gave inf at index (0,)"
    assert lines[1] == f"in the rule of sqrt, in the backward pass of {HERE}:{number}: y = gf.sqrt(x)"


def test_the_gradient_of_a_gradient_names_the_same_line() -> None:
    x = leaf(0.0, 1.0)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        number = line_after()
        y = x**1.5
        y.sum().backward(create_graph=True)
        gradient = x.grad
        x.zero_grad()
        gradient.sum().backward()
    assert f"in the backward pass of {HERE}:{number}: y = x**1.5" in lines_of(error)[1]


def test_gradients_that_are_added_up() -> None:
    x = leaf(1.0)
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        for _ in range(2):
            number = line_after()
            (x * 3e38).sum().backward(create_graph=True)
    lines = lines_of(error)
    assert lines[0] == "add gave inf at index (0,)"
    assert lines[1].startswith(f"adding up gradients in the backward pass, at {HERE}:{number}: (x * 3e38)")


def test_a_batch_of_gradients_is_described_with_its_axis() -> None:
    with pytest.raises(NonFiniteError) as error, gf.detect_anomaly():
        gf.jacobian(gf.sqrt)(gf.tensor([1.0, 0.0]))
    lines = lines_of(error)
    assert re.match(r"the gradient of input 0 of sqrt is (inf|nan) at index \(\d, 1\)", lines[0])
    assert lines[2] == "result: tensor of shape (2, 2), float32 on cpu"


def test_inside_a_checkpoint_the_line_is_that_of_the_function() -> None:
    def segment(x: gf.Tensor) -> gf.Tensor:
        h = gf.exp(x)
        return gf.sqrt(h - 1.0)  # MARK

    message = r"the gradient of input 0 of sqrt is inf at index .*\n.*# MARK"
    with pytest.raises(NonFiniteError, match=message), gf.detect_anomaly():
        gf.checkpoint(segment, leaf(0.0, 1.0)).sum().backward()
    with pytest.raises(NonFiniteError, match=r"sqrt gave nan at index .*\n.*# MARK"), gf.detect_anomaly():
        gf.checkpoint(segment, leaf(-1.0, 1.0)).sum()


def test_an_operation_of_the_users_own() -> None:
    double = gf.operation("double", lambda F, x: F.multiply(x, 2.0), lambda F, g, _out, _x: F.multiply(g, float("nan")))
    with pytest.raises(NonFiniteError, match=r"the gradient of input 0 of double is nan"), gf.detect_anomaly():
        double(leaf(1.0)).backward()


# ---------------------------------------------------------------------- finite runs


def train(steps: int, watched: bool) -> list[Any]:
    gf.manual_seed(3)
    model = gf.nn.Sequential(gf.nn.MLP([4, 16, 8], activation="gelu", dropout=0.3), gf.nn.LayerNorm(8))
    optimizer = gf.optim.Adam(model.parameters(), lr=0.01)
    x, t = gf.random.normal((12, 4)), gf.random.normal((12, 8))
    losses = []
    for _ in range(steps):
        if watched:
            with gf.detect_anomaly():
                losses.append(_step(model, optimizer, x, t))
        else:
            losses.append(_step(model, optimizer, x, t))
    return [*(loss.tolist() for loss in losses), *(p.tolist() for p in model.parameters())]


def _step(model: Any, optimizer: Any, x: gf.Tensor, t: gf.Tensor) -> gf.Tensor:
    optimizer.zero_grad()
    loss = gf.mse_loss(model(x), t)
    loss.backward()
    optimizer.step()
    return loss


def test_finite_runs_raise_nothing_and_are_equal_to_the_bit() -> None:
    assert train(5, watched=True) == train(5, watched=False)


def test_a_training_step_waits_for_the_device_once(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    gf.manual_seed(0)
    model = gf.nn.MLP([4, 16, 16, 3], activation="gelu", dropout=0.2)
    optimizer = gf.optim.SGD(model.parameters(), lr=0.1)
    x, t = gf.random.normal((8, 4)), gf.random.normal((8, 3))
    _step(model, optimizer, x, t)
    backend = gf.get_backend(device)
    calls: list[Any] = []
    original = backend.to_host

    def to_host(array: Any) -> Any:
        calls.append(array.shape)
        return original(array)

    monkeypatch.setattr(backend, "to_host", to_host)
    _step(model, optimizer, x, t)
    assert calls == [], "a step without detect_anomaly synchronises"
    with gf.detect_anomaly():
        for _ in range(3):
            _step(model, optimizer, x, t)
    assert calls == [()] * 3


def test_nothing_is_kept_after_the_with() -> None:
    x = leaf(1.0, 2.0)
    with gf.detect_anomaly():
        y = gf.exp(x)
        watch = weakref.ref(y)
        (y * 2.0).sum().backward()
        del y
    gc.collect()
    assert watch() is None


def test_without_it_there_is_no_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("an observer was called")

    for name in ("forward", "after_rule", "after_backward"):
        monkeypatch.setattr(anomaly._Detector, name, refuse)
    with pytest.raises(AssertionError, match=r"an observer was called"), gf.detect_anomaly():
        gf.exp(leaf(1.0))
    assert grad_mode.current_observer.get() is None
    assert grad_mode.grad_enabled.get() is grad_mode.FAST
    (gf.exp(leaf(1.0)) * 2.0).sum().backward()
    gf.log(gf.tensor([0.0]))


# ---------------------------------------------------------------------- nesting, state


def test_modes_inside_and_around() -> None:
    x = leaf(1.0)
    with gf.detect_anomaly():
        assert gf.is_grad_enabled()
        assert (x * 2.0).requires_grad
        with gf.no_grad():
            assert not (x * 2.0).requires_grad
            with gf.enable_grad():
                assert (x * 2.0).requires_grad
        assert (x * 2.0).requires_grad
    with gf.no_grad(), gf.detect_anomaly():
        assert not gf.is_grad_enabled()
        assert not (x * 2.0).requires_grad
    assert grad_mode.grad_enabled.get() is grad_mode.FAST


def test_one_inside_another() -> None:
    with gf.detect_anomaly():
        with pytest.raises(NonFiniteError), gf.detect_anomaly():
            gf.log(gf.tensor([0.0]))
        outer = grad_mode.current_observer.get()
        gf.exp(gf.tensor([0.0]))
        assert grad_mode.current_observer.get() is outer


@pytest.mark.parametrize("where", ["user", "forward", "backward"])
def test_state_is_restored_after_exceptions(where: str) -> None:
    x = leaf(0.0)
    with pytest.raises((KeyError, NonFiniteError)), gf.detect_anomaly():
        y = gf.log(x) if where == "forward" else gf.sqrt(x)
        if where == "user":
            raise KeyError
        y.backward()
    assert grad_mode.current_observer.get() is None
    assert grad_mode.grad_enabled.get() is grad_mode.FAST
    gf.log(x)
    with gf.detect_anomaly():
        gf.exp(x)


def test_a_user_exception_becomes_the_cause_of_what_was_found_and_else_propagates() -> None:
    with pytest.raises(NonFiniteError, match=r"^log gave -inf") as caught, gf.detect_anomaly():
        gf.log(gf.tensor([0.0]))
        raise KeyError("mine")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyError, match=r"mine"), gf.detect_anomaly():
        gf.log(gf.tensor([1.0]))
        raise KeyError("mine")


FULL = gf.full((4,), 3e38)


@pytest.mark.parametrize(
    ("function", "x", "says"),
    [
        (lambda x: (x * 3e38).sum() + (x * 3e38).sum(), gf.ones(4), "of a leaf, added up, is inf"),
        (lambda x: (gf.exp(x) * 3e38).sum() + (x * 3e38).sum(), gf.ones(4), "of a leaf, added up, is inf"),
        (lambda x: (x * FULL).sum(), gf.ones(1), "of a leaf, added up, is inf"),
        (lambda x: (gf.exp(x) * FULL).sum(), gf.zeros(1), "of the result of exp, added up, is inf"),
        (lambda x: (x.astype("float32") * 1e6).sum(), gf.ones(4, dtype="float16"), "of a leaf, added up, is inf"),
    ],
    ids=["twice", "on two ways", "a broadcast", "a broadcast of a result", "a cast"],
)
def test_what_overflows_as_gradients_are_added_up_is_found(function: Any, x: gf.Tensor, says: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(NonFiniteError, match=says), gf.detect_anomaly():
        function(gf.tensor(x, requires_grad=True)).backward()


def test_what_overflows_in_grad_is_found() -> None:
    x = gf.ones(1, requires_grad=True)
    with np.errstate(over="ignore"), pytest.raises(NonFiniteError, match="of a leaf, added up"), gf.detect_anomaly():
        for _ in range(2):
            (x * 3e38).sum().backward()


def test_a_value_that_was_overwritten_since_is_still_reported() -> None:
    says = "log gave a non-finite value at an unknown index: the tensor has been changed"
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match=says), gf.detect_anomaly():
        y = gf.log(gf.tensor([-1.0]))
        z = gf.exp(y)
        y.zero_()
        z.zero_()


def test_checkpoints_do_not_synchronise_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, waits = gf.get_backend("cpu"), []
    real = backend.to_host
    monkeypatch.setattr(backend, "to_host", lambda array: waits.append(1) or real(array))
    x = gf.ones(3, requires_grad=True)
    with gf.detect_anomaly():
        y = x
        for _ in range(5):
            y = gf.checkpoint(gf.sin, y)
        y.sum().backward()
        assert len(waits) == 1


def test_it_decorates_functions() -> None:
    @gf.detect_anomaly()
    def function(x: gf.Tensor) -> gf.Tensor:
        return gf.log(x)

    assert function(gf.tensor([1.0])).tolist() == [0.0]
    with pytest.raises(NonFiniteError, match=r"^log gave -inf"):
        function(gf.tensor([0.0]))


def test_observers_see_every_operation_and_every_rule_in_order() -> None:
    class Seen(Observer):
        def __init__(self) -> None:
            self.events: list[str] = []

        def forward(self, op: Any, inputs: Any, out: Any, parameters: Any) -> None:
            self.events.append(op.name)

        def before_rules(self, node: Any, g: Any, out: Any, values: Any) -> None:
            self.events.append(f"before {node.op.name}")

        def after_rule(self, node: Any, argument: int, g: Any, out: Any, values: Any, result: Any) -> None:
            self.events.append(f"rule {argument} of {node.op.name}")

        def after_backward(self) -> None:
            self.events.append("end")

    x, y = leaf(1.0), leaf(2.0)
    with observe(seen := Seen()):
        (gf.exp(x) * y).backward()
    assert seen.events == [
        "exp", "multiply", "before multiply", "rule 0 of multiply", "rule 1 of multiply", "before exp", "rule 0 of exp",
        "end",
    ]  # fmt: skip


def test_numbers_of_numpy_are_results_too() -> None:
    """A gradient without axes may be a NumPy scalar, which is an instance of float."""
    x = gf.tensor(np.ones(3), requires_grad=True)
    with gf.detect_anomaly():
        (x[0] * x[0]).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 0.0, 0.0]


def test_a_pass_that_failed_is_over_for_the_next_one() -> None:
    def fails(F: Any, g: Any, _out: Any, _x: Any) -> Any:
        raise ZeroDivisionError

    broken = gf.operation("broken", lambda F, x: F.add(x, 0.0), fails)
    x = leaf(0.0)
    with gf.detect_anomaly():
        with pytest.raises(ZeroDivisionError):
            broken(x).backward()
        y = gf.sqrt(x)
        with pytest.raises(NonFiniteError, match=r"the gradient of input 0 of sqrt is inf.*\n.*y = gf\.sqrt\(x\)"):
            y.backward()  # at its end, not only at that of the `with`
        z = gf.log(gf.tensor(0.0))
        with pytest.raises(NonFiniteError, match=r"log gave -inf.*\n  in the forward pass.*z = gf\.log"):
            gf.square(leaf(1.0)).backward()
    assert z.item() == float("-inf")
