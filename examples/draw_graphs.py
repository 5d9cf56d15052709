"""Pictures of the first graphs of "Backpropagation, drawn", as files for slides, in this folder."""

import gradflow as gf


def inputs(*values):
    return [gf.tensor(value, requires_grad=True) for value in values]


def save(trace, file, **options):
    trace.save(file, **options)
    print(f"{file}: {len(trace.graph.steps)} steps")


w, x, b = inputs(-2.0, 5.0, 3.0)
with gf.trace() as line:
    g = w * x
    f = g + b
    f.backward()
save(line, "line.svg", local=True)

x, y, z = inputs(-2.0, 5.0, -4.0)
with gf.trace() as product:
    q = x + y
    f = q * z
    f.backward()
save(product, "product.pdf", roles=True)

w0, x0, w1, x1, w2 = inputs(2.0, -1.0, -3.0, -2.0, -3.0)
with gf.trace() as neuron:
    z = w0 * x0 + w1 * x1 + w2
    f = 1 / (1 + gf.exp(-z))
    f.backward()
save(neuron, "neuron.html")  # step through it with the arrow keys

W, x = inputs([[0.1, 0.5], [-0.3, 0.8]], [0.2, 0.4])
with gf.trace() as norm:
    q = W @ x
    f = q.square().sum()
    f.backward()
save(norm, "norm.png")
