"""A training step of gradflow beside the same step of its peers, all timed in turn in one run.

`python -m benchmarks.peers` measures and prints. Each row of its tables lives in a process of its own (`worker`), so
that the thread pools and the environments of the libraries do not mix.
"""
