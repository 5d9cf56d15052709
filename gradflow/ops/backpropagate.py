"""`Tensor.backward`."""

from __future__ import annotations

from typing import Any

from gradflow.autograd.backward import backward as walk
from gradflow.autograd.hooks import hooked_nodes
from gradflow.autograd.mapping import current_level
from gradflow.ops import namespace
from gradflow.printing import describe
from gradflow.tensor import Tensor


def backward(
    x: Tensor, /, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False
) -> None:
    """Compute the gradients of this tensor and add them to `.grad` of every leaf that it depends on.

    gradient: the gradient of this tensor, of its shape, dtype and device (default: 1, for a tensor with one element).
    retain_graph: keep the saved arrays for a second backward pass (default: the value of `create_graph`).
    create_graph: record the backward pass, so that the gradients can be differentiated.

    Raises RuntimeError for a tensor that does not require grad, for a tensor of several elements without a `gradient`,
    and where an earlier backward pass has freed the graph; ValueError for a `gradient` that does not fit.

    Several threads may backpropagate to the same leaves at once, each through its own graph: no contribution is lost.
    (Optimizers, `zero_grad` and captured steps are for one thread at a time.)

    >>> import gradflow as gf
    >>> x, y = gf.tensor(-2.0, requires_grad=True), gf.tensor(5.0, requires_grad=True)
    >>> ((x + y) * -4).backward()
    >>> x.grad.item(), y.grad.item()
    (-4.0, -4.0)
    """
    node = x._node
    if current_level.get() is not None:
        raise RuntimeError("inside vmap, there is no backward(): use gradflow.grad, for gradients of each example")
    if node is None:
        raise RuntimeError(
            f"backward() on a {describe(x)} that does not require grad: "
            "set requires_grad=True on the tensors to differentiate by, before it is computed, "
            "and compute it outside of no_grad() and without detach()"
        )
    if gradient is None:
        if x.array.shape and x.size != 1:
            raise RuntimeError(
                f"backward() without a gradient is for a tensor with one element; this one has shape {x.shape}: "
                "reduce it first (mean, sum) or pass gradient="
            )
        backend, array = x.backend, x.array
        if array.shape or create_graph or hooked_nodes:  # the kept seed is for nobody who could change it
            seed = backend.ones(array.shape, dtype=array.dtype)
        else:
            seed = backend.seed(array.dtype)
    else:
        if not isinstance(gradient, Tensor):
            raise TypeError(f"gradient must be a Tensor; got {type(gradient).__name__}")
        if (gradient.shape, gradient.dtype, gradient.device) != (x.shape, x.dtype, x.device):
            raise ValueError(f"gradient must be like the {describe(x)}; got a {describe(gradient)}")
        seed = gradient.array
    start: Any = seed
    if create_graph:
        start = gradient if gradient is not None else Tensor(seed, x.backend)
    retain = create_graph if retain_graph is None else retain_graph
    walk([node], [start], retain, namespace if create_graph else None)
