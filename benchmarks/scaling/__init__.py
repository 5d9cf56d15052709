"""The time and memory of a training step by batch, width and depth, for gradflow and PyTorch.

`python -m benchmarks.scaling` measures, prints and draws, with the rows and processes of `benchmarks.peers`.
"""
