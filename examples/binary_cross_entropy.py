"""The binary cross-entropy of a two-layer sigmoid network: its formula, its gradients, and why it takes logits."""

import numpy as np

import gradflow as gf
from gradflow import nn

rng = np.random.default_rng(0)
x, y = rng.normal(size=(30, 4)), rng.integers(0, 2, size=(30, 1)).astype(float)
model = nn.MLP([4, 5, 1], activation="sigmoid", dtype="float64", generator=gf.Generator(0))
W1, b1, W2, b2 = (p.detach().numpy() for p in model.parameters())

a = 1 / (1 + np.exp(-(x @ W1.T + b1)))
h = 1 / (1 + np.exp(-(a @ W2.T + b2)))
cost = -np.mean(y * np.log(h) + (1 - y) * np.log(1 - h))
delta2 = (h - y) / len(x)  # d cost / d z2: the sigmoid's slope h(1 - h) cancels
delta1 = delta2 @ W2 * a * (1 - a)

loss = gf.binary_cross_entropy_with_logits(model(gf.tensor(x)), gf.tensor(y))  # the model returns z2, not h
loss.backward()
print(f"cost {cost:.6f} by hand, {loss:.6f} by gradflow")
by_hand = (delta1.T @ x, delta1.sum(axis=0), delta2.T @ a, delta2.sum(axis=0))
for parameter, gradient in zip(model.parameters(), by_hand, strict=True):
    assert np.allclose(parameter.grad.numpy(), gradient, rtol=1e-12, atol=1e-15)
print("all four gradients are equal to rounding")

z = gf.tensor([-200.0, 200.0], requires_grad=True)  # in float32, h is 0 and 1
wrong = gf.binary_cross_entropy_with_logits(z, gf.tensor([1.0, 0.0]), reduction="none")
wrong.sum().backward()
print("certain and wrong: loss", wrong.tolist(), "gradient", z.grad.tolist())
