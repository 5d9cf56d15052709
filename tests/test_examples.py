"""Worked examples from lecture notes on backpropagation, from which gradflow grew, with their numbers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import nn, optim
from gradflow.testing import host


def leaf(value: Any, dtype: str = "float64") -> gf.Tensor:
    return gf.tensor(value, dtype=dtype, requires_grad=True)


def close(what: str, actual: Any, expected: Any, atol: float = 1e-12) -> None:
    """Compare up to float64 rounding; `atol` is larger if the notes give rounded numbers."""
    np.testing.assert_allclose(host(actual), host(expected), rtol=1e-12, atol=atol, err_msg=what)


def through(gate: Any, x: gf.Tensor, upstream: float) -> tuple[float, float]:
    """Return the value of a gate and the gradient of its input, given the gradient of its output."""
    x = leaf(x.item())
    out = gate(x)
    out.backward(gf.tensor(upstream, dtype="float64"))
    return out.item(), x.grad.item()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


# ---------------------------------------------------------------------- computational graphs, scalar


def test_01_linear_function(device: str) -> None:
    w, x, b = leaf(-2.0), leaf(5.0), leaf(3.0)
    g = w * x
    f = g + b
    assert (g.item(), f.item()) == (-10, -7)
    f.backward()
    assert (w.grad.item(), x.grad.item(), b.grad.item()) == (5, -2, 1)
    g_leaf, b_leaf = leaf(g.item()), leaf(3.0)
    (g_leaf + b_leaf).backward()
    assert g_leaf.grad.item() == 1


def test_02_sum_times_factor(device: str) -> None:
    x, y, z = leaf(-2.0), leaf(5.0), leaf(-4.0)
    q = x + y
    f = q * z
    assert (q.item(), f.item()) == (3, -12)
    f.backward()
    assert (x.grad.item(), y.grad.item(), z.grad.item()) == (-4, -4, 3)
    q_leaf = leaf(3.0)
    (q_leaf * z.detach()).backward()
    assert q_leaf.grad.item() == -4


def neuron_inputs() -> dict[str, gf.Tensor]:
    return {"w0": leaf(2.0), "x0": leaf(-1.0), "w1": leaf(-3.0), "x1": leaf(-2.0), "w2": leaf(-3.0)}


def dot(v: dict[str, gf.Tensor]) -> gf.Tensor:
    return v["w0"] * v["x0"] + v["w1"] * v["x1"] + v["w2"]


NEURON_GRADIENTS = {"w0": -0.1966, "x0": 0.3932, "w1": -0.3932, "x1": -0.5898, "w2": 0.1966}
HALF_OF_THE_LAST_DIGIT = 5e-5
TWICE_ROUNDED = 1.01e-4  # the notes round 0.19661 to 0.1966 before they multiply it by 3


def test_03_sigmoid_neuron_as_gates(device: str) -> None:
    v = neuron_inputs()
    z = dot(v)
    f = 1 / (1 + gf.exp(-z))
    assert z.item() == 1
    close("f", f, 0.7311, HALF_OF_THE_LAST_DIGIT)
    f.backward()
    for name, expected in NEURON_GRADIENTS.items():
        close(f"df/d{name}", v[name].grad, expected, TWICE_ROUNDED)


def test_03_gradients_along_the_chain_of_gates(device: str) -> None:
    gates = {"*-1": lambda x: x * -1, "exp": gf.exp, "+1": lambda x: x + 1, "1/x": lambda x: 1 / x}
    values = [gf.tensor(1.0, dtype="float64")]
    for gate in gates.values():
        values.append(gate(values[-1]))
    close("values", [v.item() for v in values], [1, -1, 0.3679, 1.3679, 0.7311], HALF_OF_THE_LAST_DIGIT)
    gradient, chain = 1.0, []
    for (_, gate), before in zip(reversed(gates.items()), reversed(values[:-1]), strict=True):
        _, gradient = through(gate, before, gradient)
        chain.append(gradient)
    close("gradients after 1/x, +1, exp, *-1", chain, [-0.5344, -0.5344, -0.1966, 0.1966], HALF_OF_THE_LAST_DIGIT)


def test_03_a_chain_of_gates_may_be_one_gate(device: str) -> None:
    gates, one = neuron_inputs(), neuron_inputs()
    (1 / (1 + gf.exp(-dot(gates)))).backward()
    f = gf.sigmoid(dot(one))
    f.backward()
    for name in gates:
        close(name, one[name].grad, gates[name].grad)
    z = leaf(1.0)
    gf.sigmoid(z).backward()
    close("local gradient", z.grad, f.item() * (1 - f.item()))


def test_04_add_distributes(device: str) -> None:
    a, b = leaf(3.0), leaf(-8.0)
    (a + b).backward(gf.tensor(2.5, dtype="float64"))
    assert (a.grad.item(), b.grad.item()) == (2.5, 2.5)


def test_04_multiply_switches(device: str) -> None:
    a, b = leaf(3.0), leaf(-8.0)
    (a * b).backward(gf.tensor(2.5, dtype="float64"))
    assert (a.grad.item(), b.grad.item()) == (-20, 7.5)


def test_04_max_routes(device: str) -> None:
    a, b = leaf(3.0), leaf(-8.0)
    gf.maximum(a, b).backward(gf.tensor(2.5, dtype="float64"))
    assert (a.grad.item(), b.grad.item()) == (2.5, 0)


def test_04_branches_sum(device: str) -> None:
    x = leaf(3.0)
    (x * 2 + x * x + gf.maximum(x, 0.0)).backward()
    assert x.grad.item() == 2 + 2 * 3 + 1


def test_05_a_gradient_is_a_rate_of_change(device: str) -> None:
    x, b = 5.0, 3.0
    w = leaf(-2.0)
    f = w * x + b
    f.backward()
    for change in (1.0, 0.25, -0.5):
        assert (w.item() + change) * x + b - f.item() == w.grad.item() * change


# ---------------------------------------------------------------------- vectors and matrices


def test_06_squared_norm_of_a_product(device: str) -> None:
    w, x = leaf([[0.1, 0.5], [-0.3, 0.8]]), leaf([0.2, 0.4])
    q = w @ x
    f = (q * q).sum()
    close("q", q, [0.22, 0.26])
    close("f", f, 0.116)
    f.backward()
    close("df/dW", w.grad, [[0.088, 0.176], [0.104, 0.208]])
    close("df/dx", x.grad, [-0.112, 0.636])
    close("df/dW = 2 q x^T", w.grad, 2 * np.outer(host(q), host(x)))
    close("df/dx = 2 W^T q", x.grad, 2 * host(w).T @ host(q))
    assert (w.grad.shape, x.grad.shape) == (w.shape, x.shape)
    q_leaf = leaf(q.tolist())
    (q_leaf * q_leaf).sum().backward()
    close("df/dq", q_leaf.grad, [0.44, 0.52])


def jacobian(function: Any, values: np.ndarray) -> np.ndarray:
    """Row i is the VJP with the i-th unit vector."""
    rows = []
    for unit in np.eye(len(values)):
        x = leaf(values)
        function(x).backward(gf.tensor(unit))
        rows.append(host(x.grad))
    return np.array(rows)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "exp"])
def test_07_jacobian_of_an_elementwise_activation_is_diagonal(device: str, activation: str) -> None:
    values = np.array([0.3, -1.2, 2.0, 0.7])
    slope = {
        "sigmoid": sigmoid(values) * (1 - sigmoid(values)),
        "tanh": 1 - np.tanh(values) ** 2,
        "relu": (values > 0).astype(float),
        "exp": np.exp(values),
    }[activation]
    close(activation, jacobian(getattr(gf, activation), values), np.diag(slope))


def test_07_jacobian_of_softmax(device: str) -> None:
    values = np.array([0.3, -1.2, 2.0, 0.7])
    p = np.exp(values) / np.exp(values).sum()
    close("J", jacobian(gf.softmax, values), np.diag(p) - np.outer(p, p))


def test_07_a_vjp_never_forms_the_jacobian(device: str) -> None:
    """The matrix would have 409,600 x 409,600 entries: 671 GB of float32."""
    x = gf.random.normal((100, 4096)).requires_grad_()
    y = gf.softmax(x)
    y.backward(gf.random.normal((100, 4096)))
    assert x.grad.shape == (100, 4096)
    total = np.abs(host(x.grad).astype(np.float64).sum(axis=1)).max()
    assert total < 4096 * 2.0**-23, f"the columns of diag(p) - p p^T sum to 0; got {total:g}"


ACTIVATIONS = {  # f_k, and its derivative as a function of the output
    "sigmoid": (sigmoid, lambda y: y * (1 - y)),
    "tanh": (np.tanh, lambda y: 1 - y**2),
    "relu": (lambda z: np.maximum(z, 0), lambda y: (y > 0).astype(float)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [1, 2, 3, 5, 9])
def test_08_layer_recursion(device: str, depth: int, activation: str) -> None:
    """grad_z = grad_y J(z); grad_y_before = grad_z W; grad_W = y_before grad_z; grad_b = grad_z."""
    rng = np.random.default_rng(depth)
    widths = [3, *rng.integers(2, 7, size=depth).tolist()]
    weights = [rng.normal(size=(n, m)) for m, n in itertools.pairwise(widths)]
    biases = [rng.normal(size=n) for n in widths[1:]]
    x, d = rng.normal(size=widths[0]), rng.normal(size=widths[-1])
    f, slope = ACTIVATIONS[activation]

    ys = [x]
    for w, b in zip(weights, biases, strict=True):
        ys.append(f(w @ ys[-1] + b))
    grad_y = ys[-1] - d  # the gradient of Div(Y, d) = |Y - d|^2 / 2
    by_hand = []
    for w, before, y in zip(reversed(weights), reversed(ys[:-1]), reversed(ys[1:]), strict=True):
        grad_z = grad_y * slope(y)
        by_hand.append((np.outer(grad_z, before), grad_z))
        grad_y = grad_z @ w

    ws, bs, x_leaf = [leaf(w) for w in weights], [leaf(b) for b in biases], leaf(x)
    y = x_leaf
    for w, b in zip(ws, bs, strict=True):
        y = getattr(gf, activation)(w @ y + b)
    close("Y", y, ys[-1])
    (gf.square(y - gf.tensor(d)).sum() * 0.5).backward()
    for k, (grad_w, grad_b) in enumerate(reversed(by_hand)):
        close(f"grad_W_{k + 1}", ws[k].grad, grad_w)
        close(f"grad_b_{k + 1}", bs[k].grad, grad_b)
    close("grad_y_0", x_leaf.grad, grad_y)

    layers = nn.Sequential(
        *[nn.Linear(m, n, activation=activation, dtype="float64") for m, n in itertools.pairwise(widths)]
    )
    given = {f"{k}.weight": w for k, w in enumerate(weights)} | {f"{k}.bias": b for k, b in enumerate(biases)}
    layers.load_state_dict(given)
    (gf.square(layers(gf.tensor(x)) - gf.tensor(d)).sum() * 0.5).backward()
    for k, (grad_w, grad_b) in enumerate(reversed(by_hand)):
        close(f"fused layer {k}: weight", layers[k].weight.grad, grad_w)
        close(f"fused layer {k}: bias", layers[k].bias.grad, grad_b)


def test_08_sigmoid_network_with_one_hidden_layer(device: str) -> None:
    """delta_y = (y - y') y (1 - y); dC/dW2 = delta_y h; delta_h = delta_y W2 h (1 - h); dC/dW1 = delta_h x."""
    x, w1, w2, target = 0.7, 1.3, -0.4, 0.9
    h = sigmoid(w1 * x)
    y = sigmoid(w2 * h)
    delta_y = (y - target) * y * (1 - y)
    delta_h = delta_y * w2 * h * (1 - h)
    a, b = leaf(w1), leaf(w2)
    (gf.square(gf.sigmoid(b * gf.sigmoid(a * x)) - target) * 0.5).backward()
    close("dC/dW2", b.grad, delta_y * h)
    close("dC/dW1", a.grad, delta_h * x)


def test_08_sigmoid_network_with_three_hidden_layers(device: str) -> None:
    x, ws, target = 0.7, [1.3, -0.4, 2.2, 0.8], 0.9
    hs = [x]
    for w in ws:
        hs.append(sigmoid(w * hs[-1]))
    delta = (hs[-1] - target) * hs[-1] * (1 - hs[-1])
    expected = []
    for k in range(3, -1, -1):
        expected.append(delta * hs[k])
        delta = delta * ws[k] * hs[k] * (1 - hs[k])
    leaves = [leaf(w) for w in ws]
    h: Any = x
    for w in leaves:
        h = gf.sigmoid(w * h)
    (gf.square(h - target) * 0.5).backward()
    close("dC/dW", [w.grad.item() for w in leaves], expected[::-1])


# ---------------------------------------------------------------------- losses and training


def test_09_perceptron(device: str) -> None:
    """dJ/dw = -2/N sum of (y - yhat) yhat (1 - yhat) x."""
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(20, 3)), rng.integers(0, 2, size=(20, 1)).astype(float)
    model = nn.Linear(3, 1, activation="sigmoid", dtype="float64")
    yhat = sigmoid(x @ host(model.weight).T + host(model.bias))
    loss = nn.MSELoss()(model(gf.tensor(x)), gf.tensor(y))
    loss.backward()
    close("J", loss, np.mean((y - yhat) ** 2))
    common = -2 / len(x) * (y - yhat) * yhat * (1 - yhat)
    close("dJ/dw", model.weight.grad, (common * x).sum(axis=0, keepdims=True))
    close("dJ/db", model.bias.grad, common.sum(axis=0))


