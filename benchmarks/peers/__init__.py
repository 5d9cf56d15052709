"""A training step of gradflow and the same step of its peers, timed in turn in one run.

`python -m benchmarks.peers` measures and prints. Each row runs in its own process (`worker`), so the thread pools
and the environments of the libraries do not mix.
"""
