"""How a training step of gradflow scales with batch, width and depth, in time and in memory, beside PyTorch's.

`python -m benchmarks.scaling` measures, prints and draws, with the rows and the processes of `benchmarks.peers`.
"""