def test_10_binary_cross_entropy_of_a_two_layer_network(device: str) -> None:
    """cost = -mean(y log h + (1-y) log(1-h)), and its gradients by the recursion."""
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(30, 4)), rng.integers(0, 2, size=(30, 1)).astype(float)
    model = nn.MLP([4, 5, 1], activation="sigmoid", dtype="float64")
    w1, b1, w2, b2 = (host(p) for p in model.parameters())
    a = sigmoid(x @ w1.T + b1)
    h = sigmoid(a @ w2.T + b2)
    loss = nn.BCEWithLogitsLoss()(model(gf.tensor(x)), gf.tensor(y))
    loss.backward()
    close("cost", loss, -np.mean(y * np.log(h) + (1 - y) * np.log(1 - h)))
    delta2 = (h - y) / len(x)
    delta1 = delta2 @ w2 * a * (1 - a)
    for name, found, expected in zip(
        ("W1", "b1", "W2", "b2"), model.parameters(),
        (delta1.T @ x, delta1.sum(axis=0), delta2.T @ a, delta2.sum(axis=0)), strict=True,
    ):  # fmt: skip
        close(f"dcost/d{name}", found.grad, expected)


def test_10_finite_at_certainty(device: str) -> None:
    """At these logits h is exactly 0 or 1 in floating point; the notes' formula would give infinity or NaN."""
    logits = gf.tensor([-200.0, -1e30, 200.0, 1e30, -200.0, 200.0], requires_grad=True)
    target = gf.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    assert set(gf.sigmoid(logits).tolist()) <= {0.0, 1.0, *gf.sigmoid(gf.tensor([-200.0])).tolist()}
    losses = gf.binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert losses.tolist() == [0, 0, 0, 0, 200, 200]
    losses.sum().backward()
    np.testing.assert_allclose(host(logits.grad), [0, 0, 0, 0, -1, 1], atol=1e-7)


