"""Parameters as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterable

from gradflow.autograd.grad_mode import no_grad
from gradflow.ops import concat, reshape
from gradflow.ops.checks import check_tensors
from gradflow.tensor import Tensor


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters in order, as one tensor with one axis. It is recorded.

    parameters: at least one tensor, such as `module.parameters()`; all are on one device.

    Raises ValueError if there are none, DeviceMismatchError.

    >>> import gradflow as gf
    >>> model = gf.nn.Linear(2, 3)
    >>> vector = gf.nn.parameters_to_vector(model.parameters())
    >>> vector.shape
    (9,)
    >>> penalty = 0.01 * (vector * vector).sum()
    """
    tensors = list(parameters)
    if not tensors:
        raise ValueError("parameters_to_vector needs at least one parameter; an iterator is used up after one pass")
    return concat([reshape(p, (p.size,)) for p in tensors], axis=0)


def vector_to_parameters(vector: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copy the elements of a vector into the parameters in order. Not recorded; the parameters stay the same objects.

    vector: of shape (n,), on the device of the parameters, which have n elements together.
    parameters: tensors, such as `module.parameters()`.

    Everything is checked before anything changes. Raises ValueError if the length of the vector does not fit, and
    TypeError for anything but tensors.

    >>> import gradflow as gf
    >>> model = gf.nn.Linear(2, 1)
    >>> gf.nn.vector_to_parameters(gf.tensor([1.0, 2.0, 3.0]), model.parameters())
    >>> model.weight.tolist(), model.bias.tolist()
    ([[1.0, 2.0]], [3.0])
    """
    tensors = list(parameters)
    check_tensors("vector_to_parameters", vector, *tensors)
    total = sum(p.size for p in tensors)
    if vector.shape != (total,):
        raise ValueError(f"vector_to_parameters needs a vector of {total} elements; got shape {vector.shape}")
    start = 0
    with no_grad():
        for p in tensors:
            p.copy_(reshape(vector[start : start + p.size], p.shape))
            start += p.size
