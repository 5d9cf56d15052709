"""Mixed precision: which dtype each operation runs in, against PyTorch, and in captured steps and transforms."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gradflow_numpy import NumpyBackend
from hypothesis import given, settings
from hypothesis import strategies as st

import gradflow as gf
from gradflow import nn
from gradflow.autograd.grad_mode import CAST, FAST, autocast_dtype, grad_enabled
from gradflow.ops.table import OPERATIONS
from tests.devices import replays

HALVES = ("float16", "bfloat16")
every_half = pytest.mark.parametrize("half", HALVES)
ULP = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of 1."""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert autocast_dtype.get() is None
    assert grad_enabled.get() is FAST


def skip_without(device: str, half: str) -> None:
    if not gf.get_backend(device).supports(half):
        pytest.skip(f"{device} has no {half}")


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------- which dtype

CALLS: dict[str, Any] = {
    "matmul": lambda x, w: x @ w, "linear": gf.linear, "layer_norm": lambda x, w: gf.layer_norm(x, 4),
    "rms_norm": lambda x, w: gf.rms_norm(x, 4, w[0]),
    "sum": lambda x, w: x.sum(), "mean": lambda x, w: x.mean(axis=0), "prod": lambda x, w: x.prod(),
    "var": lambda x, w: x.var(), "std": lambda x, w: x.std(), "cumulative_sum": lambda x, w: x.cumulative_sum(axis=0),
    "exp": lambda x, w: gf.exp(x), "expm1": lambda x, w: gf.expm1(x), "log": lambda x, w: gf.log(x),
    "log1p": lambda x, w: gf.log1p(x), "power": lambda x, w: x**3, "square": lambda x, w: x**2,
    "softplus": lambda x, w: gf.softplus(x), "log2": lambda x, w: gf.log2(x), "log10": lambda x, w: gf.log10(x),
    "tan": lambda x, w: gf.tan(x), "asin": lambda x, w: gf.asin(x / 4), "acos": lambda x, w: gf.acos(x / 4),
    "sinh": lambda x, w: gf.sinh(x), "cosh": lambda x, w: gf.cosh(x),
    "norm": lambda x, w: gf.norm(x), "norm inf": lambda x, w: gf.norm(x, float("inf")),
    "softmax": lambda x, w: gf.softmax(x),
    "log_softmax": lambda x, w: gf.log_softmax(x),
    "logsumexp": lambda x, w: gf.logsumexp(x), "mse_loss": gf.mse_loss,
    "cross_entropy": lambda x, w: gf.cross_entropy(x, gf.zeros(4, dtype="int64", device=x.device)),
    "prelu": lambda x, w: gf.prelu(x, w[0]),
    "perceptron": lambda x, w: gf.ops.network.perceptron(x, [(w, w[0])] * 2, "relu"),
    "cumulative_prod": lambda x, w: gf.cumulative_prod(x, 0), "kl_div": gf.kl_div,
}  # fmt: skip
PRODUCTS = {"matmul", "linear", "perceptron", "prelu"}


def test_the_policy_is_in_the_table() -> None:
    """Every operation with a policy has a call here, as have compositions; products run in half, others in float32."""
    policy = {name: op.autocast for name, op in OPERATIONS.items() if op.autocast is not None}
    assert set(policy) == set(CALLS) - {"norm", "norm inf", "cumulative_prod", "kl_div"}
    assert {name for name, kind in policy.items() if kind == "half"} == PRODUCTS
    assert set(policy.values()) == {"half", "float32"}


@every_half
@pytest.mark.parametrize("name", CALLS)
def test_an_operation_runs_in_the_dtype_of_its_policy(name: str, half: str, device: str) -> None:
    skip_without(device, half)
    w = gf.tensor(np.abs(normal(4, 4)), device=device, requires_grad=True)
    expected = half if name in PRODUCTS else "float32"
    for dtype in ("float32", half):
        for recorded in (True, False):
            x = gf.tensor(np.abs(normal(4, 4, seed=1)), device=device).astype(dtype)
            x.requires_grad_(recorded)
            weight = w if recorded else w.detach()
            with gf.autocast(half):
                out = CALLS[name](x, weight)
            assert out.dtype == expected
            if recorded:
                (gx,) = gf.gradients(out.sum(), [x])
                assert gx.dtype == dtype
    with gf.autocast(half), gf.autocast(half, enabled=False):
        assert CALLS[name](w, w).dtype == "float32"


