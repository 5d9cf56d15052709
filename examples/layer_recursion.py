"""Backpropagation through any number of layers, by hand in NumPy and by gradflow."""

import itertools

import numpy as np

import gradflow as gf


def by_hand(weights, biases, x, d):
    """The gradients of L = |y_K - d|^2 / 2 in a network of K tanh layers, from the last to the first."""
    ys = [x]
    for W, b in zip(weights, biases, strict=True):
        ys.append(np.tanh(W @ ys[-1] + b))  # z_k = W_k y_(k-1) + b_k,  y_k = tanh(z_k)
    grad_y = ys[-1] - d
    gradients = []
    for W, before, y in zip(reversed(weights), reversed(ys[:-1]), reversed(ys[1:]), strict=True):
        grad_z = grad_y * (1 - y**2)  # grad_y_k J_k, and J_k is diagonal
        gradients.append((np.outer(grad_z, before), grad_z))  # of W_k, in its shape, and of b_k
        grad_y = grad_z @ W  # of y_(k-1)
    return gradients


def by_gradflow(weights, biases, x, d):
    """The same gradients from `backward()`."""
    ws = [gf.tensor(W, requires_grad=True) for W in weights]
    bs = [gf.tensor(b, requires_grad=True) for b in biases]
    y = gf.tensor(x)
    for W, b in zip(ws, bs, strict=True):
        y = gf.tanh(W @ y + b)
    loss = (y - gf.tensor(d)).square().sum() / 2
    loss.backward()
    return [(W.grad.numpy(), b.grad.numpy()) for W, b in reversed(list(zip(ws, bs, strict=True)))]


rng = np.random.default_rng(0)
for depth in (1, 2, 3, 10, 100):
    widths = [4] * (depth - 1) + [2]
    weights = [rng.normal(size=(n, m)) / 2 for m, n in itertools.pairwise([3, *widths])]
    biases = [rng.normal(size=n) for n in widths]
    x, d = rng.normal(size=3), rng.normal(size=2)
    hand = [g for layer in by_hand(weights, biases, x, d) for g in layer]
    found = [g for layer in by_gradflow(weights, biases, x, d) for g in layer]
    error = max(np.abs(a - b).max() / np.abs(a).max() for a, b in zip(hand, found, strict=True))
    first = np.abs(hand[-2]).max()  # of W_1
    equal = f"{len(hand):3} gradients are equal to rounding: {error < 1e-12}"
    print(f"depth {depth:3}: {equal}; largest of the first layer: {first:.0e}")
