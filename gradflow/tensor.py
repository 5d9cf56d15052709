"""The tensor: an array of a backend, and the node that it came from.

Operators and most methods are the functions of `gradflow.ops`, which attaches them to the class when it is imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gradflow.autograd.backward import backward
from gradflow.autograd.grad_mode import is_grad_enabled
from gradflow.autograd.graph import Node
from gradflow.autograd.hooks import Handle, add_hook, retained
from gradflow.autograd.leaf import Leaf
from gradflow.autograd.saved import Memory
from gradflow.backend import Array, Backend, Device
from gradflow.backend.discovery import backend_prefixes
from gradflow.backend.registry import DeviceLike, get_backend
from gradflow.dtypes import DTYPES, DType, as_dtype, is_number, weak_number
from gradflow.interception import forbid_replay, invalidate, opaque_call, recorders, report_read
from gradflow.printing import _ARRAY_TEXT, _describe
from gradflow.shapes import is_sequence


class Tensor:
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
                f"the gradient of a {_describe(self)} must have its shape, dtype and device; got a {_describe(value)}"
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
            raise RuntimeError(f"retain_grad() on a {_describe(self)} that needs no gradient: there is none to keep")
        if isinstance(self._node, Node):
            retained(self._node, make=True)

    # ------------------------------------------------------------------ differentiating

    def backward(
        self, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False
    ) -> None:
        """Add the gradient of this tensor to `.grad` of every leaf that it depends on.

        `gradient` is the cotangent, of this tensor's shape, dtype and device; 1 for a scalar. `retain_graph` keeps the
        saved arrays for a second pass (default: the value of `create_graph`); `create_graph` records the pass, so that
        gradients can be differentiated. Raises RuntimeError for a tensor that needs no gradient, a missing
        `gradient`, or a graph already freed; ValueError for a `gradient` that does not fit.

        Threads may go back to the same leaves at once, each through a graph of its own: no contribution is lost.
        (Optimizers, `zero_grad` and captured steps are for one thread at a time.)
        """
        node = self._node
        if node is None:
            raise RuntimeError(
                f"backward() on a {_describe(self)} that needs no gradient: "
                "set requires_grad=True on what it should be differentiated by, before it is computed"
            )
        if gradient is None:
            if self.array.shape and self.size != 1:
                raise RuntimeError(
                    f"backward() without a gradient is for a tensor with one element; this one has shape {self.shape}: "
                    "reduce it first (mean, sum) or pass gradient="
                )
            seed = self.backend.ones(self.array.shape, dtype=self.array.dtype)
        else:
            if not isinstance(gradient, Tensor):
                raise TypeError(f"gradient must be a Tensor; got {type(gradient).__name__}")
            if (gradient.shape, gradient.dtype, gradient.device) != (self.shape, self.dtype, self.device):
                raise ValueError(f"gradient must be like the {_describe(self)}; got a {_describe(gradient)}")
            seed = gradient.array
        start: Any = seed
        if create_graph:
            start = gradient if gradient is not None else Tensor(seed, self.backend)
        backward([node], [start], create_graph if retain_graph is None else retain_graph, create_graph)

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
            raise RuntimeError(f"a {_describe(self)} that needs no gradient has none to hook")
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

    def to(
        self,
        target: DeviceLike | DType | Any = None,
        dtype: Any = None,
        *,
        device: DeviceLike | None = None,
        non_blocking: bool = False,
    ) -> Tensor:
        """This tensor on another device, or in another dtype; itself where it is there already. Differentiable.

        `target` is either of the two; `device` and `dtype` are for both at once. With `non_blocking`, a tensor from
        `pin_memory` goes to its device while the host and the device go on; it must not change until then (see
        `gradflow.synchronize`). Other tensors move as without it: to a GPU through a copy that CuPy makes first, from
        a GPU when their values are there. Raises ValueError, TypeError or DeviceUnavailableError for what does not
        exist here.
        """
        from gradflow import ops

        device, dtype = device_and_dtype(target, dtype, device)
        out = self if device is None else ops.creation.to_device(self, device, non_blocking)
        return out if dtype is None else ops.astype(out, dtype)

    def pin_memory(self, device: DeviceLike = "cuda") -> Tensor:
        """A copy of this tensor, still on the CPU, in memory from which `device` copies fastest (page-locked).

        For `.to(device, non_blocking=True)`. A device without such memory, the CPU for one, gives the tensor itself.
        Raises RuntimeError for a tensor of another device, or one that needs a gradient; DeviceUnavailableError for
        a `device` that cannot be used.
        """
        if self.device.type != "cpu":
            raise RuntimeError(
                f"only a tensor on the cpu can be pinned; this one is on {self.device}: use .cpu() first"
            )
        if self._node is not None:
            raise RuntimeError("pinned memory cannot carry the gradient that this tensor requires: use .detach() first")
        pinned = get_backend(device).pin(self.array)
        return self if pinned is self.array else type(self)(pinned, self.backend)

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

    def copy_(self, source: Any) -> Tensor:
        """Overwrite the values with those of `source`, of this tensor's shape; returns itself.

        `source` is a tensor of any device, what `gradflow.tensor` makes one of, or one number for all elements. Raises
        ValueError for another shape, RuntimeError where a recorded tensor would change outside `no_grad`, and as
        `gradflow.tensor` for numbers of the host that this dtype cannot hold.
        """
        self._refuse_recorded("copy_")
        if not isinstance(source, Tensor):
            if is_number(source):
                self._assign(weak_number("copy_", source, self.dtype))
                return self
            source = tensor(source, self.dtype, self.device)
        if source.shape != self.shape:
            raise ValueError(f"copy_ needs a source of shape {self.shape}; got {source.shape}")
        array = source.array
        if source.backend is not self.backend:
            array = self.backend.from_host(source.backend.to_host(array))
        self._assign(self.backend.astype(array, self.array.dtype, copy=False))
        return self

    def zero_(self) -> Tensor:
        """Overwrite the values with zeros; returns itself. RuntimeError as for `copy_`."""
        self._refuse_recorded("zero_")
        self._assign(0)
        return self

    def _refuse_recorded(self, what: str) -> None:
        if self._node is not None and is_grad_enabled():
            kind = "a leaf that requires a gradient" if self.is_leaf else "a tensor that is part of a graph"
            new = "make a new tensor with gradflow.where(mask, value, x), which is recorded, or "
            raise RuntimeError(
                f"{what} would change {kind} in place; {new * (what == 'item assignment')}"
                "do it inside `with gradflow.no_grad():`"
            )

    def _in_place(self, function: Callable[[Any, Any], Tensor], symbol: str, other: Any) -> Tensor:
        """`self symbol= other`. Of recorded tensors, a new tensor that takes the name; else a change in place."""
        if is_grad_enabled() and (self._node is not None or (isinstance(other, Tensor) and other._node is not None)):
            if self._node is not None and self.is_leaf:
                self._refuse_recorded(symbol)
            return function(self, other)
        out = function(self, other)
        if out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError(
                f"{symbol} would turn a {_describe(self)} into a {_describe(out)}; "
                f"write x = x {symbol[:-1]} ... instead"
            )
        self._assign(out.array)
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        from gradflow.ops.indexing import explain_assignment, explain_index, raw_key

        self._refuse_recorded("item assignment")
        if isinstance(value, Tensor):
            if value._node is not None and is_grad_enabled():
                raise RuntimeError(
                    "item assignment is not recorded, and the value requires a gradient: "
                    "use gradflow.where, or detach()"
                )
            if value.backend is not self.backend:
                from gradflow.ops.checks import mismatch

                raise mismatch("item assignment", (self, value))
            value = self.backend.astype(value.array, self.array.dtype, copy=False)
        elif is_number(value):
            value = weak_number("item assignment", value, self.dtype)
        else:
            value = tensor(value, self.dtype, self.device).array
        raw = raw_key(self, key)
        try:
            self._assign(value, raw)
        except IndexError:
            explain_index(self.backend, self.shape, raw)
            raise
        except ValueError:
            explain_assignment(self.backend, self.array, raw, value)
            raise

    # ------------------------------------------------------------------ as Python sees it

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("a tensor without axes has no length")
        return int(self.array.shape[0])

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("a tensor without axes cannot be iterated over")
        from gradflow.ops.shape import unbind

        return iter(unbind(self))

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
            raise TypeError(f"only an integer tensor without axes is an index; this is a {_describe(self)}")
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
                f"only a leaf can be deep-copied; this is a computed {_describe(self)}, with a graph: "
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
                f"only a leaf can be pickled; this is a computed {_describe(self)}: take the values with .detach()"
            )
        return _unpickle, (type(self), self.backend.to_host(self.array), str(self.device), self.requires_grad)

    def __format__(self, spec: str) -> str:
        if spec and self.size == 1:
            return format(self.item(), spec)
        try:
            return format(str(self), spec)
        except ValueError:
            raise TypeError(
                f"a {_describe(self)} is formatted by {spec!r} only with one element: format its elements, of "
                ".tolist(), or round the values first, .numpy().round(2)"
            ) from None

    def __repr__(self) -> str:
        text = repr(self.backend.to_host(self.array))
        found = _ARRAY_TEXT.match(text)
        values = (found.group(1) if found else text).replace("\n", "\n ")
        parts = [values, f"dtype={self.dtype}", f"device={self.device}"]
        if 0 in self.shape or "..." in values:
            parts.insert(1, f"shape={self.shape}")
        if self._node is not None:
            parts.append("requires_grad=True" if self._node.op is None else f"op={self._node.op.name}")
        return f"tensor({', '.join(parts)})"

    # ------------------------------------------------------------------ shapes

    @property
    def T(self) -> Tensor:  # noqa: N802
        """All axes in reverse order."""
        return self.permute_dims(tuple(range(self.ndim))[::-1])

    @property
    def mT(self) -> Tensor:  # noqa: N802
        """The last two axes exchanged."""
        return self.matrix_transpose()

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape, given as a tuple or as numbers; one -1 is computed."""
        from gradflow import ops

        return ops.reshape(self, _sequence(shape))

    def permute_dims(self, *axes: Any) -> Tensor:
        """The axes in another order, given as a tuple or as numbers."""
        from gradflow import ops

        return ops.permute_dims(self, _sequence(axes))

    def flatten(self) -> Tensor:
        """All elements on one axis."""
        return self.reshape(-1)

    def clone(self) -> Tensor:
        """A copy with memory of its own. Differentiable."""
        from gradflow import ops

        return ops.elementwise.copy(self)

    if TYPE_CHECKING:  # attached by gradflow.ops
        # fmt: off
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __iadd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __isub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __imul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __itruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __ipow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __pos__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __rxor__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __getitem__(self, key: Any) -> Tensor: ...
        def abs(self) -> Tensor: ...
        def all(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def any(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor: ...
        def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor: ...
        def argsort(self, axis: int = -1, descending: bool = False) -> Tensor: ...
        def astype(self, dtype: Any) -> Tensor: ...
        def broadcast_to(self, shape: tuple[int, ...]) -> Tensor: ...
        def ceil(self) -> Tensor: ...
        def clip(self, min: Any = None, max: Any = None) -> Tensor: ...
        def cos(self) -> Tensor: ...
        def cumulative_sum(self, axis: int | None = None) -> Tensor: ...
        def elu(self, alpha: float = 1.0) -> Tensor: ...
        def exp(self) -> Tensor: ...
        def expand_dims(self, axis: int) -> Tensor: ...
        def expm1(self) -> Tensor: ...
        def flip(self, axis: Any = None) -> Tensor: ...
        def floor(self) -> Tensor: ...
        def gelu(self) -> Tensor: ...
        def isfinite(self) -> Tensor: ...
        def isinf(self) -> Tensor: ...
        def isnan(self) -> Tensor: ...
        def leaky_relu(self, negative_slope: float = 0.01) -> Tensor: ...
        def log(self) -> Tensor: ...
        def log1p(self) -> Tensor: ...
        def log_softmax(self, axis: int = -1) -> Tensor: ...
        def logsumexp(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def matmul(self, other: Any) -> Tensor: ...
        def matrix_transpose(self) -> Tensor: ...
        def max(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def maximum(self, other: Any) -> Tensor: ...
        def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def min(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def minimum(self, other: Any) -> Tensor: ...
        def moveaxis(self, source: Any, destination: Any) -> Tensor: ...
        def prod(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def relu(self) -> Tensor: ...
        def round(self) -> Tensor: ...
        def sigmoid(self) -> Tensor: ...
        def sign(self) -> Tensor: ...
        def silu(self) -> Tensor: ...
        def sin(self) -> Tensor: ...
        def softmax(self, axis: int = -1) -> Tensor: ...
        def softplus(self) -> Tensor: ...
        def split(self, indices_or_sections: Any, axis: int = 0) -> list[Tensor]: ...
        def sqrt(self) -> Tensor: ...
        def square(self) -> Tensor: ...
        def squeeze(self, axis: Any = None) -> Tensor: ...
        def std(self, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Tensor: ...
        def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor: ...
        def swapaxes(self, axis1: int, axis2: int) -> Tensor: ...
        def take(self, indices: Any, axis: int | None = None) -> Tensor: ...
        def take_along_axis(self, indices: Tensor, axis: int = -1) -> Tensor: ...
        def tanh(self) -> Tensor: ...
        def unbind(self, axis: int = 0) -> list[Tensor]: ...
        def var(self, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Tensor: ...


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


def device_and_dtype(target: Any, dtype: Any, device: DeviceLike | None) -> tuple[DeviceLike | None, DType | None]:
    """What the arguments of `to` name, None for what they do not. ValueError for a name of neither kind."""
    is_device = isinstance(target, Device)
    if isinstance(target, str) and target not in DTYPES:
        devices = [*backend_prefixes(), "auto"]
        is_device = target.partition(":")[0] in devices
        if not is_device:
            raise ValueError(
                f"unknown device or dtype {target!r}; there are the devices {', '.join(devices)} "
                f"and the dtypes {', '.join(DTYPES)}"
            )
    if target is not None:
        if (device if is_device else dtype) is not None:
            raise TypeError(f"to got two {'devices' if is_device else 'dtypes'}")
        device, dtype = (target, dtype) if is_device else (device, target)
    if device is None and dtype is None:
        raise TypeError("to needs a device, a dtype, or both: to('cuda', dtype='float32')")
    return device, None if dtype is None else as_dtype(dtype)


def _sequence(values: tuple[Any, ...]) -> tuple[int, ...]:
    """The arguments of a method that takes numbers, or one sequence of them."""
    return tuple(values[0]) if len(values) == 1 and is_sequence(values[0]) else values


def _unpickle(cls: type[Tensor], values: Any, device: str, requires_grad: bool) -> Tensor:
    backend = get_backend(device)
    out = cls(backend.from_host(values), backend)
    return out.requires_grad_(requires_grad)


def tensor(data: Any, dtype: Any = None, device: DeviceLike | None = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of `data`: a number, nested sequences, a NumPy array, or a tensor.

    Without a `dtype`, Python numbers become float32, integers too (bools stay bool); arrays and tensors keep theirs.
    The device is that of a tensor given, else the current one. The copy is C-contiguous.
    Raises TypeError or ValueError for data that is not an array of numbers; ValueError for NaN and fractions, and
    OverflowError for numbers out of range, where `dtype` is one of integers and `data` is on the host. A tensor is cast
    as by `astype`.

    >>> import gradflow
    >>> gradflow.tensor([1, 2.5], requires_grad=True)
    tensor([1. , 2.5], dtype=float32, device=cpu, requires_grad=True)
    """
    from gradflow import ops

    out = ops.asarray(data, dtype=dtype, device=device, copy=True)
    return out.requires_grad_(requires_grad)
