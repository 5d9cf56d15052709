"""A whole training step as one thing to call, which a device may record once and replay.

On the CPU nothing is recorded, and that is a decision. A replay of the array calls that a step made, after checks of
the state that gradflow knows, took 0.6 of the time for a perceptron 2-16-16-1, 0.9 for 784-128-10, 1.0 for
784-512-512-10. But nothing in those calls tells what of Python the step reads and changes: with a counter, a branch, or
a place in a random stream, the replay went on with the values of the recording.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from gradflow.ops.table import check_tensors
from gradflow.tensor import Tensor
from gradflow.tree import flatten

_Result = TypeVar("_Result")


def capture(step: Callable[..., _Result]) -> Callable[..., _Result]:
    """A function that does what `step` does, to the bit, and that a device may record once and replay.

    A step is a function of tensors of one device, such as a batch and its labels, and does a whole step of training:
    it forgets gradients, computes a loss, goes back from it, and calls the optimizer. It returns a tensor, nested
    tuples, lists and dicts of tensors, or None. A method is captured when it is bound: `capture(self.step)`. No device
    records it so far: each call runs it as it is. The CPU will go on so: a replay would save a tenth to almost half of
    a small step, but be wrong where a step reads a counter or a flag of Python's. Raises TypeError for what cannot be
    called. A call raises TypeError for an input that is no tensor and DeviceMismatchError for inputs on different
    devices, both before the step begins; whatever the step raises; and TypeError, after it, for a result that is no
    tensor.

    >>> import gradflow as gf
    >>> w = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> optimizer = gf.optim.SGD([w], lr=0.5)
    >>> @gf.capture
    ... def step(x):
    ...     optimizer.zero_grad()
    ...     loss = (w * x).sum()
    ...     loss.backward()
    ...     optimizer.step()
    ...     return loss
    >>> x = gf.tensor([1.0, 1.0])
    >>> [step(x).item() for _ in range(3)]
    [3.0, 2.0, 1.0]
    """
    if not callable(step):
        raise TypeError(f"capture takes a function that does a training step; got {type(step).__name__}")

    @functools.wraps(step, updated=())  # the attributes of a module that is captured stay its own
    def captured(*inputs: Any, **named: Any) -> _Result:
        check_tensors("a captured step", *inputs, *named.values())
        result = step(*inputs, **named)
        for path, value in flatten(result):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"a captured step returns tensors, tuples, lists and dicts of them, or None; result{path} is "
                    f"{type(value).__name__}: return the tensor, and read its value after the step"
                )
        return result

    return captured