def xor() -> tuple[np.ndarray, np.ndarray]:
    return np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float), np.array([[0], [1], [1], [0]], dtype=float)


def test_11_full_batch_until_convergence(device: str) -> None:
    """Loss and gradients summed over all T samples; W <- W - (eta/T) grad_W, until the loss stops changing."""
    x, y = xor()
    eta, samples, tolerance = 4.0, len(x), 1e-6
    gf.manual_seed(1)
    model = nn.MLP([2, 4, 1], activation="tanh", dtype="float64")
    weights = [host(p).copy() for p in model.parameters()]
    inputs, targets = gf.tensor(x), gf.tensor(y)
    previous, losses = math.inf, []
    for epoch in range(5000):  # noqa: B007
        model.zero_grad()
        loss = gf.binary_cross_entropy_with_logits(model(inputs), targets, reduction="sum")
        loss.backward()
        with gf.no_grad():
            for p in model.parameters():
                p -= p.grad * (eta / samples)
        losses.append(loss.item())
        if abs(previous - losses[-1]) < tolerance:
            break
        previous = losses[-1]
    else:
        pytest.fail(f"no convergence in 5000 epochs: the loss went from {losses[0]:g} to {losses[-1]:g}")
    predictions = host(model(inputs)) > 0
    assert losses[-1] < 0.01, f"after {epoch} epochs the loss is {losses[-1]:g}"
    assert (predictions == (y > 0)).all()

    w1, b1, w2, b2 = weights
    for by_autograd in losses[:200]:
        a = np.tanh(x @ w1.T + b1)
        z = a @ w2.T + b2
        total = np.sum(np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))))
        assert math.isclose(by_autograd, total, rel_tol=1e-9)
        delta2 = sigmoid(z) - y
        delta1 = delta2 @ w2 * (1 - a**2)
        w2, b2 = w2 - eta / samples * delta2.T @ a, b2 - eta / samples * delta2.sum(axis=0)
        w1, b1 = w1 - eta / samples * delta1.T @ x, b1 - eta / samples * delta1.sum(axis=0)


