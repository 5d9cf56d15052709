"""The tensor: an array of a backend, and the node that it came from.

Operators and most methods are the functions of `gradflow.ops`, which attaches them to the class when it is imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from gradflow.autograd.graph import Node
from gradflow.autograd.hooks import Handle, add_hook, retained
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.memory import Memory
from gradflow.autograd.wrapping import makes_tensors
from gradflow.backend import Array, Backend, Device
from gradflow.backend.registry import get_backend
from gradflow.dtypes import DTYPES, DType
from gradflow.interception import forbid_replay, invalidate, opaque_call, recorders, report_read
from gradflow.printing import describe, formatted, tensor_text
from gradflow.tensor_methods import TensorMethods


@makes_tensors
class Tensor(TensorMethods):
    """An array of numbers on a device that knows what it was computed from. Make one with `gradflow.tensor`.

    `array` is the array of the backend itself, shared and not to be changed; `backend` is the object that serves its
    device.
    """

    __slots__ = ("__weakref__", "_frozen", "_memory", "_node", "array", "backend")

    __hash__ = object.__hash__

    def __init__(self, array: Array, backend: Backend, node: Node | Leaf | None = None) -> None:
        self.array = array
        self.backend = backend
        self._node = node
        self._memory: Memory | None = None

    # ------------------------------------------------------------------ what it is

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.array.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        n = 1
        for length in self.array.shape:
            n *= length
        return n

    @property
    def dtype(self) -> DType:
        """The data type of the elements, one of `gradflow.float32` and so on."""
        if recorders:
            report_read(self.array)
        return DTYPES[self.backend.dtype_name(self.array.dtype)]

    @property
    def device(self) -> Device:
        """Where the elements are."""
        if recorders:
            report_read(self.array)
        return self.backend.device

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded. Assign to a leaf to change it."""
        if recorders:
            report_read(self.array)
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Set whether this leaf needs a gradient; returns the tensor itself.

        Raises TypeError for an integer or bool tensor, RuntimeError for a tensor that was computed.
        """
        if value == self.requires_grad:
            return self
        if value:
            frozen = self._frozen_leaf()
            self._node = _leaf(self) if frozen is None else frozen
        elif isinstance(self._node, Leaf):
            self._frozen, self._node = self._node, None
        else:
            raise RuntimeError("a computed tensor cannot be told to need no gradient; use detach()")
        invalidate(self.array)
        return self

    def _frozen_leaf(self) -> Leaf | None:
        """The leaf that this tensor was before it was told to need no gradient, unless it has been moved since."""
        leaf: Leaf | None = getattr(self, "_frozen", None)
        if leaf is None or (leaf.backend, leaf.shape, leaf.dtype) != (self.backend, self.array.shape, self.array.dtype):
            return None
        return leaf

    @property
    def is_leaf(self) -> bool:
        """Whether this tensor was made by a user and not computed from tensors that need a gradient."""
        if recorders:
            report_read(self.array)
        return self._node is None or self._node.op is None

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward passes have added up for this leaf, or None.

        Of a computed tensor it is kept after `retain_grad`, and a warning says so before.
        """
        node = self._frozen_leaf() if self._node is None else self._node
        if recorders:
            forbid_replay("reads a gradient (grad)")  # whether it is there, and in which memory, is not known before
        if node is None or isinstance(node, Leaf):
            return None if node is None else node.grad
        kept = retained(node)
        if kept is None:
            warnings.warn(
                f"the gradient of a computed tensor (of {node.op.name}) is not kept in .grad: call retain_grad() on it "
                "before backward(), look at it with register_hook(), or compute it with gradflow.gradients()",
                stacklevel=2,
            )
            return None
        return kept.grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        node = self._node
        place = retained(node) if isinstance(node, Node) else node
        if place is None:
            fix = "set requires_grad=True" if node is None else "this is a computed tensor: call retain_grad()"
            raise RuntimeError(f"only a leaf that requires a gradient has one; {fix} first")
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"a gradient is a Tensor or None; got {type(value).__name__}")
        if value is not None and (value.shape, value.dtype, value.device) != (self.shape, self.dtype, self.device):
            raise ValueError(
                f"the gradient of a {describe(self)} must have its shape, dtype and device; got a {describe(value)}"
            )
        if value is None:
            self.zero_grad()
            return
        forbid_replay("assigns a gradient (grad)")
        place.grad = value

    @opaque_call
    def zero_grad(self) -> None:
        """Forget the gradient: `.grad` becomes None, and the next backward pass starts it again."""
        node = self._frozen_leaf() if self._node is None else self._node
        if isinstance(node, Leaf):
            node.clear()
        elif node is not None:
            kept = retained(node)
            if kept is not None:
                kept.grad = None

    def retain_grad(self) -> None:
        """Keep the gradient of this computed tensor in `.grad`, as of a leaf: backward passes from now on add it up.

        It is the gradient after all hooks. RuntimeError for a tensor that needs no gradient.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
        >>> y = x * 3
        >>> y.retain_grad()
        >>> (y * y).sum().backward()
        >>> y.grad.tolist()
        [6.0, 12.0]
        """
        if self._node is None:
            raise RuntimeError(f"retain_grad() on a {describe(self)} that needs no gradient: there is none to keep")
        if isinstance(self._node, Node):
            retained(self._node, make=True)

    # ------------------------------------------------------------------ differentiating

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call `hook` with the whole gradient of this tensor in each backward pass; what it returns takes its place.

        The gradient must not be changed in place. The handle takes the hook back with `remove()`, or at the end of a
        `with` on it. Raises RuntimeError for a tensor that needs no gradient.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
        >>> with x.register_hook(lambda g: g * 10):
        ...     (x * x).sum().backward()
        >>> x.grad.tolist()
        [20.0, 40.0]
        """
        if self._node is None:
            raise RuntimeError(f"a {describe(self)} that needs no gradient has none to hook")
        return add_hook(self._node, hook)

    def detach(self) -> Tensor:
        """The same values (shared, not copied) without the graph."""
        memory = self._shared_memory()
        out = Tensor(self.array, self.backend)
        memory.add(out)
        return out

    # ------------------------------------------------------------------ leaving the device

    def numpy(self) -> Any:
        """The values as a new C-contiguous NumPy array. Waits for the device.

        RuntimeError for a tensor that needs a gradient.
        """
        if self._node is not None:
            raise RuntimeError("NumPy cannot carry the gradient that this tensor requires: use .detach().numpy()")
        return self.backend.to_host(self.array)

    def item(self) -> Any:
        """The one element as a Python number. Waits for the device. ValueError where there is not exactly one."""
        if self.size != 1:
            raise ValueError(f"item() is for a tensor with one element; this one has shape {self.shape}")
        return self.backend.to_host(self.array).item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers, a bare number for no axes. Waits for the device."""
        return self.backend.to_host(self.array).tolist()

    def cpu(self) -> Tensor:
        """This tensor on the CPU."""
        return self.to("cpu")

    # ------------------------------------------------------------------ changing in place

    def _shared_memory(self) -> Memory:
        """What this tensor and its views share, from now on."""
        if not hasattr(self.array, "__setitem__"):  # a NumPy scalar
            self.array = self.backend.asarray(self.array)
        if self._memory is None:
            self._memory = Memory(0, self._node if isinstance(self._node, Node) else None)
        return self._memory

    def _bump(self) -> None:
        """Note that the values have changed in place."""
        self._shared_memory().change()

    def _assign(self, values: Array, key: Any = ...) -> None:
        if not hasattr(self.array, "__setitem__"):  # a NumPy scalar
            self.array = self.backend.copy(self.array)
        try:
            self.backend.setitem(self.array, key, values)
        except ValueError:
            if not is_read_only(self.array):
                raise
            raise ValueError(
                "this tensor cannot be changed in place: its memory is read-only, that of a NumPy array or of a "
                "broadcast; copy it with gradflow.tensor(...) or .clone() first"
            ) from None
        self._bump()

    # ------------------------------------------------------------------ as Python sees it

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("a tensor without axes has no length")
        return int(self.array.shape[0])

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("a tensor without axes cannot be iterated over")
        return iter(self.unbind())

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(f"the truth of a tensor of shape {self.shape} is ambiguous: use any() or all()")
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.dtype.kind not in ("int", "uint") or self.ndim != 0:
            raise TypeError(f"only an integer tensor without axes is an index; this is a {describe(self)}")
        return int(self.item())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if self.device.type != "cpu":
            raise TypeError(f"a tensor on {self.device} does not turn into a NumPy array by itself: use .cpu().numpy()")
        if copy is False:
            raise ValueError("a tensor gives NumPy a copy of its values, and copy=False forbids one")
        values = self.numpy()
        return values if dtype is None else values.astype(dtype, copy=False)

    def __copy__(self) -> Tensor:
        """The same values in memory of their own: another leaf; of a computed tensor its `clone`, recorded."""
        if not self.is_leaf:
            return self.clone()
        return type(self)(self.backend.copy(self.array), self.backend).requires_grad_(self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError(
                f"only a leaf can be deep-copied; this is a computed {describe(self)}, with a graph: "
                "copy the values with .detach().clone()"
            )
        out = self.__copy__()
        if self._node is not None and self.grad is not None:
            out.grad = Tensor(self.backend.copy(self.grad.array), self.backend)
        memo[id(self)] = out
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.is_leaf:
            raise RuntimeError(
                f"only a leaf can be pickled; this is a computed {describe(self)}: take the values with .detach()"
            )
        return _unpickle, (type(self), self.backend.to_host(self.array), str(self.device), self.requires_grad)

    __format__ = formatted
    __repr__ = tensor_text

    # ------------------------------------------------------------------ shapes

    @property
    def T(self) -> Tensor:  # noqa: N802
        """All axes in reverse order."""
        return self.permute_dims(tuple(range(self.ndim))[::-1])

    @property
    def mT(self) -> Tensor:  # noqa: N802
        """The last two axes exchanged."""
        return self.matrix_transpose()

    def flatten(self) -> Tensor:
        """All elements on one axis."""
        return self.reshape(-1)


def _leaf(t: Tensor) -> Leaf:
    if not t.dtype.is_floating:
        raise TypeError(
            f"only floating-point tensors carry a gradient; this one is {t.dtype}: "
            "convert it with astype(gradflow.float32)"
        )
    return Leaf(t.backend, t.shape, t.array.dtype)


def is_read_only(array: Array) -> bool:
    """Whether an array refuses changes in place: one of NumPy's may."""
    return not getattr(getattr(array, "flags", None), "writeable", True)


def _unpickle(cls: type[Tensor], values: Any, device: str, requires_grad: bool) -> Tensor:
    backend = get_backend(device)
    out = cls(backend.from_host(values), backend)
    return out.requires_grad_(requires_grad)
