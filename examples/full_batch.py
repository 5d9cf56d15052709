"""Full-batch training until the loss has converged, and gradients of micro-batches."""

import numpy as np

import gradflow as gf
from gradflow import nn

x = gf.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype="float64")
d = gf.tensor([[0], [1], [1], [0]], dtype="float64")  # exclusive or
N, eta, tolerance = len(x), 4.0, 1e-6

gf.manual_seed(1)
model = nn.MLP([2, 4, 1], activation="tanh", dtype="float64")


def backpropagate(x, d):
    """Add the gradients of the loss, summed over the samples, to those of the parameters."""
    loss = gf.binary_cross_entropy_with_logits(model(x), d, reduction="sum")
    loss.backward()
    return loss.item()


backpropagate(x, d)
whole = [p.grad.numpy().copy() for p in model.parameters()]
model.zero_grad()
for start in (0, 2):  # two micro-batches: the sums of their gradients are those of the batch
    backpropagate(x[start : start + 2], d[start : start + 2])
pairs = zip(whole, model.parameters(), strict=True)
equal = all(np.allclose(gradient, p.grad.numpy(), rtol=1e-12) for gradient, p in pairs)
print("micro-batches give the gradient of the batch:", equal)

previous, epoch = float("inf"), 0
while True:
    epoch += 1
    model.zero_grad()
    loss = backpropagate(x, d)
    with gf.no_grad():
        for p in model.parameters():
            p -= p.grad * (eta / N)  # W <- W - (eta/N) grad_W
    if abs(previous - loss) < tolerance:
        break
    previous = loss
print(f"converged: summed loss {loss:.3f} after {epoch} epochs")
print("outputs:", [f"{y:.3f}" for y in gf.sigmoid(model(x)).reshape(-1).tolist()])