def test_11_sgd_does_the_same_with_the_rate_divided(device: str) -> None:
    x, y = xor()
    eta = 2.0
    by_hand, by_optimizer = (nn.MLP([2, 3, 1], activation="sigmoid", dtype="float64") for _ in range(2))
    by_optimizer.load_state_dict(by_hand.state_dict())
    sgd = optim.SGD(by_optimizer.parameters(), lr=eta / len(x))
    for _ in range(20):
        by_hand.zero_grad()
        nn.MSELoss(reduction="sum")(by_hand(gf.tensor(x)), gf.tensor(y)).backward()
        with gf.no_grad():
            for p in by_hand.parameters():
                p -= p.grad * (eta / len(x))
        sgd.zero_grad()
        nn.MSELoss(reduction="sum")(by_optimizer(gf.tensor(x)), gf.tensor(y)).backward()
        sgd.step()
    for (name, p), q in zip(by_hand.named_parameters(), by_optimizer.parameters(), strict=True):
        close(name, q, host(p))


@pytest.mark.parametrize("size", [1, 3, 8])
def test_11_micro_batches_add_up_to_the_batch(device: str, size: int) -> None:
    rng = np.random.default_rng(11)
    x, y = gf.tensor(rng.normal(size=(24, 5))), gf.tensor(rng.integers(0, 3, size=24))
    model = nn.MLP([5, 7, 3], activation="tanh", dtype="float64")
    nn.CrossEntropyLoss(reduction="sum")(model(x), y).backward()
    whole = [host(p.grad).copy() for p in model.parameters()]
    for flat in (False, True):  # also with the gradients in an optimizer's buffer
        model.zero_grad()
        if flat:
            sgd = optim.SGD(model.parameters(), lr=0.1)
        for start in range(0, 24, size):
            rows = slice(start, start + size)
            nn.CrossEntropyLoss(reduction="sum")(model(x[rows]), y[rows]).backward()
        for (name, p), expected in zip(model.named_parameters(), whole, strict=True):
            close(f"{name}, micro-batches of {size}, flat={flat}", p.grad, expected)
    del sgd