def test_powers_of_half_floats_do_not_overflow(device: str) -> None:
    """300 * 300 is infinite in float16."""
    skip_without(device, "float16")
    for recorded in (True, False):
        x = gf.full((2, 2), 300.0, dtype="float16", device=device).requires_grad_(recorded)
        with gf.autocast("float16"):
            for y in (x**2, x**2.0, x.square(), gf.square(x), gf.power(x, 2)):
                assert (y.dtype, y.tolist()) == ("float32", [[90000.0] * 2] * 2)
        assert ((x / 300.0) ** 2).dtype == "float16"


@every_half
def test_other_operations_take_the_dtype_that_comes(half: str, device: str) -> None:
    skip_without(device, half)
    x, y = gf.ones((2, 2), device=device, requires_grad=True), gf.ones((2, 2), dtype=half, device=device)
    with gf.autocast(half):
        assert [z.dtype for z in (x * 2, gf.tanh(x), gf.relu(y), y + 1, x + y, gf.where(y > 0, y, 0.5))] == [
            "float32", "float32", half, half, "float32", half
        ]  # fmt: skip
        assert (
            gf.ones((2, 2), dtype="float64", device=device) @ gf.ones((2, 2), dtype="float64", device=device)
        ).dtype == "float64"


def test_what_it_takes() -> None:
    for wrong in ("float32", "int8", "bf16", "cuda", gf.float32, None, 16, ["float16"]):
        with pytest.raises(ValueError, match=re.escape(f"autocast takes 'bfloat16' or 'float16'; got {wrong!r}")):
            gf.autocast(wrong)
    with pytest.raises(ValueError, match="got 'bf16'"):
        gf.autocast("bf16", enabled=False)
    for enabled in ("no", None, 2):
        with pytest.raises(ValueError, match=f"enabled is True or False; got {enabled!r}"):
            gf.autocast("float16", enabled=enabled)  # type: ignore[arg-type]
    for dtype in (gf.float16, np.float16, np.dtype("float16")):
        assert gf.autocast(dtype).dtype is gf.float16
    assert gf.autocast(None, enabled=False).dtype is gf.autocast("float16", enabled=False).dtype is None
    with pytest.raises(TypeError, match="needs one dtype for all"), gf.autocast("float16"):
        gf.linear(gf.ones((2, 3), dtype="float64"), gf.ones((2, 3)))
    with pytest.raises(TypeError, match="needs one dtype for all"):
        gf.linear(gf.ones((2, 3), dtype="float16"), gf.ones((2, 3)))


def test_a_copied_context_keeps_the_mode() -> None:
    """Also after the `with` has been left, such as in a task that runs on."""
    x = gf.ones((2, 2), requires_grad=True)

    def dtypes() -> tuple[str, ...]:
        with gf.no_grad():
            inside = (x @ x).dtype
            with gf.enable_grad():
                assert grad_enabled.get() is (FAST if inside == "float32" else CAST)
        return str((x @ x).dtype), str(inside), str(x.sum().dtype)

    before = contextvars.copy_context()
    with gf.autocast("bfloat16"):
        copied = contextvars.copy_context()
        assert before.run(dtypes) == ("float32", "float32", "float32")
    for _ in range(2):
        assert copied.run(dtypes) == ("bfloat16", "bfloat16", "float32")
    assert dtypes() == ("float32", "float32", "float32")


