"""Errors for PyTorch's names of functions and methods that have another name in gradflow: they say what to write.

These names do not exist in gradflow: `hasattr` is False for all of them.
"""

from __future__ import annotations

from typing import Any, NoReturn

FUNCTIONS = {
    "bmm": "matmul", "cat": "concat", "clamp": "clip", "cumsum": "cumulative_sum", "div": "divide",
    "from_numpy": "tensor", "gather": "take_along_axis", "mm": "matmul", "mul": "multiply", "permute": "permute_dims",
    "pow": "power", "rand": "random.uniform", "randn": "random.normal", "randperm": "random.permutation",
    "sub": "subtract", "transpose": "swapaxes", "unsqueeze": "expand_dims",
}  # fmt: skip
"""For functions of `torch`: the name in `gradflow`."""

METHODS = {
    "clamp": "clip", "cumsum": "cumulative_sum", "dim": "ndim", "gather": "take_along_axis", "numel": "size",
    "permute": "permute_dims", "transpose": "swapaxes", "type": "astype", "unsqueeze": "expand_dims",
    "view": "reshape",
}  # fmt: skip
"""For methods of `torch.Tensor`: the name of the method or property of `gradflow.Tensor`."""


def missing_function(name: str) -> AttributeError:
    """The error for a name that `gradflow` does not have."""
    hint = f"; PyTorch's {name} is gradflow.{FUNCTIONS[name]}" if name in FUNCTIONS else ""
    return AttributeError(f"module 'gradflow' has no attribute {name!r}{hint}")


class MissingMethod:
    """A method of PyTorch's tensors that `Tensor` does not have: reading it raises AttributeError with the hint.

    Unlike `Tensor.__getattr__`, it does not slow down the access to other attributes.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        hint = f"PyTorch's {self.name} is Tensor.{METHODS[self.name]} in gradflow"
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}; {hint}")