def test_12_momentum_on_a_layered_network(device: str) -> None:
    """update = 0.5 * update - (2/n) * eta * delta; w += update, in NumPy, against MSELoss and SGD(momentum=0.5)."""
    rng = np.random.default_rng(12)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 1))
    eta, batch = 0.05, 8
    model = nn.MLP([6, 10, 8, 1], activation="sigmoid", dtype="float64")
    sgd = optim.SGD(model.parameters(), lr=eta, momentum=0.5)
    weights = [host(p).copy() for p in model.parameters()]
    updates = [np.zeros_like(w) for w in weights]
    for step in range(60):
        rows = rng.permutation(40)[:batch]
        outs = [x[rows]]
        for k in range(3):
            z = outs[-1] @ weights[2 * k].T + weights[2 * k + 1]
            outs.append(sigmoid(z) if k < 2 else z)
        delta = outs[-1] - y[rows]
        for k in reversed(range(3)):
            grads = delta.T @ outs[k], delta.sum(axis=0)
            if k:
                delta = delta @ weights[2 * k] * outs[k] * (1 - outs[k])
            for i, g in zip((2 * k, 2 * k + 1), grads, strict=True):
                updates[i] = 0.5 * updates[i] - 2 / batch * eta * g
                weights[i] = weights[i] + updates[i]

        sgd.zero_grad()
        loss = nn.MSELoss()(model(gf.tensor(x[rows])), gf.tensor(y[rows]))
        loss.backward()
        sgd.step()
        close(f"loss of step {step}", loss, np.mean((outs[-1] - y[rows]) ** 2))
    for (name, p), expected in zip(model.named_parameters(), weights, strict=True):
        close(name, p, expected)