def test_it_is_a_mode() -> None:
    x = gf.ones((2, 2), requires_grad=True)

    @gf.autocast("float16")
    def steps() -> Iterator[Any]:
        for _ in range(2):
            yield (x @ x).dtype

    for dtype in steps():
        assert (dtype, (x @ x).dtype) == ("float16", "float32")
    with gf.autocast("float16"):
        with gf.no_grad():
            assert not (x @ x).requires_grad
            with gf.enable_grad():
                assert (x @ x).dtype == "float16"
            assert (x @ x).dtype == "float16"
        with gf.use_device("cpu"), gf.detect_anomaly():
            assert (x @ x).dtype == "float16"
        assert gf.exp(x @ x).dtype == "float32"


# ---------------------------------------------------------------------- against PyTorch


def twins(torch: Any, sizes: list[int], activation: str) -> tuple[nn.MLP, Any]:
    torch.manual_seed(0)
    layers: list[Any] = []
    for n, m in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(n, m), {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[activation]()]
    other = torch.nn.Sequential(*layers[:-1])
    ours = nn.MLP(sizes, activation)
    parameters = iter(other.parameters())
    ours.load_state_dict({name: gf.tensor(next(parameters).detach().numpy()) for name in ours.state_dict()})
    return ours, other


@every_half
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse_loss"])
def test_training_steps_are_those_of_pytorch(torch: Any, half: str, activation: str, loss: str) -> None:
    """8 steps of SGD: the outputs of the first within 2 half ulp, losses within 16, weights within 32 half ulp."""
    sizes, unit = [20, 32, 16, 5], ULP[half]
    ours, theirs = twins(torch, sizes, activation)
    x, labels = normal(64, 20), np.random.default_rng(1).integers(0, 5, 64)
    target = labels if loss == "cross_entropy" else normal(64, 5, seed=2)
    optimizers = (
        gf.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9),
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9),
    )
    for step in range(8):
        for optimizer in optimizers:
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=getattr(torch, half)):
            expected = theirs(torch.tensor(x))
            expected_loss = getattr(torch.nn.functional, loss)(expected, torch.tensor(target))
        with gf.autocast(half):
            out = ours(gf.tensor(x))
            found = getattr(gf, loss)(out, gf.tensor(target))
        assert (out.dtype, found.dtype) == (half, "float32")
        if step == 0:
            wide = out.detach().astype("float32").numpy(), expected.detach().float().numpy()
            assert np.abs(wide[0] - wide[1]).max() <= 2 * unit * np.abs(wide[1]).max()
        assert abs(found.item() - expected_loss.item()) <= 16 * unit * abs(expected_loss.item())
        found.backward()
        expected_loss.backward()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert p.grad is not None
            assert p.grad.dtype == "float32"
            if step == 0:
                assert np.abs(p.grad.numpy() - q.grad.numpy()).max() <= 8 * unit * np.abs(q.grad.numpy()).max()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert np.abs(p.detach().numpy() - q.detach().numpy()).max() <= 32 * unit * np.abs(q.detach().numpy()).max()


@every_half
def test_gradients_in_the_buffers_are_not_rounded(half: str, device: str) -> None:
    """With an optimizer, weight gradients are the float32 products of half floats: they have more digits than these."""
    skip_without(device, half)
    model = nn.MLP([6, 8, 3], device=device)
    x, g = gf.tensor(normal(16, 6), device=device), gf.tensor(normal(16, 3, seed=1), device=device)
    optimizer = gf.optim.SGD(model.parameters(), lr=0.0)
    with gf.autocast(half):
        out = model(x)
    out.backward(g.astype(half))
    rounded = [p.grad.astype(half).astype("float32").tolist() for p in model.parameters()]
    direct = [p.grad.tolist() for p in model.parameters()]
    assert direct != rounded
    optimizer.zero_grad()
    plain = nn.MLP([6, 8, 3], device=device)
    plain.load_state_dict(model.state_dict())
    with gf.autocast(half):
        plain(x).backward(g.astype(half))
    assert [p.grad.tolist() for p in plain.parameters()] == rounded


