"""The GPU measured by one command: gradflow's tests there, then a training step beside PyTorch's and JAX's.

`python -m benchmarks.gpu` runs the tests marked `gpu`, the kernels under compute-sanitizer, and the workloads, and
writes the figures after each of them. `--dry-run` does all that on a machine without a GPU, tiny.
"""
