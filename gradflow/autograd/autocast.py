"""`autocast`: products in half floats, and everything that would lose digits or overflow in float32.

Which operation runs in which dtype is part of the table of operations (`Operation.autocast`); `gradflow.ops.table`
converts their inputs.
"""

from __future__ import annotations

from typing import Any

from gradflow.autograd.grad_mode import OFF, autocast_dtype, grad_enabled, mode_if
from gradflow.dtypes import DType, bfloat16, float16
from gradflow.modes import Mode


class autocast(Mode):  # noqa: N801 (it is used like a function)
    """Computes matrix products in a half float, inside a `with` or a decorated function: mixed precision.

    dtype: "bfloat16" or "float16"; with `enabled=False` also None.
    enabled: False to compute a part of such a context without it (default True).

    Matrix products and linear layers convert their inputs to `dtype`, add up in float32, and return `dtype`. Sums,
    softmax, losses, layer norm, exp, log and power convert theirs to float32. All other operations take the dtype that
    comes; the larger one, where two meet. float64 tensors are left alone. Parameters, their gradients and the
    optimizer's state stay float32.

    Put the forward pass and the loss inside; `backward()` computes in the dtypes of the forward pass and belongs
    outside. float16 needs a `gradflow.optim.GradScaler`, since small gradients would become 0; bfloat16 needs none. On
    the CPU, bfloat16 needs the extra `half`. Micikevicius et al. 2018, "Mixed Precision Training".

    Raises ValueError for another dtype, and unless `enabled` is True or False.

    >>> import gradflow as gf
    >>> model = gf.nn.Linear(3, 2)
    >>> with gf.autocast("float16"):
    ...     y = model(gf.ones((4, 3)))
    ...     loss = (y * y).sum()
    >>> y.dtype, loss.dtype
    (gradflow.float16, gradflow.float32)
    >>> loss.backward()
    >>> model.weight.grad.dtype
    gradflow.float32
    """

    variables = (autocast_dtype, grad_enabled)

    def __init__(self, dtype: Any, enabled: bool = True) -> None:
        if enabled not in (True, False):
            raise ValueError(f"enabled is True or False; got {enabled!r}")
        chosen = next((half for half in (bfloat16, float16) if half == dtype), None)
        if chosen is None and (enabled or dtype is not None):
            raise ValueError(f"autocast takes 'bfloat16' or 'float16'; got {dtype!r}")
        self.dtype: DType | None = chosen if enabled else None

    def _values(self) -> tuple[Any, ...]:
        return self.dtype, grad_enabled.get()

    def _enter(self, values: tuple[Any, ...]) -> None:
        recording = grad_enabled.get() is not OFF  # now: a generator may resume elsewhere
        super()._enter((values[0], grad_enabled.get()))
        if recording:
            grad_enabled.set(mode_if(recording=True))
