"""A perceptron with a sigmoid and the mean squared error: the chain rule by hand, then training."""

import numpy as np

import gradflow as gf
from gradflow import nn, optim

rng = np.random.default_rng(0)
x = rng.normal(size=(200, 2))
d = (x @ [2.0, -1.0] + 0.5 > 0).astype(float)[:, None]  # the sign of a linear function

model = nn.Linear(2, 1, activation="sigmoid", dtype="float64", generator=gf.Generator(0))
inputs, targets = gf.tensor(x), gf.tensor(d)

loss = gf.mse_loss(model(inputs), targets)
loss.backward()

w, b = model.weight.detach().numpy(), model.bias.detach().numpy()
y = 1 / (1 + np.exp(-(x @ w.T + b)))
factor = -2 / len(x) * (d - y) * y * (1 - y)  # dL/dz of each sample
print("dL/dw by hand  ", (factor * x).sum(axis=0).round(6))
print("dL/dw, gradflow", model.weight.grad.numpy()[0].round(6))

optimizer = optim.SGD(model.parameters(), lr=2.0)
for _ in range(500):
    optimizer.zero_grad()
    loss = gf.mse_loss(model(inputs), targets)
    loss.backward()
    optimizer.step()
with gf.no_grad():
    right = (model(inputs).numpy() > 0.5) == d
print(f"after 500 steps: loss {loss:.4f}, {right.mean():.1%} of the samples are right")
