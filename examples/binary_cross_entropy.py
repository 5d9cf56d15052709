"""The binary cross-entropy of a two-layer sigmoid network, by hand and by gradflow, and its use of logits."""

import numpy as np

import gradflow as gf
from gradflow import nn

rng = np.random.default_rng(0)
x, d = rng.normal(size=(30, 4)), rng.integers(0, 2, size=(30, 1)).astype(float)
model = nn.MLP([4, 5, 1], activation="sigmoid", dtype="float64", generator=gf.Generator(0))
W1, b1, W2, b2 = (p.detach().numpy() for p in model.parameters())

h = 1 / (1 + np.exp(-(x @ W1.T + b1)))
y = 1 / (1 + np.exp(-(h @ W2.T + b2)))
by_formula = -np.mean(d * np.log(y) + (1 - d) * np.log(1 - y))
delta2 = (y - d) / len(x)  # dL/dz2: the sigmoid's slope y(1 - y) cancels
delta1 = delta2 @ W2 * h * (1 - h)

z2 = model(gf.tensor(x))  # the model returns z2, not y
loss = gf.binary_cross_entropy_with_logits(z2, gf.tensor(d))
loss.backward()
print(f"loss {by_formula:.6f} by hand, {loss:.6f} by gradflow")
by_hand = (delta1.T @ x, delta1.sum(axis=0), delta2.T @ h, delta2.sum(axis=0))
for parameter, gradient in zip(model.parameters(), by_hand, strict=True):
    assert np.allclose(parameter.grad.numpy(), gradient, rtol=1e-12, atol=1e-15)
print("all four gradients are equal to rounding")

z = gf.tensor([-200.0, 200.0], requires_grad=True)  # in float32, y is 0 and 1
wrong = gf.binary_cross_entropy_with_logits(z, gf.tensor([1.0, 0.0]), reduction="none")
wrong.sum().backward()
print("certain and wrong: loss", wrong.tolist(), "gradient", z.grad.tolist())