@every_half
@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop"])
def test_the_optimizer_writes_the_half_weights(kind: str, half: str, device: str) -> None:
    """Each step writes the half copies; after any other change, they are cast again. A step before backward raises."""
    skip_without(device, half)
    w = gf.tensor(normal(4, 4), device=device, requires_grad=True)
    x = gf.tensor(np.eye(4, dtype=np.float32), device=device)
    optimizer = getattr(gf.optim, kind)([w], lr=0.1)

    def product() -> gf.Tensor:
        with gf.autocast(half):
            return x @ w

    def expected() -> Any:
        return w.detach().astype(half).tolist()

    for _ in range(3):
        out = product()
        assert out.tolist() == expected()
        optimizer.zero_grad()
        out.sum().backward()
        optimizer.step()
    (block,) = optimizer._blocks
    (s,) = block.slices
    assert s.half_at == w._memory.changed  # type: ignore[union-attr]
    assert product().tolist() == expected()
    with gf.no_grad():
        w *= 3.0
    assert product().tolist() == expected()
    x.requires_grad_()
    out = product()
    optimizer.step()
    with pytest.raises(RuntimeError, match="was changed in place"):
        out.sum().backward()


@every_half
@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("change", ["in place", "another array"])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_step_that_is_skipped_leaves_the_half_weights_right(kind: str, half: str, change: str, device: str) -> None:
    """Also of weights that were changed between the forward pass and the step."""
    skip_without(device, half)
    w = gf.tensor(normal(4, 4), device=device, requires_grad=True)
    x = gf.tensor(np.eye(4, dtype=np.float32), device=device)
    optimizer, scaler = getattr(gf.optim, kind)([w], lr=0.1), gf.optim.GradScaler(4.0)

    def product() -> gf.Tensor:
        with gf.autocast(half):
            return x @ w

    for scale in (1.0, float("inf")):
        optimizer.zero_grad()
        scaler.scale(product().sum() * scale).backward()
        if scale > 1.0:
            if change == "in place":
                with gf.no_grad():
                    w *= 3.0
            else:
                w.array = (w.detach() * 3.0).array
        scaler.step(optimizer)
        scaler.update()
        assert product().tolist() == w.detach().astype(half).tolist()
    assert optimizer.steps == 1


# ---------------------------------------------------------------------- with the rest of gradflow


def losses_of(half: str, device: str, wrap: Any = None, checkpointed: bool = False) -> list[float]:
    generator = gf.Generator(3)
    model = nn.MLP([6, 8, 3], dropout=0.25, device=device, generator=generator)
    optimizer = gf.optim.Adam(model.parameters(), lr=0.01)
    x, y = gf.tensor(normal(16, 6), device=device), gf.tensor([i % 3 for i in range(16)], dtype="int64", device=device)

    def step(x: gf.Tensor, y: gf.Tensor) -> gf.Tensor:
        optimizer.zero_grad()
        with gf.autocast(half):
            out = gf.checkpoint(model, x) if checkpointed else model(x)
            loss = gf.cross_entropy(out, y)
        loss.backward()
        optimizer.step()
        return loss

    run = step if wrap is None else wrap(step)
    found = [run(x, y).item() for _ in range(6)]
    if wrap is not None:
        assert replays(run.status)
    return found


@every_half
def test_a_captured_step_gives_the_same_bits(half: str, device: str) -> None:
    skip_without(device, half)
    assert losses_of(half, device, gf.capture) == losses_of(half, device)


def test_a_recording_is_for_its_mode() -> None:
    x, w = gf.ones((2, 2)), gf.ones((2, 2), requires_grad=True)
    step = gf.capture(lambda x: (x @ w).detach())
    for _ in range(4):
        assert step(x).dtype == "float32"
    with gf.autocast("float16"):
        for _ in range(4):
            assert step(x).dtype == "float16"
    assert step(x).dtype == "float32"


