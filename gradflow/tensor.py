"""The tensor: an array of a backend, and the node of the graph that computed it.

Operators and most methods are functions of `gradflow.ops`, attached to the class when that package is imported (see
`gradflow.tensor_methods`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from gradflow.autograd.graph import Node
from gradflow.autograd.hooks import Handle, add_hook, retain_gradient, retained
from gradflow.autograd.leaf import Leaf, places
from gradflow.autograd.memory import Memory
from gradflow.autograd.wrapping import register_tensor_class
from gradflow.backend import Array, Backend, Device
from gradflow.backend.device import DeviceUnavailableError
from gradflow.backend.registry import get_backend
from gradflow.dtypes import DTYPES, DType
from gradflow.interception import forbid_replay, invalidate, opaque_call, recorders, report_read
from gradflow.printing import describe, formatted, tensor_text
from gradflow.pytorch_names import METHODS, hints_at
from gradflow.tensor_methods import TensorMethods


@hints_at(METHODS)
@register_tensor_class
class Tensor(TensorMethods):
    """An array of numbers on a device that records how it was computed. Create one with `gradflow.tensor`.

    array: the backend's own array. It may be shared with other tensors: do not change it.
    backend: the `gradflow.backend.Backend` of the device.

    >>> import gradflow as gf
    >>> x = gf.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> x.shape, x.ndim, x.size, x.dtype, x.device, x.is_leaf
    ((2, 2), 2, 4, gradflow.float32, Device('cpu'), True)
    >>> x[0].square().sum().backward()
    >>> x.grad
    tensor([[2., 4.],
            [0., 0.]], dtype=float32, device=cpu)
    """

    __slots__ = ("__weakref__", "_frozen", "_memory", "_node", "array", "backend")

    __hash__ = object.__hash__

    def __init__(self, array: Array, backend: Backend, node: Node | Leaf | None = None) -> None:
        self.array = array
        self.backend = backend
        self._node = node
        self._memory: Memory | None = None

    # ------------------------------------------------------------------ properties

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
        """The data type of the elements, such as `gradflow.float32`."""
        if recorders:
            report_read(self.array)
        return DTYPES[self.backend.dtype_name(self.array.dtype)]

    @property
    def device(self) -> Device:
        """The device that holds the elements."""
        if recorders:
            report_read(self.array)
        return self.backend.device

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded. It can be assigned on a leaf."""
        if recorders:
            report_read(self.array)
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Set whether this leaf requires grad, in place, and return the tensor.

        Raises TypeError for an integer or bool tensor, RuntimeError for a computed tensor and `value=False`.

        >>> import gradflow as gf
        >>> x = gf.random.normal((2, 3)).requires_grad_()
        >>> x.requires_grad, (x * 2).requires_grad
        (True, True)
        """
        if value == self.requires_grad:
            return self
        places.change()
        if value:
            frozen = self._frozen_leaf()
            self._node, self._frozen = _leaf(self) if frozen is None else frozen, None
        elif isinstance(self._node, Leaf):
            self._frozen, self._node = self._node, None
        else:
            raise RuntimeError("requires_grad of a computed tensor cannot be set to False: use detach()")
        invalidate(self.array)
        return self

    def _frozen_leaf(self) -> Leaf | None:
        """The leaf that this tensor was before `requires_grad` was set to False, unless the tensor has moved since."""
        leaf: Leaf | None = getattr(self, "_frozen", None)
        if leaf is None or (leaf.backend, leaf.shape, leaf.dtype) != (self.backend, self.array.shape, self.array.dtype):
            return None
        return leaf

    @property
    def is_leaf(self) -> bool:
        """Whether this tensor was not computed from tensors that require grad."""
        if recorders:
            report_read(self.array)
        return self._node is None or self._node.op is None

    @property
    def grad(self) -> Tensor | None:
        """The gradient accumulated for this leaf by backward passes, or None.

        A computed tensor has one only after `retain_grad`; without that, reading it warns and returns None.
        """
        node = self._frozen_leaf() if self._node is None else self._node
        if recorders:
            forbid_replay("reads a gradient (grad)")  # in a replay, it may be elsewhere or None
        if node is None or isinstance(node, Leaf):
            return None if node is None else node.grad
        kept = retained(node)
        if kept is None:
            warnings.warn(
                f"the gradient of a computed tensor (of {node.op.name}) is not kept in .grad: call retain_grad() on it "
                "before backward(), read it with register_hook(), or compute it with gradflow.gradients()",
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
            raise RuntimeError(f"only a leaf that requires grad has a gradient; {fix} first")
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
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set `.grad` to None, so that the next backward pass does not add to the gradients of earlier ones.

        set_to_none: False to fill a gradient that is there with zeros instead (default True).

        >>> import gradflow as gf
        >>> x = gf.tensor(3.0, requires_grad=True)
        >>> (x * x).backward()
        >>> x.zero_grad()
        >>> (x * x).backward()
        >>> x.grad.item()
        6.0
        """
        if not set_to_none:
            gradient = self.grad
            if gradient is not None:
                gradient.detach().zero_()
            return
        node = self._frozen_leaf() if self._node is None else self._node
        if isinstance(node, Leaf):
            node.clear()
        elif node is not None:
            kept = retained(node)
            if kept is not None:
                kept.grad = None

    def retain_grad(self) -> None:
        """Accumulate the gradient of this computed tensor in `.grad` from now on, as for a leaf.

        It is the gradient after all hooks. Raises RuntimeError for a tensor that does not require grad.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
        >>> y = x * 3
        >>> y.retain_grad()
        >>> (y * y).sum().backward()
        >>> y.grad.tolist()
        [6.0, 12.0]
        """
        if self._node is None:
            raise RuntimeError(f"retain_grad() on a {describe(self)} that does not require grad: it has no gradient")
        if isinstance(self._node, Node):
            retain_gradient(self._node)

    # ------------------------------------------------------------------ differentiating

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call `hook` in each backward pass with the accumulated gradient of this tensor; return a handle.

        hook: takes the gradient, which it must not change in place, and returns None or a replacement for it.

        The handle removes the hook with `remove()`, or at the end of a `with` statement. Raises RuntimeError for a
        tensor that does not require grad.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
        >>> with x.register_hook(lambda g: g * 10):
        ...     (x * x).sum().backward()
        >>> x.grad.tolist()
        [20.0, 40.0]
        """
        if self._node is None:
            raise RuntimeError(f"register_hook() on a {describe(self)} that does not require grad: it has no gradient")
        return add_hook(self._node, hook)

    def detach(self) -> Tensor:
        """A tensor of the same values, in the same memory, that is not part of the graph.

        >>> import gradflow as gf
        >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
        >>> x.detach().requires_grad, (x.detach() * x).requires_grad
        (False, True)
        """
        memory = self._shared_memory()
        out = Tensor(self.array, self.backend)
        memory.add(out)
        return out

    # ------------------------------------------------------------------ to the host

    def numpy(self) -> Any:
        """The values as a new C-contiguous NumPy array. Waits for the device.

        Raises RuntimeError for a tensor that requires grad.

        >>> import gradflow as gf
        >>> gf.tensor([[1.0, 2.0]]).numpy()
        array([[1., 2.]], dtype=float32)
        """
        if self._node is not None:
            raise RuntimeError("a NumPy array has no gradient, and this tensor requires grad: use .detach().numpy()")
        return self.backend.to_host(self.array)

    def item(self) -> Any:
        """The only element, as a Python number. Waits for the device.

        Raises ValueError for a tensor that does not have exactly one.

        >>> import gradflow as gf
        >>> gf.tensor([1.0, 2.0]).sum().item()
        3.0
        """
        if self.size != 1:
            raise ValueError(f"item() is for a tensor with one element; this one has shape {self.shape}")
        return self.backend.to_host(self.array).item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers, or one number without axes. Waits for the device.

        >>> import gradflow as gf
        >>> gf.tensor([[1, 2], [3, 4]]).tolist(), gf.tensor(2.5).tolist()
        ([[1.0, 2.0], [3.0, 4.0]], 2.5)
        """
        return self.backend.to_host(self.array).tolist()

    def cpu(self) -> Tensor:
        """This tensor on the CPU; itself if it is there already. Differentiable.

        >>> import gradflow as gf
        >>> import gradflow.testing  # the device "fake"
        >>> gf.zeros(2, device="fake").cpu().device
        Device('cpu')
        """
        return self.to("cpu")

    # ------------------------------------------------------------------ changing in place

    def _shared_memory(self) -> Memory:
        """The record of in-place changes that this tensor shares with its views; created on first use."""
        if not hasattr(self.array, "__setitem__"):  # a NumPy scalar
            self.array = self.backend.asarray(self.array)
        if self._memory is None:
            self._memory = Memory(0, self._node if isinstance(self._node, Node) else None)
        return self._memory

    def _bump(self) -> None:
        """Record that the values have changed in place."""
        self._shared_memory().change()

    def _assign(self, values: Array, key: Any = ...) -> None:
        """Change the array in place: array[key] = values. ValueError where its memory is read-only."""
        if not hasattr(self.array, "__setitem__"):  # a NumPy scalar
            self.array = self.backend.copy(self.array)
        try:
            self.backend.setitem(self.array, key, values)
        except ValueError:
            if not is_read_only(self.array):
                raise
            raise ValueError(
                "this tensor cannot be changed in place: its memory is read-only, since it comes from an array of "
                "another library or a broadcast; copy it with gradflow.tensor(...) or .clone() first"
            ) from None
        self._bump()

    # ------------------------------------------------------------------ Python's protocols

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
            raise TypeError(f"a tensor on {self.device} is not converted to NumPy implicitly: use .cpu().numpy()")
        if copy is False:
            raise ValueError("a tensor can only be converted to a NumPy array by a copy; got copy=False")
        values = self.numpy()
        return values if dtype is None else values.astype(dtype, copy=False)

    def __copy__(self) -> Tensor:
        """A copy: of a leaf another leaf, of a computed tensor its `clone`, which is recorded."""
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

    def __format__(self, spec: str) -> str:
        return formatted(self, spec)

    def __repr__(self) -> str:
        return tensor_text(self)

    # ------------------------------------------------------------------ shapes

    @property
    def T(self) -> Tensor:  # noqa: N802
        """The tensor with its axes in reverse order."""
        return self.permute_dims(tuple(range(self.ndim))[::-1])

    @property
    def mT(self) -> Tensor:  # noqa: N802
        """The tensor with its last two axes exchanged."""
        return self.matrix_transpose()

    def flatten(self) -> Tensor:
        """The tensor reshaped to one axis.

        >>> import gradflow as gf
        >>> gf.tensor([[1.0, 2.0], [3.0, 4.0]]).flatten().tolist()
        [1.0, 2.0, 3.0, 4.0]
        """
        return self.reshape(-1)


def _leaf(t: Tensor) -> Leaf:
    if not t.dtype.is_floating:
        raise TypeError(
            f"only floating-point tensors can require grad; this one is {t.dtype}: "
            "convert it with astype(gradflow.float32)"
        )
    return Leaf(t.backend, t.shape, t.array.dtype)


def is_read_only(array: Array) -> bool:
    """Whether an array cannot be changed in place, as some NumPy arrays cannot."""
    return not getattr(getattr(array, "flags", None), "writeable", True)


def _unpickle(cls: type[Tensor], values: Any, device: str, requires_grad: bool) -> Tensor:
    """A pickled tensor on its device; where the device is missing, on the CPU, with a warning."""
    try:
        backend = get_backend(device)
    except (ValueError, DeviceUnavailableError) as error:
        warnings.warn(f"a pickled tensor opens on the cpu: {error}", stacklevel=2)
        backend = get_backend("cpu")
        if not backend.supports(values.dtype.name):  # bfloat16
            values = values.astype("float32")
    out = cls(backend.from_host(values), backend)
    return out.requires_grad_(requires_grad)
