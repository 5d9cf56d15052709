"""Parameters: the tensors that a module trains."""

from __future__ import annotations

from typing import Any

from gradflow.tensor import Tensor


class Parameter(Tensor):
    """A tensor that a module trains: a leaf that requires grad. A module registers it on assignment to an attribute.

    values: a floating-point tensor, whose memory the parameter shares.
    requires_grad: default True.

    Raises TypeError for values that are not a floating-point tensor.

    >>> import gradflow as gf
    >>> class Scale(gf.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.factor = gf.nn.Parameter(gf.tensor(2.0))
    ...     def forward(self, x):
    ...         return self.factor * x
    >>> Scale()(gf.tensor([1.0, 3.0])).tolist(), [name for name, _ in Scale().named_parameters()]
    ([2.0, 6.0], ['factor'])
    """

    __slots__ = ()

    def __init__(self, values: Any, backend: Any = None, node: Any = None, *, requires_grad: bool = True) -> None:
        if backend is not None:  # the signature of Tensor, whose methods make copies with it
            super().__init__(values, backend, node)
            return
        if not isinstance(values, Tensor):
            raise TypeError(f"a Parameter is made of a tensor; got {type(values).__name__}")
        super().__init__(values.array, values.backend)
        values._shared_memory().add(self)
        self.requires_grad_().requires_grad_(requires_grad)  # the first call raises for integers in either case