@every_half
def test_a_checkpoint_runs_again_in_its_mode(half: str, device: str) -> None:
    """Within the rounding of gradients that a checkpoint does not write to the buffers."""
    skip_without(device, half)
    found, expected = losses_of(half, device, checkpointed=True), losses_of(half, device)
    assert found[0] == expected[0]
    assert found == pytest.approx(expected, rel=8 * ULP[half])


@pytest.mark.filterwarnings("ignore:Using backward")  # PyTorch's, of a cycle
def test_a_recorded_backward_pass_is_that_of_pytorch_outside_of_the_context(torch: Any) -> None:
    """Also inside of the context, as one that is not recorded; gradients within 8 ulp of PyTorch's outside of it.

    PyTorch's backward pass computes in the dtypes of the context that it is in.
    """
    x0, w0 = normal(3, 4), normal(4, 4, seed=1)

    def run(lib: Any, x: Any, w: Any, inside: bool) -> list[Any]:
        half = lib.autocast("bfloat16") if lib is gf else torch.autocast("cpu", torch.bfloat16)
        h = lib.tanh(x @ w)  # in float32
        with half:
            y = h @ w
            loss = (y * y).sum()
            if inside:
                loss.backward(create_graph=True)
        if not inside:
            loss.backward(create_graph=True)
        first = w.grad
        w.grad = None
        (first * first).sum().backward()
        return [first.detach().numpy(), w.grad.numpy()]

    def ours(inside: bool) -> list[Any]:
        return run(gf, gf.tensor(x0), gf.tensor(w0, requires_grad=True), inside)

    def theirs(inside: bool) -> list[Any]:
        return run(torch, torch.tensor(x0), torch.tensor(w0, requires_grad=True), inside)

    assert all(np.array_equal(a, b) for a, b in zip(ours(True), ours(False), strict=True))
    for a, b in zip(ours(True), theirs(False), strict=True):
        assert np.abs(a - b).max() <= 8 * ULP["bfloat16"] * np.abs(b).max()


@every_half
def test_higher_derivatives(half: str) -> None:
    """Within 8 half ulp of those in float64."""
    w0, x0 = normal(4, 4), normal(3, 4, seed=1)

    def second(dtype: str, mode: Any) -> Any:
        w = gf.tensor(w0.astype(dtype), requires_grad=True)
        with mode:
            loss = (gf.tanh(gf.tensor(x0.astype(dtype)) @ w) ** 2).sum()
        (first,) = gf.gradients(loss, [w], create_graph=True)
        (found,) = gf.gradients((first * first).sum(), [w])
        assert found.dtype == dtype
        return found.numpy()

    exact, found = second("float64", contextlib.nullcontext()), second("float32", gf.autocast(half))
    assert np.abs(found - exact).max() <= 32 * ULP[half] * np.abs(exact).max()


@every_half
@pytest.mark.parametrize("inside", [True, False])
def test_transforms_of_a_function_in_half(half: str, inside: bool) -> None:
    """In the `with`, or of a function that is decorated with it: float32, within 8 half ulp of those in float64."""
    w0, x0 = normal(4, 4) / 2, normal(3, 4, seed=1)

    def loss(w: gf.Tensor, x: gf.Tensor) -> gf.Tensor:
        return (gf.tanh(x @ w) ** 2).sum() + (gf.linear(x, w, w[0]) ** 2).mean()

    def run(dtype: str, mode: Any) -> dict[str, Any]:
        w, x = gf.tensor(w0.astype(dtype)), gf.tensor(x0.astype(dtype))
        f: Any = loss if inside else mode(loss)
        with mode if inside else contextlib.nullcontext():
            return {
                "grad": gf.grad(f)(w, x),
                "gradients of gradients": gf.grad(lambda w: (gf.grad(f)(w, x) ** 2).sum())(w),
                "vjp": gf.vjp(f, w, x)[1](gf.ones((), dtype=dtype))[0],
                "jvp": gf.jvp(f, (w, x), (w, x))[1],
                "hvp": gf.hvp(f, (w, x), (w, x))[0],
                "jacobian": gf.jacobian(lambda w: f(w, x) * w[0])(w),
                "hessian": gf.hessian(f)(w, x),
            }

    exact, found = run("float64", gf.autocast(None, enabled=False)), run("float32", gf.autocast(half))
    for name, x in found.items():
        assert x.dtype == "float32"
        assert np.abs(x.numpy() - exact[name].numpy()).max() <= 8 * ULP[half] * np.abs(exact[name].numpy()).max(), name