def test_13_two_layer_network_on_images(device: str) -> None:
    """max(0, x W1 + b1) W2 + b2: two layers have weights. Synthetic 32 x 32 x 3 images of ten kinds."""
    rng = np.random.default_rng(13)
    labels = rng.integers(0, 10, size=200)
    images = rng.uniform(size=(10, 32, 32, 3))[labels] + 0.3 * rng.normal(size=(200, 32, 32, 3))
    model = nn.MLP([3072, 100, 10])
    assert len([m for m in model.modules() if isinstance(m, nn.Linear)]) == 2
    assert sum(p.size for p in model.parameters()) == 3072 * 100 + 100 + 100 * 10 + 10
    x = gf.tensor((images - images.mean(axis=0)).astype(np.float32)).reshape(200, -1)
    t = gf.tensor(labels)
    w1, b1, w2, b2 = (host(p).astype(np.float64) for p in model.parameters())
    by_hand = np.maximum(0, host(x).astype(np.float64) @ w1.T + b1) @ w2.T + b2
    np.testing.assert_allclose(host(model(x)), by_hand, atol=1e-4)
    sgd = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        sgd.zero_grad()
        loss = nn.CrossEntropyLoss()(model(x), t)
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    assert abs(losses[0] - math.log(10)) < 0.3, f"an untrained network guesses: ln 10 = 2.303, got {losses[0]:g}"
    correct = float(np.mean(host(model(x).argmax(axis=1)) == labels))
    assert correct == 1.0, f"{correct:.0%} of the training images correct; losses {losses[0]:g} ... {losses[-1]:g}"
