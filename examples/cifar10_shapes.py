"""A two-layer network, 3072-100-10, on images with the shape of CIFAR-10's."""

import numpy as np

import gradflow as gf
from gradflow import nn, optim

rng = np.random.default_rng(0)
labels = rng.integers(0, 10, size=500)
patterns = rng.uniform(size=(10, 32, 32, 3))  # one for each class
images = patterns[labels] + 0.5 * rng.normal(size=(500, 32, 32, 3))
images -= images.mean(axis=0)

x = gf.tensor(images.astype("float32")).reshape(500, -1)  # 32 * 32 * 3 = 3072 numbers an image
d = gf.tensor(labels)
model = nn.MLP([3072, 100, 10], generator=gf.Generator(0))  # max(0, x W1^T + b1) W2^T + b2
print(f"{sum(p.size for p in model.parameters()):,} parameters")

sgd = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for step in range(1, 41):
    sgd.zero_grad()
    loss = gf.cross_entropy(model(x), d)
    loss.backward()
    sgd.step()
    if step in (1, 10, 40):
        print(f"step {step:2}: loss {loss:.2f}")  # it starts near ln 10 = 2.30: ten equal guesses
print(f"{(model(x).argmax(axis=1) == d).mean():.0%} of the training images are right")