@every_half
def test_pictures_show_the_casts(half: str) -> None:
    w, x = gf.tensor(normal(4, 4), requires_grad=True), gf.tensor(normal(3, 4))
    with gf.trace() as trace, gf.autocast(half):
        loss = (x @ w).sum()
        loss.backward(retain_graph=True)
    assert w.grad is not None
    for text in (str(gf.explain(trace)), str(gf.explain(loss)), str(gf.draw(loss))):
        assert "matmul" in text or "@" in text
    assert f"{half}" in str(gf.explain(trace))


def test_halves_are_multiplied_in_float32_on_the_cpu() -> None:
    """A sum of 4096 products of 0.01, which float16 would round at each addition."""
    B = NumpyBackend()
    for half in HALVES:
        native = B.native_dtype(half)
        a = np.full((1, 4096), 0.1).astype(native)
        exact = float((a.astype(np.float64) @ a.T.astype(np.float64))[0, 0])
        for found in (B.matmul(a, a.T), B.linear(a, a, None, None, 0.0)[0]):
            assert found.dtype == native
            assert abs(float(found[0, 0]) - exact) <= 1.01 * ULP[half] * 2 * exact
        into = np.zeros((1, 4096), np.float32)
        g = np.full((1, 1), 3.0).astype(native)
        _, gw, _ = B.linear_backward(g, g, a, a, None, None, 0.0, None, (False, True, False), (None, into, None))
        assert gw is into
        assert np.array_equal(into, 3.0 * a.astype(np.float32))


# ---------------------------------------------------------------------- random programs

BLOCKS = ("linear", "matmul", "relu", "tanh", "sigmoid", "add", "times", "scale", "softmax", "skip")


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6),
    half=st.sampled_from(["float16", "bfloat16"]),
    rows=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_random_programs_are_those_of_pytorch(torch: Any, blocks: list[str], half: str, rows: int, seed: int) -> None:
    """Losses within 16 half ulp, gradients of weights within 32 in the 2-norm."""
    width = 4
    arrays = [normal(width, width, seed=seed + i) / 2 for i in range(len(blocks) + 2)]

    def run(lib: Any, context: Any, leaves: list[Any], x: Any) -> Any:
        with context:
            for block, w in zip(blocks, leaves[1:-1], strict=True):
                if block == "linear":
                    x = (gf.linear if lib is gf else torch.nn.functional.linear)(x, w, w[0])
                elif block in ("relu", "tanh", "sigmoid"):
                    x = getattr(lib, block)(x)
                elif block == "softmax":
                    x = gf.softmax(x, axis=-1) if lib is gf else torch.softmax(x, -1)
                else:
                    x = {
                        "matmul": lambda x, w: x @ w, "add": lambda x, w: x + w[0], "times": lambda x, w: x * w[1],
                        "scale": lambda x, w: x * 0.5, "skip": lambda x, w: x + (x @ w),
                    }[block](x, w)  # fmt: skip
            return (x @ leaves[-1]).sum() / rows

    ours = [gf.tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    x = normal(rows, width, seed=seed + 99)
    found = run(gf, gf.autocast(half), ours, gf.tensor(x) @ ours[0])
    expected = run(torch, torch.autocast("cpu", getattr(torch, half)), theirs, torch.tensor(x) @ theirs[0])
    unit = ULP[half]
    assert abs(found.item() - expected.item()) <= 16 * unit * max(1.0, abs(expected.item()))
    found.backward()
    expected.backward()
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            norm = max(1.0, float(b.grad.norm()))
            assert np.linalg.norm(a.grad.numpy() - b.grad.numpy()) <= 32 * unit * norm
