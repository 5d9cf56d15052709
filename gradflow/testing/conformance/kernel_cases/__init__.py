"""The cases of `test_kernels`: calls of every kernel, each with an error bound derived from its formula."""

from gradflow.testing.conformance.kernel_cases import (
    activations,
    batch_norm,
    dropout,
    gather,
    layer_norm,
    linear,
    losses,
    optimizers,
    scatter,
    softmax,
)

SUBJECTS = (activations, softmax, linear, layer_norm, batch_norm, losses, dropout, gather, scatter, optimizers)
CASES = [case for subject in SUBJECTS for case in subject.CASES]
"""The cases of every kernel."""
