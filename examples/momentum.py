"""Stochastic gradient descent with momentum 0.5, by hand in NumPy and by gradflow's SGD."""

import numpy as np

import gradflow as gf
from gradflow import nn, optim


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


rng = np.random.default_rng(0)
x = rng.normal(size=(200, 3))
d = np.sin(x.sum(axis=1, keepdims=True))
eta, N = 0.1, 20  # the rate, and the samples of a batch

model = nn.MLP([3, 16, 8, 1], activation="sigmoid", dtype="float64", generator=gf.Generator(0))
sgd = optim.SGD(model.parameters(), lr=eta, momentum=0.5)
parameters = [p.detach().numpy().copy() for p in model.parameters()]  # W1, b1, W2, b2, W3, b3
updates = [np.zeros_like(p) for p in parameters]

for step in range(1, 1001):
    rows = rng.permutation(len(x))[:N]

    outputs = [x[rows]]  # forward, by hand
    for k in range(3):
        z = outputs[k] @ parameters[2 * k].T + parameters[2 * k + 1]
        outputs.append(sigmoid(z) if k < 2 else z)
    delta = outputs[3] - d[rows]  # backward; the factor 2/N comes with the update
    gradients = [None] * 6
    for k in reversed(range(3)):
        gradients[2 * k], gradients[2 * k + 1] = delta.T @ outputs[k], delta.sum(axis=0)
        delta = delta @ parameters[2 * k] * outputs[k] * (1 - outputs[k])
    for i, gradient in enumerate(gradients):
        updates[i] = 0.5 * updates[i] - (2 / N) * eta * gradient
        parameters[i] += updates[i]

    sgd.zero_grad()  # the same step
    loss = gf.mse_loss(model(gf.tensor(x[rows])), gf.tensor(d[rows]))
    loss.backward()
    sgd.step()
    if step in (1, 10, 100, 1000):
        pairs = zip(model.parameters(), parameters, strict=True)
        equal = all(np.allclose(p.detach().numpy(), hand, rtol=1e-9, atol=1e-12) for p, hand in pairs)
        print(f"step {step:4}: loss {loss:.4f}, weights are equal to rounding: {equal}")
